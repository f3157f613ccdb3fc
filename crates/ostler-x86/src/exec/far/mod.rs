//! Far transfers: jumps, calls, returns and task switches through descriptors (SDM vol. 3, chapters 5 and 8).
//!
//! Everything that may fault happens before the first register changes; a task switch is the
//! exception that the architecture makes.

pub mod call;
pub mod descriptor;
pub mod iret;
pub mod jump;
pub mod ret;
pub mod stack;
pub mod task;
mod tss;

use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::cpu::stop::Stop;
use crate::decode::op::{Handler, Op};

/// Where a far JMP or CALL goes.
#[derive(Clone, Copy, Debug)]
pub struct FarPointer {
    pub selector: u16,
    pub offset: u64,
}

/// The pointer in the instruction.
fn direct(op: &Op) -> FarPointer {
    FarPointer { selector: (op.imm >> 32) as u16, offset: op.imm & 0xffff_ffff }
}

/// The pointer in memory: an offset of `op.size` bytes, then a selector.
pub fn read_far_pointer(cpu: &mut Cpu, op: &Op) -> Result<FarPointer, Stop> {
    let bytes = usize::from(op.size);
    let linear = cpu.linear(op, bytes + 2, false)?;
    let offset = match bytes {
        2 => u64::from(cpu.load::<u16>(linear)?),
        4 => u64::from(cpu.load::<u32>(linear)?),
        _ => cpu.load::<u64>(linear)?,
    };
    let selector = cpu.load::<u16>(cpu.wrap(linear.wrapping_add(bytes as u64)))?;
    Ok(FarPointer { selector, offset })
}

/// Far JMP and CALL, which share their mnemonics with the near ones; `None` for those.
pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (size, handler): (u8, Handler) = match instruction.code() {
        Code::Jmp_ptr1616 => (2, jump::jump_direct),
        Code::Jmp_ptr1632 => (4, jump::jump_direct),
        Code::Jmp_m1616 => (2, jump::jump_indirect),
        Code::Jmp_m1632 => (4, jump::jump_indirect),
        Code::Jmp_m1664 => (8, jump::jump_indirect),
        Code::Call_ptr1616 => (2, call::call_direct),
        Code::Call_ptr1632 => (4, call::call_direct),
        Code::Call_m1616 => (2, call::call_indirect),
        Code::Call_m1632 => (4, call::call_indirect),
        Code::Call_m1664 => (8, call::call_indirect),
        _ => return None,
    };
    op.size = size;
    Some(handler)
}
