//! Exceptions, stacks and fast system calls of 64-bit mode.

use iced_x86::code_asm::*;
use ostler_engine::Exit;

use crate::guest::*;

/// Pushes the frame with which IRETQ enters user mode at [`USER_CODE`].
fn enter_user(a: &mut CodeAssembler) {
    for value in [u32::from(USER_DATA), USER_STACK as u32, 0x202, u32::from(USER_CODE64), USER_CODE as u32] {
        a.push(value as i32).expect("push");
    }
    a.iretq().expect("iretq");
}

#[test]
fn fault_pushes_the_faulting_rip_and_resume_flag() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.nop().unwrap();
        a.ud2().unwrap();
    });
    let frame = guest.run_to_exception(6, false);
    assert_eq!((frame.rip, frame.cs, frame.rsp), (CODE + 1, u64::from(CODE64), STACK));
    assert_eq!(frame.flags & 1 << 16, 1 << 16, "RF");
    assert_eq!(frame.ss, u64::from(DATA));
}

#[test]
fn stack_of_a_handler_is_aligned() {
    let mut guest = Guest::long();
    guest.set_regs(|regs| regs.rsp = STACK - 3);
    guest.code(64, CODE, |a| a.ud2().unwrap());
    let frame = guest.run_to_exception(6, false);
    assert_eq!(frame.rsp, STACK - 3);
    assert_eq!(guest.regs().rsp, (STACK - 16) - 40);
}

#[test]
fn interrupt_stack_table_replaces_the_stack() {
    let mut guest = Guest::long();
    let handler = guest.get64(IDT + 16 * 6);
    guest.put64(IDT + 16 * 6, handler | 1 << 32);
    guest.code(64, CODE, |a| a.ud2().unwrap());
    let frame = guest.run_to_exception(6, false);
    assert_eq!((guest.regs().rsp, frame.rsp), (IST1 - 40, STACK));
}

#[test]
fn user_fault_changes_to_the_stack_of_level_0() {
    let mut guest = Guest::long();
    guest.code(64, CODE, enter_user);
    guest.code(64, USER_CODE, |a| a.cli().unwrap());
    let frame = guest.run_to_exception(13, true);
    assert_eq!(frame.error, Some(0));
    assert_eq!((frame.rip, frame.cs, frame.rsp), (USER_CODE, u64::from(USER_CODE64), USER_STACK));
    assert_eq!(guest.regs().rsp, RSP0 - 48);
    let sregs = guest.sregs();
    assert_eq!((sregs.ss.selector, sregs.cs.selector), (0, CODE64), "SS is null at level 0");
}

#[test]
fn software_interrupt_needs_the_privilege_of_its_gate() {
    let mut guest = Guest::long();
    guest.code(64, CODE, enter_user);
    guest.code(64, USER_CODE, |a| a.int(0x40).unwrap());
    let frame = guest.run_to_exception(13, true);
    assert_eq!(frame.error, Some(0x40 << 3 | 2), "IDT bit, no EXT bit");
    assert_eq!(frame.rip, USER_CODE);
}

#[test]
fn software_interrupt_returns_behind_itself() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| a.int(0x40).unwrap());
    let frame = guest.run_to_exception(0x40, false);
    assert_eq!((frame.rip, frame.flags & 1 << 16), (CODE + 2, 0));
}

