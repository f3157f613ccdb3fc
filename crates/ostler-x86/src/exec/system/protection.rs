//! What software may ask about descriptors: LAR, LSL, VERR, VERW, ARPL.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::cpu::control::efer;
use crate::cpu::stop::{Exec, Stop};
use crate::decode::op::{Handler, Op};
use crate::exec::far::descriptor::{Descriptor, kind, rpl};
use crate::exec::operand::{Mem, Place, Source};
use crate::exec::system::tables::read_selector;

/// LAR, LSL, VERR, VERW: `op.sub` says whether the selector is in memory.
pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let two_operands = matches!(instruction.mnemonic(), Mnemonic::Lar | Mnemonic::Lsl);
    let selector = u32::from(two_operands);
    op.sub = u8::from(instruction.op_kind(selector) == OpKind::Memory);
    if !two_operands {
        op.reg1 = op.reg0;
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Lar => lar,
        Mnemonic::Lsl => lsl,
        Mnemonic::Verr => verr,
        Mnemonic::Verw => verw,
        _ => return None,
    })
}

/// The descriptor of the operand, if the privilege level may see it.
fn visible(cpu: &mut Cpu, op: &Op) -> Result<Option<Descriptor>, Stop> {
    cpu.require_protected()?;
    let selector = read_selector(cpu, op, op.reg1, op.sub != 0)?;
    let level = cpu.cpl.max(rpl(selector));
    let found = cpu.find_descriptor(selector)?;
    Ok(found.filter(|descriptor| descriptor.rights().conforming() || descriptor.dpl() >= level))
}

fn has_limit(cpu: &Cpu, kind: u8) -> bool {
    match kind {
        kind::LDT | kind::TSS32 | kind::TSS32_BUSY => true,
        kind::TSS16 | kind::TSS16_BUSY => cpu.efer & efer::LMA == 0,
        _ => false,
    }
}

fn lar(cpu: &mut Cpu, op: &Op) -> Exec {
    let found = visible(cpu, op)?.filter(|descriptor| {
        let gate = match descriptor.kind() {
            kind::CALL_GATE32 => true,
            kind::CALL_GATE16 | kind::TASK_GATE => cpu.efer & efer::LMA == 0,
            kind => has_limit(cpu, kind),
        };
        descriptor.rights().is_user() || gate
    });
    finish(cpu, op, found.map(|descriptor| descriptor.bits >> 32 & 0x00f0_ff00));
    Ok(())
}

fn lsl(cpu: &mut Cpu, op: &Op) -> Exec {
    let found =
        visible(cpu, op)?.filter(|descriptor| descriptor.rights().is_user() || has_limit(cpu, descriptor.kind()));
    finish(cpu, op, found.map(|descriptor| u64::from(descriptor.limit())));
    Ok(())
}

fn finish(cpu: &mut Cpu, op: &Op, value: Option<u64>) {
    cpu.flags.set_zf(value.is_some());
    let Some(value) = value else { return };
    match op.size {
        2 => cpu.regs.write(op.reg0, value as u16),
        4 => cpu.regs.write(op.reg0, value as u32),
        _ => cpu.regs.write(op.reg0, value),
    }
}

fn verr(cpu: &mut Cpu, op: &Op) -> Exec {
    let found = visible(cpu, op)?;
    cpu.flags.set_zf(found.is_some_and(|descriptor| descriptor.rights().readable()));
    Ok(())
}

fn verw(cpu: &mut Cpu, op: &Op) -> Exec {
    let found = visible(cpu, op)?;
    cpu.flags.set_zf(found.is_some_and(|descriptor| descriptor.rights().writable()));
    Ok(())
}

pub fn select_arpl(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(if instruction.op0_kind() == OpKind::Memory { arpl_memory } else { arpl_register })
}

/// The selector with its RPL raised to that of `wanted`, and whether it was raised.
fn adjusted(selector: u16, wanted: u16) -> (u16, bool) {
    if rpl(selector) < rpl(wanted) { (selector & !3 | wanted & 3, true) } else { (selector, false) }
}

fn arpl_register(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_protected()?;
    let (selector, raised) = adjusted(cpu.regs.read(op.reg0), cpu.regs.read(op.reg1));
    cpu.regs.write(op.reg0, selector);
    cpu.flags.set_zf(raised);
    Ok(())
}

fn arpl_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_protected()?;
    let wanted = cpu.regs.read::<u16>(op.reg1);
    // A fault of the read is reported as one, and a selector that stays is not written.
    let (selector, raised) = adjusted(Mem::read::<u16>(cpu, op)?, wanted);
    if raised {
        Mem::write(cpu, op, selector)?;
    }
    cpu.flags.set_zf(raised);
    Ok(())
}
