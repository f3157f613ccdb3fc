//! What translated code does that only counters and logs show: which jumps lead straight to their targets, and which
//! pages are watched for changes of code.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use ostler_engine::{Exit, NobodyAnswers};
use ostler_memory::{GuestRam, SlotConfig};
use ostler_x86::Translate;
use ostler_x86::cpu::control::{cr0, efer};
use ostler_x86::cpu::{Cpu, Mode};
use ostler_x86::jit::host_is_fit;
use ostler_x86::vm::{Sibling, VmShared};

const CODE: u64 = 0x4000;

/// A CPU in 64-bit mode without paging, which translates everything, and has run `write`'s code up to its HLT.
fn after(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Cpu {
    after_in(|_| {}, write)
}

/// As [`after`], in a VM that was prepared.
fn after_in(prepare: impl FnOnce(&VmShared), write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Cpu {
    let ram = Arc::new(GuestRam::new());
    ram.set_slot(SlotConfig { size: 0x10000, ..SlotConfig::default() }).expect("a slot");
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    write(&mut assembler).expect("instructions");
    assembler.hlt().expect("hlt");
    ram.write(CODE, &assembler.assemble(CODE).expect("code")).expect("guest memory");
    let vm = Arc::new(VmShared::new(ram, Translate::Eagerly));
    prepare(&vm);
    let (running, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let sibling = Arc::new(Sibling { id: 0, signals: Arc::default(), running, acknowledged });
    let mut cpu = Cpu::new(vm, sibling, None);
    cpu.cr0 = cr0::ET | cr0::NE | cr0::MP | cr0::PE;
    cpu.efer = efer::LMA | efer::LME;
    (cpu.mode, cpu.bitness, cpu.segment_base) = (Mode::Long, 64, [0; 9]);
    cpu.rip = CODE;
    assert_eq!(cpu.run(&NobodyAnswers), Exit::Hlt);
    cpu
}

#[test]
fn jump_back_to_a_block_that_is_known_already_is_linked() {
    if !host_is_fit() {
        return;
    }
    let cpu = after(|a| {
        let mut again = a.create_label();
        let mut over = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.jmp(over)?;
        a.set_label(&mut over)?;
        a.cmp(rax, 1000)?;
        a.jne(again)
    });
    assert_eq!(cpu.regs.get(0), 1000);
    assert_eq!(cpu.jit.statistics.links, 2);
}

/// Calls a function with a frame of some words 1000 times, with the stack at `stack`; RAX counts.
fn frames(a: &mut CodeAssembler, stack: u64) -> Result<(), IcedError> {
    let (mut again, mut function, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rsp, stack)?;
    a.mov(ebx, 1000)?;
    a.set_label(&mut again)?;
    a.call(function)?;
    a.dec(ebx)?;
    a.jne(again)?;
    a.jmp(done)?;
    a.set_label(&mut function)?;
    a.push(rbx)?;
    a.push(rax)?;
    a.sub(rsp, 16)?;
    a.mov(qword_ptr(rsp + 8), 1)?;
    a.mov(rbx, qword_ptr(rsp + 8))?;
    a.add(rsp, 16)?;
    a.pop(rax)?;
    a.add(rax, rbx)?;
    a.pop(rbx)?;
    a.ret()?;
    a.set_label(&mut done)?;
    a.nop()
}

#[test]
fn accesses_of_a_frame_share_a_look_up_and_are_made_one_by_one_across_pages() {
    if !host_is_fit() {
        return;
    }
    let cpu = after(|a| frames(a, 0x8f00));
    assert_eq!(cpu.regs.get(0), 1000);
    let together = cpu.jit.statistics;
    for stack in (0x8fd0..=0x9030).step_by(8) {
        let cpu = after(|a| frames(a, stack));
        assert_eq!(cpu.regs.get(0), 1000);
        let apart = cpu.jit.statistics;
        assert!(apart.careful <= together.careful + 2 && apart.call_outs < 20, "at {stack:#x}: {apart:?}");
    }
    // 12 bytes are in no page as a whole.
    let cpu = after(|a| frames(a, 0x9004));
    assert_eq!(cpu.regs.get(0), 1000);
}

#[test]
fn targets_loaded_from_several_pages_stay_in_translated_code() {
    if !host_is_fit() {
        return;
    }
    let cpu = after(|a| {
        let (mut again, mut target) = (a.create_label(), a.create_label());
        a.lea(rax, qword_ptr(target))?;
        a.mov(qword_ptr(0x8000), rax)?;
        a.mov(qword_ptr(0x9000), rax)?;
        a.mov(ebx, 1000)?;
        a.mov(esi, 0x8000)?;
        a.set_label(&mut again)?;
        a.xor(esi, 0x1000)?;
        a.jmp(qword_ptr(rsi))?;
        a.set_label(&mut target)?;
        a.inc(rdi)?;
        a.dec(ebx)?;
        a.jne(again)
    });
    assert_eq!(cpu.regs.get(7), 1000);
    assert!(cpu.jit.statistics.call_outs < 50, "{:?}", cpu.jit.statistics);
    let expected = cpu.mmu.tlb.context.guesses.iter().flat_map(|bank| bank.number).find(|number| *number != 0);
    assert!(matches!(expected.map(|number| !number), Some(8 | 9)), "{expected:x?}");
}

/// A page of its own.
const FUNCTION: u64 = 0x6000;

fn watched_lines(cpu: &Cpu, gpa: u64) -> u64 {
    let place = cpu.mmu.physical.find(gpa).expect("memory");
    place.log.watched_lines(place.offset / 0x1000)
}

/// Makes code at [`FUNCTION`], runs it, and overwrites it.
fn overwrite(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rsp, 0x8000_u64)?;
    // ret
    a.mov(byte_ptr(FUNCTION), 0xc3)?;
    a.call(FUNCTION)?;
    a.mov(rax, qword_ptr(FUNCTION))?;
    a.mov(qword_ptr(FUNCTION), 0)?;
    a.nop()
}

#[test]
fn page_whose_code_was_overwritten_is_not_watched_any_more() {
    let cpu = after(overwrite);
    assert_eq!(cpu.regs.get(0), 0xc3);
    assert_ne!(watched_lines(&cpu, CODE), 0);
    assert_eq!(watched_lines(&cpu, FUNCTION), 0);
}

#[test]
fn page_is_watched_until_the_last_vcpu_has_no_code_there() {
    let cpu = after_in(|vm| vm.hold_code(FUNCTION), overwrite);
    assert_ne!(watched_lines(&cpu, FUNCTION), 0, "another vCPU has code there");
    let cpu = after_in(|vm| drop(vm.add_sibling(1, Arc::default())), overwrite);
    assert_eq!(watched_lines(&cpu, FUNCTION), 0, "the other vCPU has none");
}

#[test]
fn dropping_all_code_at_once_leaves_no_page_watched_for_good() {
    let mut cpu = after(|a| {
        a.mov(rsp, 0x8000_u64)?;
        a.mov(byte_ptr(FUNCTION), 0xc3)?;
        a.call(FUNCTION)
    });
    assert_ne!(watched_lines(&cpu, FUNCTION), 0);
    // As when there are too many blocks. What runs next is at the HLT.
    cpu.code.forget_all();
    cpu.rip -= 1;
    assert_eq!(cpu.run(&NobodyAnswers), Exit::Hlt);
    assert_eq!(watched_lines(&cpu, FUNCTION), 0);
    assert_ne!(watched_lines(&cpu, CODE), 0);
}

/// Stores to the page of [`FUNCTION`], `offset` bytes into it, and calls the RET there, 1000 times.
fn store_and_call(a: &mut CodeAssembler, offset: u64) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rsp, 0x8000_u64)?;
    a.mov(byte_ptr(FUNCTION), 0xc3)?;
    a.mov(ebx, 1000)?;
    a.set_label(&mut again)?;
    a.mov(qword_ptr(FUNCTION + offset), rbx)?;
    a.add(rax, qword_ptr(FUNCTION + offset))?;
    a.call(FUNCTION)?;
    a.dec(ebx)?;
    a.jne(again)
}

