//! `struct virtio_net_hdr` (virtio 1.2, section 5.1.6): what of a frame is left to others.
//!
//! All fields are little-endian, also where the kernel's tap devices use it: the devices are told
//! so. A header from a guest is checked against its frame before anything is done by it.

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is yet to be computed.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum has been verified.
pub const DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_*`.
pub const GSO_NONE: u8 = 0;
pub const GSO_TCPV4: u8 = 1;
pub const GSO_TCPV6: u8 = 4;
pub const GSO_UDP_L4: u8 = 5;
/// Beside `GSO_TCPV4` or `GSO_TCPV6`: the segment has congestion marks.
pub const GSO_ECN: u8 = 0x80;

/// Bytes of the header, with `num_buffers`.
pub const HEADER_BYTES: usize = 12;
/// With the hash and its type after it (`VIRTIO_NET_F_HASH_REPORT`).
pub const HASHED_HEADER_BYTES: usize = 20;

/// The header without `num_buffers`, which only says how a frame lies on a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl Header {
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    pub fn bytes(self, num_buffers: u16) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, num_buffers];
        for (at, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn needs_csum(self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// The kind of segmentation, without the congestion mark.
    pub fn gso_kind(self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// Whether a frame of `len` bytes can have this header.
    pub fn fits(self, len: usize) -> bool {
        let checksum_end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        let checksum = !self.needs_csum() || checksum_end <= len;
        let segments = match self.gso_kind() {
            GSO_NONE => self.gso_type == GSO_NONE,
            GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4 => self.gso_size != 0 && self.needs_csum(),
            _ => false,
        };
        checksum && segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_written_reads_back_the_same() {
        let header = Header { flags: 1, gso_type: 0x81, hdr_len: 66, gso_size: 1448, csum_start: 34, csum_offset: 16 };
        assert_eq!(Header::parse(&header.bytes(3)), header);
        assert_eq!(header.bytes(3)[10..], [3, 0]);
    }

    #[test]
    fn header_that_points_past_its_frame_does_not_fit() {
        let header = Header { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Header::default() };
        assert!(header.fits(52));
        assert!(!header.fits(51));
        assert!(!Header { gso_type: GSO_TCPV4, gso_size: 0, ..header }.fits(52));
        assert!(!Header { gso_type: GSO_ECN, ..header }.fits(52));
        assert!(!Header { gso_type: 3, gso_size: 1000, ..header }.fits(52));
        assert!(!Header { flags: 0, gso_type: GSO_TCPV4, gso_size: 1000, ..header }.fits(52));
    }
}
