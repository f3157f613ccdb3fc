//! Disks that are exchanged while they are used.

use std::sync::Arc;

use ostler_block::Backup;
use ostler_block::copy::Job;
use pyo3::prelude::*;

use super::copy::SPARSE_BYTES;
use super::{BlockDisk, CopyProgress, DirtyMap, raise};

/// A disk whose image is exchanged, copied or backed up under the guest. What it is made of changes
/// while its gate is closed: no request is under way then, those that come wait.
#[pyclass(frozen, extends = BlockDisk, module = "ostler.engine.block")]
#[derive(Debug)]
pub struct LiveDisk {
    name: String,
    live: Arc<ostler_block::LiveDisk>,
}

#[pymethods]
impl LiveDisk {
    #[new]
    fn new(name: String, disk: &BlockDisk) -> PyClassInitializer<Self> {
        let live = Arc::new(ostler_block::LiveDisk::new(Arc::clone(&disk.disk)));
        let base = BlockDisk { name: name.clone(), disk: Arc::clone(&live) as _ };
        PyClassInitializer::from(base).add_subclass(Self { name, live })
    }

    /// Wait until no request is under way; those that come wait for `open_gate`.
    fn close_gate(&self, py: Python<'_>) {
        py.detach(|| self.live.close_gate());
    }

    fn open_gate(&self) {
        self.live.open_gate();
    }

    /// Serve requests by another disk; the gate is closed.
    fn replace(&self, disk: &BlockDisk) -> PyResult<()> {
        self.live.replace(Arc::clone(&disk.disk)).map_err(|error| raise(&self.name, error))
    }

    /// Mark what is written from now on in these maps, and in no others; the gate is closed.
    fn record(&self, maps: Vec<PyRef<'_, DirtyMap>>) -> PyResult<()> {
        let maps = maps.iter().map(|map| Arc::clone(&map.map)).collect();
        self.live.record(maps).map_err(|error| raise(&self.name, error))
    }

    /// Keep what `todo` marks as it is now in `target`, until `BlockBackup.run` is over; the gate is
    /// closed.
    #[pyo3(signature = (target, todo, progress, *, target_is_zero))]
    fn back_up(
        &self,
        target: &BlockDisk,
        todo: &DirtyMap,
        progress: &CopyProgress,
        target_is_zero: bool,
    ) -> PyResult<BlockBackup> {
        let job = Job {
            threads: 1,
            sparse_bytes: SPARSE_BYTES,
            target_is_zero,
            keeps_zero_data: true,
            packing: None,
            limit: 0,
        };
        let todo = todo.map.as_ref().clone();
        let (source, target) = (self.live.disk(), Arc::clone(&target.disk));
        let made = Backup::new(source, target, todo, job, Arc::clone(&progress.progress));
        let backup = Arc::new(made.map_err(|error| raise(&self.name, error))?);
        self.live.save_first(Some(Arc::clone(&backup))).map_err(|error| raise(&self.name, error))?;
        Ok(BlockBackup { name: self.name.clone(), backup })
    }

    /// Let go of a backup that is over; the gate is closed.
    fn end_backup(&self) -> PyResult<()> {
        self.live.save_first(None).map_err(|error| raise(&self.name, error))
    }
}

/// A disk as it was at one instant, being copied while it is written.
#[pyclass(frozen, module = "ostler.engine.block")]
#[derive(Debug)]
pub struct BlockBackup {
    name: String,
    backup: Arc<Backup>,
}

#[pymethods]
impl BlockBackup {
    /// Copy all that is left; it is on stable storage then. No write waits for it afterwards, even
    /// if this fails.
    #[pyo3(signature = (*, limit = 0))]
    fn run(&self, py: Python<'_>, limit: u64) -> PyResult<()> {
        py.detach(|| self.backup.run(limit)).map_err(|error| raise(&self.name, error))
    }
}
