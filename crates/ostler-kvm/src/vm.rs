//! A virtual machine of KVM.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_clock_data,
    kvm_enable_cap,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VcpuFd, VmFd};
use ostler_engine::accel::Result;
use ostler_engine::irq::{self, IrqFd, MsiRouteEntry};
use ostler_engine::regs::{IoapicState, IrqchipState};
use ostler_engine::{AccelError, Msi, Space, Vcpu, Vm};
use ostler_irqchip::Processors;
use ostler_irqchip::message::Message;
use ostler_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;

use crate::accelerator::Host;
use crate::ioctl::host;
use crate::kick::KvmKick;
use crate::slots::Slots;
use crate::split::Split;
use crate::vcpu::KvmVcpu;
use crate::{dirty, ioctl, irqchip};

/// Four pages below the end of 4 GiB that Intel's KVM needs in real mode; no board has memory there.
const IDENTITY_MAP_GPA: u64 = 0xfffb_c000;
const TSS_GPA: u64 = 0xfffb_d000;

/// One virtual machine.
#[derive(Debug)]
pub struct KvmVm {
    shared: Arc<Shared>,
}

/// What the vCPUs share. They keep the VM, and the memory it uses, alive.
pub struct Shared {
    pub fd: VmFd,
    pub host: Arc<Host>,
    memory: Arc<GuestRam>,
    slots: Mutex<Slots>,
    dirty: dirty::Log,
    irqchip: OnceLock<Chips>,
    /// Of the boot processor, which takes the PIC's interrupts.
    boot_kick: OnceLock<Arc<KvmKick>>,
    vcpus: Mutex<BTreeSet<u32>>,
    /// What KVM holds, to be named when it shall let go.
    irqfds: Mutex<Vec<(u32, EventFd)>>,
    /// Held by the vCPU that empties the ring of coalesced writes: what comes later waits until they have arrived.
    pub coalesced: Mutex<()>,
    /// Counts how often the clock was set: a guest may ask whether it was stopped.
    clock_sets: AtomicU64,
}

/// Where PIC, IOAPIC and PIT are.
#[derive(Debug)]
enum Chips {
    InKernel,
    Split(Split),
}

impl Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("vcpus", &self.vcpus).field("irqchip", &self.irqchip).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Shared {
    pub fn has_irqchip(&self) -> bool {
        self.irqchip.get().is_some()
    }

    /// The chips of this process, where they are not the kernel's.
    pub fn split(&self) -> Option<&Split> {
        match self.irqchip.get() {
            Some(Chips::Split(split)) => Some(split),
            _ => None,
        }
    }

    /// Sends a message; false when no local APIC takes it.
    fn signal_msi(&self, msi: Msi) -> bool {
        self.fd.signal_msi(irqchip::kvm_msi_of(msi)).is_ok_and(|delivered| delivered > 0)
    }

    pub fn clock_sets(&self) -> u64 {
        self.clock_sets.load(Ordering::Acquire)
    }

    /// Moves what the dirty rings hold to the log of the memory.
    pub fn take_rings(&self) -> Result<()> {
        self.empty_rings(&lock(&self.slots))
    }

    fn empty_rings(&self, slots: &Slots) -> Result<()> {
        let dirty::Log::Rings(rings) = &self.dirty else { return Ok(()) };
        rings.take(&self.fd, |number, page| {
            // A slot that went meanwhile has no log to add to.
            if let Some((slot, page)) = slots.page_of(number & 0xffff, page) {
                self.memory.merge_dirty_log(slot, page / 64, &[1 << (page % 64)]);
            }
        })
    }

    pub fn add_ring(&self, vcpu: &VcpuFd, kick: &Arc<KvmKick>) -> Result<()> {
        match &self.dirty {
            dirty::Log::Rings(rings) => rings.add(vcpu, Arc::clone(kick)),
            dirty::Log::Bitmap { .. } => Ok(()),
        }
    }

    fn synchronize(&self) -> Result<()> {
        let mut slots = lock(&self.slots);
        // Before numbers of slots change.
        self.empty_rings(&slots)?;
        slots.follow(&self.fd, &self.memory, self.host.capabilities.memory_slots, &self.dirty)?;
        for (slot, pieces) in slots.logged() {
            self.dirty.collect(&self.fd, slot, &pieces, &self.memory)?;
        }
        Ok(())
    }
}

