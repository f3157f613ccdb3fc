//! Jumps through memory, whose page translated code expects to be the one it was before.

use iced_x86::code_asm::*;

use crate::guest::*;

/// A page table for the 2 MiB from 4 MiB on, whose pages are mapped to themselves.
const PT: u64 = 0x10_4000;
const WINDOW: u64 = 4 << 20;
/// Functions that leave their number in RAX, one every 16 bytes.
const FUNCTIONS: u64 = 0x1_8000;
const RIGHTS: u64 = PAGE_PRESENT | PAGE_WRITABLE;

/// The two ways from a table at RSI, and what uses them as often as it takes to be translated and longer.
type Call = fn(&mut CodeAssembler);
const CALLS: [Call; 2] = [
    |a| a.call(qword_ptr(rsi + rcx * 8)).expect("call"),
    |a| {
        a.mov(rax, qword_ptr(rsi + rcx * 8)).expect("mov");
        a.call(rax).expect("call");
    },
];

fn with_window() -> Guest {
    let mut guest = Guest::long();
    guest.put64(PD + 8 * 2, PT | RIGHTS);
    for page in 0..512 {
        guest.put64(PT + 8 * page, (WINDOW + page * 4096) | RIGHTS);
    }
    for number in 0..4 {
        guest.code(64, function(number), |a| {
            a.mov(eax, number as u32).expect("mov");
            a.ret().expect("ret");
        });
    }
    guest.set_regs(|regs| (regs.rsi, regs.rcx) = (WINDOW, 0));
    guest
}

fn function(number: u64) -> u64 {
    FUNCTIONS + 16 * number
}

/// A function that makes `call` from one place, so that all its uses share what is expected.
fn from_one_place(a: &mut CodeAssembler, call: Call) -> CodeLabel {
    let (mut place, mut over) = (a.create_label(), a.create_label());
    a.jmp(over).expect("jmp");
    a.set_label(&mut place).expect("label");
    call(a);
    a.ret().expect("ret");
    a.set_label(&mut over).expect("label");
    place
}

/// Adds 30 times what is called to `sum`.
fn thirty_times(a: &mut CodeAssembler, place: CodeLabel, sum: AsmRegister64) {
    let mut again = a.create_label();
    a.mov(edx, 30).expect("mov");
    a.set_label(&mut again).expect("label");
    a.call(place).expect("call");
    a.add(sum, rax).expect("add");
    a.dec(edx).expect("dec");
    a.jne(again).expect("jne");
}

#[test]
fn table_in_an_exchanged_page_leads_elsewhere() {
    for call in CALLS {
        let mut guest = with_window();
        guest.put64(WINDOW, function(1));
        guest.put64(WINDOW + 0x1000, function(2));
        guest.code(64, CODE, |a| {
            let place = from_one_place(a, call);
            thirty_times(a, place, r12);
            a.mov(qword_ptr(PT), ((WINDOW + 0x1000) | RIGHTS) as i32).expect("another page");
            a.invlpg(byte_ptr(rsi)).expect("invlpg");
            thirty_times(a, place, r13);
            a.hlt().expect("hlt");
        });
        guest.run_to_halt();
        assert_eq!((guest.regs().r12, guest.regs().r13), (30, 60));
    }
}

#[test]
fn table_is_found_in_any_page_and_across_two() {
    for call in CALLS {
        let mut guest = with_window();
        let places = [(0x10, 1), (0xff8, 2), (0x1000, 3), (0x1ffc, 1), (0x2008, 2), (0x2ffd, 3)];
        for (offset, number) in places {
            guest.put64(WINDOW + offset, function(number));
        }
        guest.code(64, CODE, |a| {
            let mut again = a.create_label();
            let place = from_one_place(a, call);
            a.mov(ebx, 20).expect("mov");
            a.set_label(&mut again).expect("label");
            for (offset, _) in places {
                a.lea(rsi, qword_ptr(WINDOW + offset)).expect("lea");
                a.call(place).expect("call");
                a.lea(r12, qword_ptr(r12 * 4 + rax)).expect("lea");
            }
            a.dec(ebx).expect("dec");
            a.jne(again).expect("jne");
            a.hlt().expect("hlt");
        });
        guest.run_to_halt();
        let expected = places.iter().cycle().take(20 * 6).fold(0_u64, |sum, (_, number)| sum << 2 | number);
        assert_eq!(guest.regs().r12, expected);
    }
}

#[test]
fn table_at_an_address_that_is_none_is_general_protection() {
    for call in CALLS {
        for address in [1_u64 << 63, 1 << 63 | 4, 1 << 47, WINDOW | 1 << 62, WINDOW | 1 << 52] {
            let mut guest = with_window();
            guest.put64(WINDOW, function(1));
            guest.code(64, CODE, |a| {
                let place = from_one_place(a, call);
                thirty_times(a, place, r12);
                a.mov(rsi, address).expect("mov");
                a.invlpg(byte_ptr(WINDOW)).expect("invlpg");
                a.call(place).expect("call");
            });
            assert_eq!(guest.run_to_exception(13, true).error, Some(0), "at {address:#x}");
            assert_eq!((guest.regs().r12, guest.regs().rax), (30, 1), "RAX was not loaded");
        }
    }
}

#[test]
fn table_in_a_page_that_went_away_is_a_page_fault() {
    for call in CALLS {
        let mut guest = with_window();
        guest.put64(WINDOW, function(1));
        guest.code(64, CODE, |a| {
            let place = from_one_place(a, call);
            thirty_times(a, place, r12);
            a.mov(qword_ptr(PT), 0).expect("mov");
            a.invlpg(byte_ptr(rsi)).expect("invlpg");
            a.call(place).expect("call");
        });
        guest.run_to_exception(14, true);
        assert_eq!((guest.regs().r12, guest.sregs().cr2), (30, WINDOW));
    }
}

#[test]
fn table_of_the_kernel_is_none_of_user_mode() {
    // What the kernel found is expected for the kernel alone: the same code runs with both rights.
    for call in CALLS {
        let mut guest = with_window();
        guest.put64(WINDOW, function(1));
        guest.code(64, CODE, |a| {
            let mut user = a.create_label();
            let place = from_one_place(a, call);
            thirty_times(a, place, r12);
            for value in [u32::from(USER_DATA), USER_STACK as u32, 2, u32::from(USER_CODE64)] {
                a.push(value as i32).expect("push");
            }
            a.lea(rax, qword_ptr(user)).expect("lea");
            a.push(rax).expect("push");
            a.iretq().expect("iretq");
            a.set_label(&mut user).expect("label");
            a.call(place).expect("call");
        });
        let frame = guest.run_to_exception(14, true);
        let found = (guest.regs().r12, guest.sregs().cr2, frame.error);
        assert_eq!(found, (30, WINDOW, Some(5)), "present, and not the user's");
    }
}
