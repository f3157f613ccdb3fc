//! virtio-console (virtio 1.2, section 5.3): one port, a byte stream each way.
//!
//! The host's ends are descriptors that may block: each is asked by `poll` before it is used, and
//! used in pieces no larger than what a ready pipe takes at once.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ostler_memory::GuestMap;

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// A pipe that `poll` says is writable takes this much without blocking.
const PIECE_BYTES: usize = libc::PIPE_BUF;

/// Hands the host's bytes to the guest.
#[derive(Debug)]
pub struct InputService {
    /// `None` after the end of the input.
    host: Option<OwnedFd>,
}

impl InputService {
    pub fn new(host: OwnedFd) -> Self {
        Self { host: Some(host) }
    }
}

impl Service for InputService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let Some(host) = &self.host else { return Ok(Outcome::Later) };
        if chain.writable.is_empty() {
            return Ok(Outcome::Done(0));
        }
        if !is_ready(host, libc::POLLIN) {
            return Ok(Outcome::Later);
        }
        let mut piece = [0; PIECE_BYTES];
        let room = chain.writable.len().min(PIECE_BYTES as u64) as usize;
        match read(host, &mut piece[..room]) {
            Ok(0) => self.host = None,
            Ok(len) => {
                // Where the buffer is not memory, the bytes are lost, as on a real wire.
                let written = chain.writable.write(map, &piece[..len]).map_or(0, |()| len);
                return Ok(Outcome::Done(written as u32));
            }
            Err(error) if is_passing(&error) => {}
            Err(_gone) => self.host = None,
        }
        Ok(Outcome::Later)
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        self.host.as_ref().map(|host| (host.as_raw_fd(), libc::POLLIN))
    }
}

/// Writes the guest's bytes to the host.
#[derive(Debug)]
pub struct OutputService {
    /// `None` after the other end was closed: what the guest prints is dropped then.
    host: Option<OwnedFd>,
    /// How much of the current chain is written.
    written: u64,
}

impl OutputService {
    pub fn new(host: OwnedFd) -> Self {
        Self { host: Some(host), written: 0 }
    }

    /// Writes some of what is left of `chain`; false when there is nothing to write or nobody to
    /// write it to.
    fn write_some(&mut self, host: &OwnedFd, chain: &Chain, map: &GuestMap) -> io::Result<bool> {
        let mut piece = [0; PIECE_BYTES];
        let len = chain.readable.len().saturating_sub(self.written).min(PIECE_BYTES as u64) as usize;
        if len == 0 || chain.readable.read_at(map, self.written, &mut piece[..len]).is_err() {
            return Ok(false);
        }
        self.written += write(host, &piece[..len])? as u64;
        Ok(true)
    }
}

impl Service for OutputService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        while let Some(host) = self.host.take() {
            if !is_ready(&host, libc::POLLOUT) {
                self.host = Some(host);
                return Ok(Outcome::Later);
            }
            match self.write_some(&host, chain, map) {
                Ok(more) => {
                    self.host = Some(host);
                    if !more {
                        break;
                    }
                }
                Err(error) if is_passing(&error) => self.host = Some(host),
                Err(_gone) => {}
            }
        }
        self.written = 0;
        Ok(Outcome::Done(0))
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        self.host.as_ref().map(|host| (host.as_raw_fd(), libc::POLLOUT))
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// Whether `fd` would not block; an error or a hang-up is for `read` and `write` to find.
fn is_ready(fd: &OwnedFd, events: libc::c_short) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: `entry` is one `pollfd` that lives through the call.
    unsafe { libc::poll(&raw mut entry, 1, 0) > 0 }
}

fn read(fd: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a live slice.
    let got = unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a live slice.
    let put = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(put).map_err(|_| io::Error::last_os_error())
}
