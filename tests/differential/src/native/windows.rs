//! The windows of [`crate::layout`] in this process: mapped twice, once as sequences see them and once writable.

use std::io;
use std::ptr;

use crate::layout::{MEMORY_BYTES, WINDOWS, Window};
use crate::state::Memory;

#[derive(Debug)]
pub struct Windows {
    alias: *mut u8,
}

impl Windows {
    pub fn map() -> io::Result<Self> {
        // SAFETY: the name is a C string; the descriptor is owned here and closed below.
        let fd = unsafe { libc::memfd_create(c"ostler-differential".as_ptr(), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = Self::map_file(fd);
        // SAFETY: `fd` is open and not used again; mappings outlive it.
        unsafe { libc::close(fd) };
        mapped
    }

    fn map_file(fd: i32) -> io::Result<Self> {
        // SAFETY: `fd` is a memfd of ours.
        if unsafe { libc::ftruncate(fd, MEMORY_BYTES as i64) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for window in &WINDOWS {
            map(window.base as *mut _, window.bytes as usize, protection(window), fd, window.offset)?;
        }
        let alias = map(ptr::null_mut(), MEMORY_BYTES, libc::PROT_READ | libc::PROT_WRITE, fd, 0)?;
        Ok(Self { alias })
    }

    pub fn store(&mut self, memory: &Memory) {
        // SAFETY: the alias maps MEMORY_BYTES writable bytes that no reference points into.
        unsafe { ptr::copy_nonoverlapping(memory.as_ptr(), self.alias, MEMORY_BYTES) };
    }

    pub fn load(&self, memory: &mut Memory) {
        // SAFETY: as in `store`.
        unsafe { ptr::copy_nonoverlapping(self.alias, memory.as_mut_ptr(), MEMORY_BYTES) };
    }
}

fn protection(window: &Window) -> i32 {
    let write = if window.writable { libc::PROT_WRITE } else { 0 };
    let execute = if window.executable { libc::PROT_EXEC } else { 0 };
    libc::PROT_READ | write | execute
}

fn map(at: *mut libc::c_void, bytes: usize, protection: i32, fd: i32, offset: usize) -> io::Result<*mut u8> {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE | fixed;
    // SAFETY: a new mapping that replaces none.
    let address = unsafe { libc::mmap(at, bytes, protection, flags, fd, offset as i64) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}
