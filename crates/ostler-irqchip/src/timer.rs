//! The host thread that lets the VM's timers expire.
//!
//! Every timer owns one slot of [`Deadlines`]. Setting a slot is a short lock and no system call,
//! unless it makes the thread's sleep shorter. A timer is told that it is due without any lock of
//! this file held; it checks again under its own, as the guest may have changed it meanwhile.
//! Lock order: a timer's own lock, then that of `Deadlines`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use ostler_engine::AccelError;

use crate::clock::GuestClock;

/// The shortest time between two expirations of a periodic timer. Periods below it are coalesced,
/// as KVM does by `min_timer_period_us`, so that no guest can keep the host's timer thread busy.
pub const MIN_PERIOD_NS: u64 = 200_000;

const NEVER: u64 = u64::MAX;
/// A sleep's length is bounded so that no deadline can overflow the host's time.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Something that asked to be told when the clock reaches a deadline.
pub trait Timed: Send + Sync {
    /// The clock shows `now_ns`, and a deadline was set that is not later.
    fn expire(&self, now_ns: u64);
}

/// Which deadline of [`Deadlines`] belongs to a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

struct Entry {
    due_ns: u64,
    timed: Weak<dyn Timed>,
}

struct Inner {
    entries: Vec<Entry>,
    /// When the sleeping thread wakes by itself; 0 when it will look at the entries anyway.
    wakes_ns: u64,
    stopping: bool,
}

/// The deadlines of all timers of a VM.
pub struct Deadlines {
    clock: Arc<GuestClock>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl std::fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let due: Vec<u64> = self.lock().entries.iter().map(|entry| entry.due_ns).collect();
        f.debug_struct("Deadlines").field("due_ns", &due).finish_non_exhaustive()
    }
}

