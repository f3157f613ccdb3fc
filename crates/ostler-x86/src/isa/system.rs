//! Rows of the instructions that operating systems use, and of input and output.

use iced_x86::{Instruction, Mnemonic};

use crate::decode::op::{Handler, Op};
use crate::exec::system::{
    control, debug, fast_call, hypercall, identity, interrupt, monitor, protection, segments, tables, tlb,
};
use crate::exec::{far, io};
use crate::isa::table;

table! {
    Lds | Les | Lfs | Lgs | Lss => segments::select_far_load;
    Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => segments::select_base;
    Swapgs => |_, _| Some(segments::swapgs), System;
    Retf => far::ret::select;
    Iret | Iretd | Iretq => far::iret::select;

    Clts => |_, _| Some(control::clts);
    Lmsw => control::select_lmsw;
    Smsw => control::select_smsw;
    Lgdt | Lidt | Sgdt | Sidt => tables::select;
    Lldt | Ltr => tables::select_load;
    Sldt | Str => tables::select_store;
    Lar | Lsl | Verr | Verw => protection::select;
    Arpl => protection::select_arpl;

    Syscall => |_, _| Some(fast_call::syscall);
    Sysret | Sysretq => fast_call::select_sysret;
    Sysenter => |_, _| Some(fast_call::sysenter);
    Sysexit | Sysexitq => fast_call::select_sysexit;

    Int => |_, _| Some(interrupt::int);
    Int3 => |_, _| Some(interrupt::int3);
    Into => |_, _| Some(interrupt::into);
    Bound => interrupt::select_bound;
    Int1 => |_, _| Some(interrupt::int1);
    Hlt => |_, _| Some(interrupt::hlt);
    Cli => |_, _| Some(interrupt::cli), System;
    Sti => |_, _| Some(interrupt::sti), System;
    Stac | Clac => interrupt::select_ac, System;
    Pushf | Pushfd | Pushfq | Popf | Popfd | Popfq => interrupt::select_flags, System;
    Pause => |_, _| Some(interrupt::pause);
    Monitor => monitor::select_monitor;
    Mwait => |_, _| Some(monitor::mwait);

    Cpuid => |_, _| Some(identity::cpuid);
    Rdtsc => |_, _| Some(identity::rdtsc);
    Rdtscp => |_, _| Some(identity::rdtscp);
    Rdpid => |_, _| Some(identity::rdpid);
    Rdpmc => |_, _| Some(identity::rdpmc);
    Rdmsr => |_, _| Some(identity::rdmsr);
    Wrmsr => |_, _| Some(identity::wrmsr);
    Xgetbv => |_, _| Some(identity::xgetbv);
    Xsetbv => |_, _| Some(identity::xsetbv);
    Rdrand | Rdseed => identity::select_random;

    Invlpg => |_, _| Some(tlb::invlpg);
    Invpcid => tlb::select_invpcid;
    Invd | Wbinvd => |_, _| Some(tlb::invalidate_caches);
    Clflush | Clflushopt => |_, _| Some(tlb::flush_line);
    Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetch | Prefetchw => |_, _| Some(tlb::nothing), Nothing;
    Lfence => |_, _| Some(tlb::nothing), Plain;
    Mfence | Sfence => |_, _| Some(tlb::fence), Plain;

    Vmcall | Vmmcall => |_, _| Some(hypercall::hypercall);

    In | Out => io::select;
    Insb | Insw | Insd | Outsb | Outsw | Outsd => io::select_string;
}

/// Whether an instruction always changes how what follows it is decoded, translated or interrupted.
/// Those that do so at times end their block themselves.
pub fn ends_block(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Hlt
            | Mnemonic::Wrmsr
            | Mnemonic::Invlpg
            | Mnemonic::Invpcid
            | Mnemonic::Xsetbv
            | Mnemonic::Lmsw
            | Mnemonic::Stac
            | Mnemonic::Clac
    )
}

/// MOV to or from a segment, control or debug register.
pub fn select_move(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let registers = [instruction.op0_register(), instruction.op1_register()];
    if registers.iter().any(|register| register.is_cr()) {
        control::select(instruction, op)
    } else if registers.iter().any(|register| register.is_dr()) {
        debug::select(instruction, op)
    } else if registers.iter().any(|register| register.is_segment_register()) {
        segments::select_move(instruction, op)
    } else {
        None
    }
}

/// PUSH and POP of a segment register.
pub fn select_stack(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    segments::select_stack(instruction, op)
}

/// Far JMP and CALL.
pub fn select_far(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    far::select(instruction, op)
}
