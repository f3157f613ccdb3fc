//! Multiplication and division.

use iced_x86::{Instruction, OpKind};

use crate::cpu::Cpu;
use crate::cpu::regs::{RAX, RDX};
use crate::cpu::stop::{Exec, vector};
use crate::cpu::width::Width;
use crate::decode::op::{Handler, Op};
use crate::exec::operand::{Imm, Mem, Reg0, Reg1, Source, by_width, is_memory};

/// Byte offset of RDX in the register file.
const DX: u8 = 8 * RDX as u8;

impl Cpu {
    /// Writes a double-width product: AX for bytes, DX:AX and wider otherwise.
    fn set_product<W: Width>(&mut self, product: u128) {
        if W::BITS == 8 {
            self.regs.write(0, product as u16);
        } else {
            self.regs.write(0, W::truncate(product as u64));
            self.regs.write(DX, W::truncate((product >> W::BITS) as u64));
        }
    }

    /// CF and OF say whether the product needs its upper half; the rest is undefined, here as for
    /// the lower half.
    fn set_product_flags<W: Width>(&mut self, low: W, overflow: bool) {
        self.flags.set_logic(low);
        self.flags.set_cf_of(overflow, overflow);
    }
}

fn mul<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let factor = S::read::<W>(cpu, op)?;
    let product = u128::from(cpu.regs.read::<W>(0).zero_extend()) * u128::from(factor.zero_extend());
    cpu.set_product::<W>(product);
    cpu.set_product_flags(W::truncate(product as u64), product >> W::BITS != 0);
    Ok(())
}

pub fn select_mul(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_memory(instruction, 0) { by_width!(op.size, mul, Mem) } else { by_width!(op.size, mul, Reg0) }
}

fn signed_product<W: Width>(a: W, b: W) -> (i128, bool) {
    let product = i128::from(a.sign_extend() as i64) * i128::from(b.sign_extend() as i64);
    let low = W::truncate(product as u64);
    (product, i128::from(low.sign_extend() as i64) != product)
}

fn imul_one<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let factor = S::read::<W>(cpu, op)?;
    let (product, overflow) = signed_product(cpu.regs.read::<W>(0), factor);
    cpu.set_product::<W>(product as u128);
    cpu.set_product_flags(W::truncate(product as u64), overflow);
    Ok(())
}

fn imul<W: Width, A: Source, B: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, b) = (A::read::<W>(cpu, op)?, B::read::<W>(cpu, op)?);
    let (product, overflow) = signed_product(a, b);
    let low = W::truncate(product as u64);
    cpu.regs.write(op.reg0, low);
    cpu.set_product_flags(low, overflow);
    Ok(())
}

pub fn select_imul(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match (instruction.op_count(), is_memory(instruction, instruction.op_count().min(2) - 1)) {
        (1, true) => by_width!(op.size, imul_one, Mem),
        (1, false) => by_width!(op.size, imul_one, Reg0),
        (2, true) => by_width!(op.size, imul, Reg0, Mem),
        (2, false) => by_width!(op.size, imul, Reg0, Reg1),
        (_, true) => by_width!(op.size, imul, Mem, Imm),
        (_, false) => by_width!(op.size, imul, Reg1, Imm),
    }
}

impl Cpu {
    /// The double-width dividend.
    fn dividend<W: Width>(&self) -> u128 {
        if W::BITS == 8 {
            return u128::from(self.regs.get(RAX) & 0xffff);
        }
        let (low, high) = (self.regs.read::<W>(0).zero_extend(), self.regs.read::<W>(DX).zero_extend());
        u128::from(high) << W::BITS | u128::from(low)
    }

    fn set_quotient<W: Width>(&mut self, quotient: W, remainder: W) {
        if W::BITS == 8 {
            self.regs.write(0, (remainder.zero_extend() << 8 | quotient.zero_extend()) as u16);
        } else {
            self.regs.write(0, quotient);
            self.regs.write(DX, remainder);
        }
    }
}

fn div<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let divisor = S::read::<W>(cpu, op)?.zero_extend();
    let dividend = cpu.dividend::<W>();
    if divisor == 0 || (dividend >> W::BITS) as u64 >= divisor {
        return Err(cpu.raise(vector::DE));
    }
    // Most dividends fit 64 bits, where the host divides ten times as fast.
    let (quotient, remainder) = match u64::try_from(dividend) {
        Ok(dividend) => (dividend / divisor, dividend % divisor),
        Err(_) => ((dividend / u128::from(divisor)) as u64, (dividend % u128::from(divisor)) as u64),
    };
    cpu.set_quotient(W::truncate(quotient), W::truncate(remainder));
    Ok(())
}

pub fn select_div(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_memory(instruction, 0) { by_width!(op.size, div, Mem) } else { by_width!(op.size, div, Reg0) }
}

fn idiv<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let divisor = i128::from(S::read::<W>(cpu, op)?.sign_extend() as i64);
    let unused = 128 - 2 * W::BITS;
    let dividend = (cpu.dividend::<W>() << unused) as i128 >> unused;
    let quotient = dividend.checked_div(divisor).unwrap_or(i128::MAX);
    let low = W::truncate(quotient as u64);
    if i128::from(low.sign_extend() as i64) != quotient {
        return Err(cpu.raise(vector::DE));
    }
    cpu.set_quotient(low, W::truncate((dividend - quotient * divisor) as u64));
    Ok(())
}

pub fn select_idiv(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_memory(instruction, 0) { by_width!(op.size, idiv, Mem) } else { by_width!(op.size, idiv, Reg0) }
}

/// MULX: RDX times the source, no flags; with one destination twice, the upper half stays.
fn mulx<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let factor = S::read::<W>(cpu, op)?;
    let product = u128::from(cpu.regs.read::<W>(DX).zero_extend()) * u128::from(factor.zero_extend());
    cpu.regs.write(op.reg1, W::truncate(product as u64));
    cpu.regs.write(op.reg0, W::truncate((product >> W::BITS) as u64));
    Ok(())
}

pub fn select_mulx(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    use crate::exec::operand::Reg2;
    if instruction.op2_kind() == OpKind::Memory {
        by_width!(op.size, mulx, Mem)
    } else {
        by_width!(op.size, mulx, Reg2)
    }
}
