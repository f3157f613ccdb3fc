//! SCSI commands as a driver sends them, to a disk and to a disc.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use ostler_block::{FileStorage, Raw};
use ostler_virtio::scsi::{Bus, ControlService, Kind, RequestService, Tray, Unit};
use ostler_virtio::{Broken, Chain, Outcome, Segment, Service};

use crate::driver::{DATA, Driver, disk_file};

const BLOCKS: u64 = 256;
const BYTES: u64 = BLOCKS * 512;
const HEADER_BYTES: u32 = 51;
const RESPONSE_BYTES: u32 = 108;
const HEADER: u64 = DATA;
const RESPONSE: u64 = DATA + 0x1000;
const PAYLOAD: u64 = DATA + 0x10000;

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const OK: u8 = 0;
const OVERRUN: u8 = 1;
const BAD_TARGET: u8 = 3;

const DISK: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
const DISC: [u8; 8] = [1, 2, 0x40, 1, 0, 0, 0, 0];

pub fn unit(file: File, bytes: u64) -> Unit {
    let storage = Arc::new(FileStorage::new(file).expect("a storage"));
    Unit {
        kind: Kind::Disk,
        image: Arc::new(Raw::new(storage, bytes, false)),
        readonly: false,
        serial: b"serial".to_vec(),
        discard: true,
        writeback: true,
        granularity_bytes: 4096,
        tray: Tray::default(),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    response: u8,
    status: u8,
    /// Key, code and qualifier.
    sense: Option<(u8, u8, u8)>,
    residual: u32,
    data: Vec<u8>,
}

struct Rig {
    driver: Driver,
    file: File,
    bus: Arc<Bus>,
}

impl Rig {
    /// A disk at 0:0 and, with other numbers everywhere, a disc at 2:1.
    fn new() -> Self {
        let file = disk_file(BYTES);
        let bus = Arc::new(Bus::default());
        bus.attach((0, 0), unit(file.try_clone().expect("a duplicate"), BYTES));
        let disc = Unit { kind: Kind::Disc, readonly: true, ..unit(disk_file(BYTES), BYTES) };
        bus.attach((2, 1), disc);
        Self { driver: Driver::new(), file, bus }
    }

    fn serve(&self, service: &mut dyn Service, readable: &[Segment], writable: &[Segment]) -> Result<u32, Broken> {
        let mut chain = Chain { slots: 1, ..Chain::default() };
        readable.iter().for_each(|segment| chain.readable.push(*segment));
        writable.iter().for_each(|segment| chain.writable.push(*segment));
        match service.serve(&chain, &self.driver.ram.map())? {
            Outcome::Done(len) => Ok(len),
            other => panic!("{other:?}"),
        }
    }

    /// A command with data for the unit, or with room for data from it.
    fn command(&self, lun: [u8; 8], cdb: &[u8], out: &[u8], room: u32) -> Reply {
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(&lun);
        header[19..19 + cdb.len()].copy_from_slice(cdb);
        self.driver.put(HEADER, &header);
        self.driver.put(PAYLOAD, out);
        let mut readable = vec![Segment { gpa: HEADER, len: HEADER_BYTES }];
        readable.push(Segment { gpa: PAYLOAD, len: out.len() as u32 });
        let writable = [Segment { gpa: RESPONSE, len: RESPONSE_BYTES }, Segment { gpa: PAYLOAD, len: room }];
        let used =
            self.serve(&mut RequestService(Arc::clone(&self.bus)), &readable, &writable).expect("a sound request");
        let response = self.driver.get(RESPONSE, RESPONSE_BYTES as usize);
        let sense = &response[12..];
        let sense_len = u32::from_le_bytes(response[..4].try_into().expect("four bytes"));
        Reply {
            response: response[11],
            status: response[10],
            sense: (sense_len != 0).then(|| (sense[2], sense[12], sense[13])),
            residual: u32::from_le_bytes(response[4..8].try_into().expect("four bytes")),
            data: self.driver.get(PAYLOAD, (used - RESPONSE_BYTES) as usize),
        }
    }

    fn asks(&self, lun: [u8; 8], cdb: &[u8]) -> Vec<u8> {
        let reply = self.command(lun, cdb, b"", 4096);
        assert_eq!((reply.response, reply.status), (OK, GOOD), "{cdb:x?}: {reply:?}");
        assert_eq!(reply.residual as usize + reply.data.len(), 4096);
        reply.data
    }

    fn sends(&self, cdb: &[u8], out: &[u8]) {
        let reply = self.command(DISK, cdb, out, 0);
        assert_eq!((reply.response, reply.status, reply.residual), (OK, GOOD, 0), "{cdb:x?}: {reply:?}");
    }

    fn fails(&self, lun: [u8; 8], cdb: &[u8], out: &[u8]) -> (u8, u8, u8) {
        let reply = self.command(lun, cdb, out, if out.is_empty() { 4096 } else { 0 });
        assert_eq!((reply.response, reply.status), (OK, CHECK_CONDITION), "{cdb:x?}: {reply:?}");
        reply.sense.expect("sense data")
    }

    fn holds(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        self.file.read_exact_at(&mut bytes, block * 512).expect("a block");
        bytes
    }

    fn manage(&self, function: u32, lun: [u8; 8]) -> u8 {
        let request = [&[0; 4], &function.to_le_bytes(), lun.as_slice(), &[0; 8]].concat();
        self.driver.put(HEADER, &request);
        let (readable, writable) = (Segment { gpa: HEADER, len: 24 }, Segment { gpa: RESPONSE, len: 1 });
        let used = self.serve(&mut ControlService(Arc::clone(&self.bus)), &[readable], &[writable]);
        assert_eq!(used, Ok(1));
        self.driver.get(RESPONSE, 1)[0]
    }
}

fn pattern(byte: u8, blocks: usize) -> Vec<u8> {
    vec![byte; blocks * 512]
}

#[test]
fn blocks_are_written_and_read_by_commands_of_every_size() {
    let rig = Rig::new();
    rig.sends(&[0x0a, 0, 0, 1, 1, 0], &pattern(1, 1));
    rig.sends(&[0x2a, 0, 0, 0, 0, 2, 0, 0, 2, 0], &pattern(2, 2));
    rig.sends(&[0xaa, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0], &pattern(4, 1));
    rig.sends(&[0x8a, 8, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 1, 0, 0], &pattern(5, 1));
    assert_eq!([1, 2, 3, 4, 255].map(|block| rig.holds(block)[0]), [1, 2, 2, 4, 5]);
    for cdb in [
        [0x08, 0, 0, 1, 1, 0].as_slice(),
        &[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0],
        &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0],
    ] {
        assert_eq!(rig.asks(DISK, cdb), pattern(1, 1));
    }
    rig.sends(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], b"");
    assert_eq!(rig.asks(DISK, &[0x28, 0, 0, 0, 0, 1, 0, 0, 0, 0]), b"", "no block is no error");
}

