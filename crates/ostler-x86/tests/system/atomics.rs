//! LOCKed instructions of several vCPUs on the same memory: nothing is lost, whatever the operand's width and place.

use std::thread;

use iced_x86::code_asm::*;
use ostler_engine::{Exit, NobodyAnswers, Vcpu};

use crate::guest::*;

const THREADS: u64 = 4;
const ROUNDS: u64 = 20_000;
/// Where each round stops the other vCPUs.
const FEW_ROUNDS: u64 = 2_000;
const COUNTERS: u64 = 0x20_0000;
const OTHER: u64 = 0x1_8000;

/// Runs `body` [`ROUNDS`] times on each of [`THREADS`] vCPUs; RSI is the number of the vCPU.
fn race(body: impl Fn(&mut CodeAssembler)) -> Guest {
    race_for(ROUNDS, body)
}

fn race_for(rounds: u64, body: impl Fn(&mut CodeAssembler)) -> Guest {
    let guest = Guest::long();
    guest.code(64, OTHER, |a| {
        let mut again = a.create_label();
        a.mov(r15d, rounds as u32).unwrap();
        a.set_label(&mut again).unwrap();
        // An instruction of its own: the body may begin with a label.
        a.nop().unwrap();
        body(a);
        a.dec(r15d).unwrap();
        a.jnz(again).unwrap();
        a.out(0x10, al).unwrap();
    });
    let vcpus: Vec<_> = (0..THREADS)
        .map(|number| {
            let mut vcpu = guest.add_vcpu(1 + number as u32, OTHER, 0x7_0000 + 0x1000 * number);
            let mut regs = vcpu.regs().expect("regs");
            regs.rsi = number;
            vcpu.set_regs(&regs).expect("set regs");
            vcpu
        })
        .collect();
    run_to_their_ends(vcpus);
    guest
}

/// Runs all at the same time, each until it writes to a port.
fn run_to_their_ends(vcpus: impl IntoIterator<Item = Box<dyn Vcpu>>) {
    thread::scope(|scope| {
        for mut vcpu in vcpus {
            scope.spawn(move || {
                let exit = vcpu.run(&NobodyAnswers).expect("run");
                assert!(matches!(exit, Exit::IoOut { .. }), "{exit:?}");
            });
        }
    });
}

/// The places of a counter, and how often each vCPU goes there: aligned, across cache lines, across pages.
const PLACES: [(u64, u64); 3] = [(COUNTERS, ROUNDS), (COUNTERS + 0x13d, ROUNDS), (COUNTERS + 0x1ffd, FEW_ROUNDS)];

#[test]
fn locked_increments_of_all_places_are_all_there() {
    for (place, rounds) in PLACES {
        let guest = race_for(rounds, |a| a.lock().inc(qword_ptr(place)).unwrap());
        assert_eq!(guest.get64(place), THREADS * rounds, "at {place:#x}");
    }
}

#[test]
fn exchange_and_add_gives_each_number_once() {
    for (place, rounds) in PLACES {
        // The numbers that XADD gives add up.
        let guest = race_for(rounds, |a| {
            a.mov(eax, 1).unwrap();
            a.lock().xadd(dword_ptr(place), eax).unwrap();
            a.lock().add(qword_ptr(COUNTERS + 0x3000), rax).unwrap();
        });
        let count = THREADS * rounds;
        assert_eq!(guest.get32(place), count as u32, "at {place:#x}");
        assert_eq!(guest.get64(COUNTERS + 0x3000), count * (count - 1) / 2, "at {place:#x}");
    }
}

/// Set by one vCPU when it begins, by the other when it is done.
const BEGUN: u64 = COUNTERS + 0x5000;
const DONE: u64 = COUNTERS + 0x5040;
/// How often `meanwhile` ran.
const TIMES: u64 = COUNTERS + 0x5080;

