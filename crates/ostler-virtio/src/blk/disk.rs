//! A disk over a file or a block device of the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ostler_memory::GuestMap;

use crate::blk::request::{Request, SECTOR_BYTES, SectorRange, Status};
use crate::buffer::Buffer;

pub const SERIAL_BYTES: usize = 20;

/// `BLKDISCARD`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::c_ulong = 0x1277;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A disk, shared by its queues.
#[derive(Debug)]
pub struct Disk {
    file: File,
    bytes: u64,
    readonly: bool,
    is_block_device: bool,
    serial: [u8; SERIAL_BYTES],
    writeback: AtomicBool,
    host_errors: AtomicU64,
}

/// Why a request was not done.
enum Failure {
    /// The request is outside the disk, or writes to one that is read-only.
    Refused,
    Host(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl Disk {
    /// A disk of the first `bytes` bytes of `file`.
    pub fn new(file: File, bytes: u64, readonly: bool, serial: [u8; SERIAL_BYTES]) -> io::Result<Self> {
        let is_block_device = file.metadata()?.file_type().is_block_device();
        Ok(Self {
            file,
            bytes,
            readonly,
            is_block_device,
            serial,
            writeback: AtomicBool::new(true),
            host_errors: AtomicU64::new(0),
        })
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
            Err(Failure::Host(_error)) => {
                self.host_errors.fetch_add(1, Ordering::Relaxed);
                (Status::IoError, 0)
            }
        }
    }

    fn try_execute(&self, request: &Request, map: &GuestMap) -> Result<u32, Failure> {
        match request {
            Request::Read { sector, into } => {
                let offset = self.offset(*sector, into.len())?;
                into.fill_from(map, self.file.as_fd(), offset)?;
                // A chain is shorter than 4 GiB.
                return Ok(into.len() as u32);
            }
            Request::Write { sector, from } => self.write(map, *sector, from)?,
            Request::Flush => self.file.sync_data()?,
            Request::Identify { into } => {
                into.write(map, &self.serial).map_err(|_| Failure::Refused)?;
                return Ok(into.len().min(SERIAL_BYTES as u64) as u32);
            }
            Request::Discard(ranges) => self.for_each(ranges, |offset, len, _| self.discard(offset, len))?,
            Request::WriteZeroes(ranges) => {
                self.for_each(ranges, |offset, len, unmap| self.zero(offset, len, unmap))?
            }
        }
        Ok(0)
    }

    /// The byte offset of `sector` if `len` bytes from there are whole sectors of the disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Failure::Refused)?;
        let end = offset.checked_add(len).ok_or(Failure::Refused)?;
        if end <= self.bytes && len.is_multiple_of(SECTOR_BYTES) { Ok(offset) } else { Err(Failure::Refused) }
    }

    fn write(&self, map: &GuestMap, sector: u64, from: &Buffer) -> Result<(), Failure> {
        let offset = self.offset(sector, from.len())?;
        self.refuse_if_readonly()?;
        from.store_to(map, self.file.as_fd(), offset)?;
        self.settle()
    }

    fn refuse_if_readonly(&self) -> Result<(), Failure> {
        if self.readonly { Err(Failure::Refused) } else { Ok(()) }
    }

    /// Without a write cache, a write is on stable storage before it is answered.
    fn settle(&self) -> Result<(), Failure> {
        if !self.writeback() {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn for_each(&self, ranges: &[SectorRange], act: impl Fn(u64, u64, bool) -> io::Result<()>) -> Result<(), Failure> {
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

    /// A hint: a host that cannot discard has not failed.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = if self.is_block_device {
            self.discard_blocks(offset, len)
        } else {
            self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len)
        };
        done.or_else(|error| if is_unsupported(&error) { Ok(()) } else { Err(error) })
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        match self.allocate(mode, offset, len) {
            Err(error) if is_unsupported(&error) => self.write_zeroes(offset, len),
            done => done,
        }
    }

    fn write_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len != 0 {
            let piece = len.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..piece as usize], offset)?;
            offset += piece;
            len -= piece;
        }
        Ok(())
    }

    fn allocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let place = (libc::off_t::try_from(offset), libc::off_t::try_from(len));
        let (Ok(offset), Ok(len)) = place else { return Err(io::ErrorKind::InvalidInput.into()) };
        // SAFETY: no memory is passed.
        let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode | libc::FALLOC_FL_KEEP_SIZE, offset, len) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn discard_blocks(&self, offset: u64, len: u64) -> io::Result<()> {
        let range = [offset, len];
        // SAFETY: BLKDISCARD reads two u64 from the pointer.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS))
}
