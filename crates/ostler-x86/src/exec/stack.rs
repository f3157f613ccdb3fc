//! The stack.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::cpu::Mode;
use crate::cpu::regs::{RBP, RSP};
use crate::cpu::segment::SS;
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::width::Width;
use crate::decode::op::{Handler, Op, op_flag};
use crate::exec::operand::{Imm, Mem, Place, Reg0, Source};

impl Cpu {
    /// The linear address of `offset` (not yet wrapped) on the stack.
    #[inline(always)]
    fn stack_linear(&mut self, offset: u64, bytes: usize, write: bool) -> Result<u64, Stop> {
        if self.mode == Mode::Long {
            return Ok(offset);
        }
        self.checked_linear(SS, offset & self.stack_mask, bytes, write)
    }

    /// Replaces the part of RSP that the stack's width covers.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, value: u64) {
        let kept = match self.stack_mask {
            0xffff => self.regs.get(RSP) & !0xffff,
            _ => 0,
        };
        self.regs.set(RSP, kept | value & self.stack_mask);
    }

    #[inline(always)]
    pub fn move_stack_pointer(&mut self, by: u64) {
        self.set_stack_pointer(self.regs.get(RSP).wrapping_add(by));
    }

    /// Stores `value` below the top of the stack and moves there; nothing changes on a fault.
    #[inline(always)]
    pub fn push<W: Width>(&mut self, value: W) -> Exec {
        let top = self.regs.get(RSP).wrapping_sub(W::BYTES as u64);
        let linear = self.stack_linear(top, W::BYTES, true)?;
        self.on_stack(|cpu| cpu.store(linear, value))?;
        self.set_stack_pointer(top);
        Ok(())
    }

    /// The value `depth` bytes above the top of the stack.
    #[inline(always)]
    pub fn peek<W: Width>(&mut self, depth: u64) -> Result<W, Stop> {
        let offset = self.regs.get(RSP).wrapping_add(depth);
        let linear = self.stack_linear(offset, W::BYTES, false)?;
        self.on_stack(|cpu| cpu.load(linear))
    }

    /// Runs a stack access: its non-canonical address is #SS(0).
    #[inline(always)]
    fn on_stack<R>(&mut self, access: impl FnOnce(&mut Cpu) -> Result<R, Stop>) -> Result<R, Stop> {
        let result = access(self);
        if result.is_err() && self.fault.non_canonical {
            self.fault.vector = vector::SS;
        }
        result
    }

    /// Pushes `value` as 2, 4 or 8 bytes.
    pub fn push_value(&mut self, size: u8, value: u64) -> Exec {
        match size {
            2 => self.push(value as u16),
            4 => self.push(value as u32),
            _ => self.push(value),
        }
    }

    /// Pops 2, 4 or 8 bytes.
    pub fn pop_value(&mut self, size: u8) -> Result<u64, Stop> {
        let value = match size {
            2 => self.peek::<u16>(0)?.zero_extend(),
            4 => self.peek::<u32>(0)?.zero_extend(),
            _ => self.peek::<u64>(0)?,
        };
        self.move_stack_pointer(u64::from(size));
        Ok(value)
    }
}

macro_rules! by_stack_width {
    ($size:expr, $function:ident $(, $argument:ty)*) => {
        match $size {
            2 => Some($function::<u16 $(, $argument)*> as Handler),
            4 => Some($function::<u32 $(, $argument)*> as Handler),
            8 => Some($function::<u64 $(, $argument)*> as Handler),
            _ => None,
        }
    };
}

fn push<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    cpu.push(value)
}

pub fn select_push(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = instruction.stack_pointer_increment().unsigned_abs() as u8;
    match instruction.op0_kind() {
        OpKind::Register if instruction.op0_register().is_gpr() => by_stack_width!(op.size, push, Reg0),
        OpKind::Register => crate::isa::special_stack(instruction, op),
        OpKind::Memory => by_stack_width!(op.size, push, Mem),
        _ => by_stack_width!(op.size, push, Imm),
    }
}

fn pop<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.peek::<W>(0)?;
    cpu.move_stack_pointer(W::BYTES as u64);
    cpu.regs.write(op.reg0, value);
    Ok(())
}

