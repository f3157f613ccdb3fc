//! The x87 instructions, and the state images, against the host's own.

mod bench;
mod images;
