//! The ring's own rules: notifications, and drivers that break them.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::driver::{AVAIL, DATA, Desc, Driver, INDIRECT, NEXT, QUEUE_SIZE, RAM_BYTES, TABLE, USED, WRITE, pipe};
use ostler_memory::GuestMap;
use ostler_virtio::ServedQueue;
use ostler_virtio::limit::Limited;
use ostler_virtio::{
    Broken, Chain, InputService, Outcome, OutputService, Position, Ring, RingConfig, RingError, RngService, Service,
    Worker,
};

/// Serves everything at once.
#[derive(Debug)]
struct Sink;

impl Service for Sink {
    fn serve(&mut self, chain: &Chain, _map: &GuestMap) -> Result<Outcome, Broken> {
        Ok(Outcome::Done(chain.writable.len() as u32))
    }
}

fn pop(driver: &Driver) -> Result<Option<Chain>, Broken> {
    let map = driver.ram.map();
    Ring::new(&driver.config, &map).expect("a ring").pop(&map)
}

#[test]
fn chain_is_split_into_what_is_read_and_what_is_written() {
    let mut driver = Driver::new();
    driver.lay(3, &[(DATA, 10, 0), (DATA + 16, 0, 0), (DATA + 32, 5, WRITE), (DATA + 64, 7, WRITE)]);
    driver.offer(3);
    let chain = pop(&driver).expect("a sound ring").expect("a chain");
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (3, 10, 12));
}

#[test]
fn ring_with_nothing_available_gives_nothing() {
    assert_eq!(pop(&Driver::new()), Ok(None));
}

#[test]
fn ring_outside_memory_or_misaligned_is_refused() {
    let driver = Driver::new();
    let map = driver.ram.map();
    let sound = driver.config;
    for config in [
        RingConfig { desc_table: RAM_BYTES, ..sound },
        RingConfig { avail_ring: RAM_BYTES - 2, ..sound },
        RingConfig { avail_ring: 0, ..sound },
        RingConfig { used_ring: !3, ..sound },
    ] {
        assert!(matches!(Ring::new(&config, &map), Err(RingError::NotMemory)), "{config:x?}");
    }
    for config in [
        RingConfig { size: 0, ..sound },
        RingConfig { size: 24, ..sound },
        RingConfig { desc_table: TABLE + 8, ..sound },
        RingConfig { avail_ring: AVAIL + 1, ..sound },
        RingConfig { used_ring: USED + 2, ..sound },
    ] {
        assert!(matches!(Ring::new(&config, &map), Err(RingError::Geometry)), "{config:x?}");
    }
}

#[test]
fn chain_against_the_rules_breaks_the_ring() {
    let table = DATA + 0x100;
    let indirect = |len| Desc { gpa: table, len, flags: INDIRECT, next: 0 };
    let plain = |flags, next| Desc { gpa: DATA, len: 16, flags, next };
    let cases: [(&str, Vec<Desc>, Broken); 11] = [
        ("next past the table", vec![plain(NEXT, QUEUE_SIZE)], Broken::Index(QUEUE_SIZE)),
        ("loop to itself", vec![plain(NEXT, 0)], Broken::TooLong),
        ("loop of two", vec![plain(NEXT, 1), plain(NEXT, 0)], Broken::TooLong),
        ("read after write", vec![plain(WRITE | NEXT, 1), plain(0, 0)], Broken::Order),
        (
            "4 GiB",
            vec![Desc { len: u32::MAX, ..plain(NEXT, 1) }, Desc { len: u32::MAX, ..plain(0, 0) }],
            Broken::TooLarge,
        ),
        ("indirect with next", vec![Desc { flags: INDIRECT | NEXT, ..indirect(16) }], Broken::Indirect),
        ("indirect after another", vec![plain(NEXT, 1), indirect(16)], Broken::Indirect),
        ("empty table", vec![indirect(0)], Broken::IndirectLength(0)),
        ("odd table", vec![indirect(17)], Broken::IndirectLength(17)),
        ("huge table", vec![indirect(!15)], Broken::IndirectLength(!15)),
        ("table outside memory", vec![Desc { gpa: u64::MAX - 15, ..indirect(32) }], Broken::NotMemory),
    ];
    for (what, descs, expected) in cases {
        let mut driver = Driver::new();
        for (index, desc) in (0..).zip(descs) {
            driver.describe(index, desc);
        }
        driver.offer(0);
        assert_eq!(pop(&driver), Err(expected), "{what}");
    }
}