/// Runs `body` [`FEW_ROUNDS`] times on one vCPU, and `meanwhile` on another from before the first until after the last.
fn race_of_two(body: impl Fn(&mut CodeAssembler), meanwhile: impl Fn(&mut CodeAssembler)) -> Guest {
    let guest = Guest::long();
    let second = OTHER + 0x1000;
    guest.code(64, OTHER, |a| {
        let (mut wait, mut again) = (a.create_label(), a.create_label());
        a.mov(r15d, FEW_ROUNDS as u32).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(BEGUN), 0).unwrap();
        a.je(wait).unwrap();
        a.set_label(&mut again).unwrap();
        body(a);
        a.dec(r15d).unwrap();
        a.jnz(again).unwrap();
        a.mov(dword_ptr(DONE), 1).unwrap();
        a.out(0x10, al).unwrap();
    });
    guest.code(64, second, |a| {
        let mut again = a.create_label();
        a.xor(r14d, r14d).unwrap();
        a.mov(dword_ptr(BEGUN), 1).unwrap();
        a.set_label(&mut again).unwrap();
        meanwhile(a);
        a.inc(r14).unwrap();
        a.cmp(dword_ptr(DONE), 0).unwrap();
        a.je(again).unwrap();
        a.mov(qword_ptr(TIMES), r14).unwrap();
        a.out(0x10, al).unwrap();
    });
    let vcpus = [guest.add_vcpu(1, OTHER, 0x7_0000), guest.add_vcpu(2, second, 0x7_1000)];
    run_to_their_ends(vcpus);
    guest
}

#[test]
fn locked_across_a_boundary_excludes_a_locked_access_to_some_of_the_bytes() {
    // Four bytes on each side of a cache line's end, and of a page's: the wide operand counts on the far side, the
    // narrow one on the near.
    for place in [COUNTERS + 0x13c, COUNTERS + 0x1ffc] {
        let guest = race_of_two(
            |a| {
                a.mov(rax, 1u64 << 32).unwrap();
                a.lock().xadd(qword_ptr(place), rax).unwrap();
            },
            |a| a.lock().inc(dword_ptr(place)).unwrap(),
        );
        let near = guest.get64(TIMES);
        assert!(near < 1 << 32, "the near side has not carried");
        assert_eq!(guest.get64(place), FEW_ROUNDS << 32 | near, "at {place:#x}");
    }
}

#[test]
fn locked_across_pages_is_never_seen_half_done() {
    let place = COUNTERS + 0x1ffc;
    let guest = race_of_two(
        |a| {
            a.mov(rax, 0x1_0000_0001u64).unwrap();
            a.lock().add(qword_ptr(place), rax).unwrap();
        },
        |a| {
            // The far side is read last: only it may be ahead.
            a.mov(eax, dword_ptr(place)).unwrap();
            a.cmp(dword_ptr(place + 4), eax).unwrap();
            a.setb(dl).unwrap();
            a.or(byte_ptr(COUNTERS + 0x4000), dl).unwrap();
        },
    );
    assert_eq!(guest.get64(place), FEW_ROUNDS << 32 | FEW_ROUNDS);
    assert_eq!(guest.get64(COUNTERS + 0x4000), 0, "the near side was ahead");
}

#[test]
fn compare_and_exchange_of_16_bytes_counts_in_both_halves() {
    let guest = race(|a| {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.mov(rax, qword_ptr(COUNTERS)).unwrap();
        a.mov(rdx, qword_ptr(COUNTERS + 8)).unwrap();
        a.set_label(&mut again).unwrap();
        a.lea(rbx, ptr(rax + 1)).unwrap();
        a.lea(rcx, ptr(rdx + 3)).unwrap();
        a.lock().cmpxchg16b(xmmword_ptr(COUNTERS)).unwrap();
        a.je(done).unwrap();
        a.jmp(again).unwrap();
        a.set_label(&mut done).unwrap();
        a.nop().unwrap();
    });
    assert_eq!([guest.get64(COUNTERS), guest.get64(COUNTERS + 8)], [THREADS * ROUNDS, 3 * THREADS * ROUNDS]);
}

