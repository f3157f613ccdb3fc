//! Two-operand arithmetic and logic, and what is built from it.

use iced_x86::{Instruction, OpKind};

use crate::cpu::Cpu;
use crate::cpu::flags::Flags;
use crate::cpu::regs::{RAX, RBX, RCX, RDX};
use crate::cpu::stop::Exec;
use crate::cpu::width::Width;
use crate::decode::op::{Handler, Op, op_flag};
use crate::exec::operand::{Imm, Mem, Place, Reg0, Reg1, Source, by_width, is_memory, is_register};

/// An operation of the ADD group: what it makes of two values, and of the flags.
pub trait Binary {
    /// CMP and TEST do not.
    const WRITES: bool = true;
    const USES_CARRY: bool = false;
    fn apply<W: Width>(flags: &mut Flags, a: W, b: W, carry: W) -> W;
}

macro_rules! binary {
    ($name:ident, writes: $writes:literal, carry: $carry:literal, $apply:expr) => {
        #[derive(Debug)]
        pub struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            const USES_CARRY: bool = $carry;
            #[inline(always)]
            fn apply<W: Width>(flags: &mut Flags, a: W, b: W, carry: W) -> W {
                let apply: fn(&mut Flags, W, W, W) -> W = $apply;
                apply(flags, a, b, carry)
            }
        }
    };
}

#[inline(always)]
fn add<W: Width>(flags: &mut Flags, a: W, b: W, carry: W) -> W {
    let sum = a.plus(b).plus(carry);
    flags.set_add(a, b, sum);
    sum
}

#[inline(always)]
fn subtract<W: Width>(flags: &mut Flags, a: W, b: W, borrow: W) -> W {
    let difference = a.minus(b).minus(borrow);
    flags.set_sub(a, b, difference);
    difference
}

#[inline(always)]
fn logic<W: Width>(flags: &mut Flags, result: W) -> W {
    flags.set_logic(result);
    result
}

binary!(Add, writes: true, carry: false, add);
binary!(Adc, writes: true, carry: true, add);
binary!(Sub, writes: true, carry: false, subtract);
binary!(Sbb, writes: true, carry: true, subtract);
binary!(Cmp, writes: false, carry: false, subtract);
binary!(And, writes: true, carry: false, |flags, a, b, _| logic(flags, a & b));
binary!(Or, writes: true, carry: false, |flags, a, b, _| logic(flags, a | b));
binary!(Xor, writes: true, carry: false, |flags, a, b, _| logic(flags, a ^ b));
binary!(Test, writes: false, carry: false, |flags, a, b, _| logic(flags, a & b));

fn binary<W: Width, O: Binary, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = S::read::<W>(cpu, op)?;
    let carry = if O::USES_CARRY { W::truncate(u64::from(cpu.flags.cf())) } else { W::default() };
    if O::WRITES {
        D::update(cpu, op, |cpu, a| O::apply(&mut cpu.flags, a, b, carry))
    } else {
        let a = D::read::<W>(cpu, op)?;
        O::apply(&mut cpu.flags, a, b, carry);
        Ok(())
    }
}

/// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST.
pub fn select_binary<O: Binary>(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_width!(op.size, binary, O, Reg0, Reg1),
        (OpKind::Register, OpKind::Memory) => by_width!(op.size, binary, O, Reg0, Mem),
        (OpKind::Memory, OpKind::Register) => by_width!(op.size, binary, O, Mem, Reg1),
        (OpKind::Register, _) => by_width!(op.size, binary, O, Reg0, Imm),
        _ => by_width!(op.size, binary, O, Mem, Imm),
    }
}

/// An operation on one value.
pub trait Unary {
    fn apply<W: Width>(flags: &mut Flags, a: W) -> W;
}

macro_rules! unary {
    ($name:ident, |$flags:ident, $a:ident| $body:expr) => {
        #[derive(Debug)]
        pub struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Width>($flags: &mut Flags, $a: W) -> W {
                $body
            }
        }
    };
}

/// Runs `operation` and puts CF back: INC and DEC leave it alone.
#[inline(always)]
fn keeping_carry<W: Width>(flags: &mut Flags, operation: impl FnOnce(&mut Flags) -> W) -> W {
    let carry = flags.cf();
    let result = operation(flags);
    let of = flags.of();
    flags.set_cf_of(carry, of);
    result
}

unary!(Inc, |flags, a| keeping_carry(flags, |flags| add(flags, a, W::truncate(1), W::default())));
unary!(Dec, |flags, a| keeping_carry(flags, |flags| subtract(flags, a, W::truncate(1), W::default())));
unary!(Neg, |flags, a| subtract(flags, W::default(), a, W::default()));
unary!(Not, |flags, a| {
    let _ = flags;
    !a
});

