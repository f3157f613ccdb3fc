//! Near jumps, calls and returns.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::cpu::regs::RCX;
use crate::cpu::segment::CS;
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::width::Width;
use crate::decode::op::{Handler, Op, op_flag};
use crate::exec::mov::{Condition, by_condition};
use crate::exec::operand::{Mem, Reg0, Source};
use crate::mmu::access::is_canonical;

impl Cpu {
    /// Makes `target` the next instruction, after the checks of a near transfer.
    #[inline(always)]
    fn jump_to(&mut self, target: u64) -> Exec {
        self.check_target(target)?;
        self.rip = target;
        Err(Stop::Jump)
    }

    #[inline(always)]
    fn check_target(&mut self, target: u64) -> Exec {
        let fine = if self.bitness == 64 { is_canonical(target) } else { target <= u64::from(self.segments[CS].limit) };
        if fine { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Where a direct branch leads; `imm` is relative to the block.
    #[inline(always)]
    fn branch_target(&self, op: &Op) -> u64 {
        truncate_rip(self.rip.wrapping_add(op.imm), op.size)
    }
}

/// The part of a branch target that its operand size (2, 4 or 8) keeps.
#[inline(always)]
fn truncate_rip(target: u64, size: u8) -> u64 {
    target & u64::MAX >> (64 - 8 * u32::from(size))
}

/// The operand size of a branch, by its target operand or by what it pushes.
fn branch_size(instruction: &Instruction) -> u8 {
    match instruction.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        OpKind::Register => instruction.op0_register().size() as u8,
        OpKind::Memory => instruction.memory_size().size() as u8,
        _ => instruction.stack_pointer_increment().unsigned_abs() as u8,
    }
}

fn jcc<C: Condition>(cpu: &mut Cpu, op: &Op) -> Exec {
    if !C::holds(cpu) {
        return Ok(());
    }
    let target = cpu.branch_target(op);
    cpu.jump_to(target)
}

macro_rules! handler_jcc {
    ($condition:ty) => {
        Some(jcc::<$condition> as Handler)
    };
}

pub fn select_jcc(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = branch_size(instruction);
    by_condition!(instruction.condition_code(), handler_jcc)
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.branch_target(op);
    cpu.jump_to(target)
}

fn jmp_indirect<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = S::read::<W>(cpu, op)?.zero_extend();
    cpu.jump_to(target)
}

fn call<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.branch_target(op);
    cpu.check_target(target)?;
    let next = cpu.next_rip(op);
    cpu.push(W::truncate(next))?;
    cpu.rip = target;
    Err(Stop::Jump)
}

fn call_indirect<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = S::read::<W>(cpu, op)?.zero_extend();
    cpu.check_target(target)?;
    let next = cpu.next_rip(op);
    cpu.push(W::truncate(next))?;
    cpu.rip = target;
    Err(Stop::Jump)
}

/// RET, also with the bytes of parameters to drop in the immediate.
fn ret<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.peek::<W>(0)?.zero_extend();
    cpu.check_target(target)?;
    cpu.move_stack_pointer(W::BYTES as u64 + op.imm);
    cpu.rip = target;
    Err(Stop::Jump)
}

macro_rules! by_branch_width {
    ($size:expr, $function:ident $(, $argument:ty)*) => {
        match $size {
            2 => Some($function::<u16 $(, $argument)*> as Handler),
            4 => Some($function::<u32 $(, $argument)*> as Handler),
            8 => Some($function::<u64 $(, $argument)*> as Handler),
            _ => None,
        }
    };
}

pub fn select_jmp(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_far(instruction) {
        return crate::isa::far_transfer(instruction, op);
    }
    op.size = branch_size(instruction);
    match instruction.op0_kind() {
        OpKind::Register => by_branch_width!(op.size, jmp_indirect, Reg0),
        OpKind::Memory => by_branch_width!(op.size, jmp_indirect, Mem),
        _ => Some(jmp),
    }
}

