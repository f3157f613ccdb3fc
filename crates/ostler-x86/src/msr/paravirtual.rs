//! KVM's MSRs: its end of interrupt, and its clock, a page in which a guest reads how time follows from its TSC.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::cpu::Cpu;

/// The first numbers these MSRs had, and those they have now.
const WALL_CLOCK: u32 = 0x11;
const SYSTEM_TIME: u32 = 0x12;
pub const WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
pub const SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;

pub const PV_EOI: u32 = 0x4b56_4d04;

const ENABLED: u64 = 1;
/// TSCs of all vCPUs agree.
const TSC_STABLE: u8 = 1;
/// The TSC counts nanoseconds: (delta << 1) * 2^31 >> 32 = delta.
const TSC_SHIFT: u8 = 1;
const TSC_TO_SYSTEM_MUL: u32 = 1 << 31;

impl Cpu {
    pub(super) fn read_paravirtual(&self, msr: u32) -> Option<u64> {
        match msr {
            WALL_CLOCK | WALL_CLOCK_NEW => Some(self.msrs.wall_clock),
            SYSTEM_TIME | SYSTEM_TIME_NEW => Some(self.msrs.system_time),
            PV_EOI => self.lapic.as_ref().map(|_| self.msrs.pv_eoi),
            _ => None,
        }
    }

    pub(super) fn write_paravirtual(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            WALL_CLOCK | WALL_CLOCK_NEW => {
                self.msrs.wall_clock = value;
                self.write_wall_clock(value)
            }
            SYSTEM_TIME | SYSTEM_TIME_NEW => {
                self.msrs.system_time = value;
                self.refresh_system_time()
            }
            PV_EOI => self.lapic.is_some() && self.write_pv_eoi(value),
            _ => false,
        }
    }

    /// Writes `struct pvclock_vcpu_time_info` if the guest enabled it; false when that is no memory.
    ///
    /// System time is the VM's clock, and the TSC is that plus TSC_ADJUST: nothing has to be
    /// written again when time passes, nor when the VM's clock is set.
    pub(super) fn refresh_system_time(&mut self) -> bool {
        let at = self.msrs.system_time;
        if at & ENABLED == 0 {
            return true;
        }
        let mut page = [0; 32];
        // The version is even: no update is under way.
        page[0..4].copy_from_slice(&2u32.to_le_bytes());
        page[8..16].copy_from_slice(&self.msrs.tsc_adjust.to_le_bytes());
        page[24..28].copy_from_slice(&TSC_TO_SYSTEM_MUL.to_le_bytes());
        page[28] = TSC_SHIFT;
        page[29] = TSC_STABLE;
        self.vm.memory().write(at & !ENABLED, &page).is_ok()
    }

    /// Writes `struct pvclock_wall_clock`: the wall time at which the VM's clock was zero.
    fn write_wall_clock(&self, at: u64) -> bool {
        // A host whose clock is before 1970 has no better answer.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let origin = now.saturating_sub(self.vm.clock.now_ns());
        let mut page = [0; 12];
        page[0..4].copy_from_slice(&2u32.to_le_bytes());
        page[4..8].copy_from_slice(&((origin / 1_000_000_000) as u32).to_le_bytes());
        page[8..12].copy_from_slice(&((origin % 1_000_000_000) as u32).to_le_bytes());
        self.vm.memory().write(at, &page).is_ok()
    }
}
