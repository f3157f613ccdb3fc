//! Who answers the host's callers while the guest has no driver: they are hung up on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::hub::Hub;

/// Whether a guest receives, and the news that this has changed.
#[derive(Debug)]
pub(super) struct Served {
    served: AtomicBool,
    changed: EventFd,
}

impl Served {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { served: AtomicBool::new(false), changed: EventFd::new(EFD_NONBLOCK)? })
    }

    pub(super) fn set(&self, served: bool) {
        self.served.store(served, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // A counter that is full has news enough.
        let _full = self.changed.write(1);
    }
}

/// A thread that closes what arrives at a hub nobody serves. Dropping it ends the thread.
#[derive(Debug)]
pub struct Door {
    hub: Arc<Hub>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Begins to answer for the guest of `hub`.
    pub fn new(hub: Arc<Hub>) -> io::Result<Self> {
        let closing = Arc::new(AtomicBool::new(false));
        let (its_hub, its_closing) = (Arc::clone(&hub), Arc::clone(&closing));
        let thread = thread::Builder::new().name("vsock-door".into()).spawn(move || keep(&its_hub, &its_closing))?;
        Ok(Self { hub, closing, thread: Some(thread) })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        self.hub.served.wake();
        if let Some(thread) = self.thread.take() {
            // It only waits and closes; a panic there has printed its message.
            let _panicked = thread.join();
        }
    }
}

fn keep(hub: &Hub, closing: &AtomicBool) {
    while !closing.load(Ordering::Acquire) {
        let served = hub.served.served.load(Ordering::Acquire);
        // While a guest receives, the listener is its worker's; `poll` skips a negative descriptor.
        let listener = if served { -1 } else { hub.listener().as_raw_fd() };
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut entries = [entry(hub.served.changed.as_raw_fd()), entry(listener)];
        // SAFETY: `entries` is an array of that many `pollfd`s that lives through the call.
        unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
        if entries[0].revents != 0 {
            // Only emptied: what has changed is looked at next.
            let _count = hub.served.changed.read();
        } else if entries[1].revents != 0 {
            // Accepted and dropped: the caller reads its end.
            let _caller = hub.listener().accept();
        }
    }
}
