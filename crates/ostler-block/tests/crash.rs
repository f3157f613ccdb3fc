//! What is left of an image when the host dies: everything that was flushed, and at worst leaks.
//!
//! A storage remembers which writes were not flushed. At any moment it can say what a disk might
//! hold if the power failed now: any of those writes may be there or not, sector by sector.

use std::io;
use std::sync::{Arc, Mutex};

use ostler_block::qcow2::{Layout, Options};
use ostler_block::storage::{MemoryStorage, Run, Storage};
use ostler_block::{Disk, Qcow2, Sink, Source};

const SECTOR: usize = 512;
const DISK: u64 = 2 << 20;

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Bytes, and the writes since they were stable.
#[derive(Debug, Default)]
struct Held {
    stable: Vec<u8>,
    now: Vec<u8>,
    unflushed: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Fragile(Mutex<Held>);

impl Fragile {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(Held { stable: bytes.clone(), now: bytes, unflushed: Vec::new() }))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut self.0.lock().expect("no panic"))
    }

    /// What might be found after the power failed.
    fn after_crash(&self, dice: &mut Dice) -> Vec<u8> {
        self.with(|held| {
            let mut bytes = held.stable.clone();
            let most = dice.below(3);
            for (offset, data) in &held.unflushed {
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    if dice.below(3) < most {
                        let at = offset + number * SECTOR;
                        bytes.resize(bytes.len().max(at + sector.len()), 0);
                        bytes[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            bytes
        })
    }
}

impl Storage for Fragile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|held| held.now.len() as u64))
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        self.with(|held| {
            let from = (offset as usize).min(held.now.len());
            let to = (from + into.len()).min(held.now.len());
            into.copy_from(&held.now[from..to]);
            into.slice(to - from, into.len()).fill_zero();
        });
        Ok(())
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; from.len()];
        from.copy_to(&mut bytes);
        self.with(|held| {
            let end = offset as usize + bytes.len();
            held.now.resize(held.now.len().max(end), 0);
            held.now[offset as usize..end].copy_from_slice(&bytes);
            held.unflushed.push((offset as usize, bytes));
        });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|held| {
            held.unflushed.clear();
            held.stable = held.now.clone();
        });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|held| held.now.resize(len as usize, 0));
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // What a discarded range holds is anybody's guess.
        self.write(&Source::new(&vec![0xdd; len as usize]), offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.write(&Source::new(&vec![0; len as usize]), offset)
    }

    fn run_at(&self, _offset: u64, limit: u64) -> io::Result<Run> {
        Ok(Run { is_data: true, len: limit })
    }

    fn grows_with_zeroes(&self) -> bool {
        true
    }
}

/// An empty image: header, refcount table, refcount block, L1 table, a cluster each.
fn empty(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> (Layout, Vec<u8>) {
    let cluster = 1 << cluster_bits;
    let mut layout = Layout {
        version: 3,
        cluster_bits,
        refcount_order,
        size: DISK,
        l1_offset: 3 * cluster,
        refcount_table_offset: cluster,
        refcount_table_clusters: 1,
        extended_l2,
        ..Layout::default()
    };
    layout.l1_entries = layout.l1_needed() as u32;
    let l1_clusters = (u64::from(layout.l1_entries) * 8).div_ceil(cluster);
    let mut bytes = vec![0; ((3 + l1_clusters) * cluster) as usize];
    bytes[48..56].copy_from_slice(&cluster.to_be_bytes());
    bytes[56..60].copy_from_slice(&1u32.to_be_bytes());
    bytes[cluster as usize..][..8].copy_from_slice(&(2 * cluster).to_be_bytes());
    let block = &mut bytes[2 * cluster as usize..3 * cluster as usize];
    for used in 0..3 + l1_clusters as usize {
        ostler_block::qcow2::refcounts::set(block, used, refcount_order, 1);
    }
    (layout, bytes)
}

/// The layout after the data path may have moved the refcount table.
fn reread(layout: &Layout, bytes: &[u8]) -> Layout {
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let clusters = u32::from_be_bytes(bytes[56..60].try_into().expect("four bytes"));
    Layout { refcount_table_offset: word(48), refcount_table_clusters: clusters, ..*layout }
}

fn open(layout: &Layout, storage: Arc<dyn Storage>) -> Qcow2 {
    let options = Options { l2_cache_bytes: 64 << 10, ..Options::default() };
    Qcow2::open(storage, None, None, *layout, options).expect("an image that opens")
}

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

fn change(image: &Qcow2, truth: &mut Truth, dice: &mut Dice) {
    let sectors = [1, 8, 100, 700][dice.below(4) as usize].min(DISK / SECTOR as u64);
    let sector = dice.below(DISK / SECTOR as u64 - sectors + 1);
    let (offset, len) = (sector * SECTOR as u64, sectors * SECTOR as u64);
    let byte = if dice.below(4) == 0 { 0 } else { 1 + dice.below(254) as u8 };
    if byte == 0 {
        image.write_zeroes(offset, len, dice.below(2) == 0).expect("zeroes");
    } else {
        image.write_bytes(&vec![byte; len as usize], offset).expect("a write");
    }
    truth.write(sector as usize, sectors as usize, byte);
}

fn crash_often(cluster_bits: u32, refcount_order: u32, extended_l2: bool, rounds: u64) {
    let (layout, bytes) = empty(cluster_bits, refcount_order, extended_l2);
    let storage = Arc::new(Fragile::new(bytes));
    let image = open(&layout, Arc::clone(&storage) as _);
    let (mut truth, mut dice) = (Truth::new(), Dice(0x0571e5));
    for round in 0..rounds {
        for _ in 0..1 + dice.below(4) {
            change(&image, &mut truth, &mut dice);
        }
        if dice.below(3) == 0 {
            image.flush().expect("a flush");
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
    image.settle().expect("settled");
    let report = image.check(&[], &[]).expect("a check");
    assert!(report.differences.is_empty(), "{:?}", report.differences);
}

#[test]
fn crash_at_any_moment_leaves_what_was_flushed_and_at_most_leaks() {
    crash_often(16, 4, false, 150);
}

#[test]
fn crash_with_small_clusters_whose_refcount_table_grows_leaves_at_most_leaks() {
    crash_often(9, 6, false, 150);
}

#[test]
fn crash_with_subclusters_leaves_at_most_leaks() {
    crash_often(14, 4, true, 150);
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
