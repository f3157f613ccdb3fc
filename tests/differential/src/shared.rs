//! Counters that survive the death of the process that runs the sequences.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use iced_x86::Code;

/// More than iced has `Code` values.
const CODES: usize = 8192;

#[derive(Debug)]
#[repr(C)]
pub struct Counters {
    /// The index of the sequence to run next.
    pub next: AtomicU64,
    pub ran: AtomicU64,
    /// Sequences that did not stop by themselves on the host.
    pub skipped: AtomicU64,
    /// Sequences of which this host's KVM would have emulated a part ([`crate::emulated`]).
    pub emulated: AtomicU64,
    pub different: AtomicU64,
    attempted: [AtomicU32; CODES],
    completed: [AtomicU32; CODES],
    differed: [AtomicU32; CODES],
}

/// A mapping of [`Counters`] that forked processes share; freed with the process.
#[derive(Debug)]
pub struct Shared {
    counters: NonNull<Counters>,
}

impl Shared {
    pub fn new() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping that replaces none.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Counters>(), protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(|counters| Self { counters }).ok_or_else(|| io::Error::other("mapped at 0"))
    }

    pub fn counters(&self) -> &Counters {
        // SAFETY: mapped for the process's life; zero bytes are valid atomics.
        unsafe { self.counters.as_ref() }
    }

    /// Notes that `code` ran, and whether to its end.
    pub fn note(&self, code: Code, completed: bool) {
        count(&self.counters().attempted, code);
        if completed {
            count(&self.counters().completed, code);
        }
    }

    /// Counts a difference that `code` shows and returns how many it had before.
    pub fn note_difference(&self, code: Code) -> u32 {
        self.counters().different.fetch_add(1, Ordering::Relaxed);
        count(&self.counters().differed, code)
    }

    pub fn attempted(&self, code: Code) -> u32 {
        self.counters().attempted[code as usize].load(Ordering::Relaxed)
    }

    pub fn completed(&self, code: Code) -> u32 {
        self.counters().completed[code as usize].load(Ordering::Relaxed)
    }

    pub fn differed(&self, code: Code) -> u32 {
        self.counters().differed[code as usize].load(Ordering::Relaxed)
    }
}

fn count(counters: &[AtomicU32; CODES], code: Code) -> u32 {
    counters[code as usize].fetch_add(1, Ordering::Relaxed)
}