/// The destination's address is computed with RSP already incremented (SDM, POP); a fault on it
/// leaves RSP as it was.
fn pop_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.peek::<W>(0)?;
    let before = cpu.regs.get(RSP);
    cpu.move_stack_pointer(W::BYTES as u64);
    let result = Mem::write(cpu, op, value);
    if result.is_err() {
        cpu.regs.set(RSP, before);
    }
    result
}

pub fn select_pop(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = instruction.stack_pointer_increment() as u8;
    match instruction.op0_kind() {
        OpKind::Register if instruction.op0_register().is_gpr() => by_stack_width!(op.size, pop),
        OpKind::Register => crate::isa::special_stack(instruction, op),
        _ => by_stack_width!(op.size, pop_memory),
    }
}

/// PUSHA, PUSHAD: AX, CX, DX, BX, SP as it was, BP, SI, DI.
fn pusha<W: Width>(cpu: &mut Cpu, _: &Op) -> Exec {
    let before = cpu.regs.get(RSP);
    for register in 0..8 {
        let value = W::truncate(if register == RSP { before } else { cpu.regs.get(register) });
        if let Err(stop) = cpu.push(value) {
            cpu.regs.set(RSP, before);
            return Err(stop);
        }
    }
    Ok(())
}

fn popa<W: Width>(cpu: &mut Cpu, _: &Op) -> Exec {
    let mut values = [W::default(); 8];
    for (depth, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(depth as u64 * W::BYTES as u64)?;
    }
    for (register, value) in values.into_iter().rev().enumerate() {
        if register != RSP {
            cpu.regs.write(register as u8 * 8, value);
        }
    }
    cpu.move_stack_pointer(8 * W::BYTES as u64);
    Ok(())
}

pub fn select_all(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Pusha => pusha::<u16>,
        Mnemonic::Pushad => pusha::<u32>,
        Mnemonic::Popa => popa::<u16>,
        _ => popa::<u32>,
    })
}

/// ENTER: the frame size is the immediate, the nesting level in `sub`.
fn enter<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let before = cpu.regs.get(RSP);
    let result = enter_frame::<W>(cpu, op);
    if result.is_err() {
        cpu.regs.set(RSP, before);
    }
    result
}

fn enter_frame<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let frame_pointer = cpu.regs.get(RBP);
    cpu.push(W::truncate(frame_pointer))?;
    let frame = cpu.regs.get(RSP);
    let level = u64::from(op.sub % 32);
    for outer in 1..level {
        let offset = frame_pointer.wrapping_sub(outer * W::BYTES as u64);
        let linear = cpu.stack_linear(offset, W::BYTES, false)?;
        let saved = cpu.on_stack(|cpu| cpu.load::<W>(linear))?;
        cpu.push(saved)?;
    }
    if level > 0 {
        cpu.push(W::truncate(frame))?;
    }
    cpu.move_stack_pointer((op.imm & 0xffff).wrapping_neg());
    // The processor makes sure that the new top can be written.
    let top = cpu.regs.get(RSP);
    let linear = cpu.stack_linear(top, W::BYTES, true)?;
    cpu.on_stack(|cpu| cpu.probe_write(linear, W::BYTES))?;
    cpu.regs.write(RBP as u8 * 8, W::truncate(frame));
    Ok(())
}

pub fn select_enter(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    use iced_x86::Code;
    op.imm = u64::from(instruction.immediate16());
    op.flags |= op_flag::STACK;
    match instruction.code() {
        Code::Enterw_imm16_imm8 => Some(enter::<u16>),
        Code::Enterd_imm16_imm8 => Some(enter::<u32>),
        _ => Some(enter::<u64>),
    }
}

fn leave<W: Width>(cpu: &mut Cpu, _: &Op) -> Exec {
    let frame = cpu.regs.get(RBP);
    let linear = cpu.stack_linear(frame, W::BYTES, false)?;
    let saved = cpu.on_stack(|cpu| cpu.load::<W>(linear))?;
    cpu.set_stack_pointer(frame.wrapping_add(W::BYTES as u64));
    cpu.regs.write(RBP as u8 * 8, saved);
    Ok(())
}

pub fn select_leave(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    use iced_x86::Code;
    match instruction.code() {
        Code::Leavew => Some(leave::<u16>),
        Code::Leaved => Some(leave::<u32>),
        _ => Some(leave::<u64>),
    }
}
