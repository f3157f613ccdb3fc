//! Register sets: KVM's structures as the engine's and back.

use kvm_bindings::*;
use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::regs::{DebugRegs, DescriptorTable, Events, GuestDebug, MpState, Regs, Segment, Sregs};

/// Copies the fields of the same names from one structure to another.
macro_rules! copy {
    ($to:ident from $from:ident: $($field:ident)*) => { $to { $($field: $from.$field),* } };
    ($to:ident from $from:ident: $($field:ident)*; $($more:tt)*) => { $to { $($field: $from.$field,)* $($more)* } };
}

pub fn regs(from: &kvm_regs) -> Regs {
    copy!(Regs from from: rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags)
}

pub fn kvm_regs_of(from: &Regs) -> kvm_regs {
    copy!(kvm_regs from from: rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags)
}

fn segment(from: &kvm_segment) -> Segment {
    Segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        kind: from.type_,
        present: from.present != 0,
        dpl: from.dpl,
        db: from.db != 0,
        s: from.s != 0,
        l: from.l != 0,
        g: from.g != 0,
        avl: from.avl != 0,
        unusable: from.unusable != 0,
    }
}

fn kvm_segment_of(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind,
        present: from.present.into(),
        dpl: from.dpl,
        db: from.db.into(),
        s: from.s.into(),
        l: from.l.into(),
        g: from.g.into(),
        avl: from.avl.into(),
        unusable: from.unusable.into(),
        padding: 0,
    }
}

fn table(from: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: from.base, limit: from.limit }
}

fn kvm_dtable_of(from: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit, ..Default::default() }
}

/// Both forms of KVM's structure have these fields.
macro_rules! sregs_fields {
    ($from:expr, $segment:ident, $table:ident, $to:ident $(, $more:ident: $value:expr)*) => {
        $to {
            cs: $segment(&$from.cs),
            ds: $segment(&$from.ds),
            es: $segment(&$from.es),
            fs: $segment(&$from.fs),
            gs: $segment(&$from.gs),
            ss: $segment(&$from.ss),
            tr: $segment(&$from.tr),
            ldt: $segment(&$from.ldt),
            gdt: $table(&$from.gdt),
            idt: $table(&$from.idt),
            cr0: $from.cr0,
            cr2: $from.cr2,
            cr3: $from.cr3,
            cr4: $from.cr4,
            cr8: $from.cr8,
            efer: $from.efer,
            apic_base: $from.apic_base,
            $($more: $value,)*
        }
    };
}

pub fn sregs(from: &kvm_sregs) -> Sregs {
    sregs_fields!(from, segment, table, Sregs, pdptrs: None)
}

pub fn sregs_of_2(from: &kvm_sregs2) -> Sregs {
    let valid = from.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    sregs_fields!(from, segment, table, Sregs, pdptrs: valid.then_some(from.pdptrs))
}

pub fn kvm_sregs2_of(from: &Sregs, pdptrs: [u64; 4]) -> kvm_sregs2 {
    let flags = KVM_SREGS2_FLAGS_PDPTRS_VALID.into();
    sregs_fields!(from, kvm_segment_of, kvm_dtable_of, kvm_sregs2, flags: flags, pdptrs: pdptrs)
}

/// No interrupt is under way: that is [`Events`]' to say.
pub fn kvm_sregs_of(from: &Sregs) -> kvm_sregs {
    sregs_fields!(from, kvm_segment_of, kvm_dtable_of, kvm_sregs, interrupt_bitmap: [0; 4])
}

pub fn debug_regs(from: &kvm_debugregs) -> DebugRegs {
    copy!(DebugRegs from from: db dr6 dr7)
}

pub fn kvm_debugregs_of(from: &DebugRegs) -> kvm_debugregs {
    copy!(kvm_debugregs from from: db dr6 dr7; ..Default::default())
}

/// `waiting` is an interrupt that KVM was not given yet.
pub fn events(from: &kvm_vcpu_events, waiting: Option<u8>) -> Events {
    let exception = &from.exception;
    let raised = exception.injected != 0 || exception.pending != 0;
    let error = (exception.has_error_code != 0).then_some(exception.error_code);
    Events {
        exception: raised.then_some((exception.nr, error)),
        interrupt: if from.interrupt.injected != 0 { Some(from.interrupt.nr) } else { waiting },
        nmi_pending: from.nmi.pending != 0,
        nmi_masked: from.nmi.masked != 0,
        interrupt_shadow: from.interrupt.shadow != 0,
        sipi_vector: from.sipi_vector as u8,
    }
}

/// `inject_interrupt`: whether KVM is to deliver `from.interrupt`.
pub fn kvm_events_of(from: &Events, inject_interrupt: bool) -> kvm_vcpu_events {
    let mut to = kvm_vcpu_events {
        sipi_vector: from.sipi_vector.into(),
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some((vector, error)) = from.exception {
        to.exception.injected = 1;
        to.exception.nr = vector;
        to.exception.has_error_code = error.is_some().into();
        to.exception.error_code = error.unwrap_or(0);
    }
    if let Some(vector) = from.interrupt.filter(|_| inject_interrupt) {
        to.interrupt.injected = 1;
        to.interrupt.nr = vector;
    }
    to.interrupt.shadow = if from.interrupt_shadow { KVM_X86_SHADOW_INT_STI as u8 } else { 0 };
    to.nmi.pending = from.nmi_pending.into();
    to.nmi.masked = from.nmi_masked.into();
    to
}

pub fn mp_state(from: kvm_mp_state) -> Result<MpState> {
    match from.mp_state {
        KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_SIPI_RECEIVED => Ok(MpState::Runnable),
        KVM_MP_STATE_UNINITIALIZED => Ok(MpState::Uninitialized),
        KVM_MP_STATE_INIT_RECEIVED => Ok(MpState::InitReceived),
        KVM_MP_STATE_HALTED => Ok(MpState::Halted),
        other => Err(AccelError::BadState { what: "KVM's MP state", value: other.into() }),
    }
}

pub fn kvm_mp_state_of(from: MpState) -> kvm_mp_state {
    let mp_state = match from {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        MpState::Halted => KVM_MP_STATE_HALTED,
    };
    kvm_mp_state { mp_state }
}

pub fn kvm_guest_debug_of(from: &GuestDebug) -> kvm_guest_debug {
    let mut to = kvm_guest_debug::default();
    let wanted = [
        (from.single_step, KVM_GUESTDBG_SINGLESTEP),
        (from.software_breakpoints, KVM_GUESTDBG_USE_SW_BP),
        (from.hardware_breakpoints.is_some(), KVM_GUESTDBG_USE_HW_BP),
    ];
    for (_, flag) in wanted.iter().filter(|(on, _)| *on) {
        to.control |= KVM_GUESTDBG_ENABLE | flag;
    }
    if let Some((addresses, dr7)) = from.hardware_breakpoints {
        to.arch.debugreg[..4].copy_from_slice(&addresses);
        to.arch.debugreg[7] = dr7;
    }
    to
}
