//! What an Ethernet controller is to the card that carries it.

use std::fmt::Debug;
use std::time::Instant;

use ostler_memory::GuestMap;
use ostler_virtio::net::Frame;

/// What an access has given the card's thread to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Nothing,
    /// There may be frames to send.
    Transmit,
    /// There may be room for frames.
    Receive,
    /// Everything may be different.
    Anything,
}

/// What became of a frame that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Taken,
    /// It is not for this card, as the driver has set its filters.
    Refused,
    /// It is longer than the driver takes.
    TooLong,
    /// It has to wait for the driver to make room.
    NoRoom,
}

/// A chip's state by the names of its parts, as words.
pub type Saved = Vec<(&'static str, Vec<u32>)>;

/// A saved state that this chip cannot have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no state of this chip: {0}")]
pub struct BadState(pub &'static str);

/// The part `name` of a saved state.
pub(crate) fn part<'s>(
    saved: &'s [(String, Vec<u32>)],
    name: &'static str,
    wanted: impl Fn(usize) -> bool,
) -> Result<&'s [u32], BadState> {
    let found = saved.iter().find(|(of, _)| of == name).map(|(_, words)| words.as_slice());
    found.filter(|words| wanted(words.len())).ok_or(BadState(name))
}

/// Registers, descriptor rings, and the link as the driver sees it.
pub trait Chip: Send + Debug {
    /// A load of `size` bytes (1, 2, 4 or 8) at `offset` of base address register `bar`.
    fn read(&mut self, bar: u8, offset: u64, size: usize) -> u64;

    /// A store there.
    fn write(&mut self, bar: u8, offset: u64, size: usize, value: u64) -> Work;

    /// Fills `frame` with the next one that the driver wants sent; false when there is none.
    fn take_frame(&mut self, map: &GuestMap, frame: &mut Frame) -> bool;

    /// The frame that was taken is on its way, or lost: the driver gets its buffers back.
    fn frame_sent(&mut self, map: &GuestMap);

    /// Whether the driver receives and has room for some frame.
    fn has_room(&self, map: &GuestMap) -> bool;

    /// Hands the driver a frame, complete with its checksums.
    fn deliver(&mut self, map: &GuestMap, frame: &[u8]) -> Delivery;

    /// Whether the driver makes room without an access that would tell.
    fn makes_room_silently(&self) -> bool {
        false
    }

    /// The level of the interrupt pin.
    fn interrupting(&mut self, now: Instant) -> bool;

    /// When the pin's level will change by itself.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// The cable has a carrier or has lost it.
    fn set_link(&mut self, up: bool);

    /// The state after power-up.
    fn reset(&mut self);

    fn save(&self) -> Saved;

    /// Takes a saved state; on an error nothing has changed.
    fn load(&mut self, saved: &[(String, Vec<u32>)]) -> Result<(), BadState>;
}
