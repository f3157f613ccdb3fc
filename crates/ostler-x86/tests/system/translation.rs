//! What only a translator could get wrong: code that was translated for one state of the CPU and runs in another.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use iced_x86::code_asm::*;
use ostler_engine::Exit;

use crate::guest::*;

/// In another page than [`CODE`].
const FUNCTION: u64 = CODE + 0x1000;
const FLAGS: u64 = 0x9_0000;
/// MXCSR with everything masked, and with division by zero unmasked.
const MASKED: u32 = 0x1f80;
const UNMASKED: u32 = 0x1d80;

#[test]
fn division_translated_while_exceptions_are_masked_faults_when_they_are_not() {
    let mut guest = Guest::long();
    guest.put(FLAGS, &MASKED.to_le_bytes());
    guest.put(FLAGS + 4, &UNMASKED.to_le_bytes());
    guest.code(64, FUNCTION, |a| {
        a.divsd(xmm0, xmm1).expect("divsd");
        a.ret().expect("ret");
    });
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(r12d, 40).expect("mov");
        a.mov(eax, 1).expect("mov");
        a.cvtsi2sd(xmm0, eax).expect("one");
        a.xorps(xmm1, xmm1).expect("zero");
        a.ldmxcsr(dword_ptr(FLAGS)).expect("ldmxcsr");
        a.set_label(&mut again).expect("label");
        a.call(FUNCTION).expect("call");
        a.dec(r12d).expect("dec");
        a.jnz(again).expect("jnz");
        a.cvtsi2sd(xmm0, eax).expect("one");
        a.ldmxcsr(dword_ptr(FLAGS + 4)).expect("ldmxcsr");
        a.call(FUNCTION).expect("call");
        a.hlt().expect("hlt");
    });
    let frame = guest.run_to_exception(19, false);
    assert_eq!(frame.rip, FUNCTION);
}

#[test]
fn flags_in_ring_0_are_pushed_as_they_are_and_if_changes() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.cli().expect("cli");
        a.mov(eax, 0x7fff_ffff).expect("mov");
        a.add(eax, 1).expect("overflow, sign, parity and adjust");
        a.pushfq().expect("pushfq");
        a.pop(r8).expect("pop");
        a.sti().expect("sti");
        a.stc().expect("stc");
        a.pushfq().expect("pushfq");
        a.pop(r9).expect("pop");
        a.cli().expect("cli");
        a.xor(eax, eax).expect("zero and parity");
        a.pushfq().expect("pushfq");
        a.pop(r10).expect("pop");
        a.hlt().expect("hlt");
    });
    assert_eq!(guest.run(), Exit::Hlt);
    let regs = guest.vcpu.regs().expect("regs");
    assert_eq!([regs.r8, regs.r9, regs.r10 & !0x10], [0x896, 0xa97, 0x46], "bit 4 is undefined after XOR");
}

#[test]
fn bases_of_gs_are_exchanged_and_used_at_once() {
    let mut guest = Guest::long();
    guest.put64(FLAGS, 1);
    guest.put64(FLAGS + 8, 2);
    guest.code(64, CODE, |a| {
        for (msr, base) in [(0xc000_0101_u32, FLAGS), (0xc000_0102, FLAGS + 8)] {
            a.mov(ecx, msr).expect("mov");
            a.mov(eax, base as u32).expect("mov");
            a.xor(edx, edx).expect("xor");
            a.wrmsr().expect("wrmsr");
        }
        for to in [r8, r9, r10] {
            a.mov(to, qword_ptr(0).gs()).expect("mov");
            a.swapgs().expect("swapgs");
        }
        a.mov(r11, qword_ptr(0).gs()).expect("mov");
        a.hlt().expect("hlt");
    });
    assert_eq!(guest.run(), Exit::Hlt);
    let regs = guest.vcpu.regs().expect("regs");
    assert_eq!([regs.r8, regs.r9, regs.r10, regs.r11], [1, 2, 1, 2]);
    assert_eq!(guest.vcpu.sregs().expect("sregs").gs.base, FLAGS + 8);
}

