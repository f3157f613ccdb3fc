//! What is recorded about writes to guest memory: the dirty log and the watched lines.
//!
//! Every writer passes here: `vm-memory` calls [`Bitmap::mark_dirty`] for device writes, the
//! software CPU calls [`PageLog::note_write`] for stores that left its fast path.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::PAGE_BYTES;
use crate::monitor::{LineMonitors, Waiter};
use crate::ram::MemoryError;
use crate::sparse::SparseWords;

/// A watched line: small enough that data beside code rarely shares one, and 64 fill a `u64` per page.
pub const LINE_BYTES: u64 = 64;

/// A write that touched watched lines, as guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedWrite {
    pub gpa: u64,
    pub len: u64,
}

/// The writes to watched lines of one VM that the watchers have not seen yet.
///
/// Each watcher keeps its own position; `sequence` lets it ask for news with one load.
#[derive(Debug, Default)]
pub struct WriteWatch {
    sequence: AtomicU64,
    recent: Mutex<Vec<WatchedWrite>>,
    monitors: LineMonitors,
    /// Told of each write at once, besides being able to ask for it.
    watchers: Mutex<Vec<Weak<dyn Waiter>>>,
}

/// Entries kept before a watcher that lags behind is told to forget everything instead.
const RECENT_WRITES: usize = 1024;

impl WriteWatch {
    /// Those who wait for a write to a line of [`PageLog::monitor_line`].
    pub fn monitors(&self) -> &LineMonitors {
        &self.monitors
    }

    /// Has `watcher` told of every watched write, from the writer's thread, for as long as it lives.
    pub fn add_watcher(&self, watcher: Weak<dyn Waiter>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|other| other.strong_count() != 0);
        watchers.push(watcher);
    }

    /// The number of watched writes so far.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// The writes since `seen` and the new position; `None` when they are no longer all known,
    /// in which case the watcher has to assume that every watched line changed.
    pub fn since(&self, seen: u64) -> (u64, Option<Vec<WatchedWrite>>) {
        let recent = self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = self.sequence.load(Ordering::Acquire);
        let missed = now.wrapping_sub(seen);
        let known = recent.len() as u64;
        if missed > known {
            return (now, None);
        }
        (now, Some(recent[(known - missed) as usize..].to_vec()))
    }

    /// Tells every watcher of a write.
    pub fn publish(&self, write: WatchedWrite) {
        let mut recent = self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if recent.len() == RECENT_WRITES {
            recent.drain(..RECENT_WRITES / 2);
        }
        recent.push(write);
        self.sequence.fetch_add(1, Ordering::Release);
        drop(recent);
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().filter_map(Weak::upgrade).for_each(|watcher| watcher.written());
    }
}

/// The log of one slot: one dirty bit, one word of watched and one of monitored lines per page.
#[derive(Debug)]
pub struct PageLog {
    base_gpa: u64,
    pages: u64,
    enabled: AtomicBool,
    dirty: SparseWords,
    lines: SparseWords,
    monitored: SparseWords,
    /// Not 0 for pages of which [`PageLog::spare_lines`] gave lines away.
    spared: SparseWords,
    watch: Arc<WriteWatch>,
}

impl PageLog {
    /// A log for `len` bytes from `base_gpa`. Nothing is allocated until it is used: a sparse
    /// terabyte costs no more than a small guest.
    pub fn new(base_gpa: u64, len: u64, watch: Arc<WriteWatch>) -> Result<Self, MemoryError> {
        let pages = len.div_ceil(PAGE_BYTES);
        Ok(Self {
            base_gpa,
            pages,
            enabled: AtomicBool::new(false),
            dirty: SparseWords::new(pages.div_ceil(64))?,
            lines: SparseWords::new(pages)?,
            monitored: SparseWords::new(pages)?,
            spared: SparseWords::new(pages)?,
            watch,
        })
    }

