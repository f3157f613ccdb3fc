//! The packed ring: laps, notifications, and drivers that break its rules.

use crate::driver::packed::{PACKED_SIZE, PackedDriver, Used};
use crate::driver::{DATA, INDIRECT, NEXT, RAM_BYTES, TABLE, WRITE};
use ostler_memory::GuestMap;
use ostler_virtio::ServedQueue;
use ostler_virtio::{Broken, Chain, Outcome, Position, Ring, RingConfig, RingError, Service};

/// Says how long the readable part was, at once.
#[derive(Debug)]
struct Meter;

impl Service for Meter {
    fn serve(&mut self, chain: &Chain, _map: &GuestMap) -> Result<Outcome, Broken> {
        Ok(Outcome::Done(chain.readable.len() as u32))
    }
}

fn pop(driver: &PackedDriver) -> Result<Option<Chain>, Broken> {
    let map = driver.inner.ram.map();
    Ring::new(&driver.inner.config, &map).expect("a ring").pop(&map)
}

#[test]
fn ring_with_nothing_available_gives_nothing() {
    assert_eq!(pop(&PackedDriver::new()), Ok(None));
}

#[test]
fn chain_takes_neighbours_and_has_the_id_of_the_last() {
    let mut driver = PackedDriver::new();
    driver.offer(41, &[(DATA, 10, 0), (DATA + 16, 5, WRITE), (DATA + 32, 7, WRITE)]);
    let chain = pop(&driver).expect("a sound ring").expect("a chain");
    assert_eq!((chain.head, chain.slots, chain.readable.len(), chain.writable.len()), (41, 3, 10, 12));
}

#[test]
fn indirect_chain_takes_one_entry_and_has_its_id() {
    let mut driver = PackedDriver::new();
    driver.offer_indirect(7, DATA, &[(DATA + 256, 10, 0), (DATA + 512, 5, WRITE)]);
    let chain = pop(&driver).expect("a sound ring").expect("a chain");
    assert_eq!((chain.head, chain.slots, chain.readable.len(), chain.writable.len()), (7, 1, 10, 5));
    driver.inner.config.indirect = false;
    assert_eq!(pop(&driver), Err(Broken::Indirect));
}

#[test]
fn buffers_of_every_length_come_back_over_many_laps() {
    let mut driver = PackedDriver::new();
    let map = driver.inner.ram.map();
    let mut ring = Ring::new(&driver.inner.config, &map).expect("a ring");
    for round in 0..200u16 {
        let slots = round % PACKED_SIZE + 1;
        let pieces: Vec<_> = (0..slots).map(|n| (DATA + u64::from(n) * 64, u32::from(round) + 1, 0)).collect();
        driver.offer(round, &pieces);
        let chain = ring.pop(&map).expect("sound").expect("a chain");
        assert_eq!((chain.head, chain.slots), (round, slots));
        assert_eq!(ring.pop(&map), Ok(None), "round {round}");
        assert_eq!(driver.take_used(slots), None);
        ring.unpop(&chain);
        assert_eq!(ring.pop(&map), Ok(Some(chain.clone())), "taken back in round {round}");
        ring.push(&map, &chain, round.into()).expect("room");
        let expected = Used { id: round, len: round.into(), written: round != 0 };
        assert_eq!(driver.take_used(slots), Some(expected));
    }
}

#[test]
fn buffers_used_out_of_order_are_told_apart_by_id() {
    let mut driver = PackedDriver::new();
    let map = driver.inner.ram.map();
    let mut ring = Ring::new(&driver.inner.config, &map).expect("a ring");
    driver.offer(1, &[(DATA, 8, 0), (DATA, 8, 0)]);
    driver.offer(2, &[(DATA, 8, 0)]);
    let first = ring.pop(&map).expect("sound").expect("a chain");
    let second = ring.pop(&map).expect("sound").expect("a chain");
    ring.push(&map, &second, 0).expect("room");
    ring.push(&map, &first, 0).expect("room");
    assert_eq!(driver.take_used(1).map(|used| used.id), Some(2));
    assert_eq!(driver.take_used(2).map(|used| used.id), Some(1));
}

