//! The rows: features exactly as far as they are implemented.

use iced_x86::Mnemonic;
use ostler_engine::cpuid::leaf::{EXTENDED_FEATURES, KVM_FEATURES, POWER, STRUCTURED};
pub use ostler_engine::cpuid::leaf::{FEATURES, XSAVE};
use ostler_engine::regs::CpuidEntry;
use ostler_memory::LINE_BYTES;

use crate::cpuid::{XSAVE_AVX_BYTES, XSAVE_BYTES};
use crate::isa;
use crate::mmu::walk::PHYSICAL_BITS;
use ostler_irqchip::clock::{TSC_HZ, TSC_KHZ};

pub const EXTENDED_TOPOLOGY: u32 = 0xb;
/// Leaf 1, ECX: CR4.OSXSAVE.
pub const OSXSAVE: u32 = 1 << 27;
/// Leaf 1, ECX: MONITOR and MWAIT.
pub const MONITOR: u32 = 1 << 3;
/// Leaf 1, EDX: the local APIC is enabled.
pub const APIC: u32 = 1 << 9;

const LAST_BASIC: u32 = 0x16;
const LAST_EXTENDED: u32 = 0x8000_0008;
const LAST_KVM: u32 = 0x4000_0010;
/// Family 6, model 0x1c ("Bonnell"), stepping 10.
const SIGNATURE: u32 = 0x0001_06ca;
const BRAND: &[u8; 48] = b"Ostler soft CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Bits of an APIC id that tell cores of the one package apart.
const CORE_ID_BITS: u32 = 10;

const TSC_MHZ: u32 = TSC_KHZ / 1000;

fn word(bytes: &[u8], index: usize) -> u32 {
    bytes.iter().skip(4 * index).take(4).rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn bits(set: &[u32]) -> u32 {
    set.iter().fold(0, |bits, bit| bits | 1 << bit)
}

fn bit_if(condition: bool, bit: u32) -> u32 {
    u32::from(condition) << bit
}

fn has_row(mnemonic: Mnemonic) -> bool {
    isa::row(mnemonic).is_some()
}

/// Vector features that the instruction table has, and that the host has to run them on.
macro_rules! on_host {
    ($feature:tt, $mnemonic:ident) => {
        std::is_x86_feature_detected!($feature) && has_row(Mnemonic::$mnemonic)
    };
}

fn has_avx() -> bool {
    on_host!("avx", Vaddps) && has_row(Mnemonic::Xsave)
}

/// Leaf 1, ECX.
fn features_ecx() -> u32 {
    // MONITOR, CMPXCHG16B, PCID, x2APIC, MOVBE, POPCNT, TSC deadline, RDRAND, hypervisor.
    bits(&[3, 13, 17, 21, 22, 23, 24, 30, 31])
        | bit_if(on_host!("sse3", Addsubps), 0)
        | bit_if(on_host!("pclmulqdq", Pclmulqdq), 1)
        | bit_if(on_host!("ssse3", Pshufb), 9)
        | bit_if(has_avx() && on_host!("fma", Vfmadd231ps), 12)
        | bit_if(on_host!("sse4.1", Pblendw), 19)
        | bit_if(on_host!("sse4.2", Pcmpestri), 20)
        | bit_if(on_host!("aes", Aesenc), 25)
        | bit_if(has_row(Mnemonic::Xsave), 26)
        | bit_if(has_avx(), 28)
        | bit_if(has_avx() && on_host!("f16c", Vcvtph2ps), 29)
}

/// Leaf 1, EDX: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE-36,
/// CLFLUSH, MMX, FXSR, SSE, SSE2, HTT.
fn features_edx() -> u32 {
    bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 28])
}

/// Leaf 7, EBX: FSGSBASE, TSC_ADJUST, BMI1, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT.
fn structured_ebx() -> u32 {
    bits(&[0, 1, 3, 7, 8, 9, 10, 18, 19, 20, 23])
        | bit_if(has_avx() && on_host!("avx2", Vpermq), 5)
        | bit_if(on_host!("sha", Sha256rnds2), 29)
}

/// A row without a significant ECX.
fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
}

fn subleaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry { index, significant_index: true, ..leaf(function, registers) }
}

/// Every row, for the vCPU with APIC id `id`.
pub fn supported(id: u32) -> Vec<CpuidEntry> {
    let mut rows = basic(id);
    rows.extend(caches());
    rows.extend(topology(id));
    rows.extend(xsave());
    rows.extend(kvm());
    rows.extend(extended());
    rows
}

