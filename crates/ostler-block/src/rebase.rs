//! What would change under an overlay whose backing image is exchanged, copied into it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer::Buffer;
use crate::copy::{Progress, on_threads};
use crate::disk::{Content, Disk};
use crate::{BlockError, Result};

/// What is looked at at once, and by one thread; at least a cluster.
const PIECE: u64 = 1 << 20;

/// The images behind an overlay: what is there now, and what is to be. Without one it is zero.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub old: Option<&'a dyn Disk>,
    pub new: Option<&'a dyn Disk>,
}

/// Writes into `overlay`, which has `cluster`s of so many bytes, what it does not hold and what the
/// change would make read otherwise.
pub fn rebase(
    overlay: &dyn Disk,
    change: &Change<'_>,
    cluster: u64,
    threads: usize,
    progress: &Progress,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let piece = PIECE.max(cluster);
    on_threads(threads, progress, || Rebase::new(overlay, change, cluster, piece).run(&next, progress))
}

struct Rebase<'a> {
    overlay: &'a dyn Disk,
    change: &'a Change<'a>,
    cluster: u64,
    piece: u64,
    old: Buffer,
    new: Buffer,
}

impl<'a> Rebase<'a> {
    fn new(overlay: &'a dyn Disk, change: &'a Change<'a>, cluster: u64, piece: u64) -> Self {
        let (old, new) = (Buffer::new(piece as usize), Buffer::new(piece as usize));
        Self { overlay, change, cluster, piece, old, new }
    }

    fn run(&mut self, next: &AtomicU64, progress: &Progress) -> Result<()> {
        let end = self.overlay.size();
        loop {
            let start = next.fetch_add(self.piece, Ordering::Relaxed);
            if start >= end {
                return Ok(());
            }
            if progress.cancelled.load(Ordering::Acquire) {
                return Err(BlockError::Cancelled);
            }
            let stop = end.min(start + self.piece);
            self.look_at(start, stop)?;
            progress.done.fetch_add(stop - start, Ordering::Relaxed);
        }
    }

    /// A piece, in the runs that the overlay keeps in one way.
    fn look_at(&mut self, start: u64, stop: u64) -> Result<()> {
        let mut at = start;
        while at < stop {
            let extent = self.overlay.extent_at(at, stop - at)?;
            let len = extent.len.clamp(1, stop - at);
            if extent.content == Content::Unallocated {
                self.unheld(at, at + len)?;
            }
            at += len;
        }
        Ok(())
    }

    /// A run that shows what is behind the overlay.
    fn unheld(&mut self, start: u64, stop: u64) -> Result<()> {
        let mut at = start;
        while at < stop {
            let (old_zero, old_len) = zero_at(self.change.old, at, stop - at)?;
            let (new_zero, new_len) = zero_at(self.change.new, at, stop - at)?;
            let len = old_len.min(new_len);
            if !(old_zero && new_zero) {
                // To the end of the cluster, so that none is copied twice.
                let end = (at + len).next_multiple_of(self.cluster).min(stop);
                self.differing(at, end)?;
                at = end;
                continue;
            }
            at += len;
        }
        Ok(())
    }

    /// Writes the clusters of a range that differ, those in a row at once.
    fn differing(&mut self, start: u64, stop: u64) -> Result<()> {
        let len = (stop - start) as usize;
        read(self.change.old, &mut self.old[..len], start)?;
        read(self.change.new, &mut self.new[..len], start)?;
        let mut from = None;
        let mut at = start;
        while at < stop {
            let end = ((at / self.cluster + 1) * self.cluster).min(stop);
            let places = (at - start) as usize..(end - start) as usize;
            if self.old[places.clone()] == self.new[places] {
                self.write(from.take(), at, start)?;
            } else if from.is_none() {
                from = Some(at);
            }
            at = end;
        }
        self.write(from, stop, start)
    }

    /// What was there from `from`, if there is anything to write, to `stop`; the buffer is of `start`.
    fn write(&self, from: Option<u64>, stop: u64, start: u64) -> Result<()> {
        let Some(from) = from else { return Ok(()) };
        self.overlay.write_bytes(&self.old[(from - start) as usize..(stop - start) as usize], from)
    }
}

/// As [`Disk::zero_at`], with zeroes behind the end and where there is no disk.
fn zero_at(disk: Option<&dyn Disk>, at: u64, limit: u64) -> Result<(bool, u64)> {
    let there = disk.map_or(0, |disk| disk.size().saturating_sub(at)).min(limit);
    match disk {
        Some(disk) if there != 0 => disk.zero_at(at, there).map(|(is_zero, len)| (is_zero, len.clamp(1, there))),
        _ => Ok((true, limit)),
    }
}

fn read(disk: Option<&dyn Disk>, bytes: &mut [u8], at: u64) -> Result<()> {
    let there = disk.map_or(0, |disk| disk.size().saturating_sub(at)).min(bytes.len() as u64) as usize;
    if let Some(disk) = disk
        && there != 0
    {
        disk.read_bytes(&mut bytes[..there], at)?;
    }
    bytes[there..].fill(0);
    Ok(())
}
