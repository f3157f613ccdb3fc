//! Bytes somewhere: what images are kept in.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::known_data::KnownData;
use crate::pieces::{Sink, Source};

/// What kind of bytes follow an offset, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub is_data: bool,
    pub len: u64,
}

/// Positional access to bytes. What lies after the end reads as zeroes; writing there grows it.
pub trait Storage: Send + Sync + Debug {
    fn len(&self) -> io::Result<u64>;
    fn read(&self, into: &Sink<'_>, offset: u64) -> io::Result<()>;
    /// Reads, and fails where the storage has ended.
    fn read_exact(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        self.read(into, offset)
    }
    fn write(&self, from: &Source<'_>, offset: u64) -> io::Result<()>;
    /// All that was written is on stable storage afterwards.
    fn flush(&self) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// A hint that the range is not needed.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// A hint that the range is written next, as a whole, and has never been.
    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// What is at `offset`; the run is at most `limit` long and not empty if `limit` is not.
    fn run_at(&self, offset: u64, limit: u64) -> io::Result<Run>;
    /// As [`Storage::run_at`] where a run ends at `offset`, so that it is known what is there.
    fn next_run(&self, offset: u64, limit: u64, _is_data: bool) -> io::Result<Run> {
        self.run_at(offset, limit)
    }
    /// New space is zero without being written.
    fn grows_with_zeroes(&self) -> bool;
    /// The file, where the kernel may copy it.
    fn file(&self) -> Option<&File> {
        None
    }

    fn read_bytes(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(&Sink::new(into), offset)
    }

    fn write_bytes(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.write(&Source::new(from), offset)
    }

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A regular file or block device of this host.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    /// The same file, for requests that go around the page cache.
    direct: Option<Direct>,
    is_block_device: bool,
    device_bytes: u64,
    /// The file system has no space to reserve.
    cannot_reserve: AtomicBool,
    known_data: KnownData,
}

/// A file that was opened with O_DIRECT, and what its requests are multiples of.
#[derive(Debug)]
struct Direct {
    file: File,
    align: u64,
}

impl Direct {
    /// Whether the kernel takes such a request; others use the page cache, which it keeps coherent.
    fn takes(&self, vectors: &[libc::iovec], offset: u64) -> bool {
        let is_whole = |number: u64| number.is_multiple_of(self.align);
        is_whole(offset)
            && vectors.len() <= MAX_VECTORS
            && vectors.iter().all(|vector| is_whole(vector.iov_base.addr() as u64) && is_whole(vector.iov_len as u64))
    }
}

/// `BLKDISCARD`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::c_ulong = 0x1277;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// Where the kernel does not tell; no disk wants more.
const DIRECT_ALIGN: u64 = 4096;
/// The most vectors one call takes (`IOV_MAX` of Linux).
const MAX_VECTORS: usize = 1024;

impl FileStorage {
    pub fn new(file: File) -> io::Result<Self> {
        let is_block_device = file.metadata()?.file_type().is_block_device();
        // SAFETY: no memory is passed.
        let end = if is_block_device { unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) } } else { 0 };
        let device_bytes = u64::try_from(end).map_err(|_| io::Error::last_os_error())?;
        let (cannot_reserve, known_data) = (AtomicBool::new(false), KnownData::default());
        Ok(Self { file, direct: None, is_block_device, device_bytes, cannot_reserve, known_data })
    }

