//! Queues and the workers that serve them, from the driver's side.

mod blk;
mod driver;
mod frames;
mod host;
mod hostile;
mod net;
mod packed;
mod ring;
mod scsi;
mod vsock;
