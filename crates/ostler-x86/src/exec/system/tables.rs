//! GDTR, IDTR, LDTR and TR.

use iced_x86::{Code, Instruction, OpKind};

use crate::cpu::control::efer;
use crate::cpu::segment::{LDTR, SegmentRegister, TR};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::{Cpu, TableRegister};
use crate::decode::op::{Handler, Op};
use crate::exec::far::descriptor::{Descriptor, is_null, kind, selector_error};
use crate::exec::operand::{Mem, Place, Source};
use crate::exec::system::tlb::serialize;
use crate::mmu::access::is_canonical;

/// LGDT, LIDT, SGDT, SIDT.
pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    // A 16-bit operand size makes the base 24 bits long.
    op.sub = match instruction.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 3,
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => 4,
    };
    Some(match instruction.code() {
        Code::Lgdt_m1632_16 | Code::Lgdt_m1632 | Code::Lgdt_m1664 => lgdt,
        Code::Lidt_m1632_16 | Code::Lidt_m1632 | Code::Lidt_m1664 => lidt,
        Code::Sgdt_m1632_16 | Code::Sgdt_m1632 | Code::Sgdt_m1664 => sgdt,
        Code::Sidt_m1632_16 | Code::Sidt_m1632 | Code::Sidt_m1664 => sidt,
        _ => return None,
    })
}

fn lgdt(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.gdtr = read_table(cpu, op)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.idtr = read_table(cpu, op)?;
    Ok(())
}

fn read_table(cpu: &mut Cpu, op: &Op) -> Result<TableRegister, Stop> {
    cpu.require_cpl0()?;
    serialize();
    let bytes = if op.sub == 8 { 10 } else { 6 };
    let linear = cpu.linear(op, bytes, false)?;
    let limit = cpu.load::<u16>(linear)?;
    let at = cpu.wrap(linear.wrapping_add(2));
    let base = match op.sub {
        8 => cpu.load::<u64>(at)?,
        4 => u64::from(cpu.load::<u32>(at)?),
        _ => u64::from(cpu.load::<u32>(at)? & 0xff_ffff),
    };
    if op.sub == 8 && !is_canonical(base) {
        return Err(cpu.gp(0));
    }
    Ok(TableRegister { base, limit })
}

fn sgdt(cpu: &mut Cpu, op: &Op) -> Exec {
    write_table(cpu, op, cpu.gdtr)
}

fn sidt(cpu: &mut Cpu, op: &Op) -> Exec {
    write_table(cpu, op, cpu.idtr)
}

fn write_table(cpu: &mut Cpu, op: &Op, table: TableRegister) -> Exec {
    cpu.require_no_umip()?;
    let bytes = if op.sub == 8 { 10 } else { 6 };
    let linear = cpu.linear(op, bytes, true)?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.store_bytes(linear, &image[..bytes])
}

/// The 16-bit operand of LLDT, LTR, LAR and the like.
pub fn read_selector(cpu: &mut Cpu, op: &Op, register: u8, in_memory: bool) -> Result<u16, Stop> {
    if in_memory { Mem::read::<u16>(cpu, op) } else { Ok(cpu.regs.read(register)) }
}

/// LLDT and LTR.
pub fn select_load(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.sub = u8::from(instruction.op0_kind() == OpKind::Memory);
    let is_task = matches!(instruction.code(), Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16);
    Some(if is_task { ltr } else { lldt })
}

fn lldt(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = read_selector(cpu, op, op.reg0, op.sub != 0)?;
    if is_null(selector) {
        cpu.segments[LDTR] = SegmentRegister::null(selector);
        return Ok(());
    }
    let (descriptor, base) = system_descriptor(cpu, selector, &[kind::LDT])?;
    cpu.segments[LDTR] = SegmentRegister { base, ..descriptor.segment(selector) };
    Ok(())
}

fn ltr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = read_selector(cpu, op, op.reg0, op.sub != 0)?;
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    let long = cpu.efer & efer::LMA != 0;
    let kinds: &[u8] = if long { &[kind::TSS32] } else { &[kind::TSS16, kind::TSS32] };
    let (descriptor, base) = system_descriptor(cpu, selector, kinds)?;
    cpu.change_descriptor_type(descriptor.linear, |kind| kind | 2)?;
    let mut task = SegmentRegister { base, ..descriptor.segment(selector) };
    task.rights.0 |= 2;
    cpu.segments[TR] = task;
    Ok(())
}

/// A present system descriptor of one of `kinds` in the GDT, and its base.
fn system_descriptor(cpu: &mut Cpu, selector: u16, kinds: &[u8]) -> Result<(Descriptor, u64), Stop> {
    let error = selector_error(selector);
    if selector & 4 != 0 {
        return Err(cpu.gp(error));
    }
    let descriptor = cpu.read_descriptor(selector, vector::GP)?;
    if !kinds.iter().any(|kind| descriptor.is_system(*kind)) {
        return Err(cpu.gp(error));
    }
    let mut base = descriptor.base();
    if cpu.efer & efer::LMA != 0 {
        base |= cpu.read_descriptor_high(selector, vector::GP)? << 32;
        if !is_canonical(base) {
            return Err(cpu.gp(error));
        }
    }
    if !descriptor.present() {
        return Err(cpu.raise_error(vector::NP, error));
    }
    Ok((descriptor, base))
}

/// SLDT and STR.
pub fn select_store(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let is_task = matches!(instruction.code(), Code::Str_rm16 | Code::Str_r32m16 | Code::Str_r64m16);
    op.sub = if is_task { TR } else { LDTR } as u8;
    Some(if instruction.op0_kind() == OpKind::Memory { store_memory } else { store_register })
}

fn store_register(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_protected()?;
    cpu.require_no_umip()?;
    let selector = cpu.segments[usize::from(op.sub)].selector;
    write_selector(cpu, op, selector);
    Ok(())
}

/// Writes a selector to the register in `reg0`, zero-extended.
pub fn write_selector(cpu: &mut Cpu, op: &Op, selector: u16) {
    match op.size {
        2 => cpu.regs.write(op.reg0, selector),
        4 => cpu.regs.write(op.reg0, u32::from(selector)),
        _ => cpu.regs.write(op.reg0, u64::from(selector)),
    }
}

fn store_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_protected()?;
    cpu.require_no_umip()?;
    let selector = cpu.segments[usize::from(op.sub)].selector;
    Mem::write(cpu, op, selector)
}
