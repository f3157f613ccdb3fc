//! A controller's accesses to guest memory. Where there is no memory, loads give zeros and stores
//! are lost, as on a bus on which nobody answers.

use std::sync::atomic::Ordering;

use ostler_memory::GuestMap;
use vm_memory::{Bytes, GuestAddress};

pub fn read(map: &GuestMap, gpa: u64, bytes: &mut [u8]) {
    if map.read_slice(bytes, GuestAddress(gpa)).is_err() {
        bytes.fill(0);
    }
}

pub fn write(map: &GuestMap, gpa: u64, bytes: &[u8]) {
    let _nobody = map.write_slice(bytes, GuestAddress(gpa));
}

/// A descriptor of four little-endian words. Its `owner` word is loaded first.
pub fn descriptor(map: &GuestMap, gpa: u64, owner: usize) -> [u32; 4] {
    let first = load(map, gpa + 4 * owner as u64);
    let mut bytes = [0; 16];
    read(map, gpa, &mut bytes);
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words[owner] = first;
    words
}

/// A word that the driver may be writing, before what is loaded after it.
pub fn load(map: &GuestMap, gpa: u64) -> u32 {
    map.load::<u32>(GuestAddress(gpa), Ordering::Acquire).map_or(0, u32::from_le)
}

/// Stores a word that tells the driver that all before it is there.
pub fn store(map: &GuestMap, gpa: u64, word: u32) {
    let _nobody = map.store(word.to_le(), GuestAddress(gpa), Ordering::Release);
}
