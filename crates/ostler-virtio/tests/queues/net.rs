//! The control queue of a network card, and cards whose driver writes anything anywhere.

use std::sync::Arc;

use ostler_virtio::ServedQueue;
use ostler_virtio::net::{ControlService, HEADER_BYTES, Header, Link, Nic, ReceiveService, Switch, TransmitService};
use ostler_virtio::net::{Frame, Mac, features};
use ostler_virtio::{Outcome, Ring, Service};

use crate::driver::{AVAIL, DATA, Driver, QUEUE_SIZE, RAM_BYTES, WRITE};
use crate::hostile::{Random, scramble, serve_bounded};

const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];
const OTHER: Mac = [0x52, 0x54, 0, 9, 9, 9];
const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ACK: u64 = DATA + 0x8000;
const OK: u8 = 0;
const ERR: u8 = 1;
const PAIRS: u16 = 4;
const ALL: u64 = features::CTRL_VQ
    | features::CTRL_RX
    | features::CTRL_VLAN
    | features::GUEST_ANNOUNCE
    | features::MQ
    | features::CTRL_MAC_ADDR
    | features::CTRL_GUEST_OFFLOADS
    | features::GUEST_CSUM
    | features::GUEST_TSO4
    | features::MRG_RXBUF
    | features::HASH_REPORT;
const ROUNDS: u64 = 20_000;

fn card(negotiated: u64) -> (Arc<Nic>, Arc<dyn Link>) {
    let switch = Arc::new(Switch::default());
    let nic = Arc::new(Nic::new(switch.port().expect("a port"), MAC, PAIRS));
    nic.negotiate(negotiated);
    (nic, switch.port().expect("a port"))
}

/// Has the driver send one command; the device's answer.
fn command(driver: &mut Driver, nic: &Arc<Nic>, bytes: &[u8]) -> u8 {
    driver.put(DATA, bytes);
    driver.put(ACK, &[0xee]);
    driver.lay(0, &[(DATA, bytes.len() as u32, 0), (ACK, 1, WRITE)]);
    let map = driver.ram.map();
    let mut ring = Ring::new(&driver.config, &map).expect("a ring");
    driver.set_avail_index(0);
    driver.offer(0);
    let chain = ring.pop(&map).expect("sound").expect("a chain");
    let done = ControlService(Arc::clone(nic)).serve(&chain, &map).expect("sound");
    assert_eq!(done, Outcome::Done(1));
    driver.get(ACK, 1)[0]
}

fn commands(nic: &Arc<Nic>, wanted: &[(&[u8], u8)]) {
    let mut driver = Driver::new();
    for (bytes, answer) in wanted {
        let before = nic.settings().clone();
        assert_eq!(command(&mut driver, nic, bytes), *answer, "{bytes:x?}");
        if *answer == ERR {
            assert_eq!(*nic.settings(), before, "{bytes:x?} was refused and changed something");
        }
    }
}

fn table(addresses: &[Mac]) -> Vec<u8> {
    [&(addresses.len() as u32).to_le_bytes()[..], &addresses.concat()].concat()
}

/// Which of a frame to us, to another, to a group and in VLAN 5 come through.
fn received(nic: &Arc<Nic>, link: &Arc<dyn Link>) -> [bool; 4] {
    let mut tagged = frame(MAC);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
    [frame(MAC), frame(OTHER), frame(GROUP), tagged].map(|bytes| {
        let mut receiver = ostler_virtio::net::Receiver::new(Arc::clone(nic), 0);
        link.send(0, &Frame::exact(Header::default(), &bytes));
        receiver.fetch()
    })
}

fn frame(destination: Mac) -> Vec<u8> {
    [&destination[..], &[2, 0, 0, 0, 0, 7], &[8, 0], &[0; 46]].concat()
}

#[test]
fn control_commands_set_what_the_card_lets_through() {
    let (nic, link) = card(ALL);
    assert_eq!(received(&nic, &link), [true, false, false, false]);
    commands(&nic, &[(&[2, 0, 5, 0], OK)]);
    assert_eq!(received(&nic, &link), [true, false, false, true], "VLAN 5");
    commands(&nic, &[(&[2, 1, 5, 0], OK), (&[0, 0, 1], OK)]);
    assert_eq!(received(&nic, &link), [true, true, true, false], "promiscuous");
    commands(&nic, &[(&[0, 0, 0], OK), (&[0, 1, 1], OK)]);
    assert_eq!(received(&nic, &link), [true, false, true, false], "all groups");
    let tables = [&[1, 0][..], &table(&[OTHER]), &table(&[])].concat();
    commands(&nic, &[(&[0, 1, 0], OK), (&tables, OK)]);
    assert_eq!(received(&nic, &link), [true, true, false, false], "a second address");
    commands(&nic, &[(&[&[1, 1][..], &OTHER].concat(), OK), (&[&[1, 0][..], &table(&[]), &table(&[])].concat(), OK)]);
    assert_eq!(received(&nic, &link), [false, true, false, false], "a new address");
}

