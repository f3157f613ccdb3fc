//! Guest physical memory.
//!
//! A guest's memory is a set of *slots*, as `/dev/kvm` has them: a range of guest physical
//! addresses backed by host memory, read-only or not, with or without a dirty log. Storage and
//! volatile access are `vm-memory`'s; this crate adds what every accelerator and device shares:
//!
//! * [`GuestRam`], the slots of one VM, replaceable while others read ([`ram`]);
//! * [`PageLog`], which hears of every write: it keeps the dirty log and the *watched lines*, the
//!   64-byte lines of which a software CPU holds decoded copies ([`log`]);
//! * [`LineMonitors`], which wake who waits for a write to a line ([`monitor`]);
//! * [`discard`], which gives memory back to the host, and [`heap`], for the allocator's.
//!
//! All numbers are bytes; `gpa` is a guest physical address.

mod discard;
pub mod heap;
mod hole;
pub mod log;
pub mod monitor;
pub mod ram;
mod sparse;

pub use discard::discard;
pub use log::{LINE_BYTES, PageLog, WatchedWrite, WriteWatch};
pub use monitor::{LineMonitors, Waiter};
pub use ram::{Backing, GuestMap, GuestRam, HostPage, MemoryError, Region, SlotConfig, SlotView};

/// The unit of the dirty log and of address translation.
pub const PAGE_BYTES: u64 = 4096;
