//! A large array of atomic words that costs memory only where it was written.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ram::MemoryError;

/// `len` words, all zero at first; the host's demand paging makes it sparse.
#[derive(Debug)]
pub struct SparseWords {
    words: *mut AtomicU64,
    len: u64,
}

// SAFETY: the words are only ever accessed as atomics, and the mapping lives as long as `self`.
unsafe impl Send for SparseWords {}
// SAFETY: as above.
unsafe impl Sync for SparseWords {}

impl SparseWords {
    pub fn new(len: u64) -> Result<Self, MemoryError> {
        let bytes = usize::try_from(len.max(1) * 8).map_err(|_| MemoryError::TooLarge(len))?;
        // SAFETY: a new private anonymous mapping has no preconditions.
        let words = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if words == libc::MAP_FAILED {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        Ok(Self { words: words.cast(), len })
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        assert!(index < self.len, "word {index} of {}", self.len);
        // SAFETY: in bounds of the mapping; zeroed memory is a valid `AtomicU64`.
        unsafe { &*self.words.add(index as usize) }
    }

    pub fn load(&self, index: u64) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Sets `bits` and returns the word as it was.
    pub fn or(&self, index: u64, bits: u64) -> u64 {
        let word = self.word(index);
        let before = word.load(Ordering::Acquire);
        if before & bits == bits { before } else { word.fetch_or(bits, Ordering::AcqRel) }
    }

    /// Returns the word and clears it. A word that is zero is not written, so it stays unbacked.
    pub fn take(&self, index: u64) -> u64 {
        let word = self.word(index);
        if word.load(Ordering::Acquire) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) }
    }
}

impl Drop for SparseWords {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; nothing borrows from it any more.
        unsafe { libc::munmap(self.words.cast(), self.len.max(1) as usize * 8) };
    }
}
