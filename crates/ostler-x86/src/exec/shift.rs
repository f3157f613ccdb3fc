//! Shifts and rotates.

use iced_x86::{Instruction, OpKind};

use crate::cpu::Cpu;
use crate::cpu::flags::Flags;
use crate::cpu::regs::RCX;
use crate::cpu::stop::Exec;
use crate::cpu::width::Width;
use crate::decode::op::{Handler, Op};
use crate::exec::operand::{Imm, Mem, Place, Reg0, Source, by_width, is_memory};

/// A shift or rotate. `count` is masked to 5 or 6 bits and not zero.
pub trait Shift {
    fn apply<W: Width>(flags: &mut Flags, value: W, count: u32) -> W;
}

macro_rules! shifts {
    ($($name:ident => $function:ident;)*) => {
        $(
            #[derive(Debug)]
            pub struct $name;
            impl Shift for $name {
                #[inline(always)]
                fn apply<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
                    $function(flags, value, count)
                }
            }
        )*
    };
}

shifts! { Shl => shl; Shr => shr; Sar => sar; Rol => rol; Ror => ror; Rcl => rcl; Rcr => rcr; }

#[inline(always)]
fn top_bit<W: Width>(value: W) -> bool {
    value.zero_extend() >> (W::BITS - 1) & 1 != 0
}

/// OF is defined for a count of 1 and computed the same way for the others.
#[inline(always)]
fn shl<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
    let wide = u128::from(value.zero_extend()) << count;
    let (result, carry) = (W::truncate(wide as u64), wide >> W::BITS & 1 != 0);
    flags.set_logic(result);
    flags.set_cf_of(carry, carry != top_bit(result));
    result
}

#[inline(always)]
fn shr<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
    let before = value.zero_extend();
    let result = W::truncate(before.checked_shr(count).unwrap_or(0));
    flags.set_logic(result);
    flags.set_cf_of(before.checked_shr(count - 1).unwrap_or(0) & 1 != 0, top_bit(value));
    result
}

#[inline(always)]
fn sar<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
    let before = value.sign_extend() as i64;
    let result = W::truncate((before >> count.min(63)) as u64);
    flags.set_logic(result);
    flags.set_cf_of(before >> (count - 1).min(63) & 1 != 0, false);
    result
}

/// Rotates by the count modulo the width; a whole turn still sets CF and OF.
#[inline(always)]
fn rol<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
    let (bits, turn) = (value.zero_extend(), count % W::BITS);
    let result = W::truncate(if turn == 0 { bits } else { bits << turn | bits >> (W::BITS - turn) });
    let carry = result.zero_extend() & 1 != 0;
    flags.set_cf_of(carry, carry != top_bit(result));
    result
}

#[inline(always)]
fn ror<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
    let (bits, turn) = (value.zero_extend(), count % W::BITS);
    let result = W::truncate(if turn == 0 { bits } else { bits >> turn | bits << (W::BITS - turn) });
    let second = result.zero_extend() >> (W::BITS - 2) & 1 != 0;
    flags.set_cf_of(top_bit(result), top_bit(result) != second);
    result
}

/// Rotates through CF: W + 1 bits. A count that is a whole turn changes nothing.
#[inline(always)]
fn rcl<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
    let turn = count % (W::BITS + 1);
    if turn == 0 {
        let carry = flags.cf();
        flags.set_cf_of(carry, carry != top_bit(value));
        return value;
    }
    let wide = u128::from(flags.cf()) << W::BITS | u128::from(value.zero_extend());
    let rotated = wide << turn | wide >> (W::BITS + 1 - turn);
    let (result, carry) = (W::truncate(rotated as u64), rotated >> W::BITS & 1 != 0);
    flags.set_cf_of(carry, carry != top_bit(result));
    result
}

#[inline(always)]
fn rcr<W: Width>(flags: &mut Flags, value: W, count: u32) -> W {
    let turn = count % (W::BITS + 1);
    let wide = u128::from(flags.cf()) << W::BITS | u128::from(value.zero_extend());
    let rotated = if turn == 0 { wide } else { wide >> turn | wide << (W::BITS + 1 - turn) };
    let (result, carry) = (W::truncate(rotated as u64), rotated >> W::BITS & 1 != 0);
    let second = result.zero_extend() >> (W::BITS - 2) & 1 != 0;
    flags.set_cf_of(carry, top_bit(result) != second);
    result
}

