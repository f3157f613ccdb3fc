//! What CPUID answers under KVM.
//!
//! The host's KVM says what it can do; what a guest gets by default is that, less what would tie it to
//! this host or cost it its safety, plus what only the monitor can know.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::cpuid::leaf::{EXTENDED_FEATURES, FEATURES, KVM_FEATURES, POWER, SIZES};
use ostler_engine::regs::CpuidEntry;

use crate::ioctl::host;

const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 0x8000_0001, ECX.
const SVM: u32 = 1 << 2;
/// Leaf 0x8000_0007, EDX.
const INVARIANT_TSC: u32 = 1 << 8;

/// Bits of an APIC id that tell cores of the one package apart.
const CORE_ID_BITS: u32 = 10;

fn entry(from: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: from.function,
        index: from.index,
        significant_index: from.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: from.eax,
        ebx: from.ebx,
        ecx: from.ecx,
        edx: from.edx,
    }
}

fn kvm_entry(from: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: from.function,
        index: from.index,
        flags: if from.significant_index { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: from.eax,
        ebx: from.ebx,
        ecx: from.ecx,
        edx: from.edx,
        ..Default::default()
    }
}

/// The rows as `KVM_SET_CPUID2` takes them.
pub fn kvm_cpuid(rows: &[CpuidEntry]) -> Result<CpuId> {
    let rows: Vec<_> = rows.iter().map(kvm_entry).collect();
    CpuId::from_entries(&rows)
        .map_err(|_| AccelError::BadState { what: "the number of CPUID rows", value: rows.len() as u64 })
}

/// Everything this host's KVM can give a guest.
pub fn possible(kvm: &Kvm) -> Result<Vec<CpuidEntry>> {
    let rows = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
    let mut rows: Vec<_> = rows.as_slice().iter().map(entry).collect();
    for row in &mut rows {
        if row.function == FEATURES && kvm.check_extension(Cap::TscDeadlineTimer) {
            row.ecx |= TSC_DEADLINE;
        }
        if row.function == FEATURES {
            row.ecx |= HYPERVISOR;
        }
    }
    Ok(rows)
}

/// Says that messages reach APIC ids of 15 bits (`KVM_FEATURE_MSI_EXT_DEST_ID`), which Linux needs for more than 255
/// CPUs. True of our IOAPIC; the kernel's knows 8 bits.
pub fn add_wide_destinations(rows: &mut [CpuidEntry]) {
    const MSI_EXT_DEST_ID: u32 = 1 << 15;
    rows.iter_mut().filter(|row| row.function == KVM_FEATURES).for_each(|row| row.eax |= MSI_EXT_DEST_ID);
}

/// What of it a guest gets when nobody asks for more: all but what [`hide`] says.
pub fn by_default(possible: &[CpuidEntry]) -> Vec<CpuidEntry> {
    let mut rows = possible.to_vec();
    rows.iter_mut().for_each(hide);
    rows
}

/// Nested virtualization widens what a guest can attack, and is not there to be saved; a TSC that is
/// called invariant would keep Linux from kvmclock, which alone stays right when a VM is paused or
/// moved.
fn hide(row: &mut CpuidEntry) {
    match row.function {
        FEATURES => row.ecx &= !VMX,
        EXTENDED_FEATURES => row.ecx &= !SVM,
        POWER => row.edx &= !INVARIANT_TSC,
        _ => {}
    }
}

/// The rows of the vCPU with APIC id `id`: one thread per core, all cores in one package.
pub fn for_vcpu(rows: &[CpuidEntry], id: u32) -> Vec<CpuidEntry> {
    let is_topology = |row: &&CpuidEntry| matches!(row.function, TOPOLOGY | TOPOLOGY_V2);
    let mut rows: Vec<_> = rows.iter().filter(|row| !is_topology(row)).copied().collect();
    for row in &mut rows {
        match row.function {
            FEATURES => row.ebx = row.ebx & 0x0000_ffff | id.min(0xff) << 24 | 0xff << 16,
            SIZES => row.ecx = row.ecx & !0xf0ff | CORE_ID_BITS << 12 | 0xff,
            AMD_TOPOLOGY => (row.eax, row.ebx, row.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    rows.extend(topology(id));
    rows
}

fn topology(id: u32) -> [CpuidEntry; 3] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let level = |index, [eax, ebx, ecx]: [u32; 3]| CpuidEntry {
        function: TOPOLOGY,
        index,
        significant_index: true,
        eax,
        ebx,
        ecx,
        edx: id,
    };
    [level(0, [0, 1, THREADS]), level(1, [CORE_ID_BITS, 1 << CORE_ID_BITS, CORES | 1]), level(2, [0, 0, 2])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(ecx: u32, edx: u32) -> CpuidEntry {
        CpuidEntry { function: FEATURES, ecx, edx, ..Default::default() }
    }

    #[test]
    fn nested_virtualization_and_the_invariant_tsc_are_given_only_when_asked_for() {
        let power = CpuidEntry { function: POWER, edx: INVARIANT_TSC | 1, ..Default::default() };
        let extended = CpuidEntry { function: EXTENDED_FEATURES, ecx: SVM | 1, ..Default::default() };
        let rows = by_default(&[features(VMX | HYPERVISOR, 1), extended, power]);
        assert_eq!(rows[0], features(HYPERVISOR, 1));
        assert_eq!((rows[1].ecx, rows[2].edx), (1, 1));
    }

    #[test]
    fn vcpu_is_told_its_apic_id_wherever_one_is() {
        let rows = [features(0, 0), CpuidEntry { function: AMD_TOPOLOGY, ..Default::default() }];
        let rows = for_vcpu(&rows, 0x1234);
        let find = |function| rows.iter().find(|row| row.function == function).expect("a row");
        assert_eq!(find(FEATURES).ebx >> 24, 0xff);
        assert_eq!(find(AMD_TOPOLOGY).eax, 0x1234);
        assert_eq!(find(TOPOLOGY).edx, 0x1234);
    }
}
