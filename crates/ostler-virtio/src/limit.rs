//! A limit on what a service gives the guest, in bytes a second.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use ostler_memory::GuestMap;
use vmm_sys_util::timerfd::TimerFd;

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// How long a guest that asked for nothing saves up for.
const BURST: Duration = Duration::from_secs(1);
/// Waits are no shorter, so that a slow source does not wake up for every byte.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// Serves by `inner` while less than `bytes_per_second` were written, else later. A request is never
/// cut: what it took too much, the next ones wait for.
#[derive(Debug)]
pub struct Limited<S> {
    inner: S,
    bytes_per_second: u64,
    /// When everything written so far would have been written at the limit.
    paid_until: Instant,
    timer: TimerFd,
    /// The last request has to wait for the timer, not for the inner service.
    waits: bool,
}

impl<S: Service> Limited<S> {
    /// `bytes_per_second` is at least 1.
    pub fn new(inner: S, bytes_per_second: u64) -> io::Result<Self> {
        let timer = TimerFd::new()?;
        Ok(Self { inner, bytes_per_second: bytes_per_second.max(1), paid_until: Instant::now(), timer, waits: false })
    }

    fn pay(&mut self, bytes: u32, now: Instant) {
        // Less than 2^32 bytes times 10^9 fits.
        let cost = Duration::from_nanos(u64::from(bytes) * 1_000_000_000 / self.bytes_per_second);
        let start = now.checked_sub(BURST).map_or(self.paid_until, |earliest| self.paid_until.max(earliest));
        self.paid_until = start.checked_add(cost).unwrap_or(start);
    }
}

impl<S: Service> Service for Limited<S> {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let now = Instant::now();
        let wait = self.paid_until.saturating_duration_since(now);
        self.waits = !wait.is_zero();
        if self.waits {
            // Arming it anew also makes it unreadable again. It cannot fail with a sound time.
            let _armed = self.timer.reset(wait.max(MIN_WAIT), None);
            return Ok(Outcome::Later);
        }
        let outcome = self.inner.serve(chain, map)?;
        if let Outcome::Done(bytes) = outcome {
            self.pay(bytes, now);
        }
        Ok(outcome)
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        if self.waits { Some((self.timer.as_raw_fd(), libc::POLLIN)) } else { self.inner.source() }
    }
}
