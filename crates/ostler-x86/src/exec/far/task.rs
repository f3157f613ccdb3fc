//! Hardware task switches (SDM vol. 3, 8.3).

use crate::cpu::control::cr0;
use crate::cpu::flags::bit;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{CS, LDTR, SS, SegmentRegister, TR};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::{Cpu, attention};
use crate::exec::far::descriptor::{Descriptor, is_null, kind, rpl, selector_error};
use crate::exec::far::iret::v86_segment;
use crate::exec::far::stack::FarStack;
use crate::exec::far::tss::{Layout, SEGMENT_ORDER, TaskState};

/// Bit 1 of the type of a TSS descriptor.
const BUSY: u8 = 2;

/// What switches tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSource {
    Jump,
    Call,
    /// IRET with NT set.
    Return,
    /// A task gate in the IDT; `flags` is the RFLAGS image of the interrupted task.
    Event {
        error: Option<u32>,
        flags: u64,
    },
}

impl TaskSource {
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }
}

impl Cpu {
    /// Switches to the task of the TSS at `selector`; the old task goes on at `return_rip` some day.
    /// Faults before the switch leave everything as it was; those after it are the new task's, and
    /// are delivered here.
    pub fn switch_task(&mut self, selector: u16, source: TaskSource, return_rip: u64) -> Exec {
        let target = self.available_task(selector, source)?;
        let base = target.base();
        let layout = Layout::of_kind(target.kind());
        let state = layout.load(self, base)?;
        self.leave_task(source, return_rip)?;
        if source.nests() {
            self.store_system::<u16>(self.wrap(base), self.segments[TR].selector)?;
        }
        if source != TaskSource::Return {
            self.change_descriptor_type(target.linear, |kind| kind | BUSY)?;
        }
        let mut task = target.segment(selector);
        task.rights.0 |= u16::from(BUSY);
        self.segments[TR] = task;
        self.enter_task(&state, layout, source.nests());
        if let Err(stop) = self.finish_task(&state, layout, source) {
            debug_assert!(stop == Stop::Fault || stop == Stop::Exit);
            // With the segments that were loaded so far.
            self.update_mode();
            // The fault's RIP is the new task's first instruction. A triple fault is noticed by its
            // attention bit.
            let _shutdown = self.deliver_fault();
        }
        Ok(())
    }

    /// The descriptor of a TSS that may be switched to.
    fn available_task(&mut self, selector: u16, source: TaskSource) -> Result<Descriptor, Stop> {
        let wrong = match source {
            TaskSource::Return | TaskSource::Event { .. } => vector::TS,
            TaskSource::Jump | TaskSource::Call => vector::GP,
        };
        let error = selector_error(selector);
        if is_null(selector) || selector & 4 != 0 {
            return Err(self.raise_error(wrong, error));
        }
        let target = self.read_descriptor(selector, wrong)?;
        let is_task = matches!(target.kind() & !BUSY, kind::TSS16 | kind::TSS32) && !target.rights().is_user();
        let busy = target.kind() & BUSY != 0;
        if !is_task || busy != (source == TaskSource::Return) {
            return Err(self.raise_error(wrong, error));
        }
        if !target.present() {
            return Err(self.raise_error(vector::NP, error));
        }
        if target.limit() < Layout::of_kind(target.kind()).least_limit {
            return Err(self.raise_error(vector::TS, error));
        }
        Ok(target)
    }

    /// Saves the running task, and frees its TSS unless the new task is nested in it.
    fn leave_task(&mut self, source: TaskSource, return_rip: u64) -> Exec {
        let old = self.segments[TR];
        let flags = match source {
            TaskSource::Return => self.flags.to_u64() & !bit::NT,
            TaskSource::Event { flags, .. } => flags,
            TaskSource::Jump | TaskSource::Call => self.flags.to_u64(),
        };
        let mut state = TaskState { rip: return_rip, flags, ..TaskState::default() };
        for (index, register) in state.regs.iter_mut().enumerate() {
            *register = self.regs.get(index);
        }
        for (selector, index) in state.selectors.iter_mut().zip(SEGMENT_ORDER) {
            *selector = self.segments[index].selector;
        }
        Layout::of_kind(old.rights.kind()).save(self, old.base, &state)?;
        if !source.nests() {
            let descriptor = self.read_descriptor(old.selector, vector::TS)?;
            self.change_descriptor_type(descriptor.linear, |kind| kind & !BUSY)?;
        }
        Ok(())
    }

