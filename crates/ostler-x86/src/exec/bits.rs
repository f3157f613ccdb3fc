//! Bit tests, scans and counts; BMI1, BMI2, ADX and CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::cpu::stop::Exec;
use crate::cpu::width::Width;
use crate::decode::op::{Handler, Op, op_flag};
use crate::exec::operand::{Imm, Mem, Place, Reg0, Reg1, Reg2, Source, by_width, is_memory};

/// What BT, BTS, BTR and BTC do to the bit they test.
pub trait BitChange {
    const WRITES: bool = true;
    fn apply<W: Width>(value: W, mask: W) -> W;
}

macro_rules! bit_changes {
    ($($name:ident, writes: $writes:literal, |$value:ident, $mask:ident| $result:expr;)*) => {
        $(
            #[derive(Debug)]
            pub struct $name;
            impl BitChange for $name {
                const WRITES: bool = $writes;
                #[inline(always)]
                fn apply<W: Width>($value: W, $mask: W) -> W {
                    $result
                }
            }
        )*
    };
}

bit_changes! {
    Keep, writes: false, |value, mask| { let _ = mask; value };
    SetBit, writes: true, |value, mask| value | mask;
    ResetBit, writes: true, |value, mask| value & !mask;
    Complement, writes: true, |value, mask| value ^ mask;
}

fn bit_in<W: Width, C: BitChange, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let index = S::read::<W>(cpu, op)?.zero_extend() % u64::from(W::BITS);
    let mask = W::truncate(1 << index);
    let test = |cpu: &mut Cpu, value: W| {
        cpu.flags.set_cf(value & mask != W::default());
        C::apply(value, mask)
    };
    if C::WRITES {
        D::update(cpu, op, test)
    } else {
        let value = D::read::<W>(cpu, op)?;
        test(cpu, value);
        Ok(())
    }
}

/// A register index into memory reaches beyond the operand: bit `n` lies in word `n / width` from it.
fn bit_in_string<W: Width, C: BitChange>(cpu: &mut Cpu, op: &Op) -> Exec {
    let index = cpu.regs.read::<W>(op.reg1).sign_extend() as i64;
    let word = index.div_euclid(i64::from(W::BITS)) * W::BYTES as i64;
    let offset = cpu.effective_address(op).wrapping_add(word as u64) & op.address_mask();
    let linear = cpu.segment_linear(op, offset, W::BYTES, C::WRITES)?;
    let mask = W::truncate(1 << index.rem_euclid(i64::from(W::BITS)));
    let test = |cpu: &mut Cpu, value: W| {
        cpu.flags.set_cf(value & mask != W::default());
        C::apply(value, mask)
    };
    if C::WRITES {
        return cpu.update(linear, op.has(op_flag::LOCK), test);
    }
    let value = cpu.load::<W>(linear)?;
    test(cpu, value);
    Ok(())
}

pub fn select_bit<C: BitChange>(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match (is_memory(instruction, 0), instruction.op1_kind() == OpKind::Register) {
        (true, true) => by_width!(op.size, bit_in_string, C),
        (true, false) => by_width!(op.size, bit_in, C, Mem, Imm),
        (false, true) => by_width!(op.size, bit_in, C, Reg0, Reg1),
        (false, false) => by_width!(op.size, bit_in, C, Reg0, Imm),
    }
}

/// BSF and BSR leave the destination alone when the source is zero, upper half included (AMD's
/// manual says so, Intel's processors do so).
fn scan<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, find: impl FnOnce(u64) -> u32) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    cpu.flags.set_logic(value);
    if value != W::default() {
        cpu.regs.write(op.reg0, W::truncate(u64::from(find(value.zero_extend()))));
    }
    Ok(())
}

fn bsf<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    scan::<W, S>(cpu, op, u64::trailing_zeros)
}

fn bsr<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    scan::<W, S>(cpu, op, |value| 63 - value.leading_zeros())
}

/// LZCNT and TZCNT: CF says that the source was zero, ZF that the count is.
fn count<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, count: impl FnOnce(u64) -> u32) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    let result = W::truncate(u64::from(count(value.zero_extend())));
    cpu.flags.set_logic(result);
    cpu.flags.set_cf_of(value == W::default(), false);
    cpu.regs.write(op.reg0, result);
    Ok(())
}

