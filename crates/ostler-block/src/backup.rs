//! A copy of a disk as it was at one instant, made while the disk is written.
//!
//! What is about to be overwritten is saved first. A granule is saved once: it is *to do*, then
//! *under way*, then done; who wants to write one that is under way waits for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::copy::{Job, Pace, Progress, copy_range};
use crate::dirty::DirtyMap;
use crate::disk::Disk;
use crate::{BlockError, Result};

/// What is saved at once when nobody waits for it.
const PIECE: u64 = 1 << 20;

/// A backup that is being made.
#[derive(Debug)]
pub struct Backup {
    source: Arc<dyn Disk>,
    target: Arc<dyn Disk>,
    job: Job,
    progress: Arc<Progress>,
    state: Mutex<State>,
    landed: Condvar,
}

#[derive(Debug)]
struct State {
    todo: DirtyMap,
    /// Ranges that are being saved: first and end.
    under_way: Vec<(u64, u64)>,
    failure: Option<BlockError>,
    is_over: bool,
}

impl Backup {
    /// `todo` says what is to be saved; the target has room for all of the source.
    pub fn new(
        source: Arc<dyn Disk>,
        target: Arc<dyn Disk>,
        todo: DirtyMap,
        job: Job,
        progress: Arc<Progress>,
    ) -> Result<Self> {
        if target.size() < source.size() {
            return Err(BlockError::Refused("the target is smaller than the disk; make it as large".into()));
        }
        let state = State { todo, under_way: Vec::new(), failure: None, is_over: false };
        Ok(Self { source, target, job, progress, state: Mutex::new(state), landed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves what a write of this range would lose. A failure ends the backup, not the write.
    pub fn before_write(&self, offset: u64, len: u64) {
        let mut state = self.state();
        let (first, end) = state.todo.whole_granules(offset, len);
        loop {
            if state.is_over {
                return;
            }
            if let Some(range) = state.todo.take_run(first, end, end - first) {
                state = self.save(state, range);
            } else if state.under_way.iter().any(|&(from, to)| from < end && first < to) {
                state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                return;
            }
        }
    }

    /// Saves a range that was taken.
    fn save<'a>(&'a self, mut state: MutexGuard<'a, State>, (from, to): (u64, u64)) -> MutexGuard<'a, State> {
        state.under_way.push((from, to));
        drop(state);
        let saved = copy_range(self.source.as_ref(), self.target.as_ref(), &self.job, &self.progress, from, to);
        self.progress.done.fetch_add(to - from, Ordering::Relaxed);
        let mut state = self.state();
        state.under_way.retain(|&range| range != (from, to));
        if let Err(error) = saved {
            state.failure.get_or_insert(error);
            state.is_over = true;
        }
        self.landed.notify_all();
        state
    }

    /// Saves all that nobody overwrites before. Whatever happens, writes do not wait for the backup
    /// any more afterwards.
    pub fn run(&self, limit: u64) -> Result<()> {
        let mut pace = Pace::new(limit);
        let size = self.source.size();
        let mut at = 0;
        loop {
            let mut state = self.state();
            if self.progress.cancelled.load(Ordering::Acquire) {
                state.failure.get_or_insert(BlockError::Cancelled);
                state.is_over = true;
            }
            let taken = if state.is_over { None } else { state.todo.take_run(at, size, PIECE) };
            let Some((from, to)) = taken else { return self.finish(state) };
            drop(self.save(state, (from, to)));
            at = to;
            pace.keep(to - from, &self.progress);
        }
    }

    fn finish(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        while !state.under_way.is_empty() {
            state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_over = true;
        self.landed.notify_all();
        let failure = state.failure.take();
        drop(state);
        failure.map_or_else(|| self.target.flush(), Err)
    }
}
