//! What controllers look for inside of frames: checksums, tags, where headers are.

use ostler_virtio::net::frame::{self, Network};
use ostler_virtio::net::{Frame, MAX_FRAME_BYTES, checksum};

pub const IP_TCP: u8 = 6;
pub const IP_UDP: u8 = 17;
/// Shorter frames are filled up with zeros.
pub const MIN_FRAME_BYTES: usize = 60;
pub const CRC_BYTES: usize = 4;

/// The TCP segment or UDP datagram in a frame. `None` for anything else, fragments too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    pub network: Network,
    pub protocol: u8,
    /// Where it begins in the frame.
    pub start: usize,
    /// Its length, by the IP header.
    pub len: usize,
}

impl Transport {
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let network = frame::network(bytes)?;
        match network {
            Network::V4(at) => {
                let header = ipv4_header_bytes(bytes, at)?;
                let len = usize::from(frame::word(bytes, at + 2)?).checked_sub(header)?;
                let fragment = frame::word(bytes, at + 6)? & 0x3fff != 0;
                (!fragment).then_some(Self { network, protocol: *bytes.get(at + 9)?, start: at + header, len })
            }
            Network::V6(at) => {
                let len = frame::word(bytes, at + 4)?.into();
                Some(Self { network, protocol: *bytes.get(at + 6)?, start: at + 40, len })
            }
        }
        .filter(|found| found.start + found.len <= bytes.len())
    }

    /// The sum of the pseudo header, for `len` bytes behind it.
    pub fn pseudo(&self, bytes: &[u8], len: usize) -> u16 {
        let addresses = match self.network {
            Network::V4(at) => &bytes[at + 12..at + 20],
            Network::V6(at) => &bytes[at + 8..at + 40],
        };
        checksum::add(checksum::add(checksum::sum(addresses, 0), self.protocol.into()), len as u16)
    }

    /// Where in it the checksum is.
    pub fn checksum_offset(&self) -> Option<usize> {
        match self.protocol {
            IP_TCP => Some(16),
            IP_UDP => Some(6),
            _ => None,
        }
    }

    /// Whether the checksum is right; `None` when there is none.
    pub fn verifies(&self, bytes: &[u8]) -> Option<bool> {
        let field = frame::word(bytes, self.start + self.checksum_offset()?)?;
        if self.protocol == IP_UDP && field == 0 {
            return None;
        }
        let sum = checksum::sum(&bytes[self.start..self.start + self.len], self.pseudo(bytes, self.len));
        Some(sum == 0xffff)
    }
}

/// Bytes of the IPv4 header at `at`.
pub fn ipv4_header_bytes(bytes: &[u8], at: usize) -> Option<usize> {
    let words = usize::from(bytes.get(at)? & 0xf);
    (words >= 5 && at + 4 * words <= bytes.len()).then_some(4 * words)
}

/// Computes the IPv4 header's checksum anew.
pub fn set_ipv4_checksum(bytes: &mut [u8], at: usize) {
    if let Some(len) = ipv4_header_bytes(bytes, at) {
        frame::set_word(bytes, at + 10, 0);
        let sum = checksum::sum(&bytes[at..at + len], 0);
        frame::set_word(bytes, at + 10, !sum);
    }
}

/// The VLAN tag of a frame whose type is `kind`.
pub fn tag(bytes: &[u8], kind: u16) -> Option<u16> {
    (frame::word(bytes, 12)? == kind).then(|| frame::word(bytes, 14)).flatten()
}

/// Puts a VLAN tag behind the addresses.
pub fn insert_tag(frame: &mut Frame, kind: u16, tag: u16) -> Option<()> {
    let len = frame.bytes().len();
    if len + 4 > MAX_FRAME_BYTES {
        return None;
    }
    let room = frame.room();
    room.copy_within(12..len, 16);
    frame::set_word(room, 12, kind);
    frame::set_word(room, 14, tag);
    frame.set_len(len + 4);
    if frame.header.needs_csum() {
        frame.header.csum_start += 4;
        frame.header.hdr_len += 4;
    }
    Some(())
}

/// The Ethernet CRC of an address as Realtek's multicast hash has it: most significant bit first.
pub fn crc(address: &[u8; 6]) -> u32 {
    let bits = address.iter().flat_map(|byte| (0..8).map(move |bit| u32::from(byte >> bit & 1)));
    bits.fold(u32::MAX, |crc, bit| if crc >> 31 != bit { crc << 1 ^ 0x04c1_1db7 } else { crc << 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp() -> Vec<u8> {
        let mut bytes = vec![0; 14 + 20 + 8 + 4];
        bytes[12..14].copy_from_slice(&[8, 0]);
        (bytes[14], bytes[17], bytes[23]) = (0x45, 32, IP_UDP);
        bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[38..40].copy_from_slice(&[0, 12]);
        bytes[42..46].copy_from_slice(b"data");
        bytes
    }

    #[test]
    fn checksum_of_a_datagram_is_verified() {
        let mut bytes = udp();
        let found = Transport::of(&bytes).expect("a datagram");
        assert_eq!((found.start, found.len, found.verifies(&bytes)), (34, 12, None));
        let sum = checksum::sum(&bytes[34..46], found.pseudo(&bytes, 12));
        frame::set_word(&mut bytes, 40, !sum);
        assert_eq!(found.verifies(&bytes), Some(true));
        bytes[45] ^= 1;
        assert_eq!(found.verifies(&bytes), Some(false));
        bytes[20] = 0x20;
        assert_eq!(Transport::of(&bytes), None, "a fragment");
        (bytes[20], bytes[17]) = (0, 33);
        assert_eq!(Transport::of(&bytes), None, "longer than its frame");
    }

    #[test]
    fn multicast_hash_is_that_of_the_data_sheet() {
        // All-hosts and all-nodes, as Linux's drivers compute them: ether_crc(addr) >> 26.
        assert_eq!(crc(&[0x01, 0x00, 0x5e, 0x00, 0x00, 0x01]) >> 26, 0x1f);
    }

    #[test]
    fn ipv4_checksum_set_verifies() {
        let mut bytes = udp();
        set_ipv4_checksum(&mut bytes, 14);
        assert_eq!(checksum::sum(&bytes[14..34], 0), 0xffff);
        bytes[14] = 0x4f;
        set_ipv4_checksum(&mut bytes, 14);
    }
}
