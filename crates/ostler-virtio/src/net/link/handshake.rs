//! Completes TCP handshakes in place of a peer that forgets to: passt before October 2023.
//!
//! Such a passt acknowledges the guest's SYN-ACK with its client's first bytes only. Where the
//! guest is to speak first (SSH, SMTP, FTP), nobody ever does. So the acknowledgement that is due
//! (RFC 9293, section 3.5) is made here, and a peer that sends its own does no harm.
//!
//! Of what it reads at once, such a passt takes a SYN-ACK singly and then the rest of its connection
//! with the SYN-ACK once more, and counts below zero: it never comes back. So a SYN-ACK travels
//! alone: nothing is sent after it before the peer has read it.
//!
//! It has no gateway that could answer pings either; they are answered here.
//!
//! It also takes what Ethernet fills short frames up with for data. Cards fill them up, so what is
//! behind the IP packet of a short frame is cut off.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::poller::Poller;
use super::{Link, Sent, StreamLink, echo};
use crate::net::checksum;
use crate::net::frame::{self, Frame, Network};
use crate::net::header::{DATA_VALID, Header};
use crate::net::offload::Offloads;

/// Acknowledgements that wait for the guest; it repeats what the others were due for.
const MAX_WAITING: usize = 256;
/// How often it is looked whether the peer has read: about what its waking up takes.
const LOOK_EVERY: Duration = Duration::from_micros(100);

const TCP: u8 = 6;
/// Up to this, frames are filled up.
const SHORT_FRAME_BYTES: usize = 60;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const TCP_HEADER_BYTES: usize = 20;
const ACK: u8 = 0x10;
/// FIN, SYN, RST and ACK, and those of them that a SYN-ACK has.
const HANDSHAKE_FLAGS: u8 = 0x17;
const SYN_ACK: u8 = 0x12;
const WINDOW_SCALE: u8 = 3;
/// The window passt begins with, with its shift of 8 and without.
const SCALED_WINDOW: u16 = 256;
const PLAIN_WINDOW: u16 = 0xffff;

/// A link whose peer is spared the last step of a handshake.
#[derive(Debug)]
pub struct HandshakeLink {
    link: Arc<StreamLink>,
    /// Its pings are answered here.
    gateway: [u8; 4],
    waiting: Mutex<Waiting>,
    /// Readable while acknowledgements wait.
    news: EventFd,
    /// Readable while those or frames of the peer wait.
    input: Poller,
    /// The peer has not read the last SYN-ACK, as far as we know.
    alone: AtomicBool,
    /// Readable when it is time to look; never read, so that it wakes every queue.
    look: Mutex<TimerFd>,
    look_fd: RawFd,
}

/// Frames of ours for the guest.
#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Frame>,
    /// `news` was written to and not read since: each frame of the peer's would cost a call to find that out.
    told: bool,
}

impl HandshakeLink {
    /// A link to passt by `link`, with its gateway.
    pub fn new(link: Arc<StreamLink>, gateway: [u8; 4]) -> io::Result<Self> {
        let look = TimerFd::new()?;
        let (news, input) = (EventFd::new(EFD_NONBLOCK)?, Poller::new()?);
        input.watch(news.as_raw_fd(), libc::EPOLLIN)?;
        if let Some(fd) = link.readable(0) {
            input.watch(fd, libc::EPOLLIN)?;
        }
        let (alone, look_fd) = (AtomicBool::new(false), look.as_raw_fd());
        Ok(Self { link, gateway, waiting: Mutex::default(), news, input, alone, look: Mutex::new(look), look_fd })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the peer has yet to read a SYN-ACK; the timer says when to ask again.
    fn must_wait(&self) -> bool {
        if !self.alone.load(Ordering::Acquire) {
            return false;
        }
        if self.link.is_drained() {
            self.alone.store(false, Ordering::Release);
            return false;
        }
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        // It takes any interval; without it the next frame would be sent at once.
        look.reset(LOOK_EVERY, None).is_ok()
    }

    fn answer(&self, sent: &Frame) {
        let Some(bytes) = acknowledgement(sent.bytes()) else { return };
        self.alone.store(true, Ordering::Release);
        self.put(&bytes);
    }

    /// Has the guest receive a frame of ours.
    fn put(&self, bytes: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.frames.len() < MAX_WAITING {
            let header = Header { flags: DATA_VALID, ..Header::default() };
            waiting.frames.push_back(Frame::exact(header, bytes));
            waiting.told = true;
            // The counter cannot be full: it is read whenever nothing waits.
            let _full = self.news.write(1);
        }
    }

    fn next(&self) -> Option<Frame> {
        let mut waiting = self.waiting();
        let next = waiting.frames.pop_front();
        if next.is_none() && std::mem::take(&mut waiting.told) {
            // Under the lock: who answers next writes after this.
            let _empty = self.news.read();
        }
        next
    }
}

/// Where the packet in a frame ends that has been filled up; `None` when it has not.
fn packet_end(bytes: &[u8]) -> Option<usize> {
    if bytes.len() > SHORT_FRAME_BYTES {
        return None;
    }
    let (least, end) = match frame::network(bytes)? {
        Network::V4(at) => (at + IPV4_HEADER_BYTES, at + usize::from(frame::word(bytes, at + 2)?)),
        Network::V6(at) => (0, at + IPV6_HEADER_BYTES + usize::from(frame::word(bytes, at + 4)?)),
    };
    (least..bytes.len()).contains(&end).then_some(end)
}

impl Link for HandshakeLink {
    fn takes(&self) -> Offloads {
        self.link.takes()
    }

