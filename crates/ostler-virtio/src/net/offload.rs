//! Does in software what the next one on a frame's way does not do: checksums, segmentation.

use std::collections::VecDeque;

use super::checksum;
use super::frame::{self, Frame, Network};
use super::header::{self, DATA_VALID, Header};

/// A driver may ask for tiny segments; it does not get more than this many of one frame. Linux's
/// smallest segment, 48 bytes, stays below.
const MAX_SEGMENTS: usize = 2048;

/// What of a frame may be left undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    pub checksum: bool,
    pub tcp4: bool,
    pub tcp6: bool,
    pub ecn: bool,
    pub udp: bool,
    /// Frames of any length are taken as they are: nothing needs to be cut.
    pub jumbo: bool,
}

impl Offloads {
    pub const ALL: Self = Self { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: true, jumbo: true };

    fn takes_segments(self, header: Header) -> bool {
        let kind = match header.gso_kind() {
            header::GSO_TCPV4 => self.tcp4,
            header::GSO_TCPV6 => self.tcp6,
            header::GSO_UDP_L4 => self.udp,
            _ => true,
        };
        kind && self.checksum && (self.ecn || header.gso_type & header::GSO_ECN == 0)
    }
}

/// Brings `frame`, whose header fits it, into a form that `next` takes.
///
/// What has to be cut goes to `pieces`, and `frame` is left as it was; true when that was the case.
/// `None`: the header says what the frame is not, so it is dropped.
pub fn adapt(frame: &mut Frame, next: Offloads, pieces: &mut VecDeque<Frame>) -> Option<bool> {
    let header = frame.header;
    if header.gso_kind() != header::GSO_NONE && !next.takes_segments(header) && !next.jumbo {
        return cut(header, frame.bytes(), pieces).map(|()| true);
    }
    if !next.takes_segments(header) {
        frame.header.gso_type = header::GSO_NONE;
        frame.header.gso_size = 0;
    }
    if !next.checksum {
        finish_checksum(frame)?;
    }
    Some(false)
}

fn finish_checksum(frame: &mut Frame) -> Option<()> {
    let header = frame.header;
    // What a segmented frame's kind says is gone with it, as is that the checksum was looked at.
    frame.header = Header::default();
    if header.needs_csum() {
        let (start, offset) = (header.csum_start.into(), header.csum_offset.into());
        return checksum::complete(frame.bytes_mut(), start, offset).then_some(());
    }
    frame.header.flags &= !DATA_VALID;
    Some(())
}

/// Where the parts of a frame to be cut are.
struct Plan {
    network: Network,
    transport: usize,
    payload: usize,
    is_udp: bool,
    checksum_offset: usize,
}

impl Plan {
    fn make(header: Header, bytes: &[u8]) -> Option<Self> {
        let transport = usize::from(header.csum_start);
        let network = frame::network(bytes)?;
        let (at, least) = match network {
            Network::V4(at) => (at, 20),
            Network::V6(at) => (at, 40),
        };
        let is_udp = header.gso_kind() == header::GSO_UDP_L4;
        let payload = if is_udp { transport + 8 } else { transport + tcp_header_bytes(bytes, transport)? };
        let sound = transport >= at + least
            && payload < bytes.len()
            && usize::from(header.csum_offset) == if is_udp { 6 } else { 16 };
        sound.then_some(Self { network, transport, payload, is_udp, checksum_offset: header.csum_offset.into() })
    }
}

fn tcp_header_bytes(bytes: &[u8], transport: usize) -> Option<usize> {
    let words = bytes.get(transport + 12)? >> 4;
    (words >= 5).then_some(usize::from(words) * 4)
}

fn cut(header: Header, bytes: &[u8], pieces: &mut VecDeque<Frame>) -> Option<()> {
    let plan = Plan::make(header, bytes)?;
    let size = usize::from(header.gso_size);
    let (headers, payload) = bytes.split_at(plan.payload);
    let count = payload.len().div_ceil(size);
    if count > MAX_SEGMENTS {
        return None;
    }
    for (number, part) in payload.chunks(size).enumerate() {
        let mut piece = [headers, part].concat();
        let place = Place { number, offset: number * size, last: number + 1 == count };
        finish_piece(&plan, &mut piece, bytes.len(), place)?;
        pieces.push_back(Frame::exact(Header::default(), &piece));
    }
    Some(())
}

/// A piece's place in the frame it was cut from.
struct Place {
    number: usize,
    offset: usize,
    last: bool,
}

/// Corrects lengths, numbers and checksums of a piece.
fn finish_piece(plan: &Plan, piece: &mut [u8], whole_len: usize, place: Place) -> Option<()> {
    finish_network(plan.network, piece, place.number);
    let transport_len = (piece.len() - plan.transport) as u16;
    if plan.is_udp {
        frame::set_word(piece, plan.transport + 4, transport_len);
    } else {
        finish_tcp(piece, plan.transport, &place);
    }
    // The field holds the sum of the pseudo-header, which has the transport's length in it.
    let field = plan.transport + plan.checksum_offset;
    let pseudo = frame::word(piece, field)?;
    let without_len = checksum::add(pseudo, !((whole_len - plan.transport) as u16));
    frame::set_word(piece, field, checksum::add(without_len, transport_len));
    checksum::complete(piece, plan.transport, plan.checksum_offset).then_some(())
}

