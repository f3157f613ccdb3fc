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
            self.end_if_cancelled(&mut state);
            if state.is_over {
                return;
            }
            // A piece at a time: others who write wait for what they overwrite alone.
            if let Some(range) = state.todo.take_run(first, end, PIECE) {
                state = self.save(state, range);
            } else if state.under_way.iter().any(|&(from, to)| from < end && first < to) {
                state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                return;
            }
        }
    }

    fn end_if_cancelled(&self, state: &mut State) {
        if self.progress.cancelled.load(Ordering::Acquire) && !state.is_over {
            state.failure.get_or_insert(BlockError::Cancelled);
            state.is_over = true;
            self.landed.notify_all();
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
            self.end_if_cancelled(&mut state);
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

#[cfg(test)]
mod tests {
    use std::sync::{OnceLock, Weak};

    use super::*;
    use crate::testing::Asking;

    const SIZE: u64 = 64 * PIECE;

    fn marked() -> DirtyMap {
        let todo = DirtyMap::new(SIZE, 16);
        todo.mark(0, SIZE);
        todo
    }

    /// A backup to a disk that calls `act` with each write.
    fn to(act: impl Fn(u64, u64) + Send + Sync + 'static, progress: &Arc<Progress>) -> Arc<Backup> {
        let source = Asking { on_read: Box::new(|_, _| Ok(7)), ..Asking::new(SIZE) };
        let target = Asking {
            on_write: Box::new(move |offset, len| {
                act(offset, len);
                Ok(())
            }),
            ..Asking::new(SIZE)
        };
        let job = Job {
            threads: 1,
            sparse_bytes: 4096,
            target_is_zero: true,
            keeps_zero_data: false,
            packing: None,
            limit: 0,
        };
        let backup = Backup::new(Arc::new(source), Arc::new(target), marked(), job, Arc::clone(progress));
        Arc::new(backup.expect("as large"))
    }

    #[test]
    fn a_long_write_holds_up_others_for_a_piece_at_a_time() {
        let progress = Arc::new(Progress::default());
        let cell: Arc<OnceLock<Weak<Backup>>> = Arc::default();
        let seen = Arc::clone(&cell);
        let look = move |_, _| {
            let backup = seen.get().and_then(Weak::upgrade).expect("a backup");
            let state = backup.state();
            assert!(state.under_way.iter().all(|&(from, to)| to - from <= PIECE), "{:?}", state.under_way);
        };
        let backup = to(look, &progress);
        cell.set(Arc::downgrade(&backup)).expect("once");
        backup.before_write(0, SIZE);
        assert_eq!(progress.done.load(Ordering::Relaxed), SIZE);
        backup.run(0).expect("all is saved");
    }

    #[test]
    fn a_write_does_not_wait_for_a_backup_that_was_cancelled() {
        let progress = Arc::new(Progress::default());
        let flag = Arc::clone(&progress);
        let backup = to(move |_, _| flag.cancelled.store(true, Ordering::Release), &progress);
        backup.before_write(0, SIZE);
        assert_eq!(progress.done.load(Ordering::Relaxed), PIECE);
        assert!(matches!(backup.run(0), Err(BlockError::Cancelled)));
    }
}
