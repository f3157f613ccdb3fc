//! Copies from disk to disk, on several threads.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::zstd_safe::{self, CCtx, CParameter};

use crate::buffer::Buffer;
use crate::dirty::DirtyMap;
use crate::disk::Disk;
use crate::{BlockError, Result};

/// What is copied at once. It stays in the cache of its core between being read and written; and writes
/// of 2 MiB have the host look for as much memory in a row, which takes several times as long as the
/// copy where there is little.
const PIECE: u64 = 512 << 10;
/// The same where it is packed.
const PACKED_PIECE: u64 = 2 << 20;
/// Writes of so much to a new image have their space reserved first: the file system finds it at once
/// then, not page by page.
pub(crate) const RESERVED_BYTES: u64 = 256 << 10;
/// QEMU unpacks deflate with a window of 4 KiB.
const WINDOW_BITS: u8 = 12;

/// How clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Deflate,
    Zstd,
}

/// How a copy is made.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub threads: usize,
    /// Runs of zeroes of this many bytes are not written; 0 writes everything.
    pub sparse_bytes: u64,
    /// The target reads as zeroes where nothing is written.
    pub target_is_zero: bool,
    /// Zeroes that the source keeps as data are data in the target, too, unless it has them already:
    /// writing costs less than giving space back.
    pub keeps_zero_data: bool,
    /// Pack clusters of this many bytes.
    pub packing: Option<(Packing, u64)>,
    /// Bytes a second; 0 is no limit.
    pub limit: u64,
}

/// How far a copy is; shared with whoever watches or cancels it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the disk that are done.
    pub done: AtomicU64,
    pub cancelled: AtomicBool,
    /// It was the source that failed.
    pub source_failed: AtomicBool,
}

/// Makes `target` read like `source`, which may be shorter. The rest of the target is left alone.
pub fn copy(source: &dyn Disk, target: &dyn Disk, job: &Job, progress: &Progress) -> Result<()> {
    let end = source.size().min(target.size());
    let next = AtomicU64::new(0);
    on_threads(job.threads, progress, || Copier::new(source, target, job, progress)?.run(&next, end))
}

/// Makes `target` read like `source` where `map` is marked, and clears the marks. What could not be
/// copied, if that fails, is marked again.
pub fn copy_marked(source: &dyn Disk, target: &dyn Disk, map: &DirtyMap, job: &Job, progress: &Progress) -> Result<()> {
    let end = source.size().min(target.size());
    let next = Mutex::new(0);
    let pace = Mutex::new(Pace::new(job.limit));
    on_threads(job.threads, progress, || Copier::new(source, target, job, progress)?.run_marked(map, &next, end, &pace))
}

/// Makes `target` read like `source` in one range, on this thread.
pub fn copy_range(
    source: &dyn Disk,
    target: &dyn Disk,
    job: &Job,
    progress: &Progress,
    from: u64,
    end: u64,
) -> Result<()> {
    Copier::new(source, target, job, progress)?.pieces(from, end)
}

