//! virtio-blk: `cargo fuzz run virtio_blk`. Nothing may panic, hang, or reach past the disk.

#![no_main]

mod ring;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use ostler_virtio::{BlkService, Disk};

const DISK_BYTES: u64 = 64 << 10;

static DISK: LazyLock<Arc<Disk>> = LazyLock::new(|| {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), 0) };
    assert!(fd >= 0, "no memory file");
    // SAFETY: a descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(DISK_BYTES).expect("room");
    Arc::new(Disk::new(file, DISK_BYTES, false, [0; 20]).expect("a disk"))
});

fuzz_target!(|data: &[u8]| ring::run(data, &mut BlkService(Arc::clone(&DISK))));
