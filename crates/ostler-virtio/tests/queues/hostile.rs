//! A driver that writes anything anywhere: nothing may panic, hang, or reach past the disk.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::driver::{AVAIL, DATA, Desc, Driver, QUEUE_SIZE, RAM_BYTES, WRITE, disk_file};
use ostler_memory::GuestMap;
use ostler_virtio::ServedQueue;
use ostler_virtio::balloon::{Balloon, HintService, InflateService, ReportService, StatsService};
use ostler_virtio::host::CallService;
use ostler_virtio::scsi::{Bus, ControlService, RequestService};
use ostler_virtio::vsock::{Hub, ReceiveService, TransmitService};
use ostler_virtio::{BlkService, Broken, Disk, Outcome, Position, Ring, RngService, Service};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ROUNDS: u64 = 20_000;

/// xorshift64*: the same sequence on every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

fn random_desc(random: &mut Random) -> Desc {
    let near = DATA + random.below(64) * 16;
    Desc {
        gpa: random.pick(&[near, near, near, 0, AVAIL, RAM_BYTES - 8, RAM_BYTES, u64::MAX, u64::MAX - 15, 1 << 52]),
        len: random.pick(&[0, 1, 16, 16, 32, 512, 513, 4096, 1 << 20, u32::MAX]),
        flags: random.pick(&[0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 0x80, 0x81, 0x82, 0x84, 0xffff]),
        next: random.below(u64::from(QUEUE_SIZE) + 2) as u16,
    }
}

/// Fills the table, the buffers and the available ring with plausible nonsense.
pub fn scramble(driver: &mut Driver, random: &mut Random) {
    for index in 0..QUEUE_SIZE {
        driver.describe(index, random_desc(random));
    }
    for slot in 0..64 {
        let bytes = match random.below(3) {
            0 => random_desc(random).bytes(),
            1 => request_header(random),
            _ => [random.next() as u8; 16],
        };
        driver.put(DATA + 16 * slot, &bytes);
    }
    for entry in 0..u64::from(QUEUE_SIZE) {
        driver.put(AVAIL + 4 + 2 * entry, &(random.below(17) as u16).to_le_bytes());
    }
    driver.set_avail_index(random.pick(&[1, 2, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE + 1, u16::MAX]));
}

/// An honest request with one thing wrong, or none.
fn nearly_honest(driver: &mut Driver, random: &mut Random) {
    let piece = random.pick(&[(DATA + 0x1000, 512, 0), (DATA + 0x1000, 512, WRITE), (DATA + 0x10, 32, 0)]);
    let header = request_header(random);
    driver.put(DATA, &header);
    driver.lay(0, &[(DATA, 16, 0), piece, (DATA + 0x2000, 1, WRITE)]);
    if random.below(2) == 0 {
        let index = random.below(3) as u16;
        driver.describe(index, random_desc(random));
    }
    driver.put(AVAIL + 4, &[0; 2 * QUEUE_SIZE as usize]);
    driver.set_avail_index(random.pick(&[1, 2, QUEUE_SIZE]));
}

fn request_header(random: &mut Random) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = random.pick(&[0, 1, 4, 8, 11, 13, 99]);
    let sector: u64 = random.pick(&[0, 1, 200, 255, 256, 1 << 55, u64::MAX]);
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// Serves one scrambled ring to its end; how many chains came through.
pub fn serve_bounded(driver: &Driver, map: &GuestMap, service: &mut dyn Service) -> Result<u32, Broken> {
    let mut ring = Ring::new(&driver.config, map).map_err(|_| Broken::NotMemory)?;
    let mut served = 0;
    while let Some(chain) = ring.pop(map)? {
        let Outcome::Done(len) = service.serve(&chain, map)? else { break };
        assert!(u64::from(len) <= chain.writable.len(), "more than the chain has");
        ring.push(map, &chain, len)?;
        ring.needs_interrupt(map)?;
        served += 1;
        // What was written may have changed the ring: a driver that does so can keep us busy, but
        // only with its own doorbell; here it gets a bounded number of turns.
        if served > 1000 {
            break;
        }
    }
    Ok(served)
}

