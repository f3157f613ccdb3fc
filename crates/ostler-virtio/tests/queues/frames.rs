//! Frames between a network card's link and the buffers of its driver.

use std::sync::Arc;

use ostler_virtio::net::{Frame, HEADER_BYTES, Header, Link, Mac, Nic, ReceiveService, Switch, TransmitService};
use ostler_virtio::net::{checksum, features};
use ostler_virtio::{Chain, Outcome, Segment, Service};

use crate::driver::{DATA, Driver};

const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];
const BUFFER: u64 = DATA + 0x10_0000;
const BUFFER_BYTES: usize = 1000;
const HASHED_HEADER_BYTES: usize = 20;
const NEEDS_CSUM: u8 = 1;
const TCP4: u8 = 1;
const TCP_CHECKSUM: usize = 34 + 16;

fn card(negotiated: u64) -> (Arc<Nic>, Arc<dyn Link>) {
    let switch = Arc::new(Switch::default());
    let nic = Arc::new(Nic::new(switch.port().expect("a port"), MAC, 1));
    nic.negotiate(negotiated);
    (nic, switch.port().expect("a port"))
}

fn plain(payload: usize) -> Vec<u8> {
    let head = [&MAC[..], &[2, 0, 0, 0, 0, 7], &[0x88, 0xb5]].concat();
    [head, (0..payload).map(|at| at as u8).collect()].concat()
}

