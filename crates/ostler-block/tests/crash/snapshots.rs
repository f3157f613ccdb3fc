//! Snapshots are made, applied and deleted as a whole or not at all.

use std::sync::Arc;

use ostler_block::qcow2::Layout;
use ostler_block::qcow2::exchange::Change;
use ostler_block::storage::{MemoryStorage, Storage};
use ostler_block::{Disk, Qcow2};

use crate::fragile::{DISK, Dice, Fragile, SECTOR, empty, open, reread};

/// A snapshot: where its L1 table is, and the first byte of each sector.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    l1: (u64, u32),
    sectors: Vec<u8>,
}

/// What the disk reads as, and its snapshots. Their table, as the header names it, is a list of
/// offsets here.
#[derive(Clone, Debug, PartialEq)]
struct State {
    sectors: Vec<u8>,
    kept: Vec<Kept>,
}

/// Where the header's fields that a change replaces begin.
const HEADER_FIELDS: u64 = 24;

struct World {
    image: Qcow2,
    storage: Arc<Fragile>,
    state: State,
    table: (u64, u64),
    /// Whoever made the world settles the image.
    settles_later: bool,
    /// Freed by the next change after what it leaves itself.
    also_freed: Option<(u64, u64)>,
}

impl World {
    fn write(&mut self, dice: &mut Dice) {
        for _ in 0..1 + dice.below(6) {
            let sectors = [1, 8, 300][dice.below(3) as usize];
            let sector = dice.below(DISK / SECTOR as u64 - sectors + 1);
            let byte = 1 + dice.below(254) as u8;
            let bytes = vec![byte; sectors as usize * SECTOR];
            self.image.write_bytes(&bytes, sector * SECTOR as u64).expect("a write");
            self.state.sectors[sector as usize..][..sectors as usize].fill(byte);
        }
    }

    fn create(&mut self) {
        let l1 = self.image.l1();
        let at = self.image.allocate(8 * l1.len() as u64).expect("room for an L1 table");
        let mut kept = self.state.kept.clone();
        kept.push(Kept { l1: (at, l1.len() as u32), sectors: self.state.sectors.clone() });
        self.exchange(None, Some(at), &[], kept, None);
    }

    fn delete(&mut self, dice: &mut Dice) {
        let mut kept = self.state.kept.clone();
        if kept.is_empty() {
            return self.create();
        }
        let gone = kept.remove(dice.below(kept.len() as u64) as usize).l1;
        let l1 = self.image.read_l1_at(gone.0, gone.1).expect("an L1 table");
        self.exchange(None, None, &l1, kept, Some(gone));
    }

    fn apply(&mut self, dice: &mut Dice) {
        let kept = self.state.kept.clone();
        if kept.is_empty() {
            return self.create();
        }
        let wanted = &kept[dice.below(kept.len() as u64) as usize];
        let (old, new) = (self.image.l1(), self.image.read_l1_at(wanted.l1.0, wanted.l1.1).expect("an L1 table"));
        self.state.sectors.clone_from(&wanted.sectors);
        self.exchange(Some(&new), None, &old, kept.clone(), None);
    }

    fn exchange(
        &mut self,
        l1: Option<&[u64]>,
        copy_at: Option<u64>,
        gone: &[u64],
        kept: Vec<Kept>,
        free: Option<(u64, u32)>,
    ) {
        let bytes: Vec<u8> = kept.iter().flat_map(|kept| kept.l1.0.to_be_bytes()).collect();
        let offset = self.image.allocate(bytes.len() as u64).expect("room for a table");
        self.storage.write_bytes(&bytes, offset).expect("a write");
        let snapshots = (offset, kept.len() as u32);
        let mut freed = vec![self.table];
        freed.extend(free.map(|(offset, entries)| (offset, 8 * u64::from(entries))));
        freed.extend(self.also_freed.take());
        let change = Change { l1, size: DISK, copy_at, gone, snapshots, freed: &freed };
        self.image.exchange(&change).expect("an exchange");
        self.table = (offset, bytes.len().max(1) as u64);
        self.state.kept = kept;
        if !self.settles_later {
            self.image.settle().expect("settled");
        }
    }

    /// Nothing is lost, and nothing leaks.
    fn check(&self, round: u64) {
        let snapshots: Vec<(u64, u32)> = self.state.kept.iter().map(|kept| kept.l1).collect();
        let report = self.image.check(&snapshots, &[self.table]).expect("a check");
        assert!(report.differences.is_empty(), "round {round}: {:?}", report.differences);
    }
}

fn sectors_of(image: &Qcow2) -> Vec<u8> {
    let mut bytes = vec![0; DISK as usize];
    image.read_bytes(&mut bytes, 0).expect("a disk that reads");
    bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
}

