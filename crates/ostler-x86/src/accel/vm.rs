//! A virtual machine of the software accelerator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ostler_engine::accel::Result;
use ostler_engine::irq::{self, IrqFd, MsiRouteEntry};
use ostler_engine::regs::IrqchipState;
use ostler_engine::{AccelError, Msi, Vcpu, Vm};
use ostler_memory::GuestRam;

use crate::accel::SoftVcpu;
use crate::cpu::Cpu;
use crate::irqchip::Irqchip;
use crate::jit::Translate;
use crate::signals::Signals;
use crate::vm::VmShared;

/// vCPUs of a VM at most; the APIC ids are below.
const MAX_VCPUS: u32 = 1024;

/// One virtual machine.
#[derive(Debug)]
pub struct SoftVm {
    shared: Arc<VmShared>,
    /// A vCPU was created: too late for an irqchip.
    has_vcpus: AtomicBool,
}

impl SoftVm {
    pub fn new(memory: Arc<GuestRam>, translate: Translate) -> Self {
        Self { shared: Arc::new(VmShared::new(memory, translate)), has_vcpus: AtomicBool::new(false) }
    }

    fn irqchip(&self) -> Result<&Arc<Irqchip>> {
        self.shared.irqchip().ok_or(AccelError::NoIrqchip)
    }
}

impl Vm for SoftVm {
    fn memory(&self) -> &Arc<GuestRam> {
        self.shared.memory()
    }

    fn synchronize(&self) -> Result<()> {
        self.shared.synchronize(None, || {});
        Ok(())
    }

    fn max_vcpus(&self) -> u32 {
        MAX_VCPUS
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        if id >= MAX_VCPUS {
            return Err(AccelError::TooManyVcpus { id, limit: MAX_VCPUS });
        }
        let signals = Arc::new(Signals::default());
        let sibling = self.shared.add_sibling(id, Arc::clone(&signals)).ok_or(AccelError::VcpuExists(id))?;
        self.has_vcpus.store(true, Ordering::Release);
        let lapic = self.shared.irqchip().map(|chip| chip.add_lapic(id, signals));
        let mut cpu = Cpu::new(Arc::clone(&self.shared), sibling, lapic);
        cpu.power_up();
        Ok(Box::new(SoftVcpu::new(cpu)))
    }

    fn create_irqchip(&self) -> Result<()> {
        if self.shared.irqchip().is_none() && self.has_vcpus.load(Ordering::Acquire) {
            return Err(AccelError::VcpusExist);
        }
        self.shared.create_irqchip()
    }

    fn set_irq_line(&self, gsi: u32, level: bool) {
        if let Some(chip) = self.shared.irqchip() {
            chip.set_irq_line(gsi, level);
        }
    }

    fn signal_msi(&self, msi: Msi) -> bool {
        self.shared.irqchip().is_some_and(|chip| chip.signal_msi(msi))
    }

    fn set_msi_routes(&self, routes: &[MsiRouteEntry]) -> Result<()> {
        irq::check_routes(routes)?;
        self.irqchip()?.set_msi_routes(routes);
        Ok(())
    }

    fn bind_irqfd(&self, irqfd: IrqFd) -> Result<()> {
        irq::check_irqfd(&irqfd)?;
        self.irqchip()?.bind_irqfd(irqfd)
    }

    fn unbind_irqfd(&self, gsi: u32) -> bool {
        self.shared.irqchip().is_some_and(|chip| chip.unbind_irqfd(gsi))
    }

    fn irqchip_state(&self) -> Result<IrqchipState> {
        Ok(self.irqchip()?.state())
    }

    fn set_irqchip_state(&self, state: &IrqchipState) -> Result<()> {
        self.irqchip()?.set_state(state)
    }

    fn clock_ns(&self) -> u64 {
        self.shared.clock.now_ns()
    }

    fn set_clock_ns(&self, ns: u64) {
        self.shared.clock.set_ns(ns);
        if let Some(chip) = self.shared.irqchip() {
            chip.clock_changed();
        }
    }
}