fn unary<W: Width, O: Unary, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    D::update::<W>(cpu, op, |cpu, a| {
        let mut flags = cpu.flags;
        let result = O::apply(&mut flags, a);
        cpu.flags = flags;
        result
    })
}

/// INC, DEC, NEG, NOT.
pub fn select_unary<O: Unary>(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_memory(instruction, 0) { by_width!(op.size, unary, O, Mem) } else { by_width!(op.size, unary, O, Reg0) }
}

fn xadd<W: Width, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    let addend = cpu.regs.read::<W>(op.reg1);
    let mut before = W::default();
    D::update::<W>(cpu, op, |cpu, old| {
        before = old;
        add(&mut cpu.flags, old, addend, W::default())
    })?;
    // With one register twice, the sum is what stays.
    if !D::IS_REGISTER || op.reg0 != op.reg1 {
        cpu.regs.write(op.reg1, before);
    }
    Ok(())
}

pub fn select_xadd(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_memory(instruction, 0) { by_width!(op.size, xadd, Mem) } else { by_width!(op.size, xadd, Reg0) }
}

fn xchg<W: Width, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    let new = cpu.regs.read::<W>(op.reg1);
    let mut before = W::default();
    D::update::<W>(cpu, op, |_, old| {
        before = old;
        new
    })?;
    cpu.regs.write(op.reg1, before);
    Ok(())
}

/// XCHG locks its memory operand with or without the prefix.
pub fn select_xchg(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_register(instruction, 0) && is_memory(instruction, 1) {
        op.reg1 = op.reg0;
    }
    if is_memory(instruction, 0) || is_memory(instruction, 1) {
        op.flags |= op_flag::LOCK;
        return by_width!(op.size, xchg, Mem);
    }
    by_width!(op.size, xchg, Reg0)
}

/// The accumulator takes what was there when it differs; the destination is written either way.
fn cmpxchg<W: Width, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    let accumulator = W::truncate(cpu.regs.get(RAX));
    let new = cpu.regs.read::<W>(op.reg1);
    let mut found = W::default();
    let before = cpu.flags;
    let result = D::update::<W>(cpu, op, |cpu, old| {
        found = old;
        subtract(&mut cpu.flags, accumulator, old, W::default());
        if old == accumulator { new } else { old }
    });
    if result.is_err() {
        cpu.flags = before;
    } else if found != accumulator {
        cpu.regs.write(0, found);
    }
    result
}

/// CMPXCHG with a register: one that is not equal is not written, so that its upper half stays.
fn cmpxchg_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (accumulator, found) = (cpu.regs.read::<W>(0), cpu.regs.read::<W>(op.reg0));
    subtract(&mut cpu.flags, accumulator, found, W::default());
    if found == accumulator {
        let new = cpu.regs.read::<W>(op.reg1);
        cpu.regs.write(op.reg0, new);
    } else {
        cpu.regs.write(0, found);
    }
    Ok(())
}

pub fn select_cmpxchg(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_memory(instruction, 0) { by_width!(op.size, cmpxchg, Mem) } else { by_width!(op.size, cmpxchg_register) }
}

/// CMPXCHG8B: EDX:EAX against m64, ECX:EBX to it.
fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Exec {
    let pair = |cpu: &Cpu, high: usize, low: usize| cpu.regs.get(high) << 32 | cpu.regs.get(low) & 0xffff_ffff;
    let (expected, new) = (pair(cpu, RDX, RAX), pair(cpu, RCX, RBX));
    let mut found = 0;
    Mem::update::<u64>(cpu, op, |_, old| {
        found = old;
        if old == expected { new } else { old }
    })?;
    cpu.flags.set_zf_alone(found == expected);
    if found != expected {
        cpu.regs.set(RAX, found & 0xffff_ffff);
        cpu.regs.set(RDX, found >> 32);
    }
    Ok(())
}

pub fn select_cmpxchg8b(_: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(cmpxchg8b)
}

/// CMPXCHG16B: RDX:RAX against m128, which must be aligned.
fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Exec {
    let linear = cpu.linear(op, 16, true)?;
    if linear % 16 != 0 {
        return Err(cpu.gp(0));
    }
    let pair =
        |cpu: &Cpu, high: usize, low: usize| u128::from(cpu.regs.get(high)) << 64 | u128::from(cpu.regs.get(low));
    let (expected, new) = (pair(cpu, RDX, RAX), pair(cpu, RCX, RBX));
    let found = cpu.compare_exchange_16(linear, expected, new)?;
    cpu.flags.set_zf_alone(found == expected);
    if found != expected {
        cpu.regs.set(RAX, found as u64);
        cpu.regs.set(RDX, (found >> 64) as u64);
    }
    Ok(())
}

pub fn select_cmpxchg16b(_: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(cmpxchg16b)
}
