//! Memory in pieces: what a request reads into or writes from.
//!
//! Guest memory changes under us, so it is never a Rust slice: only vectors for the kernel and raw
//! copies. A buffer of our own is the case of one piece.

use std::marker::PhantomData;
use std::ptr;

/// Memory to write to a disk.
#[derive(Clone, Debug)]
pub struct Source<'a>(Vectors<'a>);

/// Memory to fill from a disk.
#[derive(Clone, Debug)]
pub struct Sink<'a>(Vectors<'a>);

#[derive(Clone, Debug)]
struct Vectors<'a> {
    vectors: Vec<libc::iovec>,
    len: usize,
    memory: PhantomData<&'a ()>,
}

// SAFETY: the pointers are to memory that outlives `'a` and that any thread may copy from or to
// (a borrowed slice, or volatile guest memory); no references are made of them.
unsafe impl Send for Vectors<'_> {}
// SAFETY: as above; a shared `Vectors` only hands out copies of its pointers.
unsafe impl Sync for Vectors<'_> {}

impl Vectors<'_> {
    fn slice(&self, from: usize, len: usize) -> Self {
        let (mut skip, mut left) = (from, len);
        let mut vectors = Vec::with_capacity(self.vectors.len());
        for vector in &self.vectors {
            let skipped = skip.min(vector.iov_len);
            let taken = left.min(vector.iov_len - skipped);
            if taken != 0 {
                vectors.push(libc::iovec { iov_base: vector.iov_base.wrapping_byte_add(skipped), iov_len: taken });
            }
            (skip, left) = (skip - skipped, left - taken);
        }
        Self { vectors, len: len - left, memory: PhantomData }
    }
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        Self(Vectors { vectors: vec![vector], len: bytes.len(), memory: PhantomData })
    }

    /// # Safety
    /// Each vector is memory that can be read for as long as `'a`.
    pub unsafe fn from_vectors(vectors: Vec<libc::iovec>) -> Self {
        let len = vectors.iter().map(|vector| vector.iov_len).sum();
        Self(Vectors { vectors, len, memory: PhantomData })
    }

    pub fn len(&self) -> usize {
        self.0.len
    }

    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// `len` bytes after the first `from`; fewer if there are not so many.
    pub fn slice(&self, from: usize, len: usize) -> Source<'a> {
        Self(self.0.slice(from, len))
    }

    pub fn vectors(&self) -> &[libc::iovec] {
        &self.0.vectors
    }

    /// `before`, these bytes, and `after`, in this order.
    pub fn between<'b>(&self, before: &'b [u8], after: &'b [u8]) -> Source<'b>
    where
        'a: 'b,
    {
        let vector = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut vectors = Vec::with_capacity(self.0.vectors.len() + 2);
        vectors.push(vector(before));
        vectors.extend_from_slice(&self.0.vectors);
        vectors.push(vector(after));
        vectors.retain(|vector| vector.iov_len != 0);
        Source(Vectors { vectors, len: before.len() + self.0.len + after.len(), memory: PhantomData })
    }

    /// Copies as many bytes as `into` has room for.
    pub fn copy_to(&self, into: &mut [u8]) {
        let mut rest = into;
        for vector in &self.0.vectors {
            let count = vector.iov_len.min(rest.len());
            let (piece, after) = rest.split_at_mut(count);
            // SAFETY: the vector is readable (constructors), `piece` is ours and as long.
            unsafe { ptr::copy_nonoverlapping(vector.iov_base.cast::<u8>(), piece.as_mut_ptr(), count) };
            rest = after;
        }
    }
}

impl<'a> Sink<'a> {
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        Self(Vectors { vectors: vec![vector], len: bytes.len(), memory: PhantomData })
    }

    /// # Safety
    /// Each vector is memory that can be written for as long as `'a`.
    pub unsafe fn from_vectors(vectors: Vec<libc::iovec>) -> Self {
        let len = vectors.iter().map(|vector| vector.iov_len).sum();
        Self(Vectors { vectors, len, memory: PhantomData })
    }

    pub fn len(&self) -> usize {
        self.0.len
    }

    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// `len` bytes after the first `from`; fewer if there are not so many.
    pub fn slice(&self, from: usize, len: usize) -> Sink<'a> {
        Self(self.0.slice(from, len))
    }

    pub fn vectors(&self) -> &[libc::iovec] {
        &self.0.vectors
    }

    /// Copies as much of `bytes` as there is room for.
    pub fn copy_from(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for vector in &self.0.vectors {
            let (piece, after) = rest.split_at(vector.iov_len.min(rest.len()));
            // SAFETY: the vector is writable (constructors) and not shorter than `piece`.
            unsafe { ptr::copy_nonoverlapping(piece.as_ptr(), vector.iov_base.cast::<u8>(), piece.len()) };
            rest = after;
        }
    }

    pub fn fill_zero(&self) {
        for vector in &self.0.vectors {
            // SAFETY: the vector is writable (constructors).
            unsafe { ptr::write_bytes(vector.iov_base.cast::<u8>(), 0, vector.iov_len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_of_pieces_between_two_buffers_copies_in_order() {
        let (before, middle, after) = (*b"ab", *b"cdef", *b"gh");
        let source = Source::new(&middle);
        let whole = source.between(&before, &after);
        let mut bytes = [0; 5];
        whole.slice(1, 5).copy_to(&mut bytes);
        assert_eq!((&bytes, whole.len()), (b"bcdef", 8));
        assert_eq!(whole.slice(6, 9).len(), 2);
    }

    #[test]
    fn sink_is_filled_from_the_front_only_as_far_as_bytes_go() {
        let mut bytes = [9; 4];
        Sink::new(&mut bytes).copy_from(b"ab");
        assert_eq!(&bytes, b"ab\x09\x09");
    }
}
