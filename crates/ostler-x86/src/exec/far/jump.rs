//! Far JMP, and what it shares with far CALL.

use crate::cpu::Cpu;
use crate::cpu::control::efer;
use crate::cpu::segment::{CODE_RIGHTS, CS, SegmentRegister};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::decode::op::Op;
use crate::exec::far::descriptor::{Descriptor, is_null, kind, rpl, selector_error};
use crate::exec::far::task::TaskSource;
use crate::exec::far::{FarPointer, direct, read_far_pointer};
use crate::mmu::access::is_canonical;

/// What a far pointer turned out to name.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Code(Descriptor),
    CallGate(Descriptor),
    /// A TSS, or a task gate's: its selector.
    Task(u16),
}

pub fn jump_direct(cpu: &mut Cpu, op: &Op) -> Exec {
    jump(cpu, op, direct(op))
}

pub fn jump_indirect(cpu: &mut Cpu, op: &Op) -> Exec {
    let pointer = read_far_pointer(cpu, op)?;
    jump(cpu, op, pointer)
}

fn jump(cpu: &mut Cpu, op: &Op, to: FarPointer) -> Exec {
    if cpu.is_real_or_v86() {
        let code = real_code(cpu, to)?;
        cpu.set_code(code, to.offset);
        return Err(Stop::Jump);
    }
    match cpu.far_target(to.selector)? {
        Target::Code(descriptor) => {
            let code = cpu.direct_code(descriptor, to)?;
            cpu.set_code(code, to.offset);
        }
        Target::CallGate(gate) => {
            let entry = cpu.call_gate_entry(gate, to.selector)?;
            let code = cpu.gate_code(&entry, cpu.cpl, false)?;
            cpu.set_code(code, entry.offset);
        }
        Target::Task(selector) => cpu.switch_task(selector, TaskSource::Jump, cpu.next_rip(op))?,
    }
    Err(Stop::Jump)
}

/// CS after a far transfer in real or virtual-8086 mode.
pub fn real_code(cpu: &mut Cpu, to: FarPointer) -> Result<SegmentRegister, Stop> {
    let before = cpu.segments[CS];
    if to.offset > u64::from(before.limit) {
        return Err(cpu.gp(0));
    }
    let rights = if before.rights.is_user() { before.rights } else { CODE_RIGHTS };
    Ok(SegmentRegister { limit: before.limit, rights, ..SegmentRegister::real(to.selector) })
}

/// The gate's target, with the gate itself checked.
#[derive(Clone, Copy, Debug)]
pub struct GateEntry {
    pub code: Descriptor,
    pub selector: u16,
    pub offset: u64,
}

impl Cpu {
    /// What JMP and CALL find at `selector`; system descriptors are checked for privilege and presence.
    pub fn far_target(&mut self, selector: u16) -> Result<Target, Stop> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let descriptor = self.read_descriptor(selector, vector::GP)?;
        if descriptor.rights().is_user() {
            return Ok(Target::Code(descriptor));
        }
        let long = self.efer & efer::LMA != 0;
        let error = selector_error(selector);
        let target = match descriptor.kind() {
            kind::CALL_GATE32 => Target::CallGate(descriptor),
            kind::CALL_GATE16 if !long => Target::CallGate(descriptor),
            kind::TASK_GATE if !long => Target::Task(descriptor.gate_selector()),
            kind::TSS16 | kind::TSS32 if !long => Target::Task(selector),
            _ => return Err(self.gp(error)),
        };
        if descriptor.dpl() < self.cpl.max(rpl(selector)) {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_error(vector::NP, error));
        }
        Ok(target)
    }

    /// CS after JMP or CALL straight to a code segment; the offset is checked too.
    pub fn direct_code(&mut self, descriptor: Descriptor, to: FarPointer) -> Result<SegmentRegister, Stop> {
        let (rights, error) = (descriptor.rights(), selector_error(to.selector));
        let allowed = if rights.conforming() {
            descriptor.dpl() <= self.cpl
        } else {
            rpl(to.selector) <= self.cpl && descriptor.dpl() == self.cpl
        };
        if !rights.is_code() || !allowed {
            return Err(self.gp(error));
        }
        self.loaded_code(descriptor, to, self.cpl)
    }

    /// CS from a code descriptor whose privilege was checked, entered at `to.offset` with level `cpl`.
    pub fn loaded_code(&mut self, descriptor: Descriptor, to: FarPointer, cpl: u8) -> Result<SegmentRegister, Stop> {
        let (rights, error) = (descriptor.rights(), selector_error(to.selector));
        let long = self.efer & efer::LMA != 0 && rights.long();
        if long && rights.big() {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_error(vector::NP, error));
        }
        let inside = if long { is_canonical(to.offset) } else { to.offset <= u64::from(descriptor.limit()) };
        if !inside {
            return Err(self.gp(0));
        }
        Ok(self.mark_accessed(descriptor)?.segment(to.selector & !3 | u16::from(cpl)))
    }

    /// Where a call gate leads; in long mode, gates have 16 bytes and lead to 64-bit code.
    pub fn call_gate_entry(&mut self, gate: Descriptor, gate_selector: u16) -> Result<GateEntry, Stop> {
        let long = self.efer & efer::LMA != 0;
        let mut offset = gate.gate_offset();
        if long {
            let high = self.read_descriptor_high(gate_selector, vector::GP)?;
            if high >> 40 & 31 != 0 {
                return Err(self.gp(selector_error(gate_selector)));
            }
            offset |= high << 32;
        }
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let code = self.read_descriptor(selector, vector::GP)?;
        let rights = code.rights();
        let width_fits = !long || rights.long() && !rights.big();
        if !rights.is_code() || code.dpl() > self.cpl || !width_fits {
            return Err(self.gp(selector_error(selector)));
        }
        Ok(GateEntry { code, selector, offset })
    }

    /// CS behind a call gate, entered with level `cpl`. Only CALL may go to an inner level.
    pub fn gate_code(&mut self, entry: &GateEntry, cpl: u8, call: bool) -> Result<SegmentRegister, Stop> {
        let rights = entry.code.rights();
        if !call && !rights.conforming() && entry.code.dpl() != self.cpl {
            return Err(self.gp(selector_error(entry.selector)));
        }
        let to = FarPointer { selector: entry.selector, offset: entry.offset };
        self.loaded_code(entry.code, to, cpl)
    }
}
