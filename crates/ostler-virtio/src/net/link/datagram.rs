//! A datagram socket, unix or UDP, that is connected to its peer: one frame a datagram.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::poller::{moved, set_nonblocking};
use super::{Link, Sent};
use crate::net::frame::Frame;
use crate::net::header::Header;
use crate::net::offload::Offloads;

/// There is no connection to lose: a peer that is away may be there again at the next frame.
#[derive(Debug)]
pub struct DatagramLink {
    socket: OwnedFd,
}

impl DatagramLink {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&socket)?;
        Ok(Self { socket })
    }
}

impl Link for DatagramLink {
    fn takes(&self) -> Offloads {
        Offloads::default()
    }

    fn send(&self, _queue: usize, frame: &Frame) -> Sent {
        let (bytes, flags) = (frame.bytes(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        // SAFETY: the pointer and the length are those of a live slice.
        match moved(unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }) {
            Ok(_) => Sent::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Later,
            Err(_lost) => Sent::Dropped,
        }
    }

    fn receive(&self, queue: usize, frame: &mut Frame) -> bool {
        if queue != 0 {
            return false;
        }
        loop {
            let room = frame.room();
            let (base, len) = (room.as_mut_ptr().cast(), room.len());
            // SAFETY: the pointer and the length are those of a live slice.
            match moved(unsafe { libc::recv(self.socket.as_raw_fd(), base, len, libc::MSG_DONTWAIT) }) {
                Ok(len) => {
                    frame.header = Header::default();
                    frame.set_len(len);
                    return true;
                }
                // A connected UDP socket reports here that nobody listened to what was sent before.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => return false,
            }
        }
    }

    fn readable(&self, queue: usize) -> Option<RawFd> {
        (queue == 0).then(|| self.socket.as_raw_fd())
    }

    fn writable(&self) -> Option<(RawFd, libc::c_short)> {
        Some((self.socket.as_raw_fd(), libc::POLLOUT))
    }
}
