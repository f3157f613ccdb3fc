//! Address translation and memory access.
//!
//! * [`physical`]: guest physical addresses to host memory;
//! * [`walk`]: the page-table walk;
//! * [`tlb`]: translations that were made before, as host addresses; [`spaces`]: those that outlive CR3;
//! * [`spared`]: stores to pages that hold code, beside it;
//! * [`guesses`]: pages that loads of jump targets are expected to be in;
//! * [`page_set`]: which pages an invalidation may concern;
//! * [`access`]: loads, stores and read-modify-writes of a linear address;
//! * [`mmio`]: accesses that no memory answers, and their replay after an exit.

pub mod access;
pub mod guesses;
pub mod mmio;
pub mod page_set;
pub mod physical;
mod second_level;
pub mod spaces;
mod spared;
pub mod tlb;
pub mod walk;

use std::sync::Arc;

use ostler_memory::GuestRam;

use crate::mmu::mmio::Replay;
use crate::mmu::physical::PhysicalMap;
use crate::mmu::spaces::Spaces;
use crate::mmu::tlb::Tlb;

/// Which of the sets of rights an access is made with; an index into the TLB's banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Privilege {
    /// CPL 0..2, user pages allowed: SMAP is off or overridden by AC.
    Supervisor = 0,
    /// CPL 0..2 with SMAP in force, and implicit accesses to system structures.
    SupervisorSmap = 1,
    /// CPL 3.
    User = 2,
    /// CPL 3 with alignment checks: nothing is ever found in its bank, so that the slow path checks.
    UserAligned = 3,
}

impl Privilege {
    pub const ALL: [Self; 4] = [Self::Supervisor, Self::SupervisorSmap, Self::User, Self::UserAligned];

    pub fn is_user(self) -> bool {
        matches!(self, Self::User | Self::UserAligned)
    }
}

/// A vCPU's view of memory.
#[derive(Debug)]
pub struct Mmu {
    pub tlb: Tlb,
    pub spaces: Spaces,
    pub physical: PhysicalMap,
    /// The rights of ordinary data accesses right now.
    pub privilege: Privilege,
    pub replay: Replay,
    /// The four PDPTEs of PAE paging, as CR3 loaded them.
    pub pdptes: [u64; 4],
}

impl Mmu {
    pub fn new(ram: Arc<GuestRam>) -> Self {
        Self {
            tlb: Tlb::default(),
            spaces: Spaces::default(),
            physical: PhysicalMap::new(ram),
            privilege: Privilege::Supervisor,
            replay: Replay::default(),
            pdptes: [0; 4],
        }
    }
}
