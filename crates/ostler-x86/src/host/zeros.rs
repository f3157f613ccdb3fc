//! Tables that are zero where nothing is known, and take memory only where something is.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;

/// The host's pages are of this size or a multiple.
const HOST_PAGE_BYTES: usize = 4096;

/// Makes `words` zero, and gives their memory back to the host. They are memory of the allocator, not of a file.
pub fn give_back(words: &mut [u64]) {
    // SAFETY: bytes have no invalid values and need no alignment; what is between them is whole words.
    let (before, pages, after) = unsafe { words.align_to_mut::<Page>() };
    before.fill(0);
    after.fill(0);
    let bytes = size_of_val(pages);
    // SAFETY: whole pages of ours, private and anonymous, which read as zeros afterwards.
    let failed = unsafe { libc::madvise(pages.as_mut_ptr().cast(), bytes, libc::MADV_DONTNEED) } != 0;
    if failed {
        pages.iter_mut().for_each(|page| page.0.fill(0));
    }
}

/// Pages of the host's, zero and without memory until they are written. The allocator's are that only where they need no
/// more alignment than its own.
#[derive(Debug)]
pub struct ZeroPages {
    start: NonNull<u8>,
    bytes: usize,
}

impl ZeroPages {
    /// Pages for what `layout` says.
    pub fn new(layout: Layout) -> Self {
        assert!(layout.size() != 0 && layout.align() <= HOST_PAGE_BYTES);
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the host likes.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), layout.size(), access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            handle_alloc_error(layout);
        }
        let Some(start) = NonNull::new(start.cast()) else { handle_alloc_error(layout) };
        Self { start, bytes: layout.size() }
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for ZeroPages {
    fn drop(&mut self) {
        // SAFETY: mapped with this size, and nobody uses it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[repr(align(4096))]
struct Page([u64; HOST_PAGE_BYTES / 8]);

const _: () = assert!(size_of::<Page>() == HOST_PAGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_given_back_are_zero_wherever_pages_begin_and_their_neighbours_are_not() {
        for (start, end) in [(0, 4096), (1, 4095), (700, 701), (513, 1700), (2000, 2000)] {
            let mut words = vec![u64::MAX; 4096];
            give_back(&mut words[start..end]);
            assert!(words[start..end].iter().all(|word| *word == 0));
            assert!(words[..start].iter().chain(&words[end..]).all(|word| *word == u64::MAX));
        }
    }
}
