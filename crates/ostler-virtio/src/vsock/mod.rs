//! virtio-vsock (virtio 1.2, section 5.10): sockets between the guest and programs of the host.
//!
//! The host's side is Firecracker's convention. A program that connects to the device's unix socket
//! and writes `CONNECT <port>\n` reaches the guest's listener at that port, once `OK <port>\n` has
//! come back; a guest that connects to port n of the host reaches the unix socket at the device's
//! path with `_n` added. The host's sockets are looked after on the receive queue's thread, so they
//! make progress while the guest has buffers there. While it has no driver at all, a [`Door`] closes
//! what callers bring.

mod connection;
mod door;
mod hub;
mod packet;
mod unix;

use std::os::fd::RawFd;
use std::sync::Arc;

use ostler_memory::GuestMap;

pub use connection::BUFFER_BYTES;
pub use door::Door;
pub use hub::{Hub, MAX_CONNECTIONS};
pub use packet::{HEADER_BYTES, HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// Bytes of data in one packet to the guest, if its buffer has room for so many.
const MAX_DATA_BYTES: usize = 64 << 10;

/// Serves the queue on which the guest receives.
#[derive(Debug)]
pub struct ReceiveService {
    hub: Arc<Hub>,
    data: Vec<u8>,
}

impl ReceiveService {
    pub fn new(hub: Arc<Hub>) -> Self {
        hub.served.set(true);
        Self { hub, data: vec![0; MAX_DATA_BYTES] }
    }
}

impl Drop for ReceiveService {
    fn drop(&mut self) {
        self.hub.served.set(false);
    }
}

impl Service for ReceiveService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        // A buffer for headers alone could never take what a connection has to say.
        let room = chain.writable.len().saturating_sub(HEADER_BYTES as u64).min(MAX_DATA_BYTES as u64) as usize;
        if room == 0 {
            return Err(Broken::Request);
        }
        let Some((header, len)) = self.hub.next_packet(&mut self.data[..room]) else {
            return Ok(Outcome::Later);
        };
        chain.writable.write(map, &header.bytes()).map_err(|_| Broken::NotMemory)?;
        chain.writable.write_at(map, HEADER_BYTES as u64, &self.data[..len]).map_err(|_| Broken::NotMemory)?;
        Ok(Outcome::Done((HEADER_BYTES + len) as u32))
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        Some((self.hub.source(), libc::POLLIN))
    }
}

/// Serves the queue on which the guest sends.
#[derive(Debug)]
pub struct TransmitService {
    hub: Arc<Hub>,
    data: Vec<u8>,
}

impl TransmitService {
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub, data: Vec::new() }
    }
}

impl Service for TransmitService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let mut header = [0; HEADER_BYTES];
        chain.readable.read(map, &mut header).map_err(|_| Broken::Request)?;
        let header = Header::parse(&header);
        let there = chain.readable.len() - HEADER_BYTES as u64;
        if u64::from(header.len) > there || header.len > BUFFER_BYTES {
            return Err(Broken::Request);
        }
        self.data.resize(header.len as usize, 0);
        chain.readable.read_at(map, HEADER_BYTES as u64, &mut self.data).map_err(|_| Broken::NotMemory)?;
        self.hub.receive(&header, &self.data);
        Ok(Outcome::Done(0))
    }
}