/// Where the loops count their rounds, and how many of them they make before they are kicked.
const ROUNDS: u64 = 0x9_0100;
const WARM: u64 = 100_000;

/// Whether a kick ends the run of a guest that never leaves its loop by itself.
fn kick_ends(mut guest: Guest) -> bool {
    let (kicker, memory) = (guest.vcpu.kicker(), Arc::clone(guest.vm.memory()));
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(guest.run()));
    let mut rounds = [0; 8];
    while u64::from_le_bytes(rounds) < WARM {
        std::thread::yield_now();
        memory.read(ROUNDS, &mut rounds).expect("RAM");
    }
    kicker.kick();
    end.recv_timeout(Duration::from_secs(30)) == Ok(Exit::Interrupted)
}

/// A loop of what `write` makes, which is to lead back to [`CODE`].
fn looping(write: impl FnOnce(&mut CodeAssembler, CodeLabel)) -> Guest {
    let mut guest = Guest::long();
    guest.set_regs(|regs| regs.rbx = STACK);
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).expect("label");
        a.mov(rsp, rbx).expect("mov");
        a.inc(qword_ptr(ROUNDS)).expect("inc");
        write(a, again);
    });
    guest
}

#[test]
fn loop_of_calls_within_a_page_ends_by_a_kick() {
    assert!(kick_ends(looping(|a, again| a.call(again).expect("call"))));
}

#[test]
fn loop_of_calls_across_pages_ends_by_a_kick() {
    let guest = looping(|a, _| a.call(FUNCTION).expect("call"));
    guest.code(64, FUNCTION, |a| a.call(CODE).expect("call"));
    assert!(kick_ends(guest));
}

#[test]
fn loop_of_calls_through_a_register_ends_by_a_kick() {
    let mut guest = looping(|a, _| a.call(rax).expect("call"));
    guest.set_regs(|regs| regs.rax = CODE);
    assert!(kick_ends(guest));
}

#[test]
fn loop_of_jumps_ends_by_a_kick() {
    assert!(kick_ends(looping(|a, again| {
        a.dec(r12).expect("dec");
        a.jnz(again).expect("jnz");
        a.jmp(again).expect("jmp");
    })));
}

#[test]
fn loop_of_returns_ends_by_a_kick() {
    let guest = looping(|a, _| {
        a.lea(rsp, qword_ptr(rsp - 8)).expect("lea");
        a.ret().expect("ret");
    });
    guest.put64(STACK - 8, CODE);
    assert!(kick_ends(guest));
}

#[test]
fn frame_whose_lower_page_is_missing_faults_at_the_instruction_that_needs_it() {
    let mut guest = Guest::long();
    // The page below 4 MiB is not there.
    guest.put64(PD + 8, 0);
    guest.set_regs(|regs| (regs.rsp, regs.rbx, regs.rsi) = (0x40_0010, 0x1234, 0x40_0000));
    guest.code(64, CODE, |a| {
        a.push(rbx).expect("push");
        a.push(rbx).expect("push");
        a.cmp(rbx, 0x1235).expect("carry, sign and parity");
        a.push(rbx).expect("it faults");
        a.hlt().expect("hlt");
    });
    // The handler has a stack of its own.
    guest.put(IDT + 16 * 14 + 4, &[1]);
    let frame = guest.run_to_exception(14, true);
    assert_eq!((frame.rsp, frame.flags & 0x8d5), (0x40_0000, 0x95), "before the third push");
    assert_eq!((guest.get64(0x40_0000), guest.get64(0x40_0008)), (0x1234, 0x1234));
}

