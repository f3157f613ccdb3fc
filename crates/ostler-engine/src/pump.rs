//! Waits for eventfds on a thread, for accelerators that have no kernel to do it.

use std::fmt::{self, Debug};
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, write};

/// What is done each time that an eventfd was written to. Called on the pump's thread, without a lock.
pub type Act = dyn Fn() + Send + Sync;

/// A thread that waits for the eventfds it is given, and empties them.
pub struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    sources: Mutex<Vec<Source>>,
    /// The list has changed, or it is time to end.
    changed: OwnedFd,
    ending: AtomicBool,
}

#[derive(Clone)]
struct Source {
    key: u32,
    event: Arc<OwnedFd>,
    act: Arc<Act>,
}

impl Debug for Pump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").field("sources", &self.shared.sources().len()).finish_non_exhaustive()
    }
}

impl Pump {
    /// Fails when the host has no thread or descriptor left. `name` is the thread's.
    pub fn start(name: &str) -> io::Result<Self> {
        let changed = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { sources: Mutex::default(), changed, ending: AtomicBool::new(false) });
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || inside.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Calls `act` whenever `event` is written to, until [`Pump::remove`] with the same `key`.
    pub fn add(&self, key: u32, event: OwnedFd, act: Arc<Act>) {
        self.shared.sources().push(Source { key, event: Arc::new(event), act });
        self.shared.tell();
    }

    /// Forgets the eventfds added with `key`; false when there were none. One that was written to just before may
    /// still be acted on.
    pub fn remove(&self, key: u32) -> bool {
        let mut sources = self.shared.sources();
        let before = sources.len();
        sources.retain(|source| source.key != key);
        let found = sources.len() != before;
        drop(sources);
        self.shared.tell();
        found
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        self.shared.tell();
        let thread = self.thread.take();
        // What the thread acts on may own this: then it ends by itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn sources(&self) -> MutexGuard<'_, Vec<Source>> {
        self.sources.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn tell(&self) {
        signal(&self.changed);
    }

    fn run(&self) {
        while !self.ending.load(Ordering::SeqCst) {
            let sources = self.sources().clone();
            for at in ready(&self.changed, &sources) {
                let source = &sources[at];
                // It may have been removed while the others were acted on.
                if self.holds(source) && empty(&source.event) {
                    (source.act)();
                }
            }
            empty(&self.changed);
        }
    }

    fn holds(&self, source: &Source) -> bool {
        self.sources().iter().any(|held| Arc::ptr_eq(&held.event, &source.event))
    }
}

/// The indices of the sources that were written to; returns, too, when the list has changed.
fn ready(changed: &OwnedFd, sources: &[Source]) -> Vec<usize> {
    let all = std::iter::once(changed).chain(sources.iter().map(|source| &*source.event));
    let mut polled: Vec<_> = all.map(|event| PollFd::new(event, PollFlags::IN)).collect();
    // Interrupted: whoever calls comes again.
    let _interrupted = poll(&mut polled, None);
    let is_ready = |at: &usize| polled[at + 1].revents().contains(PollFlags::IN);
    (0..sources.len()).filter(is_ready).collect()
}

/// Adds 1 to the counter of `event`.
pub fn signal(event: &OwnedFd) {
    // A full counter says as much.
    let _full = write(event, &1_u64.to_ne_bytes());
}

/// Sets the counter to 0; false when it was. Another reader may have been faster, so that it must not wait.
fn empty(event: &OwnedFd) -> bool {
    let mut counter = [0; 8];
    let now = preadv2(event, &mut [IoSliceMut::new(&mut counter)], u64::MAX, ReadWriteFlags::NOWAIT);
    match now {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => read(event, &mut counter).is_ok(),
        result => result.is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::empty()).expect("an eventfd")
    }

    #[test]
    fn event_written_is_acted_on_and_emptied() {
        let pump = Pump::start("pump").expect("a thread");
        let (told, tells) = channel();
        let event = event();
        let act = move || told.send(()).expect("the test listens");
        pump.add(1, event.try_clone().expect("a duplicate"), Arc::new(act));
        for _ in 0..3 {
            signal(&event);
            tells.recv_timeout(PATIENCE).expect("acted on");
        }
    }

    #[test]
    fn event_removed_is_left_alone() {
        let pump = Pump::start("pump").expect("a thread");
        let (told, tells) = channel();
        let (gone, stays) = (event(), event());
        for (key, event) in [(1, &gone), (2, &stays)] {
            let told = told.clone();
            let act = move || told.send(key).expect("the test listens");
            pump.add(key, event.try_clone().expect("a duplicate"), Arc::new(act));
        }
        assert!(pump.remove(1) && !pump.remove(1));
        signal(&gone);
        signal(&stays);
        assert_eq!(tells.recv_timeout(PATIENCE), Ok(2));
        assert!(empty(&gone));
    }

    #[test]
    fn pump_dropped_on_its_own_thread_ends() {
        let pump = Pump::start("pump").expect("a thread");
        let (told, tells) = channel();
        let event = event();
        let owner = Arc::new(Mutex::new(None));
        let held = Arc::clone(&owner);
        let act = move || {
            drop(held.lock().expect("one user").take());
            told.send(()).expect("the test listens");
        };
        pump.add(1, event.try_clone().expect("a duplicate"), Arc::new(act));
        *owner.lock().expect("one user") = Some(pump);
        signal(&event);
        tells.recv_timeout(PATIENCE).expect("acted on");
    }
}
