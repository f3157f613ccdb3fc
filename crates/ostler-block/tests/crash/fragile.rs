//! A storage whose power may fail, and small images to keep there.
//!
//! It remembers which writes were not flushed. At any moment it can say what a disk might hold if the
//! power failed now: any of those writes may be there or not, sector by sector.

use std::io;
use std::sync::{Arc, Mutex};

use ostler_block::qcow2::{Layout, Options};
use ostler_block::storage::{Run, Storage};
use ostler_block::{Qcow2, Sink, Source};

pub const SECTOR: usize = 512;
pub const DISK: u64 = 2 << 20;

#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
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
    /// With dice: what a crash would have left, each time before the writes became stable.
    recording: Option<Dice>,
    recorded: Vec<Vec<u8>>,
    /// Writes fail after one at this offset.
    last_write: Option<u64>,
    is_failing: bool,
    /// How many writes and flushes there are before one that fails.
    until_failure: Option<u64>,
}

impl Held {
    fn fail_in_turn(&mut self) -> io::Result<()> {
        self.until_failure = match self.until_failure {
            Some(0) => {
                self.until_failure = None;
                return Err(io::Error::other("the disk fails once"));
            }
            left => left.map(|left| left - 1),
        };
        Ok(())
    }

    fn after_crash(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.stable.clone();
        let most = dice.below(3);
        for (offset, data) in &self.unflushed {
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if dice.below(3) < most {
                    let at = offset + number * SECTOR;
                    bytes.resize(bytes.len().max(at + sector.len()), 0);
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes
    }
}

#[derive(Debug, Default)]
pub struct Fragile(Mutex<Held>);

impl Fragile {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(Held { stable: bytes.clone(), now: bytes, ..Held::default() }))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut self.0.lock().expect("no panic"))
    }

    /// Has every write fail after the next one at `offset`; with `None`, none any more.
    pub fn fail_after(&self, offset: Option<u64>) {
        self.with(|held| (held.last_write, held.is_failing) = (offset, false));
    }

    /// Has one write or flush fail, after as many that do not.
    pub fn fail_once_after(&self, writes: u64) {
        self.with(|held| held.until_failure = Some(writes));
    }

    /// What might be found after the power failed.
    pub fn after_crash(&self, dice: &mut Dice) -> Vec<u8> {
        self.with(|held| held.after_crash(dice))
    }

    /// What might be found if the power failed at any moment of `act`.
    pub fn crashes_during(&self, dice: &mut Dice, act: impl FnOnce()) -> Vec<Vec<u8>> {
        self.with(|held| held.recording = Some(Dice(dice.below(u64::MAX - 1) + 1)));
        act();
        let last = self.after_crash(dice);
        self.with(|held| {
            held.recording = None;
            let mut found = std::mem::take(&mut held.recorded);
            found.push(last);
            found
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
            if held.is_failing {
                return Err(io::Error::other("the disk fails"));
            }
            held.fail_in_turn()?;
            held.is_failing = held.last_write == Some(offset);
            let end = offset as usize + bytes.len();
            held.now.resize(held.now.len().max(end), 0);
            held.now[offset as usize..end].copy_from_slice(&bytes);
            held.unflushed.push((offset as usize, bytes));
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|held| {
            held.fail_in_turn()?;
            if let Some(mut dice) = held.recording.take() {
                let left = held.after_crash(&mut dice);
                held.recorded.push(left);
                held.recording = Some(dice);
            }
            held.unflushed.clear();
            held.stable = held.now.clone();
            Ok(())
        })
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
pub fn empty(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> (Layout, Vec<u8>) {
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
    bytes[24..32].copy_from_slice(&DISK.to_be_bytes());
    bytes[36..40].copy_from_slice(&layout.l1_entries.to_be_bytes());
    bytes[40..48].copy_from_slice(&layout.l1_offset.to_be_bytes());
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
pub fn reread(layout: &Layout, bytes: &[u8]) -> Layout {
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let clusters = u32::from_be_bytes(bytes[56..60].try_into().expect("four bytes"));
    Layout { refcount_table_offset: word(48), refcount_table_clusters: clusters, ..*layout }
}

pub fn open(layout: &Layout, storage: Arc<dyn Storage>) -> Qcow2 {
    let options = Options { l2_cache_bytes: 64 << 10, ..Options::default() };
    Qcow2::open(storage, None, None, *layout, options).expect("an image that opens")
}