fn lzcnt<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    count::<W, S>(cpu, op, |value| value.leading_zeros() + W::BITS - 64)
}

fn tzcnt<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    count::<W, S>(cpu, op, |value| value.trailing_zeros().min(W::BITS))
}

fn popcnt<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    cpu.flags.set_arithmetic(if value == W::default() { crate::cpu::flags::bit::ZF } else { 0 });
    cpu.regs.write(op.reg0, W::truncate(u64::from(value.zero_extend().count_ones())));
    Ok(())
}

macro_rules! by_source {
    ($instruction:ident, $op:ident, $index:literal, $function:ident, $register:ident) => {
        if is_memory($instruction, $index) {
            by_width!($op.size, $function, Mem)
        } else {
            by_width!($op.size, $function, $register)
        }
    };
}

pub fn select_scan(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Bsf => by_source!(instruction, op, 1, bsf, Reg1),
        Mnemonic::Bsr => by_source!(instruction, op, 1, bsr, Reg1),
        Mnemonic::Lzcnt => by_source!(instruction, op, 1, lzcnt, Reg1),
        Mnemonic::Tzcnt => by_source!(instruction, op, 1, tzcnt, Reg1),
        _ => by_source!(instruction, op, 1, popcnt, Reg1),
    }
}

fn andn<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let result = !cpu.regs.read::<W>(op.reg1) & S::read::<W>(cpu, op)?;
    cpu.flags.set_logic(result);
    cpu.regs.write(op.reg0, result);
    Ok(())
}

/// BLSR, BLSMSK, BLSI: `carry` is CF.
fn lowest_bit<W: Width, S: Source>(
    cpu: &mut Cpu,
    op: &Op,
    apply: impl FnOnce(W) -> W,
    carry: impl FnOnce(W) -> bool,
) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    let result = apply(value);
    cpu.flags.set_logic(result);
    cpu.flags.set_cf_of(carry(value), false);
    cpu.regs.write(op.reg0, result);
    Ok(())
}

fn blsr<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    lowest_bit::<W, S>(cpu, op, |value| value & value.minus(W::truncate(1)), |value| value == W::default())
}

fn blsmsk<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    lowest_bit::<W, S>(cpu, op, |value| value ^ value.minus(W::truncate(1)), |value| value == W::default())
}

fn blsi<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    lowest_bit::<W, S>(cpu, op, |value| value & W::default().minus(value), |value| value != W::default())
}

fn bextr<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let control = cpu.regs.read::<W>(op.reg2).zero_extend();
    let (start, len) = (control & 0xff, control >> 8 & 0xff);
    let value = S::read::<W>(cpu, op)?.zero_extend().checked_shr(start as u32).unwrap_or(0);
    let result = W::truncate(if len < 64 { value & ((1 << len) - 1) } else { value });
    cpu.flags.set_logic(result);
    cpu.regs.write(op.reg0, result);
    Ok(())
}

fn bzhi<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let index = cpu.regs.read::<W>(op.reg2).zero_extend() & 0xff;
    let value = S::read::<W>(cpu, op)?;
    let beyond = index >= u64::from(W::BITS);
    let result = if beyond { value } else { value & W::truncate((1 << index) - 1) };
    cpu.flags.set_logic(result);
    cpu.flags.set_cf_of(beyond, false);
    cpu.regs.write(op.reg0, result);
    Ok(())
}

fn pdep<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let source = cpu.regs.read::<W>(op.reg1).zero_extend();
    let mut mask = S::read::<W>(cpu, op)?.zero_extend();
    let (mut result, mut bit) = (0, 1);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= if source & bit != 0 { lowest } else { 0 };
        mask ^= lowest;
        bit <<= 1;
    }
    cpu.regs.write(op.reg0, W::truncate(result));
    Ok(())
}

fn pext<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let source = cpu.regs.read::<W>(op.reg1).zero_extend();
    let mut mask = S::read::<W>(cpu, op)?.zero_extend();
    let (mut result, mut bit) = (0, 1);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= if source & lowest != 0 { bit } else { 0 };
        mask ^= lowest;
        bit <<= 1;
    }
    cpu.regs.write(op.reg0, W::truncate(result));
    Ok(())
}

