//! A complete x86-64 system CPU in software: the `soft` accelerator.
//!
//! * [`accel`]: the accelerator contract over everything below;
//! * [`run`]: the run loop; [`event`]: exceptions and interrupts on their way in;
//! * [`isa`]: the instruction table; [`decode`]: blocks; [`exec`]: what instructions do;
//! * [`jit`]: hot blocks as host code;
//! * [`cpu`]: registers; [`mmu`]: memory; [`msr`], [`cpuid`], [`debug`]: the rest of the state;
//! * `profile`: what a vCPU says of itself;
//! * [`irqchip`]: local APICs, and the board's chips; [`vm`]: what vCPUs share.

pub mod accel;
pub mod cpu;
pub mod cpuid;
pub mod debug;
pub mod decode;
pub mod event;
pub mod exec;
pub mod host;
pub mod irqchip;
pub mod isa;
pub mod jit;
pub mod mmu;
pub mod msr;
mod profile;
pub mod run;
pub mod signals;
pub mod vm;

pub use accel::SoftAccelerator;
pub use jit::Translate;
