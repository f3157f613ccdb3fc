//! Running guest instructions on the host CPU, and the host's memory.
//!
//! * [`code_buffer`]: executable memory; [`stub`]: one instruction with its operands in fixed places;
//!   [`trap`]: a stub with exceptions unmasked; [`zeros`]: tables whose memory goes back to the host.

pub mod code_buffer;
pub mod stub;
pub mod trap;
pub mod zeros;
