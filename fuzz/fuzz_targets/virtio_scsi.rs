//! virtio-scsi: `cargo fuzz run virtio_scsi`. A disk and a disc; the first byte chooses the queue.

#![no_main]

mod ring;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use ostler_block::{FileStorage, Raw};
use ostler_virtio::scsi::{Bus, ControlService, Kind, RequestService, Tray, Unit};

const DISK_BYTES: u64 = 1 << 20;

static BUS: LazyLock<Arc<Bus>> = LazyLock::new(|| {
    let bus = Bus::default();
    bus.attach((0, 0), unit(Kind::Disk));
    bus.attach((1, 0), unit(Kind::Disc));
    Arc::new(bus)
});

fn unit(kind: Kind) -> Unit {
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"scsi".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(DISK_BYTES).expect("room for a disk");
    let storage = Arc::new(FileStorage::new(file).expect("a storage"));
    Unit {
        kind,
        image: Arc::new(Raw::new(storage, DISK_BYTES, false)),
        readonly: kind == Kind::Disc,
        serial: b"fuzz".to_vec(),
        discard: true,
        writeback: true,
        granularity_bytes: 4096,
        tray: Tray::default(),
    }
}

fuzz_target!(|data: &[u8]| {
    let bus = Arc::clone(&BUS);
    match data.split_first() {
        Some((0, rest)) => ring::run(rest, &mut ControlService(bus)),
        Some((_, rest)) => ring::run(rest, &mut RequestService(bus)),
        None => {}
    }
});
