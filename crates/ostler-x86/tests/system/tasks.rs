//! Task switches and virtual-8086 mode.

use iced_x86::code_asm::*;

use crate::guest::*;

const OTHER_TSS: u64 = 0xa000;
const OTHER_CODE: u64 = 0x1_9000;
const OTHER_STACK: u64 = 0x7_0000;

/// A second task at selector [`FREE`].
fn with_task() -> Guest {
    let guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(OTHER_TSS as u32, 0x67, 0x89, 0));
    let put = |offset: u64, value: u32| guest.put(OTHER_TSS + offset, &value.to_le_bytes());
    put(32, OTHER_CODE as u32);
    put(36, 2);
    put(40, 0xaaaa);
    put(56, OTHER_STACK as u32);
    for (index, selector) in [DATA, CODE32, DATA, DATA, DATA, DATA].into_iter().enumerate() {
        put(72 + 4 * index as u64, u32::from(selector));
    }
    guest
}

fn kind_of(guest: &Guest, selector: u16) -> u64 {
    guest.get64(GDT + u64::from(selector)) >> 40 & 15
}

#[test]
fn jump_to_a_task_saves_one_and_loads_the_other() {
    let mut guest = with_task();
    guest.code(32, CODE, |a| {
        a.mov(ebx, 0x1234).unwrap();
        a.db(&[0xea, 0, 0, 0, 0, FREE as u8, 0]).unwrap();
    });
    guest.code(32, OTHER_CODE, |a| {
        a.mov(ecx, cr0).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let regs = guest.regs();
    assert_eq!((regs.rax, regs.rsp, regs.rcx & 8), (0xaaaa, OTHER_STACK, 8), "registers, and CR0.TS");
    assert_eq!((guest.get32(TSS + 52), guest.get32(TSS + 32)), (0x1234, CODE as u32 + 12));
    assert_eq!((kind_of(&guest, TASK), kind_of(&guest, FREE)), (9, 11));
    assert_eq!(guest.sregs().tr.selector, FREE);
}

#[test]
fn called_task_returns_by_its_link() {
    let mut guest = with_task();
    guest.code(32, CODE, |a| {
        a.db(&[0x9a, 0, 0, 0, 0, FREE as u8, 0]).unwrap();
        a.mov(ebx, 0x55).unwrap();
        a.pushfd().unwrap();
        a.pop(edx).unwrap();
        a.hlt().unwrap();
    });
    guest.code(32, OTHER_CODE, |a| {
        a.pushfd().unwrap();
        a.pop(dword_ptr(0x9000)).unwrap();
        a.iretd().unwrap();
    });
    guest.run_to_halt();
    let regs = guest.regs();
    assert_eq!((regs.rbx, regs.rsp, regs.rdx & 0x4000), (0x55, STACK, 0));
    assert_eq!(guest.get32(0x9000) & 0x4000, 0x4000, "NT in the nested task");
    assert_eq!(guest.get32(OTHER_TSS) & 0xffff, u32::from(TASK));
    assert_eq!((kind_of(&guest, TASK), kind_of(&guest, FREE)), (11, 9));
}

#[test]
fn busy_task_cannot_be_jumped_to() {
    let mut guest = with_task();
    guest.code(32, CODE, |a| a.db(&[0xea, 0, 0, 0, 0, TASK as u8, 0]).unwrap());
    assert_eq!(guest.run_to_exception(13, true).error, Some(u64::from(TASK)));
}

#[test]
fn task_gate_takes_an_exception_with_its_error_code() {
    let mut guest = with_task();
    guest.put64(IDT + 8 * 13, gate(FREE, 0, 0x85, 0));
    guest.code(32, CODE, |a| {
        a.mov(eax, 0x1000).unwrap();
        a.mov(ds, ax).unwrap();
    });
    guest.code(32, OTHER_CODE, |a| {
        a.pop(ebx).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!((guest.regs().rbx, guest.get32(TSS + 32)), (0x1000, CODE as u32 + 5));
}

#[test]
fn task_with_a_bad_segment_faults_as_the_new_task() {
    let mut guest = with_task();
    guest.put(OTHER_TSS + 84, &0x1000u32.to_le_bytes());
    guest.code(32, CODE, |a| a.db(&[0xea, 0, 0, 0, 0, FREE as u8, 0]).unwrap());
    let frame = guest.run_to_exception(10, true);
    assert_eq!((frame.error, frame.rip), (Some(0x1000), OTHER_CODE));
    assert_eq!(guest.sregs().tr.selector, FREE);
}

/// Enters virtual-8086 mode at 0x1000:0 with the given IOPL.
fn enter_v86(guest: &Guest, iopl: u32) {
    guest.code(32, CODE, |a| {
        for value in [0, 0, 0x900, 0x900, 0x2000, 0x1000, 0x2_0002 | iopl << 12, 0x1800, 0] {
            a.push(value as i32).unwrap();
        }
        a.iretd().unwrap();
    });
}

#[test]
fn virtual_8086_interrupt_returns_to_protected_mode_and_back() {
    let mut guest = Guest::protected();
    enter_v86(&guest, 3);
    let handler = 0x1_9000;
    guest.code(32, handler, |a| {
        a.mov(ebx, esp).unwrap();
        a.mov(edx, ds).unwrap();
        a.iretd().unwrap();
    });
    guest.set_gate(0x40, handler, 0xee, 0, 32);
    let code = assemble(16, 0, |a| {
        a.mov(ax, ds).unwrap();
        a.int(0x40).unwrap();
        a.mov(cx, ds).unwrap();
        a.hlt().unwrap();
    });
    guest.put(0x1_8000, &code);
    let frame = guest.run_to_exception(13, true);
    let regs = guest.regs();
    assert_eq!((regs.rax, regs.rcx, regs.rdx), (0x900, 0x900, 0));
    assert_eq!(regs.rbx, RSP0 - 36, "nine doublewords");
    assert_eq!((frame.cs, frame.rip, frame.flags >> 17 & 1), (0x1800, 6, 1), "HLT is #GP there");
}

#[test]
fn virtual_8086_int_n_needs_iopl_3() {
    let mut guest = Guest::protected();
    enter_v86(&guest, 0);
    guest.put(0x1_8000, &[0xcd, 0x40]);
    let frame = guest.run_to_exception(13, true);
    assert_eq!((frame.error, frame.rip, frame.cs), (Some(0), 0, 0x1800));
}
