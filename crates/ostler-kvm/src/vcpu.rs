//! A virtual CPU of KVM.

use std::fmt::{self, Debug};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, Xsave, kvm_lapic_state, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use ostler_engine::accel::Result;
use ostler_engine::cpuid::limited_to;
use ostler_engine::regs::{
    CpuidEntry, DebugRegs, Events, GuestDebug, LapicState, MpState, MsrEntry, Regs, Sregs, Xcr, XsaveArea,
};
use ostler_engine::{AccelError, Exit, IoHandler, Kick, Vcpu};

use crate::ioctl::host;
use crate::kick::KvmKick;
use crate::run::Stage;
use crate::vm::Shared;
use crate::{cpuid, ioctl, msr, regs};

const RFLAGS_IF: u64 = 1 << 9;
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// The XSAVE image that every KVM knows.
const XSAVE_BYTES: usize = 4096;

/// One virtual CPU.
pub struct KvmVcpu {
    id: u32,
    pub(crate) fd: VcpuFd,
    pub(crate) vm: Arc<Shared>,
    pub(crate) kick: Arc<KvmKick>,
    pub(crate) stage: Stage,
    cpuid: Vec<CpuidEntry>,
    msrs: OnceLock<Vec<u32>>,
    /// In a triple fault until the MP state is set.
    pub(crate) shutdown: bool,
    /// Halted in a VM without irqchip, where KVM knows no such state.
    pub(crate) halted: bool,
    /// An external interrupt that the guest could not take yet, in a VM without irqchip.
    waiting: Option<u8>,
    /// A vector of the PIC that KVM was given, and where the guest stood; until it has certainly taken it.
    handed: Option<(u8, u64)>,
    /// How often the VM's clock had been set when this vCPU last ran.
    clock_sets: u64,
}

