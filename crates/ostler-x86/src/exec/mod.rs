//! What instructions do: one semantic function per mnemonic, generic over operand width and kind.

pub mod availability;
mod io;
pub mod operand;
mod segment;
