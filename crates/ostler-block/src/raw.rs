//! A storage whose bytes are the disk's.

use std::io::ErrorKind;
use std::sync::Arc;

use crate::disk::{Content, Disk, Extent, check_range};
use crate::pieces::{Sink, Source};
use crate::storage::Storage;
use crate::{BlockError, Result};

const SECTOR_BYTES: usize = 512;

/// The first `size` bytes of a storage as a disk.
#[derive(Debug)]
pub struct Raw {
    storage: Arc<dyn Storage>,
    size: u64,
    readonly: bool,
    /// What the first sector may not look like after a write: offset and bytes.
    guarded: Vec<(usize, Vec<u8>)>,
}

impl Raw {
    pub fn new(storage: Arc<dyn Storage>, size: u64, readonly: bool) -> Self {
        Self { storage, size, readonly, guarded: Vec::new() }
    }

    /// Refuses writes after which the first sector would have one of these byte strings at its
    /// offset: the disk would be taken for an image of another format.
    pub fn guard(&mut self, magics: Vec<(usize, Vec<u8>)>) {
        self.guarded = magics;
    }

    fn has_odd_end(&self) -> Result<bool> {
        let file_bytes = self.storage.len()?;
        Ok(file_bytes != self.size && file_bytes.next_multiple_of(SECTOR_BYTES as u64) == self.size)
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size)?;
        if self.readonly { Err(BlockError::ReadOnly) } else { Ok(()) }
    }

    fn refuse_disguise(&self, from: &Source<'_>, offset: u64) -> Result<()> {
        if self.guarded.is_empty() || offset >= SECTOR_BYTES as u64 {
            return Ok(());
        }
        let mut head = [0; SECTOR_BYTES];
        self.storage.read_bytes(&mut head, 0)?;
        from.copy_to(&mut head[offset as usize..]);
        let looks = |(at, magic): &(usize, Vec<u8>)| head.get(*at..at + magic.len()) == Some(magic);
        if !self.guarded.iter().any(looks) {
            return Ok(());
        }
        Err(BlockError::Refused(
            "a write would make this raw disk look like another format; give format=raw to allow it".into(),
        ))
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        check_range(offset, into.len() as u64, self.size)?;
        match self.storage.read_exact(into, offset) {
            // A disk is whole sectors, a file may lack some of its last one.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && self.has_odd_end()? => {
                Ok(self.storage.read(into, offset)?)
            }
            done => Ok(done?),
        }
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> Result<()> {
        self.check_write(offset, from.len() as u64)?;
        self.refuse_disguise(from, offset)?;
        Ok(self.storage.write(from, offset)?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.storage.flush()?)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        Ok(self.storage.discard(offset, len)?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_write(offset, len)?;
        Ok(self.storage.write_zeroes(offset, len, unmap)?)
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        Ok(self.storage.reserve(offset, len)?)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        check_range(offset, limit, self.size)?;
        let run = self.storage.run_at(offset, limit)?;
        let content = if run.is_data { Content::Data } else { Content::Zero };
        Ok(Extent { len: run.len, content, host_offset: Some(offset) })
    }

    fn zero_at(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        let run = self.storage.run_at(offset, limit)?;
        Ok((!run.is_data, run.len))
    }
}