impl Debug for KvmVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmVcpu").field("id", &self.id).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl KvmVcpu {
    pub(crate) fn new(id: u32, mut fd: VcpuFd, vm: Arc<Shared>) -> Result<Self> {
        if vm.host.capabilities.coalesced_io {
            fd.map_coalesced_mmio_ring().map_err(host("mapping the ring of coalesced writes"))?;
        }
        let cpuid = cpuid::for_vcpu(&vm.host.cpuid, id);
        fd.set_cpuid2(&cpuid::kvm_cpuid(&cpuid)?).map_err(host("KVM_SET_CPUID2"))?;
        // A CPU without this MSR (AMD's) has fast strings, too.
        if let Ok(misc) = msr::read(&fd, MISC_ENABLE) {
            msr::write(&fd, MISC_ENABLE, misc | FAST_STRINGS)?;
        }
        let kick = Arc::<KvmKick>::default();
        vm.add_ring(&fd, &kick)?;
        Ok(Self {
            id,
            fd,
            vm,
            kick,
            stage: Stage::Between,
            cpuid,
            msrs: OnceLock::new(),
            shutdown: false,
            halted: false,
            waiting: None,
            handed: None,
            clock_sets: 0,
        })
    }

    /// Tells a guest that asks for it that it did not run for a while, so that its watchdogs do not bark.
    pub(crate) fn tell_of_pause(&mut self) {
        let sets = self.vm.clock_sets();
        if sets != self.clock_sets {
            self.clock_sets = sets;
            if self.vm.host.capabilities.kvmclock_ctrl {
                // EINVAL: the guest does not use the clock.
                let _unused = self.fd.kvmclock_ctrl();
            }
        }
    }

    /// Waits for whatever ends HLT in a VM without irqchip.
    pub(crate) fn wait_halted(&mut self) {
        if self.waiting.is_some() {
            self.halted = false;
        } else {
            self.kick.wait();
        }
    }

    /// Injects the waiting interrupt if the guest can take it now, or has KVM come back when it can.
    pub(crate) fn offer_interrupt(&mut self) -> Result<()> {
        let Some(vector) = self.waiting else { return Ok(()) };
        let enabled = self.fd.get_regs().map_err(host("KVM_GET_REGS"))?.rflags & RFLAGS_IF != 0;
        let run = self.fd.get_kvm_run();
        if enabled && run.ready_for_interrupt_injection != 0 {
            run.request_interrupt_window = 0;
            self.waiting = None;
            return ioctl::interrupt(&self.fd, vector).map_err(host("KVM_INTERRUPT"));
        }
        run.request_interrupt_window = 1;
        Ok(())
    }

    /// Gives KVM the vector of the PIC's request if the guest can take it now, or has KVM come back when it can. The
    /// boot processor alone is wired to the PIC.
    pub(crate) fn offer_external(&mut self) -> Result<()> {
        let vm = Arc::clone(&self.vm);
        let Some(split) = vm.split().filter(|_| self.id == 0) else { return Ok(()) };
        if split.chips.external_pending() && self.handed.is_none() && self.is_ready_for_injection() {
            let rip = self.fd.get_regs().map_err(host("KVM_GET_REGS"))?.rip;
            if let Some(vector) = split.chips.acknowledge(|| {}) {
                self.handed = Some((vector, rip));
                ioctl::interrupt(&self.fd, vector).map_err(host("KVM_INTERRUPT"))?;
            }
        }
        self.fd.get_kvm_run().request_interrupt_window = split.chips.external_pending().into();
        Ok(())
    }

    fn is_ready_for_injection(&mut self) -> bool {
        // Where an access is unfinished, the guest stands at the next instruction only after KVM_RUN.
        self.stage == Stage::Between && self.fd.get_kvm_run().ready_for_interrupt_injection != 0
    }

    /// The guest ran: the vector it was given is in its hands.
    pub(crate) fn external_taken(&mut self) {
        self.handed = None;
    }

    /// The vector of the PIC that KVM holds, and says nothing of: the guest stands where it was given.
    pub(crate) fn held_external(&self) -> Result<Option<u8>> {
        let Some((vector, rip)) = self.handed else { return Ok(None) };
        let stands = self.fd.get_regs().map_err(host("KVM_GET_REGS"))?.rip == rip;
        Ok(stands.then_some(vector))
    }

    /// Has KVM point the processor at the guest's memory again. AMD's KVM clears the VMCB in a shutdown,
    /// nested page table included, and sets that again only when a control register changes.
    fn reload_mmu(&self) -> Result<()> {
        const CR0_WP: u64 = 1 << 16;
        let sregs = self.fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
        let changed = kvm_sregs { cr0: sregs.cr0 ^ CR0_WP, ..sregs };
        self.fd.set_sregs(&changed).map_err(host("KVM_SET_SREGS"))?;
        self.fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))
    }

    fn xsave_bytes(&self) -> usize {
        self.vm.host.capabilities.xsave_bytes.max(XSAVE_BYTES)
    }

    fn need_irqchip(&self) -> Result<()> {
        if self.vm.has_irqchip() { Ok(()) } else { Err(AccelError::NoIrqchip) }
    }
}