    fn send(&self, queue: usize, frame: &Frame) -> Sent {
        if let Some(reply) = echo::reply(frame.bytes(), self.gateway) {
            self.put(&reply);
            return Sent::Done;
        }
        if self.must_wait() {
            return Sent::Later;
        }
        let trimmed = packet_end(frame.bytes()).map(|end| Frame::exact(frame.header, &frame.bytes()[..end]));
        let frame = trimmed.as_ref().unwrap_or(frame);
        let sent = self.link.send(queue, frame);
        if matches!(sent, Sent::Done | Sent::Begun) {
            self.answer(frame);
        }
        sent
    }

    fn flush(&self, queue: usize) -> bool {
        self.link.flush(queue)
    }

    fn receive(&self, queue: usize, frame: &mut Frame) -> bool {
        if queue == 0
            && let Some(next) = self.next()
        {
            frame.copy_from(next.header, next.bytes());
            return true;
        }
        self.link.receive(queue, frame)
    }

    fn readable(&self, queue: usize) -> Option<RawFd> {
        if queue == 0 { Some(self.input.as_raw_fd()) } else { self.link.readable(queue) }
    }

    fn writable(&self) -> Option<(RawFd, libc::c_short)> {
        if self.alone.load(Ordering::Acquire) { Some((self.look_fd, libc::POLLIN)) } else { self.link.writable() }
    }

    fn guest_takes(&self, offloads: Offloads) {
        self.link.guest_takes(offloads);
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }
}

/// The frame that acknowledges `syn_ack`, if that is what it is.
fn acknowledgement(syn_ack: &[u8]) -> Option<Vec<u8>> {
    let (tcp, addresses) = match frame::network(syn_ack)? {
        Network::V4(at) => (tcp_in_v4(syn_ack, at)?, at + 12..at + 20),
        Network::V6(at) => (tcp_in_v6(syn_ack, at)?, at + 8..at + 40),
    };
    let segment = syn_ack.get(tcp..).filter(|segment| segment.len() >= TCP_HEADER_BYTES)?;
    if segment[13] & HANDSHAKE_FLAGS != SYN_ACK {
        return None;
    }
    let mut ack = [&syn_ack[..tcp], &turned_around(segment)].concat();
    exchange(&mut ack[..12], 6);
    exchange(&mut ack[addresses.clone()], addresses.len() / 2);
    set_lengths(&mut ack, addresses.start);
    let pseudo = checksum::add(checksum::sum(&ack[addresses], 0), (usize::from(TCP) + TCP_HEADER_BYTES) as u16);
    let sum = checksum::sum(&ack[tcp..], pseudo);
    frame::set_word(&mut ack, tcp + 16, !sum);
    Some(ack)
}

/// Where the TCP header of an unfragmented IPv4 packet begins.
fn tcp_in_v4(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..at + 20)?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let whole = frame::word(header, 6)? & 0x3fff == 0;
    (header[0] >> 4 == 4 && header_len >= 20 && whole && header[9] == TCP).then_some(at + header_len)
}

