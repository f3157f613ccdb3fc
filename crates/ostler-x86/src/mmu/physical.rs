//! Guest physical addresses to host memory, without a lock.

use std::sync::Arc;

use ostler_memory::{GuestMap, GuestRam, PAGE_BYTES, PageLog};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The page part of an address.
pub const PAGE_MASK: u64 = !(PAGE_BYTES - 1);

/// One memory slot as the CPU uses it.
#[derive(Debug)]
struct Slot {
    start: u64,
    end: u64,
    host: *mut u8,
    read_only: bool,
    log: *const PageLog,
}

/// A view of the memory slots that is valid until [`PhysicalMap::refresh`] finds a newer one.
#[derive(Debug)]
pub struct PhysicalMap {
    ram: Arc<GuestRam>,
    /// Keeps the host memory that `slots` points into mapped.
    map: Arc<GuestMap>,
    generation: u64,
    slots: Vec<Slot>,
}

// SAFETY: the pointers in `slots` point into `map`, which any thread may access.
unsafe impl Send for PhysicalMap {}

/// A byte of guest memory as the host sees it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub host: *mut u8,
    pub read_only: bool,
    pub log: &'a PageLog,
    /// Offset into the slot, for the log.
    pub offset: u64,
}

impl PhysicalMap {
    pub fn new(ram: Arc<GuestRam>) -> Self {
        let map = ram.map();
        let mut this = Self { ram, map, generation: u64::MAX, slots: Vec::new() };
        this.refresh();
        this
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Takes over changes to the slots; true when there were any.
    pub fn refresh(&mut self) -> bool {
        let generation = self.ram.generation();
        if generation == self.generation {
            return false;
        }
        self.generation = generation;
        self.map = self.ram.map();
        self.slots = self
            .map
            .iter()
            .filter_map(|region| slot_view(&self.ram, &self.map, region.start_addr().0, region.len()))
            .collect();
        true
    }

    /// The memory at `gpa`; `None` where there is none.
    #[inline]
    pub fn find(&self, gpa: u64) -> Option<Place<'_>> {
        let slot = self.slots.iter().find(|slot| slot.start <= gpa && gpa < slot.end)?;
        let offset = gpa - slot.start;
        // SAFETY: `offset` is inside the slot, whose memory and log `self.map` keeps alive.
        unsafe {
            Some(Place { host: slot.host.add(offset as usize), read_only: slot.read_only, log: &*slot.log, offset })
        }
    }

    /// Reads an aligned table entry of 4 or 8 bytes; nothing there reads as zero: not present.
    pub fn read_entry(&self, gpa: u64, bytes: u64) -> u64 {
        match self.find(gpa) {
            // SAFETY: entries are aligned to their size, so all of it is in the slot.
            Some(place) if bytes == 8 => unsafe { place.host.cast::<u64>().read_volatile() },
            // SAFETY: as above.
            Some(place) => u64::from(unsafe { place.host.cast::<u32>().read_volatile() }),
            None => 0,
        }
    }

    /// Sets `bits` in the low word of a table entry; false when the entry was no longer `expected`.
    pub fn set_entry_bits(&self, gpa: u64, expected: u64, bits: u32) -> bool {
        let Some(place) = self.find(gpa) else { return true };
        if place.read_only {
            return true;
        }
        let low = expected as u32;
        // SAFETY: table entries are aligned to their size and inside the slot.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(place.host.cast()) };
        let order = std::sync::atomic::Ordering::SeqCst;
        let done = word.compare_exchange(low, low | bits, order, order).is_ok();
        if done {
            place.log.note_write(place.offset, 4);
        }
        done
    }
}

fn slot_view(ram: &GuestRam, map: &GuestMap, start: u64, len: u64) -> Option<Slot> {
    let page = ram.page(map, start)?;
    Some(Slot { start, end: start + len, host: page.ptr, read_only: page.read_only, log: page.log })
}
