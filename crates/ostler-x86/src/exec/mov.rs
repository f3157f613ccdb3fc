//! Moves, conversions between widths, and the conditional forms.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::cpu::flags::bit;
use crate::cpu::regs::{RAX, RBX, RDX};
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::width::Width;
use crate::decode::op::{Handler, Op};
use crate::exec::operand::{Imm, Mem, Place, Reg0, Reg1, Source, by_width, is_memory};

fn mov<W: Width, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    D::write(cpu, op, value)
}

/// MOV between general registers, memory and immediates; the others are the system family's.
pub fn select_mov(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let special =
        |index: u32| instruction.op_kind(index) == OpKind::Register && !instruction.op_register(index).is_gpr();
    if special(0) || special(1) {
        return crate::isa::special_move(instruction, op);
    }
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_width!(op.size, mov, Reg0, Reg1),
        (OpKind::Register, OpKind::Memory) => by_width!(op.size, mov, Reg0, Mem),
        (OpKind::Memory, OpKind::Register) => by_width!(op.size, mov, Mem, Reg1),
        (OpKind::Register, _) => by_width!(op.size, mov, Reg0, Imm),
        _ => by_width!(op.size, mov, Mem, Imm),
    }
}

fn movbe<W: Width, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    D::write(cpu, op, W::truncate(value.zero_extend().swap_bytes() >> (64 - W::BITS)))
}

pub fn select_movbe(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if is_memory(instruction, 0) { by_width!(op.size, movbe, Mem, Reg1) } else { by_width!(op.size, movbe, Reg0, Mem) }
}

/// BSWAP of a 16-bit register is undefined; zero is what processors give.
fn bswap<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.regs.read::<W>(op.reg0).zero_extend();
    let swapped = if W::BITS == 16 { 0 } else { value.swap_bytes() >> (64 - W::BITS) };
    cpu.regs.write(op.reg0, W::truncate(swapped));
    Ok(())
}

pub fn select_bswap(_: &Instruction, op: &mut Op) -> Option<Handler> {
    by_width!(op.size, bswap)
}

fn movzx<W: Width, S: Source, F: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<F>(cpu, op)?;
    cpu.regs.write(op.reg0, W::truncate(value.zero_extend()));
    Ok(())
}

fn movsx<W: Width, S: Source, F: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<F>(cpu, op)?;
    cpu.regs.write(op.reg0, W::truncate(value.sign_extend()));
    Ok(())
}

/// Bytes of the second operand.
fn source_size(instruction: &Instruction) -> usize {
    if is_memory(instruction, 1) { instruction.memory_size().size() } else { instruction.op1_register().size() }
}

macro_rules! select_extension {
    ($name:ident, $function:ident) => {
        pub fn $name(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
            match (source_size(instruction), is_memory(instruction, 1)) {
                (1, true) => by_width!(op.size, $function, Mem, u8),
                (1, false) => by_width!(op.size, $function, Reg1, u8),
                (2, true) => by_width!(op.size, $function, Mem, u16),
                (2, false) => by_width!(op.size, $function, Reg1, u16),
                (4, true) => by_width!(op.size, $function, Mem, u32),
                (4, false) => by_width!(op.size, $function, Reg1, u32),
                _ => None,
            }
        }
    };
}

select_extension!(select_movzx, movzx);
select_extension!(select_movsx, movsx);

fn lea<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let address = cpu.effective_address(op);
    cpu.regs.write(op.reg0, W::truncate(address));
    Ok(())
}

pub fn select_lea(_: &Instruction, op: &mut Op) -> Option<Handler> {
    by_width!(op.size, lea)
}