impl Vcpu for KvmVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn run(&mut self, io: &dyn IoHandler) -> Result<Exit> {
        self.run_until_exit(io)
    }

    fn supply_read(&mut self, data: &[u8]) -> Result<()> {
        let asked = self.asked();
        let expected = asked.as_ref().map_or(0, |asked| asked.len());
        match asked {
            Some(asked) if expected == data.len() => {
                asked.copy_from_slice(data);
                Ok(())
            }
            _ => Err(AccelError::WrongAnswer { expected, got: data.len() }),
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn interrupt(&mut self, vector: u8) -> Result<()> {
        if self.vm.has_irqchip() {
            let mut events = self.events()?;
            events.interrupt = Some(vector);
            return self.set_events(&events);
        }
        self.waiting = Some(vector);
        Ok(())
    }

    fn nmi(&mut self) -> Result<()> {
        self.halted = false;
        self.fd.nmi().map_err(host("KVM_NMI"))
    }

    fn regs(&self) -> Result<Regs> {
        Ok(regs::regs(&self.fd.get_regs().map_err(host("KVM_GET_REGS"))?))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        self.fd.set_regs(&regs::kvm_regs_of(regs)).map_err(host("KVM_SET_REGS"))
    }

    fn sregs(&self) -> Result<Sregs> {
        if self.vm.host.capabilities.sregs2 {
            return Ok(regs::sregs_of_2(&ioctl::sregs2(&self.fd).map_err(host("KVM_GET_SREGS2"))?));
        }
        Ok(regs::sregs(&self.fd.get_sregs().map_err(host("KVM_GET_SREGS"))?))
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()> {
        let taken = self.vm.host.capabilities.sregs2 && sregs.is_pae_paging();
        if let Some(pdptrs) = sregs.pdptrs.filter(|_| taken) {
            return ioctl::set_sregs2(&self.fd, &regs::kvm_sregs2_of(sregs, pdptrs)).map_err(host("KVM_SET_SREGS2"));
        }
        // This one loads them from memory; KVM_SET_SREGS2 without them would keep the old ones.
        self.fd.set_sregs(&regs::kvm_sregs_of(sregs)).map_err(host("KVM_SET_SREGS"))
    }

    fn debug_regs(&self) -> Result<DebugRegs> {
        Ok(regs::debug_regs(&self.fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?))
    }

    fn set_debug_regs(&mut self, regs: &DebugRegs) -> Result<()> {
        self.fd.set_debug_regs(&regs::kvm_debugregs_of(regs)).map_err(host("KVM_SET_DEBUGREGS"))
    }

    fn xsave(&self) -> Result<XsaveArea> {
        let more = (self.xsave_bytes() - XSAVE_BYTES).div_ceil(4);
        let mut image = Xsave::new(more)
            .map_err(|_| AccelError::BadState { what: "the size of the XSAVE image", value: more as u64 })?;
        if self.vm.host.capabilities.xsave_bytes > XSAVE_BYTES {
            // SAFETY: the image has the size that KVM_CAP_XSAVE2 says, and no more component is enabled
            // after the VM was made.
            unsafe { self.fd.get_xsave2(&mut image) }.map_err(host("KVM_GET_XSAVE2"))?;
        } else {
            let plain = self.fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?;
            // SAFETY: the header's length, which is what makes the rest of the wrapper valid, stays.
            unsafe { image.as_mut_fam_struct() }.xsave.region = plain.region;
        }
        let head = image.as_fam_struct_ref().xsave.region.iter();
        let words = head.chain(image.as_slice());
        Ok(XsaveArea { bytes: words.flat_map(|word| word.to_le_bytes()).collect() })
    }

    fn set_xsave(&mut self, area: &XsaveArea) -> Result<()> {
        let most = self.xsave_bytes();
        if area.bytes.len() < 576 || area.bytes.len() > most {
            return Err(AccelError::BadState { what: "the size of the XSAVE image", value: area.bytes.len() as u64 });
        }
        let mut bytes = area.bytes.clone();
        bytes.resize(most.next_multiple_of(4), 0);
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        let (head, tail) = words.split_at(XSAVE_BYTES / 4);
        let mut image = Xsave::new(tail.len())
            .map_err(|_| AccelError::BadState { what: "the size of the XSAVE image", value: most as u64 })?;
        image.as_mut_slice().copy_from_slice(tail);
        let mut region = [0; XSAVE_BYTES / 4];
        region.copy_from_slice(head);
        if tail.is_empty() {
            // SAFETY: no component needs more than the 4096 bytes that are there.
            unsafe { self.fd.set_xsave(&kvm_xsave { region, ..Default::default() }) }
        } else {
            // SAFETY: the header's length stays; the image has the size that KVM_CAP_XSAVE2 says.
            unsafe {
                image.as_mut_fam_struct().xsave.region = region;
                self.fd.set_xsave2(&image)
            }
        }
        .map_err(|_| AccelError::BadState {
            what: "the XSAVE image",
            value: u64::from_le_bytes(area.bytes[512..520].try_into().unwrap_or_default()),
        })
    }

    fn xcrs(&self) -> Result<Vec<Xcr>> {
        let xcrs = self.fd.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
        let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
        Ok(xcrs.xcrs[..count].iter().map(|xcr| Xcr { index: xcr.xcr, value: xcr.value }).collect())
    }

    fn set_xcrs(&mut self, xcrs: &[Xcr]) -> Result<()> {
        let mut to = kvm_bindings::kvm_xcrs { nr_xcrs: xcrs.len() as u32, ..Default::default() };
        if xcrs.len() > to.xcrs.len() {
            return Err(AccelError::BadState { what: "the number of XCRs", value: xcrs.len() as u64 });
        }
        for (to, from) in to.xcrs.iter_mut().zip(xcrs) {
            (to.xcr, to.value) = (from.index, from.value);
        }
        let refused = |_| AccelError::BadState { what: "XCR0", value: xcrs.first().map_or(0, |xcr| xcr.value) };
        self.fd.set_xcrs(&to).map_err(refused)
    }

    fn msr_list(&self) -> Vec<u32> {
        self.msrs.get_or_init(|| msr::readable(&self.fd, &self.vm.host.msrs)).clone()
    }

    fn msr(&self, index: u32) -> Result<u64> {
        msr::read(&self.fd, index)
    }

    fn set_msr(&mut self, entry: MsrEntry) -> Result<()> {
        msr::write(&self.fd, entry.index, entry.value)
    }

    fn set_msrs(&mut self, entries: &[MsrEntry]) -> Vec<(u32, AccelError)> {
        msr::write_all(&self.fd, entries)
    }

    fn tsc_khz(&self) -> Result<u32> {
        self.fd.get_tsc_khz().map_err(host("KVM_GET_TSC_KHZ"))
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result<()> {
        let has = self.tsc_khz()?;
        self.fd.set_tsc_khz(khz).map_err(|_| {
            // KVM says the refused rate from now on, unless it is told again.
            let _told = self.fd.set_tsc_khz(has);
            AccelError::TscRate { wanted: khz, has }
        })
    }

    fn cpuid(&self) -> Vec<CpuidEntry> {
        self.cpuid.clone()
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()> {
        let rows = limited_to(entries, &self.vm.host.possible_cpuid);
        self.fd.set_cpuid2(&cpuid::kvm_cpuid(&rows)?).map_err(host("KVM_SET_CPUID2"))?;
        self.cpuid = rows;
        Ok(())
    }

    fn events(&self) -> Result<Events> {
        let events = self.fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
        let waiting = self.waiting.or(self.held_external()?);
        Ok(regs::events(&events, waiting))
    }

    fn set_events(&mut self, events: &Events) -> Result<()> {
        // Without an irqchip the guest may not be ready for it: then it waits here.
        let inject = self.vm.has_irqchip();
        let to = regs::kvm_events_of(events, inject);
        self.fd.set_vcpu_events(&to).map_err(host("KVM_SET_VCPU_EVENTS"))?;
        self.waiting = events.interrupt.filter(|_| !inject);
        Ok(())
    }

    fn mp_state(&self) -> Result<MpState> {
        if self.halted {
            return Ok(MpState::Halted);
        }
        regs::mp_state(self.fd.get_mp_state().map_err(host("KVM_GET_MP_STATE"))?)
    }

    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        let known = self.vm.has_irqchip();
        let mut to = regs::kvm_mp_state_of(state);
        if !known {
            if to.mp_state == KVM_MP_STATE_UNINITIALIZED {
                return Err(AccelError::NoIrqchip);
            }
            to = regs::kvm_mp_state_of(MpState::Runnable);
        }
        self.fd.set_mp_state(to).map_err(host("KVM_SET_MP_STATE"))?;
        self.halted = !known && state == MpState::Halted;
        if std::mem::take(&mut self.shutdown) {
            self.reload_mmu()?;
        }
        Ok(())
    }

    fn lapic(&self) -> Result<LapicState> {
        self.need_irqchip()?;
        let state = self.fd.get_lapic().map_err(host("KVM_GET_LAPIC"))?;
        Ok(LapicState { regs: state.regs.map(|byte| byte as u8) })
    }

    fn set_lapic(&mut self, state: &LapicState) -> Result<()> {
        self.need_irqchip()?;
        let state = kvm_lapic_state { regs: state.regs.map(|byte| byte as std::ffi::c_char) };
        self.fd.set_lapic(&state).map_err(host("KVM_SET_LAPIC"))
    }

    fn set_guest_debug(&mut self, debug: GuestDebug) -> Result<()> {
        self.fd.set_guest_debug(&regs::kvm_guest_debug_of(&debug)).map_err(host("KVM_SET_GUEST_DEBUG"))
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        let translation = self.fd.translate_gva(linear).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    fn instructions(&self) -> Option<u64> {
        None
    }

    fn statistics(&self) -> Option<OwnedFd> {
        // A kernel before 5.14 has none, and nothing else depends on them.
        ioctl::stats_fd(&self.fd).ok()
    }
}
