//! Where in this process a large mapping comes to lie.
//!
//! `mmap` takes the first hole that is large enough, seen from the top. So a hole of the right size at the right place
//! is made, between two mappings that cannot be used, and the next mapping is likely to come there. Another thread may
//! be faster, and nothing is lost then but huge pages.

use crate::ram::HUGE_PAGE_BYTES;

/// After so many tries the mapping stays where it is.
pub const ATTEMPTS: usize = 4;

/// What is mapped on both sides of a hole, as long as this lives.
#[derive(Debug)]
pub struct Around([(usize, usize); 2]);

/// Makes a hole for `bytes` from an address on that is as far into a huge page as `gpa` is; `None` where there is no
/// room.
pub fn leave(gpa: u64, bytes: usize) -> Option<Around> {
    let whole = bytes.checked_add(HUGE_PAGE_BYTES)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping that replaces none.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = start as usize;
    let before = (gpa as usize).wrapping_sub(start) % HUGE_PAGE_BYTES;
    let end = start + before + bytes;
    unmap(start + before, bytes);
    Some(Around([(start, before), (end, start + whole - end)]))
}

pub fn is_aligned(start: *mut u8, gpa: u64) -> bool {
    (start as u64).wrapping_sub(gpa).is_multiple_of(HUGE_PAGE_BYTES as u64)
}

fn unmap(start: usize, bytes: usize) {
    if bytes > 0 {
        // SAFETY: whole pages of a mapping of ours that nobody uses.
        unsafe { libc::munmap(start as *mut libc::c_void, bytes) };
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        self.0.iter().for_each(|(start, bytes)| unmap(*start, *bytes));
    }
}