/// The same of an IPv6 packet without extension headers.
fn tcp_in_v6(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..at + 40)?;
    (header[0] >> 4 == 6 && header[6] == TCP).then_some(at + 40)
}

/// The header of the segment that answers `syn_ack`, without its checksum.
fn turned_around(syn_ack: &[u8]) -> [u8; TCP_HEADER_BYTES] {
    let mut ack = [0; TCP_HEADER_BYTES];
    ack[..2].copy_from_slice(&syn_ack[2..4]);
    ack[2..4].copy_from_slice(&syn_ack[..2]);
    ack[4..8].copy_from_slice(&syn_ack[8..12]);
    let sequence = u32::from_be_bytes([syn_ack[4], syn_ack[5], syn_ack[6], syn_ack[7]]);
    ack[8..12].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    (ack[12], ack[13]) = (5 << 4, ACK);
    let window = if has_window_scale(syn_ack) { SCALED_WINDOW } else { PLAIN_WINDOW };
    frame::set_word(&mut ack, 14, window);
    ack
}

fn has_window_scale(segment: &[u8]) -> bool {
    let end = usize::from(segment[12] >> 4) * 4;
    let mut options = segment.get(TCP_HEADER_BYTES..end).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = match (kind, rest.first()) {
            (&WINDOW_SCALE, _) => return true,
            (0, _) => return false,
            (1, _) => rest,
            (_, Some(&len)) if len >= 2 => options.get(usize::from(len)..).unwrap_or_default(),
            _ => return false,
        };
    }
    false
}

/// Exchanges the first `len` bytes with the `len` after them.
fn exchange(bytes: &mut [u8], len: usize) {
    let (first, second) = bytes.split_at_mut(len);
    first.swap_with_slice(second);
}

