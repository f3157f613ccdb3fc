//! virtio-net (virtio 1.2, section 5.1): frames between a driver's rings and a host link.
//!
//! What crosses is a [`Frame`]: its bytes, and a [`Header`] that says what of it is yet to be done.
//! A frame is copied once between guest memory and ours, checked there, brought into the form that
//! the next one on its way takes ([`offload`]), and handed on.

pub mod checksum;
mod control;
mod filter;
pub mod frame;
mod hash;
pub mod header;
pub mod link;
mod nic;
pub mod offload;
mod receive;
mod transmit;
pub mod vhost;

pub use control::ControlService;
pub use filter::{Filter, Mac};
pub use frame::{Frame, MAX_FRAME_BYTES};
pub use hash::{HashConfig, KEY_BYTES, SUPPORTED_TYPES};
pub use header::{HEADER_BYTES, Header};
pub use link::{Capture, CaptureLink, DatagramLink, HandshakeLink, Link, StreamLink, Switch, SwitchPort, TapLink};
pub use nic::{Counters, Nic, Settings, features};
pub use receive::{ReceiveService, Receiver};
pub use transmit::{Sender, TransmitService};
pub use vhost::Vhost;
