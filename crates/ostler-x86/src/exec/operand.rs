//! Operands as types, so that one semantic function serves every form of its instruction.

use iced_x86::{Instruction, OpKind};

use crate::cpu::Cpu;
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::width::Width;
use crate::decode::op::{Op, op_flag};

/// Somewhere a value comes from.
pub trait Source {
    fn read<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Stop>;
}

/// Somewhere a value goes to.
pub trait Place: Source {
    const IS_REGISTER: bool;
    fn write<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> Exec;
    /// Reads, changes and writes. Nothing has changed when it faults; `change` may run more than once.
    fn update<W: Width>(cpu: &mut Cpu, op: &Op, change: impl FnMut(&mut Cpu, W) -> W) -> Exec;
}

/// The register in `reg0`.
#[derive(Debug)]
pub struct Reg0;
/// The register in `reg1`.
#[derive(Debug)]
pub struct Reg1;
/// The register in `reg2`.
#[derive(Debug)]
pub struct Reg2;
/// The memory operand.
#[derive(Debug)]
pub struct Mem;
/// The immediate.
#[derive(Debug)]
pub struct Imm;

macro_rules! register_operand {
    ($name:ident, $field:ident) => {
        impl Source for $name {
            #[inline(always)]
            fn read<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Stop> {
                Ok(cpu.regs.read(op.$field))
            }
        }
        impl Place for $name {
            const IS_REGISTER: bool = true;
            #[inline(always)]
            fn write<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> Exec {
                cpu.regs.write(op.$field, value);
                Ok(())
            }
            #[inline(always)]
            fn update<W: Width>(cpu: &mut Cpu, op: &Op, mut change: impl FnMut(&mut Cpu, W) -> W) -> Exec {
                let old = cpu.regs.read(op.$field);
                let new = change(cpu, old);
                cpu.regs.write(op.$field, new);
                Ok(())
            }
        }
    };
}

register_operand!(Reg0, reg0);
register_operand!(Reg1, reg1);
register_operand!(Reg2, reg2);

impl Source for Mem {
    #[inline(always)]
    fn read<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Stop> {
        let linear = cpu.linear(op, W::BYTES, false)?;
        cpu.load(linear)
    }
}

impl Place for Mem {
    const IS_REGISTER: bool = false;
    #[inline(always)]
    fn write<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> Exec {
        let linear = cpu.linear(op, W::BYTES, true)?;
        cpu.store(linear, value)
    }
    #[inline(always)]
    fn update<W: Width>(cpu: &mut Cpu, op: &Op, change: impl FnMut(&mut Cpu, W) -> W) -> Exec {
        let linear = cpu.linear(op, W::BYTES, true)?;
        cpu.update(linear, op.has(op_flag::LOCK), change)
    }
}

impl Source for Imm {
    #[inline(always)]
    fn read<W: Width>(_cpu: &mut Cpu, op: &Op) -> Result<W, Stop> {
        Ok(W::truncate(op.imm))
    }
}

/// Picks `function::<W, ..>` by an operand size in bytes.
macro_rules! by_width {
    ($bytes:expr, $function:ident $(, $argument:ty)*) => {
        match $bytes {
            1 => Some($function::<u8 $(, $argument)*> as crate::decode::op::Handler),
            2 => Some($function::<u16 $(, $argument)*> as crate::decode::op::Handler),
            4 => Some($function::<u32 $(, $argument)*> as crate::decode::op::Handler),
            8 => Some($function::<u64 $(, $argument)*> as crate::decode::op::Handler),
            _ => None,
        }
    };
}
pub(crate) use by_width;

pub fn is_memory(instruction: &Instruction, index: u32) -> bool {
    instruction.op_kind(index) == OpKind::Memory
}

pub fn is_register(instruction: &Instruction, index: u32) -> bool {
    instruction.op_kind(index) == OpKind::Register
}