#[test]
fn range_of_accesses_notices_a_page_exchanged_between_them() {
    let mut guest = Guest::long();
    guest.put64(0x40_0000, 1);
    guest.put64(0x40_0008, 2);
    guest.put64(0x60_0000, 3);
    guest.put64(0x60_0008, 4);
    guest.set_regs(|regs| (regs.rsi, regs.rdi) = (0x40_0000, PD + 16));
    guest.code(64, CODE, |a| {
        a.mov(r8, qword_ptr(rsi)).expect("mov");
        a.mov(r9, qword_ptr(rsi + 8)).expect("mov");
        a.mov(qword_ptr(rdi), 0x60_0087).expect("another page");
        a.invlpg(byte_ptr(rsi)).expect("invlpg");
        a.mov(r12, qword_ptr(rsi)).expect("mov");
        a.mov(r13, qword_ptr(rsi + 8)).expect("mov");
        a.hlt().expect("hlt");
    });
    assert_eq!(guest.run(), Exit::Hlt);
    let regs = guest.regs();
    assert_eq!([regs.r8, regs.r9, regs.r12, regs.r13], [1, 2, 3, 4]);
}

#[test]
fn push_that_overwrites_code_is_noted_among_others_of_its_frame() {
    let mut guest = Guest::long();
    // mov eax, 1; ret: called, and then overwritten by the second push with mov eax, 2; ret.
    let code = |value: u8| u64::from_le_bytes([0xb8, value, 0, 0, 0, 0xc3, 0, 0]);
    guest.put64(FUNCTION + 0x40, code(1));
    guest.set_regs(|regs| (regs.rbx, regs.rsi) = (code(2), code(1)));
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(r12d, 50).expect("mov");
        a.set_label(&mut again).expect("label");
        a.mov(rsp, STACK).expect("mov");
        a.call(FUNCTION + 0x40).expect("call");
        a.add(r13, rax).expect("add");
        a.mov(rsp, FUNCTION + 0x50).expect("mov");
        a.push(rsi).expect("push");
        a.push(rbx).expect("push");
        a.push(rsi).expect("push");
        a.mov(rsp, STACK).expect("mov");
        a.call(FUNCTION + 0x40).expect("call");
        a.add(r13, rax).expect("add");
        a.mov(qword_ptr(FUNCTION + 0x40), rsi).expect("mov");
        a.dec(r12d).expect("dec");
        a.jnz(again).expect("jnz");
        a.hlt().expect("hlt");
    });
    assert_eq!(guest.run(), Exit::Hlt);
    assert_eq!(guest.regs().r13, 50 * 3);
}

#[test]
fn loop_of_one_block_that_changes_itself_runs_what_it_wrote() {
    let mut guest = Guest::long();
    // again: add eax, 1; inc byte [rip - 8], the 1; cmp ebx, eax; ja again; hlt
    let code = [0x83, 0xc0, 1, 0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff, 0x39, 0xc3, 0x77, 0xf3, 0xf4];
    guest.put(CODE, &code);
    guest.set_regs(|regs| (regs.rax, regs.rbx) = (0, 100));
    assert_eq!(guest.run(), Exit::Hlt);
    // 1 + 2 + ... + 14
    assert_eq!(guest.regs().rax, 105);
}

#[test]
fn loop_of_one_block_keeps_its_vector_registers_over_calls_to_rust() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(eax, 3).expect("mov");
        a.cvtsi2sd(xmm1, eax).expect("three");
        a.xorps(xmm0, xmm0).expect("zero");
        a.mov(ebx, 1000).expect("mov");
        a.jmp(again).expect("jmp");
        a.set_label(&mut again).expect("label");
        a.addsd(xmm0, xmm1).expect("addsd");
        a.rdtsc().expect("rdtsc");
        a.dec(ebx).expect("dec");
        a.jnz(again).expect("jnz");
        a.cvtsd2si(r8d, xmm0).expect("the sum");
        a.hlt().expect("hlt");
    });
    assert_eq!(guest.run(), Exit::Hlt);
    assert_eq!(guest.regs().r8, 3000);
}

