//! Model-specific registers (SDM vol. 4, and KVM's `Documentation/virt/kvm/x86/msr.rst`).
//!
//! Not modelled: performance counters, branch records, machine checks (the banks are there and
//! stay empty), power and thermal management. An MSR that is not here is #GP.

mod mtrr;
mod paravirtual;

use crate::cpu::Cpu;
use crate::cpu::control::{cr0, efer};
use crate::cpu::segment::{FS, GS};
use crate::irqchip::{APIC_BASE_MSR, TSC_DEADLINE_MSR};
use crate::mmu::access::is_canonical;

pub use mtrr::Mtrrs;

/// MSR numbers.
pub mod index {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const BIOS_UPDATE_TRIGGER: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MCG_CTL: u32 = 0x17b;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const MC0_CTL: u32 = 0x400;
    pub const MC_LAST: u32 = MC0_CTL + 4 * super::MC_BANKS - 1;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// Machine-check banks, all empty.
pub const MC_BANKS: u32 = 8;
/// MCG_CTL exists.
const MCG_CTL_P: u64 = 1 << 8;
/// The feature control register is locked: there is no VMX or SMX to enable.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// Of IA32_MISC_ENABLE: MONITOR and MWAIT exist.
pub const MONITOR_ENABLED: u64 = 1 << 18;
/// Fast strings on; no branch trace store, no PEBS.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12 | MONITOR_ENABLED;
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 3 | MONITOR_ENABLED | 1 << 22 | 1 << 34;
/// Write-back, write-through, UC-, UC, twice (SDM vol. 3, table 12-12).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// What a loaded microcode update says of itself.
const MICROCODE_REVISION: u64 = 1 << 32;
/// LBR and BTF: remembered, and without effect.
const DEBUGCTL_WRITABLE: u64 = 3;

/// The MSRs that are plain storage.
#[derive(Clone, Copy, Debug)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    /// TSC minus the VM's clock.
    pub tsc_adjust: u64,
    pub tsc_aux: u64,
    pub misc_enable: u64,
    pub debugctl: u64,
    pub pat: u64,
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    /// CTL, STATUS, ADDR and MISC of each bank.
    pub mc: [u64; 4 * MC_BANKS as usize],
    pub mtrr: Mtrrs,
    /// KVM's clock: where, with its enable bit.
    pub system_time: u64,
    pub wall_clock: u64,
    /// Where KVM's paravirtual end of interrupt is, with its enable bit.
    pub pv_eoi: u64,
    /// CR8 of a CPU without a local APIC.
    pub tpr: u8,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_adjust: 0,
            tsc_aux: 0,
            misc_enable: MISC_ENABLE_RESET,
            debugctl: 0,
            pat: PAT_RESET,
            mcg_status: 0,
            mcg_ctl: u64::MAX,
            mc: [0; 4 * MC_BANKS as usize],
            mtrr: Mtrrs::default(),
            system_time: 0,
            wall_clock: 0,
            pv_eoi: 0,
            tpr: 0,
        }
    }
}

/// Every MSR that is part of a vCPU's state, in an order in which they can be restored. The local
/// APIC's registers are in its page; the TSC follows from the VM's clock and TSC_ADJUST.
pub fn saved(has_lapic: bool) -> Vec<u32> {
    use index::*;
    let mut list = vec![
        EFER,
        STAR,
        LSTAR,
        CSTAR,
        FMASK,
        KERNEL_GS_BASE,
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
        TSC_ADJUST,
        TSC_AUX,
        MISC_ENABLE,
        DEBUGCTL,
        PAT,
        MCG_STATUS,
        MCG_CTL,
    ];
    list.extend(MC0_CTL..=MC_LAST);
    list.extend(mtrr::saved());
    list.extend([paravirtual::SYSTEM_TIME_NEW, paravirtual::WALL_CLOCK_NEW]);
    if has_lapic {
        list.extend([APIC_BASE_MSR, TSC_DEADLINE_MSR, paravirtual::PV_EOI]);
    }
    list
}

fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

