//! Who answers which port and which address.
//!
//! The bus knows the owner of every range and asks it on the vCPU's own thread. Looking a range up
//! takes no lock: a change makes a new table and swaps it in.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use vmm_sys_util::eventfd::EventFd;

use crate::accel::Vm;
use crate::counters::{DeviceCounters, DeviceNumber, NOBODY};
use crate::exit::IoHandler;

/// Something that answers accesses to a range. Called on vCPU threads, from several at once.
///
/// `data` has 1, 2, 4 or 8 bytes, little-endian, and lies wholly inside the range.
pub trait BusDevice: Send + Sync + Debug {
    /// Fills `data` with what is at `offset` bytes into the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);

    /// Whether answers are decided in Python, so that the time they take is worth knowing.
    fn decides(&self) -> bool {
        false
    }
}

/// The two address spaces of a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// 64 Ki I/O ports, reached by IN and OUT.
    Pio,
    /// Guest physical addresses where no memory slot is.
    Mmio,
}

impl Space {
    fn last_address(self) -> u64 {
        match self {
            Self::Pio => 0xffff,
            Self::Mmio => (1 << 52) - 1,
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pio => "port",
            Self::Mmio => "MMIO",
        })
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    #[error("{name}: a {space} range of {size:#x} bytes at {base:#x} is empty or past the end of the space")]
    BadRange { space: Space, name: String, base: u64, size: u64 },
    #[error("{name}: {space} range {base:#x}..={last:#x} overlaps {other}'s {other_base:#x}..={other_last:#x}")]
    Overlap { space: Space, name: String, base: u64, last: u64, other: String, other_base: u64, other_last: u64 },
    #[error("no {space} range starts at {base:#x}")]
    NoRange { space: Space, base: u64 },
}

/// A range and its owner. `last` is inside it.
#[derive(Clone, Debug)]
struct Range {
    base: u64,
    last: u64,
    name: Arc<str>,
    number: DeviceNumber,
    decides: bool,
    device: Arc<dyn BusDevice>,
}

impl Range {
    fn read(&self, address: u64, data: &mut [u8], counters: Option<&DeviceCounters>) {
        self.counted(counters, || self.device.read(address - self.base, data));
    }

    fn write(&self, address: u64, data: &[u8], counters: Option<&DeviceCounters>) {
        self.counted(counters, || self.device.write(address - self.base, data));
    }

    fn counted(&self, counters: Option<&DeviceCounters>, answer: impl FnOnce()) {
        match counters {
            Some(counters) => counters.count(self.number, self.decides, answer),
            None => answer(),
        }
    }
}

/// The ranges of one space, sorted by base, none overlapping another.
#[derive(Debug, Default)]
struct Ranges(ArcSwap<Vec<Range>>);

impl Ranges {
    fn change<R>(&self, edit: impl FnOnce(&mut Vec<Range>) -> R) -> R {
        let mut ranges = Vec::clone(&self.0.load());
        let result = edit(&mut ranges);
        self.0.store(Arc::new(ranges));
        result
    }
}

/// The range that `address` is in.
fn find(ranges: &[Range], address: u64) -> Option<&Range> {
    let after = ranges.partition_point(|range| range.base <= address);
    ranges[..after].last().filter(|range| address <= range.last)
}

/// The range that takes an access of `len` bytes as one.
fn find_whole(ranges: &[Range], address: u64, len: usize) -> Option<&Range> {
    let whole = |range: &&Range| range.last - address >= len as u64 - 1 && matches!(len, 1 | 2 | 4 | 8);
    find(ranges, address).filter(whole)
}

/// The port and MMIO ranges of one VM.
#[derive(Debug)]
pub struct Bus {
    pio: Ranges,
    mmio: Ranges,
    /// Held while a table is replaced. The names of owners so far: a range that is taken away and
    /// added again, as a BAR that moves, keeps its number.
    changing: Mutex<Vec<Arc<str>>>,
    open_bus: AtomicBool,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            pio: Ranges::default(),
            mmio: Ranges::default(),
            changing: Mutex::new(vec!["nobody".into()]),
            open_bus: AtomicBool::new(true),
        }
    }
}

