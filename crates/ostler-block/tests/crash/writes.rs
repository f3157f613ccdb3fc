//! Writes, zeroes and flushes.

use std::sync::Arc;

use ostler_block::storage::MemoryStorage;
use ostler_block::{Disk, Qcow2};

use crate::fragile::{DISK, Dice, Fragile, SECTOR, empty, open, reread};

/// For each sector, what a crash may leave of it: what was flushed, and all that came after.
struct Truth {
    flushed: Vec<u8>,
    since: Vec<Vec<u8>>,
}

impl Truth {
    fn new() -> Self {
        Self { flushed: vec![0; (DISK as usize) / SECTOR], since: vec![Vec::new(); (DISK as usize) / SECTOR] }
    }

    fn write(&mut self, sector: usize, sectors: usize, byte: u8) {
        self.since[sector..sector + sectors].iter_mut().for_each(|values| values.push(byte));
    }

    fn flush(&mut self) {
        for (flushed, since) in self.flushed.iter_mut().zip(&mut self.since) {
            *flushed = since.pop().unwrap_or(*flushed);
            since.clear();
        }
    }

    fn check(&self, image: &Qcow2, round: u64) {
        let mut bytes = vec![0; DISK as usize];
        image.read_bytes(&mut bytes, 0).expect("a disk that reads");
        for (number, sector) in bytes.chunks(SECTOR).enumerate() {
            let byte = sector[0];
            assert!(sector.iter().all(|other| *other == byte), "round {round}: sector {number} is torn");
            let is_right = byte == self.flushed[number] || self.since[number].contains(&byte);
            assert!(is_right, "round {round}: sector {number} is {byte}, not {}", self.flushed[number]);
        }
    }
}

/// Does it again if it fails, as it may once.
fn insist(mut act: impl FnMut() -> Result<(), ostler_block::BlockError>) {
    if act().is_err() {
        act().expect("nothing fails twice");
    }
}

fn change(image: &Qcow2, truth: &mut Truth, dice: &mut Dice) {
    let sectors = [1, 8, 100, 700][dice.below(4) as usize].min(DISK / SECTOR as u64);
    let sector = dice.below(DISK / SECTOR as u64 - sectors + 1);
    let (offset, len) = (sector * SECTOR as u64, sectors * SECTOR as u64);
    let byte = if dice.below(4) == 0 { 0 } else { 1 + dice.below(254) as u8 };
    if byte == 0 {
        let unmap = dice.below(2) == 0;
        insist(|| image.write_zeroes(offset, len, unmap));
    } else {
        insist(|| image.write_bytes(&vec![byte; len as usize], offset));
    }
    truth.write(sector as usize, sectors as usize, byte);
}

/// With `failures`, the seed of them, a write or a flush fails in most rounds; what failed is asked for again.
fn crash_often(cluster_bits: u32, refcount_order: u32, extended_l2: bool, rounds: u64, failures: Option<u64>) {
    let (layout, bytes) = empty(cluster_bits, refcount_order, extended_l2);
    let storage = Arc::new(Fragile::new(bytes));
    let image = open(&layout, Arc::clone(&storage) as _);
    let (mut truth, mut dice) = (Truth::new(), Dice(0x0571e5 + failures.unwrap_or(0)));
    for round in 0..rounds {
        if failures.is_some() {
            storage.fail_once_after(dice.below(12));
        }
        for _ in 0..1 + dice.below(4) {
            change(&image, &mut truth, &mut dice);
        }
        if dice.below(3) == 0 {
            if failures.is_some() {
                storage.fail_once_after(dice.below(8));
            }
            insist(|| image.flush());
            truth.flush();
        }
        let left = storage.after_crash(&mut dice);
        let layout = reread(&layout, &left);
        let after = open(&layout, Arc::new(MemoryStorage::new(left, 1 << 30)));
        let report = after.check(&[], &[]).expect("a check");
        assert!(report.messages.is_empty(), "round {round}: {:?}", report.messages);
        let low = report.differences.iter().find(|run| run.refcount < run.references);
        assert_eq!((low, report.uncounted, report.wrong_flags), (None, 0, 0), "round {round}");
        truth.check(&after, round);
    }
    insist(|| image.settle());
    let report = image.check(&[], &[]).expect("a check");
    // What a failure left half made is a leak.
    assert!(failures.is_some() || report.differences.is_empty(), "{:?}", report.differences);
}

#[test]
fn failure_of_any_write_or_flush_loses_nothing_that_is_flushed_afterwards() {
    // Tables are changed most at the beginning.
    for seed in 1..100 {
        crash_often(16, 4, false, 10, Some(seed));
        crash_often(9, 6, false, 20, Some(seed));
        crash_often(14, 4, true, 10, Some(seed));
    }
}

#[test]
fn crash_at_any_moment_leaves_what_was_flushed_and_at_most_leaks() {
    crash_often(16, 4, false, 150, None);
}

#[test]
fn crash_with_small_clusters_whose_refcount_table_grows_leaves_at_most_leaks() {
    crash_often(9, 6, false, 150, None);
}

#[test]
fn crash_with_subclusters_leaves_at_most_leaks() {
    crash_often(14, 4, true, 150, None);
}

#[test]
fn writers_on_many_threads_do_not_disturb_each_other() {
    let (layout, bytes) = empty(12, 4, false);
    let image = open(&layout, Arc::new(MemoryStorage::new(bytes, 1 << 30)));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let image = &image;
            scope.spawn(move || {
                let mut dice = Dice(thread + 1);
                for _ in 0..300 {
                    // Each writes every fourth sector, so all share clusters.
                    let sector = dice.below(DISK / 512 / 4) * 4 + thread;
                    image.write_bytes(&[thread as u8 + 1; SECTOR], sector * 512).expect("a write");
                    if dice.below(50) == 0 {
                        image.flush().expect("a flush");
                    }
                }
            });
        }
    });
    let mut all = vec![0; DISK as usize];
    image.read_bytes(&mut all, 0).expect("a disk that reads");
    for (number, sector) in all.chunks(SECTOR).enumerate() {
        let byte = number as u8 % 4 + 1;
        assert!(sector.iter().all(|other| *other == byte) || sector.iter().all(|other| *other == 0));
    }
    image.settle().expect("settled");
    assert!(image.check(&[], &[]).expect("a check").differences.is_empty());
}
