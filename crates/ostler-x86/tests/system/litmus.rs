//! Memory ordering between vCPUs: what they see of each other's plain, LOCKed and fenced accesses has to be what
//! x86-TSO allows (Sewell et al., "x86-TSO: a rigorous and usable programmer's model", 2010).
//!
//! [`allowed`] enumerates every outcome of a small program with store buffers; vCPUs then run it thousands of times.

use std::collections::{BTreeSet, VecDeque};
use std::thread;

use iced_x86::code_asm::*;
use ostler_engine::{Exit, NobodyAnswers};

use crate::guest::*;
use Step::{Cpuid, Exchange, Fence, Iret, Load, LockedAdd, Store};

/// One access of a thread. Locations are 0 and 1, registers 0 and 1; what a thread loads ends up in its outcome.
#[derive(Clone, Copy, Debug)]
enum Step {
    Store(usize, u64),
    /// Register, location.
    Load(usize, usize),
    Fence,
    /// XCHG: register, location, value.
    Exchange(usize, usize, u64),
    /// LOCK ADD of 0 to memory that nobody shares: the usual cheap fence.
    LockedAdd,
    /// Serializing instructions.
    Cpuid,
    Iret,
}

type Program<'a> = &'a [&'a [Step]];
/// Registers 0 and 1 of each thread.
type Outcome = Vec<[u64; 2]>;

/// The abstract machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Machine {
    memory: [u64; 2],
    next: Vec<usize>,
    buffers: Vec<VecDeque<(usize, u64)>>,
    registers: Outcome,
}

impl Machine {
    fn new(threads: usize) -> Self {
        Self {
            memory: [0; 2],
            next: vec![0; threads],
            buffers: vec![VecDeque::new(); threads],
            registers: vec![[0; 2]; threads],
        }
    }

    /// The state after the oldest store of `thread` reached memory.
    fn drained(&self, thread: usize) -> Option<Self> {
        let mut after = self.clone();
        let (location, value) = after.buffers[thread].pop_front()?;
        after.memory[location] = value;
        Some(after)
    }

    /// The state after the next step of `thread`, if it can be made now.
    fn stepped(&self, thread: usize, program: Program<'_>) -> Option<Self> {
        let step = *program[thread].get(self.next[thread])?;
        let mut after = self.clone();
        after.next[thread] += 1;
        let buffer = &mut after.buffers[thread];
        match step {
            Store(location, value) => buffer.push_back((location, value)),
            Load(register, location) => {
                let newest = buffer.iter().rev().find(|(at, _)| *at == location);
                after.registers[thread][register] = newest.map_or(after.memory[location], |(_, value)| *value);
            }
            _ if !buffer.is_empty() => return None,
            Fence | LockedAdd | Cpuid | Iret => {}
            Exchange(register, location, value) => {
                after.registers[thread][register] = after.memory[location];
                after.memory[location] = value;
            }
        }
        Some(after)
    }

    fn is_done(&self, program: Program<'_>) -> bool {
        self.next.iter().zip(program).all(|(next, steps)| *next == steps.len())
    }
}

/// Every outcome that x86-TSO allows.
fn allowed(program: Program<'_>) -> BTreeSet<Outcome> {
    let mut outcomes = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![Machine::new(program.len())];
    while let Some(machine) = open.pop() {
        if !seen.insert(machine.clone()) {
            continue;
        }
        if machine.is_done(program) {
            outcomes.insert(machine.registers.clone());
        }
        for thread in 0..program.len() {
            open.extend(machine.drained(thread));
            open.extend(machine.stepped(thread, program));
        }
    }
    outcomes
}

const BARRIER: u64 = 0x1f_0000;
/// Memory of each thread's own.
const PRIVATE: u64 = 0x1f_1000;
/// The locations of each round, on lines of their own.
const LOCATIONS: u64 = 0x20_0000;
const ROUND_BYTES: u64 = 128;
/// The outcomes of each thread.
const OUTCOMES: u64 = 0x80_0000;
const THREAD_BYTES: u64 = 0x10_0000;