const USER_PAGE: u64 = 0x40_0000;
const AC: u64 = 1 << 18;

/// A loop with STAC and CLAC in ring 0, which reads the page of the user's at last.
fn with_stac_and_clac(smap: bool) -> Guest {
    let mut guest = Guest::long();
    guest.put64(PD, PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE);
    guest.set_sregs(|sregs| sregs.cr4 |= u64::from(smap) << 21);
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(r12d, 100).expect("mov");
        a.mov(esi, USER_PAGE as u32).expect("mov");
        a.set_label(&mut again).expect("label");
        a.cmp(r12d, -1).expect("carry and no zero");
        a.stac().expect("stac");
        a.adc(qword_ptr(rsi), 0).expect("adc");
        a.pushfq().expect("pushfq");
        a.pop(r8).expect("pop");
        a.cmp(r12d, -1).expect("carry");
        a.clac().expect("clac");
        a.adc(qword_ptr(ROUNDS), 0).expect("adc");
        a.pushfq().expect("pushfq");
        a.pop(r9).expect("pop");
        a.dec(r12d).expect("dec");
        a.jnz(again).expect("jnz");
        a.mov(rax, qword_ptr(rsi)).expect("mov");
        a.hlt().expect("hlt");
    });
    guest
}

#[test]
fn pages_of_users_are_there_between_stac_and_clac_only() {
    let mut guest = with_stac_and_clac(true);
    let frame = guest.run_to_exception(14, true);
    assert_eq!((frame.error, guest.sregs().cr2), (Some(1), USER_PAGE));
    assert_eq!((guest.get64(USER_PAGE), guest.get64(ROUNDS)), (100, 100));
    let regs = guest.regs();
    assert_eq!((regs.r8 & AC, regs.r9 & AC, frame.flags & AC), (AC, 0, 0));
}

#[test]
fn without_smap_stac_and_clac_change_a_flag_only() {
    let mut guest = with_stac_and_clac(false);
    guest.run_to_halt();
    let regs = guest.regs();
    assert_eq!((regs.rax, guest.get64(ROUNDS), regs.r8 & AC, regs.r9 & AC), (100, 100, AC, 0));
}

#[test]
fn key_that_changed_while_user_pages_were_allowed_is_not_mixed_up_with_the_one_before() {
    let mut guest = with_stac_and_clac(true);
    // MXCSR unmasks division by zero in every other round, between STAC and CLAC: code for both keys is there.
    guest.put(FLAGS, &MASKED.to_le_bytes());
    guest.put(FLAGS + 4, &UNMASKED.to_le_bytes());
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(r12d, 101).expect("mov");
        a.mov(eax, 1).expect("mov");
        a.cvtsi2sd(xmm1, eax).expect("one");
        a.set_label(&mut again).expect("label");
        a.mov(edx, r12d).expect("mov");
        a.and(edx, 1).expect("and");
        a.stac().expect("stac");
        a.ldmxcsr(dword_ptr(FLAGS + rdx * 4)).expect("ldmxcsr");
        a.addsd(xmm0, xmm1).expect("addsd");
        a.clac().expect("clac");
        a.addsd(xmm0, xmm1).expect("addsd");
        a.dec(r12d).expect("dec");
        a.jnz(again).expect("jnz");
        a.cvtsd2si(r8d, xmm0).expect("the sum");
        a.mov(edx, 1).expect("mov");
        a.stac().expect("stac");
        a.ldmxcsr(dword_ptr(FLAGS + rdx * 4)).expect("ldmxcsr");
        a.xorps(xmm2, xmm2).expect("zero");
        a.clac().expect("clac");
        a.divsd(xmm1, xmm2).expect("it faults");
        a.hlt().expect("hlt");
    });
    guest.run_to_exception(19, false);
    assert_eq!(guest.regs().r8, 202);
}
