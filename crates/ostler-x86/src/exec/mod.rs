//! What instructions do: one semantic function per mnemonic, generic over operand width and kind.

mod io;
pub mod operand;
mod segment;