fn emit(a: &mut CodeAssembler, step: Step) {
    let result = |register: usize| if register == 0 { r8 } else { r9 };
    let at = |location: usize| qword_ptr(r14 + 64 * location as i32);
    match step {
        Store(location, value) => a.mov(at(location), value as i32).unwrap(),
        Load(register, location) => a.mov(result(register), at(location)).unwrap(),
        Fence => a.mfence().unwrap(),
        Exchange(register, location, value) => {
            a.mov(result(register), value).unwrap();
            a.xchg(at(location), result(register)).unwrap();
        }
        LockedAdd => a.lock().add(qword_ptr(rbx), 0).unwrap(),
        Cpuid => {
            a.mov(r10, rbx).unwrap();
            a.cpuid().unwrap();
            a.mov(rbx, r10).unwrap();
        }
        Iret => return_to_next(a),
    }
}

/// IRETQ to the instruction behind it.
fn return_to_next(a: &mut CodeAssembler) {
    let mut next = a.create_label();
    a.mov(rax, rsp).unwrap();
    a.push(i32::from(DATA)).unwrap();
    a.push(rax).unwrap();
    a.pushfq().unwrap();
    a.push(i32::from(CODE64)).unwrap();
    a.lea(rax, ptr(next)).unwrap();
    a.push(rax).unwrap();
    a.iretq().unwrap();
    a.set_label(&mut next).unwrap();
}

/// The code of one of `threads` vCPUs: `rounds` times a barrier, a short delay that differs, and the steps.
fn thread_code(a: &mut CodeAssembler, thread: usize, threads: usize, rounds: u64, steps: &[Step]) {
    let (mut round, mut wait, mut go, mut delay) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.xor(r15d, r15d).unwrap();
    a.xor(r12d, r12d).unwrap();
    a.mov(r14, LOCATIONS).unwrap();
    a.mov(r13, OUTCOMES + THREAD_BYTES * thread as u64).unwrap();
    a.mov(rbx, PRIVATE + 256 * thread as u64).unwrap();
    a.set_label(&mut round).unwrap();
    a.xor(r8d, r8d).unwrap();
    a.xor(r9d, r9d).unwrap();
    a.add(r12, threads as i32).unwrap();
    a.mov(r11d, 300).unwrap();
    a.lock().inc(qword_ptr(BARRIER)).unwrap();
    a.set_label(&mut wait).unwrap();
    a.cmp(qword_ptr(BARRIER), r12).unwrap();
    a.jae(go).unwrap();
    // PAUSE lets the host run others, which is needed where there is no core for each, and else keeps them apart.
    a.dec(r11d).unwrap();
    a.jnz(wait).unwrap();
    a.mov(r11d, if threads > 2 { 1 } else { 300 }).unwrap();
    a.pause().unwrap();
    a.jmp(wait).unwrap();
    a.set_label(&mut go).unwrap();
    a.imul_3(ecx, r15d, [0x35, 0x59, 0x16d, 0x295][thread]).unwrap();
    a.shr(ecx, 2).unwrap();
    a.and(ecx, 0x7f).unwrap();
    a.inc(ecx).unwrap();
    a.set_label(&mut delay).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(delay).unwrap();
    steps.iter().for_each(|step| emit(a, *step));
    a.mov(qword_ptr(r13), r8).unwrap();
    a.mov(qword_ptr(r13 + 8), r9).unwrap();
    a.add(r13, 16).unwrap();
    a.add(r14, ROUND_BYTES as i32).unwrap();
    a.inc(r15).unwrap();
    a.cmp(r15, rounds as i32).unwrap();
    a.jb(round).unwrap();
    a.out(0x10, al).unwrap();
}

/// The outcomes of `rounds` runs of `program`, a vCPU a thread.
fn observed(program: Program<'_>, rounds: u64) -> BTreeSet<Outcome> {
    let guest = Guest::long();
    let vcpus = program.iter().enumerate().map(|(thread, steps)| {
        let code = 0x1_0000 + 0x1000 * thread as u64;
        guest.code(64, code, |a| thread_code(a, thread, program.len(), rounds, steps));
        guest.add_vcpu(1 + thread as u32, code, 0x7_0000 + 0x1000 * thread as u64)
    });
    let vcpus: Vec<_> = vcpus.collect();
    thread::scope(|scope| {
        for mut vcpu in vcpus {
            scope.spawn(move || {
                let exit = vcpu.run(&NobodyAnswers).expect("run");
                assert!(matches!(exit, Exit::IoOut { .. }), "{exit:?}");
            });
        }
    });
    (0..rounds)
        .map(|round| {
            let word =
                |thread: u64, register: u64| guest.get64(OUTCOMES + THREAD_BYTES * thread + 16 * round + 8 * register);
            (0..program.len() as u64).map(|thread| [word(thread, 0), word(thread, 1)]).collect()
        })
        .collect()
}

