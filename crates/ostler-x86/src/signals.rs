//! How other threads get a vCPU's attention.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use ostler_memory::Waiter;

/// Something wants [`crate`]'s vCPU to look up from running code. Bits, so that several fit one word.
pub mod signal {
    /// `run` has to return.
    pub const KICK: u32 = 1 << 0;
    /// The local APIC or the PIC may have an interrupt to deliver.
    pub const INTERRUPT: u32 = 1 << 1;
    /// A non-maskable interrupt is to be delivered.
    pub const NMI: u32 = 1 << 2;
    /// An INIT arrived.
    pub const INIT: u32 = 1 << 3;
    /// A startup IPI arrived; its vector is in the local APIC.
    pub const SIPI: u32 = 1 << 4;
    /// The memory slots, or watched lines, changed.
    pub const MEMORY: u32 = 1 << 5;
    /// Bytes of code that was decoded changed.
    pub const CODE: u32 = 1 << 6;
    /// The line that MONITOR armed was written.
    pub const MONITOR: u32 = 1 << 7;
    /// Another vCPU has to run alone for a moment.
    pub const ALONE: u32 = 1 << 8;
    pub const ALL: u32 = u32::MAX;
}

/// The attention word of one vCPU, and the place where it sleeps in HLT and MWAIT.
#[derive(Debug, Default)]
pub struct Signals {
    bits: AtomicU32,
    /// Not 0: nothing was raised since [`Signals::arm`]. So that translated code, which may not change a flag, looks at
    /// one word and mostly does not jump.
    quiet: AtomicU32,
    asleep: Mutex<()>,
    woken: Condvar,
}

impl Signals {
    /// What was raised and not taken yet: one load, made between any two blocks.
    #[inline]
    pub fn pending(&self) -> u32 {
        self.bits.load(Ordering::Relaxed)
    }

    /// The word that translated code reads: 0 when it has to be left.
    pub fn quiet_word(&self) -> *const AtomicU32 {
        &raw const self.quiet
    }

    /// Makes [`Signals::quiet_word`] true again, before translated code is entered.
    #[inline]
    pub fn arm(&self) {
        if self.quiet.load(Ordering::Relaxed) != 0 {
            return;
        }
        self.quiet.store(1, Ordering::SeqCst);
        // Who raised something before that store has been overruled, so look; who does so later overrules it.
        if self.bits.load(Ordering::SeqCst) != 0 {
            self.quiet.store(0, Ordering::SeqCst);
        }
    }

    /// Sets `bits`, and only then that it is no longer quiet.
    fn set(&self, bits: u32) -> u32 {
        let before = self.bits.fetch_or(bits, Ordering::SeqCst);
        self.quiet.store(0, Ordering::SeqCst);
        before
    }

    /// Raises `bits` and wakes the vCPU if it sleeps.
    pub fn raise(&self, bits: u32) {
        let before = self.set(bits);
        if before & bits != bits {
            // Taking the lock orders this after a sleeper's last look at the bits.
            drop(self.asleep.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            self.woken.notify_all();
        }
    }

    /// Raises `bits` for when the vCPU next runs code: one that sleeps goes on sleeping.
    pub fn mark(&self, bits: u32) {
        self.set(bits);
    }

    /// Clears `bits` and returns those of them that were raised.
    pub fn take(&self, bits: u32) -> u32 {
        self.bits.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Sleeps until any bit is raised, or until `timeout` has passed.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut guard = self.asleep.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while self.bits.load(Ordering::SeqCst) == 0 {
            guard = match timeout {
                None => self.woken.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner()),
                Some(timeout) => {
                    drop(self.woken.wait_timeout(guard, timeout).unwrap_or_else(|poisoned| poisoned.into_inner()));
                    return;
                }
            };
        }
    }
}

impl Waiter for Signals {
    fn written(&self) {
        self.raise(signal::MONITOR);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn wait_returns_at_once_when_a_bit_is_raised_already() {
        let signals = Signals::default();
        signals.raise(signal::KICK);
        signals.wait(None);
        assert_eq!(signals.take(signal::KICK | signal::NMI), signal::KICK);
        assert_eq!(signals.pending(), 0);
    }

    #[test]
    fn raise_wakes_a_sleeper() {
        let signals = Arc::new(Signals::default());
        let sleeper = std::thread::spawn({
            let signals = Arc::clone(&signals);
            move || signals.wait(None)
        });
        signals.raise(signal::INTERRUPT);
        sleeper.join().expect("the sleeper ends");
    }

    #[test]
    fn signals_armed_are_quiet_until_one_is_raised() {
        let signals = Signals::default();
        let quiet = || signals.quiet.load(Ordering::SeqCst) != 0;
        signals.arm();
        assert!(quiet());
        signals.mark(signal::CODE);
        signals.arm();
        assert!(!quiet(), "it was not taken yet");
        signals.take(signal::ALL);
        signals.arm();
        assert!(quiet());
    }

    #[test]
    fn signal_raised_while_another_thread_arms_is_never_missed() {
        let signals = Arc::new(Signals::default());
        let raiser = std::thread::spawn({
            let signals = Arc::clone(&signals);
            move || (0..100_000).for_each(|_| signals.mark(signal::CODE))
        });
        while !raiser.is_finished() {
            signals.take(signal::ALL);
            signals.arm();
        }
        raiser.join().expect("the raiser ends");
        assert!(signals.pending() == 0 || signals.quiet.load(Ordering::SeqCst) == 0);
    }

    #[test]
    fn wait_gives_up_at_the_timeout() {
        Signals::default().wait(Some(Duration::from_millis(1)));
    }
}