#[test]
fn ring_continues_from_a_saved_position() {
    let mut driver = PackedDriver::new();
    let map = driver.inner.ram.map();
    let mut ring = Ring::new(&driver.inner.config, &map).expect("a ring");
    for round in 0..20 {
        driver.offer(round, &[(DATA, 8, 0), (DATA, 8, 0)]);
        let chain = ring.pop(&map).expect("sound").expect("a chain");
        ring.push(&map, &chain, 0).expect("room");
        let config = RingConfig { position: ring.position(), ..driver.inner.config };
        ring = Ring::new(&config, &map).expect("a ring");
        assert_eq!(driver.take_used(2).map(|used| used.id), Some(round));
    }
}

#[test]
fn ring_outside_memory_misaligned_or_of_no_size_is_refused() {
    let driver = PackedDriver::new();
    let map = driver.inner.ram.map();
    let sound = driver.inner.config;
    for config in [
        RingConfig { desc_table: RAM_BYTES - 16, ..sound },
        RingConfig { avail_ring: RAM_BYTES, ..sound },
        RingConfig { used_ring: !3, ..sound },
    ] {
        assert!(matches!(Ring::new(&config, &map), Err(RingError::NotMemory)), "{config:x?}");
    }
    for config in [
        RingConfig { size: 0, ..sound },
        RingConfig { size: 0x8001, ..sound },
        RingConfig { desc_table: TABLE + 8, ..sound },
        RingConfig { avail_ring: 2, ..sound },
        RingConfig { used_ring: 2, ..sound },
        RingConfig { position: Position { next_avail: PACKED_SIZE, next_used: 0 }, ..sound },
        RingConfig { position: Position { next_avail: 0, next_used: PACKED_SIZE }, ..sound },
    ] {
        assert!(matches!(Ring::new(&config, &map), Err(RingError::Geometry)), "{config:x?}");
    }
}

#[test]
fn chain_against_the_rules_breaks_the_ring() {
    type Pieces<'a> = &'a [(u64, u32, u16)];
    let endless = [(DATA, 1, NEXT); PACKED_SIZE as usize];
    let cases: [(&str, Pieces, Broken); 8] = [
        ("next without an end", &endless, Broken::TooLong),
        ("read after write", &[(DATA, 1, WRITE), (DATA, 1, 0)], Broken::Order),
        ("4 GiB", &[(DATA, u32::MAX, 0), (DATA, 1, 0)], Broken::TooLarge),
        ("indirect with next", &[(DATA, 16, INDIRECT), (DATA, 1, 0)], Broken::Indirect),
        ("indirect after another", &[(DATA, 1, 0), (DATA, 16, INDIRECT)], Broken::Indirect),
        ("empty table", &[(DATA, 0, INDIRECT)], Broken::IndirectLength(0)),
        ("odd table", &[(DATA, 17, INDIRECT)], Broken::IndirectLength(17)),
        ("table outside memory", &[(u64::MAX - 15, 32, INDIRECT)], Broken::NotMemory),
    ];
    for (what, pieces, expected) in cases {
        let mut driver = PackedDriver::new();
        driver.offer(0, pieces);
        assert_eq!(pop(&driver), Err(expected), "{what}");
    }
    let mut driver = PackedDriver::new();
    driver.offer_indirect(0, DATA, &[(DATA, 16, INDIRECT)]);
    assert_eq!(pop(&driver), Err(Broken::Indirect), "a table in a table");
}