/// Runs `program` and checks that all it shows is allowed, and that `forbidden` is not; `OSTLER_LITMUS` times.
fn check(program: Program<'_>, rounds: u64, forbidden: Option<&[[u64; 2]]>) {
    let times = std::env::var("OSTLER_LITMUS").map_or(1, |times| times.parse().expect("a number"));
    let allowed = allowed(program);
    if let Some(forbidden) = forbidden {
        assert!(!allowed.contains(forbidden), "the model allows {forbidden:?}");
    }
    for _ in 0..times {
        let observed = observed(program, rounds);
        let wrong: Vec<_> = observed.difference(&allowed).collect();
        assert!(wrong.is_empty(), "{program:?} showed {wrong:?}");
    }
}

const ROUNDS: u64 = 5_000;
const MANY: u64 = 1000;

#[test]
fn store_buffering_is_stopped_by_fences_and_locked_instructions_only() {
    let program: Program<'_> = &[&[Store(0, 1), Load(0, 1)], &[Store(1, 1), Load(0, 0)]];
    assert!(allowed(program).contains(&[[0, 0], [0, 0]][..]), "plain stores may be overtaken");
    check(program, ROUNDS, None);
    for fence in [Fence, LockedAdd, Cpuid, Iret, Exchange(1, 1, 7)] {
        // The exchange is with the other's location in one thread only: it must not hide what is looked for.
        let second = if matches!(fence, Exchange(..)) { Fence } else { fence };
        let fenced: Program<'_> = &[&[Store(0, 1), fence, Load(0, 1)], &[Store(1, 1), second, Load(0, 0)]];
        check(fenced, ROUNDS, Some(&[[0, 0], [0, 0]]));
    }
    check(&[&[Exchange(1, 0, 1), Load(0, 1)], &[Exchange(1, 1, 1), Load(0, 0)]], ROUNDS, Some(&[[0, 0], [0, 0]]));
}

#[test]
fn message_is_there_when_its_flag_is() {
    let program: Program<'_> = &[&[Store(0, 1), Store(1, 1)], &[Load(0, 1), Load(1, 0)]];
    check(program, ROUNDS, Some(&[[0, 0], [1, 0]]));
}

#[test]
fn loads_are_not_overtaken_by_later_stores() {
    let program: Program<'_> = &[&[Load(0, 0), Store(1, 1)], &[Load(0, 1), Store(0, 1)]];
    check(program, ROUNDS, Some(&[[1, 0], [1, 0]]));
}

#[test]
fn own_store_is_seen_before_others_see_it() {
    let program: Program<'_> = &[&[Store(0, 1), Load(0, 0), Load(1, 1)], &[Store(1, 1), Load(0, 1), Load(1, 0)]];
    assert!(allowed(program).contains(&[[1, 0], [1, 0]][..]));
    check(program, ROUNDS, Some(&[[0, 0], [1, 0]]));
}

#[test]
fn independent_stores_are_seen_in_one_order() {
    let readers: Program<'_> = &[&[Store(0, 1)], &[Store(1, 1)], &[Load(0, 0), Load(1, 1)], &[Load(0, 1), Load(1, 0)]];
    check(readers, MANY, Some(&[[0, 0], [0, 0], [1, 0], [1, 0]]));
    let locked: Program<'_> =
        &[&[Exchange(0, 0, 1)], &[Exchange(0, 1, 1)], &[Load(0, 0), Load(1, 1)], &[Load(0, 1), Load(1, 0)]];
    check(locked, MANY, Some(&[[0, 0], [0, 0], [1, 0], [1, 0]]));
}
