//! What CPUID answers.
//!
//! The CPU says it is an Intel Atom of the "Bonnell" family, extended with newer features: an in-order
//! processor that does not speculate, as ours does not, so that guests leave out the costly
//! mitigations. See `docs/decisions`.

mod feature;
mod leaves;

use iced_x86::{Code, CpuidFeature};
use ostler_engine::cpuid::limited_to;
use ostler_engine::regs::CpuidEntry;

use crate::cpu::Cpu;
use crate::cpu::control::cr4;
use crate::exec::availability::xcr0;
use crate::msr::MONITOR_ENABLED;

pub use feature::Feature;
use leaves::{APIC, EXTENDED_TOPOLOGY, FEATURES, MONITOR, OSXSAVE, XSAVE};

/// Bytes of an XSAVE area without and with AVX state.
pub const XSAVE_BYTES: u32 = 576;
pub const XSAVE_AVX_BYTES: u32 = 832;

/// The rows of CPUID of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct CpuidTable {
    entries: Vec<CpuidEntry>,
    /// One bit per [`Feature`].
    features: u64,
}

impl CpuidTable {
    /// Everything there is, for the vCPU with APIC id `id`.
    pub fn supported(id: u32) -> Self {
        Self::new(leaves::supported(id))
    }

    /// What a user asked for, without the features there are not.
    pub fn from_user(entries: &[CpuidEntry]) -> Self {
        Self::new(limited_to(entries, &leaves::supported(0)))
    }

    fn new(entries: Vec<CpuidEntry>) -> Self {
        let mut table = Self { entries, features: 0 };
        for feature in Feature::ALL {
            if table.find(feature.leaf(), 0).is_some_and(|entry| feature.is_in(entry)) {
                table.features |= 1 << *feature as u32;
            }
        }
        table
    }

    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    pub fn has(&self, feature: Feature) -> bool {
        self.features >> feature as u32 & 1 != 0
    }

    pub fn has_avx(&self) -> bool {
        self.has(Feature::Avx)
    }

    /// Family, model and stepping: EAX of leaf 1.
    pub fn signature(&self) -> u32 {
        self.find(FEATURES, 0).map_or(0, |entry| entry.eax)
    }

    /// Whether an instruction exists on this CPU, as far as CPUID decides that.
    pub fn allows(&self, code: Code) -> bool {
        code.cpuid_features().iter().all(|feature: &CpuidFeature| match Feature::of_instruction(*feature) {
            Some(feature) => self.has(feature),
            None => true,
        })
    }

    fn find(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        self.entries.iter().find(|entry| entry.function == leaf && (!entry.significant_index || entry.index == subleaf))
    }
}

impl Cpu {
    /// What CPUID gives for EAX = `leaf` and ECX = `subleaf`: zeros for what is not there.
    pub fn cpuid_answer(&self, leaf: u32, subleaf: u32) -> CpuidEntry {
        let mut entry = self.cpuid.find(leaf, subleaf).copied().unwrap_or_default();
        match leaf {
            FEATURES => {
                if self.cr4 & cr4::OSXSAVE != 0 {
                    entry.ecx |= OSXSAVE;
                }
                if self.msrs.misc_enable & MONITOR_ENABLED == 0 {
                    entry.ecx &= !MONITOR;
                }
                let apic_enabled = self.lapic.as_ref().is_some_and(|lapic| lapic.apic_base_msr() & 1 << 11 != 0);
                if !apic_enabled {
                    entry.edx &= !APIC;
                }
            }
            EXTENDED_TOPOLOGY if entry.function == 0 => {
                // Levels that do not exist still give the APIC id and the level asked for.
                entry.ecx = subleaf & 0xff;
                entry.edx = self.id;
            }
            EXTENDED_TOPOLOGY if entry.ebx == 0 => entry.ebx = self.vm.siblings().len() as u32,
            XSAVE if subleaf == 0 => {
                entry.ebx = if self.xcr0 & xcr0::AVX != 0 { XSAVE_AVX_BYTES } else { XSAVE_BYTES };
            }
            _ => {}
        }
        entry
    }
}