#[test]
fn stores_beside_code_stay_in_translated_code() {
    if !host_is_fit() {
        return;
    }
    let cpu = after(|a| store_and_call(a, 0x800));
    assert_eq!(cpu.regs.get(0), 500_500);
    assert!(cpu.jit.statistics.call_outs < 50, "{:?}", cpu.jit.statistics);
    let cpu = after(|a| store_and_call(a, 0x38));
    assert_eq!(cpu.regs.get(0), 500_500);
    assert!(cpu.jit.statistics.call_outs >= 1000, "the line has code: {:?}", cpu.jit.statistics);
}

#[test]
fn store_that_reaches_into_a_line_with_code_is_noted() {
    let cpu = after(|a| {
        let mut again = a.create_label();
        store_and_call(a, 0x800)?;
        // add ecx, 1; ret: at the beginning of a line, where no code was so far.
        a.mov(dword_ptr(FUNCTION + 0x840), 0xc301_c183_u32 as i32)?;
        a.mov(ebx, 100)?;
        a.set_label(&mut again)?;
        a.call(FUNCTION + 0x840)?;
        // Four bytes before the line, and the immediate of what it begins with: add ecx, 0x10.
        a.mov(rdx, 0xc310_c183_0000_0000_u64)?;
        a.mov(qword_ptr(FUNCTION + 0x83c), rdx)?;
        a.dec(ebx)?;
        a.jne(again)
    });
    assert_eq!(cpu.regs.get(1), 1 + 99 * 0x10);
}
