//! Whether two disks read the same.

use std::sync::atomic::Ordering;

use crate::copy::Progress;
use crate::disk::Disk;
use crate::{BlockError, Result};

const PIECE: u64 = 1 << 20;

/// The offset of the first byte that differs, if any. A shorter disk is as if followed by zeroes.
pub fn compare(one: &dyn Disk, other: &dyn Disk, progress: &Progress) -> Result<Option<u64>> {
    let end = one.size().max(other.size());
    let (mut left, mut right) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    let mut at = 0;
    while at < end {
        if progress.cancelled.load(Ordering::Acquire) {
            return Err(BlockError::Cancelled);
        }
        let (left_zero, left_len) = zero_at(one, at, end - at)?;
        let (right_zero, right_len) = zero_at(other, at, end - at)?;
        let both = left_len.min(right_len);
        let len = if left_zero && right_zero { both } else { both.min(PIECE) };
        if !(left_zero && right_zero) {
            let (left, right) = (&mut left[..len as usize], &mut right[..len as usize]);
            fill(one, left_zero, left, at)?;
            fill(other, right_zero, right, at)?;
            if let Some(place) = difference(left, right) {
                return Ok(Some(at + place as u64));
            }
        }
        at += len;
        progress.done.store(at, Ordering::Relaxed);
    }
    Ok(None)
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
