//! The memory slots of one VM.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};

use crate::log::{PageLog, WriteWatch};
use crate::{PAGE_BYTES, hole};

/// What a smaller slot cannot hold, so that asking would do nothing.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// One slot as `vm-memory` sees it.
pub type Region = GuestRegionMmap<PageLog>;
/// All slots at one moment.
pub type GuestMap = GuestMemoryMmap<PageLog>;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("slot {0}: address and size must be multiples of 4096 bytes, the size not 0")]
    Unaligned(u32),
    #[error("slot {0} ends past the 52-bit physical address space")]
    OutOfRange(u32),
    #[error("slot {0} overlaps another slot")]
    Overlap(u32),
    #[error("slot {0} does not exist")]
    NoSlot(u32),
    #[error("{0} words are more than this host can address")]
    TooLarge(u64),
    #[error("the host cannot map that much memory")]
    Map(#[source] std::io::Error),
    #[error("no memory at guest physical address {0:#x}")]
    Unmapped(u64),
}

/// Where the bytes of a slot live.
#[derive(Debug, Default)]
pub enum Backing {
    /// Private, zeroed, taken from the host when first touched.
    #[default]
    Anonymous,
    /// A file (a memfd, too) from `offset` bytes on, shared with every process that maps it.
    Shared { file: File, offset: u64 },
}

/// What [`GuestRam::set_slot`] is asked for.
#[derive(Debug, Default)]
pub struct SlotConfig {
    pub slot: u32,
    pub gpa: u64,
    pub size: u64,
    /// The guest cannot write; its writes become MMIO exits, as in KVM.
    pub read_only: bool,
    pub log_dirty: bool,
    pub backing: Backing,
}

#[derive(Debug)]
struct Slot {
    gpa: u64,
    size: u64,
    read_only: bool,
}

/// A slot as an accelerator that maps it elsewhere has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotView {
    pub slot: u32,
    pub gpa: u64,
    pub size: u64,
    pub read_only: bool,
    pub log_dirty: bool,
    /// Address of the first byte in this process.
    pub host_address: u64,
}

/// A page of the guest as the host sees it; valid while the map it was taken from is held.
#[derive(Clone, Copy, Debug)]
pub struct HostPage<'a> {
    /// Host address of byte 0 of the page.
    pub ptr: *mut u8,
    pub read_only: bool,
    /// The log of the slot and the page's index in it.
    pub log: &'a PageLog,
    pub index: u64,
}

/// The memory of one VM. Readers take a snapshot of the map without a lock; slots may come and go.
#[derive(Debug)]
pub struct GuestRam {
    map: GuestMemoryAtomic<GuestMap>,
    slots: Mutex<BTreeMap<u32, Slot>>,
    watch: Arc<WriteWatch>,
    generation: AtomicU64,
}

impl Default for GuestRam {
    fn default() -> Self {
        Self {
            map: GuestMemoryAtomic::new(GuestMap::new()),
            slots: Mutex::default(),
            watch: Arc::default(),
            generation: AtomicU64::new(0),
        }
    }
}

impl GuestRam {
    pub fn new() -> Self {
        Self::default()
    }

    /// The writes to watched lines of any slot.
    pub fn watch(&self) -> &Arc<WriteWatch> {
        &self.watch
    }

    /// Changes whenever a slot, or whether it is logged, changed: cached translations are stale then.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The map of this moment. Holding it keeps the host memory mapped.
    pub fn map(&self) -> Arc<GuestMap> {
        self.map.memory().into_inner()
    }

    /// The address space in the form `vm-memory`'s users take.
    pub fn address_space(&self) -> &GuestMemoryAtomic<GuestMap> {
        &self.map
    }

    /// All slots by number, and the map that keeps their host memory mapped.
    pub fn layout(&self) -> (Arc<GuestMap>, Vec<SlotView>) {
        let slots = self.slots();
        let map = self.map();
        let view = |(number, slot): (&u32, &Slot)| {
            let region = map.find_region(GuestAddress(slot.gpa))?;
            Some(SlotView {
                slot: *number,
                gpa: slot.gpa,
                size: slot.size,
                read_only: slot.read_only,
                log_dirty: bitmap(region).is_enabled(),
                host_address: region.as_ptr() as u64,
            })
        };
        let views = slots.iter().filter_map(view).collect();
        (map, views)
    }

