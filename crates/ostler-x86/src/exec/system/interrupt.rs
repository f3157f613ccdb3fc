//! Software interrupts, HLT, and the flags that only the system changes.

use iced_x86::{Instruction, Mnemonic};

use ostler_engine::Exit;

use crate::cpu::flags::bit;
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::width::Width;
use crate::cpu::{Cpu, Mode, attention};
use crate::debug::DR6_RESET;
use crate::decode::op::{Handler, Op};
use crate::event::{Event, EventKind};

/// PAUSE instructions after which the host may run something else: a guest that spins on a lock
/// may be waiting for a vCPU that has no host CPU.
const PAUSES_PER_YIELD: u32 = 64;

fn software(cpu: &mut Cpu, op: &Op, vector: u8, kind: EventKind) -> Exec {
    let next = cpu.next_rip(op);
    cpu.deliver(Event { vector, error: None, kind }, next)?;
    // Delivery cleared TF, and with it the trap that this instruction would have been followed by.
    cpu.debug.trap_after = false;
    Err(Stop::Jump)
}

/// INT n: in virtual-8086 mode, IOPL has to be 3.
pub fn int(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.mode == Mode::Virtual8086 && cpu.flags.iopl() < 3 {
        return Err(cpu.gp(0));
    }
    software(cpu, op, op.imm as u8, EventKind::Software)
}

pub fn int3(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.debug.outside.software_breakpoints {
        cpu.exit = Some(Exit::Debug { rip: cpu.op_rip(op), dr6: DR6_RESET, exception: vector::BP });
        return Err(Stop::Exit);
    }
    software(cpu, op, vector::BP, EventKind::Software)
}

pub fn into(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.flags.of() { software(cpu, op, vector::OF, EventKind::Software) } else { Ok(()) }
}

/// BOUND: #BR unless the register, signed, is between the two numbers in memory.
fn bound<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let bytes = W::BYTES as u64;
    let linear = cpu.linear(op, 2 * W::BYTES, false)?;
    let (low, high) = (cpu.load::<W>(linear)?, cpu.load::<W>(cpu.wrap(linear.wrapping_add(bytes)))?);
    let signed = |value: W| value.sign_extend() as i64;
    let index = signed(cpu.regs.read::<W>(op.reg0));
    if index < signed(low) || index > signed(high) { Err(cpu.raise(vector::BR)) } else { Ok(()) }
}

pub fn select_bound(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(if instruction.op0_register().size() == 2 { bound::<u16> } else { bound::<u32> })
}

pub fn int1(cpu: &mut Cpu, op: &Op) -> Exec {
    software(cpu, op, vector::DB, EventKind::Unchecked)
}

pub fn hlt(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.require_cpl0()?;
    cpu.attention |= attention::HALTED;
    Err(Stop::EndBlock)
}

/// CLI and STI need IOPL in protected and virtual-8086 mode.
fn require_iopl(cpu: &mut Cpu) -> Exec {
    if cpu.mode != Mode::Real && cpu.cpl > cpu.flags.iopl() { Err(cpu.gp(0)) } else { Ok(()) }
}

pub fn cli(cpu: &mut Cpu, _: &Op) -> Exec {
    require_iopl(cpu)?;
    cpu.flags.set(bit::IF, false);
    Ok(())
}

pub fn sti(cpu: &mut Cpu, _: &Op) -> Exec {
    require_iopl(cpu)?;
    if !cpu.flags.has(bit::IF) {
        cpu.flags.set(bit::IF, true);
        cpu.interrupts_enabled();
        cpu.shadow_next();
    }
    Ok(())
}

/// CLAC and STAC.
pub fn select_ac(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(if instruction.mnemonic() == Mnemonic::Stac { stac } else { clac })
}

fn stac(cpu: &mut Cpu, _: &Op) -> Exec {
    set_ac(cpu, true)
}

fn clac(cpu: &mut Cpu, _: &Op) -> Exec {
    set_ac(cpu, false)
}

fn set_ac(cpu: &mut Cpu, on: bool) -> Exec {
    if cpu.cpl != 0 {
        return Err(cpu.undefined());
    }
    cpu.flags.set(bit::AC, on);
    cpu.update_privilege();
    Ok(())
}

/// PUSHF and POPF; the operand size is in the mnemonic.
pub fn select_flags(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (size, handler): (u8, Handler) = match instruction.mnemonic() {
        Mnemonic::Pushf => (2, pushf),
        Mnemonic::Pushfd => (4, pushf),
        Mnemonic::Pushfq => (8, pushf),
        Mnemonic::Popf => (2, popf),
        Mnemonic::Popfd => (4, popf),
        _ => (8, popf),
    };
    op.size = size;
    Some(handler)
}

fn require_v86_iopl(cpu: &mut Cpu) -> Exec {
    if cpu.mode == Mode::Virtual8086 && cpu.flags.iopl() < 3 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn pushf(cpu: &mut Cpu, op: &Op) -> Exec {
    require_v86_iopl(cpu)?;
    let image = cpu.flags.to_u64() & !(bit::VM | bit::RF);
    cpu.push_value(op.size, image)
}

fn popf(cpu: &mut Cpu, op: &Op) -> Exec {
    require_v86_iopl(cpu)?;
    let value = cpu.pop_value(op.size)?;
    let mut mask = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    if cpu.mode == Mode::Real || cpu.cpl <= cpu.flags.iopl() {
        mask |= bit::IF;
    }
    if cpu.cpl == 0 {
        mask |= bit::IOPL;
    }
    cpu.write_flags(value, if op.size == 2 { mask & 0xffff } else { mask });
    // An interrupt or a trap may be due.
    if cpu.attention != 0 { Err(Stop::EndBlock) } else { Ok(()) }
}

pub fn pause(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.events.pauses += 1;
    if cpu.events.pauses >= PAUSES_PER_YIELD {
        cpu.events.pauses = 0;
        std::thread::yield_now();
    }
    Ok(())
}
