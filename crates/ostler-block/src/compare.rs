//! Whether two disks read the same.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::buffer::Buffer;
use crate::copy::{Progress, on_threads};
use crate::disk::Disk;
use crate::{BlockError, Result};

/// What is looked at at once: that of both disks stays in the cache of a core.
const PIECE: u64 = 256 << 10;

/// The offset of the first byte that differs, if any. A shorter disk is as if followed by zeroes.
pub fn compare(one: &dyn Disk, other: &dyn Disk, threads: usize, progress: &Progress) -> Result<Option<u64>> {
    let end = one.size().max(other.size());
    let search = Search { one, other, progress, next: Mutex::new(0), first: Mutex::new((end, Ok(()))) };
    on_threads(threads, progress, || search.run())?;
    let (found, failure) = search.first.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map(|()| (found < end).then_some(found))
}

struct Search<'a> {
    one: &'a dyn Disk,
    other: &'a dyn Disk,
    progress: &'a Progress,
    /// Where nobody has looked yet.
    next: Mutex<u64>,
    /// The first difference or failure so far, or the end: who is behind it has nothing to look for.
    first: Mutex<(u64, Result<()>)>,
}

impl Search<'_> {
    fn first(&self) -> MutexGuard<'_, (u64, Result<()>)> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disks differ there, or cannot be read.
    fn note(&self, at: u64, what: Result<()>) {
        let mut first = self.first();
        if at < first.0 {
            *first = (at, what);
        }
    }

    fn run(&self) -> Result<()> {
        let (mut left, mut right) = (Buffer::new(PIECE as usize), Buffer::new(PIECE as usize));
        while let Some(piece) = self.claim()? {
            let (left, right) = (&mut left[..piece.len as usize], &mut right[..piece.len as usize]);
            match self.look(&piece, left, right) {
                Ok(None) => {}
                Ok(Some(place)) => self.note(piece.at + place as u64, Ok(())),
                Err(error) => self.note(piece.at, Err(error)),
            }
            self.progress.done.fetch_max(piece.at + piece.len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Where the piece differs.
    fn look(&self, piece: &Piece, left: &mut [u8], right: &mut [u8]) -> Result<Option<usize>> {
        fill(self.one, piece.left_zero, left, piece.at)?;
        fill(self.other, piece.right_zero, right, piece.at)?;
        Ok(difference(left, right))
    }

    /// The next piece that is not zero in both.
    fn claim(&self) -> Result<Option<Piece>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (at, end) = (*next, self.first().0);
            if at >= end {
                return Ok(None);
            }
            if self.progress.cancelled.load(Ordering::Acquire) {
                return Err(BlockError::Cancelled);
            }
            let zeroes =
                zero_at(self.one, at, end - at).and_then(|left| Ok((left, zero_at(self.other, at, end - at)?)));
            let ((left_zero, left_len), (right_zero, right_len)) = match zeroes {
                Ok(zeroes) => zeroes,
                Err(error) => {
                    self.note(at, Err(error));
                    continue;
                }
            };
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::testing::Asking;

    /// A disk whose piece `broken` cannot be read, and one that reads as others where `differs`. The
    /// difference is read only once the failure was met.
    fn pair(broken: u64, differs: u64) -> (Asking, Asking) {
        let met = Arc::new(AtomicBool::new(false));
        let failed = Arc::clone(&met);
        let fails = move |offset, _| {
            if offset / PIECE == broken {
                failed.store(true, Ordering::Release);
                return Err(BlockError::Refused("broken".into()));
            }
            while offset / PIECE == differs && !failed.load(Ordering::Acquire) {
                thread::yield_now();
            }
            Ok(1)
        };
        let other = move |offset, _| Ok(if offset / PIECE == differs { 2 } else { 1 });
        let size = 8 * PIECE;
        (
            Asking { on_read: Box::new(fails), ..Asking::new(size) },
            Asking { on_read: Box::new(other), ..Asking::new(size) },
        )
    }

    #[test]
    fn a_failure_behind_the_first_difference_hides_nothing() {
        let (one, other) = pair(1, 0);
        assert_eq!(compare(&one, &other, 2, &Progress::default()).expect("a difference"), Some(0));
    }

    #[test]
    fn a_failure_before_the_first_difference_is_the_answer() {
        let (one, other) = pair(2, 3);
        let answer = compare(&one, &other, 2, &Progress::default());
        assert!(matches!(answer, Err(BlockError::Refused(_))), "{answer:?}");
    }
}