#[test]
fn indirect_table_inside_a_table_or_not_negotiated_breaks_the_ring() {
    let mut driver = Driver::new();
    driver.lay_indirect(0, DATA, &[(DATA, 16, INDIRECT)]);
    driver.offer(0);
    assert_eq!(pop(&driver), Err(Broken::Indirect));
    driver.lay_indirect(0, DATA, &[(DATA, 16, 0)]);
    assert!(pop(&driver).is_ok());
    driver.config.indirect = false;
    assert_eq!(pop(&driver), Err(Broken::Indirect));
}

#[test]
fn head_or_available_index_out_of_range_breaks_the_ring() {
    let mut driver = Driver::new();
    driver.offer(QUEUE_SIZE);
    assert_eq!(pop(&driver), Err(Broken::Index(QUEUE_SIZE)));
    driver.set_avail_index(QUEUE_SIZE + 1);
    assert_eq!(pop(&driver), Err(Broken::AvailIndex));
}

#[test]
fn worker_of_a_broken_ring_says_so_once_and_still_stops() {
    let mut driver = Driver::new();
    let mut worker = driver.start(Sink);
    driver.describe(0, Desc { gpa: DATA, len: 1, flags: NEXT, next: 0 });
    driver.offer(0);
    driver.ring();
    driver.broken.wait(1);
    driver.ring();
    worker.stop();
    assert_eq!((driver.broken.count(), driver.bell.count()), (1, 0));
}

#[test]
fn memory_of_the_ring_removed_while_it_is_served_breaks_it() {
    let driver = Driver::new();
    let mut worker = driver.start(Sink);
    driver.ram.remove_slot(0).expect("removed");
    driver.ring();
    driver.broken.wait(1);
    worker.stop();
}

#[test]
fn no_interrupt_flag_is_respected() {
    let mut driver = Driver::new();
    driver.lay(0, &[(DATA, 16, WRITE)]);
    driver.set_avail_flags(1);
    let mut worker = driver.start(Sink);
    driver.offer(0);
    driver.ring();
    while driver.used_index() == 0 {
        std::thread::yield_now();
    }
    worker.stop();
    assert_eq!(driver.bell.count(), 0);
}

#[test]
fn event_index_interrupts_exactly_where_the_driver_asked() {
    let mut driver = Driver::new();
    driver.config.event_idx = true;
    driver.lay(0, &[(DATA, 16, WRITE)]);
    driver.set_used_event(2);
    for _ in 0..4 {
        driver.offer(0);
    }
    let mut worker = driver.start(Sink);
    driver.bell.wait(1);
    while driver.used_index() != 4 || driver.avail_event() != 4 {
        std::thread::yield_now();
    }
    worker.stop();
    assert_eq!(driver.bell.count(), 1);
}

#[test]
fn driver_that_adds_while_the_worker_looks_is_served_without_end() {
    let mut driver = Driver::new();
    driver.config.event_idx = true;
    driver.lay(0, &[(DATA, 16, WRITE)]);
    let mut worker = driver.start(Sink);
    for sent in (5..=50_000u16).step_by(5) {
        driver.set_used_event(sent - 1);
        for _ in 0..5 {
            driver.offer(0);
        }
        driver.ring();
        while driver.used_index() != sent {
            assert_eq!(driver.broken.count(), 0, "broken at {:?}", worker.position());
            std::hint::spin_loop();
        }
    }
    assert_eq!(worker.stop(), Position { next_avail: 50_000, next_used: 50_000 });
}

#[test]
fn ring_indices_wrap_at_sixteen_bits() {
    let mut driver = Driver::new();
    driver.config.position.next_avail = u16::MAX;
    driver.config.position.next_used = u16::MAX;
    driver.set_avail_index(u16::MAX);
    driver.lay(0, &[(DATA, 16, WRITE)]);
    let mut worker = driver.start(Sink);
    assert_eq!(driver.round_trip(0), (0, 0), "the entry before the wrap was not the driver's to see");
    driver.round_trip(0);
    assert_eq!(worker.stop().next_avail, 1);
    assert_eq!(driver.used_index(), 1);
}

