//! vhost-net: a thread of the kernel serves the queues of a tap device's NIC.
//!
//! It reads doorbells from their eventfds, moves frames between the rings and the tap device, and writes to an
//! eventfd where the guest is to be interrupted, which the accelerator follows. This process only starts and stops
//! it, and hears of rings that are broken.
//!
//! Filters of addresses and VLANs are not applied (they are best effort, virtio 1.2, section 5.1.6.5); what the
//! kernel writes to guest memory is in no log of this process.

mod kernel;
mod queue;

use std::io;
use std::sync::Arc;

use kernel::Kernel;
pub use queue::VhostQueue;

use super::link::TapLink;
use super::nic::features;
use crate::worker::{Queue, StartError};

/// Feature bits of rings (virtio 1.2, section 6) that the kernel has a say in.
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const RING_PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;
const KNOWN: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | features::MRG_RXBUF;
/// What it has to know where it was negotiated.
const DECISIVE: u64 = KNOWN | RING_PACKED | IN_ORDER;

/// Which queue of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Receive = 0,
    Transmit = 1,
}

/// A thread of the kernel for each pair of queues of a tap device.
#[derive(Debug)]
pub struct Vhost {
    tap: Arc<TapLink>,
    kernels: Vec<Arc<Kernel>>,
    features: u64,
}

impl Vhost {
    /// Fails where there is no `/dev/vhost-net`, it may not be opened, or it lacks virtio 1.
    pub fn new(tap: Arc<TapLink>) -> io::Result<Self> {
        let kernels = (0..tap.queues()).map(|_| Kernel::open().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        let first = kernels.first().ok_or(io::ErrorKind::InvalidInput)?;
        let features = first.features()? & KNOWN;
        if features & VERSION_1 == 0 || features & features::MRG_RXBUF == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { tap, kernels, features })
    }

    /// The features of rings and buffers that the kernel knows, `VIRTIO_NET_F_MRG_RXBUF` among them.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Has the kernel serve one queue of pair number `pair` with the `negotiated` features.
    ///
    /// `ErrorKind::Unsupported` where it does not know them all, as a saved state may have packed rings; or without
    /// `VIRTIO_NET_F_MRG_RXBUF`, where kernels before 6.14 leave `num_buffers` 0 (virtio 1.2, section 5.1.6.4.1).
    pub fn start(
        &self,
        pair: usize,
        direction: Direction,
        negotiated: u64,
        queue: Queue,
    ) -> Result<VhostQueue, StartError> {
        let (Some(kernel), Some(tap)) = (self.kernels.get(pair), self.tap.queue(pair)) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        };
        if negotiated & DECISIVE & !self.features != 0 || negotiated & features::MRG_RXBUF == 0 {
            return Err(io::Error::from(io::ErrorKind::Unsupported).into());
        }
        VhostQueue::start(Arc::clone(kernel), direction, tap, negotiated & self.features, queue)
    }
}
