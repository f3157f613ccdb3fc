//! Memory that data passes through.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// A page: some hosts (AMD's, where the kernel copies with `rep movsb`) take 1.6 times as long for
/// a copy to memory that is 16 bytes off a cache line, as a large `Vec` is.
pub(crate) const ALIGN: usize = 4096;

/// Bytes whose first is where a page begins.
#[derive(Debug)]
pub struct Buffer {
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` bytes of zero.
    pub fn new(len: usize) -> Self {
        let room = vec![0; len + ALIGN];
        let start = room.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { room, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + self.len]
    }
}

thread_local! {
    static SPARE: Cell<Option<Buffer>> = const { Cell::new(None) };
}

/// What a thread keeps for its next [`Scratch`]: a cluster of the largest size on either side of a request.
const KEPT_BYTES: usize = 4 << 20;

/// Bytes that begin where a page does and hold anything, of memory that the thread uses again: new
/// memory is cleared, which takes as long as to read a cluster into it.
#[derive(Debug)]
pub struct Scratch {
    buffer: Option<Buffer>,
    len: usize,
}

impl Scratch {
    pub fn new(len: usize) -> Self {
        if len == 0 {
            return Self { buffer: None, len };
        }
        let spare = SPARE.take().filter(|spare| spare.len >= len);
        Self { buffer: Some(spare.unwrap_or_else(|| Buffer::new(len))), len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take()
            && buffer.len <= KEPT_BYTES
        {
            SPARE.set(Some(buffer));
        }
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.len])
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], |buffer| &mut buffer[..self.len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_as_long_as_asked_begins_at_a_page_and_is_used_again() {
        let mut first = Scratch::new(65536);
        first.fill(7);
        let place = first.as_ptr();
        assert_eq!((place.addr() % ALIGN, first.len()), (0, 65536));
        assert!(Scratch::new(0).is_empty());
        drop(first);
        let (again, other) = (Scratch::new(4096), Scratch::new(4096));
        assert_eq!((again.as_ptr(), again.len()), (place, 4096));
        assert_ne!(other.as_ptr(), place);
    }

    #[test]
    fn buffer_begins_at_a_page_and_is_as_long_as_asked() {
        for len in [0, 1, 512, 4096, 1 << 20] {
            let mut buffer = Buffer::new(len);
            buffer.fill(7);
            assert_eq!((buffer.as_ptr().addr() % ALIGN, buffer.len()), (0, len));
        }
    }
}
