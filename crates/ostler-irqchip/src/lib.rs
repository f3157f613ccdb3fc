//! The interrupt controllers and the timer of a PC, whoever runs its processors.
//!
//! * [`pic`]: the two 8259A; [`ioapic`]: 24 pins; [`pit`]: the 8254;
//! * [`chips`]: the three on one board, wired as a PC's are, and what they need of the processors;
//! * [`message`]: what interrupt controllers send each other;
//! * [`timer`]: the host thread that lets timers expire, and [`clock`], the time they expire by;
//! * [`eventfd`]: interrupts that come by eventfd.
//!
//! Local APICs are not here: they belong to whoever runs the processors. The `soft` accelerator has its own,
//! those of `kvm` are in the kernel.

pub mod chips;
pub mod clock;
mod eventfd;
mod ioapic;
pub mod message;
mod pic;
mod pit;
pub mod timer;

pub use chips::{Chips, Processors};
pub use clock::GuestClock;
pub use ioapic::{IOAPIC_BASE, level_messages};
pub use timer::Timers;
