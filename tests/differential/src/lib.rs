//! The real CPU as the oracle of the software CPU.
//!
//! A [`generate::Generator`] makes short user-mode instruction sequences and full initial states from a seed;
//! [`native::NativeCpu`] and [`soft::SoftCpu`] run them; [`compare`] looks for a difference in whatever the manuals
//! define; [`shrink`] makes the sequence that shows one small. [`cases`] holds those picked by hand.

mod address;
pub mod arguments;
pub mod batch;
pub mod cases;
pub mod compare;
pub mod cpu;
pub mod emulated;
pub mod flags;
pub mod generate;
pub mod initial;
pub mod layout;
mod mutate;
pub mod native;
mod operands;
pub mod pool;
pub mod programs;
pub mod random;
pub mod report;
pub mod sequence;
mod shared;
mod shrink;
pub mod soft;
pub mod state;
pub mod twins;
mod vendor;