    /// As `new`, with requests around the page cache where they are aligned.
    pub fn new_direct(file: File) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: no memory is passed.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        let may_write = flags & libc::O_ACCMODE == libc::O_RDWR;
        let opened = File::options().read(true).write(may_write).custom_flags(libc::O_DIRECT).open(path)?;
        let align = direct_align(&opened)?;
        Ok(Self { direct: Some(Direct { file: opened, align }), ..Self::new(file)? })
    }

    /// Whether the whole request was done around the page cache. What the device could not do is an
    /// error: the page cache would only hide it.
    fn transfer_direct(
        &self,
        vectors: &[libc::iovec],
        offset: u64,
        call: unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
    ) -> io::Result<bool> {
        let Some(direct) = self.direct.as_ref().filter(|direct| direct.takes(vectors, offset)) else {
            return Ok(false);
        };
        let total: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        let offset = as_off(offset)?;
        // SAFETY: the vectors are memory that may be read or written (of a source or a sink).
        let done = unsafe { call(direct.file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset) };
        // What was done in part, or was not taken (the end of a file), is done again with the cache.
        usize::try_from(done).map(|done| done == total).or_else(|_| match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EINTR)) => Ok(false),
            error => Err(error),
        })
    }

    /// How many bytes there were.
    fn read_some(&self, into: &Sink<'_>, offset: u64) -> io::Result<usize> {
        if self.transfer_direct(into.vectors(), offset, libc::preadv)? {
            return Ok(into.len());
        }
        let call = |vectors: &[libc::iovec], offset| {
            let count = vectors.len() as libc::c_int;
            // SAFETY: the vectors of a sink are writable memory.
            unsafe { libc::preadv(self.file.as_raw_fd(), vectors.as_ptr(), count, offset) }
        };
        transfer(call, into.vectors(), offset)
    }

    fn allocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (as_off(offset)?, as_off(len)?);
        // SAFETY: no memory is passed.
        let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode | libc::FALLOC_FL_KEEP_SIZE, offset, len) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn discard_blocks(&self, offset: u64, len: u64) -> io::Result<()> {
        let range = [offset, len];
        // SAFETY: BLKDISCARD reads two u64 from the pointer.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn write_plain_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len != 0 {
            let piece = len.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..piece as usize], offset)?;
            offset += piece;
            len -= piece;
        }
        Ok(())
    }

    fn seek(&self, offset: u64, what: libc::c_int) -> io::Result<Option<u64>> {
        // SAFETY: no memory is passed.
        let at = unsafe { libc::lseek(self.file.as_raw_fd(), as_off(offset)?, what) };
        if at >= 0 {
            return Ok(Some(at as u64));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        }
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        if self.is_block_device { Ok(self.device_bytes) } else { Ok(self.file.metadata()?.len()) }
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        let done = self.read_some(into, offset)?;
        into.slice(done, into.len() - done).fill_zero();
        Ok(())
    }

    fn read_exact(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        if self.read_some(into, offset)? == into.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> io::Result<()> {
        if self.transfer_direct(from.vectors(), offset, libc::pwritev)? {
            return Ok(());
        }
        let call = |vectors: &[libc::iovec], offset| {
            let count = vectors.len() as libc::c_int;
            // SAFETY: the vectors of a source are readable memory.
            unsafe { libc::pwritev(self.file.as_raw_fd(), vectors.as_ptr(), count, offset) }
        };
        let done = transfer(call, from.vectors(), offset)?;
        if done == from.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.is_block_device {
            self.file.set_len(len)?;
            self.known_data.forget();
            return Ok(());
        }
        if len <= self.device_bytes { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = if self.is_block_device {
            self.discard_blocks(offset, len)
        } else {
            self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len)
        };
        self.known_data.forget();
        done.or_else(|error| if is_unsupported(&error) { Ok(()) } else { Err(error) })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if !self.is_block_device && self.len()? < end {
            // To set the length would cut off what others write behind it meanwhile.
            let last = len.min(DIRECT_ALIGN);
            self.write_bytes(&ZEROES[..last as usize], end - last)?;
        }
        let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        let done = self.allocate(mode, offset, len);
        self.known_data.forget();
        match done {
            Err(error) if is_unsupported(&error) => self.write_plain_zeroes(offset, len),
            done => done,
        }
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_block_device || self.cannot_reserve.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.allocate(0, offset, len) {
            Err(error) if is_unsupported(&error) => self.cannot_reserve.store(true, Ordering::Relaxed),
            // Whatever else is wrong, the write tells.
            _ => {}
        }
        Ok(())
    }

    fn run_at(&self, offset: u64, limit: u64) -> io::Result<Run> {
        if self.is_block_device {
            return Ok(Run { is_data: true, len: limit });
        }
        if let Some(len) = self.known_data.after(offset) {
            return Ok(Run { is_data: true, len: len.min(limit) });
        }
        let data = self.seek(offset, libc::SEEK_DATA)?;
        if data != Some(offset) {
            let len = data.map_or(limit, |at| (at - offset).min(limit));
            return Ok(Run { is_data: false, len });
        }
        let hole = self.seek(offset, libc::SEEK_HOLE)?;
        if let Some(end) = hole {
            self.known_data.note(offset..end);
        }
        Ok(Run { is_data: true, len: hole.map_or(limit, |at| (at - offset).min(limit)) })
    }

    fn next_run(&self, offset: u64, limit: u64, is_data: bool) -> io::Result<Run> {
        if self.is_block_device {
            return self.run_at(offset, limit);
        }
        match self.seek(offset, if is_data { libc::SEEK_HOLE } else { libc::SEEK_DATA })? {
            Some(end) if end > offset => Ok(Run { is_data, len: (end - offset).min(limit) }),
            // The file ends there, or it was changed meanwhile.
            _ => self.run_at(offset, limit),
        }
    }

    fn grows_with_zeroes(&self) -> bool {
        !self.is_block_device
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// What requests on a file with O_DIRECT are multiples of, in memory and in the file.
fn direct_align(file: &File) -> io::Result<u64> {
    // SAFETY: all zeroes is a `statx`; the kernel fills in what it knows.
    let mut facts: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_DIOALIGN;
    // SAFETY: the path is an empty C string, and `facts` is a `statx` that lives through the call.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut facts) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let told = u64::from(facts.stx_dio_mem_align.max(facts.stx_dio_offset_align));
    Ok(if facts.stx_mask & mask != 0 && told.is_power_of_two() { told } else { DIRECT_ALIGN })
}

fn as_off(number: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(number).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The host or its file system has no such operation.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS))
}

