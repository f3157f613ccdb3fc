//! Virtqueues and the workers that serve them.
//!
//! What the guest puts on a ring is hostile. It is parsed in two steps that execute nothing: a
//! [`ring::Ring`] yields a [`chain::Chain`] that keeps the specification's rules, or says how the
//! ring is [`chain::Broken`]; a device then makes a request of the chain. Only requests touch the
//! host. A [`worker::Worker`] is the thread that does this for one queue: an eventfd wakes it, an
//! [`ostler_engine::irq::Interrupt`] tells the guest.
//!
//! * [`blk`]: disks over a file or a block device;
//! * [`rng`]: random bytes;
//! * [`console`]: a byte stream each way;
//! * [`balloon`]: memory that the guest can spare;
//! * [`scsi`]: logical units of disks and discs;
//! * [`vsock`]: sockets between the guest and the host;
//! * [`limit`]: any of them, within a rate;
//! * [`host`]: whatever devices outside this crate answer.
//! * [`net`]: Ethernet frames.

pub mod balloon;
pub mod blk;
pub mod buffer;
pub mod chain;
pub mod console;
pub mod host;
pub mod limit;
pub mod net;
pub mod ring;
pub mod rng;
pub mod scsi;
pub mod vsock;
pub mod worker;

pub use blk::{BlkService, Disk};
pub use buffer::{Buffer, Segment};
pub use chain::{Broken, Chain};
pub use console::{InputService, OutputService};
pub use ring::{Position, Ring, RingConfig, RingError};
pub use rng::RngService;
pub use worker::{Outcome, Queue, ServedQueue, Service, Worker};
