//! The local APIC timer: one-shot, periodic, and TSC deadline (SDM 3A 11.5.4).
//!
//! Its bus clock and the TSC are 1 GHz, so counts and deadlines are nanoseconds of the VM's clock.

use std::sync::{MutexGuard, PoisonError};

use super::Lapic;
use super::registers::reg;
use ostler_irqchip::timer::{MIN_PERIOD_NS, Timed};

/// The timer mode field of the LVT entry; 3 is reserved and never expires.
const MODE_SHIFT: u32 = 17;
const ONE_SHOT: u32 = 0;
const PERIODIC: u32 = 1;
const TSC_DEADLINE: u32 = 2;

/// A running timer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Countdown {
    /// When the count reaches zero the next time; `None` when the timer is not armed.
    expires_ns: Option<u64>,
    /// The time between two expirations; 0 when there is only one.
    period_ns: u64,
}

impl Countdown {
    /// The time left until the count is zero.
    fn left_ns(&self, now_ns: u64) -> u64 {
        match self.expires_ns {
            None => 0,
            Some(expires) if self.period_ns == 0 => expires.saturating_sub(now_ns),
            Some(expires) if expires > now_ns => {
                // Coalesced expirations lie several periods ahead.
                let left = (expires - now_ns) % self.period_ns;
                if left == 0 { self.period_ns } else { left }
            }
            Some(expires) => self.period_ns - (now_ns - expires) % self.period_ns,
        }
    }

    /// Moves on from an expiration at or before `now_ns` to the next one.
    fn advance(&mut self, now_ns: u64) {
        self.expires_ns = self.expires_ns.filter(|_| self.period_ns != 0).map(|expires| {
            let missed = now_ns.saturating_sub(expires) / self.period_ns;
            let coalesced = MIN_PERIOD_NS.div_ceil(self.period_ns);
            expires.saturating_add(missed.saturating_add(coalesced).saturating_mul(self.period_ns))
        });
    }
}

impl Timed for Lapic {
    fn expire(&self, now_ns: u64) {
        let mut countdown = self.countdown();
        if countdown.expires_ns.is_none_or(|expires| expires > now_ns) {
            return;
        }
        countdown.advance(now_ns);
        self.deadlines.set(self.slot, countdown.expires_ns);
        drop(countdown);
        self.deliver_local(reg::LVT_TIMER);
    }
}

impl Lapic {
    /// When the timer expires next, in nanoseconds of the VM's clock. A vCPU that sleeps in HLT may
    /// sleep until then and call [`Lapic::expire_timer`] itself; if it does not, the timer thread will.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.countdown().expires_ns
    }

    /// Lets the timer expire if its time has come.
    pub fn expire_timer(&self) {
        self.expire(self.clock.now_ns());
    }

    pub(super) fn current_count(&self) -> u32 {
        if self.timer_mode() == TSC_DEADLINE {
            return 0;
        }
        let left_ns = self.countdown().left_ns(self.clock.now_ns());
        // Rounded up: the count is zero only when the time has come.
        u32::try_from(left_ns.div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    pub(super) fn set_initial_count(&self, count: u32) {
        if self.timer_mode() != TSC_DEADLINE {
            self.page.set(reg::INITIAL_COUNT, count);
            self.count_from(count);
        }
    }

    pub(super) fn set_divide(&self, value: u32) {
        let count = self.current_count();
        self.page.set(reg::DIVIDE, value & 0xB);
        if self.countdown().expires_ns.is_some() && self.timer_mode() != TSC_DEADLINE {
            self.count_from(count);
        }
    }

    /// Sets the timer's LVT entry. Going to or from TSC deadline mode disarms the timer.
    pub(super) fn set_timer_entry(&self, value: u32) {
        let before = self.timer_mode();
        self.page.set(reg::LVT_TIMER, value);
        let mode = self.timer_mode();
        if before == mode {
            return;
        }
        if before == TSC_DEADLINE || mode == TSC_DEADLINE {
            self.page.set(reg::INITIAL_COUNT, 0);
            self.disarm();
        } else if self.countdown().expires_ns.is_some() {
            self.count_from(self.current_count());
        }
    }

    /// `IA32_TSC_DEADLINE`: 0 when not armed, and in the other timer modes.
    pub(super) fn tsc_deadline(&self) -> u64 {
        if self.timer_mode() == TSC_DEADLINE { self.countdown().expires_ns.unwrap_or(0) } else { 0 }
    }

    pub(super) fn set_tsc_deadline(&self, deadline: u64) {
        if self.timer_mode() == TSC_DEADLINE {
            self.arm(Countdown { expires_ns: Some(deadline).filter(|&deadline| deadline != 0), period_ns: 0 });
        }
    }

    /// Goes on counting from a saved `count`; a saved 0 is a timer that was not running.
    pub(super) fn resume_count(&self, count: u32) {
        if self.timer_mode() != TSC_DEADLINE {
            self.count_from(count);
        }
    }

    pub(super) fn disarm(&self) {
        self.arm(Countdown::default());
    }

    /// Starts counting down from `count`; in periodic mode, from the initial count from then on.
    fn count_from(&self, count: u32) {
        let divisor = self.divisor();
        let left_ns = u64::from(count) * divisor;
        let period_ns = match self.timer_mode() {
            PERIODIC => u64::from(self.page.get(reg::INITIAL_COUNT)) * divisor,
            _ => 0,
        };
        let runs = count != 0 && matches!(self.timer_mode(), ONE_SHOT | PERIODIC);
        let expires_ns = runs.then(|| self.clock.now_ns().saturating_add(left_ns));
        self.arm(Countdown { expires_ns, period_ns });
    }

    fn arm(&self, armed: Countdown) {
        let mut countdown = self.countdown();
        *countdown = armed;
        self.deadlines.set(self.slot, armed.expires_ns);
        drop(countdown);
        if armed.expires_ns.is_some() {
            // What is due already need not wait for the thread.
            self.expire_timer();
        }
    }

    fn timer_mode(&self) -> u32 {
        self.page.get(reg::LVT_TIMER) >> MODE_SHIFT & 3
    }

    /// The divide configuration, as a number of 1..=128.
    fn divisor(&self) -> u64 {
        let value = self.page.get(reg::DIVIDE);
        let exponent = (value & 3 | value >> 1 & 4) + 1;
        1 << (exponent & 7)
    }

    fn countdown(&self) -> MutexGuard<'_, Countdown> {
        self.countdown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