impl Processors for Shared {
    fn deliver(&self, message: &Message) -> bool {
        self.signal_msi(message.to_msi())
    }

    /// The boot processor comes out of the guest, and takes it when it can.
    fn external(&self, _rose: bool) {
        if let Some(kick) = self.boot_kick.get() {
            kick.interrupt();
        }
    }

    fn routed(&self, ioapic: &IoapicState) {
        if let Some(split) = self.split() {
            split.set_pins(&self.fd, ioapic);
        }
    }
}

impl KvmVm {
    pub(crate) fn new(fd: VmFd, memory: Arc<GuestRam>, host: Arc<Host>) -> Result<Self> {
        prepare(&fd, &host)?;
        let dirty = dirty::Log::new(&fd, &host.capabilities, host.options.dirty_ring)?;
        let shared = Shared {
            fd,
            host,
            memory,
            slots: Mutex::default(),
            dirty,
            irqchip: OnceLock::new(),
            boot_kick: OnceLock::new(),
            vcpus: Mutex::default(),
            irqfds: Mutex::default(),
            coalesced: Mutex::default(),
            clock_sets: AtomicU64::new(0),
        };
        shared.synchronize()?;
        Ok(Self { shared: Arc::new(shared) })
    }

    fn irqchip(&self) -> Result<&VmFd> {
        if self.shared.has_irqchip() { Ok(&self.shared.fd) } else { Err(AccelError::NoIrqchip) }
    }
}

/// What has to be said before there is a vCPU.
fn prepare(fd: &VmFd, host: &Host) -> Result<()> {
    let capabilities = &host.capabilities;
    if capabilities.identity_map {
        fd.set_identity_map_address(IDENTITY_MAP_GPA).map_err(self::host("KVM_SET_IDENTITY_MAP_ADDR"))?;
    }
    if capabilities.set_tss {
        fd.set_tss_address(TSS_GPA as usize).map_err(self::host("KVM_SET_TSS_ADDR"))?;
    }
    if capabilities.x2apic_api {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
        cap.args[0] = (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).into();
        fd.enable_cap(&cap).map_err(self::host("KVM_CAP_X2APIC_API"))?;
    }
    Ok(())
}

