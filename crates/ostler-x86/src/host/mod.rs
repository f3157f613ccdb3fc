//! Running guest instructions on the host CPU.
//!
//! * [`code_buffer`]: executable memory; [`stub`]: one instruction with its operands in fixed places;
//!   [`trap`]: a stub with exceptions unmasked.

pub mod code_buffer;
pub mod stub;
pub mod trap;
