//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, as Intel's processors have them.

use iced_x86::{Code, Instruction};

use crate::cpu::control::{cr0, efer};
use crate::cpu::flags::bit;
use crate::cpu::regs::{RCX, RDX, RSP};
use crate::cpu::segment::{Rights, SS, SegmentRegister};
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::{Cpu, Mode};
use crate::decode::op::{Handler, Op};
use crate::mmu::access::is_canonical;

const R11: usize = 11;
/// Flags that SYSRET can restore.
const SYSRET_FLAGS: u64 = 0x003c_7fd7;

/// A flat segment with the given level; the low byte of `kind` is the type with S and P.
fn flat(selector: u16, cpl: u8, kind: u16) -> SegmentRegister {
    SegmentRegister {
        selector: selector & !3 | u16::from(cpl),
        base: 0,
        limit: u32::MAX,
        rights: Rights(kind | u16::from(cpl) << 5 | Rights::GRANULAR),
        unusable: false,
    }
}

fn code64(selector: u16, cpl: u8) -> SegmentRegister {
    flat(selector, cpl, 0x9b | Rights::LONG)
}

fn code32(selector: u16, cpl: u8) -> SegmentRegister {
    flat(selector, cpl, 0x9b | Rights::DB)
}

fn data(selector: u16, cpl: u8) -> SegmentRegister {
    flat(selector, cpl, 0x93 | Rights::DB)
}

impl Cpu {
    fn enter_flat(&mut self, code: SegmentRegister, stack: SegmentRegister, rip: u64) {
        self.cpl = code.rpl();
        self.segments[SS] = stack;
        self.set_code(code, rip);
    }
}

pub fn syscall(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.mode != Mode::Long || cpu.efer & efer::SCE == 0 {
        return Err(cpu.undefined());
    }
    let flags = cpu.flags.to_u64() & !bit::RF;
    let next = cpu.next_rip(op);
    cpu.regs.set(RCX, next);
    cpu.regs.set(R11, flags);
    let selector = (cpu.msrs.star >> 32) as u16 & 0xfffc;
    let entry = cpu.msrs.lstar;
    cpu.write_flags(flags & !cpu.msrs.fmask, bit::ALL);
    cpu.enter_flat(code64(selector, 0), data(selector.wrapping_add(8), 0), entry);
    Err(Stop::Jump)
}

pub fn select_sysret(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(if instruction.code() == Code::Sysretq { sysret64 } else { sysret32 })
}

fn sysret64(cpu: &mut Cpu, _: &Op) -> Exec {
    sysret(cpu, true)
}

fn sysret32(cpu: &mut Cpu, _: &Op) -> Exec {
    sysret(cpu, false)
}

fn sysret(cpu: &mut Cpu, to_64: bool) -> Exec {
    if cpu.mode != Mode::Long || cpu.efer & efer::SCE == 0 {
        return Err(cpu.undefined());
    }
    cpu.require_cpl0()?;
    let target = cpu.regs.get(RCX);
    if to_64 && !is_canonical(target) {
        return Err(cpu.gp(0));
    }
    let selector = (cpu.msrs.star >> 48) as u16;
    let flags = cpu.regs.get(R11);
    let stack = data(selector.wrapping_add(8), 3);
    if to_64 {
        cpu.enter_flat(code64(selector.wrapping_add(16), 3), stack, target);
    } else {
        cpu.enter_flat(code32(selector, 3), stack, target & 0xffff_ffff);
    }
    cpu.write_flags(flags & SYSRET_FLAGS, bit::ALL);
    Err(Stop::Jump)
}

pub fn sysenter(cpu: &mut Cpu, _: &Op) -> Exec {
    let selector = cpu.msrs.sysenter_cs as u16 & 0xfffc;
    if cpu.cr0 & cr0::PE == 0 || selector == 0 {
        return Err(cpu.gp(0));
    }
    let (entry, stack) = (cpu.msrs.sysenter_eip, cpu.msrs.sysenter_esp);
    cpu.write_flags(0, bit::VM | bit::IF | bit::RF);
    if cpu.efer & efer::LMA != 0 {
        cpu.enter_flat(code64(selector, 0), data(selector.wrapping_add(8), 0), entry);
        cpu.regs.set(RSP, stack);
    } else {
        cpu.enter_flat(code32(selector, 0), data(selector.wrapping_add(8), 0), entry & 0xffff_ffff);
        cpu.regs.set(RSP, stack & 0xffff_ffff);
    }
    Err(Stop::Jump)
}

pub fn select_sysexit(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(if instruction.code() == Code::Sysexitq { sysexit64 } else { sysexit32 })
}

fn sysexit64(cpu: &mut Cpu, _: &Op) -> Exec {
    let selector = sysexit_selector(cpu)?;
    let (target, stack) = (cpu.regs.get(RDX), cpu.regs.get(RCX));
    if !is_canonical(target) || !is_canonical(stack) {
        return Err(cpu.gp(0));
    }
    cpu.enter_flat(code64(selector.wrapping_add(32), 3), data(selector.wrapping_add(40), 3), target);
    cpu.regs.set(RSP, stack);
    Err(Stop::Jump)
}

fn sysexit32(cpu: &mut Cpu, _: &Op) -> Exec {
    let selector = sysexit_selector(cpu)?;
    let (target, stack) = (cpu.regs.get(RDX), cpu.regs.get(RCX));
    cpu.enter_flat(code32(selector.wrapping_add(16), 3), data(selector.wrapping_add(24), 3), target & 0xffff_ffff);
    cpu.regs.set(RSP, stack & 0xffff_ffff);
    Err(Stop::Jump)
}

fn sysexit_selector(cpu: &mut Cpu) -> Result<u16, Stop> {
    let selector = cpu.msrs.sysenter_cs as u16 & 0xfffc;
    if cpu.cr0 & cr0::PE == 0 || cpu.cpl != 0 || selector == 0 {
        return Err(cpu.gp(0));
    }
    Ok(selector)
}