fn eventfd(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open, and from here on the eventfd's alone.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

fn ioevent(space: Space, address: u64) -> IoEventAddress {
    match space {
        Space::Pio => IoEventAddress::Pio(address),
        Space::Mmio => IoEventAddress::Mmio(address),
    }
}

impl Vm for KvmVm {
    fn memory(&self) -> &Arc<GuestRam> {
        &self.shared.memory
    }

    fn synchronize(&self) -> Result<()> {
        self.shared.synchronize()
    }

    fn max_vcpus(&self) -> u32 {
        self.shared.host.capabilities.max_vcpus
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        let capabilities = &self.shared.host.capabilities;
        let mut vcpus = lock(&self.shared.vcpus);
        if vcpus.contains(&id) {
            return Err(AccelError::VcpuExists(id));
        }
        if id >= capabilities.max_vcpu_id.min(capabilities.max_vcpus) || vcpus.len() as u32 == capabilities.max_vcpus {
            return Err(AccelError::TooManyVcpus { id, limit: capabilities.max_vcpus });
        }
        let fd = self.shared.fd.create_vcpu(id.into()).map_err(host("KVM_CREATE_VCPU"))?;
        vcpus.insert(id);
        drop(vcpus);
        let vcpu = KvmVcpu::new(id, fd, Arc::clone(&self.shared))?;
        if id == 0 {
            // The number was free, so there was no other one.
            let _first = self.shared.boot_kick.set(Arc::clone(&vcpu.kick));
        }
        Ok(Box::new(vcpu))
    }

    fn create_irqchip(&self) -> Result<()> {
        let vcpus = lock(&self.shared.vcpus);
        if self.shared.has_irqchip() {
            return Ok(());
        }
        if !vcpus.is_empty() {
            return Err(AccelError::VcpusExist);
        }
        let chips = if self.shared.host.options.split_irqchip {
            let processors: Weak<Shared> = Arc::downgrade(&self.shared);
            Chips::Split(Split::create(&self.shared.fd, self.clock_ns(), processors)?)
        } else {
            irqchip::create(&self.shared.fd)?;
            Chips::InKernel
        };
        // Nobody else can have been faster: we hold the lock of the vCPUs.
        let _was_none = self.shared.irqchip.set(chips);
        Ok(())
    }

    fn set_irq_line(&self, gsi: u32, level: bool) {
        if let Some(split) = self.shared.split() {
            split.chips.set_irq_line(gsi, level);
        } else if self.shared.has_irqchip() && irqchip::has_line(gsi) {
            // The line is one of those that `create_irqchip` wired: there is nothing to refuse.
            let _level = self.shared.fd.set_irq_line(gsi, level);
        }
    }

    fn signal_msi(&self, msi: Msi) -> bool {
        self.shared.has_irqchip() && self.shared.signal_msi(msi)
    }

    fn bind_doorbell(&self, space: Space, address: u64, eventfd: &EventFd) -> bool {
        self.shared.fd.register_ioevent(eventfd, &ioevent(space, address), NoDatamatch).is_ok()
    }

    fn unbind_doorbell(&self, space: Space, address: u64, eventfd: &EventFd) {
        // It was bound, so KVM knows it.
        let _unbound = self.shared.fd.unregister_ioevent(eventfd, &ioevent(space, address), NoDatamatch);
    }

    fn coalesce(&self, space: Space, address: u64, size: u32) -> bool {
        let shared = &self.shared;
        shared.host.capabilities.coalesced_io
            && shared.fd.register_coalesced_mmio(ioevent(space, address), size).is_ok()
    }

    fn set_msi_routes(&self, routes: &[MsiRouteEntry]) -> Result<()> {
        irq::check_routes(routes)?;
        if let Some(split) = self.shared.split() {
            return split.set_messages(&self.shared.fd, routes);
        }
        let messages: Vec<_> = routes.iter().map(irqchip::message).collect();
        irqchip::set_routing(self.irqchip()?, &messages)
    }

    fn bind_irqfd(&self, irqfd: IrqFd) -> Result<()> {
        irq::check_irqfd(&irqfd)?;
        let vm = self.irqchip()?;
        if let (Some(split), ..irq::FIRST_MESSAGE) = (self.shared.split(), irqfd.gsi) {
            return split.chips.bind_irqfd(irqfd);
        }
        let IrqFd { gsi, event, resample } = irqfd;
        let (event, resample) = (eventfd(event), resample.map(eventfd));
        match &resample {
            Some(resample) => vm.register_irqfd_with_resample(&event, resample, gsi),
            None => vm.register_irqfd(&event, gsi),
        }
        .map_err(host("KVM_IRQFD"))?;
        lock(&self.shared.irqfds).push((gsi, event));
        Ok(())
    }

    fn unbind_irqfd(&self, gsi: u32) -> bool {
        if let (Some(split), ..irq::FIRST_MESSAGE) = (self.shared.split(), gsi) {
            return split.chips.unbind_irqfd(gsi);
        }
        let mut irqfds = lock(&self.shared.irqfds);
        let before = irqfds.len();
        irqfds.retain(|(bound, event)| {
            let goes = *bound == gsi;
            if goes {
                // It was bound, so KVM knows it.
                let _unbound = self.shared.fd.unregister_irqfd(event, gsi);
            }
            !goes
        });
        irqfds.len() != before
    }

    fn irqchip_state(&self) -> Result<IrqchipState> {
        match self.shared.split() {
            Some(split) => Ok(split.state()),
            None => irqchip::state(self.irqchip()?, self.clock_ns()),
        }
    }

    fn set_irqchip_state(&self, state: &IrqchipState) -> Result<()> {
        match self.shared.split() {
            Some(split) => split.set_state(state, self.clock_ns()),
            None => irqchip::set_state(self.irqchip()?, state),
        }
    }

    fn statistics(&self) -> Option<OwnedFd> {
        // As for a vCPU's.
        ioctl::stats_fd(&self.shared.fd).ok()
    }

    fn clock_ns(&self) -> u64 {
        // The ioctl has nothing to fail at but its argument.
        self.shared.fd.get_clock().map_or(0, |clock| clock.clock)
    }

    fn set_clock_ns(&self, ns: u64) {
        let clock = kvm_clock_data { clock: ns, ..Default::default() };
        // As above.
        let _set = self.shared.fd.set_clock(&clock);
        self.shared.clock_sets.fetch_add(1, Ordering::AcqRel);
        if let Some(split) = self.shared.split() {
            split.set_clock_ns(ns);
        }
    }
}
