//! MONITOR and MWAIT: waiting for a write to a line of memory (SDM vol. 3, 9.10.4).
//!
//! A vCPU in MWAIT sleeps as one in HLT does. The log of memory wakes it when another vCPU or a device writes the line;
//! so does everything else that wants its attention, which the architecture allows. All hints are taken for C1.

use std::sync::Arc;

use iced_x86::{Code, Instruction};
use ostler_memory::{LINE_BYTES, PAGE_BYTES, Waiter};

use crate::cpu::regs::{RAX, RCX};
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::{Cpu, attention};
use crate::decode::decoder::implied_data_segment;
use crate::decode::op::{Handler, Op};
use crate::mmu::walk::Access;
use crate::msr::MONITOR_ENABLED;
use crate::signals::signal;

/// MWAIT's extension: an interrupt ends it even where RFLAGS.IF does not let it in.
const BREAK_ON_INTERRUPT: u64 = 1 << 0;

pub fn select_monitor(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.base = RAX as u8;
    op.address_size = match instruction.code() {
        Code::Monitorw => 2,
        Code::Monitord => 4,
        _ => 8,
    };
    implied_data_segment(instruction, op);
    Some(monitor)
}

fn require_monitor(cpu: &mut Cpu) -> Exec {
    if cpu.cpl != 0 || cpu.msrs.misc_enable & MONITOR_ENABLED == 0 { Err(cpu.undefined()) } else { Ok(()) }
}

/// ECX, or RCX in 64-bit mode.
fn extensions(cpu: &Cpu) -> u64 {
    let rcx = cpu.regs.get(RCX);
    if cpu.bitness == 64 { rcx } else { rcx & 0xffff_ffff }
}

fn monitor(cpu: &mut Cpu, op: &Op) -> Exec {
    require_monitor(cpu)?;
    if extensions(cpu) != 0 {
        return Err(cpu.gp(0));
    }
    let linear = cpu.linear(op, 1, false)?;
    // To paging and segmentation it is a load.
    cpu.load::<u8>(linear)?;
    let gpa = cpu.translate(linear, 1, Access::Read)?;
    cpu.arm_monitor(gpa);
    Ok(())
}

pub fn mwait(cpu: &mut Cpu, _: &Op) -> Exec {
    require_monitor(cpu)?;
    let extensions = extensions(cpu);
    if extensions & !BREAK_ON_INTERRUPT != 0 {
        return Err(cpu.gp(0));
    }
    let is_due = extensions & BREAK_ON_INTERRUPT != 0 && cpu.has_interrupt();
    if cpu.events.monitor_armed && !is_due {
        cpu.attention |= attention::MWAIT;
    }
    cpu.events.monitor_armed = false;
    Err(Stop::EndBlock)
}

impl Cpu {
    fn arm_monitor(&mut self, gpa: u64) {
        // Without interrupt controllers nobody but another vCPU could wake it, and there may be none.
        if self.mmu.physical.find(gpa).is_none() || self.vm.irqchip().is_none() {
            return;
        }
        let line = 1 << (gpa % PAGE_BYTES / LINE_BYTES);
        self.announce_writes(gpa, |log, page| log.monitor_lines(page, line));
        self.signals.take(signal::MONITOR);
        self.vm.memory().watch().monitors().arm(gpa, &self.waiter());
        self.events.monitor_armed = true;
    }

    /// Before the vCPU goes away.
    pub fn disarm_monitor(&self) {
        self.vm.memory().watch().monitors().disarm(&self.waiter());
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::clone(&self.signals) as _
    }

    /// Signals were raised: MWAIT is over, and a write to the line that MONITOR armed is not waited for any more.
    pub fn end_mwait(&mut self, raised: u32) {
        if raised != 0 {
            self.attention &= !attention::MWAIT;
        }
        if raised & signal::MONITOR != 0 {
            self.events.monitor_armed = false;
        }
    }

    /// Whether an interrupt waits for RFLAGS.IF. One that the guest ended in memory is no longer in its way.
    fn has_interrupt(&mut self) -> bool {
        self.settle_pv_eoi();
        let at_controllers = || match (self.vm.irqchip(), &self.lapic) {
            (Some(chip), Some(lapic)) => chip.has_interrupt(lapic),
            _ => false,
        };
        self.events.interrupt.is_some() || at_controllers()
    }
}
