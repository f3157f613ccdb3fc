//! The transmit queue: frames on their way from the driver.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use ostler_memory::GuestMap;

use super::frame::{ETHERNET_BYTES, Frame, MAX_FRAME_BYTES};
use super::header::{HASHED_HEADER_BYTES, HEADER_BYTES, Header};
use super::link::Sent;
use super::nic::{Nic, features};
use super::offload::{self, Offloads};
use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

#[derive(Debug)]
pub struct TransmitService {
    sender: Sender,
    frame: Frame,
}

impl TransmitService {
    /// Serves the transmit queue of pair number `queue`.
    pub fn new(nic: Arc<Nic>, queue: usize) -> Self {
        Self { sender: Sender::new(nic, queue), frame: Frame::default() }
    }

    /// The frame of `chain`; `None` when it has none that could be sent.
    fn read(&mut self, chain: &Chain, map: &GuestMap) -> Result<Option<()>, Broken> {
        let hashed = self.sender.nic.has(features::HASH_REPORT);
        let header_bytes = if hashed { HASHED_HEADER_BYTES } else { HEADER_BYTES } as u64;
        let mut header = [0; HEADER_BYTES];
        let len = chain.readable.len().checked_sub(header_bytes).ok_or(Broken::Request)?;
        if len < ETHERNET_BYTES as u64 || len > MAX_FRAME_BYTES as u64 {
            return Ok(None);
        }
        let len = len as usize;
        chain.readable.read(map, &mut header).map_err(|_| Broken::NotMemory)?;
        chain.readable.read_at(map, header_bytes, &mut self.frame.room()[..len]).map_err(|_| Broken::NotMemory)?;
        self.frame.header = Header::parse(&header);
        self.frame.set_len(len);
        Ok(self.frame.header.fits(len).then_some(()))
    }
}

impl Service for TransmitService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        // What is owed is of this chain, which is offered again until all of it is sent.
        let done = if self.sender.owes() {
            self.sender.flush()
        } else if self.read(chain, map)?.is_some() {
            self.sender.send(&mut self.frame)
        } else {
            self.sender.nic.sent.fail_one();
            true
        };
        Ok(if done { Outcome::Done(0) } else { Outcome::Later })
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        self.sender.nic.link.writable()
    }
}

/// Sends frames in the form that the link takes; for every kind of NIC.
#[derive(Debug)]
pub struct Sender {
    pub nic: Arc<Nic>,
    queue: usize,
    /// Pieces of a frame that the link has not taken yet.
    pieces: VecDeque<Frame>,
    /// The link has the beginning of a frame.
    begun: bool,
}

impl Sender {
    pub fn new(nic: Arc<Nic>, queue: usize) -> Self {
        Self { nic, queue, pieces: VecDeque::new(), begun: false }
    }

    /// Whether some of the last frame is yet to be sent, by `flush`.
    pub fn owes(&self) -> bool {
        self.begun || !self.pieces.is_empty()
    }

    /// Sends `frame`, whose header fits it. False when it has to wait: what it `owes` is flushed
    /// then, and a frame of which nothing is owed is sent again.
    pub fn send(&mut self, frame: &mut Frame) -> bool {
        let bytes = frame.bytes().len();
        let takes = self.nic.link.takes();
        if takes != Offloads::ALL {
            match offload::adapt(frame, takes, &mut self.pieces) {
                None => {
                    self.nic.sent.fail_one();
                    return true;
                }
                Some(true) => {
                    self.nic.sent.count(bytes);
                    return self.flush();
                }
                Some(false) => {}
            }
        }
        match self.hand_over(frame) {
            Sent::Later => return false,
            Sent::Done => self.nic.sent.count(bytes),
            Sent::Dropped => self.nic.sent.drop_one(),
            Sent::Begun => {
                self.nic.sent.count(bytes);
                return self.flush();
            }
        }
        true
    }

    /// Sends what is owed; false when that has to wait.
    pub fn flush(&mut self) -> bool {
        loop {
            if self.begun && !self.nic.link.flush(self.queue) {
                return false;
            }
            self.begun = false;
            let Some(piece) = self.pieces.pop_front() else { return true };
            match self.hand_over(&piece) {
                Sent::Later => {
                    self.pieces.push_front(piece);
                    return false;
                }
                Sent::Dropped => self.nic.sent.drop_one(),
                Sent::Done | Sent::Begun => {}
            }
        }
    }

    fn hand_over(&mut self, frame: &Frame) -> Sent {
        let sent = self.nic.link.send(self.queue, frame);
        self.begun = sent == Sent::Begun;
        sent
    }
}
