//! Whether two disks read the same.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::copy::{Progress, on_threads};
use crate::disk::Disk;
use crate::{BlockError, Result};

const PIECE: u64 = 1 << 20;

/// The offset of the first byte that differs, if any. A shorter disk is as if followed by zeroes.
pub fn compare(one: &dyn Disk, other: &dyn Disk, threads: usize, progress: &Progress) -> Result<Option<u64>> {
    let search = Search { one, other, progress, end: one.size().max(other.size()), next: Mutex::new(0) };
    // The first difference so far: who is behind it has nothing to look for.
    let found = AtomicU64::new(u64::MAX);
    on_threads(threads, progress, || search.run(&found))?;
    let found = found.into_inner();
    Ok((found != u64::MAX).then_some(found))
}

struct Search<'a> {
    one: &'a dyn Disk,
    other: &'a dyn Disk,
    progress: &'a Progress,
    end: u64,
    /// Where nobody has looked yet.
    next: Mutex<u64>,
}

impl Search<'_> {
    fn run(&self, found: &AtomicU64) -> Result<()> {
        let (mut left, mut right) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
        while let Some(piece) = self.claim(found)? {
            let (left, right) = (&mut left[..piece.len as usize], &mut right[..piece.len as usize]);
            fill(self.one, piece.left_zero, left, piece.at)?;
            fill(self.other, piece.right_zero, right, piece.at)?;
            if let Some(place) = difference(left, right) {
                found.fetch_min(piece.at + place as u64, Ordering::Relaxed);
            }
            self.progress.done.fetch_max(piece.at + piece.len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The next piece that is not zero in both.
    fn claim(&self, found: &AtomicU64) -> Result<Option<Piece>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        while *next < self.end.min(found.load(Ordering::Relaxed)) {
            if self.progress.cancelled.load(Ordering::Acquire) {
                return Err(BlockError::Cancelled);
            }
            let at = *next;
            let (left_zero, left_len) = zero_at(self.one, at, self.end - at)?;
            let (right_zero, right_len) = zero_at(self.other, at, self.end - at)?;
            let both = left_len.min(right_len);
            if left_zero && right_zero {
                *next += both;
                self.progress.done.fetch_max(*next, Ordering::Relaxed);
                continue;
            }
            let len = both.min(PIECE);
            *next += len;
            return Ok(Some(Piece { at, len, left_zero, right_zero }));
        }
        Ok(None)
    }
}

struct Piece {
    at: u64,
    len: u64,
    left_zero: bool,
    right_zero: bool,
}

/// As [`Disk::zero_at`], with zeroes behind the end.
fn zero_at(disk: &dyn Disk, at: u64, limit: u64) -> Result<(bool, u64)> {
    let there = disk.size().saturating_sub(at).min(limit);
    if there == 0 {
        return Ok((true, limit));
    }
    let (is_zero, len) = disk.zero_at(at, there)?;
    Ok((is_zero, len.clamp(1, there)))
}

fn fill(disk: &dyn Disk, is_zero: bool, bytes: &mut [u8], at: u64) -> Result<()> {
    if is_zero {
        bytes.fill(0);
        return Ok(());
    }
    disk.read_bytes(bytes, at)
}

fn difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    left.iter().zip(right).position(|(left, right)| left != right)
}

/// How much from `at` on, up to `limit`, differs, or does not: the answer and the length, in whole
/// `unit`s but for the end.
pub fn run_of_difference(one: &dyn Disk, other: &dyn Disk, at: u64, limit: u64, unit: u64) -> Result<(bool, u64)> {
    let len = limit.min(PIECE);
    let (mut left, mut right) = (vec![0; len as usize], vec![0; len as usize]);
    for (disk, bytes) in [(one, &mut left), (other, &mut right)] {
        let there = disk.size().saturating_sub(at).min(len) as usize;
        if there != 0 {
            disk.read_bytes(&mut bytes[..there], at)?;
        }
    }
    let mut units =
        left.chunks(unit as usize).zip(right.chunks(unit as usize)).map(|(left, right)| (left != right, left.len()));
    let Some((differs, mut run)) = units.next() else { return Ok((false, 0)) };
    for (next, size) in units {
        if next != differs {
            break;
        }
        run += size;
    }
    Ok((differs, run as u64))
}
