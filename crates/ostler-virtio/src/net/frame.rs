//! An Ethernet frame on its way, and where its parts are.

use super::header::Header;

/// The longest frame: an IP packet of 64 KiB behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME_BYTES: usize = 65_535 + 18;
/// Two addresses and a type.
pub const ETHERNET_BYTES: usize = 14;

const VLAN_TYPES: [u16; 2] = [0x8100, 0x88a8];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Room for a frame, used again and again.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    room: Vec<u8>,
    len: usize,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("header", &self.header).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self { header: Header::default(), room: vec![0; MAX_FRAME_BYTES], len: 0 }
    }
}

impl Frame {
    /// A frame that has no more room than it needs.
    pub fn exact(header: Header, bytes: &[u8]) -> Self {
        Self { header, len: bytes.len(), room: bytes.to_vec() }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.room[..self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.room[..self.len]
    }

    /// All the room there is; what is put there counts after [`Self::set_len`].
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.room
    }

    /// Says how long the frame is; never more than there is room.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.room.len());
    }

    /// Becomes a copy; a frame too long for the room is cut.
    pub fn copy_from(&mut self, header: Header, bytes: &[u8]) {
        self.header = header;
        self.set_len(bytes.len());
        let len = self.len;
        self.room[..len].copy_from_slice(&bytes[..len]);
    }
}

/// The network protocol of a frame and where its header begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    V4(usize),
    V6(usize),
}

/// Finds the IP header behind Ethernet and up to two VLAN tags.
pub fn network(frame: &[u8]) -> Option<Network> {
    let mut at = 12;
    for _ in 0..3 {
        let kind = word(frame, at)?;
        at += 2;
        match kind {
            IPV4 => return Some(Network::V4(at)),
            IPV6 => return Some(Network::V6(at)),
            kind if VLAN_TYPES.contains(&kind) => at += 2,
            _ => return None,
        }
    }
    None
}

/// The VLAN a frame is in, if it carries a tag.
pub fn vlan(frame: &[u8]) -> Option<u16> {
    let tagged = word(frame, 12)? == VLAN_TYPES[0];
    tagged.then(|| word(frame, 14)).flatten().map(|tag| tag & 0xfff)
}

/// The big-endian word at `at`.
pub fn word(frame: &[u8], at: usize) -> Option<u16> {
    let bytes = frame.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

pub fn set_word(frame: &mut [u8], at: usize, value: u16) {
    if let Some(bytes) = frame.get_mut(at..at + 2) {
        bytes.copy_from_slice(&value.to_be_bytes());
    }
}
