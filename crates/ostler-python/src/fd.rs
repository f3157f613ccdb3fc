//! File descriptors that Python hands over by number.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

/// Our own duplicate of the caller's descriptor; the caller keeps the original.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(9)); // EBADF
    }
    // SAFETY: `fd` is not -1, and is borrowed only for the call, which the caller's Python code
    // keeps it open for; the kernel refuses a number that is not open.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

pub fn file(fd: RawFd) -> io::Result<File> {
    duplicate(fd).map(File::from)
}

pub fn eventfd(fd: RawFd) -> io::Result<EventFd> {
    let owned = duplicate(fd)?;
    // SAFETY: the descriptor is open, and owned by nobody else.
    Ok(unsafe { EventFd::from_raw_fd(owned.into_raw_fd()) })
}
