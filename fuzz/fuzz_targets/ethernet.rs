//! Emulated network cards: `cargo fuzz run ethernet`. The first byte chooses the chip; then come a
//! count of accesses, those, eight bytes each, and the guest's memory.

#![no_main]

use std::sync::LazyLock;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use ostler_memory::{GuestRam, SlotConfig};
use ostler_nic::{Chip, E1000, Rtl8139};
use ostler_virtio::net::Frame;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const RAM_BYTES: u64 = 64 << 10;
const MAX_FRAMES: usize = 64;

static RAM: LazyLock<GuestRam> = LazyLock::new(|| {
    let ram = GuestRam::new();
    ram.set_slot(SlotConfig { size: RAM_BYTES, log_dirty: true, ..SlotConfig::default() }).expect("a slot");
    ram
});

fn chip(which: u8) -> Box<dyn Chip> {
    match which % 3 {
        0 => Box::new(E1000::new(MAC, true)),
        kind => Box::new(Rtl8139::new(MAC, true, kind == 1)),
    }
}

fn move_frames(chip: &mut dyn Chip, frame: &mut Frame) {
    let map = RAM.map();
    for len in [14, 60, 1514, 9000] {
        let mut bytes = vec![0x45; len];
        bytes[..6].copy_from_slice(&MAC);
        bytes[12..14].copy_from_slice(&[8, 0]);
        if chip.has_room(&map) {
            chip.deliver(&map, &bytes);
        }
    }
    for _ in 0..MAX_FRAMES {
        if !chip.take_frame(&map, frame) {
            return;
        }
        let _lies = !frame.header.fits(frame.bytes().len());
        chip.frame_sent(&map);
    }
}

fuzz_target!(|data: &[u8]| {
    let [which, count, data @ ..] = data else { return };
    let accesses = usize::from(*count).min(data.len() / 8) * 8;
    let (accesses, memory) = data.split_at(accesses);
    let memory = &memory[..memory.len().min(RAM_BYTES as usize)];
    RAM.write(0, &vec![0; RAM_BYTES as usize]).expect("memory");
    RAM.write(0, memory).expect("memory");
    let (mut chip, mut frame) = (chip(*which), Frame::default());
    for access in accesses.chunks_exact(8) {
        let offset = u64::from(u16::from_le_bytes([access[0], access[1]]));
        let size = 1 << (access[2] & 3);
        let value = u32::from_le_bytes([access[4], access[5], access[6], access[7]]);
        if access[3] & 1 == 0 {
            chip.write(access[3] >> 1 & 1, offset, size, value.into());
        } else {
            chip.read(access[3] >> 1 & 1, offset, size);
        }
        chip.interrupting(Instant::now());
        if access[3] & 0x80 != 0 {
            move_frames(chip.as_mut(), &mut frame);
        }
    }
    move_frames(chip.as_mut(), &mut frame);
    let saved: Vec<_> = chip.save().into_iter().map(|(name, words)| (name.to_owned(), words)).collect();
    chip.load(&saved).expect("its own state");
});