#[test]
fn interrupt_flag_of_the_driver_is_respected() {
    let mut driver = PackedDriver::new();
    let map = driver.inner.ram.map();
    let mut ring = Ring::new(&driver.inner.config, &map).expect("a ring");
    for (flags, wanted) in [(0, true), (1, false), (2, true)] {
        driver.want_event(0, flags);
        driver.offer(0, &[(DATA, 8, 0)]);
        let chain = ring.pop(&map).expect("sound").expect("a chain");
        ring.push(&map, &chain, 0).expect("room");
        assert_eq!(ring.needs_interrupt(&map), Ok(wanted), "flags {flags} without event index");
    }
}

#[test]
fn event_index_interrupts_exactly_where_the_driver_asked() {
    let mut driver = PackedDriver::new();
    driver.inner.config.event_idx = true;
    let map = driver.inner.ram.map();
    let mut ring = Ring::new(&driver.inner.config, &map).expect("a ring");
    for round in 0..50u16 {
        // Ask for the second of three buffers, which two descriptors make up.
        let (index, wrap) = (driver.used_position() & 0x7fff, driver.used_position() >> 15 != 0);
        let sum = index + 1;
        let second = if sum < PACKED_SIZE { (sum, wrap) } else { (sum - PACKED_SIZE, !wrap) };
        driver.want_event(second.0 | u16::from(second.1) << 15, 2);
        let mut heard = Vec::new();
        for (id, slots) in [(round, 1), (round + 1, 2), (round + 2, 1)] {
            driver.offer(id, &vec![(DATA, 8, 0); slots.into()]);
            let chain = ring.pop(&map).expect("sound").expect("a chain");
            ring.push(&map, &chain, 0).expect("room");
            heard.push(ring.needs_interrupt(&map).expect("sound"));
            assert!(driver.take_used(slots).is_some());
        }
        assert_eq!(heard, [false, true, false], "round {round}");
    }
}

#[test]
fn kicks_are_asked_for_where_the_next_buffer_will_be() {
    let mut driver = PackedDriver::new();
    driver.inner.config.event_idx = true;
    let map = driver.inner.ram.map();
    let mut ring = Ring::new(&driver.inner.config, &map).expect("a ring");
    ring.disable_kicks(&map).expect("sound");
    assert_eq!(driver.device_event().1, 1);
    assert_eq!(ring.enable_kicks(&map), Ok(false));
    assert_eq!(driver.device_event(), (0x8000, 2));
    driver.offer(0, &[(DATA, 8, 0); 3]);
    assert_eq!(ring.enable_kicks(&map), Ok(true));
    ring.pop(&map).expect("sound").expect("a chain");
    assert_eq!(ring.enable_kicks(&map), Ok(false));
    assert_eq!(driver.device_event(), (0x8003, 2));
}

#[test]
fn driver_that_adds_while_the_worker_looks_is_served_without_end() {
    let mut driver = PackedDriver::new();
    driver.inner.config.event_idx = true;
    driver.want_event(0, 1);
    let mut worker = driver.inner.start(Meter);
    for round in 0..20_000u16 {
        driver.offer(round, &[(DATA, 3, 0), (DATA, 4, 0)]);
        driver.offer(round, &[(DATA, 5, 0)]);
        driver.inner.ring();
        for (slots, len) in [(2, 7), (1, 5)] {
            loop {
                if let Some(used) = driver.take_used(slots) {
                    assert_eq!((used.id, used.len), (round, len));
                    break;
                }
                assert_eq!(driver.inner.broken.count(), 0, "broken at {:?}", worker.position());
                std::hint::spin_loop();
            }
        }
    }
    worker.stop();
    assert_eq!(driver.inner.bell.count(), 0, "the driver did not want to hear of it");
}

#[test]
fn memory_of_the_ring_removed_while_it_is_served_breaks_it() {
    let driver = PackedDriver::new();
    let mut worker = driver.inner.start(Meter);
    driver.inner.ram.remove_slot(0).expect("removed");
    driver.inner.ring();
    driver.inner.broken.wait(1);
    worker.stop();
}
