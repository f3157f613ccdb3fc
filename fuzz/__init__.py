"""Fuzzers: Rust targets for cargo-fuzz in `fuzz_targets/`, Python ones as modules here."""
