//! Disks, through a ring and a worker, as a driver uses them.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use crate::driver::{DATA, Driver, RAM_BYTES, WRITE, disk_file};
use ostler_virtio::ServedQueue;
use ostler_virtio::{BlkService, Disk, Worker};

const SECTORS: u64 = 256;
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x20;
const PAYLOAD: u64 = DATA + 0x1000;
const UNSET: u8 = 0xee;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

struct Rig {
    driver: Driver,
    file: File,
    disk: Arc<Disk>,
    worker: Worker,
}

impl Rig {
    fn new() -> Self {
        Self::with(disk_file(SECTORS * 512), false, Driver::new())
    }

    fn with(file: File, readonly: bool, driver: Driver) -> Self {
        let ours = file.try_clone().expect("a duplicate");
        let disk = Arc::new(Disk::new(ours, SECTORS * 512, readonly, *b"OST-1234567890ABCDEF").expect("a disk"));
        let worker = driver.start(BlkService(Arc::clone(&disk)));
        Self { driver, file, disk, worker }
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.put(HEADER, &header);
        self.driver.put(STATUS, &[UNSET]);
    }

    /// One request with `pieces` between header and status: the status and the used length.
    fn request(&mut self, kind: u32, sector: u64, pieces: &[(u64, u32, u16)]) -> (u8, u32) {
        self.header(kind, sector);
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend_from_slice(pieces);
        chain.push((STATUS, 1, WRITE));
        self.driver.lay(0, &chain);
        let (head, len) = self.driver.round_trip(0);
        assert_eq!(head, 0);
        (self.driver.get(STATUS, 1)[0], len)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend_from_slice(&sector.to_le_bytes());
            bytes.extend_from_slice(&sectors.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
        }
        self.driver.put(PAYLOAD, &bytes);
        let (status, len) = self.request(kind, 0, &[(PAYLOAD, bytes.len() as u32, 0)]);
        assert_eq!(len, 1);
        status
    }

    fn sector(&self, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.file.read_exact_at(&mut bytes, sector * 512).expect("the file");
        bytes
    }
}

#[test]
fn read_in_pieces_arrives_and_marks_pages_dirty() {
    let mut rig = Rig::new();
    rig.driver.ram.take_dirty_log(0).expect("a log");
    let pieces = [(PAYLOAD, 100, WRITE), (PAYLOAD + 0x5000, 412, WRITE), (PAYLOAD + 0x8000, 512, WRITE)];
    assert_eq!(rig.request(IN, 3, &pieces), (0, 1025));
    assert_eq!(rig.driver.get(PAYLOAD, 101), [vec![4; 100], vec![0]].concat());
    assert_eq!(rig.driver.get(PAYLOAD + 0x5000, 412), [4; 412]);
    assert_eq!(rig.driver.get(PAYLOAD + 0x8000, 512), [5; 512]);
    let log = rig.driver.ram.take_dirty_log(0).expect("a log");
    for gpa in [PAYLOAD, PAYLOAD + 0x5000, PAYLOAD + 0x8000] {
        assert_ne!(log[(gpa / 4096 / 64) as usize] & 1 << (gpa / 4096 % 64), 0, "{gpa:#x}");
    }
}

#[test]
fn write_reaches_the_file_and_nothing_else() {
    let mut rig = Rig::new();
    rig.driver.put(PAYLOAD, &[0xaa; 1024]);
    assert_eq!(rig.request(OUT, 7, &[(PAYLOAD, 1024, 0)]), (0, 1));
    assert_eq!((rig.sector(6), rig.sector(7)), ([7; 512], [0xaa; 512]));
    assert_eq!((rig.sector(8), rig.sector(9)), ([0xaa; 512], [10; 512]));
}

#[test]
fn header_and_status_cut_anywhere_are_found() {
    let mut rig = Rig::new();
    rig.header(IN, 1);
    // Header in two pieces, data and status in one descriptor.
    rig.driver.lay(0, &[(HEADER, 3, 0), (HEADER + 3, 13, 0), (PAYLOAD, 513, WRITE)]);
    assert_eq!(rig.driver.round_trip(0), (0, 513));
    assert_eq!(rig.driver.get(PAYLOAD, 513), [vec![2; 512], vec![0]].concat());
}

#[test]
fn indirect_request_is_served() {
    let mut rig = Rig::new();
    rig.header(IN, 2);
    let pieces = [(HEADER, 16, 0), (PAYLOAD, 512, WRITE), (STATUS, 1, WRITE)];
    rig.driver.lay_indirect(5, DATA + 0x800, &pieces);
    assert_eq!(rig.driver.round_trip(5), (5, 513));
    assert_eq!(rig.driver.get(PAYLOAD, 512), [3; 512]);
}

#[test]
fn request_past_the_end_fails_and_touches_nothing() {
    let mut rig = Rig::new();
    for (sector, len) in [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 511)] {
        assert_eq!(rig.request(OUT, sector, &[(PAYLOAD, len, 0)]).0, 1, "{sector} {len}");
        assert_eq!(rig.request(IN, sector, &[(PAYLOAD, len, WRITE)]), (1, 0), "{sector} {len}");
    }
    assert_eq!(rig.file.metadata().expect("metadata").len(), SECTORS * 512);
}

#[test]
fn request_without_data_is_a_success() {
    let mut rig = Rig::new();
    assert_eq!(rig.request(IN, 0, &[]), (0, 1));
    assert_eq!(rig.request(OUT, 0, &[(PAYLOAD, 0, 0)]), (0, 1));
}

