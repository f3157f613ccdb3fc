//! What is behind an image, copied into it, so that it needs nothing behind it any more.

use std::sync::atomic::Ordering;

use super::Qcow2;
use super::write::Flight;
use crate::copy::{Pace, Progress};
use crate::disk::Content;
use crate::pieces::Source;
use crate::{BlockError, Result};

/// What is copied at once; writes to it wait meanwhile.
const PIECE: u64 = 1 << 20;

impl Qcow2 {
    /// Holds all of the disk itself afterwards, but for what is known to be zero behind it. Requests
    /// are served meanwhile.
    pub fn pull(&self, progress: &Progress, limit: u64) -> Result<()> {
        self.check_write()?;
        let mut pace = Pace::new(limit);
        let mut at = 0;
        while at < self.layout().size {
            if progress.cancelled.load(Ordering::Acquire) {
                return Err(BlockError::Cancelled);
            }
            let (next, moved) = self.pull_piece(at)?;
            at = next;
            progress.done.store(at.min(self.layout().size), Ordering::Relaxed);
            pace.keep(moved, progress);
        }
        Ok(())
    }

    /// Where to go on, and how much was copied.
    fn pull_piece(&self, at: u64) -> Result<(u64, u64)> {
        self.relieve()?;
        let _gate = self.enter();
        let rest = self.layout().size - at;
        let mapping = self.lookup(at, rest)?;
        if mapping.content != Content::Unallocated {
            return Ok((at + mapping.len, 0));
        }
        let (is_zero, len) = self.zero_entered(at, mapping.len)?;
        if is_zero {
            // A cluster that is zero only in its beginning is looked at as a whole.
            let cluster = self.layout().cluster();
            let end = at + len;
            let whole = if end == self.layout().size { end } else { end & !(cluster - 1) };
            if whole > at {
                return Ok((whole, 0));
            }
        }
        self.mark_dirty()?;
        self.is_unsettled.store(true, Ordering::Release);
        match self.take_off(at, mapping.len.min(PIECE))? {
            // Somebody wrote there meanwhile: look again.
            None => Ok((at, 0)),
            Some(flight) => self.pull_flight(flight, at),
        }
    }

    fn pull_flight(&self, mut flight: Flight, at: u64) -> Result<(u64, u64)> {
        let layout = self.layout();
        let start = flight.first << layout.cluster_bits;
        let end = (flight.first + flight.count) << layout.cluster_bits;
        let nothing = Source::new(&[]);
        let (end, filled) = if layout.extended_l2 {
            let found = self.lookup(at, end - at)?;
            let end = if found.content == Content::Unallocated { at + found.len } else { at };
            flight.touched = if end > at { layout.units_of(at, end - at) } else { (0, 0) };
            (end, self.fill_pulled_units(&flight, at, end))
        } else {
            (end, self.begin_clusters(&flight).and_then(|()| self.fill(&flight, &nothing, start)))
        };
        self.land(&flight, filled)?;
        Ok((end, end - at))
    }

    /// Subclusters of one cluster that nobody holds; nobody can write them while it is in flight.
    fn fill_pulled_units(&self, flight: &Flight, at: u64, end: u64) -> Result<usize> {
        self.begin_clusters(flight)?;
        if flight.is_new {
            self.move_other_units(flight, at, end)?;
        }
        let mut bytes = vec![0; (end - at) as usize];
        self.read_entered(&crate::pieces::Sink::new(&mut bytes), at)?;
        let start = flight.first << self.layout().cluster_bits;
        self.data.write_bytes(&bytes, flight.host + (at - start))?;
        Ok(0)
    }
}