impl Bus {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nobody's addresses read as ones and take writes silently, as on a PC's bus. Without
    /// it, an access that nobody owns becomes an exit.
    pub fn open_bus(&self) -> bool {
        self.open_bus.load(Ordering::Relaxed)
    }

    pub fn set_open_bus(&self, open: bool) {
        self.open_bus.store(open, Ordering::Relaxed);
    }

    /// Gives `size` bytes from `base` on to `device`; `name` is for messages.
    pub fn add(
        &self,
        space: Space,
        base: u64,
        size: u64,
        name: &str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = size
            .checked_sub(1)
            .and_then(|above| base.checked_add(above))
            .filter(|last| *last <= space.last_address())
            .ok_or_else(|| BusError::BadRange { space, name: name.into(), base, size })?;
        let mut names = self.names();
        let ranges = self.ranges(space);
        if let Some(other) = ranges.0.load().iter().find(|other| base <= other.last && other.base <= last) {
            return Err(BusError::Overlap {
                space,
                name: name.into(),
                base,
                last,
                other: other.name.to_string(),
                other_base: other.base,
                other_last: other.last,
            });
        }
        let number = number_of(&mut names, name);
        let range = Range {
            base,
            last,
            name: Arc::clone(&names[number]),
            number: number as u16,
            decides: device.decides(),
            device,
        };
        ranges.change(|ranges| ranges.insert(ranges.partition_point(|range| range.base < base), range));
        Ok(())
    }

    /// Takes away the range that starts at `base`. An access that is under way still ends there.
    pub fn remove(&self, space: Space, base: u64) -> Result<(), BusError> {
        let _changing = self.names();
        self.ranges(space).change(|ranges| {
            let at = ranges.binary_search_by_key(&base, |range| range.base);
            at.map(|at| drop(ranges.remove(at))).map_err(|_| BusError::NoRange { space, base })
        })
    }

    /// Takes away every range.
    pub fn clear(&self) {
        let _changing = self.names();
        self.pio.change(Vec::clear);
        self.mmio.change(Vec::clear);
    }

    /// Base, size and name of every range of `space`, by address.
    pub fn list(&self, space: Space) -> Vec<(u64, u64, String)> {
        let ranges = self.ranges(space).0.load();
        ranges.iter().map(|range| (range.base, range.last - range.base + 1, range.name.to_string())).collect()
    }

    /// The owners there have been, by the number under which their accesses are counted.
    pub fn device_names(&self) -> Vec<Arc<str>> {
        self.names().clone()
    }

    fn names(&self) -> MutexGuard<'_, Vec<Arc<str>>> {
        self.changing.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn ranges(&self, space: Space) -> &Ranges {
        match space {
            Space::Pio => &self.pio,
            Space::Mmio => &self.mmio,
        }
    }

    fn read(&self, space: Space, address: u64, data: &mut [u8], counters: Option<&DeviceCounters>) -> bool {
        let ranges = self.ranges(space).0.load();
        if let Some(range) = find_whole(&ranges, address, data.len()) {
            range.read(address, data, counters);
            return true;
        }
        self.read_bytes(&ranges, address, data, counters) || self.nobody(counters)
    }

    /// An access that no range takes as one is made byte by byte, as an ISA bridge does; bytes that
    /// nobody owns read as ones. False when that is all of them.
    fn read_bytes(&self, ranges: &[Range], address: u64, data: &mut [u8], counters: Option<&DeviceCounters>) -> bool {
        data.fill(0xff);
        let mut owned = false;
        for (address, byte) in (address..).zip(data.chunks_mut(1)) {
            if let Some(range) = find(ranges, address) {
                range.read(address, byte, counters);
                owned = true;
            }
        }
        owned
    }

