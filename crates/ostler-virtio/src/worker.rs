//! The thread that serves one virtqueue.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use ostler_engine::irq::Interrupt;
use ostler_memory::{GuestMap, GuestRam};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::chain::{Broken, Chain};
use crate::ring::{Position, Ring, RingConfig, RingError};

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Finished, with so many bytes written to it.
    Done(u32),
    /// It is full, and what it begins goes on in the next chain; the driver gets all of them at once.
    More,
    /// It has to wait for the service's source.
    Later,
}

/// What a device does with the chains of a queue.
pub trait Service: Send + Debug {
    /// Serves one chain, on the worker's thread.
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken>;

    /// What to wait for after [`Outcome::Later`]: a descriptor and its `poll` events.
    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        None
    }
}

/// What a worker is given besides its service.
#[derive(Debug)]
pub struct Queue {
    /// The thread's name, at most 15 bytes.
    pub name: String,
    pub memory: Arc<GuestRam>,
    pub config: RingConfig,
    /// The driver's doorbell.
    pub kick: EventFd,
    /// Announces used buffers; without it the driver polls.
    pub interrupt: Option<Arc<dyn Interrupt>>,
    /// Told once when the driver broke the ring; the worker serves nothing any more then.
    pub on_broken: Arc<dyn Interrupt>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("cannot start the thread of a virtqueue")]
    Host(#[from] io::Error),
}

/// A queue that somebody serves. Dropping it stops that.
pub trait ServedQueue: Send + Debug {
    /// Where it stands, between two requests.
    fn position(&self) -> Position;

    /// Waits for the request in flight and ends. A second call only tells the position.
    fn stop(&mut self) -> Position;

    /// Ends after the request in flight, and does not wait for it.
    fn abandon(&mut self);
}

/// A running worker. Dropping it stops it.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Held while a request is executed.
    progress: Mutex<Progress>,
    stop: EventFd,
    stopping: AtomicBool,
}

/// The ring and what was popped from it and not given back.
#[derive(Debug)]
struct Progress {
    ring: Ring,
    /// Full chains that wait for the end of what they begin (see [`Outcome::More`]).
    held: Vec<(Chain, u32)>,
}

impl Progress {
    /// Gives `chain` back, and before it what was held.
    fn finish(&mut self, map: &GuestMap, chain: &mut Chain, len: u32) -> Result<(), Broken> {
        if self.held.is_empty() {
            return self.ring.push(map, chain, len);
        }
        self.held.push((std::mem::take(chain), len));
        self.ring.push_all(map, &self.held)?;
        self.held.clear();
        Ok(())
    }

    fn hold(&mut self, chain: &mut Chain) {
        let len = chain.writable.len() as u32;
        self.held.push((std::mem::take(chain), len));
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Worker {
    /// Starts serving `queue`, beginning with what is available already.
    pub fn start(queue: Queue, service: Box<dyn Service>) -> Result<Self, StartError> {
        let ring = Ring::new(&queue.config, &queue.memory.map())?;
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            progress: Mutex::new(Progress { ring, held: Vec::new() }),
            stop,
            stopping: AtomicBool::new(false),
        });
        let mut serving = Serving { shared: Arc::clone(&shared), queue, service, chain: Chain::default() };
        let thread = thread::Builder::new().name(serving.queue.name.clone()).spawn(move || serving.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn ask_to_stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        // The counter of an eventfd that is written a few times cannot be full.
        let _full = self.shared.stop.write(1);
    }
}

impl ServedQueue for Worker {
    fn position(&self) -> Position {
        let progress = self.shared.progress();
        progress.ring.position_before(&progress.held)
    }

    fn stop(&mut self) -> Position {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            // A panic has printed its message; the position is that of the last finished request.
            let _panicked = thread.join();
        }
        self.position()
    }

    fn abandon(&mut self) {
        self.ask_to_stop();
        self.thread = None;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

#[derive(Debug)]
struct Serving {
    shared: Arc<Shared>,
    queue: Queue,
    service: Box<dyn Service>,
    /// The one being served; kept so that its room is allocated once.
    chain: Chain,
}

/// Why a round of serving ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// The ring is empty.
    Empty,
    /// A chain waits for the service's source.
    Blocked,
}

impl Serving {
    fn run(&mut self) {
        while !self.shared.stopping() {
            match self.serve_available() {
                Ok(idle) => self.wait(idle),
                Err(_broken) => {
                    self.queue.on_broken.trigger();
                    return;
                }
            }
        }
    }

    /// Serves until nothing can be served.
    fn serve_available(&mut self) -> Result<Idle, Broken> {
        let map = self.queue.memory.map();
        loop {
            self.shared.progress().ring.disable_kicks(&map)?;
            let idle = self.serve_until_idle(&map)?;
            // Whoever is blocked has a chain, so that the doorbell would be no news.
            if idle == Idle::Blocked || !self.shared.progress().ring.enable_kicks(&map)? || self.shared.stopping() {
                return Ok(idle);
            }
        }
    }

    fn serve_until_idle(&mut self, map: &GuestMap) -> Result<Idle, Broken> {
        let Self { shared, service, chain, queue } = self;
        while !shared.stopping() {
            let mut progress = shared.progress();
            if !progress.ring.pop_into(map, chain)? {
                break;
            }
            match service.serve(chain, map)? {
                Outcome::Done(len) => progress.finish(map, chain, len)?,
                Outcome::More => {
                    progress.hold(chain);
                    continue;
                }
                Outcome::Later => {
                    progress.ring.unpop(chain);
                    return Ok(Idle::Blocked);
                }
            }
            if progress.ring.needs_interrupt(map)? {
                drop(progress);
                if let Some(interrupt) = &queue.interrupt {
                    interrupt.trigger();
                }
            }
        }
        Ok(Idle::Empty)
    }

    /// Sleeps until there is a reason not to.
    fn wait(&self, idle: Idle) {
        let source = if idle == Idle::Blocked { self.service.source() } else { None };
        // A negative descriptor is skipped by `poll`.
        let (fd, events) = source.unwrap_or((-1, 0));
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let mut entries = [
            entry(self.shared.stop.as_raw_fd(), libc::POLLIN),
            entry(self.queue.kick.as_raw_fd(), libc::POLLIN),
            entry(fd, events),
        ];
        // SAFETY: `entries` is an array of that many `pollfd`s that lives through the call.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
        if ready > 0 && entries[1].revents != 0 {
            // Only this thread reads the doorbell, so it is not empty; nothing else can go wrong.
            let _rings = self.queue.kick.read();
        }
    }
}
