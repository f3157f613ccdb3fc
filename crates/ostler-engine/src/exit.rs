//! Why a vCPU stopped, and who answers an access on the way.

use crate::counters::DeviceCounters;

/// The reason for which [`crate::Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `IN`: answer with [`crate::Vcpu::supply_read`] of `size` bytes (1, 2 or 4).
    IoIn { port: u16, size: u8 },
    /// `OUT` of 1, 2 or 4 bytes; done when this is seen.
    IoOut { port: u16, data: Vec<u8> },
    /// A load from where no memory slot is: answer with `supply_read` of `size` (1..=8) bytes.
    MmioRead { gpa: u64, size: u8 },
    /// A store to where no writable memory slot is, 1..=8 bytes; done when this is seen.
    MmioWrite { gpa: u64, data: Vec<u8> },
    /// HLT in a VM without an irqchip. The instruction is done.
    Hlt,
    /// A triple fault: the processor is in shutdown until it is reset.
    Shutdown,
    /// A kick arrived.
    Interrupted,
    /// A breakpoint or single step that [`crate::Vcpu::set_guest_debug`] asked for.
    Debug { rip: u64, dr6: u64, exception: u8 },
    /// The accelerator cannot go on; a defect of it, not of the guest.
    InternalError(String),
}

/// Answers port and memory-mapped accesses without leaving [`crate::Vcpu::run`].
///
/// `false` means "not mine": the access then becomes an [`Exit`]. Called on vCPU threads, from
/// several at once; a call may block that vCPU but nobody else.
pub trait IoHandler: Sync {
    /// Fills `data` (1, 2 or 4 bytes) from `port`.
    fn io_read(&self, port: u16, data: &mut [u8]) -> bool;
    fn io_write(&self, port: u16, data: &[u8]) -> bool;
    /// Fills `data` (1..=8 bytes, not crossing an 8-byte boundary unless unaligned by the guest).
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool;
    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool;

    /// As the four above, with what counts who answered. Handlers that know no devices need none.
    fn io_read_counted(&self, port: u16, data: &mut [u8], _counters: &DeviceCounters) -> bool {
        self.io_read(port, data)
    }
    fn io_write_counted(&self, port: u16, data: &[u8], _counters: &DeviceCounters) -> bool {
        self.io_write(port, data)
    }
    fn mmio_read_counted(&self, gpa: u64, data: &mut [u8], _counters: &DeviceCounters) -> bool {
        self.mmio_read(gpa, data)
    }
    fn mmio_write_counted(&self, gpa: u64, data: &[u8], _counters: &DeviceCounters) -> bool {
        self.mmio_write(gpa, data)
    }
}

/// The handler of those who want to see every exit.
#[derive(Clone, Copy, Debug, Default)]
pub struct NobodyAnswers;

impl IoHandler for NobodyAnswers {
    fn io_read(&self, _port: u16, _data: &mut [u8]) -> bool {
        false
    }
    fn io_write(&self, _port: u16, _data: &[u8]) -> bool {
        false
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) -> bool {
        false
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) -> bool {
        false
    }
}