    fn write(&self, space: Space, address: u64, data: &[u8], counters: Option<&DeviceCounters>) -> bool {
        let ranges = self.ranges(space).0.load();
        if let Some(range) = find_whole(&ranges, address, data.len()) {
            range.write(address, data, counters);
            return true;
        }
        let mut owned = false;
        for (address, byte) in (address..).zip(data.chunks(1)) {
            if let Some(range) = find(&ranges, address) {
                range.write(address, byte, counters);
                owned = true;
            }
        }
        owned || self.nobody(counters)
    }

    /// Whether an access that nobody owns is answered, by the open bus.
    fn nobody(&self, counters: Option<&DeviceCounters>) -> bool {
        let open = self.open_bus();
        if let (true, Some(counters)) = (open, counters) {
            counters.count(NOBODY, false, || ());
        }
        open
    }
}

/// The place of `name` in `names`, where it is put if it is new.
fn number_of(names: &mut Vec<Arc<str>>, name: &str) -> usize {
    let known = names.iter().position(|known| **known == *name);
    known.unwrap_or_else(|| {
        // Names are not forgotten, so somebody who makes up new ones has to share the last number.
        if names.len() > usize::from(DeviceNumber::MAX) {
            return usize::from(DeviceNumber::MAX);
        }
        names.push(name.into());
        names.len() - 1
    })
}

impl IoHandler for Bus {
    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.read(Space::Pio, port.into(), data, None)
    }

    fn io_write(&self, port: u16, data: &[u8]) -> bool {
        self.write(Space::Pio, port.into(), data, None)
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.read(Space::Mmio, gpa, data, None)
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.write(Space::Mmio, gpa, data, None)
    }

    fn io_read_counted(&self, port: u16, data: &mut [u8], counters: &DeviceCounters) -> bool {
        self.read(Space::Pio, port.into(), data, Some(counters))
    }

    fn io_write_counted(&self, port: u16, data: &[u8], counters: &DeviceCounters) -> bool {
        self.write(Space::Pio, port.into(), data, Some(counters))
    }

    fn mmio_read_counted(&self, gpa: u64, data: &mut [u8], counters: &DeviceCounters) -> bool {
        self.read(Space::Mmio, gpa, data, Some(counters))
    }

    fn mmio_write_counted(&self, gpa: u64, data: &[u8], counters: &DeviceCounters) -> bool {
        self.write(Space::Mmio, gpa, data, Some(counters))
    }
}

/// A range whose every write adds 1 to an eventfd, as KVM's `ioeventfd`; reads give zeros.
#[derive(Debug)]
pub struct Doorbell(pub EventFd);

impl BusDevice for Doorbell {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        // A full counter means that the reader has all the news it needs.
        let _full = self.0.write(1);
    }
}

/// A [`Doorbell`] that the accelerator rings without leaving the guest, where it can. What it does
/// not see (a write past the first byte, say) still comes over the bus.
#[derive(Debug)]
pub struct BoundDoorbell {
    doorbell: Doorbell,
    vm: Arc<dyn Vm>,
    at: Option<(Space, u64)>,
}

impl BoundDoorbell {
    /// For the range of `space` that begins at `base`. It is unbound when the bus lets it go.
    pub fn new(vm: Arc<dyn Vm>, space: Space, base: u64, eventfd: EventFd) -> Self {
        let at = vm.bind_doorbell(space, base, &eventfd).then_some((space, base));
        Self { doorbell: Doorbell(eventfd), vm, at }
    }
}

impl Drop for BoundDoorbell {
    fn drop(&mut self) {
        if let Some((space, base)) = self.at {
            self.vm.unbind_doorbell(space, base, &self.doorbell.0);
        }
    }
}

impl BusDevice for BoundDoorbell {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.doorbell.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.doorbell.write(offset, data);
    }
}

#[cfg(test)]
mod tests;