#[test]
fn scrambled_rings_never_reach_past_the_disk() {
    let file = disk_file(256 * 512);
    let ours = file.try_clone().expect("a duplicate");
    let disk = Arc::new(Disk::new(ours, 256 * 512, false, [0; 20]).expect("a disk"));
    let mut blk = BlkService(disk);
    let mut random = Random(0x5eed);
    let mut driver = Driver::new();
    let map = driver.ram.map();
    let (mut served, mut broken) = (0, 0);
    for round in 0..ROUNDS {
        scramble(&mut driver, &mut random);
        if random.below(2) == 0 {
            nearly_honest(&mut driver, &mut random);
        }
        driver.config.event_idx = round & 1 != 0;
        let service: &mut dyn Service = if round % 8 == 0 { &mut RngService } else { &mut blk };
        match serve_bounded(&driver, &map, service) {
            Ok(count) => served += count,
            Err(_) => broken += 1,
        }
    }
    assert_eq!(file.metadata().expect("metadata").size(), 256 * 512);
    assert!(served > 5_000 && broken > 5_000, "the nonsense was not plausible: {served} served, {broken} broken");
}

#[test]
fn worker_reset_amid_a_storm_of_requests_joins() {
    let disk = Arc::new(Disk::new(disk_file(256 * 512), 256 * 512, false, [0; 20]).expect("a disk"));
    let mut random = Random(0xfeed);
    for _ in 0..200 {
        let mut driver = Driver::new();
        scramble(&mut driver, &mut random);
        let mut worker = driver.start(BlkService(Arc::clone(&disk)));
        scramble(&mut driver, &mut random);
        driver.ring();
        let position = worker.stop();
        assert!(position.next_used <= position.next_avail);
    }
}

/// Every service that takes what a guest sends, on both layouts.
#[test]
fn scrambled_rings_of_every_device_are_served_or_broken() {
    let folder = std::env::temp_dir().join(format!("ostler-hostile-{}", std::process::id()));
    let listener = UnixListener::bind(&folder).expect("a listener");
    let hub = Arc::new(Hub::new(3, listener, folder.clone()).expect("a hub"));
    let balloon = Arc::new(Balloon::default());
    let wanted = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let answer = |request: &[u8], room: usize| Some(vec![request.len() as u8; room.min(4096)]);
    let bus = Arc::new(Bus::default());
    bus.attach((0, 0), crate::scsi::unit(disk_file(256 * 512), 256 * 512));
    let mut services: [Box<dyn Service>; 9] = [
        Box::new(InflateService(Arc::clone(&balloon))),
        Box::new(ReportService(Arc::clone(&balloon))),
        Box::new(HintService::new(Arc::clone(&balloon), Box::new(|_id| ()))),
        Box::new(StatsService::new(wanted, Box::new(|_stats| ()))),
        Box::new(TransmitService::new(Arc::clone(&hub))),
        Box::new(ReceiveService::new(hub)),
        Box::new(RequestService(Arc::clone(&bus))),
        Box::new(ControlService(bus)),
        Box::new(CallService::new(Box::new(answer))),
    ];
    let mut random = Random(0xbad5eed);
    let mut driver = Driver::new();
    let map = driver.ram.map();
    let (mut served, mut broken) = (0, 0);
    for round in 0..ROUNDS {
        scramble(&mut driver, &mut random);
        driver.config.packed = round % 2 == 0;
        driver.config.position = if driver.config.packed { Position::PACKED_START } else { Position::default() };
        let service = &mut services[(round / 2 % 9) as usize];
        match serve_bounded(&driver, &map, service.as_mut()) {
            Ok(count) => served += count,
            Err(_) => broken += 1,
        }
    }
    std::fs::remove_file(folder).expect("ours");
    assert!(served > 300 && broken > 5_000, "the nonsense was not plausible: {served} served, {broken} broken");
}
