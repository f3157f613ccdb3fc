//! Runs of guest memory in pieces, and the host's vectored I/O on them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

    /// Fills the whole buffer from `file` at `offset`, and marks its pages dirty.
    pub fn fill_from(&self, map: &GuestMap, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let slices = self.slices(map).map_err(io::Error::other)?;
        let result = transfer(libc::preadv, file, &slices, offset);
        // On an error, some of it may have been written.
        for slice in &slices {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        result
    }

    /// Stores the whole buffer into `file` at `offset`.
    pub fn store_to(&self, map: &GuestMap, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let slices = self.slices(map).map_err(io::Error::other)?;
        transfer(libc::pwritev, file, &slices, offset)
    }
}

type Vectored = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// The most vectors one call takes (`IOV_MAX` of Linux).
const MAX_VECTORS: usize = 1024;

/// Repeats `call` until every byte is transferred.
fn transfer(call: Vectored, file: BorrowedFd<'_>, slices: &[Slice<'_>], offset: u64) -> io::Result<()> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<_> =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let mut rest = vectors.as_mut_slice();
    let mut offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    while !rest.is_empty() {
        let count = rest.len().min(MAX_VECTORS) as libc::c_int;
        // SAFETY: the vectors point into guest memory that the slices, which outlive the call, keep
        // mapped; no Rust reference to that memory exists.
        let moved = unsafe { call(file.as_raw_fd(), rest.as_ptr(), count, offset) };
        match moved {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1.. => rest = advance(rest, moved as usize),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        }
        offset += moved as libc::off_t;
    }
    Ok(())
}

/// The vectors without their first `bytes` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut bytes: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if bytes < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(bytes);
            first.iov_len -= bytes;
            break;
        }
        bytes -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
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

    #[test]
    fn advance_over_vectors_stops_inside_one() {
        let vector = |base: usize, len| libc::iovec { iov_base: base as *mut _, iov_len: len };
        let mut vectors = [vector(0x1000, 4), vector(0x2000, 4), vector(0x3000, 4)];
        let rest = advance(&mut vectors, 6);
        assert_eq!((rest.len(), rest[0].iov_base as usize, rest[0].iov_len), (2, 0x2002, 2));
        assert!(advance(rest, 6).is_empty());
    }
}
