//! A virtio-blk ring whose memory is the input: table, rings, request headers, everything.
//!
//! Run with `cargo fuzz run virtio_blk`. Nothing may panic, hang, or reach past the disk.

#![no_main]

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use ostler_memory::{GuestRam, SlotConfig};
use ostler_virtio::{BlkService, Broken, Disk, Outcome, Position, Ring, RingConfig, Service};

const RAM_BYTES: u64 = 64 << 10;
const DISK_BYTES: u64 = 64 << 10;
const MAX_REQUESTS: usize = 64;

static DISK: LazyLock<Arc<Disk>> = LazyLock::new(|| {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), 0) };
    assert!(fd >= 0, "no memory file");
    // SAFETY: a descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(DISK_BYTES).expect("room");
    Arc::new(Disk::new(file, DISK_BYTES, false, [0; 20]).expect("a disk"))
});

static RAM: LazyLock<GuestRam> = LazyLock::new(|| {
    let ram = GuestRam::new();
    ram.set_slot(SlotConfig { size: RAM_BYTES, log_dirty: true, ..SlotConfig::default() }).expect("a slot");
    ram
});

fn serve(config: &RingConfig) -> Result<(), Broken> {
    let map = RAM.map();
    let Ok(mut ring) = Ring::new(config, &map) else { return Ok(()) };
    let mut blk = BlkService(Arc::clone(&DISK));
    for _ in 0..MAX_REQUESTS {
        let Some(chain) = ring.pop(&map)? else { break };
        if let Outcome::Done(len) = blk.serve(&chain, &map)? {
            assert!(u64::from(len) <= chain.writable.len());
            ring.push(&map, &chain, len)?;
            ring.needs_interrupt(&map)?;
        }
    }
    ring.enable_kicks(&map).map(|_more| ())
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, memory)) = data.split_first() else { return };
    let memory = &memory[..memory.len().min(RAM_BYTES as usize - 16)];
    RAM.write(0, &vec![0; RAM_BYTES as usize]).expect("memory");
    RAM.write(16, memory).expect("memory");
    let config = RingConfig {
        size: 8,
        desc_table: 0x10,
        avail_ring: 0x90,
        used_ring: 0xb0,
        position: if flags & 4 != 0 { Position::PACKED_START } else { Position::default() },
        event_idx: flags & 1 != 0,
        indirect: flags & 2 != 0,
        packed: flags & 4 != 0,
    };
    let _broken = serve(&config);
});
