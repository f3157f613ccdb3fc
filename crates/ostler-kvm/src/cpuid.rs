//! What CPUID answers under KVM.
//!
//! The host's KVM says what it can do; what a guest gets by default is that, less what would tie it to
//! this host or cost it its safety, plus what only the monitor can know.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::regs::CpuidEntry;

use crate::ioctl::host;

const FEATURES: u32 = 1;
const STRUCTURED: u32 = 7;
const TOPOLOGY: u32 = 0xb;
const XSAVE: u32 = 0xd;
const TOPOLOGY_V2: u32 = 0x1f;
const KVM_FEATURES: u32 = 0x4000_0001;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const POWER: u32 = 0x8000_0007;
const SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_FEATURES_2: u32 = 0x8000_0021;

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

/// Everything this host's KVM can give a guest, less what [`hide`] says.
pub fn supported(kvm: &Kvm) -> Result<Vec<CpuidEntry>> {
    let rows = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
    let mut rows: Vec<_> = rows.as_slice().iter().map(entry).collect();
    for row in &mut rows {
        if row.function == FEATURES && kvm.check_extension(Cap::TscDeadlineTimer) {
            row.ecx |= TSC_DEADLINE;
        }
        hide(row);
    }
    Ok(rows)
}

/// Nested virtualization widens what a guest can attack, and is not there to be saved; a TSC that is
/// called invariant would keep Linux from kvmclock, which alone stays right when a VM is paused or
/// moved.
fn hide(row: &mut CpuidEntry) {
    match row.function {
        FEATURES => row.ecx = row.ecx & !VMX | HYPERVISOR,
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

/// A row a user asked for, without the features that the host does not have. What is no feature stays.
fn filter(wanted: &CpuidEntry, supported: &[CpuidEntry]) -> CpuidEntry {
    let mut row = *wanted;
    let same = |ours: &&CpuidEntry| {
        ours.function == wanted.function && (!ours.significant_index || ours.index == wanted.index)
    };
    let ours = supported.iter().find(same).copied().unwrap_or_default();
    match (wanted.function, wanted.index) {
        (FEATURES | EXTENDED_FEATURES, _) => {
            row.ecx &= ours.ecx;
            row.edx &= ours.edx;
        }
        (STRUCTURED, index) => {
            row.ebx &= ours.ebx;
            row.ecx &= ours.ecx;
            row.edx &= ours.edx;
            if index > 0 {
                row.eax &= ours.eax;
            }
        }
        (XSAVE, 0 | 1) | (KVM_FEATURES | AMD_FEATURES_2, _) => row.eax &= ours.eax,
        (POWER, _) => row.edx &= ours.edx,
        (SIZES, _) => row.ebx &= ours.ebx,
        _ => {}
    }
    row
}

/// What a user asked for, without the features that the host does not have.
pub fn from_user(wanted: &[CpuidEntry], supported: &[CpuidEntry]) -> Vec<CpuidEntry> {
    wanted.iter().map(|row| filter(row, supported)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(ecx: u32, edx: u32) -> CpuidEntry {
        CpuidEntry { function: FEATURES, ecx, edx, ..Default::default() }
    }

    #[test]
    fn feature_the_host_lacks_is_taken_away_and_what_is_no_feature_stays() {
        let brand = CpuidEntry { function: 0x8000_0002, eax: 7, ..Default::default() };
        let got = from_user(&[features(0b110, 0b11), brand], &[features(0b010, 0b01)]);
        assert_eq!(got, [features(0b010, 0b01), brand]);
    }

    #[test]
    fn row_the_host_does_not_have_loses_its_features() {
        let wanted = CpuidEntry { function: STRUCTURED, significant_index: true, ebx: 7, ..Default::default() };
        assert_eq!(from_user(&[wanted], &[])[0].ebx, 0);
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
