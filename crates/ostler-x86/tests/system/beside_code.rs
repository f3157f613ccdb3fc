//! Data on pages that hold code, while other vCPUs run that code or are about to.

use std::thread;

use iced_x86::code_asm::*;
use ostler_engine::{Exit, NobodyAnswers};

use crate::guest::*;

/// A page of code and data: a function, and far from its line a counter.
const SHARED: u64 = 0x8_0000;
const COUNTER: u64 = SHARED + 0x800;
/// The round that the writer has prepared, the one that the reader has seen, and what it saw wrongly.
const PREPARED: u64 = 0x9_0000;
const SEEN: u64 = 0x9_0040;
const WRONG: u64 = 0x9_0080;
const READER: u64 = CODE + 0x2000;
const ROUNDS: i32 = 300;

/// Waits until the doubleword at `at` is EBX.
fn wait(a: &mut CodeAssembler, at: u64) {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut again).unwrap();
    a.cmp(dword_ptr(at), ebx).unwrap();
    a.je(done).unwrap();
    a.pause().unwrap();
    a.jmp(again).unwrap();
    a.set_label(&mut done).unwrap();
}

/// Each round, one vCPU changes what the function returns, after stores to data of its page that became fast; the
/// other one calls it. With `resident`, the page holds other code that stays.
fn changed_code_is_seen(resident: bool) {
    let mut guest = Guest::long();
    // mov eax, 0; ret: at the start of a line. ret: in another one.
    guest.put(SHARED + 0x400, &[0xb8, 0, 0, 0, 0, 0xc3]);
    guest.put(SHARED + 0x600, &[0xc3]);
    guest.code(64, CODE, |a| {
        let (mut round, mut store) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut round).unwrap();
        a.inc(ebx).unwrap();
        a.mov(ecx, 20).unwrap();
        a.set_label(&mut store).unwrap();
        a.inc(qword_ptr(COUNTER)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(store).unwrap();
        a.mov(dword_ptr(SHARED + 0x401), ebx).unwrap();
        a.mov(dword_ptr(PREPARED), ebx).unwrap();
        wait(a, SEEN);
        a.cmp(ebx, ROUNDS).unwrap();
        a.jne(round).unwrap();
        a.hlt().unwrap();
    });
    guest.code(64, READER, |a| {
        let (mut round, mut right) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut round).unwrap();
        a.inc(ebx).unwrap();
        wait(a, PREPARED);
        // Serializes, as code that another processor changed wants it.
        a.mov(r12d, ebx).unwrap();
        a.xor(eax, eax).unwrap();
        a.cpuid().unwrap();
        a.mov(ebx, r12d).unwrap();
        if resident {
            a.call(SHARED + 0x600).unwrap();
        }
        a.call(SHARED + 0x400).unwrap();
        a.cmp(eax, ebx).unwrap();
        a.je(right).unwrap();
        a.inc(dword_ptr(WRONG)).unwrap();
        a.set_label(&mut right).unwrap();
        a.mov(dword_ptr(SEEN), ebx).unwrap();
        a.cmp(ebx, ROUNDS).unwrap();
        a.jne(round).unwrap();
        a.hlt().unwrap();
    });
    let mut reader = guest.add_vcpu(1, READER, STACK - 0x1000);
    thread::scope(|scope| {
        let reads = scope.spawn(move || reader.run(&NobodyAnswers));
        assert_eq!(guest.run(), Exit::Hlt);
        assert_eq!(reads.join().expect("no panic").expect("it runs"), Exit::Hlt);
    });
    let mut wrong = [0; 4];
    guest.vm.memory().read(WRONG, &mut wrong).expect("RAM");
    assert_eq!(u32::from_le_bytes(wrong), 0, "rounds in which old code ran");
    let mut stores = [0; 8];
    guest.vm.memory().read(COUNTER, &mut stores).expect("RAM");
    assert_eq!(u64::from_le_bytes(stores), 20 * ROUNDS as u64);
}

#[test]
fn change_of_the_only_code_of_a_page_is_seen_by_another_vcpu() {
    changed_code_is_seen(false);
}

#[test]
fn change_of_code_beside_other_code_is_seen_by_another_vcpu() {
    changed_code_is_seen(true);
}

#[test]
fn loop_of_one_block_ends_when_another_vcpu_changes_it() {
    let mut guest = Guest::long();
    // again: cmp eax, 0; je again; hlt
    guest.put(SHARED + 0x400, &[0x3d, 0, 0, 0, 0, 0x74, 0xf9, 0xf4]);
    guest.set_regs(|regs| (regs.rip, regs.rax) = (SHARED + 0x400, 0));
    let writer = guest.add_vcpu(1, READER, STACK - 0x1000);
    guest.code(64, READER, |a| {
        let mut wait = a.create_label();
        a.mov(ecx, 100_000).unwrap();
        a.set_label(&mut wait).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(wait).unwrap();
        a.mov(byte_ptr(SHARED + 0x401), 1).unwrap();
        a.hlt().unwrap();
    });
    let mut writer = writer;
    thread::scope(|scope| {
        let writes = scope.spawn(move || writer.run(&NobodyAnswers));
        assert_eq!(guest.run(), Exit::Hlt);
        assert_eq!(writes.join().expect("no panic").expect("it runs"), Exit::Hlt);
    });
    assert_eq!(guest.regs().rip, SHARED + 0x408);
}
