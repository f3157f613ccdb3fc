//! Debug registers (SDM vol. 3, 18.2).

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::cpu::control::cr4;
use crate::cpu::stop::{Exec, Stop, vector};
use crate::debug::{DR6_RESET, DR7_RESET, dr6, dr7};
use crate::decode::op::{Handler, Op};
use crate::exec::system::control::{read_register, write_register};
use crate::exec::system::tlb::serialize;

/// MOV to and from a debug register.
pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let to_debug = instruction.op0_register().is_dr();
    let number = if to_debug { op.reg0 } else { op.reg1 };
    (number < 8).then_some(if to_debug { write_debug as Handler } else { read_debug })
}

/// DR4 and DR5 are other names of DR6 and DR7 unless CR4.DE is set. With DR7.GD, any access is #DB.
fn checked_number(cpu: &mut Cpu, number: u8) -> Result<usize, Stop> {
    cpu.require_cpl0()?;
    let number = match number {
        4 | 5 if cpu.cr4 & cr4::DE != 0 => return Err(cpu.undefined()),
        4 | 5 => number + 2,
        _ => number,
    };
    if cpu.dr7 & dr7::GD != 0 {
        cpu.dr6 |= dr6::BD;
        cpu.dr7 &= !dr7::GD;
        return Err(cpu.raise(vector::DB));
    }
    Ok(usize::from(number))
}

fn read_debug(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = match checked_number(cpu, op.reg1)? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        number => cpu.dr[number],
    };
    write_register(cpu, op, op.reg0, value);
    Ok(())
}

fn write_debug(cpu: &mut Cpu, op: &Op) -> Exec {
    let number = checked_number(cpu, op.reg0)?;
    let value = read_register(cpu, op, op.reg1);
    if number >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    match number {
        6 => cpu.dr6 = DR6_RESET | value & dr6::WRITABLE,
        7 => cpu.dr7 = DR7_RESET | value & dr7::WRITABLE,
        _ => cpu.dr[number] = value,
    }
    cpu.update_breakpoints();
    serialize();
    Err(Stop::EndBlock)
}