#[test]
fn control_commands_set_queues_offloads_and_the_announcement() {
    let (nic, _link) = card(ALL);
    nic.set_announcing(true);
    let offloads = features::GUEST_CSUM.to_le_bytes();
    commands(&nic, &[(&[4, 0, 4, 0], OK), (&[3, 0], OK), (&[&[5, 0][..], &offloads].concat(), OK)]);
    assert_eq!(nic.settings().pairs, 4);
    assert!(!nic.announcing());
    assert!(nic.guest_takes().checksum);
    assert!(!nic.guest_takes().tcp4);
}

#[test]
fn control_commands_that_cannot_be_are_refused_and_change_nothing() {
    let (nic, _link) = card(ALL);
    let many = [&[1, 0][..], &u32::MAX.to_le_bytes(), &[0; 12]].concat();
    commands(
        &nic,
        &[
            (&[0], ERR),
            (&[0, 0], ERR),
            (&[0, 6, 1], ERR),
            (&[1, 0, 1, 0, 0, 0, 1], ERR),
            (&many, ERR),
            (&[1, 1, 1, 2, 3], ERR),
            (&[1, 2, 1, 2, 3, 4, 5, 6], ERR),
            (&[2, 0, 0, 0x10], ERR),
            (&[2, 2, 1, 0], ERR),
            (&[3, 1], ERR),
            (&[4, 0, 0, 0], ERR),
            (&[4, 0, 5, 0], ERR),
            (&[4, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 200], ERR),
            (&[5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], ERR),
            (&[9, 0, 0, 0], ERR),
        ],
    );
    let (plain, _link) = card(features::CTRL_VQ);
    commands(&plain, &[(&[4, 0, 1, 0], ERR), (&[&[1, 1][..], &OTHER].concat(), ERR)]);
}

/// A chain the driver might mean for a card: a header that lies or not, and a frame.
fn nearly_a_frame(driver: &mut Driver, random: &mut Random) {
    let mut bytes: Vec<u8> =
        (0..HEADER_BYTES).map(|_| random.pick(&[0, 0, 1, 3, 4, 5, 0x81, 14, 34, 54, 0xff])).collect();
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&frame(random.pick(&[MAC, OTHER, GROUP, [0xff; 6]])));
    bytes.extend((0..random.below(2000)).map(|at| at as u8));
    let len = random.pick(&[bytes.len() as u32, 5, 20, 33, 70_000]);
    driver.put(DATA, &bytes);
    let direction = random.pick(&[0, WRITE]);
    driver.lay(0, &[(DATA, len, direction), (ACK, 1, random.pick(&[direction, WRITE]))]);
    driver.put(AVAIL + 4, &[0; 2 * QUEUE_SIZE as usize]);
    driver.set_avail_index(random.pick(&[1, 2, QUEUE_SIZE]));
}

/// One of the card's services, as a reset begins it.
fn service(nic: &Arc<Nic>, round: u64) -> Box<dyn Service> {
    match round % 3 {
        0 => Box::new(ReceiveService::new(Arc::clone(nic), 0)),
        1 => Box::new(TransmitService::new(Arc::clone(nic), 0)),
        _ => Box::new(ControlService(Arc::clone(nic))),
    }
}

#[test]
fn scrambled_rings_of_a_network_card_are_served_or_broken() {
    let (nic, link) = card(ALL);
    let mut random = Random(0xca4d);
    let mut driver = Driver::new();
    let map = driver.ram.map();
    let (mut served, mut broken) = (0, 0);
    let mut taken = Frame::default();
    for round in 0..ROUNDS {
        scramble(&mut driver, &mut random);
        if random.below(2) == 0 {
            nearly_a_frame(&mut driver, &mut random);
        }
        link.send(0, &Frame::exact(Header::default(), &frame(MAC)));
        match serve_bounded(&driver, &map, service(&nic, round).as_mut()) {
            Ok(count) => served += count,
            Err(_) => broken += 1,
        }
        while link.receive(0, &mut taken) {}
        assert!(nic.settings().filter.unicast.len() <= RAM_BYTES as usize / 6);
    }
    assert!(served > 1_000 && broken > 5_000, "the nonsense was not plausible: {served} served, {broken} broken");
}

#[test]
fn workers_of_a_card_reset_amid_a_storm_of_frames_join() {
    let (nic, link) = card(ALL);
    let mut random = Random(0x570);
    for _ in 0..100 {
        let mut driver = Driver::new();
        scramble(&mut driver, &mut random);
        nearly_a_frame(&mut driver, &mut random);
        let mut worker = driver.start(TransmitService::new(Arc::clone(&nic), 0));
        let mut receiver = driver.start(ReceiveService::new(Arc::clone(&nic), 0));
        for _ in 0..8 {
            link.send(0, &Frame::exact(Header::default(), &frame(MAC)));
        }
        scramble(&mut driver, &mut random);
        driver.ring();
        worker.stop();
        receiver.stop();
    }
}
