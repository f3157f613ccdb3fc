//! KVM's end of interrupt in memory.

use iced_x86::code_asm::*;
use ostler_engine::Exit;
use ostler_engine::regs::MsrEntry;

use crate::guest::*;
use crate::monitor::run_guarded;

const PV_EOI_EN: u32 = 0x4b56_4d04;
const X2APIC_EOI: u32 = 0x80b;
const X2APIC_SVR: u32 = 0x80f;
/// Vectors 64..95 in service.
const X2APIC_ISR2: u32 = 0x812;
const X2APIC_LVT_TIMER: u32 = 0x832;
const TSC_DEADLINE_MODE: u32 = 1 << 18;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_SELF_IPI: u32 = 0x83f;

const WORD: u64 = 0x9_0000;
const HANDLERS: u64 = 0x1_8000;

fn wrmsr(a: &mut CodeAssembler, msr: u32, value: u32) {
    a.mov(ecx, msr).unwrap();
    a.mov(eax, value).unwrap();
    a.xor(edx, edx).unwrap();
    a.wrmsr().unwrap();
}

/// What ends a test: OUT, which nobody answers.
fn exit(a: &mut CodeAssembler) {
    a.out(0x10, al).unwrap();
}

/// Handlers of 0x41 and 0x51 that note the word in R8 and R9, and end the interrupt as Linux does; R10 and R11
/// count how often that took a write to the local APIC.
fn guest(write: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let mut guest = Guest::with_irqchip();
    for (vector, at, noted, count) in [(0x41, HANDLERS, r8, r10), (0x51, HANDLERS + 0x100, r9, r11)] {
        guest.code(64, at, |a| {
            let mut ended = a.create_label();
            a.mov(noted, qword_ptr(WORD)).unwrap();
            a.btr(dword_ptr(WORD), 0u32).unwrap();
            a.jc(ended).unwrap();
            a.inc(count).unwrap();
            wrmsr(a, X2APIC_EOI, 0);
            a.set_label(&mut ended).unwrap();
            a.iretq().unwrap();
        });
        guest.set_gate(vector, at, 0x8e, 0, 64);
    }
    guest.vcpu.set_msr(MsrEntry { index: 0x1b, value: 0xfee0_0d00 }).unwrap();
    guest.code(64, CODE, |a| {
        wrmsr(a, X2APIC_SVR, 0x1ff);
        wrmsr(a, PV_EOI_EN, WORD as u32 | 1);
        write(a);
        exit(a);
    });
    guest.set_regs(|regs| (regs.r8, regs.r9) = (77, 77));
    guest
}

fn run(guest: &mut Guest) -> [u64; 4] {
    assert!(matches!(guest.run(), Exit::IoOut { port: 0x10, .. }), "{:#x?}", guest.regs());
    let regs = guest.regs();
    [regs.r8, regs.r10, regs.r9, regs.r11]
}

#[test]
fn lone_interrupt_is_ended_in_memory_and_the_next_one_comes() {
    let mut guest = guest(|a| {
        a.sti().unwrap();
        for _ in 0..3 {
            wrmsr(a, X2APIC_SELF_IPI, 0x41);
        }
        a.mov(ecx, X2APIC_ISR2).unwrap();
        a.rdmsr().unwrap();
        a.mov(ebx, eax).unwrap();
    });
    assert_eq!(run(&mut guest), [1, 0, 77, 0], "offered, and no write to the local APIC");
    assert_eq!(guest.regs().rbx, 0, "nothing is in service");
}

#[test]
fn interrupt_with_another_behind_it_has_to_be_ended_by_a_write() {
    let mut guest = guest(|a| {
        wrmsr(a, X2APIC_SELF_IPI, 0x41);
        wrmsr(a, X2APIC_SELF_IPI, 0x51);
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    assert_eq!(run(&mut guest), [1, 0, 0, 1], "0x51 first, by a write; then 0x41 in memory");
}

#[test]
fn interrupt_that_arrives_before_the_end_takes_the_offer_back() {
    let mut guest = guest(|a| {
        a.sti().unwrap();
        wrmsr(a, X2APIC_SELF_IPI, 0x41);
    });
    // The handler of 0x41 lets in 0x51, which may not be ended for both.
    guest.code(64, HANDLERS, |a| {
        let mut ended = a.create_label();
        a.sti().unwrap();
        wrmsr(a, X2APIC_SELF_IPI, 0x51);
        a.mov(r8, qword_ptr(WORD)).unwrap();
        a.btr(dword_ptr(WORD), 0u32).unwrap();
        a.jc(ended).unwrap();
        a.inc(r10).unwrap();
        wrmsr(a, X2APIC_EOI, 0);
        a.set_label(&mut ended).unwrap();
        a.iretq().unwrap();
    });
    assert_eq!(run(&mut guest), [0, 1, 0, 1]);
}

#[test]
fn interrupt_ended_in_memory_does_not_keep_the_next_one_from_ending_mwait() {
    let mut guest = guest(|a| {
        let mut early = a.create_label();
        wrmsr(a, X2APIC_LVT_TIMER, TSC_DEADLINE_MODE | 0x41);
        a.rdtsc().unwrap();
        a.shl(rdx, 32).unwrap();
        a.or(rax, rdx).unwrap();
        a.lea(rsi, rax + 20_000_000).unwrap();
        a.mov(rdx, rsi).unwrap();
        a.shr(rdx, 32).unwrap();
        a.mov(eax, esi).unwrap();
        a.mov(ecx, IA32_TSC_DEADLINE).unwrap();
        a.wrmsr().unwrap();
        a.sti().unwrap();
        wrmsr(a, X2APIC_SELF_IPI, 0x41);
        a.cli().unwrap();
        // The timer has the same vector: no more urgent than what the local APIC believes to be in service.
        a.set_label(&mut early).unwrap();
        a.rdtsc().unwrap();
        a.shl(rdx, 32).unwrap();
        a.or(rax, rdx).unwrap();
        a.sub(rax, rsi).unwrap();
        a.cmp(rax, 20_000_000).unwrap();
        a.jl(early).unwrap();
        a.mov(rax, WORD + 0x1000).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.monitor().unwrap();
        a.mov(ecx, 1).unwrap();
        a.mwait().unwrap();
    });
    assert!(matches!(run_guarded(&mut guest), Exit::IoOut { port: 0x10, .. }), "the wait ends");
}

#[test]
fn state_between_runs_has_what_was_ended() {
    let mut guest = guest(|a| {
        a.sti().unwrap();
        wrmsr(a, X2APIC_SELF_IPI, 0x41);
    });
    run(&mut guest);
    assert_eq!(guest.vcpu.lapic().unwrap().regs[0x120], 0, "vector 0x41 is not in service");
    assert_eq!(guest.vcpu.msr(PV_EOI_EN).unwrap(), WORD | 1);
}

#[test]
fn word_has_to_be_an_aligned_one_in_memory() {
    let mut guest = Guest::with_irqchip();
    for (value, accepted) in [(0, true), (WORD | 1, true), (WORD | 3, false), ((1 << 40) | 1, false)] {
        let done = guest.vcpu.set_msr(MsrEntry { index: PV_EOI_EN, value });
        assert_eq!(done.is_ok(), accepted, "{value:#x}");
    }
    assert!(Guest::long().vcpu.msr(PV_EOI_EN).is_err(), "without a local APIC there is none");
}
