//! Single-stepping and breakpoints, by the guest and from outside.

use iced_x86::code_asm::*;
use ostler_engine::Exit;
use ostler_engine::regs::{DebugRegs, GuestDebug};

use crate::guest::*;

const DATA_AT: u64 = 0x9000;

fn with_breakpoint(address: u64, control: u64) -> Guest {
    let mut guest = Guest::long();
    let regs = DebugRegs { db: [address, 0, 0, 0], dr6: 0xffff_0ff0, dr7: 0x402 | control << 16 };
    guest.vcpu.set_debug_regs(&regs).unwrap();
    guest
}

fn dr6(guest: &Guest) -> u64 {
    guest.vcpu.debug_regs().unwrap().dr6 & 0xf00f
}

#[test]
fn trap_flag_traps_after_one_instruction() {
    let mut guest = Guest::long();
    guest.set_regs(|regs| regs.rflags = 0x102);
    guest.code(64, CODE, |a| {
        a.inc(rbx).unwrap();
        a.inc(rbx).unwrap();
    });
    let frame = guest.run_to_exception(1, false);
    assert_eq!((frame.rip, guest.regs().rbx), (CODE + 3, 1));
    assert_eq!((frame.flags & 0x100, guest.regs().rflags & 0x100), (0x100, 0));
    assert_eq!(dr6(&guest), 0x4000);
}

#[test]
fn popf_that_sets_the_trap_flag_traps_after_the_next_instruction() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.push(0x102).unwrap();
        a.popfq().unwrap();
        a.inc(rbx).unwrap();
        a.inc(rbx).unwrap();
    });
    let frame = guest.run_to_exception(1, false);
    assert_eq!((frame.rip, guest.regs().rbx), (CODE + 9, 1));
}

#[test]
fn mov_ss_swallows_the_trap() {
    let mut guest = Guest::long();
    guest.set_regs(|regs| {
        regs.rflags = 0x102;
        regs.rax = u64::from(DATA);
    });
    guest.code(64, CODE, |a| {
        a.mov(ss, eax).unwrap();
        a.inc(rbx).unwrap();
        a.inc(rbx).unwrap();
    });
    guest.run_to_exception(1, false);
    assert_eq!(guest.regs().rbx, 1);
}

#[test]
fn instruction_breakpoint_faults_before_and_resume_flag_suppresses_it() {
    let mut guest = with_breakpoint(CODE + 3, 0);
    let handler = 0x1_8000;
    guest.code(64, handler, |a| {
        a.inc(r8).unwrap();
        a.or(dword_ptr(rsp + 16), 0x1_0000).unwrap();
        a.iretq().unwrap();
    });
    guest.set_gate(1, handler, 0x8e, 0, 64);
    guest.code(64, CODE, |a| {
        a.inc(rbx).unwrap();
        a.inc(rbx).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!((guest.regs().r8, guest.regs().rbx, dr6(&guest)), (1, 2, 1));
}

#[test]
fn data_breakpoint_traps_after_the_store() {
    // Writes, 4 bytes.
    let mut guest = with_breakpoint(DATA_AT, 0b1101);
    guest.code(64, CODE, |a| {
        a.mov(rax, qword_ptr(DATA_AT)).unwrap();
        a.mov(byte_ptr(DATA_AT + 3), 7).unwrap();
        a.inc(rbx).unwrap();
    });
    let frame = guest.run_to_exception(1, false);
    assert_eq!((guest.regs().rbx, dr6(&guest)), (0, 1));
    assert_eq!(frame.flags & 1 << 16, 0);
    assert_eq!(guest.get64(DATA_AT) >> 24, 7);
}

#[test]
fn debug_register_access_is_caught_by_general_detect() {
    let mut guest = Guest::long();
    guest.vcpu.set_debug_regs(&DebugRegs { db: [0; 4], dr6: 0xffff_0ff0, dr7: 0x2400 }).unwrap();
    guest.code(64, CODE, |a| a.mov(rax, dr0).unwrap());
    let frame = guest.run_to_exception(1, false);
    assert_eq!((frame.rip, dr6(&guest)), (CODE, 0x2000));
    assert_eq!(guest.vcpu.debug_regs().unwrap().dr7 & 0x2000, 0);
}

#[test]
fn int1_and_int3_return_behind_themselves() {
    let mut guest = Guest::long();
    guest.put(CODE, &[0xf1]);
    assert_eq!(guest.run_to_exception(1, false).rip, CODE + 1);
    let mut guest = Guest::long();
    guest.put(CODE, &[0xcc]);
    assert_eq!(guest.run_to_exception(3, false).rip, CODE + 1);
}

#[test]
fn debugger_steps_and_meets_its_breakpoints() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.inc(rbx).unwrap();
        a.inc(rbx).unwrap();
        a.int3().unwrap();
    });
    guest.vcpu.set_guest_debug(GuestDebug { single_step: true, ..GuestDebug::default() }).unwrap();
    assert!(matches!(guest.run(), Exit::Debug { rip, exception: 1, .. } if rip == CODE + 3));
    let breakpoints = GuestDebug {
        software_breakpoints: true,
        hardware_breakpoints: Some(([CODE + 3, 0, 0, 0], 0x402)),
        single_step: false,
    };
    guest.vcpu.set_guest_debug(breakpoints).unwrap();
    assert!(matches!(guest.run(), Exit::Debug { rip, dr6, .. } if rip == CODE + 3 && dr6 & 1 == 1));
    guest.vcpu.set_guest_debug(GuestDebug { hardware_breakpoints: None, ..breakpoints }).unwrap();
    let exit = guest.run();
    assert!(matches!(exit, Exit::Debug { rip, exception: 3, .. } if rip == CODE + 6), "{exit:?}");
    assert_eq!(guest.regs().rip, CODE + 6, "RIP stays at the INT3");
    assert_eq!(guest.regs().rbx, 2);
}
