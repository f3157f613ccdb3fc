//! Queues whose requests somebody else answers: a device written outside this crate.
//!
//! [`CallService`] hands each chain over as bytes and writes the answer; [`FeedService`] fills the
//! driver's buffers with messages in the order in which they were put into a [`Feed`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use ostler_memory::GuestMap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// The most bytes of a request; a driver that sends more has made a mistake.
pub const MAX_REQUEST_BYTES: u64 = 1 << 20;
/// Messages that may wait for the driver's buffers.
pub const MAX_WAITING: usize = 1024;

/// Answers a request: what is to be written to the chain's writable part, of so many bytes. `None`
/// when the device is defective; the queue is given up then.
pub type Handler = Box<dyn FnMut(&[u8], usize) -> Option<Vec<u8>> + Send>;

/// Has every request answered by a [`Handler`].
pub struct CallService {
    handler: Handler,
    request: Vec<u8>,
}

impl CallService {
    pub fn new(handler: Handler) -> Self {
        Self { handler, request: Vec::new() }
    }
}

impl fmt::Debug for CallService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallService").finish_non_exhaustive()
    }
}

impl Service for CallService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        if chain.readable.len() > MAX_REQUEST_BYTES {
            return Err(Broken::Request);
        }
        self.request.resize(chain.readable.len() as usize, 0);
        chain.readable.read(map, &mut self.request).map_err(|_| Broken::NotMemory)?;
        let room = chain.writable.len() as usize;
        let answer = (self.handler)(&self.request, room).ok_or(Broken::Device)?;
        let written = answer.len().min(room);
        chain.writable.write(map, &answer[..written]).map_err(|_| Broken::NotMemory)?;
        Ok(Outcome::Done(written as u32))
    }
}

/// Messages on their way to the driver.
#[derive(Debug)]
pub struct Feed {
    messages: Mutex<VecDeque<Vec<u8>>>,
    arrived: EventFd,
}

impl Feed {
    pub fn new() -> io::Result<Self> {
        Ok(Self { messages: Mutex::default(), arrived: EventFd::new(EFD_NONBLOCK)? })
    }

    fn messages(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a message for the driver; false when too many wait already, and it is dropped.
    pub fn put(&self, message: Vec<u8>) -> bool {
        let mut messages = self.messages();
        if messages.len() >= MAX_WAITING {
            return false;
        }
        messages.push_back(message);
        // The counter cannot be full: it is emptied whenever the driver waits.
        let _full = self.arrived.write(1);
        true
    }

    /// Drops what waits.
    pub fn clear(&self) {
        self.messages().clear();
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.messages().pop_front()
    }
}

/// Hands the messages of a feed to the driver, one a buffer; what does not fit is cut off.
#[derive(Debug)]
pub struct FeedService(pub Arc<Feed>);

impl Service for FeedService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let mut message = self.0.take();
        if message.is_none() {
            // Emptied before the second look: whoever puts one in later makes it readable again.
            let _empty = self.0.arrived.read();
            message = self.0.take();
        }
        let Some(message) = message else { return Ok(Outcome::Later) };
        let len = message.len().min(chain.writable.len() as usize);
        chain.writable.write(map, &message[..len]).map_err(|_| Broken::NotMemory)?;
        Ok(Outcome::Done(len as u32))
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        Some((self.0.arrived.as_raw_fd(), libc::POLLIN))
    }
}
