//! A virtual CPU of the software accelerator.

use std::sync::Arc;

use ostler_engine::accel::Result;
use ostler_engine::profile::Published;
use ostler_engine::regs::{
    CpuidEntry, DebugRegs, Events, GuestDebug, LapicState, MpState, MsrEntry, Regs, Sregs, Xcr, XsaveArea,
};
use ostler_engine::{AccelError, Exit, IoHandler, Kick, Vcpu};

use crate::accel::xsave;
use crate::cpu::{Cpu, attention};
use crate::cpuid::CpuidTable;
use crate::irqchip::Lapic;
use crate::msr;
use crate::signals::{Signals, signal};
use ostler_irqchip::clock::TSC_KHZ;

/// One virtual CPU.
#[derive(Debug)]
pub struct SoftVcpu {
    cpu: Box<Cpu>,
}

#[derive(Debug)]
struct Kicker(Arc<Signals>);

impl Kick for Kicker {
    fn kick(&self) {
        self.0.raise(signal::KICK);
    }
}

impl SoftVcpu {
    pub fn new(cpu: Cpu) -> Self {
        Self { cpu: Box::new(cpu) }
    }

    fn lapic_or_error(&self) -> Result<&Arc<Lapic>> {
        self.cpu.lapic.as_ref().ok_or(AccelError::NoIrqchip)
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        self.cpu.disarm_monitor();
        self.cpu.release_code();
        self.cpu.vm.remove_sibling(self.cpu.id);
    }
}

impl Vcpu for SoftVcpu {
    fn id(&self) -> u32 {
        self.cpu.id
    }

    fn run(&mut self, io: &dyn IoHandler) -> Result<Exit> {
        Ok(self.cpu.run(io))
    }

    fn supply_read(&mut self, data: &[u8]) -> Result<()> {
        let replay = &mut self.cpu.mmu.replay;
        let expected = replay.expected().unwrap_or(0);
        if data.len() != expected {
            return Err(AccelError::WrongAnswer { expected, got: data.len() });
        }
        replay.answer(data);
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Kicker(Arc::clone(&self.cpu.signals)))
    }

    fn interrupt(&mut self, vector: u8) -> Result<()> {
        self.cpu.events.interrupt = Some(vector);
        self.cpu.events.requested = true;
        self.cpu.attention |= attention::INJECTED;
        Ok(())
    }

    fn nmi(&mut self) -> Result<()> {
        self.cpu.signals.raise(signal::NMI);
        Ok(())
    }

    fn regs(&self) -> Result<Regs> {
        Ok(self.cpu.regs_state())
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        self.cpu.set_regs_state(regs);
        Ok(())
    }

    fn sregs(&self) -> Result<Sregs> {
        Ok(self.cpu.sregs_state())
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()> {
        self.cpu.set_sregs_state(sregs)
    }

    fn debug_regs(&self) -> Result<DebugRegs> {
        Ok(DebugRegs { db: self.cpu.dr, dr6: self.cpu.dr6, dr7: self.cpu.dr7 })
    }

    fn set_debug_regs(&mut self, regs: &DebugRegs) -> Result<()> {
        (self.cpu.dr, self.cpu.dr6, self.cpu.dr7) = (regs.db, regs.dr6, regs.dr7);
        self.cpu.update_breakpoints();
        Ok(())
    }

    fn xsave(&self) -> Result<XsaveArea> {
        Ok(xsave::save(&self.cpu))
    }

    fn set_xsave(&mut self, area: &XsaveArea) -> Result<()> {
        xsave::restore(&mut self.cpu, area)
    }

    fn xcrs(&self) -> Result<Vec<Xcr>> {
        Ok(vec![Xcr { index: 0, value: self.cpu.xcr0 }])
    }

    fn set_xcrs(&mut self, xcrs: &[Xcr]) -> Result<()> {
        for xcr in xcrs {
            if xcr.index != 0 || !self.cpu.set_xcr0(xcr.value) {
                return Err(AccelError::BadState { what: "XCR0", value: xcr.value });
            }
        }
        Ok(())
    }

    fn msr_list(&self) -> Vec<u32> {
        msr::saved(self.cpu.lapic.is_some())
    }

    fn msr(&self, index: u32) -> Result<u64> {
        self.cpu.read_msr(index).ok_or(AccelError::NoSuchMsr(index))
    }

    fn set_msr(&mut self, entry: MsrEntry) -> Result<()> {
        let MsrEntry { index, value } = entry;
        if self.cpu.restore_msr(index, value) {
            return Ok(());
        }
        match self.cpu.read_msr(index) {
            None => Err(AccelError::NoSuchMsr(index)),
            Some(_) => Err(AccelError::BadMsrValue { index, value }),
        }
    }

    fn tsc_khz(&self) -> Result<u32> {
        Ok(TSC_KHZ)
    }

    /// The rate is the same on every host, so that nothing has to be scaled.
    fn set_tsc_khz(&mut self, khz: u32) -> Result<()> {
        if khz == TSC_KHZ { Ok(()) } else { Err(AccelError::TscRate { wanted: khz, has: TSC_KHZ }) }
    }

    fn cpuid(&self) -> Vec<CpuidEntry> {
        self.cpu.cpuid.entries().to_vec()
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()> {
        self.cpu.cpuid = Arc::new(CpuidTable::from_user(entries));
        // Instructions that went away have to be decoded again.
        self.cpu.code.forget_all();
        Ok(())
    }

    fn events(&self) -> Result<Events> {
        Ok(self.cpu.events_state())
    }

    fn set_events(&mut self, events: &Events) -> Result<()> {
        self.cpu.set_events_state(events);
        Ok(())
    }

    fn mp_state(&self) -> Result<MpState> {
        Ok(self.cpu.mp_state())
    }

    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        self.cpu.set_mp_state(state);
        Ok(())
    }

    fn lapic(&self) -> Result<LapicState> {
        Ok(self.lapic_or_error()?.state())
    }

    fn set_lapic(&mut self, state: &LapicState) -> Result<()> {
        if self.lapic_or_error()?.set_state(state) {
            return Ok(());
        }
        let id = u32::from_le_bytes([state.regs[0x20], state.regs[0x21], state.regs[0x22], state.regs[0x23]]);
        Err(AccelError::BadState { what: "the local APIC's id", value: u64::from(id) })
    }

    fn set_guest_debug(&mut self, debug: GuestDebug) -> Result<()> {
        self.cpu.debug.outside = debug;
        self.cpu.update_breakpoints();
        Ok(())
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        self.cpu.translate_quietly(linear)
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.cpu.instructions)
    }

    fn publish(&mut self) -> Option<Arc<Published>> {
        Some(self.cpu.publish())
    }
}
