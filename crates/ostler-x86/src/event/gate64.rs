//! Interrupt and trap gates of long mode (SDM vol. 3, 6.14).

use crate::cpu::Cpu;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{CS, Rights, SS, SegmentRegister, TR};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::event::{Event, EventKind};
use crate::exec::far::descriptor::{Descriptor, kind, selector_error};
use crate::exec::far::stack::FarStack;
use crate::mmu::access::is_canonical;

/// Offset of RSP0 and of IST1 in a 64-bit TSS.
const TSS_RSP0: u64 = 4;
const TSS_IST1: u64 = 36;

struct LongGate {
    low: Descriptor,
    entry: u64,
    /// 1..=7, or 0 for none.
    stack_table: u64,
}

impl Cpu {
    /// Through the IDT of long mode, from 64-bit or compatibility mode.
    pub(super) fn deliver_long(&mut self, event: Event, return_rip: u64) -> Exec {
        let gate = self.long_gate(event)?;
        let selector = gate.low.gate_selector();
        let code = self.gate_target(selector)?;
        let rights = code.rights();
        if !rights.long() || rights.big() {
            return Err(self.gp(selector_error(selector)));
        }
        let cpl = if rights.conforming() { self.cpl } else { code.dpl() };
        let top = self.handler_stack(gate.stack_table, cpl)?;
        let mut stack = FarStack::long(self, top & !15, cpl);
        let frame = [
            u64::from(self.segments[SS].selector),
            self.regs.get(RSP),
            self.flags_for(event),
            u64::from(self.segments[CS].selector),
            return_rip,
        ];
        for value in frame {
            stack.push(self, 8, value)?;
        }
        if let Some(error) = event.error {
            stack.push(self, 8, u64::from(error))?;
        }
        if !is_canonical(gate.entry) {
            return Err(self.gp(0));
        }
        let code = self.mark_accessed(code)?.segment(selector & !3 | u16::from(cpl));
        if cpl < self.cpl {
            self.segments[SS] = null_stack(cpl);
        }
        self.regs.set(RSP, stack.pointer);
        self.enter_handler(code, gate.entry, cpl, gate.low.kind() & 1 == 0);
        Ok(())
    }

    fn long_gate(&mut self, event: Event) -> Result<LongGate, Stop> {
        let offset = u64::from(event.vector) * 16;
        let error = event.gate_error();
        if offset + 15 > u64::from(self.idtr.limit) {
            return Err(self.gp(error));
        }
        let linear = self.idtr.base.wrapping_add(offset);
        let low = Descriptor { bits: self.load_system::<u64>(linear)?, linear };
        let high = self.load_system::<u64>(linear.wrapping_add(8))?;
        let known = matches!(low.kind(), kind::INTERRUPT_GATE32 | kind::TRAP_GATE32);
        if low.rights().is_user() || !known || event.kind == EventKind::Software && low.dpl() < self.cpl {
            return Err(self.gp(error));
        }
        if !low.present() {
            return Err(self.raise_error(vector::NP, error));
        }
        let entry = low.gate_offset() | high << 32;
        Ok(LongGate { low, entry, stack_table: low.bits >> 32 & 7 })
    }

    /// RSP to push the frame to.
    fn handler_stack(&mut self, stack_table: u64, cpl: u8) -> Result<u64, Stop> {
        if stack_table != 0 {
            self.long_tss_entry(TSS_IST1 + 8 * (stack_table - 1))
        } else if cpl < self.cpl {
            self.long_tss_entry(TSS_RSP0 + 8 * u64::from(cpl))
        } else {
            Ok(self.regs.get(RSP))
        }
    }

    /// RSP for privilege level `cpl` from the 64-bit TSS.
    pub fn long_tss_stack(&mut self, cpl: u8) -> Result<u64, Stop> {
        self.long_tss_entry(TSS_RSP0 + 8 * u64::from(cpl))
    }

    fn long_tss_entry(&mut self, offset: u64) -> Result<u64, Stop> {
        let task = self.segments[TR];
        if task.unusable || offset + 7 > u64::from(task.limit) {
            return Err(self.raise_error(vector::TS, selector_error(task.selector)));
        }
        self.load_system(task.base.wrapping_add(offset))
    }
}

/// SS after a change to inner level `cpl` in long mode: a null selector whose RPL is `cpl`.
pub fn null_stack(cpl: u8) -> SegmentRegister {
    SegmentRegister { rights: Rights(u16::from(cpl) << 5), ..SegmentRegister::null(u16::from(cpl)) }
}