#[test]
fn commands_beyond_the_unit_or_its_abilities_fail_with_sense() {
    let rig = Rig::new();
    let out_of_range = (0x5, 0x21, 0x00);
    assert_eq!(rig.fails(DISK, &[0x28, 0, 0, 0, 1, 0, 0, 0, 1, 0], b""), out_of_range);
    assert_eq!(rig.fails(DISK, &[0x2a, 0, 0, 0, 0, 255, 0, 0, 2, 0], &pattern(1, 2)), out_of_range);
    let huge = [0x88, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0];
    assert_eq!(rig.fails(DISK, &huge, b""), out_of_range);
    assert_eq!(rig.fails(DISK, &[0xff], b""), (0x5, 0x20, 0x00));
    assert_eq!(rig.fails(DISC, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &pattern(1, 4)), (0x5, 0x20, 0x00));
    assert_eq!(rig.fails([1, 0, 0, 7, 0, 0, 0, 0], &[0x00], b""), (0x5, 0x25, 0x00));
    let short = rig.command(DISK, &[0x28, 0, 0, 0, 0, 0, 0, 0, 9, 0], b"", 4096);
    assert_eq!((short.response, short.data.len()), (OVERRUN, 0));
    for lun in [[1, 9, 0, 0, 0, 0, 0, 0], [0; 8], [255; 8], [1, 0, 0x80, 0, 0, 0, 0, 0]] {
        assert_eq!(rig.command(lun, &[0x00], b"", 0).response, BAD_TARGET);
    }
    assert_eq!(rig.file.metadata().expect("metadata").size(), BYTES);
}

