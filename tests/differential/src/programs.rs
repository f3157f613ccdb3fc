//! Long programs: functions in two pages that are called in a loop, by every kind of call, that change each other's code,
//! and that may fault in the middle of a block at any time.

use iced_x86::code_asm::{CodeAssembler, CodeLabel, byte_ptr, gpr8, gpr32, gpr64, qword_ptr};
use iced_x86::{IcedError, Instruction};

use crate::generate::Generator;
use crate::initial;
use crate::layout::{CODE, PAGE, SAVE_SLOT, SAVE_SLOT_BYTES, STACK};
use crate::random::Random;
use crate::sequence::branch_skip;
use crate::state::{CpuState, Mode, RSP};

/// Where no random operand points: the loop's counter, and a pointer to the function that is called through memory.
const COUNTER: u64 = SAVE_SLOT + SAVE_SLOT_BYTES - 16;
const POINTER: u64 = COUNTER + 8;
const FUNCTIONS: usize = 4;
/// Rounds of the loop at most.
const ROUNDS: u64 = 6;
/// Where the loop and each function begin: two of them so that they cross into the other page.
const PLACES: [u64; FUNCTIONS + 1] = [0, 0x500, PAGE - 0x40, PAGE + 0x500, 2 * PAGE - 0x480];

/// A program and the state it starts from.
#[derive(Debug)]
pub struct Program {
    pub before: CpuState,
}

fn put(before: &mut CpuState, offset: u64, code: &[u8]) {
    before.write_memory(CODE.base + offset, code);
}

/// The program of `seed`.
pub fn program(generator: &Generator, seed: u64, turn: u64) -> Result<Program, IcedError> {
    let mut random = Random::new(seed ^ 0x5bd1_e995);
    let mut before = initial::state(&mut random, generator.mode());
    before.rflags &= !0x4_0100;
    before.rip = CODE.base;
    let functions = [1, 2, 3, 4].map(|index: usize| CODE.base + PLACES[index]);
    for (index, place) in PLACES.iter().enumerate().skip(1) {
        let sequence = generator.sequence(random.bits(), turn + index as u64);
        let code = function(&mut random, &sequence.before, &sequence.items, CODE.base + place, &functions)?;
        put(&mut before, *place, &code);
    }
    let code = the_loop(&mut random, &functions)?;
    put(&mut before, 0, &code);
    before.write_memory(POINTER, &random.pick(&functions).to_le_bytes());
    Ok(Program { before })
}

/// A state made from `seed`, from which any bytes are run as code; half of them across the two pages.
pub fn of_bytes(seed: u64, code: &[u8]) -> CpuState {
    let mut random = Random::new(seed);
    let mut before = initial::state(&mut random, Mode::Long);
    let start = if random.percent(50) { CODE.base + 16 } else { CODE.base + PAGE - 1 - random.below(64) };
    before.rip = start;
    before.write_memory(start, code);
    before
}

/// Calls functions until the counter is 0.
fn the_loop(random: &mut Random, functions: &[u64; FUNCTIONS]) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    a.mov(gpr64::rax, COUNTER)?;
    a.mov(qword_ptr(gpr64::rax), 1 + random.below(ROUNDS) as i32)?;
    a.set_label(&mut again)?;
    a.mov(gpr64::rsp, STACK.base + 0x800)?;
    for _ in 0..1 + random.below(5) {
        step(&mut a, random, functions)?;
    }
    a.mov(gpr64::r9, COUNTER)?;
    a.dec(qword_ptr(gpr64::r9))?;
    a.jnz(again)?;
    a.hlt()?;
    a.assemble(CODE.base)
}

fn step(a: &mut CodeAssembler, random: &mut Random, functions: &[u64; FUNCTIONS]) -> Result<(), IcedError> {
    let target = random.pick(functions);
    match random.below(6) {
        0 => a.call(target),
        1 => {
            a.mov(gpr64::r15, target)?;
            a.call(gpr64::r15)
        }
        2 => {
            a.mov(gpr64::rcx, POINTER)?;
            a.call(qword_ptr(gpr64::rcx))
        }
        3 => changing(a),
        4 => counted(a, random, target),
        _ => {
            // The immediate of the function's first instruction.
            a.mov(gpr64::rdx, target + 2)?;
            a.add(byte_ptr(gpr64::rdx), 1 + random.below(9) as i32)?;
            a.call(target)
        }
    }
}

/// An inner loop around a call.
fn counted(a: &mut CodeAssembler, random: &mut Random, target: u64) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.push(2 + random.below(4) as i32)?;
    a.set_label(&mut again)?;
    a.call(target)?;
    a.sub(qword_ptr(gpr64::rsp), 1)?;
    a.ja(again)?;
    a.pop(gpr64::rcx)
}

/// Changes an instruction of the very block it is in.
fn changing(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut changed: CodeLabel = a.create_label();
    a.lea(gpr64::r8, qword_ptr(changed))?;
    a.inc(byte_ptr(gpr64::r8 + 1))?;
    a.set_label(&mut changed)?;
    a.mov(gpr8::bl, 7)?;
    a.xor(gpr32::ebp, gpr32::ebx)
}

/// Sets the registers that `items` were made for, runs them, and returns; or calls on.
fn function(
    random: &mut Random,
    before: &CpuState,
    items: &[Instruction],
    at: u64,
    functions: &[u64; FUNCTIONS],
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    // Ten bytes with an immediate of eight: others change it.
    a.add_instruction(Instruction::with2(
        iced_x86::Code::Mov_r64_imm64,
        iced_x86::Register::RAX,
        before.gprs[0] | 1 << 62,
    )?)?;
    for (index, value) in before.gprs.iter().enumerate().skip(1) {
        if index != RSP && random.percent(90) {
            let register = iced_x86::Register::RAX + index as u32;
            a.add_instruction(Instruction::with2(iced_x86::Code::Mov_r64_imm64, register, *value)?)?;
        }
    }
    body(&mut a, items)?;
    // From here on every flag is defined.
    a.cmp(gpr32::eax, gpr32::ebx)?;
    let next = functions.iter().copied().filter(|next| *next > at).max();
    match next {
        Some(next) if random.percent(20) => a.jmp(next)?,
        _ => a.ret()?,
    }
    a.assemble(at)
}

/// The items, with their branches to a number of items further on.
fn body(a: &mut CodeAssembler, items: &[Instruction]) -> Result<(), IcedError> {
    let mut labels: Vec<CodeLabel> = (0..=items.len()).map(|_| a.create_label()).collect();
    for (index, item) in items.iter().enumerate() {
        a.set_label(&mut labels[index])?;
        match branch_skip(item) {
            // The assembler knows labels, not instructions with one; and Jcc rather than LOOP and JRCXZ.
            Some(skip) => a.ja(labels[(index + 1 + skip as usize).min(items.len())])?,
            None => a.add_instruction(*item)?,
        }
        if index + 1 == items.len() || branch_skip(item).is_some() {
            a.nop()?;
        }
    }
    let end = items.len();
    a.set_label(&mut labels[end])?;
    a.nop()
}
