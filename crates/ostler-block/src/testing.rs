//! A disk for tests.

use std::fmt;

use crate::disk::{Content, Disk, Extent};
use crate::pieces::{Sink, Source};
use crate::{BlockError, Result};

type Read = dyn Fn(u64, u64) -> Result<u8> + Send + Sync;
type Write = dyn Fn(u64, u64) -> Result<()> + Send + Sync;

/// Asks what becomes of each read, which is full of one byte, and of each write.
pub struct Asking {
    pub size: u64,
    pub on_read: Box<Read>,
    pub on_write: Box<Write>,
}

impl Asking {
    pub fn new(size: u64) -> Self {
        let refused = |what: &'static str| BlockError::Refused(what.into());
        Self {
            size,
            on_read: Box::new(move |_, _| Err(refused("nobody reads it"))),
            on_write: Box::new(move |_, _| Err(refused("nobody writes it"))),
        }
    }
}

impl fmt::Debug for Asking {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Asking").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Disk for Asking {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        let byte = (self.on_read)(offset, into.len() as u64)?;
        into.copy_from(&vec![byte; into.len()]);
        Ok(())
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> Result<()> {
        (self.on_write)(offset, from.len() as u64)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        (self.on_write)(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        (self.on_write)(offset, len)
    }

    fn extent_at(&self, _offset: u64, limit: u64) -> Result<Extent> {
        Ok(Extent { len: limit, content: Content::Data, host_offset: None })
    }

    fn zero_at(&self, _offset: u64, limit: u64) -> Result<(bool, u64)> {
        Ok((false, limit))
    }
}
