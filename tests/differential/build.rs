//! Says whether the tests that want `/dev/kvm` can run: where they cannot, they show as ignored.

use std::fs::OpenOptions;

const DEVICE: &str = "/dev/kvm";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={DEVICE}");
    println!("cargo::rustc-check-cfg=cfg(has_kvm)");
    if OpenOptions::new().read(true).write(true).open(DEVICE).is_ok() {
        println!("cargo::rustc-cfg=has_kvm");
    }
}