    /// Loads the registers of the new task, segment registers by their selectors only.
    fn enter_task(&mut self, state: &TaskState, layout: Layout, nested: bool) {
        self.cr0 |= cr0::TS;
        // Local breakpoints are a task's own.
        self.dr7 &= !0x155;
        self.update_breakpoints();
        let narrow = layout.bytes == 2;
        for (index, value) in state.regs.iter().enumerate() {
            let upper = if narrow { self.regs.get(index) & 0xffff_0000 } else { 0 };
            self.regs.set(index, upper | value);
        }
        self.rip = state.rip;
        let flags = if nested { state.flags | bit::NT } else { state.flags };
        self.flags.set_u64(flags);
        self.cpl = if flags & bit::VM != 0 { 3 } else { rpl(state.selectors[1]) };
        for (selector, index) in state.selectors.iter().zip(SEGMENT_ORDER) {
            self.segments[index] =
                if flags & bit::VM != 0 { v86_segment(*selector) } else { SegmentRegister::null(*selector) };
        }
        self.segments[LDTR] = SegmentRegister::null(state.ldt);
        self.attention |= attention::INTERRUPT;
        self.update_mode();
        self.update_step();
    }

    /// Loads what may fault in the new task: page tables, LDT, segments; pushes the error code.
    fn finish_task(&mut self, state: &TaskState, layout: Layout, source: TaskSource) -> Exec {
        if layout.bytes == 4 && self.cr0 & cr0::PG != 0 {
            self.cr3 = state.cr3;
            self.flush_tlb();
            if self.uses_pdptes() && !self.load_pdptes(state.cr3) {
                return Err(self.raise_error(vector::TS, 0));
            }
        }
        self.load_task_ldt(state.ldt)?;
        if !self.flags.has(bit::VM) {
            self.load_task_code(state.selectors[1])?;
            for index in [SS, SEGMENT_ORDER[0], SEGMENT_ORDER[3], SEGMENT_ORDER[4], SEGMENT_ORDER[5]] {
                let selector = self.segments[index].selector;
                let loaded = self.checked_segment(index, selector, self.cpl);
                self.segments[index] = loaded.map_err(|stop| self.as_task_fault(stop))?;
            }
        }
        self.update_mode();
        if let TaskSource::Event { error: Some(error), .. } = source {
            let mut stack = FarStack::current(self);
            stack.push(self, layout.bytes as usize, u64::from(error))?;
            self.regs.set(RSP, stack.pointer);
        }
        if self.rip > u64::from(self.segments[CS].limit) {
            return Err(self.gp(0));
        }
        if state.debug_trap {
            self.task_trap();
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16) -> Exec {
        if is_null(selector) {
            return Ok(());
        }
        let error = selector_error(selector);
        let found = if selector & 4 == 0 { self.find_descriptor(selector)? } else { None };
        match found {
            Some(ldt) if ldt.is_system(kind::LDT) && ldt.present() => self.segments[LDTR] = ldt.segment(selector),
            _ => return Err(self.raise_error(vector::TS, error)),
        }
        Ok(())
    }

    fn load_task_code(&mut self, selector: u16) -> Exec {
        let error = selector_error(selector);
        let Some(code) = self.find_descriptor(selector)? else { return Err(self.raise_error(vector::TS, error)) };
        let rights = code.rights();
        let allowed = if rights.conforming() { code.dpl() <= rpl(selector) } else { code.dpl() == rpl(selector) };
        if !rights.is_code() || !allowed {
            return Err(self.raise_error(vector::TS, error));
        }
        if !code.present() {
            return Err(self.raise_error(vector::NP, error));
        }
        self.segments[CS] = self.mark_accessed(code)?.segment(selector);
        Ok(())
    }

    /// What would be #GP of a MOV to a segment register is #TS of a task switch.
    fn as_task_fault(&mut self, stop: Stop) -> Stop {
        if stop == Stop::Fault && self.fault.vector == vector::GP {
            self.fault.vector = vector::TS;
        }
        stop
    }
}
