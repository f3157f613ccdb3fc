//! A disk of which what cannot be read is zero.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, Extent};
use crate::pieces::{Sink, Source};
use crate::{BlockError, Result};

const SECTOR: usize = 512;

/// Reads another disk, sector by sector where that fails.
#[derive(Debug)]
pub struct Salvaged<'a> {
    disk: &'a dyn Disk,
    lost: AtomicU64,
}

impl<'a> Salvaged<'a> {
    pub fn new(disk: &'a dyn Disk) -> Self {
        Self { disk, lost: AtomicU64::new(0) }
    }

    /// Bytes that could not be read so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Disk for Salvaged<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        if self.disk.read(into, offset).is_ok() {
            return Ok(());
        }
        if into.len() <= SECTOR {
            into.fill_zero();
            self.lost.fetch_add(into.len() as u64, Ordering::Relaxed);
            return Ok(());
        }
        let half = (into.len() / 2).next_multiple_of(SECTOR);
        self.read(&into.slice(0, half), offset)?;
        self.read(&into.slice(half, into.len() - half), offset + half as u64)
    }

    fn write(&self, _from: &Source<'_>, _offset: u64) -> Result<()> {
        Err(BlockError::ReadOnly)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(BlockError::ReadOnly)
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        Err(BlockError::ReadOnly)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.disk.extent_at(offset, limit)
    }

    /// Where not even that can be told, reading will show.
    fn zero_at(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        Ok(self.disk.zero_at(offset, limit).unwrap_or((false, limit)))
    }
}
