//! KVM's dirty log, added to the log of `GuestRam` whenever somebody asks.

use kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap};
use kvm_ioctls::VmFd;
use ostler_engine::accel::Result;
use ostler_memory::{GuestRam, PAGE_BYTES};

use crate::capability::Capabilities;
use crate::ioctl::{clear_dirty_log, host};
use crate::ring::Rings;
use crate::slots::Piece;

/// Pages cleared by one call: KVM holds its MMU lock meanwhile, and vCPUs wait for it.
const CLEAR_PAGES: u64 = 1 << 18;

/// How the log of this VM is read.
#[derive(Debug)]
pub enum Log {
    Bitmap {
        /// Reading does not clear: pages are cleared, and protected again, in pieces of `CLEAR_PAGES`.
        manual: bool,
    },
    Rings(Rings),
}

impl Log {
    /// `ring`: how many entries the ring of each vCPU has; `None` for bitmaps.
    pub fn new(vm: &VmFd, capabilities: &Capabilities, ring: Option<u32>) -> Result<Self> {
        if let Some(entries) = ring {
            return Ok(Self::Rings(Rings::enable(vm, capabilities, entries)?));
        }
        let manual = capabilities.manual_protect & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0;
        if manual {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
            cap.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into();
            vm.enable_cap(&cap).map_err(host("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"))?;
        }
        Ok(Self::Bitmap { manual })
    }

    /// Moves what KVM logged of `slot` to the log of `ram`.
    pub fn collect(&self, vm: &VmFd, slot: u32, pieces: &[Piece], ram: &GuestRam) -> Result<()> {
        // Rings are of no slot: `Shared::take_rings` empties them.
        let Self::Bitmap { manual } = self else { return Ok(()) };
        for piece in pieces {
            let words = vm
                .get_dirty_log(piece.number, (piece.pages * PAGE_BYTES) as usize)
                .map_err(host("KVM_GET_DIRTY_LOG"))?;
            if *manual {
                clear(vm, piece, &words)?;
            }
            ram.merge_dirty_log(slot, piece.first_page / 64, &words);
        }
        Ok(())
    }
}

/// Clears what was read. A page that is written between the two is found dirty by whoever looks at
/// it: its bytes are read after this.
fn clear(vm: &VmFd, piece: &Piece, words: &[u64]) -> Result<()> {
    for first in (0..piece.pages).step_by(CLEAR_PAGES as usize) {
        let pages = CLEAR_PAGES.min(piece.pages - first);
        let words = &words[(first / 64) as usize..][..pages.div_ceil(64) as usize];
        if words.iter().any(|word| *word != 0) {
            clear_dirty_log(vm, piece.number, first, pages as u32, words).map_err(host("KVM_CLEAR_DIRTY_LOG"))?;
        }
    }
    Ok(())
}
