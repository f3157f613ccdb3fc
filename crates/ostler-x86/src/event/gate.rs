//! Interrupt, trap and task gates of protected mode (SDM vol. 3, 6.12).

use crate::cpu::flags::bit;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{CS, DS, ES, FS, GS, SS, SegmentRegister, TR};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::{Cpu, Mode};
use crate::event::{Event, EventKind};
use crate::exec::far::descriptor::{Descriptor, is_null, kind, selector_error};
use crate::exec::far::stack::FarStack;
use crate::exec::far::task::TaskSource;

impl Cpu {
    /// Through the IDT of protected mode, from protected or virtual-8086 mode.
    pub(super) fn deliver_protected(&mut self, event: Event, return_rip: u64) -> Exec {
        let gate = self.protected_gate(event)?;
        if gate.kind() == kind::TASK_GATE {
            return self.deliver_to_task(event, gate.gate_selector(), return_rip);
        }
        let code = self.gate_target(gate.gate_selector())?;
        let rights = code.rights();
        let v86 = self.mode == Mode::Virtual8086;
        if v86 && (rights.conforming() || code.dpl() != 0) {
            return Err(self.gp(selector_error(gate.gate_selector())));
        }
        let cpl = if rights.conforming() { self.cpl } else { code.dpl() };
        let bytes = if gate.kind() & 8 != 0 { 4 } else { 2 };
        let (mut stack, segment) = if cpl < self.cpl {
            let segment = self.tss_stack(cpl)?;
            (FarStack::entering(self, segment.0, segment.1, cpl), Some(segment.0))
        } else {
            (FarStack::current(self), None)
        };
        if segment.is_some() {
            self.push_outer_stack(&mut stack, bytes, v86)?;
        }
        let flags = self.flags_for(event);
        for value in [flags, u64::from(self.segments[CS].selector), return_rip] {
            stack.push(self, bytes, value)?;
        }
        if let Some(error) = event.error {
            stack.push(self, bytes, u64::from(error))?;
        }
        let entry = gate.gate_offset();
        let selector = gate.gate_selector() & !3 | u16::from(cpl);
        let code = self.mark_accessed(code)?.segment(selector);
        if entry > u64::from(code.limit) {
            return Err(self.gp(0));
        }
        if let Some(segment) = segment {
            self.segments[SS] = segment;
        }
        if v86 {
            for index in [ES, DS, FS, GS] {
                self.segments[index] = SegmentRegister::null(0);
            }
        }
        self.regs.set(RSP, stack.pointer);
        self.enter_handler(code, entry, cpl, gate.kind() & 1 == 0);
        Ok(())
    }

    /// The last step of every delivery: CS, RIP, CPL and the flags.
    pub(super) fn enter_handler(&mut self, code: SegmentRegister, entry: u64, cpl: u8, clear_if: bool) {
        self.segments[CS] = code;
        self.rip = entry;
        self.cpl = cpl;
        self.flags.set(bit::TF | bit::NT | bit::RF | bit::VM, false);
        if clear_if {
            self.flags.set(bit::IF, false);
        }
        self.update_mode();
    }

    fn protected_gate(&mut self, event: Event) -> Result<Descriptor, Stop> {
        let offset = u64::from(event.vector) * 8;
        let error = event.gate_error();
        if offset + 7 > u64::from(self.idtr.limit) {
            return Err(self.gp(error));
        }
        let linear = self.wrap(self.idtr.base.wrapping_add(offset));
        let gate = Descriptor { bits: self.load_system::<u64>(linear)?, linear };
        let known = matches!(
            gate.kind(),
            kind::TASK_GATE | kind::INTERRUPT_GATE16 | kind::TRAP_GATE16 | kind::INTERRUPT_GATE32 | kind::TRAP_GATE32
        );
        if gate.rights().is_user() || !known || event.kind == EventKind::Software && gate.dpl() < self.cpl {
            return Err(self.gp(error));
        }
        if !gate.present() {
            return Err(self.raise_error(vector::NP, error));
        }
        Ok(gate)
    }

    /// The code segment a gate leads to.
    pub(super) fn gate_target(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let code = self.read_descriptor(selector, vector::GP)?;
        if !code.rights().is_code() || code.dpl() > self.cpl {
            return Err(self.gp(selector_error(selector)));
        }
        if !code.present() {
            return Err(self.raise_error(vector::NP, selector_error(selector)));
        }
        Ok(code)
    }

    /// SS and ESP for privilege level `cpl` from the current TSS.
    pub fn tss_stack(&mut self, cpl: u8) -> Result<(SegmentRegister, u64), Stop> {
        let task = self.segments[TR];
        let level = u64::from(cpl);
        let wide = task.rights.kind() & 8 != 0;
        let (offset, bytes) = if wide { (4 + 8 * level, 6) } else { (2 + 4 * level, 4) };
        if task.unusable || offset + bytes - 1 > u64::from(task.limit) {
            return Err(self.raise_error(vector::TS, selector_error(task.selector)));
        }
        let at = self.wrap(task.base.wrapping_add(offset));
        let (pointer, selector) = if wide {
            (u64::from(self.load_system::<u32>(at)?), self.load_system::<u16>(self.wrap(at.wrapping_add(4)))?)
        } else {
            (u64::from(self.load_system::<u16>(at)?), self.load_system::<u16>(self.wrap(at.wrapping_add(2)))?)
        };
        Ok((self.inner_stack_segment(selector, cpl)?, pointer))
    }

    /// Pushes SS and ESP of the interrupted level, before them the data segments of virtual-8086 mode.
    fn push_outer_stack(&mut self, stack: &mut FarStack, bytes: usize, v86: bool) -> Exec {
        if v86 {
            for index in [GS, FS, DS, ES] {
                stack.push(self, bytes, u64::from(self.segments[index].selector))?;
            }
        }
        stack.push(self, bytes, u64::from(self.segments[SS].selector))?;
        stack.push(self, bytes, self.regs.get(RSP))
    }

    /// A task gate: the event's error code goes to the new task's stack.
    fn deliver_to_task(&mut self, event: Event, selector: u16, return_rip: u64) -> Exec {
        let flags = self.flags_for(event);
        self.switch_task(selector, TaskSource::Event { error: event.error, flags }, return_rip)
    }
}
