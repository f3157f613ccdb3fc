//! What stands between an accelerator and everything above it.
//!
//! * [`accel`]: the contract, modelled on `/dev/kvm`'s, that an accelerator fulfils;
//! * [`regs`]: the register sets it reads and writes, with the names the manuals use;
//! * [`exit`]: why a vCPU stopped, and who answers an access on the way.

pub mod accel;
pub mod exit;
pub mod regs;

pub use accel::{AccelError, Accelerator, Kick, Msi, Vcpu, Vm};
pub use exit::{Exit, IoHandler, NobodyAnswers};