/// CBW, CWDE, CDQE: the accumulator's lower half sign-extended.
fn extend_accumulator<W: Width>(cpu: &mut Cpu, _: &Op) -> Exec {
    let half = cpu.regs.get(RAX) << (64 - W::BITS / 2);
    cpu.regs.write(0, W::truncate((half as i64 >> (64 - W::BITS / 2)) as u64));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign into the data register.
fn sign_into_data<W: Width>(cpu: &mut Cpu, _: &Op) -> Exec {
    let sign = (cpu.regs.read::<W>(0).sign_extend() as i64 >> 63) as u64;
    cpu.regs.write(8 * RDX as u8, W::truncate(sign));
    Ok(())
}

pub fn select_extend(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Cbw => Some(extend_accumulator::<u16>),
        Mnemonic::Cwde => Some(extend_accumulator::<u32>),
        Mnemonic::Cdqe => Some(extend_accumulator::<u64>),
        Mnemonic::Cwd => Some(sign_into_data::<u16>),
        Mnemonic::Cdq => Some(sign_into_data::<u32>),
        _ => Some(sign_into_data::<u64>),
    }
}

/// A condition code as Jcc, SETcc and CMOVcc encode it: bits 1..4 choose, bit 0 negates.
pub trait Condition {
    fn holds(cpu: &Cpu) -> bool;
}

macro_rules! conditions {
    ($($name:ident, |$flags:ident| $holds:expr;)*) => {
        $(
            #[derive(Debug)]
            pub struct $name;
            impl Condition for $name {
                #[inline(always)]
                fn holds(cpu: &Cpu) -> bool {
                    let $flags = &cpu.flags;
                    $holds
                }
            }
        )*
    };
}

conditions! {
    Overflow, |flags| flags.of();
    NotOverflow, |flags| !flags.of();
    Below, |flags| flags.cf();
    AboveEqual, |flags| !flags.cf();
    Equal, |flags| flags.zf();
    NotEqual, |flags| !flags.zf();
    BelowEqual, |flags| flags.cf() || flags.zf();
    Above, |flags| !flags.cf() && !flags.zf();
    Sign, |flags| flags.sf();
    NotSign, |flags| !flags.sf();
    Parity, |flags| flags.pf();
    NotParity, |flags| !flags.pf();
    Less, |flags| flags.sf() != flags.of();
    GreaterEqual, |flags| flags.sf() == flags.of();
    LessEqual, |flags| flags.zf() || flags.sf() != flags.of();
    Greater, |flags| !flags.zf() && flags.sf() == flags.of();
}

/// Runs `$select!(Condition)` for an instruction's condition code.
macro_rules! by_condition {
    ($code:expr, $select:ident $(, $argument:tt)*) => {
        match $code {
            iced_x86::ConditionCode::o => $select!($crate::exec::mov::Overflow $(, $argument)*),
            iced_x86::ConditionCode::no => $select!($crate::exec::mov::NotOverflow $(, $argument)*),
            iced_x86::ConditionCode::b => $select!($crate::exec::mov::Below $(, $argument)*),
            iced_x86::ConditionCode::ae => $select!($crate::exec::mov::AboveEqual $(, $argument)*),
            iced_x86::ConditionCode::e => $select!($crate::exec::mov::Equal $(, $argument)*),
            iced_x86::ConditionCode::ne => $select!($crate::exec::mov::NotEqual $(, $argument)*),
            iced_x86::ConditionCode::be => $select!($crate::exec::mov::BelowEqual $(, $argument)*),
            iced_x86::ConditionCode::a => $select!($crate::exec::mov::Above $(, $argument)*),
            iced_x86::ConditionCode::s => $select!($crate::exec::mov::Sign $(, $argument)*),
            iced_x86::ConditionCode::ns => $select!($crate::exec::mov::NotSign $(, $argument)*),
            iced_x86::ConditionCode::p => $select!($crate::exec::mov::Parity $(, $argument)*),
            iced_x86::ConditionCode::np => $select!($crate::exec::mov::NotParity $(, $argument)*),
            iced_x86::ConditionCode::l => $select!($crate::exec::mov::Less $(, $argument)*),
            iced_x86::ConditionCode::ge => $select!($crate::exec::mov::GreaterEqual $(, $argument)*),
            iced_x86::ConditionCode::le => $select!($crate::exec::mov::LessEqual $(, $argument)*),
            iced_x86::ConditionCode::g => $select!($crate::exec::mov::Greater $(, $argument)*),
            iced_x86::ConditionCode::None => None,
        }
    };
}
pub(crate) use by_condition;