    /// Whether writes have to be recorded as dirty.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Starts or stops the dirty log; both leave it empty.
    pub fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
        self.take_dirty();
    }

    /// Reads and clears the dirty log: bit `n` of word `n / 64` is page `n` of the slot.
    pub fn take_dirty(&self) -> Vec<u64> {
        (0..self.pages.div_ceil(64)).map(|word| self.dirty.take(word)).collect()
    }

    /// Marks pages as dirty that somebody else logged: bit `n` of word `n / 64` of `words` is page
    /// `64 * first_word + n`.
    pub fn merge_dirty(&self, first_word: u64, words: &[u64]) {
        if !self.is_enabled() {
            return;
        }
        let known = self.pages.div_ceil(64);
        for (word, bits) in (first_word..known).zip(words) {
            if *bits != 0 {
                self.dirty.or(word, *bits);
            }
        }
    }

    /// Whether a write to `page` (an index into the slot) has to be announced to this log
    /// because it would change the log, a watched line or a monitored one.
    pub fn must_note(&self, page: u64) -> bool {
        self.is_enabled() || self.watched_lines(page) != 0 || self.monitored_lines(page) != 0
    }

    /// The watched lines of `page`: bit `n` stands for bytes `64 n .. 64 n + 63`.
    pub fn watched_lines(&self, page: u64) -> u64 {
        if page < self.pages { self.lines.load(page) } else { 0 }
    }

    /// Watches `lines` of `page`; true when somebody may still store to one of them unnoticed.
    pub fn watch_lines(&self, page: u64, lines: u64) -> bool {
        page < self.pages && self.add_lines(&self.lines, page, lines)
    }

    fn add_lines(&self, to: &SparseWords, page: u64, lines: u64) -> bool {
        let before = to.or(page, lines);
        // Against [`PageLog::spare_lines`]: one of the two sees what the other wrote.
        fence(Ordering::SeqCst);
        before == 0 || lines & !before != 0 && self.spared.take(page) != 0
    }

    /// Allows stores to lines of `page` that are not noted here: to all but those returned, until
    /// [`PageLog::watch_lines`] or [`PageLog::monitor_lines`] says true of the page. `None` where every write is noted.
    pub fn spare_lines(&self, page: u64) -> Option<u64> {
        if page >= self.pages {
            return None;
        }
        self.spared.or(page, 1);
        fence(Ordering::SeqCst);
        (!self.is_enabled()).then(|| self.watched_lines(page) | self.monitored_lines(page))
    }

    /// Announces writes to `lines` of `page` to [`WriteWatch::monitors`] from now on; true as for
    /// [`PageLog::watch_lines`]. That is for good: who waited there once will do so again.
    pub fn monitor_lines(&self, page: u64, lines: u64) -> bool {
        page < self.pages && self.add_lines(&self.monitored, page, lines)
    }

    fn monitored_lines(&self, page: u64) -> u64 {
        if page < self.pages { self.monitored.load(page) } else { 0 }
    }

    /// Stops watching every line of `page`.
    pub fn unwatch_page(&self, page: u64) {
        if page < self.pages {
            self.lines.take(page);
        }
    }

    /// Records a write of `len` bytes at `offset` of the slot, which was made before; true when it touched a
    /// watched line.
    pub fn note_write(&self, offset: u64, len: u64) -> bool {
        if len == 0 {
            return false;
        }
        // Who watches a line sets its bit and then reads it: without the fence, the bit could be looked at here
        // while the bytes still wait in the store buffer, and neither would hear of the other.
        fence(Ordering::SeqCst);
        let last = (offset + (len - 1)) / PAGE_BYTES;
        let (mut watched, mut monitored) = (false, false);
        for page in offset / PAGE_BYTES..=last.min(self.pages.saturating_sub(1)) {
            if self.is_enabled() {
                self.dirty.or(page / 64, 1 << (page % 64));
            }
            let touches = |lines: u64| lines != 0 && lines & lines_touched(page, offset, len) != 0;
            watched |= touches(self.lines.load(page));
            monitored |= touches(self.monitored.load(page));
        }
        let write = WatchedWrite { gpa: self.base_gpa + offset, len };
        if monitored {
            self.watch.monitors.written(write);
        }
        if watched {
            self.watch.publish(write);
        }
        watched
    }
}

