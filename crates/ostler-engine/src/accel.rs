//! The accelerator contract: `/dev/kvm`'s, as traits.
//!
//! `soft` implements it in `ostler-x86`, `kvm` in `ostler-kvm`; nothing above knows which runs.
//! One thing is gentler than the ioctls: a vCPU asks its [`IoHandler`] for an answer before it
//! exits, so an access that a device answers never leaves [`Vcpu::run`].

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ostler_memory::{GuestRam, MemoryError};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::Space;
use crate::exit::{Exit, IoHandler};
use crate::irq::{IrqFd, MsiRouteEntry};
use crate::profile::Published;
use crate::regs::{
    CpuidEntry, DebugRegs, Events, GuestDebug, IrqchipState, LapicState, MpState, MsrEntry, Regs, Sregs, Xcr, XsaveArea,
};

#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    #[error("vCPU {0} exists already")]
    VcpuExists(u32),
    #[error("vCPU number {id} is past this accelerator's limit of {limit}")]
    TooManyVcpus { id: u32, limit: u32 },
    #[error("this VM has no interrupt controllers; create them before the first vCPU")]
    NoIrqchip,
    #[error("the interrupt controllers have to be created before the first vCPU")]
    VcpusExist,
    #[error("MSR {0:#x} does not exist here")]
    NoSuchMsr(u32),
    #[error("MSR {index:#x} does not take the value {value:#x}")]
    BadMsrValue { index: u32, value: u64 },
    #[error("{what}: {value:#x} is not a valid value")]
    BadState { what: &'static str, value: u64 },
    #[error("the TSC counts at {has} kHz here, and cannot be made to at {wanted}; move the guest to a host that can")]
    TscRate { wanted: u32, has: u32 },
    #[error("the pending read has {expected} bytes, the answer {got}")]
    WrongAnswer { expected: usize, got: usize },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host has no such accelerator, or not all that it needs: cause and cure.
    #[error("{0}")]
    Unavailable(String),
    #[error("{what}")]
    Host {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

pub type Result<T> = std::result::Result<T, AccelError>;

/// Makes VMs.
pub trait Accelerator: Send + Sync + Debug {
    /// The name users know it by: `soft` or `kvm`.
    fn name(&self) -> &'static str;
    /// The CPU a guest gets when nobody asks for another: what this host and accelerator can do.
    fn supported_cpuid(&self) -> Vec<CpuidEntry>;
    /// All that a guest may get when somebody asks for it by name: [`Accelerator::supported_cpuid`] and
    /// what is left out there.
    fn possible_cpuid(&self) -> Vec<CpuidEntry> {
        self.supported_cpuid()
    }
    fn create_vm(&self, memory: Arc<GuestRam>) -> Result<Arc<dyn Vm>>;
}

/// A message-signalled interrupt as the device's MSI capability holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    pub address: u64,
    pub data: u32,
}

/// One virtual machine of an accelerator.
pub trait Vm: Send + Sync + Debug {
    /// The VM's slots. vCPUs, running ones too, see a change once [`Vm::synchronize`] has returned.
    fn memory(&self) -> &Arc<GuestRam>;
    /// Returns when no vCPU uses a translation from before the last change to the memory slots,
    /// and every store a vCPU has retired is in the dirty log. An error is the accelerator's refusal
    /// of a slot: take it back and call again.
    fn synchronize(&self) -> Result<()>;
    fn max_vcpus(&self) -> u32;
    /// Creates the vCPU with APIC id `id`, in the state after power-up. `id` 0 is the boot processor;
    /// the others wait for INIT and SIPI when there is an irqchip. A number can be used once.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>>;

    /// PIC, IOAPIC, PIT and a local APIC per vCPU. Without it, external interrupts come by
    /// [`Vcpu::interrupt`] alone, and HLT is an exit.
    fn create_irqchip(&self) -> Result<()>;
    /// Sets the level of a global system interrupt: 0..16 go to the PIC and the IOAPIC, 16..24 to
    /// the IOAPIC. Ignored without an irqchip.
    fn set_irq_line(&self, gsi: u32, level: bool);
    /// Delivers an MSI; false when no local APIC is addressed by it.
    fn signal_msi(&self, msi: Msi) -> bool;
    /// Has writes of any size to exactly `address` add 1 to `eventfd` without leaving the guest; false
    /// where the accelerator cannot, and the bus rings it.
    fn bind_doorbell(&self, _space: Space, _address: u64, _eventfd: &EventFd) -> bool {
        false
    }
    /// Takes back what [`Vm::bind_doorbell`] did.
    fn unbind_doorbell(&self, _space: Space, _address: u64, _eventfd: &EventFd) {}
    /// Lets writes to `size` bytes from `address` on wait until the guest next needs somebody: they reach their owner in
    /// order, and before any later access does. For registers whose writes nobody has to hear of at once: an eventfd
    /// may be rung, and time may pass, before. False where the accelerator brings every write at once.
    fn coalesce(&self, _space: Space, _address: u64, _size: u32) -> bool {
        false
    }
    /// Replaces the messages that interrupt numbers from [`crate::irq::FIRST_MESSAGE`] on stand for.
    fn set_msi_routes(&self, _routes: &[MsiRouteEntry]) -> Result<()> {
        Err(AccelError::NoIrqchip)
    }
    /// Interrupts the guest whenever the eventfd is written to, by whomever, without this process's doing.
    fn bind_irqfd(&self, _irqfd: IrqFd) -> Result<()> {
        Err(AccelError::NoIrqchip)
    }
    /// Lets go of the eventfds of an interrupt; false when there are none.
    fn unbind_irqfd(&self, _gsi: u32) -> bool {
        false
    }
    fn irqchip_state(&self) -> Result<IrqchipState>;
    fn set_irqchip_state(&self, state: &IrqchipState) -> Result<()>;

    /// A descriptor of the kernel's own statistics of this VM, as [`Vcpu::statistics`] is of a vCPU.
    fn statistics(&self) -> Option<OwnedFd> {
        None
    }

    /// The paravirtual clock in nanoseconds since it was started.
    fn clock_ns(&self) -> u64;
    fn set_clock_ns(&self, ns: u64);
}

/// Interrupts [`Vcpu::run`] from another thread.
pub trait Kick: Send + Sync + Debug {
    /// Makes `run` return [`Exit::Interrupted`] soon: now, or when next called. One kick, one return;
    /// kicks that come before it returns count as one.
    fn kick(&self);
}

/// One virtual CPU. Owned by the thread that runs it.
pub trait Vcpu: Send + Debug {
    fn id(&self) -> u32;
    /// Runs guest code until something happens that neither the CPU nor `io` can finish.
    fn run(&mut self, io: &dyn IoHandler) -> Result<Exit>;
    /// Answers the read that [`Exit::IoIn`] or [`Exit::MmioRead`] asked for; the next `run`
    /// completes the instruction. Without an answer, the guest reads ones.
    fn supply_read(&mut self, data: &[u8]) -> Result<()>;
    fn kicker(&self) -> Arc<dyn Kick>;

    /// `KVM_INTERRUPT`: queues an external interrupt, for VMs without an irqchip. It is delivered
    /// as soon as the guest can take it.
    fn interrupt(&mut self, vector: u8) -> Result<()>;
    /// Queues a non-maskable interrupt.
    fn nmi(&mut self) -> Result<()>;

    fn regs(&self) -> Result<Regs>;
    fn set_regs(&mut self, regs: &Regs) -> Result<()>;
    fn sregs(&self) -> Result<Sregs>;
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()>;
    fn debug_regs(&self) -> Result<DebugRegs>;
    fn set_debug_regs(&mut self, regs: &DebugRegs) -> Result<()>;
    /// x87, SSE and AVX state in the standard (not compacted) XSAVE format.
    fn xsave(&self) -> Result<XsaveArea>;
    fn set_xsave(&mut self, area: &XsaveArea) -> Result<()>;
    fn xcrs(&self) -> Result<Vec<Xcr>>;
    fn set_xcrs(&mut self, xcrs: &[Xcr]) -> Result<()>;
    /// Every MSR that is part of this vCPU's state.
    fn msr_list(&self) -> Vec<u32>;
    fn msr(&self, index: u32) -> Result<u64>;
    fn set_msr(&mut self, entry: MsrEntry) -> Result<()>;
    /// Sets all that it can, in order; the errors name those that were refused.
    fn set_msrs(&mut self, entries: &[MsrEntry]) -> Vec<(u32, AccelError)> {
        let refused = |entry: &MsrEntry| Some((entry.index, self.set_msr(*entry).err()?));
        entries.iter().filter_map(refused).collect()
    }
    /// The rate of the guest's TSC in kHz.
    fn tsc_khz(&self) -> Result<u32>;
    /// Sets it before the guest runs; [`AccelError::TscRate`] where the TSC cannot be scaled that far.
    fn set_tsc_khz(&mut self, khz: u32) -> Result<()>;
    fn cpuid(&self) -> Vec<CpuidEntry>;
    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()>;
    fn events(&self) -> Result<Events>;
    fn set_events(&mut self, events: &Events) -> Result<()>;
    fn mp_state(&self) -> Result<MpState>;
    fn set_mp_state(&mut self, state: MpState) -> Result<()>;
    fn lapic(&self) -> Result<LapicState>;
    fn set_lapic(&mut self, state: &LapicState) -> Result<()>;
    /// Single-step and breakpoints for a debugger outside the guest.
    fn set_guest_debug(&mut self, debug: GuestDebug) -> Result<()>;
    /// Guest-linear to guest-physical, without side effects; `None` where nothing is mapped.
    fn translate(&self, linear: u64) -> Option<u64>;
    /// Instructions retired; `None` where the accelerator does not count them.
    fn instructions(&self) -> Option<u64>;
    /// A descriptor of the kernel's own statistics of this vCPU (`KVM_GET_STATS_FD`), where the kernel
    /// runs it. It can be read while the vCPU runs.
    fn statistics(&self) -> Option<OwnedFd> {
        None
    }
    /// From now on it says what it does, for a profile; `None` where the accelerator cannot see that.
    fn publish(&mut self) -> Option<Arc<Published>> {
        None
    }
}
