//! Where a NIC's cable leads: to a tap device, a socket, or a switch in this process.

mod capture;
mod datagram;
mod echo;
mod handshake;
mod poller;
mod stream;
mod switch;
mod tap;

use std::fmt::Debug;
use std::os::fd::RawFd;

pub use capture::{Capture, CaptureLink};
pub use datagram::DatagramLink;
pub use handshake::HandshakeLink;
pub use poller::Poller;
pub use stream::StreamLink;
pub use switch::{Switch, SwitchPort};
pub use tap::TapLink;

use super::frame::Frame;
use super::offload::Offloads;

/// What became of a frame that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Done,
    /// It is lost, as on a cable that nobody has plugged in.
    Dropped,
    /// The other end took its beginning; `flush` sends the rest.
    Begun,
    /// Nothing of it was taken: it has to wait until `writable` is.
    Later,
}

/// The other end of a NIC's cable. Each queue is used by one thread at a time.
pub trait Link: Send + Sync + Debug {
    /// What may be left undone of a frame that is sent here.
    fn takes(&self) -> Offloads;

    /// Sends a frame that `takes` has been heeded for.
    fn send(&self, queue: usize, frame: &Frame) -> Sent;

    /// Sends the rest of a frame that was [`Sent::Begun`]; false while it has to wait.
    fn flush(&self, _queue: usize) -> bool {
        true
    }

    /// Fills `frame` with the next one that came in; false when there is none now.
    fn receive(&self, queue: usize, frame: &mut Frame) -> bool;

    /// What to wait for before `receive` has something: a descriptor to be readable.
    fn readable(&self, queue: usize) -> Option<RawFd>;

    /// What to wait for after [`Sent::Later`] or [`Sent::Begun`]: a descriptor and its `poll` events.
    fn writable(&self) -> Option<(RawFd, libc::c_short)> {
        None
    }

    /// Tells the other end what the guest's driver takes, where that makes a difference there.
    fn guest_takes(&self, _offloads: Offloads) {}

    /// Tells the other end how many pairs of queues the driver uses, where it spreads frames over them.
    fn use_pairs(&self, _pairs: usize) {}

    /// The other end is gone, where the link itself cannot tell, and does not come back.
    fn unplug(&self) {}

    /// Whether somebody is at the other end.
    fn is_up(&self) -> bool {
        true
    }
}
