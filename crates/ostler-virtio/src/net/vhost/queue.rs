//! One queue that the kernel serves, and the thread that attends to it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use ostler_engine::irq::Interrupt;
use ostler_memory::GuestMap;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Direction;
use super::kernel::{Addresses, Kernel, VringEvent};
use crate::ring::{Position, Ring};
use crate::worker::{Queue, ServedQueue, StartError};

/// The index of a used ring is behind its flags.
const USED_INDEX_OFFSET: u64 = 2;

/// A queue that the kernel serves. Dropping it stops that.
#[derive(Debug)]
pub struct VhostQueue {
    kernel: Arc<Kernel>,
    index: u32,
    used_ring: u64,
    /// Keeps the memory mapped that the kernel uses.
    map: Arc<GuestMap>,
    call: Arc<OwnedFd>,
    interrupt: Option<Arc<dyn Interrupt>>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    /// Where it stood when it was stopped.
    position: Position,
}

impl VhostQueue {
    pub(super) fn start(
        kernel: Arc<Kernel>,
        direction: Direction,
        tap: RawFd,
        features: u64,
        queue: Queue,
    ) -> Result<Self, StartError> {
        let map = queue.memory.map();
        // What a driver may not do is the same whoever serves it.
        Ring::new(&queue.config, &map)?;
        // A ring across two slots is one that only the kernel cannot have.
        let addresses = Addresses::of(&queue.config, &map).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        let index = direction as u32;
        kernel.set_features(features)?;
        kernel.set_memory(&map)?;
        kernel.set_vring(index, &queue.config, &addresses)?;
        let used_ring = queue.config.used_ring;
        // The kernel goes on behind what is used by memory, which a saved state may be behind of.
        let used = queue.config.position.next_used.to_le();
        map.write_obj(used, GuestAddress(used_ring + USED_INDEX_OFFSET)).map_err(io::Error::other)?;
        let (call, error, stop) = (Arc::new(eventfd()?), eventfd()?, EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        kernel.set_event(index, VringEvent::Kick, &queue.kick)?;
        kernel.set_event(index, VringEvent::Call, &*call)?;
        kernel.set_event(index, VringEvent::Error, &error)?;
        let stop_of_attendant = stop.try_clone()?;
        // Whatever fails from here on, `started` lets go of the eventfd.
        let follows = queue.interrupt.as_ref().is_none_or(|interrupt| interrupt.follow(&call));
        let attendant = Attendant {
            call: Arc::clone(&call),
            error,
            stop: stop_of_attendant,
            interrupt: queue.interrupt.clone().filter(|_| !follows),
            on_broken: Arc::clone(&queue.on_broken),
        };
        let mut started = Self {
            kernel,
            index,
            used_ring,
            map,
            call,
            interrupt: queue.interrupt.clone().filter(|_| follows),
            stop,
            thread: None,
            position: queue.config.position,
        };
        started.thread = Some(thread::Builder::new().name(queue.name.clone()).spawn(move || attendant.run())?);
        started.kernel.set_backend(index, Some(tap))?;
        // Nobody has looked at what the driver made available before this; a full counter is as good.
        let _full = queue.kick.write(1);
        Ok(started)
    }

    /// Has the kernel stop, and the attendant end, whose thread is returned.
    fn end(&mut self) -> Option<JoinHandle<()>> {
        let thread = self.thread.take();
        if thread.is_some() {
            // To stop is refused only where nothing was started, and then nothing goes on.
            let _not_started = self.kernel.set_backend(self.index, None);
            let next_used = self.used_index();
            self.position = Position { next_avail: self.next_avail(next_used), next_used };
            // The counter of an eventfd that is written once cannot be full.
            let _full = self.stop.write(1);
        }
        if let Some(interrupt) = self.interrupt.take() {
            interrupt.unfollow(&self.call);
        }
        thread
    }

    /// The kernel uses buffers in the order in which they were made available, and has none between two frames; so
    /// that where it does not tell, it is the next that it will use.
    fn next_avail(&self, next_used: u16) -> u16 {
        self.kernel.next_avail(self.index).unwrap_or(next_used)
    }

    fn used_index(&self) -> u16 {
        let index = self.map.read_obj(GuestAddress(self.used_ring + USED_INDEX_OFFSET));
        // It was checked to be memory, which `map` keeps.
        index.map_or(self.position.next_used, u16::from_le)
    }
}

impl ServedQueue for VhostQueue {
    fn position(&self) -> Position {
        if self.thread.is_none() {
            return self.position;
        }
        // Between two frames both are the same; asked for one after the other, a frame may come in between.
        let next_used = self.used_index();
        Position { next_avail: next_used, next_used }
    }

    fn stop(&mut self) -> Position {
        if let Some(thread) = self.end() {
            // A panic has printed its message.
            let _panicked = thread.join();
        }
        self.position
    }

    fn abandon(&mut self) {
        self.end();
    }
}

impl Drop for VhostQueue {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells of rings that are broken, and interrupts where nobody follows the eventfd.
#[derive(Debug)]
struct Attendant {
    call: Arc<OwnedFd>,
    error: OwnedFd,
    stop: EventFd,
    /// To trigger when `call` is written to.
    interrupt: Option<Arc<dyn Interrupt>>,
    on_broken: Arc<dyn Interrupt>,
}

impl Attendant {
    fn run(mut self) {
        let mut broken = false;
        loop {
            // A negative descriptor is skipped by `poll`.
            let call = if self.interrupt.is_some() { self.call.as_raw_fd() } else { -1 };
            let error = if broken { -1 } else { self.error.as_raw_fd() };
            let ready = wait([self.stop.as_raw_fd(), call, error]);
            if ready[1]
                && empty(&self.call)
                && let Some(interrupt) = &mut self.interrupt
            {
                interrupt.trigger();
            }
            if ready[2] {
                // The device needs a reset, and that is told once.
                broken = true;
                self.on_broken.trigger();
            }
            if ready[0] {
                return;
            }
        }
    }
}

/// Waits until one of the descriptors can be read: which of them.
fn wait(fds: [RawFd; 3]) -> [bool; 3] {
    let mut entries = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: `entries` is an array of that many `pollfd`s that lives through the call.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
    entries.map(|entry| ready > 0 && entry.revents != 0)
}

/// Whether the eventfd was written to; it is not any more.
fn empty(event: &OwnedFd) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: the buffer has the 8 bytes that are read from an eventfd.
    unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) == 8 }
}

fn eventfd() -> io::Result<OwnedFd> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    // SAFETY: the descriptor is open, and from here on the `OwnedFd`'s alone.
    Ok(unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) })
}
