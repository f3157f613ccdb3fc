//! virtio-balloon (virtio 1.2, section 5.5): the guest's spare memory goes back to the host.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ostler_memory::{GuestMap, discard};
use vmm_sys_util::eventfd::EventFd;

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// The balloon counts pages of 4 KiB whatever the guest's page size (section 5.5.6).
const BALLOON_PAGE_BYTES: u64 = 4096;
const PFN_BYTES: usize = 4;
/// Page numbers looked at together; Linux sends so many.
const BATCH: usize = 256;
/// `struct virtio_balloon_stat`: a tag of 2 bytes and a value of 8.
const STAT_BYTES: usize = 10;
/// Statistics taken from one buffer; the specification has ten tags.
const MAX_STATS: usize = 64;

/// What the queues of one balloon share.
#[derive(Debug, Default)]
pub struct Balloon {
    returned_bytes: AtomicU64,
    keep_reported: AtomicBool,
}

impl Balloon {
    /// Bytes the guest gave back so far, by any queue; memory given back twice counts twice.
    pub fn returned_bytes(&self) -> u64 {
        self.returned_bytes.load(Ordering::Relaxed)
    }

    /// With `keep`, free pages that the guest reports stay as they are: a guest that poisons its
    /// free pages with anything but zeros expects to find them so (section 5.5.6.5).
    pub fn set_keep_reported(&self, keep: bool) {
        self.keep_reported.store(keep, Ordering::Release);
    }

    fn give_back(&self, map: &GuestMap, gpa: u64, len: u64) {
        self.returned_bytes.fetch_add(discard(map, gpa, len), Ordering::Relaxed);
    }

    fn give_back_buffers(&self, map: &GuestMap, chain: &Chain) {
        if !self.keep_reported.load(Ordering::Acquire) {
            for segment in chain.writable.segments() {
                self.give_back(map, segment.gpa, segment.len.into());
            }
        }
    }
}

/// Takes the pages that the guest puts into the balloon.
#[derive(Debug)]
pub struct InflateService(pub Arc<Balloon>);

impl Service for InflateService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let mut bytes = [0; BATCH * PFN_BYTES];
        let mut at = 0;
        while at + PFN_BYTES as u64 <= chain.readable.len() {
            let len = (chain.readable.len() - at).min(bytes.len() as u64) as usize / PFN_BYTES * PFN_BYTES;
            let piece = &mut bytes[..len];
            if chain.readable.read_at(map, at, piece).is_err() {
                break;
            }
            self.take(map, piece);
            at += len as u64;
        }
        Ok(Outcome::Done(0))
    }
}

impl InflateService {
    /// Gives back the pages whose numbers are in `bytes`, neighbours in one call.
    fn take(&self, map: &GuestMap, bytes: &[u8]) {
        let mut pages = [0; BATCH];
        let mut count = 0;
        for (page, number) in pages.iter_mut().zip(bytes.chunks_exact(PFN_BYTES)) {
            *page = number.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            count += 1;
        }
        let pages = &mut pages[..count];
        pages.sort_unstable();
        for run in pages.chunk_by(|page, next| next - page <= 1) {
            if let [first, .., last] | [first @ last] = run {
                self.0.give_back(map, first * BALLOON_PAGE_BYTES, (last - first + 1) * BALLOON_PAGE_BYTES);
            }
        }
    }
}

/// Lets the guest have pages back: they are there again when touched.
#[derive(Debug)]
pub struct DeflateService;

impl Service for DeflateService {
    fn serve(&mut self, _chain: &Chain, _map: &GuestMap) -> Result<Outcome, Broken> {
        Ok(Outcome::Done(0))
    }
}

/// Takes the free pages that the guest reports; it may use them again at any time.
#[derive(Debug)]
pub struct ReportService(pub Arc<Balloon>);

impl Service for ReportService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        self.0.give_back_buffers(map, chain);
        Ok(Outcome::Done(0))
    }
}

/// What is told of a command id on the hinting queue.
pub type OnCommand = Box<dyn FnMut(u32) + Send>;

/// Takes the free pages of a round of hints, which the guest lends until the device says "done".
pub struct HintService {
    balloon: Arc<Balloon>,
    on_command: OnCommand,
}

impl HintService {
    pub fn new(balloon: Arc<Balloon>, on_command: OnCommand) -> Self {
        Self { balloon, on_command }
    }
}

impl fmt::Debug for HintService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HintService").field("balloon", &self.balloon).finish_non_exhaustive()
    }
}

impl Service for HintService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let mut id = [0; 4];
        if chain.readable.read(map, &mut id).is_ok() {
            (self.on_command)(u32::from_le_bytes(id));
        }
        self.balloon.give_back_buffers(map, chain);
        Ok(Outcome::Done(0))
    }
}

/// A statistic: its tag (`VIRTIO_BALLOON_S_*`) and value.
pub type Stat = (u16, u64);

/// What is told of the statistics.
pub type OnStats = Box<dyn FnMut(&[Stat]) + Send>;

/// Reads the guest's statistics, and gives the buffer back when new ones are wanted.
pub struct StatsService {
    /// Becomes readable when somebody wants news.
    wanted: EventFd,
    on_stats: OnStats,
    /// The buffer at the front of the ring has been read.
    seen: bool,
}

impl StatsService {
    pub fn new(wanted: EventFd, on_stats: OnStats) -> Self {
        Self { wanted, on_stats, seen: false }
    }

    fn read(&mut self, chain: &Chain, map: &GuestMap) {
        let mut stats = [(0, 0); MAX_STATS];
        let mut count = 0;
        for (stat, offset) in stats.iter_mut().zip((0..).step_by(STAT_BYTES)) {
            let mut bytes = [0; STAT_BYTES];
            if chain.readable.read_at(map, offset, &mut bytes).is_err() {
                break;
            }
            let [low, high, value @ ..] = bytes;
            *stat = (u16::from_le_bytes([low, high]), u64::from_le_bytes(value));
            count += 1;
        }
        (self.on_stats)(&stats[..count]);
    }
}

impl fmt::Debug for StatsService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatsService").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Service for StatsService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        if !self.seen {
            self.read(chain, map);
            self.seen = true;
        }
        // The descriptor does not block: an error says that nobody asked.
        if self.wanted.read().is_err() {
            return Ok(Outcome::Later);
        }
        self.seen = false;
        Ok(Outcome::Done(0))
    }

    fn source(&self) -> Option<(RawFd, libc::c_short)> {
        Some((self.wanted.as_raw_fd(), libc::POLLIN))
    }
}