/// Repeats `call` until every byte is transferred or it says that there are no more: how many were.
fn transfer(
    call: impl Fn(&[libc::iovec], libc::off_t) -> libc::ssize_t,
    vectors: &[libc::iovec],
    offset: u64,
) -> io::Result<usize> {
    let mut offset = as_off(offset)?;
    let first = call(&vectors[..vectors.len().min(MAX_VECTORS)], offset);
    let total: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    if first >= 0 && first as usize == total {
        return Ok(total);
    }
    let mut owned = vectors.to_vec();
    let (mut rest, mut done, mut moved) = (owned.as_mut_slice(), 0, first);
    loop {
        match moved {
            1.. => {
                done += moved as usize;
                offset = offset.checked_add(moved as libc::off_t).ok_or(io::ErrorKind::InvalidInput)?;
                rest = advance(rest, moved as usize);
            }
            0 => return Ok(done),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
        if rest.is_empty() {
            return Ok(done);
        }
        moved = call(&rest[..rest.len().min(MAX_VECTORS)], offset);
    }
}

/// The vectors without their first `bytes` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut bytes: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if bytes < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(bytes);
            first.iov_len -= bytes;
            break;
        }
        bytes -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}

/// Bytes in memory, for tests and fuzzing. `limit` is how long it may become.
#[derive(Debug)]
pub struct MemoryStorage {
    bytes: Mutex<Vec<u8>>,
    limit: u64,
}

