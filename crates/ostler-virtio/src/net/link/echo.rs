//! Answers pings (RFC 792) at a gateway that is nobody's: passt has none of its own to answer them.

use crate::net::checksum;
use crate::net::frame::{self, Network};

const ICMP: u8 = 1;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ICMP_HEADER_BYTES: usize = 8;
const FRAGMENT: u16 = 0x3fff;

/// The frame that answers `request`, if that is a whole ping of `gateway`.
pub fn reply(request: &[u8], gateway: [u8; 4]) -> Option<Vec<u8>> {
    let Network::V4(at) = frame::network(request)? else { return None };
    let header = request.get(at..at + 20)?;
    let header_bytes = 4 * usize::from(header[0] & 0xf);
    let bytes = usize::from(frame::word(header, 2)?);
    let whole = frame::word(header, 6)? & FRAGMENT == 0;
    if header[0] >> 4 != 4 || header_bytes < 20 || header[9] != ICMP || !whole || header[16..20] != gateway {
        return None;
    }
    let icmp = at + header_bytes;
    let packet = request.get(..at + bytes).filter(|packet| packet.len() >= icmp + ICMP_HEADER_BYTES)?;
    if packet[icmp..icmp + 2] != [ECHO_REQUEST, 0] || checksum::sum(&packet[icmp..], 0) != 0xffff {
        return None;
    }
    let mut reply = packet.to_vec();
    reply[..6].copy_from_slice(&packet[6..12]);
    reply[6..12].copy_from_slice(&packet[..6]);
    reply[at + 12..at + 16].copy_from_slice(&packet[at + 16..at + 20]);
    reply[at + 16..at + 20].copy_from_slice(&packet[at + 12..at + 16]);
    reply[icmp] = ECHO_REPLY;
    frame::set_word(&mut reply, icmp + 2, 0);
    let sum = checksum::sum(&reply[icmp..], 0);
    frame::set_word(&mut reply, icmp + 2, !sum);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: [u8; 4] = [10, 0, 2, 2];

    fn ping() -> Vec<u8> {
        let mut bytes = vec![0; 34];
        bytes[..14].copy_from_slice(&[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0]);
        bytes[14..34].copy_from_slice(&[0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 1, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        bytes.extend([8, 0, 0, 0, 0, 7, 0, 1, b'p', b'i', b'n', b'g']);
        let sum = checksum::sum(&bytes[34..], 0);
        frame::set_word(&mut bytes, 36, !sum);
        // What fills up a short frame is no part of the packet.
        bytes.resize(60, 0xee);
        bytes
    }

    #[test]
    fn ping_of_the_gateway_is_answered_with_what_it_holds() {
        let reply = reply(&ping(), GATEWAY).expect("a reply");
        assert_eq!(reply[..12], [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
        assert_eq!(reply[26..34], [10, 0, 2, 2, 10, 0, 2, 15]);
        assert_eq!((reply[34], reply.len(), &reply[38..]), (0, 46, &ping()[38..46]));
        assert_eq!(checksum::sum(&reply[34..], 0), 0xffff);
    }

    #[test]
    fn what_is_no_whole_sound_ping_of_the_gateway_is_not_answered() {
        for (at, byte) in
            [(12, 9), (14, 0x65), (14, 0x44), (16, 0xff), (17, 24), (20, 0x20), (23, 17), (33, 3), (34, 0), (45, 0)]
        {
            let mut bytes = ping();
            bytes[at] = byte;
            assert_eq!(reply(&bytes, GATEWAY), None, "{byte:#x} at {at}");
        }
        for len in 0..46 {
            assert_eq!(reply(&ping()[..len], GATEWAY), None, "{len} bytes");
        }
    }
}
