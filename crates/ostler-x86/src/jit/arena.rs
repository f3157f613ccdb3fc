//! The memory that translated code lives in: mapped twice, once to write and once to run.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Bytes of code per vCPU; only what is used takes memory. Less than 2 GiB, so that any jump reaches.
pub const ARENA_BYTES: usize = 32 * 1024 * 1024;
/// What was written is let go of in pieces of this size: the mapping to write through takes no memory of its own, but counts
/// for the process like another copy.
const WINDOW_BYTES: usize = 256 * 1024;
/// Blocks begin at multiples of this.
const ALIGNMENT: usize = 16;

/// A stack of code: appended to, and dropped as a whole.
#[derive(Debug)]
pub struct Arena {
    writable: *mut u8,
    executable: *mut u8,
    used: usize,
}

// SAFETY: the mappings belong to the arena.
unsafe impl Send for Arena {}

impl Arena {
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call with a literal name.
        let fd = unsafe { libc::memfd_create(c"ostler-translations".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: as above.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), ARENA_BYTES as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let writable = map(&fd, libc::PROT_READ | libc::PROT_WRITE)?;
        match map(&fd, libc::PROT_READ | libc::PROT_EXEC) {
            Ok(executable) => Ok(Self { writable, executable, used: 0 }),
            Err(error) => {
                // SAFETY: the mapping is ours.
                unsafe { libc::munmap(writable.cast(), ARENA_BYTES) };
                Err(error)
            }
        }
    }

    /// Where the next code will run.
    pub fn next(&self) -> u64 {
        self.executable as u64 + self.used as u64
    }

    /// Appends `code`, made for [`Arena::next`]; false when it does not fit.
    pub fn append(&mut self, code: &[u8]) -> bool {
        let end = self.used + code.len();
        if end > ARENA_BYTES {
            return false;
        }
        // SAFETY: the bytes are inside the mapping.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len()) };
        let window = self.used / WINDOW_BYTES;
        self.used = end.next_multiple_of(ALIGNMENT);
        if self.used / WINDOW_BYTES != window {
            self.let_go(self.used / WINDOW_BYTES * WINDOW_BYTES);
        }
        true
    }

    /// Drops the first `bytes` from the mapping to write through; they are mapped again when something is patched there.
    fn let_go(&self, bytes: usize) {
        // SAFETY: whole pages of our mapping of a file, which keeps what was written. An error changes nothing.
        unsafe { libc::madvise(self.writable.cast(), bytes, libc::MADV_DONTNEED) };
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Drops everything from `used` on.
    pub fn truncate(&mut self, used: usize) {
        self.used = used;
    }

    /// Makes the five bytes that end at the executable address `end` a jump to `target`.
    pub fn patch_jump(&mut self, end: u64, target: u64) {
        let offset = (end - self.executable as u64) as usize - 5;
        debug_assert!(offset + 5 <= ARENA_BYTES);
        // SAFETY: inside the mapping.
        unsafe { self.writable.add(offset).write(0xe9) };
        self.patch(end, target);
    }

    /// Makes the 32-bit displacement that ends at the executable address `end` lead to `target`.
    pub fn patch(&mut self, end: u64, target: u64) {
        let offset = (end - self.executable as u64) as usize - 4;
        debug_assert!(offset + 4 <= ARENA_BYTES);
        let displacement = target.wrapping_sub(end) as u32;
        // SAFETY: the four bytes are inside the mapping.
        unsafe { self.writable.add(offset).cast::<u32>().write_unaligned(displacement) };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, and no code of this vCPU runs any more.
        unsafe {
            libc::munmap(self.writable.cast(), ARENA_BYTES);
            libc::munmap(self.executable.cast(), ARENA_BYTES);
        }
    }
}

fn map(fd: &OwnedFd, protection: i32) -> io::Result<*mut u8> {
    // SAFETY: a new shared mapping of our own file.
    let address: *mut c_void =
        unsafe { libc::mmap(std::ptr::null_mut(), ARENA_BYTES, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_let_go_of_is_still_there_to_run_and_to_patch() {
        let mut arena = Arena::new().expect("memory for code");
        let start = arena.next();
        // mov eax, 7; ret
        assert!(arena.append(&[0xb8, 7, 0, 0, 0, 0xc3]));
        while arena.used() < 2 * WINDOW_BYTES {
            assert!(arena.append(&[0xcc; 4000]));
        }
        // SAFETY: code of that signature, in executable memory.
        let run: extern "sysv64" fn() -> u32 = unsafe { std::mem::transmute(start) };
        assert_eq!(run(), 7);
        arena.patch(start + 5, start + 5 + 9);
        assert_eq!(run(), 9);
    }
}