#[test]
fn iretq_round_trip_restores_everything() {
    let mut guest = Guest::long();
    let handler = 0x1_8000;
    guest.code(64, handler, |a| {
        a.mov(rbx, 7u64).unwrap();
        a.iretq().unwrap();
    });
    guest.set_gate(0x40, handler, 0x8e, 0, 64);
    guest.code(64, CODE, |a| {
        a.stc().unwrap();
        a.int(0x40).unwrap();
        a.setb(al).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let regs = guest.regs();
    assert_eq!((regs.rbx, regs.rax & 1, regs.rsp), (7, 1, STACK));
}

#[test]
fn fault_while_delivering_a_fault_is_a_double_fault() {
    let mut guest = Guest::long();
    // The gate of #GP is not present, so #GP becomes #NP, and together they are #DF.
    guest.set_gate(13, 0, 0x0e, 0, 64);
    guest.code(64, CODE, |a| {
        a.mov(ecx, 0x1234_5678).unwrap();
        a.rdmsr().unwrap();
    });
    let frame = guest.run_to_exception(8, true);
    assert_eq!((frame.error, frame.rip), (Some(0), CODE + 5));
}

#[test]
fn fault_while_delivering_a_benign_exception_is_delivered_by_itself() {
    let mut guest = Guest::long();
    guest.set_gate(6, 0, 0x0e, 0, 64);
    guest.code(64, CODE, |a| a.ud2().unwrap());
    let frame = guest.run_to_exception(11, true);
    assert_eq!(frame.error, Some(6 << 3 | 3), "IDT and EXT bits");
}

#[test]
fn triple_fault_is_an_exit() {
    let mut guest = Guest::long();
    guest.set_sregs(|sregs| sregs.idt.limit = 0);
    guest.code(64, CODE, |a| a.ud2().unwrap());
    assert_eq!(guest.run(), Exit::Shutdown);
    assert_eq!(guest.run(), Exit::Shutdown, "until it is reset");
}

#[test]
fn non_canonical_operand_is_gp_and_on_the_stack_ss() {
    for (stack, vector) in [(false, 13), (true, 12)] {
        let mut guest = Guest::long();
        guest.code(64, CODE, |a| {
            a.mov(rbp, 0x8000_0000_0000_0000u64).unwrap();
            a.mov(rbx, rbp).unwrap();
            if stack { a.mov(rax, qword_ptr(rbp)) } else { a.mov(rax, qword_ptr(rbx)) }.unwrap();
        });
        assert_eq!(guest.run_to_exception(vector, true).error, Some(0));
    }
}

fn with_syscall() -> Guest {
    let mut guest = Guest::long();
    let entry = 0x1_8000;
    for (index, value) in [(0xc000_0081, 0x0018_0008_0000_0000), (0xc000_0082, entry), (0xc000_0084, 0x200)] {
        guest.vcpu.set_msr(ostler_engine::regs::MsrEntry { index, value }).unwrap();
    }
    guest.code(64, CODE, enter_user);
    guest
}

#[test]
fn syscall_enters_the_kernel_and_masks_flags() {
    let mut guest = with_syscall();
    guest.code(64, 0x1_8000, |a| a.hlt().unwrap());
    guest.code(64, USER_CODE, |a| {
        a.stc().unwrap();
        a.syscall().unwrap();
    });
    guest.run_to_halt();
    let (regs, sregs) = (guest.regs(), guest.sregs());
    assert_eq!((regs.rcx, regs.r11), (USER_CODE + 3, 0x203));
    assert_eq!((regs.rflags & 0x200, regs.rsp), (0, USER_STACK), "IF is masked, RSP is the user's");
    assert_eq!((sregs.cs.selector, sregs.ss.selector, sregs.cs.dpl), (0x08, 0x10, 0));
}

#[test]
fn sysret_returns_to_user_mode() {
    let mut guest = with_syscall();
    guest.code(64, 0x1_8000, |a| a.sysretq().unwrap());
    guest.code(64, USER_CODE, |a| {
        a.syscall().unwrap();
        a.hlt().unwrap();
    });
    let frame = guest.run_to_exception(13, true);
    assert_eq!((frame.rip, frame.cs, frame.ss), (USER_CODE + 2, 0x2b, 0x23));
    assert_eq!(frame.flags & 0x200, 0x200);
}

#[test]
fn sysret_to_a_non_canonical_address_faults_in_the_kernel() {
    let mut guest = with_syscall();
    guest.code(64, 0x1_8000, |a| {
        a.mov(rcx, 0x8000_0000_0000_0000u64).unwrap();
        a.sysretq().unwrap();
    });
    guest.code(64, USER_CODE, |a| a.syscall().unwrap());
    let frame = guest.run_to_exception(13, true);
    assert_eq!((frame.cs, frame.rsp), (u64::from(CODE64), USER_STACK));
}

#[test]
fn sysenter_and_sysexit_go_there_and_back() {
    let mut guest = Guest::long();
    for (index, value) in [(0x174, 8), (0x175, RSP0), (0x176, 0x1_8000)] {
        guest.vcpu.set_msr(ostler_engine::regs::MsrEntry { index, value }).unwrap();
    }
    guest.code(64, CODE, enter_user);
    guest.code(64, USER_CODE, |a| a.sysenter().unwrap());
    guest.code(64, 0x1_8000, |a| {
        a.mov(r8, rsp).unwrap();
        a.mov(rdx, USER_CODE + 0x100).unwrap();
        a.mov(rcx, USER_STACK - 8).unwrap();
        a.sysexitq().unwrap();
    });
    guest.code(64, USER_CODE + 0x100, |a| a.hlt().unwrap());
    let frame = guest.run_to_exception(13, true);
    assert_eq!((frame.rip, frame.rsp, frame.cs), (USER_CODE + 0x100, USER_STACK - 8, (8 + 32) | 3));
    assert_eq!(guest.regs().r8, RSP0);
}

#[test]
fn swapgs_exchanges_the_bases() {
    let mut guest = Guest::long();
    guest.vcpu.set_msr(ostler_engine::regs::MsrEntry { index: 0xc000_0102, value: 0x1234_0000 }).unwrap();
    guest.put64(0x9000, 0x55);
    guest.set_sregs(|sregs| sregs.gs.base = 0x9000);
    guest.code(64, CODE, |a| {
        a.mov(rax, qword_ptr(0).gs()).unwrap();
        a.swapgs().unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!((guest.regs().rax, guest.sregs().gs.base), (0x55, 0x1234_0000));
    assert_eq!(guest.vcpu.msr(0xc000_0102).unwrap(), 0x9000);
}

#[test]
fn compatibility_mode_runs_32_bit_code_and_comes_back() {
    let mut guest = Guest::long();
    // A far return into the 32-bit segment, and a far jump back.
    guest.code(64, CODE, |a| {
        a.push(i32::from(CODE32)).unwrap();
        a.push(USER_CODE as i32).unwrap();
        a.db(&[0x48, 0xcb]).unwrap(); // retfq
    });
    guest.put(USER_CODE, &[0x40]); // inc eax in 32 bits, a REX prefix in 64
    guest.put(USER_CODE + 1, &[0xea, 0, 0x80, 1, 0, 8, 0]); // jmp 8:0x18000
    guest.code(64, 0x1_8000, |a| {
        a.mov(rbx, 0x1_0000_0000u64).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!((guest.regs().rax, guest.regs().rbx), (1, 0x1_0000_0000));
}
