//! A complete x86-64 system CPU in software: the `soft` accelerator.

pub mod clock;
pub mod irqchip;
pub mod signals;
