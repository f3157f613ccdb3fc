//! The accelerator over `/dev/kvm`.
//!
//! What the contract of `ostler-engine` asks for and the kernel does otherwise is settled here:
//!
//! * [`accelerator`]: opens the device and refuses, with a reason, a host that lacks what is needed;
//! * [`slots`] and [`dirty`]: memory slots follow `GuestRam`, and KVM's dirty log is added to its own;
//! * [`vm`] and [`irqchip`]: interrupt controllers in the kernel, their routing and their state; [`split`]: all but the
//!   local APICs in this process instead;
//! * [`vcpu`], [`run`] and [`kick`]: a vCPU, its exits, and what interrupts it;
//! * [`cpuid`], [`msr`], [`regs`]: what a vCPU is and what it holds.

pub mod accelerator;
mod capability;
mod cpuid;
mod dirty;
mod ioctl;
mod irqchip;
mod kick;
mod msr;
mod regs;
mod ring;
mod run;
mod slots;
mod split;
mod vcpu;
mod vm;

pub use accelerator::{DEVICE, KvmAccelerator, Options};
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;
