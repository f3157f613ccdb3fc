//! Which instructions the generator may use: all that user mode can execute, less those whose result is not the CPU's alone.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

use crate::state::Mode;

/// x86-64-v3 and the cryptographic and big-number extensions beside it. The bases (8086 to 486, x87, 64-bit) included.
const FEATURES: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::ADX,
    CpuidFeature::AES,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::CLFLUSHOPT,
    CpuidFeature::CLFSH,
    CpuidFeature::CMOV,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::CX8,
    CpuidFeature::F16C,
    CpuidFeature::FMA,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FSGSBASE,
    CpuidFeature::FXSR,
    CpuidFeature::LZCNT,
    CpuidFeature::MMX,
    CpuidFeature::MOVBE,
    CpuidFeature::MSR,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::POPCNT,
    CpuidFeature::PREFETCHW,
    CpuidFeature::SHA,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::SSSE3,
    CpuidFeature::XSAVE,
];

/// Not comparable, with the reason.
const EXCLUDED: &[(&[Mnemonic], &str)] = &[
    (&[Mnemonic::Syscall, Mnemonic::Sysenter, Mnemonic::Sysexit, Mnemonic::Sysret], "enter the host's kernel"),
    (&[Mnemonic::Cpuid, Mnemonic::Xgetbv, Mnemonic::Rdtsc, Mnemonic::Rdtscp], "describe the machine, not the program"),
    (
        &[Mnemonic::Sgdt, Mnemonic::Sidt, Mnemonic::Sldt, Mnemonic::Str, Mnemonic::Smsw],
        "Linux emulates them where UMIP makes them fault",
    ),
    (
        &[Mnemonic::Lar, Mnemonic::Lsl, Mnemonic::Verr, Mnemonic::Verw],
        "read the descriptor tables, which are the host kernel's own",
    ),
    (
        &[Mnemonic::Lds, Mnemonic::Les, Mnemonic::Lfs, Mnemonic::Lgs, Mnemonic::Lss],
        "load segment registers, which the signal frame does not carry",
    ),
    (&[Mnemonic::Iret, Mnemonic::Iretd, Mnemonic::Iretq, Mnemonic::Retf], "load segment registers"),
    (&[Mnemonic::Int1, Mnemonic::Rsm], "answered by the host's kernel or hypervisor"),
    (&[Mnemonic::Xsaveopt, Mnemonic::Xsavec], "what is written depends on the processor's tracking"),
    (
        &[Mnemonic::Xsave, Mnemonic::Xsave64, Mnemonic::Xrstor, Mnemonic::Xrstor64],
        "the host's XCR0 has components ours lacks; compared by hand-picked cases with a mask in EDX:EAX",
    ),
    (&[Mnemonic::Rdpmc, Mnemonic::Wbinvd, Mnemonic::Invd], "intercepted by hypervisors"),
    (&[Mnemonic::Fnsetpm, Mnemonic::Fndisi, Mnemonic::Fneni], "coprocessor-only; differ between processors"),
    (&[Mnemonic::Db, Mnemonic::Dw, Mnemonic::Dd, Mnemonic::Dq, Mnemonic::Zero_bytes], "are not instructions"),
];

/// Forms that AMD and Intel define differently or not at all.
const VENDORS_DIFFER: &[Code] = &[
    // No defined result.
    Code::Bswap_r16,
    // #UD or no operation.
    Code::Reservednop_rm16_r16_0F0D,
    Code::Reservednop_rm32_r32_0F0D,
    Code::Reservednop_rm64_r64_0F0D,
    // With or without a ModRM byte, which may be on another page.
    Code::Ud0,
    Code::Ud0_r16_rm16,
    Code::Ud0_r32_rm32,
    Code::Ud0_r64_rm64,
];

/// The instructions of `mode` that can be compared, in the order of `Code`.
pub fn comparable(mode: Mode) -> Vec<Code> {
    Code::values().filter(|code| is_comparable(*code, mode)).collect()
}

/// See [`EXCLUDED`] and [`VENDORS_DIFFER`] for those that cannot.
pub fn is_comparable(code: Code, mode: Mode) -> bool {
    let info = code.op_code();
    let in_mode = match mode {
        // Near branches with an operand-size prefix are only AMD's.
        Mode::Long => info.mode64() && info.intel_decoder64(),
        Mode::Compatibility => info.mode32() && info.compatibility_mode(),
        Mode::Sixteen => info.mode16() && info.compatibility_mode(),
    };
    in_mode
        && info.is_instruction()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|feature| FEATURES.contains(feature))
        && !VENDORS_DIFFER.contains(&code)
        && !EXCLUDED.iter().any(|(mnemonics, _)| mnemonics.contains(&code.mnemonic()))
        && !loads_segment(code)
        && !is_far(code)
        && !info.op_kinds().iter().any(|kind| is_unsupported(*kind, mode))
}

/// Why no form of `mnemonic` is compared; `None` for those that are or could be.
pub fn reason_excluded(mnemonic: Mnemonic) -> Option<&'static str> {
    let listed = EXCLUDED.iter().find(|(mnemonics, _)| mnemonics.contains(&mnemonic));
    let forms = || Code::values().filter(|code| code.mnemonic() == mnemonic);
    let beyond = "belongs to an extension that is not compared";
    listed.map(|(_, reason)| *reason).or_else(|| {
        let known = forms().any(|code| code.cpuid_features().iter().all(|feature| FEATURES.contains(feature)));
        if known { None } else { Some(beyond) }
    })
}

/// MOV and POP to a segment register.
fn loads_segment(code: Code) -> bool {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    let first = info.op_kinds().first();
    let segment =
        matches!(first, Some(Kind::seg_reg | Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs));
    segment && matches!(info.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
}

/// Far branches, transactions, and near branches to 16-bit addresses that no window is at.
fn is_unsupported(kind: OpCodeOperandKind, mode: Mode) -> bool {
    use OpCodeOperandKind as Kind;
    let short = matches!(kind, Kind::br16_1 | Kind::br16_2) && mode != Mode::Sixteen;
    short || matches!(kind, Kind::farbr2_2 | Kind::farbr4_2 | Kind::xbegin_2 | Kind::xbegin_4)
}

fn is_far(code: Code) -> bool {
    code.is_jmp_far_indirect() || code.is_call_far_indirect() || code.is_jmp_far() || code.is_call_far()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_leaves_out_what_enters_the_kernel_and_what_our_cpu_lacks() {
        let pool = comparable(Mode::Long);
        for code in [Code::Syscall, Code::Sysenter, Code::Vmmcall, Code::EVEX_Vaddps_xmm_k1z_xmm_xmmm128b32] {
            assert!(!pool.contains(&code), "{code:?}");
        }
        for code in [Code::Add_rm64_r64, Code::VEX_Vpgatherdd_xmm_vm32x_xmm, Code::Fpatan, Code::VEX_Mulx_r64_r64_rm64]
        {
            assert!(pool.contains(&code), "{code:?}");
        }
    }
}