fn rorx<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<W>(cpu, op)?.zero_extend();
    let turn = (op.imm & u64::from(W::BITS - 1)) as u32;
    let result = if turn == 0 { value } else { value >> turn | value << (W::BITS - turn) };
    cpu.regs.write(op.reg0, W::truncate(result));
    Ok(())
}

fn shiftx<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, shift: impl FnOnce(W, u32) -> u64) -> Exec {
    let count = cpu.regs.read::<W>(op.reg2).zero_extend() & u64::from(W::BITS - 1);
    let value = S::read::<W>(cpu, op)?;
    cpu.regs.write(op.reg0, W::truncate(shift(value, count as u32)));
    Ok(())
}

fn shlx<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    shiftx::<W, S>(cpu, op, |value, count| value.zero_extend() << count)
}
fn shrx<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    shiftx::<W, S>(cpu, op, |value, count| value.zero_extend() >> count)
}
fn sarx<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    shiftx::<W, S>(cpu, op, |value, count| (value.sign_extend() as i64 >> count) as u64)
}

/// BMI1 and BMI2 without MULX.
pub fn select_bmi(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Andn => by_source!(instruction, op, 2, andn, Reg2),
        Mnemonic::Pdep => by_source!(instruction, op, 2, pdep, Reg2),
        Mnemonic::Pext => by_source!(instruction, op, 2, pext, Reg2),
        Mnemonic::Blsr => by_source!(instruction, op, 1, blsr, Reg1),
        Mnemonic::Blsmsk => by_source!(instruction, op, 1, blsmsk, Reg1),
        Mnemonic::Blsi => by_source!(instruction, op, 1, blsi, Reg1),
        Mnemonic::Bextr if instruction.op2_kind() == OpKind::Register => by_source!(instruction, op, 1, bextr, Reg1),
        Mnemonic::Bzhi => by_source!(instruction, op, 1, bzhi, Reg1),
        Mnemonic::Rorx => by_source!(instruction, op, 1, rorx, Reg1),
        Mnemonic::Shlx => by_source!(instruction, op, 1, shlx, Reg1),
        Mnemonic::Shrx => by_source!(instruction, op, 1, shrx, Reg1),
        Mnemonic::Sarx => by_source!(instruction, op, 1, sarx, Reg1),
        _ => None,
    }
}

/// ADCX carries through CF, ADOX through OF; neither touches another flag.
fn add_carry<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, carry: bool) -> Result<bool, crate::cpu::stop::Stop> {
    let (a, b) = (cpu.regs.read::<W>(op.reg0), S::read::<W>(cpu, op)?);
    let sum = u128::from(a.zero_extend()) + u128::from(b.zero_extend()) + u128::from(carry);
    cpu.regs.write(op.reg0, W::truncate(sum as u64));
    Ok(sum >> W::BITS != 0)
}

fn adcx<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let carry = cpu.flags.cf();
    let carry = add_carry::<W, S>(cpu, op, carry)?;
    cpu.flags.set_cf(carry);
    Ok(())
}

fn adox<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let carry = cpu.flags.of();
    let carry = add_carry::<W, S>(cpu, op, carry)?;
    cpu.flags.set_of(carry);
    Ok(())
}

pub fn select_adx(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if instruction.mnemonic() == Mnemonic::Adcx {
        by_source!(instruction, op, 1, adcx, Reg1)
    } else {
        by_source!(instruction, op, 1, adox, Reg1)
    }
}

/// CRC32: the Castagnoli polynomial, bits reflected (SDM vol. 2, CRC32).
const CASTAGNOLI: u32 = 0x82f6_3b78;

fn crc32<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<W>(cpu, op)?.zero_extend();
    let mut crc = cpu.regs.read::<u32>(op.reg0);
    for byte in &value.to_le_bytes()[..W::BYTES] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { CASTAGNOLI } else { 0 };
        }
    }
    cpu.regs.write(op.reg0, u64::from(crc));
    Ok(())
}

pub fn select_crc32(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    let bytes =
        if is_memory(instruction, 1) { instruction.memory_size().size() } else { instruction.op1_register().size() };
    if is_memory(instruction, 1) { by_width!(bytes, crc32, Mem) } else { by_width!(bytes, crc32, Reg1) }
}