/// Writes the lengths and, for IPv4, the header's checksum of a packet with an empty TCP segment.
fn set_lengths(ack: &mut [u8], addresses: usize) {
    if let Some(Network::V4(at)) = frame::network(ack) {
        let (tcp, len) = (ack.len() - TCP_HEADER_BYTES, ack.len() - at);
        frame::set_word(ack, at + 2, len as u16);
        frame::set_word(ack, at + 10, 0);
        let sum = checksum::sum(&ack[at..tcp], 0);
        frame::set_word(ack, at + 10, !sum);
    } else {
        frame::set_word(ack, addresses - 4, TCP_HEADER_BYTES as u16);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A segment of TCP over IPv4 with `options`, whose checksums are left to others.
    fn v4(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 54];
        bytes[..12].copy_from_slice(&[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        bytes[12..14].copy_from_slice(&[8, 0]);
        bytes[14] = 0x45;
        (bytes[22], bytes[23]) = (64, TCP);
        bytes[26..34].copy_from_slice(&[10, 0, 2, 15, 10, 0, 2, 2]);
        segment(&mut bytes[34..], flags, options.len());
        [&bytes, options].concat()
    }

    fn v6(flags: u8) -> Vec<u8> {
        let mut bytes = vec![0; 74];
        bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        (bytes[14], bytes[20], bytes[21]) = (0x60, TCP, 64);
        (bytes[22], bytes[38]) = (0xfe, 0xfd);
        segment(&mut bytes[54..], flags, 0);
        bytes
    }

    fn segment(bytes: &mut [u8], flags: u8, options: usize) {
        bytes[..4].copy_from_slice(&[0, 22, 0xc0, 0]);
        bytes[4..8].copy_from_slice(&[0xff; 4]);
        bytes[8..12].copy_from_slice(&[9, 8, 7, 6]);
        (bytes[12], bytes[13]) = ((5 + options as u8 / 4) << 4, flags);
    }

    #[test]
    fn frame_filled_up_is_sent_without_what_is_behind_its_packet() {
        let mut padded = v4(ACK, &[]);
        padded[17] = 40;
        assert_eq!(packet_end(&padded), None);
        padded.resize(60, 0);
        assert_eq!(packet_end(&padded), Some(54));
        padded[17] = 46;
        assert_eq!(packet_end(&padded), None);
        padded[17] = 200;
        assert_eq!(packet_end(&padded), None, "a packet that is cut short is sent as it is");
        padded.resize(61, 0);
        assert_eq!(packet_end(&padded), None);
        assert_eq!(packet_end(&[0; 60]), None);
    }

    #[test]
    fn syn_ack_over_v4_is_acknowledged_with_sound_checksums() {
        let ack = acknowledgement(&v4(SYN_ACK, &[2, 4, 5, 0xb4, 1, 3, 3, 7])).expect("an answer");
        assert_eq!(ack.len(), 54);
        assert_eq!(ack[..12], [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
        assert_eq!(ack[16..18], [0, 40]);
        assert_eq!(ack[26..34], [10, 0, 2, 2, 10, 0, 2, 15]);
        assert_eq!(checksum::sum(&ack[14..34], 0), 0xffff);
        assert_eq!(ack[34..48], [0xc0, 0, 0, 22, 9, 8, 7, 6, 0, 0, 0, 0, 0x50, ACK]);
        assert_eq!(ack[48..50], SCALED_WINDOW.to_be_bytes());
        let pseudo = checksum::add(checksum::sum(&ack[26..34], 0), 26);
        assert_eq!(checksum::sum(&ack[34..], pseudo), 0xffff);
    }

    #[test]
    fn syn_ack_over_v6_is_acknowledged_with_a_sound_checksum() {
        let ack = acknowledgement(&v6(SYN_ACK)).expect("an answer");
        assert_eq!((ack[18], ack[19], ack[22], ack[38]), (0, 20, 0xfd, 0xfe));
        let pseudo = checksum::add(checksum::sum(&ack[22..54], 0), 26);
        assert_eq!(checksum::sum(&ack[54..], pseudo), 0xffff);
        assert_eq!(ack[68..70], PLAIN_WINDOW.to_be_bytes());
    }

    #[test]
    fn other_segments_fragments_and_short_frames_are_left_alone() {
        for flags in [0x02, 0x10, 0x14, 0x16, 0x18, 0x13] {
            assert_eq!(acknowledgement(&v4(flags, &[])), None, "{flags:#x}");
        }
        let mut fragment = v4(SYN_ACK, &[]);
        fragment[21] = 1;
        assert_eq!(acknowledgement(&fragment), None);
        let whole = v4(SYN_ACK, &[]);
        assert!((0..54).all(|len| acknowledgement(&whole[..len]).is_none()));
        let whole = v6(SYN_ACK);
        assert!((0..74).all(|len| acknowledgement(&whole[..len]).is_none()));
        for options in [[3, 0, 0, 0], [2, 0, 0, 0], [2, 40, 0, 0], [1, 1, 1, 2]] {
            assert!(acknowledgement(&v4(SYN_ACK, &options)).is_some(), "{options:?}");
        }
    }

    #[test]
    fn acknowledgements_are_received_and_bounded_in_number() {
        let (link, _peer) = connected();
        let mut frame = Frame::default();
        assert!(!link.receive(0, &mut frame));
        for _ in 0..2 * MAX_WAITING {
            link.answer(&Frame::exact(Header::default(), &v4(SYN_ACK, &[])));
        }
        let got = std::iter::from_fn(|| link.receive(0, &mut frame).then_some(())).count();
        assert_eq!(got, MAX_WAITING);
        assert_eq!(frame.bytes().len(), 54);
    }

    #[test]
    fn frame_after_a_syn_ack_waits_until_the_peer_has_read_that() {
        let (link, mut peer) = connected();
        let syn_ack = Frame::exact(Header::default(), &v4(SYN_ACK, &[]));
        let data = Frame::exact(Header::default(), &v4(0x18, &[]));
        assert_eq!(link.send(0, &data), Sent::Done);
        assert_eq!(link.send(0, &syn_ack), Sent::Done);
        assert_eq!(link.send(0, &data), Sent::Later);
        let (fd, events) = link.writable().expect("something to wait for");
        let mut entry = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: one entry, which lives through the call.
        assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 60_000) }, 1);
        assert_eq!(link.send(0, &data), Sent::Later);
        peer.read_exact(&mut [0; 2 * 58]).expect("two frames");
        assert_eq!(link.send(0, &data), Sent::Done);
        assert_eq!(link.send(0, &data), Sent::Done);
    }

    fn connected() -> (HandshakeLink, UnixStream) {
        let stream = Arc::new(StreamLink::new(true).expect("a link"));
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        stream.attach(ours.into()).expect("attached");
        (HandshakeLink::new(stream, [10, 0, 2, 2]).expect("a link"), theirs)
    }
}
