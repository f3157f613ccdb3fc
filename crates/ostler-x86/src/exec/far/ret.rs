//! Far RET, and the return to an outer level that it shares with IRET.

use iced_x86::{Code, Instruction};

use crate::cpu::control::efer;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{DS, ES, FS, GS, SS, SegmentRegister};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::{Cpu, Mode};
use crate::decode::op::{Handler, Op};
use crate::exec::far::FarPointer;
use crate::exec::far::descriptor::{is_null, rpl, selector_error};
use crate::exec::far::jump::real_code;
use crate::exec::far::stack::FarStack;

pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = match instruction.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    Some(ret_far)
}

fn ret_far(cpu: &mut Cpu, op: &Op) -> Exec {
    let bytes = usize::from(op.size);
    let release = op.imm & 0xffff;
    let mut stack = FarStack::current(cpu);
    let offset = stack.pop(cpu, bytes)?;
    let to = FarPointer { offset, selector: stack.pop(cpu, bytes)? as u16 };
    if cpu.is_real_or_v86() {
        let code = real_code(cpu, to)?;
        stack.skip(release);
        cpu.regs.set(RSP, stack.pointer);
        cpu.set_code(code, to.offset);
        return Err(Stop::Jump);
    }
    let code = cpu.return_code(to)?;
    stack.skip(release);
    if rpl(to.selector) == cpu.cpl {
        cpu.regs.set(RSP, stack.pointer);
        cpu.set_code(code, to.offset);
        return Err(Stop::Jump);
    }
    let pointer = stack.pop(cpu, bytes)?;
    let selector = stack.pop(cpu, bytes)? as u16;
    let segment = cpu.return_stack_segment(selector, &code)?;
    cpu.return_outward(code, to.offset, segment, pointer, release);
    Err(Stop::Jump)
}

impl Cpu {
    /// CS that RET or IRET returns to.
    pub fn return_code(&mut self, to: FarPointer) -> Result<SegmentRegister, Stop> {
        if is_null(to.selector) {
            return Err(self.gp(0));
        }
        let error = selector_error(to.selector);
        let level = rpl(to.selector);
        let descriptor = self.read_descriptor(to.selector, vector::GP)?;
        let rights = descriptor.rights();
        let allowed = if rights.conforming() { descriptor.dpl() <= level } else { descriptor.dpl() == level };
        if level < self.cpl || !rights.is_code() || !allowed {
            return Err(self.gp(error));
        }
        self.loaded_code(descriptor, to, level)
    }

    /// SS of the level that `code` returns to. Null is a stack for 64-bit code of an inner level.
    pub fn return_stack_segment(&mut self, selector: u16, code: &SegmentRegister) -> Result<SegmentRegister, Stop> {
        let level = code.rpl();
        if is_null(selector) {
            let long = self.efer & efer::LMA != 0 && code.rights.long();
            if long && level < 3 && rpl(selector) == level {
                return Ok(crate::event::null_stack(level));
            }
            return Err(self.gp(0));
        }
        self.checked_segment(SS, selector, level)
    }

    /// Returns to the level of `code`, with its stack, and takes away the data segments it may not have.
    pub fn return_outward(
        &mut self,
        code: SegmentRegister,
        rip: u64,
        stack: SegmentRegister,
        pointer: u64,
        release: u64,
    ) {
        let outward = code.rpl() > self.cpl;
        self.cpl = code.rpl();
        self.segments[SS] = stack;
        self.set_code(code, rip);
        let mask = self.stack_mask;
        // A 16-bit stack leaves the upper part of ESP alone (and leaks it, as processors do).
        let kept = if mask == 0xffff { self.regs.get(RSP) & 0xffff_0000 } else { 0 };
        let pointer = if mask == 0xffff { kept | pointer & 0xffff } else { pointer & mask };
        self.regs.set(RSP, pointer & !mask | pointer.wrapping_add(release) & mask);
        if outward && self.mode != Mode::Virtual8086 {
            self.drop_inner_segments();
        }
    }

    /// Nulls the data segments that the new level may not use (SDM vol. 3, 5.8.6).
    fn drop_inner_segments(&mut self) {
        for index in [ES, DS, FS, GS] {
            let register = &self.segments[index];
            if !register.unusable && !register.rights.conforming() && register.rights.dpl() < self.cpl {
                self.segments[index] = SegmentRegister::null(0);
                self.segment_base[index] = 0;
            }
        }
    }
}
