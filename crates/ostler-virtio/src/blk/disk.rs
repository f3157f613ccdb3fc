//! A disk of a guest: requests checked, then given to the block layer.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ostler_block::{BlockError, Disk as Image, FileStorage, Raw};
use ostler_memory::GuestMap;

use crate::blk::request::{Request, SECTOR_BYTES, SectorRange, Status};
use crate::buffer::Buffer;

pub const SERIAL_BYTES: usize = 20;

/// A disk, shared by its queues.
#[derive(Debug)]
pub struct Disk {
    image: Arc<dyn Image>,
    readonly: bool,
    serial: [u8; SERIAL_BYTES],
    writeback: AtomicBool,
    host_errors: AtomicU64,
}

/// Why a request was not done.
enum Failure {
    /// The request is outside the disk, or writes to one that is read-only.
    Refused,
    /// The host failed, or the image is damaged.
    Host,
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Range { .. } | BlockError::ReadOnly | BlockError::Refused(_) => Self::Refused,
            BlockError::Host(_) | BlockError::Damaged(_) | BlockError::CutOff { .. } | BlockError::Cancelled => {
                Self::Host
            }
        }
    }
}

impl Disk {
    /// A disk of the first `bytes` bytes of `file`.
    pub fn new(file: File, bytes: u64, readonly: bool, serial: [u8; SERIAL_BYTES]) -> io::Result<Self> {
        let image = Raw::new(Arc::new(FileStorage::new(file)?), bytes, readonly);
        Ok(Self::over(Arc::new(image), readonly, serial))
    }

    /// A disk of whatever an image holds.
    pub fn over(image: Arc<dyn Image>, readonly: bool, serial: [u8; SERIAL_BYTES]) -> Self {
        let (writeback, host_errors) = (AtomicBool::new(true), AtomicU64::new(0));
        Self { image, readonly, serial, writeback, host_errors }
    }

    /// Whether a write may be answered before it is on stable storage.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }

    pub fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Release);
    }

    /// Requests that the host failed so far; the guest has seen each as an I/O error.
    pub fn host_errors(&self) -> u64 {
        self.host_errors.load(Ordering::Relaxed)
    }

    /// Executes a request: its status, and the bytes written to its data buffer.
    pub fn execute(&self, request: &Request, map: &GuestMap) -> (Status, u32) {
        match self.try_execute(request, map) {
            Ok(bytes) => (Status::Ok, bytes),
            Err(Failure::Refused) => (Status::IoError, 0),
            Err(Failure::Host) => {
                self.host_errors.fetch_add(1, Ordering::Relaxed);
                (Status::IoError, 0)
            }
        }
    }

    fn try_execute(&self, request: &Request, map: &GuestMap) -> Result<u32, Failure> {
        match request {
            Request::Read { sector, into } => {
                let offset = self.offset(*sector, into.len())?;
                into.fill(map, |sink| self.image.read(sink, offset))?;
                // A chain is shorter than 4 GiB.
                return Ok(into.len() as u32);
            }
            Request::Write { sector, from } => self.write(map, *sector, from)?,
            Request::Flush => self.image.flush()?,
            Request::Identify { into } => {
                into.write(map, &self.serial).map_err(|_| Failure::Refused)?;
                return Ok(into.len().min(SERIAL_BYTES as u64) as u32);
            }
            Request::Discard(ranges) => self.for_each(ranges, |offset, len, _| self.image.discard(offset, len))?,
            Request::WriteZeroes(ranges) => {
                self.for_each(ranges, |offset, len, unmap| self.image.write_zeroes(offset, len, unmap))?
            }
        }
        Ok(0)
    }

    /// The byte offset of `sector` if `len` bytes from there are whole sectors of the disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Failure::Refused)?;
        let end = offset.checked_add(len).ok_or(Failure::Refused)?;
        // The guest is told of whole sectors only, and of more of them when the disk grows.
        let bytes = self.image.size() / SECTOR_BYTES * SECTOR_BYTES;
        if end <= bytes && len.is_multiple_of(SECTOR_BYTES) { Ok(offset) } else { Err(Failure::Refused) }
    }

    fn write(&self, map: &GuestMap, sector: u64, from: &Buffer) -> Result<(), Failure> {
        let offset = self.offset(sector, from.len())?;
        self.refuse_if_readonly()?;
        from.drain(map, |source| self.image.write(source, offset))?;
        self.settle()
    }

    fn refuse_if_readonly(&self) -> Result<(), Failure> {
        if self.readonly { Err(Failure::Refused) } else { Ok(()) }
    }

    /// Without a write cache, a write is on stable storage before it is answered.
    fn settle(&self) -> Result<(), Failure> {
        if !self.writeback() {
            self.image.flush()?;
        }
        Ok(())
    }

    fn for_each(
        &self,
        ranges: &[SectorRange],
        act: impl Fn(u64, u64, bool) -> Result<(), BlockError>,
    ) -> Result<(), Failure> {
        self.refuse_if_readonly()?;
        // All are checked before the first is touched.
        let mut places = Vec::with_capacity(ranges.len());
        for range in ranges {
            let len = u64::from(range.sectors) * SECTOR_BYTES;
            places.push((self.offset(range.sector, len)?, len, range.unmap));
        }
        for (offset, len, unmap) in places.into_iter().filter(|(_, len, _)| *len != 0) {
            act(offset, len, unmap)?;
        }
        self.settle()
    }
}
