//! The hash that is reported with a frame (virtio 1.2, sections 5.1.6.4.3 and 5.1.6.4.4): Toeplitz
//! over addresses and ports.

use super::frame::{self, Network};

/// Kinds of frames, as bits of `supported_hash_types`.
const IPV4: u32 = 1;
const TCPV4: u32 = 1 << 1;
const UDPV4: u32 = 1 << 2;
const IPV6: u32 = 1 << 3;
const TCPV6: u32 = 1 << 4;
const UDPV6: u32 = 1 << 5;
pub const SUPPORTED_TYPES: u32 = IPV4 | TCPV4 | UDPV4 | IPV6 | TCPV6 | UDPV6;
pub const KEY_BYTES: usize = 40;

/// `VIRTIO_NET_HASH_REPORT_*`: what a hash was computed over, or that there is none.
const REPORT_NONE: u16 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// More fragments follow, or this is not the first.
const FRAGMENT: u16 = 0x3fff;

/// What the driver wants hashed, and the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashConfig {
    pub types: u32,
    pub key: [u8; KEY_BYTES],
}

impl Default for HashConfig {
    fn default() -> Self {
        Self { types: 0, key: [0; KEY_BYTES] }
    }
}

impl HashConfig {
    /// `None` when the driver asks for what we do not have. A short key goes on with zeros.
    pub fn new(types: u32, key: &[u8]) -> Option<Self> {
        let mut config = Self { types, ..Self::default() };
        config.key.get_mut(..key.len())?.copy_from_slice(key);
        (types & !SUPPORTED_TYPES == 0).then_some(config)
    }

    /// The hash of a frame and the report's type.
    pub fn report(&self, frame: &[u8]) -> (u32, u16) {
        self.input(frame).map_or((0, REPORT_NONE), |(input, report)| (toeplitz(&self.key, &input), report))
    }

    fn input(&self, frame: &[u8]) -> Option<(Vec<u8>, u16)> {
        let (addresses, protocol, transport, types) = match frame::network(frame)? {
            Network::V4(at) => {
                let protocol = *frame.get(at + 9)?;
                let whole = frame::word(frame, at + 6)? & FRAGMENT == 0;
                let transport = at + usize::from(frame[at] & 15) * 4;
                let protocol = if whole { protocol } else { 0 };
                (frame.get(at + 12..at + 20)?, protocol, transport, [(TCPV4, 2), (UDPV4, 3), (IPV4, 1)])
            }
            Network::V6(at) => {
                let protocol = *frame.get(at + 6)?;
                (frame.get(at + 8..at + 40)?, protocol, at + 40, [(TCPV6, 5), (UDPV6, 6), (IPV6, 4)])
            }
        };
        let [tcp, udp, ip] = types;
        for (wanted, kind) in [(TCP, tcp), (UDP, udp)] {
            if protocol == wanted && self.types & kind.0 != 0 {
                let ports = frame.get(transport..transport + 4)?;
                return Some(([addresses, ports].concat(), kind.1));
            }
        }
        (self.types & ip.0 != 0).then(|| (addresses.to_vec(), ip.1))
    }
}

/// For every set bit of the input, the 32 bits of the key from that bit on are added in.
fn toeplitz(key: &[u8; KEY_BYTES], input: &[u8]) -> u32 {
    let mut window = u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
    let mut next = key[4..].iter().flat_map(|byte| (0..8).rev().map(move |bit| u32::from(byte >> bit & 1)));
    let mut hash = 0;
    for byte in input {
        for bit in (0..8).rev() {
            if byte >> bit & 1 != 0 {
                hash ^= window;
            }
            window = window << 1 | next.next().unwrap_or(0);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the results of Microsoft's "Verifying the RSS Hash Calculation".
    const KEY: [u8; KEY_BYTES] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    fn tcp4() -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[23] = TCP;
        frame[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
        frame[34..38].copy_from_slice(&[2794u16.to_be_bytes(), 1766u16.to_be_bytes()].concat());
        frame
    }

    #[test]
    fn hash_is_that_of_the_published_examples() {
        let config = HashConfig::new(IPV4 | TCPV4, &KEY).expect("supported");
        assert_eq!(config.report(&tcp4()), (0x51cc_c178, 2));
        let addresses_only = HashConfig::new(IPV4, &KEY).expect("supported");
        assert_eq!(addresses_only.report(&tcp4()), (0x323e_8fc2, 1));
    }

    #[test]
    fn frame_of_no_wanted_kind_has_no_hash() {
        let config = HashConfig::new(TCPV6, &KEY).expect("supported");
        assert_eq!(config.report(&tcp4()), (0, REPORT_NONE));
        assert_eq!(config.report(&[0; 9]), (0, REPORT_NONE));
        assert_eq!(HashConfig::new(1 << 9, &KEY), None);
        assert_eq!(HashConfig::new(IPV4, &[0; 41]), None);
    }
}
