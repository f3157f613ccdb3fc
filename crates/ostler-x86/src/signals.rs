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
    pub const ALL: u32 = u32::MAX;
}

/// The attention word of one vCPU, and the place where it sleeps in HLT and MWAIT.
#[derive(Debug, Default)]
pub struct Signals {
    bits: AtomicU32,
    asleep: Mutex<()>,
    woken: Condvar,
}

impl Signals {
    /// What was raised and not taken yet: one load, made between any two blocks.
    #[inline]
    pub fn pending(&self) -> u32 {
        self.bits.load(Ordering::Relaxed)
    }

    /// The word itself, which translated code reads.
    pub fn word(&self) -> *const AtomicU32 {
        &raw const self.bits
    }

    /// Raises `bits` and wakes the vCPU if it sleeps.
    pub fn raise(&self, bits: u32) {
        let before = self.bits.fetch_or(bits, Ordering::SeqCst);
        if before & bits != bits {
            // Taking the lock orders this after a sleeper's last look at the bits.
            drop(self.asleep.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            self.woken.notify_all();
        }
    }

    /// Raises `bits` for when the vCPU next runs code: one that sleeps goes on sleeping.
    pub fn mark(&self, bits: u32) {
        self.bits.fetch_or(bits, Ordering::SeqCst);
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
    fn wait_gives_up_at_the_timeout() {
        Signals::default().wait(Some(Duration::from_millis(1)));
    }
}