/// The lines of `page` that a write of `len` (not 0) bytes at `offset` touches.
fn lines_touched(page: u64, offset: u64, len: u64) -> u64 {
    let start = page * PAGE_BYTES;
    let first = offset.max(start) - start;
    let last = (offset + (len - 1)).min(start + PAGE_BYTES - 1) - start;
    let (first, last) = (first / LINE_BYTES, last / LINE_BYTES);
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

impl<'a> WithBitmapSlice<'a> for PageLog {
    type S = RefSlice<'a, PageLog>;
}

impl Bitmap for PageLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.note_write(offset as u64, len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset as u64 / PAGE_BYTES;
        page < self.pages && self.dirty.load(page / 64) & (1 << (page % 64)) != 0
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, PageLog> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(pages: u64) -> PageLog {
        PageLog::new(0x10_0000, pages * PAGE_BYTES, Arc::default()).expect("a small log")
    }

    #[test]
    fn dirty_log_disabled_records_nothing() {
        let log = log(4);
        log.note_write(0, 4 * PAGE_BYTES);
        assert_eq!(log.take_dirty(), [0]);
    }

    #[test]
    fn dirty_log_enabled_records_each_page_once_and_clears_on_take() {
        let log = log(130);
        log.set_enabled(true);
        log.note_write(PAGE_BYTES - 1, 2);
        log.note_write(129 * PAGE_BYTES, 1);
        assert_eq!(log.take_dirty(), [0b11, 0, 0b10]);
        assert_eq!(log.take_dirty(), [0, 0, 0]);
    }

    #[test]
    fn dirty_log_merged_adds_to_what_is_there_within_the_slot() {
        let log = log(130);
        log.merge_dirty(0, &[1]);
        log.set_enabled(true);
        log.note_write(0, 1);
        log.merge_dirty(1, &[0b10, 1, 7]);
        assert_eq!(log.take_dirty(), [1, 0b10, 1]);
    }

    #[test]
    fn write_past_the_slot_is_ignored() {
        let log = log(1);
        log.set_enabled(true);
        log.note_write(PAGE_BYTES * 7, 8);
        assert_eq!(log.take_dirty(), [0]);
    }

    #[test]
    fn watched_line_hears_only_of_its_own_bytes() {
        let log = log(2);
        assert!(log.watch_lines(1, 1 << 3));
        assert!(!log.watch_lines(1, 1 << 4));
        let line = PAGE_BYTES + 3 * LINE_BYTES;
        assert!(!log.note_write(line - 1, 1));
        assert!(log.note_write(line - 1, 2));
        let (position, news) = log.watch.since(0);
        assert_eq!((position, news), (1, Some(vec![WatchedWrite { gpa: 0x10_0000 + line - 1, len: 2 }])));
    }

    #[test]
    fn line_watched_on_a_page_with_spared_lines_is_news_to_who_stores_there() {
        let log = log(2);
        assert!(log.watch_lines(1, 1 << 3) && log.monitor_lines(1, 1 << 9));
        assert!(!log.watch_lines(1, 1 << 4), "every store to the page is noted");
        assert_eq!(log.spare_lines(1), Some(1 << 3 | 1 << 4 | 1 << 9));
        assert!(!log.watch_lines(1, 1 << 4), "it is watched already");
        assert!(log.watch_lines(1, 1 << 5));
        assert!(!log.watch_lines(1, 1 << 6), "who stored there was told");
        assert_eq!(log.spare_lines(1), Some(0b1111 << 3 | 1 << 9));
        assert!(log.monitor_lines(1, 1));
    }

    #[test]
    fn no_line_is_spared_of_a_slot_whose_dirty_pages_are_logged() {
        let log = log(2);
        log.set_enabled(true);
        assert_eq!((log.spare_lines(0), log.spare_lines(2)), (None, None));
    }

    #[test]
    fn watcher_that_lags_is_told_to_forget_everything() {
        let watch = WriteWatch::default();
        for gpa in 0..RECENT_WRITES as u64 + 1 {
            watch.publish(WatchedWrite { gpa, len: 1 });
        }
        assert_eq!(watch.since(0), (RECENT_WRITES as u64 + 1, None));
        assert_eq!(watch.since(RECENT_WRITES as u64).1.map(|news| news.len()), Some(1));
    }
}