fn basic(id: u32) -> Vec<CpuidEntry> {
    const CLFLUSH_QUADWORDS: u32 = 8;
    // Initial APIC id, logical processors of the package at most, line size.
    let ebx = id.min(0xff) << 24 | 0xff << 16 | CLFLUSH_QUADWORDS << 8;
    vec![
        // "GenuineIntel".
        leaf(0, [LAST_BASIC, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        leaf(FEATURES, [SIGNATURE, ebx, features_ecx(), features_edx()]),
        // Leaf 4 describes the caches, and nothing the TLB.
        leaf(2, [0x00fe_ff01, 0, 0, 0]),
        // MONITOR's line; MWAIT has extensions, one of them to end at masked interrupts, and one kind of C1.
        leaf(5, [LINE_BYTES as u32, LINE_BYTES as u32, bits(&[0, 1]), 1 << 4]),
        // ARAT: the local APIC timer always runs.
        leaf(6, [1 << 2, 0, 0, 0]),
        // UMIP, RDPID; fast short REP MOVSB.
        subleaf(STRUCTURED, 0, [0, structured_ebx(), bits(&[2, 22]), bits(&[4])]),
        // The TSC is the crystal: ratio 1/1.
        leaf(0x15, [1, 1, TSC_HZ as u32, 0]),
        leaf(0x16, [TSC_MHZ, TSC_MHZ, 100, 0]),
    ]
}

/// Leaf 4: level, kind and size of caches as a small processor of today has them.
fn caches() -> [CpuidEntry; 4] {
    const DATA: u32 = 1;
    const CODE: u32 = 2;
    const UNIFIED: u32 = 3;
    let cache = |index, kind, level: u32, ways: u32, sets: u32| {
        const SELF_INITIALIZING: u32 = 1 << 8;
        const LINE: u32 = 64;
        subleaf(4, index, [kind | level << 5 | SELF_INITIALIZING, (LINE - 1) | ((ways - 1) << 22), sets - 1, 0])
    };
    [cache(0, DATA, 1, 8, 64), cache(1, CODE, 1, 8, 64), cache(2, UNIFIED, 2, 16, 1024), subleaf(4, 3, [0; 4])]
}

/// Leaf 0xb: one thread per core, all cores in one package. A count of 0 is filled in when asked.
fn topology(id: u32) -> [CpuidEntry; 2] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    [
        subleaf(EXTENDED_TOPOLOGY, 0, [0, 1, THREADS, id]),
        subleaf(EXTENDED_TOPOLOGY, 1, [CORE_ID_BITS, 0, CORES | 1, id]),
    ]
}

fn xsave() -> Vec<CpuidEntry> {
    if !has_row(Mnemonic::Xsave) {
        return Vec::new();
    }
    let avx = has_avx();
    let (components, bytes) = if avx { (7, XSAVE_AVX_BYTES) } else { (3, XSAVE_BYTES) };
    let mut rows = vec![
        subleaf(XSAVE, 0, [components, XSAVE_BYTES, bytes, 0]),
        subleaf(XSAVE, 1, [bit_if(has_row(Mnemonic::Xsaveopt), 0), 0, 0, 0]),
    ];
    if avx {
        rows.push(subleaf(XSAVE, 2, [XSAVE_AVX_BYTES - XSAVE_BYTES, XSAVE_BYTES, 0, 0]));
    }
    rows
}

/// KVM's leaves: clock at the old and new MSRs, no delay needed between port accesses, end of interrupt in memory,
/// MSI destinations of 15 bits, TSCs that agree.
fn kvm() -> [CpuidEntry; 3] {
    [
        // "KVMKVMKVM".
        leaf(0x4000_0000, [LAST_KVM, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(KVM_FEATURES, [bits(&[0, 1, 3, 6, 15, 24]), 0, 0, 0]),
        leaf(LAST_KVM, [TSC_KHZ, TSC_KHZ, 0, 0]),
    ]
}

fn extended() -> Vec<CpuidEntry> {
    let mut rows = vec![
        leaf(0x8000_0000, [LAST_EXTENDED, 0, 0, 0]),
        // LAHF in 64-bit mode, LZCNT, PREFETCHW; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
        leaf(EXTENDED_FEATURES, [0, 0, bits(&[0, 5, 8]), bits(&[11, 20, 26, 27, 29])]),
        // L2: 1 MiB, 16 ways, 64-byte lines.
        leaf(0x8000_0006, [0, 0, 1024 << 16 | 8 << 12 | 64, 0]),
        // The TSC is not called invariant: Linux would prefer it to kvmclock, which alone stays right
        // when the VM was paused or moved.
        leaf(POWER, [0, 0, 0, 0]),
        leaf(LAST_EXTENDED, [PHYSICAL_BITS | 48 << 8, 0, 0, 0]),
    ];
    rows.extend((0..3).map(|part| {
        let words = [0, 1, 2, 3].map(|index| word(BRAND, part * 4 + index));
        leaf(0x8000_0002 + part as u32, words)
    }));
    rows
}
