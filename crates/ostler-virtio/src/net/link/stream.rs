//! A stream socket with a 4-byte big-endian length before each frame: passt, QEMU, other VMs.
//!
//! The peer may die and another take its place: see [`StreamLink::attach`].

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::poller::{Poller, is_passing, moved, set_nonblocking};
use super::{Link, Sent};
use crate::net::frame::{Frame, MAX_FRAME_BYTES};
use crate::net::header::Header;
use crate::net::offload::Offloads;

const LENGTH_BYTES: usize = 4;
/// What is read at once: several frames of any length.
const READ_BYTES: usize = 4 * (MAX_FRAME_BYTES + LENGTH_BYTES);

#[derive(Debug)]
pub struct StreamLink {
    /// Readable while the peer has sent something.
    input: Poller,
    /// Readable while the peer takes more.
    output: Poller,
    receiving: Mutex<Receiving>,
    sending: Mutex<Sending>,
    up: AtomicBool,
    /// The peer takes frames that are longer than its network's.
    jumbo: bool,
    /// The peer is a process of this host, and what it sends is not damaged on the way.
    verified: bool,
}

#[derive(Debug)]
struct Receiving {
    peer: Option<Arc<OwnedFd>>,
    buffer: Vec<u8>,
    /// What of the buffer is not yet handed out.
    start: usize,
    end: usize,
}