pub fn select_call(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_far(instruction) {
        return crate::isa::far_transfer(instruction, op);
    }
    op.size = branch_size(instruction);
    // What a failing push reports is the stack's fault.
    if instruction.op0_kind() != OpKind::Memory {
        op.flags |= op_flag::STACK;
    }
    match instruction.op0_kind() {
        OpKind::Register => by_branch_width!(op.size, call_indirect, Reg0),
        OpKind::Memory => by_branch_width!(op.size, call_indirect, Mem),
        _ => by_branch_width!(op.size, call),
    }
}

fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
}

pub fn select_ret(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let dropped = if instruction.op_count() == 1 { i32::from(instruction.immediate16()) } else { 0 };
    op.imm = dropped as u64;
    op.flags |= op_flag::STACK;
    by_branch_width!(instruction.stack_pointer_increment() - dropped, ret)
}

/// Decrements the counter of the address size; true when it is not zero afterwards.
fn count_down(cpu: &mut Cpu, op: &Op) -> bool {
    let count = cpu.regs.get(RCX).wrapping_sub(1) & op.address_mask();
    set_address_register(cpu, RCX, op.address_size, count);
    count != 0
}

/// Writes a register with the width of the address size.
pub fn set_address_register(cpu: &mut Cpu, register: usize, address_size: u8, value: u64) {
    let offset = register as u8 * 8;
    match address_size {
        2 => cpu.regs.write(offset, value as u16),
        4 => cpu.regs.write(offset, value as u32),
        _ => cpu.regs.write(offset, value),
    }
}

fn branch_if(cpu: &mut Cpu, op: &Op, taken: bool) -> Exec {
    if !taken {
        return Ok(());
    }
    let target = cpu.branch_target(op);
    cpu.jump_to(target)
}

/// LOOP, LOOPE and LOOPNE: the target is checked before the counter changes.
fn loop_while(cpu: &mut Cpu, op: &Op, condition: bool) -> Exec {
    let ends = cpu.regs.get(RCX).wrapping_sub(1) & op.address_mask() == 0;
    if condition && !ends {
        let target = cpu.branch_target(op);
        cpu.check_target(target)?;
    }
    let again = count_down(cpu, op) && condition;
    branch_if(cpu, op, again)
}

fn loop_always(cpu: &mut Cpu, op: &Op) -> Exec {
    loop_while(cpu, op, true)
}
fn loope(cpu: &mut Cpu, op: &Op) -> Exec {
    let zero = cpu.flags.zf();
    loop_while(cpu, op, zero)
}
fn loopne(cpu: &mut Cpu, op: &Op) -> Exec {
    let zero = cpu.flags.zf();
    loop_while(cpu, op, !zero)
}
fn jcxz(cpu: &mut Cpu, op: &Op) -> Exec {
    let zero = cpu.regs.get(RCX) & op.address_mask() == 0;
    branch_if(cpu, op, zero)
}

/// LOOPcc and JCXZ; their counter is as wide as an address.
pub fn select_counted(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = branch_size(instruction);
    op.address_size = counter_size(instruction)?;
    Some(match instruction.mnemonic() {
        Mnemonic::Loop => loop_always,
        Mnemonic::Loope => loope,
        Mnemonic::Loopne => loopne,
        _ => jcxz,
    })
}

fn counter_size(instruction: &Instruction) -> Option<u8> {
    use iced_x86::Code as C;
    Some(match instruction.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        C::Loop_rel8_16_ECX
        | C::Loop_rel8_32_ECX
        | C::Loop_rel8_64_ECX
        | C::Loope_rel8_16_ECX
        | C::Loope_rel8_32_ECX
        | C::Loope_rel8_64_ECX
        | C::Loopne_rel8_16_ECX
        | C::Loopne_rel8_32_ECX
        | C::Loopne_rel8_64_ECX
        | C::Jecxz_rel8_16
        | C::Jecxz_rel8_32
        | C::Jecxz_rel8_64 => 4,
        C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX
        | C::Jrcxz_rel8_16
        | C::Jrcxz_rel8_64 => 8,
        _ => return None,
    })
}
