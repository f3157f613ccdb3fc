//! How often a vCPU needed somebody, and for what.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

use crate::exit::{Exit, IoHandler};

/// What a vCPU needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Hlt,
    Shutdown,
    Interrupted,
    Debug,
    InternalError,
}

impl ExitKind {
    pub const ALL: [Self; 9] = [
        Self::IoIn,
        Self::IoOut,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Hlt,
        Self::Shutdown,
        Self::Interrupted,
        Self::Debug,
        Self::InternalError,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::IoIn => "io_in",
            Self::IoOut => "io_out",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::Hlt => "hlt",
            Self::Shutdown => "shutdown",
            Self::Interrupted => "interrupted",
            Self::Debug => "debug",
            Self::InternalError => "internal_error",
        }
    }
}

impl From<&Exit> for ExitKind {
    fn from(exit: &Exit) -> Self {
        match exit {
            Exit::IoIn { .. } => Self::IoIn,
            Exit::IoOut { .. } => Self::IoOut,
            Exit::MmioRead { .. } => Self::MmioRead,
            Exit::MmioWrite { .. } => Self::MmioWrite,
            Exit::Hlt => Self::Hlt,
            Exit::Shutdown => Self::Shutdown,
            Exit::Interrupted => Self::Interrupted,
            Exit::Debug { .. } => Self::Debug,
            Exit::InternalError(_) => Self::InternalError,
        }
    }
}

/// Adds 1. Only the thread that runs the vCPU counts, so a load and a store are enough.
fn add_one(counter: &AtomicU64) -> u64 {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before + 1, Ordering::Relaxed);
    before
}

/// One counter per [`ExitKind`]. Accesses that the bus answers count like those that left `run`.
#[derive(Debug, Default)]
pub struct ExitCounters {
    kinds: [AtomicU64; ExitKind::ALL.len()],
    devices: DeviceCounters,
}

impl ExitCounters {
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.kinds[kind as usize].load(Ordering::Relaxed)
    }

    /// The accesses among them, by who answered.
    pub fn devices(&self) -> &DeviceCounters {
        &self.devices
    }

    fn add_one(&self, kind: ExitKind) {
        add_one(&self.kinds[kind as usize]);
    }

    /// Counts an exit, unless [`Counted`] saw the access already.
    pub fn count(&self, exit: &Exit) {
        match ExitKind::from(exit) {
            ExitKind::IoIn | ExitKind::IoOut | ExitKind::MmioRead | ExitKind::MmioWrite => {}
            kind => self.add_one(kind),
        }
    }
}

/// The number by which a bus knows the owner of a range; [`NOBODY`] stands for the open bus.
pub type DeviceNumber = u16;

pub const NOBODY: DeviceNumber = 0;

/// How many owners are told apart; those past it count as one.
pub const DEVICES: usize = 1024;

/// One access in so many that Python answers is timed: reading a thread's clock is a system call and
/// takes as long as a short answer. A prime, so that no pattern of accesses keeps step with it.
const TIMED: u64 = 251;

/// A vCPU's accesses by who answered, and the time that answers in Python took.
#[derive(Debug)]
pub struct DeviceCounters {
    accesses: Box<[AtomicU64; DEVICES]>,
    decisions: AtomicU64,
    timed: AtomicU64,
    timed_ns: AtomicU64,
}

impl Default for DeviceCounters {
    fn default() -> Self {
        Self {
            accesses: Box::new([const { AtomicU64::new(0) }; DEVICES]),
            decisions: AtomicU64::default(),
            timed: AtomicU64::default(),
            timed_ns: AtomicU64::default(),
        }
    }
}

impl DeviceCounters {
    pub fn accesses(&self, device: DeviceNumber) -> u64 {
        self.accesses[usize::from(device).min(DEVICES - 1)].load(Ordering::Relaxed)
    }

    /// CPU time of this vCPU in devices that decide in Python, from a sample of the accesses.
    pub fn decision_ns(&self) -> u64 {
        let [decisions, timed, ns] =
            [&self.decisions, &self.timed, &self.timed_ns].map(|counter| counter.load(Ordering::Relaxed));
        (u128::from(ns) * u128::from(decisions) / u128::from(timed.max(1))) as u64
    }

    /// Counts an access that `answer` answers on behalf of `device`.
    pub(crate) fn count<R>(&self, device: DeviceNumber, decides: bool, answer: impl FnOnce() -> R) -> R {
        add_one(&self.accesses[usize::from(device).min(DEVICES - 1)]);
        if decides && add_one(&self.decisions).is_multiple_of(TIMED) { self.time(answer) } else { answer() }
    }

    fn time<R>(&self, answer: impl FnOnce() -> R) -> R {
        let before = thread_cpu_ns();
        let result = answer();
        let spent = thread_cpu_ns().saturating_sub(before);
        self.timed_ns.store(self.timed_ns.load(Ordering::Relaxed) + spent, Ordering::Relaxed);
        add_one(&self.timed);
        result
    }
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An [`IoHandler`] that counts what it passes on.
pub(crate) struct Counted<'a> {
    pub io: &'a dyn IoHandler,
    pub counters: &'a ExitCounters,
}

impl IoHandler for Counted<'_> {
    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.counters.add_one(ExitKind::IoIn);
        self.io.io_read_counted(port, data, &self.counters.devices)
    }

    fn io_write(&self, port: u16, data: &[u8]) -> bool {
        self.counters.add_one(ExitKind::IoOut);
        self.io.io_write_counted(port, data, &self.counters.devices)
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.counters.add_one(ExitKind::MmioRead);
        self.io.mmio_read_counted(gpa, data, &self.counters.devices)
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.counters.add_one(ExitKind::MmioWrite);
        self.io.mmio_write_counted(gpa, data, &self.counters.devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(ns: u64) {
        let end = thread_cpu_ns() + ns;
        while thread_cpu_ns() < end {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn access_counts_for_its_device_and_the_last_number_takes_the_rest() {
        let counters = DeviceCounters::default();
        for device in [3, 3, 1023, 1024, u16::MAX] {
            counters.count(device, false, || ());
        }
        assert_eq!([3, 4, 1023, 3000].map(|device| counters.accesses(device)), [2, 0, 3, 3]);
        assert_eq!(counters.decision_ns(), 0);
    }

    #[test]
    fn time_of_decisions_is_estimated_from_a_sample() {
        let counters = DeviceCounters::default();
        let before = thread_cpu_ns();
        for _ in 0..10 * TIMED {
            counters.count(1, true, || spin(20_000));
        }
        let truth = thread_cpu_ns() - before;
        let estimate = counters.decision_ns();
        assert!(estimate > truth / 2 && estimate < truth * 2, "{estimate} ns of {truth}");
    }
}