#[test]
fn buffer_that_is_not_memory_fails_the_request() {
    let mut rig = Rig::new();
    for gpa in [RAM_BYTES, RAM_BYTES - 256, u64::MAX - 100, 1 << 52] {
        assert_eq!(rig.request(IN, 0, &[(gpa, 512, WRITE)]).0, 1, "{gpa:#x}");
        assert_eq!(rig.request(OUT, 0, &[(gpa, 512, 0)]).0, 1, "{gpa:#x}");
    }
    assert_eq!(rig.sector(0), [1; 512]);
}

#[test]
fn flush_and_identity_and_unknown_requests_are_answered() {
    let mut rig = Rig::new();
    assert_eq!(rig.request(FLUSH, 0, &[]), (0, 1));
    assert_eq!(rig.request(GET_ID, 0, &[(PAYLOAD, 20, WRITE)]), (0, 21));
    assert_eq!(rig.driver.get(PAYLOAD, 20), b"OST-1234567890ABCDEF");
    assert_eq!(rig.request(GET_ID, 0, &[(PAYLOAD, 4, WRITE)]), (0, 5));
    assert_eq!(rig.request(99, 0, &[]), (2, 1));
}

#[test]
fn discard_makes_a_hole() {
    let mut rig = Rig::new();
    let before = rig.file.metadata().expect("metadata").blocks();
    assert_eq!(rig.ranges(DISCARD, &[(0, 16, 0), (32, 16, 0)]), 0);
    assert_eq!((rig.sector(0), rig.sector(16), rig.sector(47)), ([0; 512], [17; 512], [0; 512]));
    assert!(rig.file.metadata().expect("metadata").blocks() < before);
}

#[test]
fn write_zeroes_with_and_without_unmap_reads_zeroes() {
    let mut rig = Rig::new();
    // A memory file has no FALLOC_FL_ZERO_RANGE: the first range takes the slow way.
    assert_eq!(rig.ranges(WRITE_ZEROES, &[(1, 200, 0), (210, 8, 1)]), 0);
    assert_eq!((rig.sector(0), rig.sector(1), rig.sector(200)), ([1; 512], [0; 512], [0; 512]));
    assert_eq!((rig.sector(201), rig.sector(210)), ([202; 512], [0; 512]));
}

#[test]
fn ranges_malformed_are_refused_and_touch_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.ranges(DISCARD, &[(0, 8, 1)]), 2);
    assert_eq!(rig.ranges(WRITE_ZEROES, &[(0, 8, 2)]), 2);
    assert_eq!(rig.ranges(DISCARD, &[(0, 8, 0), (SECTORS - 1, 2, 0)]), 1);
    assert_eq!(rig.ranges(DISCARD, &[(u64::MAX, 8, 0)]), 1);
    assert_eq!(rig.ranges(WRITE_ZEROES, &[(0, u32::MAX, 0)]), 1);
    assert_eq!(rig.ranges(WRITE_ZEROES, &[(0, 1, 0); 17]), 1);
    assert_eq!(rig.request(DISCARD, 0, &[(PAYLOAD, 15, 0)]).0, 1);
    assert_eq!(rig.request(DISCARD, 0, &[]).0, 1);
    assert_eq!(rig.sector(0), [1; 512]);
}

#[test]
fn disk_read_only_refuses_everything_that_writes() {
    let mut rig = Rig::with(disk_file(SECTORS * 512), true, Driver::new());
    assert_eq!(rig.request(OUT, 0, &[(PAYLOAD, 512, 0)]).0, 1);
    assert_eq!(rig.ranges(DISCARD, &[(0, 8, 0)]), 1);
    assert_eq!(rig.ranges(WRITE_ZEROES, &[(0, 8, 0)]), 1);
    assert_eq!(rig.request(IN, 0, &[(PAYLOAD, 512, WRITE)]), (0, 513));
    assert_eq!(rig.sector(0), [1; 512]);
}

#[test]
fn cache_switched_off_still_writes() {
    let mut rig = Rig::new();
    rig.disk.set_writeback(false);
    rig.driver.put(PAYLOAD, &[0xbb; 512]);
    assert_eq!(rig.request(OUT, 0, &[(PAYLOAD, 512, 0)]), (0, 1));
    assert_eq!(rig.sector(0), [0xbb; 512]);
}

#[test]
fn file_shorter_than_the_disk_is_an_error_that_is_counted() {
    let mut rig = Rig::new();
    rig.file.set_len(1024).expect("shorter");
    assert_eq!(rig.request(IN, 1, &[(PAYLOAD, 1024, WRITE)]), (1, 0));
    assert_eq!(rig.disk.host_errors(), 1);
}

#[test]
fn many_segments_are_one_transfer() {
    let mut rig = Rig::new();
    rig.header(IN, 0);
    let mut pieces = vec![(HEADER, 16, 0)];
    pieces.extend((0..512).map(|n| (PAYLOAD + 0x400 * n, 256, WRITE)));
    pieces.push((STATUS, 1, WRITE));
    rig.driver.lay_indirect(0, DATA + 0x20_0000, &pieces);
    assert_eq!(rig.driver.round_trip(0), (0, 512 * 256 + 1));
    assert_eq!(rig.driver.get(PAYLOAD + 0x400 * 511, 256), [0; 256]);
    assert_eq!(rig.driver.get(PAYLOAD + 0x400 * 2, 256), [2; 256]);
}

#[test]
fn worker_stopped_hands_its_position_to_the_next() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        rig.request(FLUSH, 0, &[]);
    }
    let position = rig.worker.stop();
    assert_eq!((position.next_avail, position.next_used), (3, 3));
    rig.driver.offer(0);
    rig.driver.ring();
    rig.driver.config.position = position;
    let rung = rig.driver.bell.count();
    let second = rig.driver.start(BlkService(Arc::clone(&rig.disk)));
    rig.driver.bell.wait(rung + 1);
    assert_eq!(rig.driver.used_index(), 4);
    assert_eq!(second.position().next_avail, 4);
}
