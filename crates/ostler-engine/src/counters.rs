//! How often a vCPU needed somebody, and for what.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// One counter per [`ExitKind`]. Accesses that the bus answers count like those that left `run`.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounters {
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// Only the thread that runs the vCPU counts, so a load and a store are enough.
    fn add_one(&self, kind: ExitKind) {
        self.0[kind as usize].store(self.get(kind) + 1, Ordering::Relaxed);
    }

    /// Counts an exit, unless [`Counted`] saw the access already.
    pub fn count(&self, exit: &Exit) {
        match ExitKind::from(exit) {
            ExitKind::IoIn | ExitKind::IoOut | ExitKind::MmioRead | ExitKind::MmioWrite => {}
            kind => self.add_one(kind),
        }
    }
}

/// An [`IoHandler`] that counts what it passes on.
pub(crate) struct Counted<'a> {
    pub io: &'a dyn IoHandler,
    pub counters: &'a ExitCounters,
}

impl IoHandler for Counted<'_> {
    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.counters.add_one(ExitKind::IoIn);
        self.io.io_read(port, data)
    }

    fn io_write(&self, port: u16, data: &[u8]) -> bool {
        self.counters.add_one(ExitKind::IoOut);
        self.io.io_write(port, data)
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.counters.add_one(ExitKind::MmioRead);
        self.io.mmio_read(gpa, data)
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.counters.add_one(ExitKind::MmioWrite);
        self.io.mmio_write(gpa, data)
    }
}
