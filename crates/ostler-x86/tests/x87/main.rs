//! The x87 instructions, and the state images, against the host's own.

mod bench;
mod environment;
mod exceptions;
mod images;
mod native;
mod oracle;
mod values;
