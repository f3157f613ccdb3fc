//! What an L2 entry says.

use super::layout::{COMPRESSED, COPIED, Layout, OFFSET_MASK, SUBCLUSTERS, ZERO};
use crate::disk::Content;
use crate::{BlockError, Result};

/// An L2 entry; `bitmap` is zero unless entries are extended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub word: u64,
    /// Bits 0-31: the subcluster is allocated; 32-63: it reads as zeroes.
    pub bitmap: u64,
}

impl Entry {
    /// A cluster of its own at `host`.
    pub fn data(host: u64) -> Self {
        Self { word: host | COPIED, bitmap: 0 }
    }

    pub fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    pub fn is_owned(self) -> bool {
        self.word & COPIED != 0
    }

    /// The host cluster, if there is one; it may be one that is not read.
    pub fn host(self, layout: &Layout) -> Result<Option<u64>> {
        if self.is_compressed() {
            return Ok(None);
        }
        let offset = self.word & OFFSET_MASK;
        if offset & layout.in_cluster() != 0 {
            return Err(BlockError::damaged(format!(
                "an L2 entry points to {offset:#x}, which is not the start of a cluster"
            )));
        }
        let has_one = offset != 0 || layout.external_data && self.is_owned();
        Ok(has_one.then_some(offset))
    }

    /// What subcluster `unit` (0 where entries are not extended) is.
    pub fn content(self, layout: &Layout, unit: u64) -> Result<Content> {
        if self.is_compressed() {
            return Ok(Content::Compressed);
        }
        let host = self.host(layout)?;
        if layout.extended_l2 {
            return self.subcluster(host, unit);
        }
        if layout.version >= 3 && self.word & ZERO != 0 {
            return Ok(Content::Zero);
        }
        Ok(if host.is_some() { Content::Data } else { Content::Unallocated })
    }

    fn subcluster(self, host: Option<u64>, unit: u64) -> Result<Content> {
        let (allocated, zero) = (self.bitmap >> unit & 1, self.bitmap >> (SUBCLUSTERS + unit) & 1);
        match (allocated, zero) {
            (0, 0) => Ok(Content::Unallocated),
            (0, 1) => Ok(Content::Zero),
            (1, 0) if host.is_some() => Ok(Content::Data),
            _ => Err(BlockError::damaged(format!(
                "the subcluster bitmap {:#x} of an L2 entry contradicts it",
                self.bitmap
            ))),
        }
    }
}

/// The bits of the subclusters from `first` up to and without `end`.
pub fn units(first: u64, end: u64) -> u64 {
    debug_assert!(first <= end && end <= SUBCLUSTERS);
    ((1 << end) - 1) & !((1 << first) - 1)
}