    /// Adds what an accelerator's own log says to the dirty log of a slot: bit `n` of word `n / 64` of
    /// `words` is page `64 * first_word + n`. Nothing where the slot is not logged, or gone.
    pub fn merge_dirty_log(&self, slot: u32, first_word: u64, words: &[u64]) {
        // A slot that went meanwhile has no log to add to.
        let _gone = self.with_log(slot, |log| log.merge_dirty(first_word, words));
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<u32, Slot>> {
        self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a slot, replacing one of the same number.
    pub fn set_slot(&self, config: SlotConfig) -> Result<(), MemoryError> {
        let SlotConfig { slot, gpa, size, read_only, log_dirty, backing } = config;
        if gpa % PAGE_BYTES != 0 || size % PAGE_BYTES != 0 || size == 0 {
            return Err(MemoryError::Unaligned(slot));
        }
        let end = gpa.checked_add(size).filter(|end| *end <= 1 << 52).ok_or(MemoryError::OutOfRange(slot))?;
        let mut slots = self.slots();
        if slots.iter().any(|(number, other)| *number != slot && gpa < other.gpa + other.size && other.gpa < end) {
            return Err(MemoryError::Overlap(slot));
        }
        let region = Arc::new(self.map_region(gpa, size, backing)?);
        region.get_mmap().bitmap().set_enabled(log_dirty);
        let mut map = (*self.map()).clone();
        if let Some(old) = slots.remove(&slot) {
            map = without(&map, slot, &old)?;
        }
        map = map.insert_region(region).map_err(|_| MemoryError::Overlap(slot))?;
        slots.insert(slot, Slot { gpa, size, read_only });
        self.replace(map);
        Ok(())
    }

    /// Removes a slot. Its host memory is unmapped when the last snapshot of the map is gone.
    pub fn remove_slot(&self, slot: u32) -> Result<(), MemoryError> {
        let mut slots = self.slots();
        let old = slots.remove(&slot).ok_or(MemoryError::NoSlot(slot))?;
        let map = without(&self.map(), slot, &old)?;
        self.replace(map);
        Ok(())
    }

    /// Starts or stops the dirty log of a slot; it is empty afterwards.
    pub fn set_dirty_log(&self, slot: u32, enabled: bool) -> Result<(), MemoryError> {
        self.with_log(slot, |log| log.set_enabled(enabled))?;
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Reads and clears the dirty log: bit `n` of word `n / 64` is page `n` of the slot.
    pub fn take_dirty_log(&self, slot: u32) -> Result<Vec<u64>, MemoryError> {
        self.with_log(slot, PageLog::take_dirty)
    }

    /// The page at `gpa` (rounded down), looked up in `map`; `None` where no slot is.
    pub fn page<'a>(&self, map: &'a GuestMap, gpa: u64) -> Option<HostPage<'a>> {
        let gpa = gpa & !(PAGE_BYTES - 1);
        let region = map.find_region(GuestAddress(gpa))?;
        let offset = gpa - region.start_addr().0;
        // SAFETY: `offset` lies inside the region, as `find_region` found it there.
        let ptr = unsafe { region.as_ptr().add(offset as usize) };
        let read_only =
            self.slots().values().any(|slot| slot.read_only && (slot.gpa..slot.gpa + slot.size).contains(&gpa));
        Some(HostPage { ptr, read_only, log: bitmap(region), index: offset / PAGE_BYTES })
    }

    /// Copies guest memory from `gpa` on to `buffer`; all of it or an error.
    pub fn read(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.map.memory().read_slice(buffer, GuestAddress(gpa)).map_err(|_| MemoryError::Unmapped(gpa))
    }

    /// Copies `data` to guest memory from `gpa` on, read-only slots included (the host may write
    /// them). On an error, a part may have been written.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.map.memory().write_slice(data, GuestAddress(gpa)).map_err(|_| MemoryError::Unmapped(gpa))
    }

    fn map_region(&self, gpa: u64, size: u64, backing: Backing) -> Result<Region, MemoryError> {
        let bytes = usize::try_from(size).map_err(|_| MemoryError::TooLarge(size))?;
        let mapping = match backing {
            Backing::Anonymous if bytes >= HUGE_PAGE_BYTES => self.map_in_huge_pages(gpa, bytes)?,
            Backing::Anonymous => self.map_anonymous(gpa, bytes)?,
            Backing::Shared { file, offset } => {
                let builder = self.builder(gpa, bytes)?.with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE);
                build(builder.with_file_offset(FileOffset::new(file, offset)))?
            }
        };
        GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or(MemoryError::TooLarge(gpa))
    }

    fn builder(&self, gpa: u64, bytes: usize) -> Result<MmapRegionBuilder<PageLog>, MemoryError> {
        let log = PageLog::new(gpa, bytes as u64, Arc::clone(&self.watch))?;
        let builder = MmapRegionBuilder::new_with_bitmap(bytes, log);
        Ok(builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE))
    }

    fn map_anonymous(&self, gpa: u64, bytes: usize) -> Result<MmapRegion<PageLog>, MemoryError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        build(self.builder(gpa, bytes)?.with_mmap_flags(flags))
    }

    /// A mapping that begins as far into a huge page as `gpa` does, where the host lets us: only then can a page of
    /// 2 MiB on both sides be one entry of the nested page table. Linux since 6.7 places large mappings so by itself, for
    /// a `gpa` that begins a huge page, as RAM does.
    fn map_in_huge_pages(&self, gpa: u64, bytes: usize) -> Result<MmapRegion<PageLog>, MemoryError> {
        // Those that came to lie elsewhere stay until the end: they fill the holes that were found before ours.
        let mut elsewhere = Vec::new();
        for _ in 0..hole::ATTEMPTS {
            let _around = hole::leave(gpa, bytes);
            let mapping = self.map_anonymous(gpa, bytes)?;
            if hole::is_aligned(mapping.as_ptr(), gpa) {
                ask_for_huge_pages(mapping.as_ptr(), bytes);
                return Ok(mapping);
            }
            elsewhere.push(mapping);
        }
        let mapping = elsewhere.pop().ok_or(MemoryError::TooLarge(bytes as u64))?;
        ask_for_huge_pages(mapping.as_ptr(), bytes);
        Ok(mapping)
    }

    fn with_log<R>(&self, slot: u32, act: impl FnOnce(&PageLog) -> R) -> Result<R, MemoryError> {
        let gpa = self.slots().get(&slot).ok_or(MemoryError::NoSlot(slot))?.gpa;
        let map = self.map();
        let region = map.find_region(GuestAddress(gpa)).ok_or(MemoryError::NoSlot(slot))?;
        Ok(act(bitmap(region)))
    }

    fn replace(&self, map: GuestMap) {
        self.map.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).replace(map);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

