//! IRET (SDM vol. 2, IRET).

use iced_x86::{Code, Instruction};

use crate::cpu::control::efer;
use crate::cpu::flags::bit;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{CS, DS, ES, FS, GS, Rights, SS, SegmentRegister, TR};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::{Cpu, Mode, attention};
use crate::decode::op::{Handler, Op};
use crate::exec::far::FarPointer;
use crate::exec::far::descriptor::selector_error;
use crate::exec::far::jump::real_code;
use crate::exec::far::stack::FarStack;
use crate::exec::far::task::TaskSource;
use crate::exec::system::tlb::serialize;

pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = match instruction.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    Some(iret)
}

fn iret(cpu: &mut Cpu, op: &Op) -> Exec {
    match cpu.mode {
        Mode::Real => iret_real(cpu, op, bit::ALL & !(bit::VM | bit::VIF | bit::VIP))?,
        Mode::Virtual8086 if cpu.flags.iopl() == 3 => {
            iret_real(cpu, op, bit::ALL & !(bit::VM | bit::VIF | bit::VIP | bit::IOPL))?;
        }
        Mode::Virtual8086 => return Err(cpu.gp(0)),
        _ => iret_protected(cpu, op)?,
    }
    cpu.unmask_nmi();
    serialize();
    Err(Stop::Jump)
}

fn iret_real(cpu: &mut Cpu, op: &Op, mask: u64) -> Exec {
    let bytes = usize::from(op.size);
    let mut stack = FarStack::current(cpu);
    let offset = stack.pop(cpu, bytes)?;
    let to = FarPointer { offset, selector: stack.pop(cpu, bytes)? as u16 };
    let flags = stack.pop(cpu, bytes)?;
    let code = real_code(cpu, to)?;
    cpu.regs.set(RSP, stack.pointer);
    cpu.set_code(code, to.offset);
    cpu.write_flags(flags, if bytes == 2 { mask & 0xffff } else { mask });
    Ok(())
}

fn iret_protected(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.flags.has(bit::NT) {
        return return_from_task(cpu, op);
    }
    let bytes = usize::from(op.size);
    let mut stack = FarStack::current(cpu);
    let offset = stack.pop(cpu, bytes)?;
    let to = FarPointer { offset, selector: stack.pop(cpu, bytes)? as u16 };
    let flags = stack.pop(cpu, bytes)?;
    let legacy = cpu.efer & efer::LMA == 0;
    if flags & bit::VM != 0 && bytes == 4 && legacy && cpu.cpl == 0 {
        return return_to_v86(cpu, stack, to, flags);
    }
    let code = cpu.return_code(to)?;
    let mask = restorable_flags(cpu, bytes);
    if cpu.mode == Mode::Long || code.rpl() > cpu.cpl {
        let pointer = stack.pop(cpu, bytes)?;
        let selector = stack.pop(cpu, bytes)? as u16;
        let segment = cpu.return_stack_segment(selector, &code)?;
        cpu.return_outward(code, to.offset, segment, pointer, 0);
    } else {
        cpu.regs.set(RSP, stack.pointer);
        cpu.set_code(code, to.offset);
    }
    cpu.write_flags(flags, mask);
    Ok(())
}

/// The flags that IRET restores at the level it is executed at.
fn restorable_flags(cpu: &Cpu, bytes: usize) -> u64 {
    let mut mask = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID;
    if cpu.cpl <= cpu.flags.iopl() {
        mask |= bit::IF;
    }
    if cpu.cpl == 0 {
        mask |= bit::IOPL | bit::VIF | bit::VIP;
    }
    if bytes == 2 { mask & 0xffff } else { mask }
}

/// Enters virtual-8086 mode.
fn return_to_v86(cpu: &mut Cpu, mut stack: FarStack, to: FarPointer, flags: u64) -> Exec {
    let mut words = [0; 6];
    for word in &mut words {
        *word = stack.pop(cpu, 4)?;
    }
    let [pointer, ss, es, ds, fs, gs] = words;
    if to.offset > 0xffff {
        return Err(cpu.gp(0));
    }
    for (index, selector) in [(CS, u64::from(to.selector)), (SS, ss), (ES, es), (DS, ds), (FS, fs), (GS, gs)] {
        cpu.segments[index] = v86_segment(selector as u16);
    }
    cpu.cpl = 3;
    cpu.rip = to.offset;
    cpu.regs.set(RSP, pointer);
    cpu.write_flags(flags, bit::ALL);
    cpu.update_mode();
    Ok(())
}

/// A segment register as virtual-8086 mode has it.
pub fn v86_segment(selector: u16) -> SegmentRegister {
    SegmentRegister { rights: Rights(0xf3), ..SegmentRegister::real(selector) }
}

fn return_from_task(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.efer & efer::LMA != 0 {
        return Err(cpu.gp(0));
    }
    let task = cpu.segments[TR];
    let link = cpu.load_system::<u16>(cpu.wrap(task.base))?;
    if link & 4 != 0 {
        return Err(cpu.raise_error(vector::TS, selector_error(link)));
    }
    cpu.switch_task(link, TaskSource::Return, cpu.next_rip(op))
}

impl Cpu {
    /// Takes the bits `mask` of RFLAGS from `value`, and notes what follows from them.
    pub fn write_flags(&mut self, value: u64, mask: u64) {
        let before = self.flags.to_u64();
        let after = before & !mask | value & mask;
        self.flags.set_u64(after);
        if !self.debug.has_instruction_breakpoints() {
            // RF only matters to those.
            self.flags.set(bit::RF, false);
        }
        let changed = before ^ after;
        if changed & bit::AC != 0 {
            self.update_privilege();
        }
        if after & bit::IF != 0 {
            self.interrupts_enabled();
        }
        if (before | after) & bit::TF != 0 || after & bit::RF != 0 {
            self.update_step();
        }
    }

    fn unmask_nmi(&mut self) {
        self.events.nmi_masked = false;
        if self.events.nmi_pending {
            self.attention |= attention::INTERRUPT;
        }
    }
}
