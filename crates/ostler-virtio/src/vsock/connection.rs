//! One connection: a stream of the guest's and a unix socket of the host's.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

/// Bytes that the guest may send before the host has taken them.
pub const BUFFER_BYTES: u32 = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// We asked the guest and have no answer yet.
    Requested,
    Established,
    /// The guest is done with it; what the host has not taken yet still goes out. `reset` tells the
    /// guest when that is so.
    Closing {
        reset: bool,
    },
}

#[derive(Debug)]
pub struct Connection {
    pub stream: UnixStream,
    /// By what the host's events name it.
    pub token: u64,
    pub state: State,
    /// What the guest sent and the host has not taken.
    pending: VecDeque<u8>,
    /// The host may still send.
    pub reads: bool,
    /// The guest will send no more.
    pub writes_end: bool,
    /// The events asked for, if any.
    pub interest: Option<EventSet>,
    // Credit (section 5.10.6.3); all counts are modulo 2^32.
    sent: u32,
    peer_allocation: u32,
    peer_forwarded: u32,
    pub forwarded: u32,
    pub forwarded_told: u32,
}

impl Connection {
    pub fn new(stream: UnixStream, token: u64, state: State) -> Self {
        Self {
            stream,
            token,
            state,
            pending: VecDeque::new(),
            reads: true,
            writes_end: false,
            interest: None,
            sent: 0,
            peer_allocation: 0,
            peer_forwarded: 0,
            forwarded: 0,
            forwarded_told: 0,
        }
    }

    /// Bytes that the guest has room for.
    pub fn credit(&self) -> u32 {
        self.peer_allocation.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// What the guest says of its room, which every packet of it does.
    pub fn hear_credit(&mut self, allocation: u32, forwarded: u32) {
        (self.peer_allocation, self.peer_forwarded) = (allocation, forwarded);
    }

    /// Whether the guest should be told how much of what it sent has been taken.
    pub fn owes_credit(&self) -> bool {
        self.forwarded.wrapping_sub(self.forwarded_told) >= BUFFER_BYTES / 4
    }

    pub fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// The events worth waking up for.
    pub fn wanted(&self) -> Option<EventSet> {
        let mut events = EventSet::empty();
        if self.state == State::Established && self.reads && self.credit() > 0 {
            events |= EventSet::IN;
        }
        if !self.is_flushed() {
            events |= EventSet::OUT;
        }
        (!events.is_empty()).then_some(events)
    }

    /// Fills `data` from the host, within the guest's credit: `Ok(0)` at the end of the stream.
    pub fn receive(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let room = data.len().min(self.credit() as usize);
        let len = self.stream.read(&mut data[..room])?;
        self.sent = self.sent.wrapping_add(len as u32);
        Ok(len)
    }

    /// Gives `data` to the host, at once or later. An error when the host is gone, or the guest sent
    /// more than it was allowed.
    pub fn send(&mut self, mut data: &[u8]) -> io::Result<()> {
        if self.is_flushed() {
            let taken = self.write(data)?;
            data = &data[taken..];
        }
        if self.pending.len() + data.len() > BUFFER_BYTES as usize {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.pending.extend(data);
        Ok(())
    }

    /// Gives the host what it has not taken yet, as far as it goes.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let piece = front.to_vec();
            let taken = self.write(&piece)?;
            self.pending.drain(..taken);
            if taken < piece.len() {
                break;
            }
        }
        if self.is_flushed() && self.writes_end {
            // The host may have closed it already.
            let _closed = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Bytes that the host took before it would have blocked.
    fn write(&mut self, mut data: &[u8]) -> io::Result<usize> {
        let before = data.len();
        while !data.is_empty() {
            match self.stream.write(data) {
                Ok(len) => data = &data[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let taken = before - data.len();
        self.forwarded = self.forwarded.wrapping_add(taken as u32);
        Ok(taken)
    }
}