/// The image that a crash left: sound, but for leaks, and of one of the states.
fn check(layout: &Layout, left: Vec<u8>, states: [&State; 2], round: u64) {
    let word = |at: usize| u64::from_be_bytes(left[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u32::from_be_bytes(left[at..at + 4].try_into().expect("four bytes"));
    let layout = Layout { l1_entries: half(36), l1_offset: word(40), ..reread(layout, &left) };
    let (count, table) = (half(60), word(64));
    let l1s: Vec<u64> = (0..count as usize).map(|at| word(table as usize + 8 * at)).collect();
    let snapshots: Vec<(u64, u32)> = l1s.iter().map(|at| (*at, layout.l1_entries)).collect();
    let storage = Arc::new(MemoryStorage::new(left, 1 << 30));
    let image = open(&layout, Arc::clone(&storage) as _);
    let report = image.check(&snapshots, &[(table, 8 * u64::from(count))]).expect("a check");
    let low = report.differences.iter().find(|run| run.refcount < run.references);
    assert!(report.messages.is_empty(), "round {round}: {:?}", report.messages);
    assert_eq!((low, report.uncounted, report.wrong_flags), (None, 0, 0), "round {round}");
    let kept = snapshots.iter().map(|&l1| {
        let view = open(&Layout { l1_offset: l1.0, ..layout }, Arc::clone(&storage) as _);
        Kept { l1, sectors: sectors_of(&view) }
    });
    let found = State { kept: kept.collect(), sectors: sectors_of(&image) };
    assert!(states.iter().any(|state| **state == found), "round {round}: neither before nor after");
}

fn world(layout: &Layout, bytes: Vec<u8>) -> World {
    let storage = Arc::new(Fragile::new(bytes));
    let image = open(layout, Arc::clone(&storage) as _);
    let state = State { sectors: vec![0; DISK as usize / SECTOR], kept: Vec::new() };
    World { image, storage, state, table: (0, 0), settles_later: false, also_freed: None }
}

fn crash_often(cluster_bits: u32, refcount_order: u32, extended_l2: bool, rounds: u64) {
    let (layout, bytes) = empty(cluster_bits, refcount_order, extended_l2);
    let mut world = world(&layout, bytes);
    let storage = Arc::clone(&world.storage);
    let mut dice = Dice(0x0571e6);
    for round in 0..rounds {
        world.write(&mut dice);
        world.image.flush().expect("a flush");
        let before = world.state.clone();
        let what = if world.state.kept.len() > 4 { 1 } else { dice.below(3) };
        let mut choice = Dice(round + 1);
        let crashes = storage.crashes_during(&mut dice, || match what {
            0 => world.create(),
            1 => world.delete(&mut choice),
            _ => world.apply(&mut choice),
        });
        for left in crashes {
            check(&layout, left, [&before, &world.state], round);
        }
        world.check(round);
    }
}

#[test]
fn crash_in_a_snapshot_operation_leaves_it_undone_or_done() {
    crash_often(16, 4, false, 60);
}

#[test]
fn crash_in_a_snapshot_operation_with_small_clusters_leaves_it_undone_or_done() {
    crash_often(9, 4, false, 40);
}

#[test]
fn crash_in_a_snapshot_operation_with_subclusters_leaves_it_undone_or_done() {
    crash_often(14, 5, true, 40);
}

#[test]
fn disk_that_fails_after_the_header_has_the_change_done_and_is_told_of_when_settled() {
    let (layout, bytes) = empty(9, 4, false);
    let mut world = world(&layout, bytes);
    world.write(&mut Dice(5));
    world.create();
    world.write(&mut Dice(6));
    world.image.flush().expect("a flush");
    world.settles_later = true;
    world.storage.fail_after(Some(HEADER_FIELDS));
    world.create();
    world.image.settle().expect_err("the disk fails");
    world.storage.fail_after(None);
    world.image.settle().expect("settled");
    assert_eq!(sectors_of(&world.image), world.state.sectors);
    world.check(0);
}

#[test]
fn cluster_that_is_free_already_keeps_no_other_from_being_freed_after_a_snapshot() {
    let (layout, bytes) = empty(16, 4, false);
    let mut world = world(&layout, bytes);
    world.write(&mut Dice(5));
    world.create();
    world.image.flush().expect("a flush");
    world.settles_later = true;
    let table = std::mem::replace(&mut world.table, (5000 << 16, 8));
    world.also_freed = Some(table);
    world.create();
    world.image.settle().expect_err("what was to be freed was free");
    world.image.settle().expect("settled");
    world.check(0);
}
