//! Where a file was found to hold data.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The last run of data that was found in a file. To look for the hole behind it the kernel goes through
/// all extents up to there, which takes as long as a read where there are many.
///
/// Data may have been given back meanwhile. It is called data still, and reads as the zeroes it is.
#[derive(Debug, Default)]
pub struct KnownData(Mutex<Range<u64>>);

impl KnownData {
    fn run(&self) -> MutexGuard<'_, Range<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of data follow `offset`, if it is known.
    pub fn after(&self, offset: u64) -> Option<u64> {
        let run = self.run();
        run.contains(&offset).then(|| run.end - offset)
    }

    pub fn note(&self, found: Range<u64>) {
        *self.run() = found;
    }

    /// There are new holes.
    pub fn forget(&self) {
        *self.run() = 0..0;
    }
}
