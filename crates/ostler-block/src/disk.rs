//! What a guest sees of an image.

use std::fmt::Debug;

use crate::pieces::{Sink, Source};
use crate::{BlockError, Result};

/// How an image keeps a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Not held by this layer; what is behind it decides, or the bytes are zero.
    Unallocated,
    /// Known to be zero.
    Zero,
    /// Bytes in the file below, at an offset if they are there as they are.
    Data,
    Compressed,
}

/// Bytes from some offset on that are kept in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub len: u64,
    pub content: Content,
    pub host_offset: Option<u64>,
}

/// A disk. All methods may be called from many threads at once.
pub trait Disk: Send + Sync + Debug {
    fn size(&self) -> u64;
    fn read(&self, into: &Sink<'_>, offset: u64) -> Result<()>;
    fn write(&self, from: &Source<'_>, offset: u64) -> Result<()>;
    /// All that was written is on stable storage afterwards.
    fn flush(&self) -> Result<()>;
    /// The range is not needed any more.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;
    /// What this layer alone holds at `offset`: a run of at most `limit` bytes.
    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent>;

    /// Whether the bytes at `offset` are known to be zero, through all layers, and for how long
    /// that answer holds.
    fn zero_at(&self, offset: u64, limit: u64) -> Result<(bool, u64)>;

    /// Compressed in the file if the format can; the range is one whole cluster.
    fn write_compressed(&self, _cluster: &[u8], _packed: &[u8], _offset: u64) -> Result<()> {
        Err(BlockError::Refused("this format keeps nothing compressed; leave -c out".into()))
    }

    /// A hint that the range is written next, as a whole, and has never been.
    fn reserve(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn read_bytes(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.read(&Sink::new(into), offset)
    }

    fn write_bytes(&self, from: &[u8], offset: u64) -> Result<()> {
        self.write(&Source::new(from), offset)
    }
}

/// Fails unless the range is on a disk of `size` bytes.
pub fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        end => Err(BlockError::Range { offset, end: end.unwrap_or(u64::MAX), size }),
    }
}
