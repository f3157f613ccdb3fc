//! virtio-console: `cargo fuzz run virtio_console`. The first byte chooses the direction; the host
//! sends zeros without end, and takes whatever it gets.

#![no_main]

mod ring;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use ostler_virtio::{InputService, OutputService};

fn device(path: &str) -> OwnedFd {
    OpenOptions::new().read(true).write(true).open(path).expect("a device of every Linux").into()
}

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((0, rest)) => ring::run(rest, &mut InputService::new(device("/dev/zero"))),
    Some((_, rest)) => ring::run(rest, &mut OutputService::new(device("/dev/null"))),
    None => {}
});
