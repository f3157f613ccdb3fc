//! From guest bytes to blocks of decoded instructions.

pub mod block;
pub mod decoder;
pub mod op;
