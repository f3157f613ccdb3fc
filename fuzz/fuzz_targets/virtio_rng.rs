//! virtio-rng: `cargo fuzz run virtio_rng`.

#![no_main]

mod ring;

use libfuzzer_sys::fuzz_target;
use ostler_virtio::RngService;

fuzz_target!(|data: &[u8]| ring::run(data, &mut RngService));