#[test]
fn rng_fills_the_buffer_and_marks_it_dirty() {
    let mut driver = Driver::new();
    let _worker = driver.start(RngService);
    driver.lay(0, &[(DATA, 300, WRITE), (DATA + 0x1000, 300, WRITE)]);
    assert_eq!(driver.round_trip(0), (0, 600));
    assert_ne!(driver.get(DATA, 300), [0; 300]);
    assert_ne!(driver.get(DATA + 0x1000 + 212, 44), [0; 44]);
    assert_eq!(driver.get(DATA + 0x1000 + 300, 8), [0; 8]);
}

#[test]
fn rng_within_a_rate_makes_the_second_request_wait_and_stops_at_once() {
    let mut driver = Driver::new();
    let mut worker = driver.start(Limited::new(RngService, 4000).expect("a timer"));
    driver.lay(0, &[(DATA, 1000, WRITE)]);
    let started = Instant::now();
    assert_eq!(driver.round_trip(0), (0, 1000));
    driver.round_trip(0);
    driver.round_trip(0);
    // Two requests of a quarter of a second each had to be paid for before the third, less what the
    // time before the first one was worth.
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
    driver.lay(0, &[(DATA, 60_000, WRITE)]);
    driver.round_trip(0);
    driver.offer(0);
    driver.ring();
    let stopping = Instant::now();
    assert_eq!(worker.stop().next_used, 4);
    assert!(stopping.elapsed() < Duration::from_secs(5), "a wait of 15 s was not waited for");
}

#[test]
fn rng_buffer_outside_memory_or_read_only_gets_nothing() {
    let mut driver = Driver::new();
    let _worker = driver.start(RngService);
    driver.lay(0, &[(RAM_BYTES, 64, WRITE)]);
    assert_eq!(driver.round_trip(0), (0, 0));
    driver.lay(0, &[(DATA, 64, 0)]);
    assert_eq!(driver.round_trip(0), (0, 0));
    driver.lay(0, &[(DATA, 1 << 20, WRITE)]);
    assert_eq!(driver.round_trip(0), (0, 64 << 10));
}

fn write_all(fd: &impl AsRawFd, bytes: &[u8]) {
    // SAFETY: pointer and length of a live slice.
    let put = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    assert_eq!(put, bytes.len() as isize);
}

fn read_some(fd: &impl AsRawFd, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: pointer and length of a live slice.
    let got = unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), len) };
    bytes.truncate(usize::try_from(got).expect("a readable end"));
    bytes
}

#[test]
fn console_input_waits_for_bytes_then_for_buffers() {
    let mut driver = Driver::new();
    let (ours, host) = pipe();
    let mut worker = driver.start(InputService::new(ours));
    driver.lay(0, &[(DATA, 4, WRITE)]);
    driver.offer(0);
    driver.ring();
    write_all(&host, b"hello");
    driver.bell.wait(1);
    assert_eq!((driver.used(0), driver.get(DATA, 4)), ((0, 4), b"hell".to_vec()));
    driver.offer(0);
    driver.ring();
    driver.bell.wait(2);
    assert_eq!((driver.used(1), driver.get(DATA, 1)), ((0, 1), b"o".to_vec()));
    driver.offer(0);
    driver.ring();
    drop(host);
    assert_eq!(worker.stop().next_used, 2);
}

#[test]
fn console_output_writes_all_pieces_and_survives_a_closed_end() {
    let mut driver = Driver::new();
    let (host, ours) = pipe();
    let _worker = driver.start(OutputService::new(ours));
    driver.put(DATA, b"one two");
    driver.lay(0, &[(DATA, 4, 0), (DATA + 4, 3, 0)]);
    driver.round_trip(0);
    assert_eq!(read_some(&host, 64), b"one two");
    drop(host);
    assert_eq!(driver.round_trip(0), (0, 0));
    assert_eq!(driver.round_trip(0), (0, 0));
}

#[test]
fn console_output_to_a_full_pipe_waits_and_stops_at_once() {
    let mut driver = Driver::new();
    let (host, ours) = pipe();
    let mut worker: Worker = driver.start(OutputService::new(ours));
    driver.lay(0, &[(DATA, 1 << 20, 0)]);
    driver.offer(0);
    driver.ring();
    let first = read_some(&host, 100);
    assert_eq!(first.len(), 100);
    worker.stop();
    assert_eq!(driver.used_index(), 0);
}
