//! The receive queue: frames on their way to the driver.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use ostler_memory::GuestMap;

use super::frame::{ETHERNET_BYTES, Frame};
use super::header::{HASHED_HEADER_BYTES, HEADER_BYTES};
use super::nic::{Nic, features};
use super::offload;
use crate::buffer::Buffer;
use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

#[derive(Debug)]
pub struct ReceiveService {
    receiver: Receiver,
    delivery: Option<Delivery>,
    mergeable: bool,
    header_bytes: usize,
}

/// A frame part of which is in the driver's buffers.
#[derive(Debug)]
struct Delivery {
    /// Where its header goes once the number of buffers is known.
    first: Buffer,
    buffers: u16,
    written: usize,
}

impl ReceiveService {
    /// Serves the receive queue of pair number `queue`.
    pub fn new(nic: Arc<Nic>, queue: usize) -> Self {
        let mergeable = nic.has(features::MRG_RXBUF);
        let header_bytes = if nic.has(features::HASH_REPORT) { HASHED_HEADER_BYTES } else { HEADER_BYTES };
        Self { receiver: Receiver::new(nic, queue), delivery: None, mergeable, header_bytes }
    }

    /// Begins a frame in `chain`, which has to hold its header.
    fn begin(&mut self, chain: &Chain) -> Result<(), Broken> {
        let (first, _) = chain.writable.split(self.header_bytes as u64).ok_or(Broken::Request)?;
        self.delivery = Some(Delivery { first, buffers: 0, written: 0 });
        Ok(())
    }

    /// Puts as much of the frame as there is room for into `chain`.
    fn fill(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let Some(delivery) = &mut self.delivery else { return Ok(Outcome::Later) };
        let frame = self.receiver.frame();
        let skip = if delivery.buffers == 0 { self.header_bytes as u64 } else { 0 };
        let room = (chain.writable.len() - skip).min(usize::MAX as u64) as usize;
        let rest = &frame.bytes()[delivery.written..];
        let part = &rest[..rest.len().min(room)];
        chain.writable.write_at(map, skip, part).map_err(|_| Broken::NotMemory)?;
        delivery.written += part.len();
        delivery.buffers = delivery.buffers.saturating_add(1);
        if delivery.written < frame.bytes().len() {
            return Ok(Outcome::More);
        }
        let used = skip as u32 + part.len() as u32;
        self.finish(map)?;
        Ok(Outcome::Done(used))
    }

    fn finish(&mut self, map: &GuestMap) -> Result<(), Broken> {
        let Some(delivery) = self.delivery.take() else { return Ok(()) };
        let frame = self.receiver.frame();
        let mut header = [0; HASHED_HEADER_BYTES];
        header[..HEADER_BYTES].copy_from_slice(&frame.header.bytes(delivery.buffers));
        if self.header_bytes == HASHED_HEADER_BYTES {
            let (hash, kind) = self.receiver.nic.settings().hash.report(frame.bytes());
            header[12..16].copy_from_slice(&hash.to_le_bytes());
            header[16..18].copy_from_slice(&kind.to_le_bytes());
        }
        delivery.first.write(map, &header[..self.header_bytes]).map_err(|_| Broken::NotMemory)?;
        self.receiver.done();
        Ok(())
    }
}

impl Service for ReceiveService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        if chain.writable.is_empty() {
            return Err(Broken::Request);
        }
        while self.delivery.is_none() {
            if !self.receiver.fetch() {
                return Ok(Outcome::Later);
            }
            self.begin(chain)?;
            let room = chain.writable.len() - self.header_bytes as u64;
            if !self.mergeable && room < self.receiver.frame().bytes().len() as u64 {
                self.delivery = None;
                self.receiver.drop_frame();
            }
        }
        self.fill(chain, map)
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        self.receiver.source()
    }
}

/// Receives frames in the form that the driver takes; for every kind of NIC.
#[derive(Debug)]
pub struct Receiver {
    pub nic: Arc<Nic>,
    queue: usize,
    frame: Frame,
    /// Whether `frame`, or the first of `pieces`, is one that is not delivered yet.
    full: bool,
    /// What `frame` was cut into.
    pieces: VecDeque<Frame>,
}

impl Receiver {
    pub fn new(nic: Arc<Nic>, queue: usize) -> Self {
        Self { nic, queue, frame: Frame::default(), full: false, pieces: VecDeque::new() }
    }

    /// Has a frame that may be delivered; false when there is none now.
    pub fn fetch(&mut self) -> bool {
        while !self.full && self.pieces.is_empty() {
            if !self.nic.link.receive(self.queue, &mut self.frame) {
                return false;
            }
            let bytes = self.frame.bytes();
            let wanted = bytes.len() >= ETHERNET_BYTES && self.nic.settings().filter.passes(bytes);
            if wanted {
                self.adapt();
            }
        }
        true
    }

    fn adapt(&mut self) {
        let fits = self.frame.header.fits(self.frame.bytes().len());
        let takes = self.nic.guest_takes();
        match fits.then(|| offload::adapt(&mut self.frame, takes, &mut self.pieces)).flatten() {
            Some(cut) => self.full = !cut,
            None => self.nic.received.fail_one(),
        }
    }

    /// What `fetch` found.
    pub fn frame(&self) -> &Frame {
        self.pieces.front().unwrap_or(&self.frame)
    }

    /// The frame has been delivered.
    pub fn done(&mut self) {
        self.nic.received.count(self.frame().bytes().len());
        self.forget();
    }

    /// The driver has no room for the frame.
    pub fn drop_frame(&mut self) {
        self.nic.received.drop_one();
        self.forget();
    }

    /// The frame is not for the driver after all.
    pub fn skip(&mut self) {
        self.forget();
    }

    /// Whether there is a frame that is not delivered yet.
    pub fn is_full(&self) -> bool {
        self.full || !self.pieces.is_empty()
    }

    fn forget(&mut self) {
        if self.pieces.pop_front().is_none() {
            self.full = false;
        }
    }

    pub fn source(&self) -> Option<(RawFd, libc::c_short)> {
        self.nic.link.readable(self.queue).map(|fd| (fd, libc::POLLIN))
    }
}
