//! Limits on what a service does for the guest, in bytes and requests a second.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ostler_memory::GuestMap;
use vmm_sys_util::timerfd::TimerFd;

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// How long a guest that asked for nothing saves up for.
const BURST: Duration = Duration::from_secs(1);
/// Waits are no shorter, so that a slow source does not wake up for every byte.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// What a device may do in a second, shared by its queues; 0 is no limit. A request is never cut:
/// what it took too much, the next ones wait for.
#[derive(Debug)]
pub struct Budget {
    bytes: Rate,
    requests: Rate,
}

#[derive(Debug)]
struct Rate {
    per_second: AtomicU64,
    /// When everything done so far would have been done at the limit.
    paid_until: Mutex<Instant>,
}

impl Rate {
    fn new(per_second: u64) -> Self {
        Self { per_second: AtomicU64::new(per_second), paid_until: Mutex::new(Instant::now()) }
    }

    fn change(&self, per_second: u64) {
        self.per_second.store(per_second, Ordering::Relaxed);
        *self.paid_until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn wait(&self, now: Instant) -> Duration {
        if self.per_second.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        self.paid_until.lock().unwrap_or_else(PoisonError::into_inner).saturating_duration_since(now)
    }

    fn pay(&self, units: u64, now: Instant) {
        let per_second = self.per_second.load(Ordering::Relaxed);
        if per_second == 0 {
            return;
        }
        // A chain is shorter than 4 GiB, and 2^32 times 10^9 fits.
        let cost = Duration::from_nanos(units.min(u64::from(u32::MAX)) * 1_000_000_000 / per_second);
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let start = now.checked_sub(BURST).map_or(*paid_until, |earliest| earliest.max(*paid_until));
        *paid_until = start.checked_add(cost).unwrap_or(start);
    }
}

impl Budget {
    pub fn new(bytes_per_second: u64, requests_per_second: u64) -> Self {
        Self { bytes: Rate::new(bytes_per_second), requests: Rate::new(requests_per_second) }
    }

    /// Other limits from now on; who waits already waits on.
    pub fn change(&self, bytes_per_second: u64, requests_per_second: u64) {
        self.bytes.change(bytes_per_second);
        self.requests.change(requests_per_second);
    }
}

/// Serves by `inner` while the budget has something left, else later.
#[derive(Debug)]
pub struct Limited<S> {
    inner: S,
    budget: Arc<Budget>,
    timer: TimerFd,
    /// The last request has to wait for the timer, not for the inner service.
    waits: bool,
}

impl<S: Service> Limited<S> {
    /// At most `bytes_per_second`, for this service alone.
    pub fn new(inner: S, bytes_per_second: u64) -> io::Result<Self> {
        Self::within(inner, Arc::new(Budget::new(bytes_per_second, 0)))
    }

    pub fn within(inner: S, budget: Arc<Budget>) -> io::Result<Self> {
        Ok(Self { inner, budget, timer: TimerFd::new()?, waits: false })
    }
}

impl<S: Service> Service for Limited<S> {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let now = Instant::now();
        let wait = self.budget.bytes.wait(now).max(self.budget.requests.wait(now));
        self.waits = !wait.is_zero();
        if self.waits {
            // Arming it anew also makes it unreadable again. It cannot fail with a sound time.
            let _armed = self.timer.reset(wait.max(MIN_WAIT), None);
            return Ok(Outcome::Later);
        }
        let outcome = self.inner.serve(chain, map)?;
        if let Outcome::Done(written) = outcome {
            self.budget.bytes.pay(u64::from(written).max(chain.readable.len()), now);
            self.budget.requests.pay(1, now);
        }
        Ok(outcome)
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        if self.waits { Some((self.timer.as_raw_fd(), libc::POLLIN)) } else { self.inner.source() }
    }
}