fn finish_network(network: Network, piece: &mut [u8], number: usize) {
    match network {
        Network::V4(at) => {
            let header_bytes = usize::from(piece[at] & 15) * 4;
            frame::set_word(piece, at + 2, (piece.len() - at) as u16);
            let id = frame::word(piece, at + 4).unwrap_or(0);
            frame::set_word(piece, at + 4, id.wrapping_add(number as u16));
            frame::set_word(piece, at + 10, 0);
            let end = (at + header_bytes).min(piece.len());
            let sum = !checksum::sum(&piece[at..end], 0);
            frame::set_word(piece, at + 10, sum);
        }
        Network::V6(at) => frame::set_word(piece, at + 4, (piece.len() - at - 40) as u16),
    }
}

const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

fn finish_tcp(piece: &mut [u8], transport: usize, place: &Place) {
    let at = transport + 4;
    let sequence = u32::from_be_bytes([piece[at], piece[at + 1], piece[at + 2], piece[at + 3]]);
    piece[at..at + 4].copy_from_slice(&sequence.wrapping_add(place.offset as u32).to_be_bytes());
    if !place.last {
        piece[transport + 13] &= !FIN_PSH;
    }
    if place.number != 0 {
        piece[transport + 13] &= !CWR;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP frame with `payload` bytes whose checksum field has the pseudo-header's sum.
    fn tcp4(payload: usize) -> (Header, Vec<u8>) {
        let mut bytes = vec![0; 54 + payload];
        bytes[12..14].copy_from_slice(&[8, 0]);
        bytes[14] = 0x45;
        frame::set_word(&mut bytes, 16, (40 + payload) as u16);
        (bytes[22], bytes[23]) = (64, 6);
        bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[38..42].copy_from_slice(&0xffff_fff0u32.to_be_bytes());
        (bytes[46], bytes[47]) = (0x50, 0x80 | 0x10 | 0x09);
        for (at, byte) in bytes[54..].iter_mut().enumerate() {
            *byte = at as u8;
        }
        let pseudo = pseudo4(&bytes, 20 + payload);
        frame::set_word(&mut bytes, 50, pseudo);
        let header = Header {
            flags: header::NEEDS_CSUM,
            gso_type: header::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 100,
            csum_start: 34,
            csum_offset: 16,
        };
        (header, bytes)
    }

    fn pseudo4(bytes: &[u8], transport_len: usize) -> u16 {
        let addresses = checksum::sum(&bytes[26..34], 0);
        checksum::add(checksum::add(addresses, 6), transport_len as u16)
    }

    fn verifies(piece: &[u8]) -> bool {
        let transport = checksum::sum(&piece[34..], pseudo4(piece, piece.len() - 34));
        checksum::sum(&piece[14..34], 0) == 0xffff && transport == 0xffff
    }

    #[test]
    fn tcp_frame_cut_gives_sound_segments_with_all_bytes() {
        let (header, bytes) = tcp4(250);
        let mut frame = Frame::exact(header, &bytes);
        let mut pieces = VecDeque::new();
        assert_eq!(adapt(&mut frame, Offloads::default(), &mut pieces), Some(true));
        let lengths: Vec<_> = pieces.iter().map(|piece| piece.bytes().len()).collect();
        assert_eq!(lengths, [154, 154, 104]);
        assert!(pieces.iter().all(|piece| verifies(piece.bytes())));
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes()[54..].to_vec()).collect();
        assert_eq!(joined, bytes[54..]);
        let flags: Vec<_> = pieces.iter().map(|piece| piece.bytes()[47]).collect();
        assert_eq!(flags, [0x90, 0x10, 0x19], "congestion mark first, FIN and PSH last");
        assert_eq!(pieces[1].bytes()[38..42], 0x54u32.to_be_bytes(), "the sequence number wraps");
    }

    #[test]
    fn tcp_frame_for_a_jumbo_link_stays_whole_with_its_checksum() {
        let (header, bytes) = tcp4(250);
        let mut frame = Frame::exact(header, &bytes);
        let next = Offloads { jumbo: true, ..Offloads::default() };
        assert_eq!(adapt(&mut frame, next, &mut VecDeque::new()), Some(false));
        assert_eq!(frame.header, Header::default());
        let transport = checksum::sum(&frame.bytes()[34..], pseudo4(frame.bytes(), 270));
        assert_eq!(transport, 0xffff);
    }

    #[test]
    fn frame_for_a_link_that_does_all_is_left_alone() {
        let (header, bytes) = tcp4(250);
        let mut frame = Frame::exact(header, &bytes);
        assert_eq!(adapt(&mut frame, Offloads::ALL, &mut VecDeque::new()), Some(false));
        assert_eq!((frame.header, frame.bytes()), (header, bytes.as_slice()));
    }

    #[test]
    fn headers_that_lie_drop_the_frame() {
        let (header, bytes) = tcp4(2500);
        for lie in [
            Header { csum_start: 20, ..header },
            Header { csum_start: 2540, csum_offset: 12, ..header },
            Header { gso_size: 1, ..header },
            Header { csum_offset: 6, ..header },
            Header { gso_type: header::GSO_UDP_L4, ..header },
        ] {
            let mut frame = Frame::exact(lie, &bytes);
            assert_eq!(adapt(&mut frame, Offloads::default(), &mut VecDeque::new()), None, "{lie:?}");
        }
    }
}