impl Cpu {
    /// The time-stamp counter: nanoseconds.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.vm.clock.now_ns().wrapping_add(self.msrs.tsc_adjust)
    }

    /// RDMSR; `None` is #GP.
    pub fn read_msr(&self, msr: u32) -> Option<u64> {
        use index::*;
        let msrs = &self.msrs;
        Some(match msr {
            TSC => self.tsc(),
            TSC_ADJUST => msrs.tsc_adjust,
            TSC_AUX => msrs.tsc_aux,
            EFER => self.efer,
            STAR => msrs.star,
            LSTAR => msrs.lstar,
            CSTAR => msrs.cstar,
            FMASK => msrs.fmask,
            FS_BASE => self.segments[FS].base,
            GS_BASE => self.segments[GS].base,
            KERNEL_GS_BASE => msrs.kernel_gs_base,
            SYSENTER_CS => msrs.sysenter_cs,
            SYSENTER_ESP => msrs.sysenter_esp,
            SYSENTER_EIP => msrs.sysenter_eip,
            PAT => msrs.pat,
            MISC_ENABLE => msrs.misc_enable,
            DEBUGCTL => msrs.debugctl,
            FEATURE_CONTROL => FEATURE_CONTROL_LOCKED,
            BIOS_SIGN_ID => MICROCODE_REVISION,
            PLATFORM_ID | EBL_CR_POWERON | PLATFORM_INFO | PERF_STATUS => 0,
            MCG_CAP => u64::from(MC_BANKS) | MCG_CTL_P,
            MCG_STATUS => msrs.mcg_status,
            MCG_CTL => msrs.mcg_ctl,
            MC0_CTL..=MC_LAST => msrs.mc[(msr - MC0_CTL) as usize],
            TSC_DEADLINE_MSR => self.tsc_deadline()?,
            APIC_BASE_MSR | X2APIC_FIRST..=X2APIC_LAST => self.lapic.as_ref()?.read_msr(msr)?,
            _ => return self.msrs.mtrr.read(msr).or_else(|| self.read_paravirtual(msr)),
        })
    }

    /// WRMSR; false is #GP.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        use index::*;
        match msr {
            EFER => return self.write_efer(value),
            LSTAR | CSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE | SYSENTER_ESP | SYSENTER_EIP
                if !is_canonical(value) =>
            {
                return false;
            }
            FS_BASE => self.set_segment_base(FS, value),
            GS_BASE => self.set_segment_base(GS, value),
            TSC => self.set_tsc_adjust(value.wrapping_sub(self.vm.clock.now_ns())),
            TSC_ADJUST => self.set_tsc_adjust(value),
            TSC_DEADLINE_MSR => return self.set_tsc_deadline(value),
            APIC_BASE_MSR | X2APIC_FIRST..=X2APIC_LAST => {
                self.settle_pv_eoi();
                return self.lapic.as_ref().is_some_and(|lapic| lapic.write_msr(msr, value));
            }
            _ => return self.write_storage(msr, value) || self.write_paravirtual(msr, value),
        }
        true
    }

    /// Sets an MSR from a saved state.
    pub fn restore_msr(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            index::EFER if value & !efer::IMPLEMENTED == 0 => {
                self.efer = value;
                self.flush_tlb();
                self.update_mode();
                true
            }
            APIC_BASE_MSR => self.lapic.as_ref().is_some_and(|lapic| lapic.restore_apic_base(value)),
            paravirtual::WALL_CLOCK_NEW => {
                // The guest read it long ago.
                self.msrs.wall_clock = value;
                true
            }
            _ => self.write_msr(msr, value),
        }
    }

    /// The MSRs whose writes have no effect but to be read back.
    fn write_storage(&mut self, msr: u32, value: u64) -> bool {
        use index::*;
        let msrs = &mut self.msrs;
        let accepted = match msr {
            TSC_AUX | SYSENTER_CS => value >> 32 == 0,
            FMASK => value >> 32 == 0,
            PAT => is_valid_pat(value),
            MISC_ENABLE => (value ^ MISC_ENABLE_RESET) & !MISC_ENABLE_WRITABLE == 0,
            DEBUGCTL => value & !DEBUGCTL_WRITABLE == 0,
            MCG_STATUS => value == 0,
            MC0_CTL..=MC_LAST => (msr - MC0_CTL).is_multiple_of(4) || value == 0,
            FEATURE_CONTROL => value == FEATURE_CONTROL_LOCKED,
            _ => true,
        };
        if !accepted {
            return false;
        }
        let place = match msr {
            STAR => &mut msrs.star,
            LSTAR => &mut msrs.lstar,
            CSTAR => &mut msrs.cstar,
            FMASK => &mut msrs.fmask,
            KERNEL_GS_BASE => &mut msrs.kernel_gs_base,
            SYSENTER_CS => &mut msrs.sysenter_cs,
            SYSENTER_ESP => &mut msrs.sysenter_esp,
            SYSENTER_EIP => &mut msrs.sysenter_eip,
            TSC_AUX => &mut msrs.tsc_aux,
            PAT => &mut msrs.pat,
            MISC_ENABLE => &mut msrs.misc_enable,
            DEBUGCTL => &mut msrs.debugctl,
            MCG_STATUS => &mut msrs.mcg_status,
            MCG_CTL => &mut msrs.mcg_ctl,
            MC0_CTL..=MC_LAST => &mut msrs.mc[(msr - MC0_CTL) as usize],
            // A microcode update is taken for loaded; the others keep their value.
            BIOS_UPDATE_TRIGGER | BIOS_SIGN_ID | EBL_CR_POWERON | FEATURE_CONTROL => return true,
            _ => return msrs.mtrr.write(msr, value),
        };
        *place = value;
        true
    }

    fn write_efer(&mut self, value: u64) -> bool {
        let changed = value ^ self.efer;
        let lme_while_paging = changed & efer::LME != 0 && self.cr0 & cr0::PG != 0;
        if value & !efer::IMPLEMENTED != 0 || lme_while_paging {
            return false;
        }
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        true
    }

    fn set_tsc_adjust(&mut self, value: u64) {
        let deadline = self.tsc_deadline();
        self.msrs.tsc_adjust = value;
        self.refresh_system_time();
        if let Some(deadline) = deadline.filter(|deadline| *deadline != 0) {
            self.set_tsc_deadline(deadline);
        }
    }

    /// The local APIC's deadline counts the VM's clock; the guest's, its TSC. Zero is none.
    fn tsc_deadline(&self) -> Option<u64> {
        let deadline = self.lapic.as_ref()?.read_msr(TSC_DEADLINE_MSR)?;
        Some(if deadline == 0 { 0 } else { deadline.wrapping_add(self.msrs.tsc_adjust) })
    }

    fn set_tsc_deadline(&mut self, value: u64) -> bool {
        let clock = value.wrapping_sub(self.msrs.tsc_adjust);
        let deadline = match value {
            0 => 0,
            // Before the clock began: it is due.
            _ if (clock as i64) <= 0 => 1,
            _ => clock,
        };
        self.lapic.as_ref().is_some_and(|lapic| lapic.write_msr(TSC_DEADLINE_MSR, deadline))
    }
}