/// The count as the CPU masks it: 5 bits, or 6 for 64-bit operands.
#[inline(always)]
fn masked<W: Width>(count: u64) -> u32 {
    (count & if W::BITS == 64 { 63 } else { 31 }) as u32
}

/// A count of zero changes no flag, but still writes: a memory operand has to be writable, and a
/// 32-bit register loses its upper half.
#[inline(always)]
fn shift_by<W: Width, O: Shift, D: Place>(cpu: &mut Cpu, op: &Op, count: u64) -> Exec {
    let count = masked::<W>(count);
    D::update::<W>(cpu, op, |cpu, value| if count == 0 { value } else { O::apply(&mut cpu.flags, value, count) })
}

fn shift_immediate<W: Width, O: Shift, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift_by::<W, O, D>(cpu, op, op.imm)
}

fn shift_cl<W: Width, O: Shift, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    let count = cpu.regs.get(RCX);
    shift_by::<W, O, D>(cpu, op, count)
}

pub fn select_shift<O: Shift>(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match (is_memory(instruction, 0), instruction.op1_kind() == OpKind::Register) {
        (true, true) => by_width!(op.size, shift_cl, O, Mem),
        (true, false) => by_width!(op.size, shift_immediate, O, Mem),
        (false, true) => by_width!(op.size, shift_cl, O, Reg0),
        (false, false) => by_width!(op.size, shift_immediate, O, Reg0),
    }
}

/// A double shift's result and the last bit out.
fn double_shift<W: Width>(left: bool, value: W, filler: W, count: u32) -> (W, bool) {
    let (value, filler) = (u128::from(value.zero_extend()), u128::from(filler.zero_extend()));
    if left {
        // For 16 bits and a count over 16 (undefined), processors go on with the destination.
        let wide = value << W::BITS | filler;
        let wide = if W::BITS == 16 { wide << 16 | value } else { wide };
        let top = if W::BITS == 16 { 48 } else { 2 * W::BITS };
        let shifted = if count == 0 { wide } else { wide << count };
        let carry = wide >> (top - count) & 1 != 0;
        (W::truncate((shifted >> (top - W::BITS)) as u64), carry)
    } else {
        let wide = filler << W::BITS | value;
        let wide = if W::BITS == 16 { value << 32 | wide } else { wide };
        (W::truncate((wide >> count) as u64), wide >> (count - 1) & 1 != 0)
    }
}

#[inline(always)]
fn shift_double<W: Width, D: Place>(cpu: &mut Cpu, op: &Op, left: bool, count: u64) -> Exec {
    let count = masked::<W>(count);
    let filler = cpu.regs.read::<W>(op.reg1);
    D::update::<W>(cpu, op, |cpu, value| {
        if count == 0 {
            return value;
        }
        let (result, carry) = double_shift(left, value, filler, count);
        cpu.flags.set_logic(result);
        cpu.flags.set_cf_of(carry, top_bit(result) != top_bit(value));
        result
    })
}

fn shld<W: Width, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let count = S::read::<u8>(cpu, op)?;
    shift_double::<W, D>(cpu, op, true, u64::from(count))
}

fn shrd<W: Width, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let count = S::read::<u8>(cpu, op)?;
    shift_double::<W, D>(cpu, op, false, u64::from(count))
}

/// CL as an operand.
#[derive(Debug)]
struct Cl;
impl Source for Cl {
    fn read<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<W, crate::cpu::stop::Stop> {
        Ok(W::truncate(cpu.regs.get(RCX)))
    }
}

macro_rules! select_double {
    ($name:ident, $function:ident) => {
        pub fn $name(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
            match (is_memory(instruction, 0), instruction.op2_kind() == OpKind::Register) {
                (true, true) => by_width!(op.size, $function, Mem, Cl),
                (true, false) => by_width!(op.size, $function, Mem, Imm),
                (false, true) => by_width!(op.size, $function, Reg0, Cl),
                (false, false) => by_width!(op.size, $function, Reg0, Imm),
            }
        }
    };
}

select_double!(select_shld, shld);
select_double!(select_shrd, shrd);