impl MemoryStorage {
    pub fn new(bytes: Vec<u8>, limit: u64) -> Self {
        Self { bytes: Mutex::new(bytes), limit }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        act(&mut self.bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn grow(&self, end: u64) -> io::Result<()> {
        if end > self.limit {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.with(|bytes| {
            if (bytes.len() as u64) < end {
                bytes.resize(end as usize, 0);
            }
        });
        Ok(())
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        self.with(|bytes| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let to = from.saturating_add(into.len()).min(bytes.len());
            into.copy_from(&bytes[from..to]);
            into.slice(to - from, into.len()).fill_zero();
        });
        Ok(())
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> io::Result<()> {
        let end = offset.checked_add(from.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.grow(end)?;
        self.with(|bytes| from.copy_to(&mut bytes[offset as usize..end as usize]));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.grow(len)?;
        self.with(|bytes| bytes.truncate(len as usize));
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        self.grow(end)?;
        self.with(|bytes| bytes[offset as usize..end as usize].fill(0));
        Ok(())
    }

    fn run_at(&self, offset: u64, limit: u64) -> io::Result<Run> {
        let len = self.len()?;
        let is_data = offset < len;
        Ok(Run { is_data, len: if is_data { limit.min(len - offset) } else { limit } })
    }

    fn grows_with_zeroes(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_over_vectors_stops_inside_one() {
        let vector = |base: usize, len| libc::iovec { iov_base: base as *mut _, iov_len: len };
        let mut vectors = [vector(0x1000, 4), vector(0x2000, 4), vector(0x3000, 4)];
        let rest = advance(&mut vectors, 6);
        assert_eq!((rest.len(), rest[0].iov_base as usize, rest[0].iov_len), (2, 0x2002, 2));
        assert!(advance(rest, 6).is_empty());
    }

    #[test]
    fn hole_that_is_made_is_found_where_data_was_found_before() {
        let path = std::env::temp_dir().join(format!("ostler-hole-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        std::fs::remove_file(&path).expect("remove");
        let storage = FileStorage::new(file).expect("a storage");
        storage.write_bytes(&[1; 3 << 16], 0).expect("write");
        let (data, hole) = (|len| Run { is_data: true, len }, |len| Run { is_data: false, len });
        let run_at = |offset, limit| storage.run_at(offset, limit).expect("a run");
        assert_eq!(run_at(0, 1 << 20), data(3 << 16));
        assert_eq!((run_at(4096, 8192), run_at(1 << 16, 1 << 20)), (data(8192), data(2 << 16)));
        storage.discard(1 << 16, 1 << 16).expect("discard");
        // Where the file system has no holes, there is nothing to find.
        if run_at(0, 1 << 20) == data(3 << 16) {
            return;
        }
        assert_eq!((run_at(0, 1 << 20), run_at(1 << 16, 1 << 20)), (data(1 << 16), hole(1 << 16)));
        assert_eq!(run_at(2 << 16, 1 << 20), data(1 << 16));
        storage.write_zeroes(2 << 16, 1 << 16, true).expect("zeroes");
        storage.set_len(5 << 15).expect("cut");
        assert_eq!(run_at(1 << 16, 3 << 15), hole(3 << 15));
    }

    /// A page that begins where a page of the host does, out of room for two.
    fn aligned(room: &mut [u8]) -> &mut [u8] {
        let at = room.as_ptr().align_offset(4096);
        &mut room[at..at + 4096]
    }

    #[test]
    fn direct_requests_go_around_the_cache_where_they_are_aligned_and_read_the_same() {
        let path = std::env::temp_dir().join(format!("ostler-direct-{}", std::process::id()));
        let plain = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = plain().expect("a file");
        std::fs::remove_file(&path).expect("remove");
        // Where there is no O_DIRECT, there is nothing to test.
        let Ok(storage) = FileStorage::new_direct(file) else { return };
        let (mut room, mut other) = (vec![7; 8192], vec![0; 8192]);
        let page = aligned(&mut room);
        let direct = storage.transfer_direct(Source::new(page).vectors(), 4096, libc::pwritev);
        assert!(direct.expect("write"));
        assert!(!storage.transfer_direct(Source::new(page).vectors(), 1, libc::pwritev).expect("not aligned"));
        storage.write_bytes(b"between", 5000).expect("write");
        let read = aligned(&mut other);
        storage.read_bytes(read, 4096).expect("read");
        assert_eq!((&read[..904], &read[904..911], &read[911..]), (&page[..904], &b"between"[..], &page[911..]));
        // The end of the file is in the middle of a page.
        storage.set_len(5000).expect("cut");
        storage.read_bytes(read, 4096).expect("read");
        assert_eq!((&read[..904], &read[904..]), (&page[..904], &[0; 3192][..]));
    }

    extern "C" fn fails_with<const ERRNO: libc::c_int>(
        _: libc::c_int,
        _: *const libc::iovec,
        _: libc::c_int,
        _: libc::off_t,
    ) -> libc::ssize_t {
        // SAFETY: this thread's errno.
        unsafe { *libc::__errno_location() = ERRNO };
        -1
    }

    #[test]
    fn direct_requests_that_the_device_fails_are_not_answered_from_the_cache() {
        let path = std::env::temp_dir().join(format!("ostler-direct-fails-{}", std::process::id()));
        let opened = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = opened.expect("a file");
        std::fs::remove_file(&path).expect("remove");
        // Where there is no O_DIRECT, there is nothing to test.
        let Ok(storage) = FileStorage::new_direct(file) else { return };
        let mut room = vec![7; 8192];
        let page = aligned(&mut room);
        let vectors = Source::new(page);
        let failed = storage.transfer_direct(vectors.vectors(), 0, fails_with::<{ libc::EIO }>);
        assert_eq!(failed.expect_err("a broken device").raw_os_error(), Some(libc::EIO));
        assert!(!storage.transfer_direct(vectors.vectors(), 0, fails_with::<{ libc::EINVAL }>).expect("not taken"));
    }

    #[test]
    fn memory_after_its_end_reads_as_zeroes_and_does_not_grow_past_its_limit() {
        let storage = MemoryStorage::new(vec![7; 4], 8);
        let mut bytes = [1; 6];
        storage.read_bytes(&mut bytes, 2).expect("read");
        assert_eq!(bytes, [7, 7, 0, 0, 0, 0]);
        assert!(storage.write_bytes(&[1], 8).is_err());
    }
}