fn build(builder: MmapRegionBuilder<PageLog>) -> Result<MmapRegion<PageLog>, MemoryError> {
    builder.build().map_err(|error| MemoryError::Map(std::io::Error::other(error)))
}

/// Asks for transparent huge pages: memory is then filled 2 MiB at a time, and a translation covers
/// as much. Where the host has none, it stays as it is.
fn ask_for_huge_pages(start: *mut u8, size: usize) {
    // SAFETY: advice about a whole mapping of ours, which changes no byte of it.
    let _none_here = unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
}

fn bitmap(region: &Region) -> &PageLog {
    // `GuestMemoryRegion::bitmap` gives a slice of the log; the log itself is the mapping's.
    (**region).bitmap()
}

fn without(map: &GuestMap, slot: u32, old: &Slot) -> Result<GuestMap, MemoryError> {
    let (map, _removed) = map.remove_region(GuestAddress(old.gpa), old.size).map_err(|_| MemoryError::NoSlot(slot))?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram_with(slot: u32, gpa: u64, size: u64) -> GuestRam {
        let ram = GuestRam::new();
        ram.set_slot(SlotConfig { slot, gpa, size, ..SlotConfig::default() }).expect("slot");
        ram
    }

    #[test]
    fn slot_written_reads_back_and_outside_is_an_error() {
        let ram = ram_with(0, 0x1000, 0x2000);
        ram.write(0x1ffe, b"abcd").expect("write");
        let mut buffer = [0; 4];
        ram.read(0x1ffe, &mut buffer).expect("read");
        assert_eq!(&buffer, b"abcd");
        assert!(matches!(ram.read(0x2ffe, &mut buffer), Err(MemoryError::Unmapped(_))));
    }

    #[test]
    fn slot_overlapping_another_is_refused() {
        let ram = ram_with(0, 0, 0x2000);
        let config = SlotConfig { slot: 1, gpa: 0x1000, size: 0x1000, ..SlotConfig::default() };
        assert!(matches!(ram.set_slot(config), Err(MemoryError::Overlap(1))));
    }

    #[test]
    fn slot_not_page_aligned_or_past_the_address_space_is_refused() {
        let ram = GuestRam::new();
        let unaligned = SlotConfig { gpa: 1, size: 0x1000, ..SlotConfig::default() };
        assert!(matches!(ram.set_slot(unaligned), Err(MemoryError::Unaligned(0))));
        let high = SlotConfig { gpa: 1 << 52, size: 0x1000, ..SlotConfig::default() };
        assert!(matches!(ram.set_slot(high), Err(MemoryError::OutOfRange(0))));
    }

    #[test]
    fn slot_removed_is_gone_while_a_snapshot_keeps_its_bytes() {
        let ram = ram_with(3, 0, 0x1000);
        let snapshot = ram.map();
        ram.remove_slot(3).expect("remove");
        assert!(ram.write(0, b"x").is_err());
        assert!(ram.page(&snapshot, 0).is_some());
        assert!(matches!(ram.remove_slot(3), Err(MemoryError::NoSlot(3))));
    }

    #[test]
    fn dirty_log_hears_of_device_writes() {
        let ram = ram_with(0, 0x10_0000, 0x10_0000);
        ram.set_dirty_log(0, true).expect("enable");
        ram.write(0x10_3fff, b"xy").expect("write");
        assert_eq!(ram.take_dirty_log(0).expect("log")[0], 0b11000);
    }

    #[test]
    fn slot_lies_in_huge_pages_of_the_host_as_in_the_guests() {
        let huge = HUGE_PAGE_BYTES as u64;
        for gpa in [0, 6 * huge, 1 << 32] {
            let ram = ram_with(0, gpa, 700 * huge);
            let (_map, views) = ram.layout();
            assert_eq!(views[0].host_address % huge, 0, "{gpa:#x}");
        }
    }

    #[test]
    fn sparse_slots_of_two_tebibytes_cost_nothing() {
        let ram = ram_with(0, 0, 2 << 40);
        ram.write((2 << 40) - 8, &[1; 8]).expect("write");
    }
}
