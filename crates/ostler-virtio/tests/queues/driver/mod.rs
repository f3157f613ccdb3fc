//! The driver's side of a virtqueue, for tests: honest or not.

pub mod packed;

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ostler_engine::irq::Interrupt;
use ostler_memory::{GuestRam, SlotConfig};
use ostler_virtio::{Position, Queue, RingConfig, Service, Worker};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const RAM_BYTES: u64 = 8 << 20;
pub const TABLE: u64 = 0x1000;
pub const AVAIL: u64 = 0x8000;
pub const USED: u64 = 0xc000;
/// Free for buffers.
pub const DATA: u64 = 0x10_0000;
pub const QUEUE_SIZE: u16 = 16;

const PATIENCE: Duration = Duration::from_secs(20);

/// An interrupt that can be waited for.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Interrupt for Bell {
    fn trigger(&self) {
        *self.rung.lock().expect("not poisoned") += 1;
        self.changed.notify_all();
    }
}

impl Bell {
    pub fn count(&self) -> u64 {
        *self.rung.lock().expect("not poisoned")
    }

    /// Waits until it has rung `count` times.
    pub fn wait(&self, count: u64) {
        let rung = self.rung.lock().expect("not poisoned");
        let (rung, _) = self.changed.wait_timeout_while(rung, PATIENCE, |rung| *rung < count).expect("not poisoned");
        assert!(*rung >= count, "rung {} times, expected {count}", *rung);
    }
}

/// A descriptor as the driver writes it.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub gpa: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A ring in guest memory and the driver's position on it.
#[derive(Debug)]
pub struct Driver {
    pub ram: Arc<GuestRam>,
    pub config: RingConfig,
    avail: u16,
    pub kick: EventFd,
    pub bell: Arc<Bell>,
    pub broken: Arc<Bell>,
}

impl Driver {
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::new());
        ram.set_slot(SlotConfig { size: RAM_BYTES, log_dirty: true, ..SlotConfig::default() }).expect("a slot");
        let config = RingConfig {
            size: QUEUE_SIZE,
            desc_table: TABLE,
            avail_ring: AVAIL,
            used_ring: USED,
            position: Position::default(),
            event_idx: false,
            indirect: true,
            packed: false,
        };
        let kick = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Self { ram, config, avail: 0, kick, bell: Arc::default(), broken: Arc::default() }
    }

    pub fn start(&self, service: impl Service + 'static) -> Worker {
        Worker::start(self.queue(), Box::new(service)).expect("a worker")
    }

    pub fn queue(&self) -> Queue {
        Queue {
            name: "test".into(),
            memory: Arc::clone(&self.ram),
            config: self.config,
            kick: self.kick.try_clone().expect("a duplicate"),
            interrupt: Some(self.bell.clone()),
            on_broken: self.broken.clone(),
        }
    }

    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write(gpa, bytes).expect("memory");
    }

    pub fn get(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(gpa, &mut bytes).expect("memory");
        bytes
    }

    fn word(&self, gpa: u64) -> u16 {
        let bytes = self.get(gpa, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    pub fn describe(&self, index: u16, desc: Desc) {
        self.put(TABLE + 16 * u64::from(index), &desc.bytes());
    }

    /// Lays a chain of `(gpa, len, flags)` into the table from `head` on.
    pub fn lay(&self, head: u16, pieces: &[(u64, u32, u16)]) {
        for (at, (index, &(gpa, len, flags))) in (head..).zip(pieces).enumerate() {
            let more = if at + 1 < pieces.len() { NEXT } else { 0 };
            self.describe(index, Desc { gpa, len, flags: flags | more, next: index + 1 });
        }
    }

    /// Lays the chain into an indirect table at `gpa` and refers to it from `head`.
    pub fn lay_indirect(&self, head: u16, gpa: u64, pieces: &[(u64, u32, u16)]) {
        for (index, &(at, len, flags)) in pieces.iter().enumerate() {
            let more = if index + 1 < pieces.len() { NEXT } else { 0 };
            let desc = Desc { gpa: at, len, flags: flags | more, next: index as u16 + 1 };
            self.put(gpa + 16 * index as u64, &desc.bytes());
        }
        self.describe(head, Desc { gpa, len: 16 * pieces.len() as u32, flags: INDIRECT, next: 0 });
    }

    /// Makes `head` available without ringing.
    pub fn offer(&mut self, head: u16) {
        self.put(AVAIL + 4 + 2 * u64::from(self.avail % QUEUE_SIZE), &head.to_le_bytes());
        self.set_avail_index(self.avail.wrapping_add(1));
    }

    pub fn set_avail_index(&mut self, index: u16) {
        self.avail = index;
        self.put(AVAIL + 2, &index.to_le_bytes());
    }

    pub fn ring(&self) {
        self.kick.write(1).expect("a doorbell");
    }

    pub fn used_index(&self) -> u16 {
        self.word(USED + 2)
    }

    /// Entry `index` of the used ring: head and length.
    pub fn used(&self, index: u16) -> (u16, u32) {
        let entry = self.get(USED + 4 + 8 * u64::from(index % QUEUE_SIZE), 8);
        (u16::from_le_bytes([entry[0], entry[1]]), u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]))
    }

    pub fn set_used_event(&self, index: u16) {
        self.put(AVAIL + 4 + 2 * u64::from(QUEUE_SIZE), &index.to_le_bytes());
    }

    pub fn avail_event(&self) -> u16 {
        self.word(USED + 4 + 8 * u64::from(QUEUE_SIZE))
    }

    pub fn set_avail_flags(&self, flags: u16) {
        self.put(AVAIL, &flags.to_le_bytes());
    }

    /// Offers `head`, rings, and waits for the next interrupt.
    pub fn round_trip(&mut self, head: u16) -> (u16, u32) {
        let before = self.used_index();
        let rung = self.bell.count();
        self.offer(head);
        self.ring();
        self.bell.wait(rung + 1);
        self.used(before)
    }
}

/// A file in memory of `bytes` bytes, each telling its sector.
pub fn disk_file(bytes: u64) -> File {
    let file = memory_file();
    for sector in 0..bytes / 512 {
        file.write_all_at(&[(sector + 1) as u8; 512], sector * 512).expect("room");
    }
    file
}

pub fn memory_file() -> File {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a descriptor that nobody else owns.
    unsafe { File::from_raw_fd(fd) }
}

/// A pipe: its reading and its writing end.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: `pipe` stores two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: descriptors that nobody else owns.
    unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) }
}
