//! Executable memory that is never writable and executable at the same address.
//!
//! Each chunk is a memfd mapped twice: one view to write, one to run. Code is only ever appended.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const CHUNK_BYTES: usize = 256 * 1024;
/// Refused beyond this: more than every form of every vector instruction takes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug)]
struct Chunk {
    writable: *mut u8,
    executable: *const u8,
    used: usize,
}

/// A growing heap of code.
#[derive(Debug, Default)]
pub struct CodeBuffer {
    chunks: Vec<Chunk>,
}

// SAFETY: the mappings belong to the buffer and are never unmapped; access goes through `&mut`.
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// Appends `code` and returns where it runs; it stays there for the life of the process.
    pub fn add(&mut self, code: &[u8]) -> io::Result<*const u8> {
        let full = self.chunks.last().is_none_or(|chunk| chunk.used + code.len() > CHUNK_BYTES);
        if full {
            if code.len() > CHUNK_BYTES || self.chunks.len() * CHUNK_BYTES >= MAX_BYTES {
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the code buffer is full"));
            }
            self.chunks.push(Chunk::new()?);
        }
        let chunk = self.chunks.last_mut().ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: `used + code.len()` is within the chunk, and nobody runs these bytes yet.
        let start = unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), chunk.writable.add(chunk.used), code.len());
            chunk.executable.add(chunk.used)
        };
        chunk.used += code.len().next_multiple_of(16);
        Ok(start)
    }
}

impl Chunk {
    fn new() -> io::Result<Self> {
        // SAFETY: a plain system call with a literal name.
        let fd = unsafe { libc::memfd_create(c"ostler-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: as above.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), CHUNK_BYTES as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let writable = map(&fd, libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = map(&fd, libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(Self { writable: writable.cast(), executable: executable.cast(), used: 0 })
    }
}

fn map(fd: &OwnedFd, protection: i32) -> io::Result<*mut c_void> {
    // SAFETY: a new shared mapping of our own file.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), CHUNK_BYTES, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
}