#[derive(Debug, Default)]
struct Sending {
    peer: Option<Arc<OwnedFd>>,
    /// The end of a frame of which the peer has taken the beginning.
    rest: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StreamLink {
    /// A link without a peer. With `jumbo`, the peer takes whole TCP segments of 64 KiB.
    pub fn new(jumbo: bool) -> io::Result<Self> {
        let receiving = Receiving { peer: None, buffer: vec![0; READ_BYTES], start: 0, end: 0 };
        Ok(Self {
            input: Poller::new()?,
            output: Poller::new()?,
            receiving: Mutex::new(receiving),
            sending: Mutex::default(),
            up: AtomicBool::new(false),
            jumbo,
            verified: jumbo,
        })
    }

    /// Takes `peer` in place of the one before.
    pub fn attach(&self, peer: OwnedFd) -> io::Result<()> {
        set_nonblocking(&peer)?;
        self.detach();
        let peer = Arc::new(peer);
        let (mut receiving, mut sending) = (lock(&self.receiving), lock(&self.sending));
        self.input.watch(peer.as_raw_fd(), libc::EPOLLIN)?;
        self.output.watch(peer.as_raw_fd(), libc::EPOLLOUT)?;
        (receiving.start, receiving.end) = (0, 0);
        receiving.peer = Some(Arc::clone(&peer));
        sending.rest.clear();
        sending.peer = Some(peer);
        self.up.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets go of the peer; what is sent from then on is lost.
    pub fn detach(&self) {
        let (mut receiving, mut sending) = (lock(&self.receiving), lock(&self.sending));
        self.up.store(false, Ordering::Release);
        self.let_go(receiving.peer.take());
        self.let_go(sending.peer.take());
    }

    /// Whether the peer has read all that it was sent.
    pub fn is_drained(&self) -> bool {
        let sending = lock(&self.sending);
        let Some(peer) = &sending.peer else { return true };
        let mut unread: libc::c_int = 0;
        // SAFETY: this request (SIOCOUTQ) writes an int, which lives through the call.
        let asked = unsafe { libc::ioctl(peer.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        sending.rest.is_empty() && (asked != 0 || unread == 0)
    }

    fn let_go(&self, peer: Option<Arc<OwnedFd>>) {
        if let Some(peer) = peer {
            // Either may have forgotten it already.
            let _input = self.input.forget(peer.as_raw_fd());
            let _output = self.output.forget(peer.as_raw_fd());
        }
    }

    fn lose(&self, peer: &mut Option<Arc<OwnedFd>>) {
        self.up.store(false, Ordering::Release);
        if let Some(peer) = peer {
            // Others may hold duplicates, and have to see that it is over.
            // SAFETY: takes no pointers.
            unsafe { libc::shutdown(peer.as_raw_fd(), libc::SHUT_RDWR) };
        }
        self.let_go(peer.take());
    }
}

impl Receiving {
    /// The next whole frame: from where to where.
    fn next(&mut self) -> io::Result<Option<(usize, usize)>> {
        let Some(prefix) = self.buffer[self.start..self.end].first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > MAX_FRAME_BYTES {
            // Where the next frame begins, nobody knows any more.
            return Err(io::ErrorKind::InvalidData.into());
        }
        let from = self.start + LENGTH_BYTES;
        if from + len > self.end {
            return Ok(None);
        }
        self.start = from + len;
        Ok(Some((from, self.start)))
    }

    /// Reads what is there; an error that passes means nothing is.
    fn read(&mut self) -> io::Result<()> {
        let Some(peer) = &self.peer else { return Err(io::ErrorKind::WouldBlock.into()) };
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match Socket(peer.as_raw_fd()).read(&mut self.buffer[self.end..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => {
                self.end += len;
                Ok(())
            }
        }
    }

    fn receive(&mut self) -> io::Result<(usize, usize)> {
        loop {
            if let Some(span) = self.next()? {
                return Ok(span);
            }
            self.read()?;
        }
    }
}

struct Socket(RawFd);

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and the length are those of a live slice.
        moved(unsafe { libc::recv(self.0, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) })
    }
}

impl Sending {
    /// Sends what is left of the frame before; false while the peer does not take it.
    fn flush(&mut self) -> io::Result<bool> {
        let Some(peer) = &self.peer else { return Ok(true) };
        while !self.rest.is_empty() {
            match send(peer, &[vector(&self.rest)]) {
                Ok(len) => drop(self.rest.drain(..len)),
                Err(error) if is_passing(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        if self.peer.is_none() {
            return Ok(Sent::Dropped);
        }
        if !self.flush()? {
            return Ok(Sent::Later);
        }
        let Some(peer) = &self.peer else { return Ok(Sent::Dropped) };
        let length = (bytes.len() as u32).to_be_bytes();
        let taken = match send(peer, &[vector(&length), vector(bytes)]) {
            Ok(len) => len,
            Err(error) if is_passing(&error) => return Ok(Sent::Later),
            Err(error) => return Err(error),
        };
        let whole = length.iter().chain(bytes);
        self.rest.extend(whole.skip(taken));
        Ok(if self.rest.is_empty() { Sent::Done } else { Sent::Begun })
    }
}

fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn send(peer: &OwnedFd, vectors: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: all zeros is a message without name, vectors and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len();
    // SAFETY: the message refers to live vectors of live slices, which are only read.
    moved(unsafe { libc::sendmsg(peer.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

impl Link for StreamLink {
    fn takes(&self) -> Offloads {
        Offloads { jumbo: self.jumbo, ..Offloads::default() }
    }

    fn send(&self, _queue: usize, frame: &Frame) -> Sent {
        let mut sending = lock(&self.sending);
        sending.send(frame.bytes()).unwrap_or_else(|_gone| {
            self.lose(&mut sending.peer);
            Sent::Dropped
        })
    }

    fn flush(&self, _queue: usize) -> bool {
        let mut sending = lock(&self.sending);
        sending.flush().unwrap_or_else(|_gone| {
            self.lose(&mut sending.peer);
            true
        })
    }

    fn receive(&self, queue: usize, frame: &mut Frame) -> bool {
        if queue != 0 {
            return false;
        }
        let mut receiving = lock(&self.receiving);
        match receiving.receive() {
            Ok((from, to)) => {
                let flags = if self.verified { crate::net::header::DATA_VALID } else { 0 };
                frame.copy_from(Header { flags, ..Header::default() }, &receiving.buffer[from..to]);
                true
            }
            Err(error) if is_passing(&error) => false,
            Err(_gone) => {
                self.lose(&mut receiving.peer);
                false
            }
        }
    }

    fn readable(&self, queue: usize) -> Option<RawFd> {
        (queue == 0).then(|| self.input.as_raw_fd())
    }

    fn writable(&self) -> Option<(RawFd, libc::c_short)> {
        Some((self.output.as_raw_fd(), libc::POLLIN))
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connected() -> (StreamLink, UnixStream) {
        let link = StreamLink::new(false).expect("a link");
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        link.attach(ours.into()).expect("attached");
        (link, theirs)
    }

    fn received(link: &StreamLink) -> Option<Vec<u8>> {
        let mut frame = Frame::default();
        link.receive(0, &mut frame).then(|| frame.bytes().to_vec())
    }

    #[test]
    fn frame_in_two_parts_is_received_when_it_is_whole() {
        let (link, mut peer) = connected();
        peer.write_all(&[0, 0, 0, 3, 1, 2]).expect("sent");
        assert_eq!(received(&link), None);
        peer.write_all(&[3, 0, 0, 0, 1, 9]).expect("sent");
        assert_eq!(received(&link), Some(vec![1, 2, 3]));
        assert_eq!(received(&link), Some(vec![9]));
        assert_eq!(received(&link), None);
        assert!(link.is_up());
    }

    #[test]
    fn frame_of_impossible_length_ends_the_connection() {
        let (link, mut peer) = connected();
        peer.write_all(&[0xff; 64]).expect("sent");
        assert_eq!(received(&link), None);
        assert!(!link.is_up());
        assert_eq!(link.send(0, &Frame::exact(Header::default(), &[0; 60])), Sent::Dropped);
    }

    #[test]
    fn peer_that_reads_slowly_gets_every_frame_whole() {
        let (link, mut peer) = connected();
        peer.set_nonblocking(true).expect("nonblocking");
        let frame = Frame::exact(Header::default(), &[7; 60_000]);
        let mut sent = 0;
        let last = loop {
            sent += 1;
            match link.send(0, &frame) {
                Sent::Done => {}
                other => break other,
            }
        };
        sent -= usize::from(last == Sent::Later);
        let mut got = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        while got.len() < sent * 60_004 {
            match peer.read(&mut buffer) {
                Ok(len) => got.extend_from_slice(&buffer[..len]),
                Err(_) => assert!(link.flush(0)),
            }
        }
        assert!(sent > 1);
        assert!(got.chunks(60_004).all(|frame| frame[..4] == 60_000u32.to_be_bytes() && frame[60_003] == 7));
    }

    #[test]
    fn peer_that_dies_can_be_replaced() {
        let (link, peer) = connected();
        drop(peer);
        assert_eq!(received(&link), None);
        assert!(!link.is_up());
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        link.attach(ours.into()).expect("attached");
        theirs.write_all(&[0, 0, 0, 1, 5]).expect("sent");
        assert_eq!(received(&link), Some(vec![5]));
    }
}
