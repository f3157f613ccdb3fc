//! Decimal adjustments (AAA, AAD, AAM, AAS, DAA, DAS): not in 64-bit mode.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::stop::{Exec, vector};
use crate::decode::op::{Handler, Op};

/// Byte offsets of AL and AH.
const AL: u8 = 0;
const AH: u8 = 1;

/// AAA and AAS: `step` is what a digit over 9 adds to AX.
fn adjust_ascii(cpu: &mut Cpu, step: u16) -> Exec {
    let ax: u16 = cpu.regs.read(AL);
    let adjust = ax & 15 > 9 || cpu.flags.af();
    let ax = if adjust { ax.wrapping_add(step) } else { ax } & 0xff0f;
    cpu.regs.write(AL, ax);
    cpu.flags.set_zsp(ax as u8);
    cpu.flags.set_cf_of(adjust, false);
    cpu.flags.set_af(adjust);
    Ok(())
}

fn aaa(cpu: &mut Cpu, _: &Op) -> Exec {
    adjust_ascii(cpu, 0x106)
}

fn aas(cpu: &mut Cpu, _: &Op) -> Exec {
    adjust_ascii(cpu, 0x106u16.wrapping_neg())
}

fn aam(cpu: &mut Cpu, op: &Op) -> Exec {
    let base = op.imm as u8;
    if base == 0 {
        return Err(cpu.raise(vector::DE));
    }
    let al: u8 = cpu.regs.read(AL);
    cpu.regs.write(AH, al / base);
    cpu.regs.write(AL, al % base);
    cpu.flags.set_logic(al % base);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op) -> Exec {
    let (al, ah): (u8, u8) = (cpu.regs.read(AL), cpu.regs.read(AH));
    let result = ah.wrapping_mul(op.imm as u8).wrapping_add(al);
    cpu.regs.write(AL, u16::from(result));
    cpu.flags.set_logic(result);
    Ok(())
}

/// DAA and DAS (SDM vol. 2): corrects each digit that went over 9.
fn adjust_packed(cpu: &mut Cpu, subtract: bool) -> Exec {
    let (al, carry, auxiliary): (u8, _, _) = (cpu.regs.read(AL), cpu.flags.cf(), cpu.flags.af());
    let apply = |value: u8, by: u8| if subtract { value.wrapping_sub(by) } else { value.wrapping_add(by) };
    let (mut result, mut new_carry) = (al, false);
    let low = al & 15 > 9 || auxiliary;
    if low {
        result = apply(result, 6);
        new_carry = carry || if subtract { al < 6 } else { al > 0xf9 };
    }
    if al > 0x99 || carry {
        result = apply(result, 0x60);
        new_carry = true;
    }
    cpu.regs.write(AL, result);
    cpu.flags.set_zsp(result);
    cpu.flags.set_cf_of(new_carry, false);
    cpu.flags.set_af(low);
    Ok(())
}

fn daa(cpu: &mut Cpu, _: &Op) -> Exec {
    adjust_packed(cpu, false)
}

fn das(cpu: &mut Cpu, _: &Op) -> Exec {
    adjust_packed(cpu, true)
}

pub fn select_decimal(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Aaa => aaa,
        Mnemonic::Aas => aas,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        Mnemonic::Daa => daa,
        _ => das,
    })
}