#[test]
fn unit_says_what_it_is() {
    let rig = Rig::new();
    let inquiry = rig.asks(DISK, &[0x12, 0, 0, 0, 96, 0]);
    assert_eq!((inquiry.len(), inquiry[0], &inquiry[8..16]), (36, 0, b"OSTLER  ".as_slice()));
    assert_eq!(rig.asks(DISC, &[0x12, 0, 0, 0, 96, 0])[..2], [5, 0x80]);
    assert_eq!(rig.asks([1, 0, 0, 7, 0, 0, 0, 0], &[0x12, 0, 0, 0, 96, 0])[0], 0x7f);
    assert_eq!(rig.asks(DISK, &[0x12, 1, 0x80, 0, 96, 0])[4..], *b"serial");
    let pages = rig.asks(DISK, &[0x12, 1, 0, 0, 96, 0]);
    for page in &pages[4..] {
        let body = rig.asks(DISK, &[0x12, 1, *page, 0, 96, 0]);
        assert_eq!((body[1], usize::from(body[3]) + 4), (*page, body.len()));
    }
    assert_eq!(rig.fails(DISK, &[0x12, 1, 0x99, 0, 96, 0], b""), (0x5, 0x24, 0x00));
    assert_eq!(rig.asks(DISK, &[0x25]), [0, 0, 0, 255, 0, 0, 2, 0]);
    assert_eq!(rig.asks(DISC, &[0x25]), [0, 0, 0, 63, 0, 0, 8, 0]);
    let capacity = rig.asks(DISK, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
    assert_eq!((capacity.len(), capacity[7], capacity[10], capacity[14]), (32, 255, 2, 0x80));
    // Lists of units, the second of which is only there to be asked.
    assert_eq!(rig.asks(DISK, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])[..4], [0, 0, 0, 8]);
    let two = rig.asks([1, 2, 0, 0, 0, 0, 0, 0], &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!((two[3], two[17]), (16, 1));
    let caching = rig.asks(DISK, &[0x1a, 0, 8, 0, 255, 0]);
    assert_eq!((caching[4], caching[6]), (8, 4), "the write cache is on");
    assert_eq!(rig.asks(DISK, &[0x12, 0, 0, 0, 5, 0]).len(), 5, "the allocation length cuts");
}

#[test]
fn disc_has_one_track_from_its_first_to_its_last_block() {
    let rig = Rig::new();
    let toc = rig.asks(DISC, &[0x43, 0, 0, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!((toc[1] as usize + 2, toc[2], toc[3], toc[6], toc[14]), (toc.len(), 1, 1, 1, 0xaa));
    assert_eq!(toc[16..20], [0, 0, 0, 64]);
    assert_eq!(rig.asks(DISC, &[0x46, 0, 0, 0, 0, 0, 0, 0, 255, 0])[6..8], [0, 8]);
    assert_eq!(rig.asks(DISC, &[0x4a, 1, 0, 0, 16, 0, 0, 0, 255, 0])[5], 2, "there is a disc");
    assert_eq!(rig.asks(DISC, &[0x51, 0, 0, 0, 0, 0, 0, 0, 255, 0]).len(), 34);
    assert_eq!(rig.asks(DISC, &[0x28, 0, 0, 0, 0, 63, 0, 0, 1, 0]).len(), 2048);
}

#[test]
fn disc_is_ejected_and_another_put_in_and_the_driver_is_told_each_time() {
    let rig = Rig::new();
    let event = || rig.asks(DISC, &[0x4a, 1, 0, 0, 16, 0, 0, 0, 255, 0])[4..6].to_vec();
    let (ready, read) = ([0; 6], [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let (eject, load) = ([0x1b, 0, 0, 0, 2, 0], [0x1b, 0, 0, 0, 3, 0]);
    assert_eq!(event(), [0, 2]);
    // The guest's lock holds against its own ejecting.
    rig.asks(DISC, &[0x1e, 0, 0, 0, 1, 0]);
    assert_eq!(rig.fails(DISC, &eject, b""), (5, 0x53, 2));
    rig.asks(DISC, &[0x1e, 0, 0, 0, 0, 0]);
    rig.asks(DISC, &eject);
    assert_eq!((event(), event()), (vec![3, 0], vec![0, 0]));
    for command in [&ready[..], &read, &[0x25], &[0x43, 0, 0, 0, 0, 0, 0, 0, 255, 0]] {
        assert_eq!(rig.fails(DISC, command, b""), (2, 0x3a, 0), "{command:x?}");
    }
    rig.asks(DISC, &[0x12, 0, 0, 0, 36, 0]);
    rig.asks(DISC, &load);
    assert_eq!(event(), [2, 2]);
    assert_eq!(rig.fails(DISC, &ready, b""), (6, 0x28, 0));
    rig.asks(DISC, &ready);

    // The host does not ask; another disc is in at once, and has another size.
    rig.asks(DISC, &[0x1e, 0, 0, 0, 1, 0]);
    assert!(rig.bus.eject((2, 1)));
    assert_eq!(rig.fails(DISC, &ready, b""), (2, 0x3a, 0));
    assert!(rig.bus.insert((2, 1), unit(disk_file(BYTES / 2), BYTES / 2).image));
    assert_eq!(rig.fails(DISC, &[0x25], b""), (6, 0x28, 0));
    assert_eq!(rig.asks(DISC, &[0x25]), [0, 0, 0, 31, 0, 0, 8, 0]);
    assert_eq!(event(), [2, 2]);
    // Disks have no tray, and where there is nothing, nothing is done.
    assert!(!rig.bus.eject((0, 0)) && !rig.bus.eject((5, 5)));
    assert!(!rig.bus.insert((0, 0), unit(disk_file(BYTES), BYTES).image));
    rig.asks(DISK, &eject);
    rig.asks(DISK, &ready);
}

#[test]
fn request_sense_tells_of_another_disc_in_place_of_the_next_command() {
    let rig = Rig::new();
    let sense = || {
        let fixed = rig.asks(DISC, &[3, 0, 0, 0, 18, 0]);
        (fixed[2], fixed[12], fixed[13])
    };
    assert_eq!(sense(), (0, 0, 0));
    assert!(rig.bus.insert((2, 1), unit(disk_file(BYTES), BYTES).image));
    assert_eq!((sense(), sense()), ((6, 0x28, 0), (0, 0, 0)));
    rig.asks(DISC, &[0; 6]);
}

#[test]
fn reset_lets_the_disc_be_taken_out_again() {
    let rig = Rig::new();
    let (prevent, eject, load) = ([0x1e, 0, 0, 0, 1, 0], [0x1b, 0, 0, 0, 2, 0], [0x1b, 0, 0, 0, 3, 0]);
    // I_T NEXUS RESET and LOGICAL UNIT RESET; QUERY TASK changes nothing.
    for function in [4, 5] {
        rig.asks(DISC, &prevent);
        assert_eq!(rig.manage(6, DISC), OK);
        assert_eq!(rig.fails(DISC, &eject, b""), (5, 0x53, 2));
        assert_eq!(rig.manage(function, DISC), OK);
        rig.asks(DISC, &eject);
        rig.asks(DISC, &load);
        rig.fails(DISC, &[0; 6], b"");
    }
}

#[test]
fn write_same_repeats_its_block_and_unmap_gives_ranges_up() {
    let rig = Rig::new();
    rig.sends(&[0x41, 0, 0, 0, 0, 10, 0, 0, 100, 0], &pattern(7, 1));
    assert!((10..110).all(|block| rig.holds(block) == pattern(7, 1)));
    assert!(rig.holds(9) != pattern(7, 1) && rig.holds(110) != pattern(7, 1));
    // Zeros that are not sent, as a hole.
    rig.sends(&[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 8, 0, 0], b"");
    assert!((16..24).all(|block| rig.holds(block) == pattern(0, 1)));
    assert!(rig.holds(15) == pattern(7, 1) && rig.holds(24) == pattern(7, 1));
    let invalid = (0x5, 0x24, 0x00);
    assert_eq!(rig.fails(DISK, &[0x41, 0, 0, 0, 0, 10, 0, 0, 0, 0], &pattern(7, 1)), invalid);
    let list = |first: u8, count: u32| {
        let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, first];
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
        list
    };
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    rig.sends(&cdb, &list(32, 8));
    assert!((32..40).all(|block| rig.holds(block) == pattern(0, 1)));
    assert!(rig.holds(31) == pattern(7, 1) && rig.holds(40) == pattern(7, 1));
    assert_eq!(rig.fails(DISK, &cdb, &list(250, 8)), (0x5, 0x21, 0x00));
    assert_eq!(rig.fails(DISK, &cdb, &list(0, u32::MAX)), (0x5, 0x26, 0x00));
    let mut lying = list(0, 1);
    lying[3] = 200;
    assert_eq!(rig.fails(DISK, &cdb, &lying), (0x5, 0x26, 0x00));
}

#[test]
fn task_management_finds_its_unit_and_refuses_unknown_functions() {
    let rig = Rig::new();
    assert!((0..8).all(|function| rig.manage(function, DISK) == OK));
    assert_eq!(rig.manage(8, DISK), 11);
    assert_eq!(rig.manage(5, [1, 0, 0, 7, 0, 0, 0, 0]), 12);
    assert_eq!(rig.manage(5, [1, 9, 0, 0, 0, 0, 0, 0]), BAD_TARGET);
    assert!(rig.bus.detach((0, 0)));
    assert!(!rig.bus.detach((0, 0)));
    assert_eq!(rig.manage(5, DISK), BAD_TARGET);
}

#[test]
fn request_too_short_for_its_header_or_response_breaks_the_queue() {
    let rig = Rig::new();
    let mut service = RequestService(Arc::clone(&rig.bus));
    let (header, response) = (|len| [Segment { gpa: HEADER, len }], |len| [Segment { gpa: RESPONSE, len }]);
    assert_eq!(rig.serve(&mut service, &header(50), &response(108)), Err(Broken::Request));
    assert_eq!(rig.serve(&mut service, &header(51), &response(107)), Err(Broken::Request));
    // The driver's own sizes, kept within bounds.
    rig.bus.set_sizes(16, 18);
    assert_eq!(rig.serve(&mut service, &header(35), &response(30)), Ok(30));
    rig.bus.set_sizes(u32::MAX, u32::MAX);
    assert_eq!(rig.serve(&mut service, &header(279), &response(264)), Ok(264));
    assert_eq!(rig.serve(&mut ControlService(Arc::clone(&rig.bus)), &header(3), &response(1)), Err(Broken::Request));
}
