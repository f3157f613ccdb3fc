//! What stands between an accelerator and everything above it.
//!
//! * [`accel`]: the contract, modelled on `/dev/kvm`'s, that an accelerator fulfils;
//! * [`regs`]: the register sets it reads and writes, with the names the manuals use;
//! * [`exit`]: why a vCPU stopped, and who answers an access on the way;
//! * [`bus`]: the usual answerer, which knows the owner of every port and address;
//! * [`irq`] and [`msi`]: the other direction, from a device to the guest;
//! * [`vcpu`] and [`thread`]: running vCPUs, on the caller's thread or on one each;
//! * [`counters`] and [`profile`]: what they needed somebody for, and where their time goes.

#![forbid(unsafe_code)]

pub mod accel;
pub mod bus;
pub mod clock;
pub mod counters;
pub mod cpuid;
pub mod exit;
pub mod fault;
pub mod irq;
pub mod msi;
pub mod profile;
pub mod pump;
pub mod regs;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod thread;
pub mod ticker;
pub mod vcpu;

pub use accel::{AccelError, Accelerator, Kick, Msi, Vcpu, Vm};
pub use bus::{BoundDoorbell, Bus, BusDevice, BusError, Doorbell, Space};
pub use clock::VmClock;
pub use exit::{Exit, IoHandler, NobodyAnswers};
pub use irq::{EventFdInterrupt, Interrupt, IrqLine};
pub use msi::{Messages, MsiRoute};
pub use thread::{ThreadError, Threads};
pub use vcpu::{VcpuError, VcpuHandle};
