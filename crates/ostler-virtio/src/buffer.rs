//! Runs of guest memory in pieces, and disks' I/O on them.

use std::io;

use ostler_block::{BlockError, Sink, Source};
use ostler_memory::{GuestMap, PageLog};
use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

/// One piece of guest memory, as a descriptor names it; nothing says yet that it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub gpa: u64,
    pub len: u32,
}

/// The bytes of several segments, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    segments: Vec<Segment>,
    len: u64,
}

/// Some of a buffer is not guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a buffer is not in guest memory")]
pub struct NotMemory;

type Slice<'m> = VolatileSlice<'m, BS<'m, PageLog>>;

impl Buffer {
    pub fn push(&mut self, segment: Segment) {
        if segment.len != 0 {
            self.len += u64::from(segment.len);
            self.segments.push(segment);
        }
    }

    /// Empties it; its room is kept.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
    }

    /// The pieces, none of them empty.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes in all segments.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Divides the buffer after `at` bytes; `None` when it is shorter.
    pub fn split(&self, at: u64) -> Option<(Self, Self)> {
        let mut left = at.le(&self.len).then_some(at)?;
        let (mut front, mut back) = (Self::default(), Self::default());
        for segment in &self.segments {
            let taken = u64::from(segment.len).min(left) as u32;
            left -= u64::from(taken);
            front.push(Segment { gpa: segment.gpa, len: taken });
            back.push(Segment { gpa: segment.gpa.wrapping_add(taken.into()), len: segment.len - taken });
        }
        Some((front, back))
    }

    /// Fills `bytes` from the start of the buffer, which must not be shorter.
    pub fn read(&self, map: &GuestMap, bytes: &mut [u8]) -> Result<(), NotMemory> {
        self.read_at(map, 0, bytes)
    }

    /// Fills `bytes` from byte `offset` of the buffer on, which must not end before.
    pub fn read_at(&self, map: &GuestMap, offset: u64, bytes: &mut [u8]) -> Result<(), NotMemory> {
        let mut rest = bytes;
        for segment in self.from(offset) {
            let (piece, after) = rest.split_at_mut(rest.len().min(segment.len as usize));
            map.read_slice(piece, GuestAddress(segment.gpa)).map_err(|_| NotMemory)?;
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(NotMemory) }
    }

    /// Stores `bytes` at the start of the buffer; what does not fit is not stored.
    pub fn write(&self, map: &GuestMap, bytes: &[u8]) -> Result<(), NotMemory> {
        self.write_at(map, 0, bytes)
    }

    /// Stores `bytes` at byte `offset` of the buffer; what does not fit is not stored.
    pub fn write_at(&self, map: &GuestMap, offset: u64, bytes: &[u8]) -> Result<(), NotMemory> {
        let mut rest = bytes;
        for segment in self.from(offset) {
            let (piece, after) = rest.split_at(rest.len().min(segment.len as usize));
            map.write_slice(piece, GuestAddress(segment.gpa)).map_err(|_| NotMemory)?;
            rest = after;
        }
        Ok(())
    }

    /// The pieces from byte `offset` on.
    fn from(&self, offset: u64) -> impl Iterator<Item = Segment> {
        let mut skip = offset;
        self.segments.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.len.into()) as u32;
            skip -= u64::from(skipped);
            let len = segment.len - skipped;
            (len != 0).then(|| Segment { gpa: segment.gpa.wrapping_add(skipped.into()), len })
        })
    }

    /// Where the buffer is in the host, in order.
    fn slices<'m>(&self, map: &'m GuestMap) -> Result<Vec<Slice<'m>>, NotMemory> {
        let mut slices = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            segment.gpa.checked_add(segment.len.into()).ok_or(NotMemory)?;
            for slice in map.get_slices(GuestAddress(segment.gpa), segment.len as usize) {
                slices.push(slice.map_err(|_| NotMemory)?);
            }
        }
        Ok(slices)
    }

    /// Fills the whole buffer by `act`, and marks its pages dirty.
    pub fn fill(
        &self,
        map: &GuestMap,
        act: impl FnOnce(&Sink<'_>) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let slices = self.slices(map).map_err(io::Error::other)?;
        let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let vectors = guards.iter().map(|guard| iovec(guard.as_ptr(), guard.len())).collect();
        // SAFETY: the vectors are guest memory that the slices, which outlive the sink, keep mapped.
        let result = act(&unsafe { Sink::from_vectors(vectors) });
        // On an error, some of it may have been written.
        for slice in &slices {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        result
    }

    /// Has `act` take the whole buffer.
    pub fn drain(
        &self,
        map: &GuestMap,
        act: impl FnOnce(&Source<'_>) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let slices = self.slices(map).map_err(io::Error::other)?;
        let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard).collect();
        let vectors = guards.iter().map(|guard| iovec(guard.as_ptr().cast_mut(), guard.len())).collect();
        // SAFETY: the vectors are guest memory that the slices, which outlive the source, keep mapped.
        act(&unsafe { Source::from_vectors(vectors) })
    }
}

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(segments: &[(u64, u32)]) -> Buffer {
        let mut buffer = Buffer::default();
        for &(gpa, len) in segments {
            buffer.push(Segment { gpa, len });
        }
        buffer
    }

    #[test]
    fn split_inside_a_segment_keeps_every_byte() {
        let whole = buffer(&[(0x1000, 16), (0x2000, 0), (0x3000, 8)]);
        assert_eq!(whole.split(20), Some((buffer(&[(0x1000, 16), (0x3000, 4)]), buffer(&[(0x3004, 4)]))));
        assert_eq!(whole.split(24), Some((whole.clone(), Buffer::default())));
        assert_eq!(whole.split(25), None);
    }
}
