//! What operating systems do to the CPU: modes, paging, exceptions, privilege changes, tasks, debugging.
//!
//! Each test assembles a few instructions, runs them, and looks at registers and memory. Handlers
//! that [`guest`] installs put their vector where a test finds it, and halt.

mod atomics;
mod beside_code;
mod debugging;
mod descriptors;
mod guest;
mod identity;
mod interrupts;
mod jump_targets;
mod litmus;
mod long_mode;
mod modes;
mod monitor;
mod noise;
mod paging;
mod ports;
mod pv_eoi;
mod slots;
mod spaces;
mod tasks;
mod translation;
