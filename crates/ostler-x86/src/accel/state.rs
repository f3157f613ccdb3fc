//! The register sets of the contract, from and to the CPU's own form.

use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::regs::{DescriptorTable, Events, MpState, Regs, Segment, Sregs};

use crate::cpu::control::{cr0, cr4, efer};
use crate::cpu::flags::bit;
use crate::cpu::regs::RegFile;
use crate::cpu::segment::{CS, DS, ES, FS, GS, LDTR, SS, SegmentRegister, TR};
use crate::cpu::{Cpu, TableRegister, attention};

impl Cpu {
    pub fn regs_state(&self) -> Regs {
        let r = |index| self.regs.get(index);
        Regs {
            rax: r(0),
            rcx: r(1),
            rdx: r(2),
            rbx: r(3),
            rsp: r(4),
            rbp: r(5),
            rsi: r(6),
            rdi: r(7),
            r8: r(8),
            r9: r(9),
            r10: r(10),
            r11: r(11),
            r12: r(12),
            r13: r(13),
            r14: r(14),
            r15: r(15),
            rip: self.rip,
            rflags: self.flags.to_u64(),
        }
    }

    /// Takes over the registers; an instruction that an exit interrupted is not gone on with.
    pub fn set_regs_state(&mut self, regs: &Regs) {
        let values = [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        self.regs = RegFile::default();
        for (index, value) in values.into_iter().enumerate() {
            self.regs.set(index, value);
        }
        self.rip = regs.rip;
        self.flags.set_u64(regs.rflags);
        self.mmu.replay.clear();
        self.update_mode();
        self.flags_changed();
    }

    pub fn sregs_state(&self) -> Sregs {
        let segment = |index: usize| Segment::from(&self.segments[index]);
        let table = |register: TableRegister| DescriptorTable { base: register.base, limit: register.limit };
        Sregs {
            cs: segment(CS),
            ds: segment(DS),
            es: segment(ES),
            fs: segment(FS),
            gs: segment(GS),
            ss: segment(SS),
            tr: segment(TR),
            ldt: segment(LDTR),
            gdt: table(self.gdtr),
            idt: table(self.idtr),
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8(),
            efer: self.efer,
            apic_base: self.lapic.as_ref().map_or(0, |lapic| lapic.apic_base_msr()),
            pdptrs: self.uses_pdptes().then_some(self.mmu.pdptes),
        }
    }

    /// Takes over the segment and control registers, or refuses a combination no CPU can be in.
    pub fn set_sregs_state(&mut self, sregs: &Sregs) -> Result<()> {
        check(sregs)?;
        if let Some(lapic) = &self.lapic {
            if sregs.apic_base != 0 && !lapic.restore_apic_base(sregs.apic_base) {
                return Err(AccelError::BadState { what: "IA32_APIC_BASE", value: sregs.apic_base });
            }
            lapic.set_tpr((sregs.cr8 << 4) as u8);
        }
        for (index, segment) in [
            (CS, &sregs.cs),
            (DS, &sregs.ds),
            (ES, &sregs.es),
            (FS, &sregs.fs),
            (GS, &sregs.gs),
            (SS, &sregs.ss),
            (TR, &sregs.tr),
            (LDTR, &sregs.ldt),
        ] {
            self.segments[index] = SegmentRegister::from(segment);
        }
        self.gdtr = TableRegister { base: sregs.gdt.base, limit: sregs.gdt.limit };
        self.idtr = TableRegister { base: sregs.idt.base, limit: sregs.idt.limit };
        (self.cr0, self.cr2, self.cr3, self.cr4) = (sregs.cr0 | cr0::ET, sregs.cr2, sregs.cr3, sregs.cr4);
        self.efer = sregs.efer;
        // SS.DPL is CPL (SDM vol. 3, 5.5); real mode is always privileged.
        self.cpl = if self.cr0 & cr0::PE != 0 { sregs.ss.dpl & 3 } else { 0 };
        self.mmu.replay.clear();
        self.flush_tlb();
        match sregs.pdptrs {
            Some(pdptrs) => self.mmu.pdptes = pdptrs,
            None if self.uses_pdptes() && !self.load_pdptes(self.cr3) => {
                return Err(AccelError::BadState { what: "the page directory pointers at CR3", value: self.cr3 });
            }
            None => {}
        }
        self.update_mode();
        Ok(())
    }

    pub fn events_state(&self) -> Events {
        Events {
            exception: self.events.exception,
            interrupt: self.events.interrupt,
            nmi_pending: self.events.nmi_pending,
            nmi_masked: self.events.nmi_masked,
            interrupt_shadow: self.in_shadow(),
            sipi_vector: self.lapic.as_ref().map_or(0, |lapic| lapic.sipi_vector()),
        }
    }

    pub fn set_events_state(&mut self, events: &Events) {
        self.events.exception = events.exception;
        self.events.interrupt = events.interrupt;
        self.events.requested |= events.interrupt.is_some();
        self.events.nmi_pending = events.nmi_pending;
        self.events.nmi_masked = events.nmi_masked;
        self.attention |= attention::INJECTED;
        self.attention &= !attention::SHADOW;
        if events.interrupt_shadow {
            self.attention |= attention::SHADOW;
        }
        if let Some(lapic) = &self.lapic {
            lapic.set_sipi_vector(events.sipi_vector);
        }
    }

    pub fn mp_state(&self) -> MpState {
        if self.attention & attention::WAIT_FOR_SIPI != 0 {
            if self.events.init_received { MpState::InitReceived } else { MpState::Uninitialized }
        } else if self.attention & attention::HALTED != 0 {
            MpState::Halted
        } else {
            MpState::Runnable
        }
    }

    pub fn set_mp_state(&mut self, state: MpState) {
        // A vCPU in MWAIT is runnable: it may go on whenever it likes.
        self.attention &= !(attention::WAIT_FOR_SIPI | attention::HALTED | attention::MWAIT | attention::SHUTDOWN);
        self.events.init_received = state == MpState::InitReceived;
        self.attention |= match state {
            MpState::Runnable => 0,
            MpState::Halted => attention::HALTED,
            MpState::Uninitialized | MpState::InitReceived => attention::WAIT_FOR_SIPI,
        };
    }

    /// A vCPU that was just created: application processors wait to be started.
    pub fn power_up(&mut self) {
        if self.lapic.is_some() && self.id != 0 {
            self.set_mp_state(MpState::Uninitialized);
        }
    }

    /// After RFLAGS as a whole was replaced.
    pub fn flags_changed(&mut self) {
        self.attention |= attention::INTERRUPT;
        if self.flags.has(bit::TF) {
            self.attention |= attention::STEP;
        }
    }
}

fn check(sregs: &Sregs) -> Result<()> {
    let refuse = |what, value| Err(AccelError::BadState { what, value });
    if sregs.cr0 >> 32 != 0 || sregs.cr0 & cr0::PG != 0 && sregs.cr0 & cr0::PE == 0 {
        return refuse("CR0", sregs.cr0);
    }
    if sregs.cr4 & !cr4::IMPLEMENTED != 0 {
        return refuse("CR4", sregs.cr4);
    }
    let long = sregs.efer & efer::LMA != 0;
    let wanted = sregs.efer & efer::LME != 0 && sregs.cr0 & cr0::PG != 0;
    if sregs.efer & !efer::IMPLEMENTED != 0 || long != wanted || long && sregs.cr4 & cr4::PAE == 0 {
        return refuse("EFER", sregs.efer);
    }
    Ok(())
}