fn setcc<C: Condition, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = u8::from(C::holds(cpu));
    D::write(cpu, op, value)
}

macro_rules! handler_setcc {
    ($condition:ty, $place:ident) => {
        Some(setcc::<$condition, $place> as Handler)
    };
}

pub fn select_setcc(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    let code: ConditionCode = instruction.condition_code();
    if is_memory(instruction, 0) {
        by_condition!(code, handler_setcc, Mem)
    } else {
        by_condition!(code, handler_setcc, Reg0)
    }
}

/// The source is read whatever the condition says; a 32-bit destination loses its upper half either way.
fn cmov<W: Width, C: Condition, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::read::<W>(cpu, op)?;
    let value = if C::holds(cpu) { value } else { cpu.regs.read(op.reg0) };
    cpu.regs.write(op.reg0, value);
    Ok(())
}

macro_rules! handler_cmov {
    ($condition:ty, $source:ident, $size:tt) => {
        by_width!($size, cmov, $condition, $source)
    };
}

pub fn select_cmov(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (code, size) = (instruction.condition_code(), op.size);
    if is_memory(instruction, 1) {
        by_condition!(code, handler_cmov, Mem, size)
    } else {
        by_condition!(code, handler_cmov, Reg1, size)
    }
}

/// XLATB: AL takes the byte at (E)BX + AL.
fn xlat(cpu: &mut Cpu, op: &Op) -> Exec {
    let offset = cpu.regs.get(RBX).wrapping_add(cpu.regs.get(RAX) & 0xff) & op.address_mask();
    let linear = cpu.segment_linear(op, offset, 1, false)?;
    let value: u8 = cpu.load(linear)?;
    cpu.regs.write(0, value);
    Ok(())
}

pub fn select_xlat(_: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(xlat)
}

const AH: u8 = 1;

fn lahf(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.regs.write(AH, (cpu.flags.to_u64() & 0xd7) as u8);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Exec {
    let ah: u8 = cpu.regs.read(AH);
    let of = cpu.flags.arithmetic() & bit::OF;
    cpu.flags.set_arithmetic(u64::from(ah) | of);
    Ok(())
}

/// SALC (undocumented): AL takes CF in every bit.
fn salc(cpu: &mut Cpu, _: &Op) -> Exec {
    let value = if cpu.flags.cf() { 0xffu8 } else { 0 };
    cpu.regs.write(0, value);
    Ok(())
}

fn clc(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.set_cf(false);
    Ok(())
}
fn stc(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.set_cf(true);
    Ok(())
}
fn cmc(cpu: &mut Cpu, _: &Op) -> Exec {
    let carry = cpu.flags.cf();
    cpu.flags.set_cf(!carry);
    Ok(())
}
fn cld(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.set(bit::DF, false);
    Ok(())
}
fn std(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.set(bit::DF, true);
    Ok(())
}

pub fn select_flag(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        Mnemonic::Clc => clc,
        Mnemonic::Stc => stc,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => cld,
        _ => std,
    })
}

fn nop(_: &mut Cpu, _: &Op) -> Exec {
    Ok(())
}

/// NOP, and hints that do nothing here.
pub fn select_nop(_: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(nop)
}

impl Cpu {
    /// The linear address of `offset` in the operand's segment.
    #[inline(always)]
    pub fn segment_linear(&mut self, op: &Op, offset: u64, bytes: usize, write: bool) -> Result<u64, Stop> {
        if op.flags & crate::decode::op::op_flag::CHECKED == 0 {
            return Ok(self.segment_base[usize::from(op.seg)].wrapping_add(offset));
        }
        self.checked_linear(usize::from(op.seg), offset, bytes, write)
    }
}
