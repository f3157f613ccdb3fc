//! A disk that is exchanged for another, copied or backed up while it is used.
//!
//! A request enters the *gate* and finds the [`Parts`] as they are then. Who changes them closes the
//! gate: no request is under way while it is closed, those that come wait. Whoever holds it closed
//! may take other locks, so nothing that a request waits for may wait for the gate.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::backup::Backup;
use crate::dirty::DirtyMap;
use crate::disk::{Disk, Extent};
use crate::pieces::{Sink, Source};
use crate::{BlockError, Result};

/// What a request meets.
#[derive(Clone, Debug)]
struct Parts {
    disk: Arc<dyn Disk>,
    /// What was written is marked in each of them.
    recorders: Vec<Arc<DirtyMap>>,
    /// Saves what is about to be overwritten.
    backup: Option<Arc<Backup>>,
}

#[derive(Debug)]
struct Gate {
    parts: Arc<Parts>,
    inside: usize,
    is_closed: bool,
}

/// A disk whose parts are exchanged under its users.
#[derive(Debug)]
pub struct LiveDisk {
    gate: Mutex<Gate>,
    changed: Condvar,
}

/// A request that is under way.
struct Entered<'a> {
    live: &'a LiveDisk,
    parts: Arc<Parts>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut gate = self.live.gate();
        gate.inside -= 1;
        if gate.inside == 0 && gate.is_closed {
            self.live.changed.notify_all();
        }
    }
}

impl LiveDisk {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        let parts = Arc::new(Parts { disk, recorders: Vec::new(), backup: None });
        Self { gate: Mutex::new(Gate { parts, inside: 0, is_closed: false }), changed: Condvar::new() }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, gate: MutexGuard<'a, Gate>) -> MutexGuard<'a, Gate> {
        self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Entered<'_> {
        let mut gate = self.gate();
        while gate.is_closed {
            gate = self.wait(gate);
        }
        gate.inside += 1;
        Entered { live: self, parts: Arc::clone(&gate.parts) }
    }

    /// Returns when no request is under way; none begins until [`LiveDisk::open_gate`].
    pub fn close_gate(&self) {
        let mut gate = self.gate();
        while gate.is_closed {
            gate = self.wait(gate);
        }
        gate.is_closed = true;
        while gate.inside != 0 {
            gate = self.wait(gate);
        }
    }

    pub fn open_gate(&self) {
        self.gate().is_closed = false;
        self.changed.notify_all();
    }

    /// What requests are served by.
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.gate().parts.disk)
    }

    fn change(&self, act: impl FnOnce(&mut Parts)) -> Result<()> {
        let mut gate = self.gate();
        if !gate.is_closed {
            return Err(BlockError::Refused("a disk is changed while its gate is closed".into()));
        }
        let mut parts = Parts::clone(&gate.parts);
        act(&mut parts);
        gate.parts = Arc::new(parts);
        Ok(())
    }

    /// Serves requests by another disk, of the same size or larger; the gate is closed.
    pub fn replace(&self, disk: Arc<dyn Disk>) -> Result<()> {
        if disk.size() < self.disk().size() {
            return Err(BlockError::Refused("a disk cannot shrink while it is used; take a larger one".into()));
        }
        self.change(|parts| parts.disk = disk)
    }

    /// Marks in these maps what is written from now on; the gate is closed.
    pub fn record(&self, maps: Vec<Arc<DirtyMap>>) -> Result<()> {
        self.change(|parts| parts.recorders = maps)
    }

    /// Has what is overwritten from now on saved first; the gate is closed.
    pub fn save_first(&self, backup: Option<Arc<Backup>>) -> Result<()> {
        self.change(|parts| parts.backup = backup)
    }

    /// Makes a change of a range known around it.
    fn changing(&self, offset: u64, len: u64, act: impl FnOnce(&dyn Disk) -> Result<()>) -> Result<()> {
        let entered = self.enter();
        let parts = &entered.parts;
        if let Some(backup) = &parts.backup {
            backup.before_write(offset, len);
        }
        let done = act(parts.disk.as_ref());
        // Whoever clears a mark reads the disk after that. So marks are set after the write, and
        // whether they are set already is not looked at before the write is done.
        fence(Ordering::SeqCst);
        parts.recorders.iter().for_each(|map| map.mark(offset, len));
        done
    }
}

impl Disk for LiveDisk {
    fn size(&self) -> u64 {
        self.disk().size()
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        self.enter().parts.disk.read(into, offset)
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> Result<()> {
        self.changing(offset, from.len() as u64, |disk| disk.write(from, offset))
    }

    fn flush(&self) -> Result<()> {
        self.enter().parts.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.changing(offset, len, |disk| disk.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.changing(offset, len, |disk| disk.write_zeroes(offset, len, unmap))
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.enter().parts.disk.extent_at(offset, limit)
    }

    fn zero_at(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        self.enter().parts.disk.zero_at(offset, limit)
    }
}
