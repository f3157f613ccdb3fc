//! The VM's time: one monotonic nanosecond clock from which TSC, timers and kvmclock all derive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The guest's TSC counts nanoseconds. A fixed rate on every host means that a saved guest finds
/// the same TSC frequency wherever it is loaded, and kvmclock's scale is 1.
pub const TSC_HZ: u64 = 1_000_000_000;
pub const TSC_KHZ: u32 = (TSC_HZ / 1000) as u32;

/// Nanoseconds since the VM was created (or since what [`GuestClock::set_ns`] said).
#[derive(Debug)]
pub struct GuestClock {
    origin: Instant,
    /// Added to the time since `origin`, wrapping.
    offset_ns: AtomicU64,
    /// What the clock shows while it stands still; [`RUNNING`] while it goes.
    frozen_ns: AtomicU64,
}

const RUNNING: u64 = u64::MAX;

impl Default for GuestClock {
    fn default() -> Self {
        Self { origin: Instant::now(), offset_ns: AtomicU64::new(0), frozen_ns: AtomicU64::new(RUNNING) }
    }
}

impl GuestClock {
    #[inline]
    pub fn now_ns(&self) -> u64 {
        let frozen = self.frozen_ns.load(Ordering::Relaxed);
        if frozen != RUNNING {
            return frozen;
        }
        (self.origin.elapsed().as_nanos() as u64).wrapping_add(self.offset_ns.load(Ordering::Relaxed))
    }

    pub fn set_ns(&self, ns: u64) {
        let elapsed = self.origin.elapsed().as_nanos() as u64;
        self.offset_ns.store(ns.wrapping_sub(elapsed), Ordering::Relaxed);
        if self.is_frozen() {
            self.frozen_ns.store(ns.min(RUNNING - 1), Ordering::Relaxed);
        }
    }

    /// Stops the clock. [`GuestClock::set_ns`] still moves it: this is how tests make time pass.
    /// Nothing expires while the clock stands still.
    pub fn freeze(&self) {
        self.frozen_ns.store(self.now_ns().min(RUNNING - 1), Ordering::Relaxed);
    }

    /// Lets a stopped clock go on from what it shows.
    pub fn thaw(&self) {
        if self.is_frozen() {
            let ns = self.now_ns();
            self.frozen_ns.store(RUNNING, Ordering::Relaxed);
            self.set_ns(ns);
        }
    }

    pub fn is_frozen(&self) -> bool {
        self.frozen_ns.load(Ordering::Relaxed) != RUNNING
    }

    /// How long from now until the clock shows `deadline_ns`; zero when it is past.
    pub fn until(&self, deadline_ns: u64) -> Duration {
        Duration::from_nanos(deadline_ns.saturating_sub(self.now_ns()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_set_goes_on_from_there() {
        let clock = GuestClock::default();
        clock.set_ns(5_000_000_000);
        let now = clock.now_ns();
        assert!((5_000_000_000..6_000_000_000).contains(&now), "{now}");
        assert_eq!(clock.until(1), Duration::ZERO);
    }

    #[test]
    fn clock_frozen_stands_still_and_goes_on_from_there() {
        let clock = GuestClock::default();
        clock.freeze();
        clock.set_ns(7_000_000_000);
        assert_eq!(clock.now_ns(), 7_000_000_000);
        assert!(clock.is_frozen());
        clock.thaw();
        assert!(!clock.is_frozen());
        assert!((7_000_000_000..8_000_000_000).contains(&clock.now_ns()));
    }
}