/// A TCP segment over IPv4 whose checksum and segmentation are yet to be done.
fn segment(payload: usize) -> Frame {
    let mut bytes = vec![0x5a; 54 + payload];
    bytes[..14].copy_from_slice(&plain(0));
    bytes[12..14].copy_from_slice(&[8, 0]);
    let len = (40 + payload) as u16;
    bytes[14..34].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes[16..18].copy_from_slice(&len.to_be_bytes());
    bytes[34..54].copy_from_slice(&[0, 7, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    let pseudo = pseudo(&bytes);
    bytes[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
    let gso_type = if payload > 1000 { TCP4 } else { 0 };
    let header = Header { flags: NEEDS_CSUM, gso_type, hdr_len: 54, gso_size: 1000, csum_start: 34, csum_offset: 16 };
    Frame::exact(header, &bytes)
}

fn pseudo(bytes: &[u8]) -> u16 {
    let len = (bytes.len() - 34) as u16;
    checksum::sum(&[&bytes[26..34], &[0, 6], &len.to_be_bytes()].concat(), 0)
}

/// Whether a TCP segment has the right checksum.
fn verifies(bytes: &[u8]) -> bool {
    checksum::sum(&bytes[34..], pseudo(bytes)) == 0xffff
}

fn writable(buffer: u64, len: usize) -> Chain {
    let mut chain = Chain { slots: 1, ..Chain::default() };
    chain.writable.push(Segment { gpa: buffer, len: len as u32 });
    chain
}

/// Lets the card fill buffers of `room` bytes until there is nothing more to deliver: what became
/// of each, and what is in it.
fn received(nic: &Arc<Nic>, room: usize) -> Vec<(Outcome, Vec<u8>)> {
    let driver = Driver::new();
    let (mut service, map) = (ReceiveService::new(Arc::clone(nic), 0), driver.ram.map());
    let mut found = Vec::new();
    let buffers = (0..).map(|number| BUFFER + 0x1_0000 * number);
    let outcomes = buffers.map(|at| (at, service.serve(&writable(at, room), &map).expect("sound buffers")));
    for (at, outcome) in outcomes.take(16) {
        if outcome == Outcome::Later {
            break;
        }
        found.push((outcome, at));
    }
    found.into_iter().map(|(outcome, at)| (outcome, driver.get(at, room))).collect()
}

fn count(buffer: &[u8]) -> u16 {
    u16::from_le_bytes([buffer[10], buffer[11]])
}

#[test]
fn frame_is_spread_over_mergeable_buffers_which_its_header_counts() {
    let (nic, link) = card(features::MRG_RXBUF);
    let bytes = plain(2500);
    link.send(0, &Frame::exact(Header::default(), &bytes));
    let found = received(&nic, BUFFER_BYTES);
    let last = HEADER_BYTES + bytes.len() - 2 * BUFFER_BYTES;
    let outcomes: Vec<_> = found.iter().map(|(outcome, _)| *outcome).collect();
    assert_eq!(outcomes, [Outcome::More, Outcome::More, Outcome::Done(last as u32)]);
    let all: Vec<u8> = found.iter().flat_map(|(_, buffer)| buffer.clone()).collect();
    assert_eq!(count(&all), 3);
    assert_eq!(all[HEADER_BYTES..HEADER_BYTES + bytes.len()], bytes);
}

#[test]
fn frame_in_one_buffer_says_so_and_one_too_long_is_dropped() {
    let (nic, link) = card(0);
    link.send(0, &Frame::exact(Header::default(), &plain(2500)));
    link.send(0, &Frame::exact(Header::default(), &plain(100)));
    let found = received(&nic, BUFFER_BYTES);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, Outcome::Done((HEADER_BYTES + 114) as u32));
    assert_eq!(count(&found[0].1), 1);
    assert_eq!(found[0].1[HEADER_BYTES..HEADER_BYTES + 114], plain(100));
}

#[test]
fn checksum_is_left_to_a_driver_that_takes_it_and_made_for_others() {
    for (negotiated, flags) in [(0, 0), (features::GUEST_CSUM, NEEDS_CSUM)] {
        let (nic, link) = card(negotiated);
        link.send(0, &segment(100));
        let found = received(&nic, 4096);
        assert_eq!(found.len(), 1);
        let buffer = &found[0].1;
        assert_eq!(buffer[0], flags);
        assert_eq!(buffer[1], 0, "no segmentation");
        assert_eq!(verifies(&buffer[HEADER_BYTES..HEADER_BYTES + 154]), flags == 0);
    }
}

#[test]
fn segments_are_left_whole_for_a_driver_that_takes_them_and_cut_for_others() {
    let (nic, link) = card(features::GUEST_CSUM | features::GUEST_TSO4);
    link.send(0, &segment(2500));
    let found = received(&nic, 4096);
    assert_eq!((found.len(), found[0].1[1]), (1, TCP4));
    assert_eq!(u16::from_le_bytes([found[0].1[4], found[0].1[5]]), 1000, "the segments' size");

    let (nic, link) = card(0);
    link.send(0, &segment(2500));
    let found = received(&nic, 4096);
    let lengths: Vec<_> = found.iter().map(|(outcome, _)| *outcome).collect();
    let whole = Outcome::Done((HEADER_BYTES + 1054) as u32);
    assert_eq!(lengths, [whole, whole, Outcome::Done((HEADER_BYTES + 554) as u32)]);
    for (outcome, buffer) in &found {
        let Outcome::Done(used) = outcome else { unreachable!() };
        assert_eq!(buffer[..2], [0, 0]);
        assert!(verifies(&buffer[HEADER_BYTES..*used as usize]));
    }
}

#[test]
fn hash_of_a_frame_is_reported_behind_its_header() {
    let (nic, link) = card(features::HASH_REPORT | features::MRG_RXBUF);
    link.send(0, &segment(100));
    let found = received(&nic, 4096);
    assert_eq!(found[0].0, Outcome::Done((HASHED_HEADER_BYTES + 154) as u32));
    let (hash, kind) = nic.settings().hash.report(&found[0].1[HASHED_HEADER_BYTES..HASHED_HEADER_BYTES + 154]);
    assert_eq!(found[0].1[12..16], hash.to_le_bytes());
    assert_eq!(found[0].1[16..18], kind.to_le_bytes());
}

#[test]
fn frame_sent_reaches_the_link_with_its_header_and_one_that_lies_does_not() {
    let (nic, link) = card(0);
    let driver = Driver::new();
    let map = driver.ram.map();
    let mut service = TransmitService::new(Arc::clone(&nic), 0);
    let sent = segment(2500);
    for start in [sent.header.csum_start, 9000] {
        let header = Header { csum_start: start, ..sent.header }.bytes(0);
        driver.put(DATA, &[&header[..], sent.bytes()].concat());
        let mut chain = Chain { slots: 1, ..Chain::default() };
        chain.readable.push(Segment { gpa: DATA, len: (HEADER_BYTES + sent.bytes().len()) as u32 });
        // Used without a byte written (section 5.1.6.2).
        assert_eq!(service.serve(&chain, &map), Ok(Outcome::Done(0)));
    }
    let mut taken = Frame::default();
    assert!(link.receive(0, &mut taken));
    assert_eq!((taken.bytes(), taken.header), (sent.bytes(), sent.header));
    assert!(!link.receive(0, &mut taken));
}