#[test]
fn lock_made_of_exchange_keeps_plain_increments_apart() {
    let (lock, counter) = (COUNTERS, COUNTERS + 0x1000);
    let guest = race(|a| {
        let (mut again, mut taken) = (a.create_label(), a.create_label());
        a.set_label(&mut again).unwrap();
        a.mov(eax, 1).unwrap();
        a.xchg(dword_ptr(lock), eax).unwrap();
        a.test(eax, eax).unwrap();
        a.jz(taken).unwrap();
        a.pause().unwrap();
        a.jmp(again).unwrap();
        a.set_label(&mut taken).unwrap();
        a.inc(qword_ptr(counter)).unwrap();
        a.mov(dword_ptr(lock), 0).unwrap();
    });
    assert_eq!(guest.get64(counter), THREADS * ROUNDS);
}

#[test]
fn bits_set_by_different_vcpus_do_not_undo_each_other() {
    let guest = race(|a| {
        a.lock().btc(qword_ptr(COUNTERS), rsi).unwrap();
        a.lock().bts(qword_ptr(COUNTERS + 0x13d), rsi).unwrap();
        a.lock().btr(qword_ptr(COUNTERS + 0x13d), rsi).unwrap();
    });
    assert_eq!([guest.get64(COUNTERS), guest.get64(COUNTERS + 0x13d)], [0, 0]);
}

#[test]
fn code_changed_by_one_vcpu_is_what_the_others_run_after_they_serialize() {
    // One vCPU writes the number that the function returns, says so, and waits for all to have seen it.
    const FUNCTION: u64 = 0x30_0000;
    const TURN: u64 = COUNTERS + 0x2000;
    const SEEN: u64 = COUNTERS + 0x2040;
    const TURNS: u32 = 300;
    let guest = Guest::long();
    guest.code(64, FUNCTION, |a| {
        a.mov(eax, 0).unwrap();
        a.ret().unwrap();
    });
    guest.code(64, OTHER, |a| {
        let (mut turn, mut wait) = (a.create_label(), a.create_label());
        a.mov(r12d, 0).unwrap();
        a.set_label(&mut turn).unwrap();
        a.inc(r12d).unwrap();
        a.mov(dword_ptr(FUNCTION + 1), r12d).unwrap();
        a.mov(dword_ptr(TURN), r12d).unwrap();
        a.imul_3(r13d, r12d, 2).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(SEEN), r13d).unwrap();
        a.jb(wait).unwrap();
        a.cmp(r12d, TURNS as i32).unwrap();
        a.jb(turn).unwrap();
        a.out(0x10, al).unwrap();
    });
    let reader = OTHER + 0x1000;
    guest.code(64, reader, |a| {
        let (mut turn, mut wait, mut wrong) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(r12d, 0).unwrap();
        a.mov(rbp, FUNCTION).unwrap();
        a.set_label(&mut turn).unwrap();
        a.inc(r12d).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(TURN), r12d).unwrap();
        a.jne(wait).unwrap();
        a.xor(eax, eax).unwrap();
        a.cpuid().unwrap();
        a.call(rbp).unwrap();
        a.cmp(eax, r12d).unwrap();
        a.jne(wrong).unwrap();
        a.lock().inc(dword_ptr(SEEN)).unwrap();
        a.cmp(r12d, TURNS as i32).unwrap();
        a.jb(turn).unwrap();
        a.out(0x10, al).unwrap();
        a.set_label(&mut wrong).unwrap();
        // The others wait for this one: it goes on, and says what it saw by another port.
        a.lock().add(dword_ptr(SEEN), 0x1000_0000).unwrap();
        a.out(0x11, al).unwrap();
    });
    let codes = [OTHER, reader, reader];
    let vcpus: Vec<_> = (0..)
        .zip(codes)
        .map(|(number, code)| guest.add_vcpu(1 + number, code, 0x7_0000 + 0x1000 * u64::from(number)))
        .collect();
    thread::scope(|scope| {
        for mut vcpu in vcpus {
            scope.spawn(move || {
                let exit = vcpu.run(&NobodyAnswers).expect("run");
                let regs = vcpu.regs().expect("regs");
                assert!(matches!(exit, Exit::IoOut { port: 0x10, .. }), "{exit:?}, {:#x} of {:#x}", regs.rax, regs.r12);
            });
        }
    });
}