impl Deadlines {
    pub fn new(clock: Arc<GuestClock>) -> Self {
        let inner = Inner { entries: Vec::new(), wakes_ns: 0, stopping: false };
        Self { clock, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    pub fn clock(&self) -> &Arc<GuestClock> {
        &self.clock
    }

    /// A new slot, without a deadline.
    pub fn add(&self, timed: Weak<dyn Timed>) -> Slot {
        let mut inner = self.lock();
        inner.entries.push(Entry { due_ns: NEVER, timed });
        Slot(inner.entries.len() - 1)
    }

    /// Replaces the deadline of `slot`.
    pub fn set(&self, slot: Slot, deadline_ns: Option<u64>) {
        let due_ns = deadline_ns.unwrap_or(NEVER);
        let mut inner = self.lock();
        inner.entries[slot.0].due_ns = due_ns;
        if due_ns < inner.wakes_ns {
            self.changed.notify_one();
        }
    }

    /// Makes the thread look at a clock that was set, stopped or started.
    pub fn clock_changed(&self) {
        drop(self.lock());
        self.changed.notify_one();
    }

    /// Tells every timer whose deadline has come, and clears these deadlines.
    pub fn expire_due(&self) {
        let now_ns = self.clock.now_ns();
        let due: Vec<_> = (self.lock().entries.iter_mut())
            .filter(|entry| entry.due_ns <= now_ns)
            .map(|entry| {
                entry.due_ns = NEVER;
                Weak::clone(&entry.timed)
            })
            .collect();
        for timed in due.iter().filter_map(Weak::upgrade) {
            timed.expire(now_ns);
        }
    }

    /// Sleeps until something is due; false when the thread has to end.
    fn wait(&self) -> bool {
        let mut inner = self.lock();
        loop {
            if inner.stopping {
                return false;
            }
            let next_ns = inner.entries.iter().map(|entry| entry.due_ns).min().unwrap_or(NEVER);
            if next_ns == NEVER || self.clock.is_frozen() {
                inner.wakes_ns = NEVER;
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let sleep = self.clock.until(next_ns);
            if sleep.is_zero() {
                inner.wakes_ns = 0;
                return true;
            }
            inner.wakes_ns = next_ns;
            let woken = self.changed.wait_timeout(inner, sleep.min(LONGEST_SLEEP));
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The timers of one VM, and the thread that lets them expire.
#[derive(Debug)]
pub struct Timers {
    pub deadlines: Arc<Deadlines>,
    _thread: TimerThread,
}

impl Timers {
    /// Fails when the host has no thread left for them.
    pub fn start(clock: Arc<GuestClock>) -> Result<Self, AccelError> {
        let deadlines = Arc::new(Deadlines::new(clock));
        let thread = TimerThread::start(Arc::clone(&deadlines))?;
        Ok(Self { deadlines, _thread: thread })
    }
}

/// The running thread; ends when dropped.
#[derive(Debug)]
struct TimerThread {
    deadlines: Arc<Deadlines>,
    thread: Option<JoinHandle<()>>,
}

impl TimerThread {
    fn start(deadlines: Arc<Deadlines>) -> Result<Self, AccelError> {
        let shared = Arc::clone(&deadlines);
        let run = move || {
            sleep_precisely();
            while shared.wait() {
                shared.expire_due();
            }
        };
        let spawned = std::thread::Builder::new().name("timer".into()).spawn(run);
        let thread = spawned.map_err(|source| AccelError::Host { what: "no thread for the guest's timers", source })?;
        Ok(Self { deadlines, thread: Some(thread) })
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        self.deadlines.stop();
        // The last reference to the VM may be the one this very thread took to tell a timer.
        let thread = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id());
        // A panic of the thread was reported when it happened.
        drop(thread.map(JoinHandle::join));
    }
}

/// Takes the 50 us off by which the host may let the calling thread oversleep.
fn sleep_precisely() {
    let slack_ns: libc::c_ulong = 1_000;
    // Should it fail, timers are late by that much.
    // SAFETY: the call sets a number of the calling thread, and takes no pointer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_ns) };
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;

    struct Bell(Mutex<Sender<u64>>);

    impl Timed for Bell {
        fn expire(&self, now_ns: u64) {
            self.0.lock().expect("one user").send(now_ns).expect("the test listens");
        }
    }

    fn bell() -> (Arc<Bell>, Receiver<u64>) {
        let (sender, receiver) = channel();
        (Arc::new(Bell(Mutex::new(sender))), receiver)
    }

    fn weak(bell: &Arc<Bell>) -> Weak<dyn Timed> {
        let weak: Weak<Bell> = Arc::downgrade(bell);
        weak
    }

    #[test]
    fn deadline_reached_is_told_once() {
        let clock = Arc::new(GuestClock::default());
        clock.freeze();
        clock.set_ns(100);
        let deadlines = Deadlines::new(Arc::clone(&clock));
        let (bell, rings) = bell();
        let slot = deadlines.add(weak(&bell));
        deadlines.set(slot, Some(150));
        deadlines.expire_due();
        assert!(rings.try_recv().is_err());
        clock.set_ns(150);
        deadlines.expire_due();
        deadlines.expire_due();
        assert_eq!(rings.try_iter().collect::<Vec<_>>(), [150]);
    }

    #[test]
    fn thread_wakes_for_an_earlier_deadline_than_it_slept_for() {
        let clock = Arc::new(GuestClock::default());
        let deadlines = Arc::new(Deadlines::new(Arc::clone(&clock)));
        let thread = TimerThread::start(Arc::clone(&deadlines)).expect("a thread");
        let (far, _far_rings) = bell();
        let (near, rings) = bell();
        let far_slot = deadlines.add(weak(&far));
        let near_slot = deadlines.add(weak(&near));
        deadlines.set(far_slot, Some(clock.now_ns() + 3_600_000_000_000));
        let due = clock.now_ns() + 1_000_000;
        deadlines.set(near_slot, Some(due));
        let rang = rings.recv_timeout(Duration::from_secs(10)).expect("it rings");
        assert!(rang >= due);
        drop(thread);
    }

    #[test]
    fn thread_tells_nothing_while_the_clock_stands_and_goes_on_when_told() {
        let clock = Arc::new(GuestClock::default());
        clock.freeze();
        let deadlines = Arc::new(Deadlines::new(Arc::clone(&clock)));
        let _thread = TimerThread::start(Arc::clone(&deadlines)).expect("a thread");
        let (bell, rings) = bell();
        let slot = deadlines.add(weak(&bell));
        deadlines.set(slot, Some(0));
        assert!(rings.recv_timeout(Duration::from_millis(5)).is_err());
        clock.thaw();
        deadlines.clock_changed();
        rings.recv_timeout(Duration::from_secs(10)).expect("it rings");
    }

    #[test]
    fn thread_dropped_ends_at_once() {
        let deadlines = Arc::new(Deadlines::new(Arc::new(GuestClock::default())));
        let (bell, _rings) = bell();
        let slot = deadlines.add(weak(&bell));
        let thread = TimerThread::start(Arc::clone(&deadlines)).expect("a thread");
        deadlines.set(slot, Some(3_600_000_000_000));
        let start = Instant::now();
        drop(thread);
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(Arc::strong_count(&deadlines), 1);
    }
}