/// Does the same on several threads: the error that tells most, if there is one.
pub fn on_threads(threads: usize, progress: &Progress, act: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let failure = Mutex::new(None);
    let work = || {
        if let Err(error) = act() {
            progress.cancelled.store(true, Ordering::Release);
            let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_none() || !matches!(error, BlockError::Cancelled) {
                *first = Some(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn sleep_unless_cancelled(mut wait: Duration, progress: &Progress) {
    while !wait.is_zero() && !progress.cancelled.load(Ordering::Acquire) {
        let part = wait.min(Duration::from_millis(50));
        thread::sleep(part);
        wait -= part;
    }
}

/// Keeps work to so many bytes a second; 0 is no limit.
#[derive(Debug)]
pub struct Pace {
    limit: u64,
    done: u64,
    started: Instant,
}

impl Pace {
    pub fn new(limit: u64) -> Self {
        Self { limit, done: 0, started: Instant::now() }
    }

    /// Sleeps for as long as the bytes that were done are too many, or until the work is cancelled.
    pub fn keep(&mut self, bytes: u64, progress: &Progress) {
        sleep_unless_cancelled(self.wait_after(bytes), progress);
    }

    fn wait_after(&mut self, bytes: u64) -> Duration {
        self.done += bytes;
        if self.limit == 0 {
            return Duration::ZERO;
        }
        let due = Duration::from_secs_f64(self.done as f64 / self.limit as f64);
        due.saturating_sub(self.started.elapsed())
    }
}

struct Copier<'a> {
    source: &'a dyn Disk,
    target: &'a dyn Disk,
    job: &'a Job,
    progress: &'a Progress,
    buffer: Buffer,
    packer: Option<Packer>,
    /// What is copied at once.
    piece: u64,
    started: Instant,
}

impl<'a> Copier<'a> {
    fn new(source: &'a dyn Disk, target: &'a dyn Disk, job: &'a Job, progress: &'a Progress) -> Result<Self> {
        let packer = job.packing.map(|(packing, cluster)| Packer::new(packing, cluster)).transpose()?;
        let piece = if packer.is_some() { PACKED_PIECE } else { PIECE };
        let buffer = Buffer::new(piece as usize);
        Ok(Self { source, target, job, progress, buffer, packer, piece, started: Instant::now() })
    }

    fn run(&mut self, next: &AtomicU64, end: u64) -> Result<()> {
        loop {
            let offset = next.fetch_add(self.piece, Ordering::Relaxed);
            if offset >= end {
                return Ok(());
            }
            if self.progress.cancelled.load(Ordering::Acquire) {
                return Err(BlockError::Cancelled);
            }
            let stop = end.min(offset + self.piece);
            self.piece(offset, stop)?;
            let done = self.progress.done.fetch_add(stop - offset, Ordering::Relaxed) + stop - offset;
            self.keep_to_the_limit(done);
            // A long run of zeroes need not be claimed piece by piece.
            self.skip_zeroes(next, stop, end)?;
        }
    }

    fn run_marked(&mut self, map: &DirtyMap, next: &Mutex<u64>, end: u64, pace: &Mutex<Pace>) -> Result<()> {
        loop {
            if self.progress.cancelled.load(Ordering::Acquire) {
                return Err(BlockError::Cancelled);
            }
            let taken = {
                let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = map.take_run(*next, end, self.piece);
                *next = taken.map_or(end, |(_, to)| to);
                taken
            };
            let Some((from, to)) = taken else { return Ok(()) };
            self.pieces(from, to).inspect_err(|_| map.mark(from, to - from))?;
            self.progress.done.fetch_add(to - from, Ordering::Relaxed);
            let wait = pace.lock().unwrap_or_else(PoisonError::into_inner).wait_after(to - from);
            sleep_unless_cancelled(wait, self.progress);
        }
    }

    /// A range of any length.
    fn pieces(&mut self, from: u64, end: u64) -> Result<()> {
        let mut at = from;
        while at < end {
            if self.progress.cancelled.load(Ordering::Acquire) {
                return Err(BlockError::Cancelled);
            }
            let stop = end.min(at + self.piece);
            self.piece(at, stop)?;
            at = stop;
        }
        Ok(())
    }

    fn keep_to_the_limit(&self, done: u64) {
        if self.job.limit != 0 {
            let due = Duration::from_secs_f64(done as f64 / self.job.limit as f64);
            sleep_unless_cancelled(due.saturating_sub(self.started.elapsed()), self.progress);
        }
    }

    /// Moves the next piece to be claimed over zeroes that need no writing.
    fn skip_zeroes(&self, next: &AtomicU64, from: u64, end: u64) -> Result<()> {
        if !self.job.target_is_zero || self.job.sparse_bytes == 0 || next.load(Ordering::Relaxed) != from {
            return Ok(());
        }
        let mut at = from;
        while at < end {
            let (is_zero, len) = self.zero_at(at, end - at)?;
            if !is_zero || len == 0 {
                break;
            }
            at += len;
        }
        let target = if at >= end { end } else { at / self.piece * self.piece };
        if target > from && next.compare_exchange(from, target, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.progress.done.fetch_add(target - from, Ordering::Relaxed);
        }
        Ok(())
    }

    fn zero_at(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        self.source.zero_at(offset, limit).inspect_err(|_| self.blame_source())
    }

    fn fill_buffer(&mut self, offset: u64, len: u64) -> Result<()> {
        let read = self.source.read_bytes(&mut self.buffer[..len as usize], offset);
        read.inspect_err(|_| self.blame_source())
    }

    fn blame_source(&self) {
        self.progress.source_failed.store(true, Ordering::Release);
    }

    fn piece(&mut self, offset: u64, stop: u64) -> Result<()> {
        if self.packer.is_some() {
            return self.packed(offset, stop);
        }
        let mut at = offset;
        while at < stop {
            let (is_zero, len) = self.zero_at(at, stop - at)?;
            let len = len.clamp(1, stop - at);
            if !is_zero || self.job.sparse_bytes == 0 {
                self.data(at, len)?;
            } else if !self.job.target_is_zero {
                self.target.write_zeroes(at, len, true)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Packs the clusters of a piece; those that are zero are left out of the new image.
    fn packed(&mut self, offset: u64, stop: u64) -> Result<()> {
        let (is_zero, len) = self.zero_at(offset, stop - offset)?;
        if is_zero && len >= stop - offset {
            return Ok(());
        }
        self.fill_buffer(offset, stop - offset)?;
        let bytes = &self.buffer[..(stop - offset) as usize];
        if let (Some(packer), Some((_, cluster))) = (&mut self.packer, self.job.packing) {
            for (number, piece) in bytes.chunks(cluster as usize).enumerate() {
                packer.store(self.target, piece, offset + number as u64 * cluster)?;
            }
        }
        Ok(())
    }

    fn data(&mut self, at: u64, len: u64) -> Result<()> {
        self.fill_buffer(at, len)?;
        let bytes = &self.buffer[..len as usize];
        if self.job.sparse_bytes == 0 || self.job.keeps_zero_data && !self.job.target_is_zero {
            return self.target.write_bytes(bytes, at);
        }
        write_sparse(self.target, bytes, at, self.job)
    }
}

/// Writes `bytes` but for the runs of zeroes in it.
fn write_sparse(target: &dyn Disk, bytes: &[u8], at: u64, job: &Job) -> Result<()> {
    let unit = job.sparse_bytes as usize;
    let mut start = 0;
    let mut offset = 0;
    let unit_end = |offset: usize| (offset + unit - (at as usize + offset) % unit).min(bytes.len());
    while offset < bytes.len() {
        let end = unit_end(offset);
        if !is_zero(&bytes[offset..end]) {
            offset = end;
            continue;
        }
        write_data(target, &bytes[start..offset], at + start as u64, job)?;
        let mut stop = end;
        while stop < bytes.len() && is_zero(&bytes[stop..unit_end(stop)]) {
            stop = unit_end(stop);
        }
        if !job.target_is_zero {
            target.write_zeroes(at + offset as u64, (stop - offset) as u64, true)?;
        }
        (start, offset) = (stop, stop);
    }
    write_data(target, &bytes[start..], at + start as u64, job)
}

fn write_data(target: &dyn Disk, bytes: &[u8], at: u64, job: &Job) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    if job.target_is_zero && bytes.len() as u64 >= RESERVED_BYTES {
        target.reserve(at, bytes.len() as u64)?;
    }
    target.write_bytes(bytes, at)
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |seen, byte| seen | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Packs clusters.
enum Packer {
    Deflate { stream: Compress, probe: Box<CCtx<'static>>, packed: Vec<u8>, cluster: Vec<u8> },
    Zstd { context: Box<CCtx<'static>>, packed: Vec<u8>, cluster: Vec<u8> },
}

impl Packer {
    fn new(packing: Packing, cluster: u64) -> Result<Self> {
        // Deflate has room to finish even what does not shrink: a stream that is given up half-way
        // cannot be used again (zlib-rs 0.6 keeps its pending bytes).
        let (packed, cluster) = (vec![0; (cluster + cluster / 8 + 64) as usize], vec![0; cluster as usize]);
        Ok(match packing {
            Packing::Deflate => Self::Deflate { stream: deflater(), probe: zstd_at(PROBE_LEVEL)?, packed, cluster },
            Packing::Zstd => Self::Zstd { context: zstd_at(ZSTD_LEVEL)?, packed, cluster },
        })
    }

    /// Writes one guest cluster, packed if that makes it smaller, not at all if it is zero.
    fn store(&mut self, target: &dyn Disk, piece: &[u8], at: u64) -> Result<()> {
        if is_zero(piece) {
            return Ok(());
        }
        let (packed, whole, len) = match self {
            Self::Deflate { stream, probe, packed, cluster } => {
                pad(cluster, piece);
                // Noise costs deflate the most, and zstd the least, to find nothing in.
                let probed = probe.compress2(packed.as_mut_slice(), cluster).unwrap_or(usize::MAX);
                let is_noise = probed >= cluster.len() - cluster.len() / 128;
                let bytes = if is_noise { None } else { deflate(stream, cluster, packed) };
                (bytes, &*cluster, &*packed)
            }
            Self::Zstd { context, packed, cluster } => {
                pad(cluster, piece);
                (context.compress2(packed.as_mut_slice(), cluster).ok(), &*cluster, &*packed)
            }
        };
        match packed {
            Some(bytes) if bytes < whole.len() => target.write_compressed(whole, &len[..bytes], at),
            _ => target.write_bytes(piece, at),
        }
    }
}

/// Of zlib-rs: its levels 6 to 8 hash four bytes and leave 3 % that zlib's level 6, which QEMU uses, finds;
/// 9 hashes three, and with a window of 4 KiB its chains are short.
const DEFLATE_LEVEL: u32 = 9;
/// 1.7 % larger than zstd's level 3, which QEMU uses, in less time.
const ZSTD_LEVEL: i32 = 2;
/// The fastest that looks at how often each byte is there: 2 % of many a cluster is in that alone.
const PROBE_LEVEL: i32 = 1;

fn zstd_at(level: i32) -> Result<Box<CCtx<'static>>> {
    let mut context = CCtx::create();
    let refused = |code| BlockError::Refused(format!("zstd: {}", zstd_safe::get_error_name(code)));
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(refused)?;
    Ok(Box::new(context))
}

fn deflater() -> Compress {
    Compress::new_with_window_bits(Compression::new(DEFLATE_LEVEL), false, WINDOW_BITS)
}

/// The last cluster of a disk is packed with zeroes behind its end.
fn pad(cluster: &mut [u8], piece: &[u8]) {
    cluster[..piece.len()].copy_from_slice(piece);
    cluster[piece.len()..].fill(0);
}

/// The bytes it took, or `None` if they do not fit.
fn deflate(stream: &mut Compress, cluster: &[u8], packed: &mut [u8]) -> Option<usize> {
    stream.reset();
    match stream.compress(cluster, packed, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => Some(stream.total_out() as usize),
        _ => {
            *stream = deflater();
            None
        }
    }
}
