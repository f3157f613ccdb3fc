//! Segment registers and their bases.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::cpu::control::cr4;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{DS, ES, FS, GS, SS};
use crate::cpu::stop::Exec;
use crate::cpu::{Cpu, Mode};
use crate::decode::op::{Handler, Op};
use crate::exec::far::read_far_pointer;
use crate::exec::operand::{Mem, Place, Source};
use crate::exec::system::tables::write_selector;
use crate::mmu::access::is_canonical;

/// MOV to and from a segment register.
pub fn select_move(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let memory = |index| instruction.op_kind(index) == OpKind::Memory;
    if instruction.op0_register().is_segment_register() {
        // MOV to CS does not exist.
        let known = matches!(usize::from(op.reg0), ES | SS | DS | FS | GS);
        return known.then_some(if memory(1) { load_memory as Handler } else { load_register });
    }
    op.sub = op.reg1;
    Some(if memory(0) { store_memory } else { store_register })
}

fn load_register(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = cpu.regs.read(op.reg1);
    load(cpu, op, selector)
}

fn load_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = Mem::read::<u16>(cpu, op)?;
    load(cpu, op, selector)
}

fn load(cpu: &mut Cpu, op: &Op, selector: u16) -> Exec {
    let index = usize::from(op.reg0);
    cpu.load_segment(index, selector)?;
    if index == SS {
        cpu.shadow_next();
    }
    Ok(())
}

fn store_register(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = cpu.segments[usize::from(op.sub)].selector;
    write_selector(cpu, op, selector);
    Ok(())
}

fn store_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = cpu.segments[usize::from(op.sub)].selector;
    Mem::write(cpu, op, selector)
}

/// PUSH and POP of a segment register; `op.size` is the width of the stack slot.
pub fn select_stack(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    if instruction.mnemonic() == Mnemonic::Push {
        return Some(push);
    }
    (instruction.op0_register() != Register::CS).then_some(pop as Handler)
}

fn push(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = cpu.segments[usize::from(op.reg0)].selector;
    cpu.push_value(op.size, u64::from(selector))
}

fn pop(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = cpu.peek::<u16>(0)?;
    // With the width the stack has before POP SS changes it.
    let before = cpu.regs.get(RSP);
    cpu.move_stack_pointer(u64::from(op.size));
    let loaded = load(cpu, op, selector);
    if loaded.is_err() {
        cpu.regs.set(RSP, before);
    }
    loaded
}

/// LDS, LES, LFS, LGS, LSS.
pub fn select_far_load(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = instruction.op0_register().size() as u8;
    op.sub = match instruction.mnemonic() {
        Mnemonic::Lds => DS,
        Mnemonic::Les => ES,
        Mnemonic::Lfs => FS,
        Mnemonic::Lgs => GS,
        _ => SS,
    } as u8;
    Some(load_far)
}

fn load_far(cpu: &mut Cpu, op: &Op) -> Exec {
    let pointer = read_far_pointer(cpu, op)?;
    let index = usize::from(op.sub);
    cpu.load_segment(index, pointer.selector)?;
    match op.size {
        2 => cpu.regs.write(op.reg0, pointer.offset as u16),
        4 => cpu.regs.write(op.reg0, pointer.offset as u32),
        _ => cpu.regs.write(op.reg0, pointer.offset),
    }
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub fn select_base(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (segment, handler): (usize, Handler) = match instruction.mnemonic() {
        Mnemonic::Rdfsbase => (FS, read_base),
        Mnemonic::Rdgsbase => (GS, read_base),
        Mnemonic::Wrfsbase => (FS, write_base),
        _ => (GS, write_base),
    };
    op.sub = segment as u8;
    Some(handler)
}

fn require_fsgsbase(cpu: &mut Cpu) -> Exec {
    if cpu.mode != Mode::Long || cpu.cr4 & cr4::FSGSBASE == 0 { Err(cpu.undefined()) } else { Ok(()) }
}

fn read_base(cpu: &mut Cpu, op: &Op) -> Exec {
    require_fsgsbase(cpu)?;
    let base = cpu.segments[usize::from(op.sub)].base;
    if op.size == 8 {
        cpu.regs.write(op.reg0, base);
    } else {
        cpu.regs.write(op.reg0, base as u32);
    }
    Ok(())
}

fn write_base(cpu: &mut Cpu, op: &Op) -> Exec {
    require_fsgsbase(cpu)?;
    let base = if op.size == 8 { cpu.regs.read(op.reg0) } else { u64::from(cpu.regs.read::<u32>(op.reg0)) };
    if !is_canonical(base) {
        return Err(cpu.gp(0));
    }
    cpu.set_segment_base(usize::from(op.sub), base);
    Ok(())
}

pub fn swapgs(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.mode != Mode::Long {
        return Err(cpu.undefined());
    }
    cpu.require_cpl0()?;
    let base = cpu.segments[GS].base;
    cpu.set_segment_base(GS, cpu.msrs.kernel_gs_base);
    cpu.msrs.kernel_gs_base = base;
    Ok(())
}

impl Cpu {
    /// Sets the base of FS or GS, both where it is kept and where it is used.
    pub fn set_segment_base(&mut self, segment: usize, base: u64) {
        self.segments[segment].base = base;
        self.segment_base[segment] = base;
    }
}
