//! What instructions do: one semantic function per mnemonic, generic over operand width and kind.

pub mod alu;
pub mod availability;
pub mod bits;
pub mod branch;
pub mod decimal;
pub mod far;
pub mod fxsave;
pub mod io;
pub mod mov;
pub mod muldiv;
pub mod operand;
pub mod segment;
pub mod shift;
pub mod stack;
pub mod string;
pub mod system;
pub mod vector;
pub mod x87;
pub mod xsave;
