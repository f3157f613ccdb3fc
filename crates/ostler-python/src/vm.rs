//! The virtual machine.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use ostler_engine::irq::{IrqFd, MsiRouteEntry};
use ostler_engine::regs::IrqchipState;
use ostler_engine::{Accelerator, Messages, Msi, Vm, VmClock};
use ostler_kvm::Options;
use ostler_memory::GuestRam;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::accelerators;
use crate::bus::{Bus, parse_space};
use crate::convert::Mirror;
use crate::error::raise;
use crate::fd;
use crate::irq::{IrqLine, MsiRoute};
use crate::memory::Memory;
use crate::threads::{Threads, on_exit};
use crate::vcpu::Vcpu;

/// A virtual machine of an accelerator: memory, a bus, a clock, and what vCPUs are made from.
///
/// `ostler.engine.VirtualMachine` is the one to use: it stops the threads when the interpreter ends.
#[pyclass(frozen, subclass, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtualMachine {
    accelerator: Arc<dyn Accelerator>,
    vm: Arc<dyn Vm>,
    memory: Py<Memory>,
    bus: Py<Bus>,
    clock: Py<Clock>,
    messages: Arc<Messages>,
    statistics: Option<OwnedFd>,
}

#[pymethods]
impl VirtualMachine {
    #[new]
    #[pyo3(signature = (accelerator="soft", *, soft_jit="on", dirty_ring=None, split_irqchip=false))]
    fn new(
        py: Python<'_>,
        accelerator: &str,
        soft_jit: &str,
        dirty_ring: Option<u32>,
        split_irqchip: bool,
    ) -> PyResult<Self> {
        let options = Options { dirty_ring, split_irqchip };
        let accelerator = accelerators::by_name(accelerator, soft_jit, options)?;
        let vm = accelerator.create_vm(Arc::new(GuestRam::new())).map_err(raise)?;
        let clock = Arc::new(VmClock::new(Arc::clone(&vm)));
        Ok(Self {
            accelerator,
            memory: Py::new(py, Memory { vm: Arc::clone(&vm) })?,
            bus: Py::new(py, Bus { bus: Arc::new(ostler_engine::Bus::new()), vm: Arc::clone(&vm) })?,
            clock: Py::new(py, Clock { clock })?,
            messages: Messages::new(Arc::clone(&vm)),
            statistics: vm.statistics(),
            vm,
        })
    }

    /// The accelerator's name.
    #[getter]
    fn accelerator(&self) -> &'static str {
        self.accelerator.name()
    }

    /// The guest physical memory.
    #[getter]
    fn memory(&self, py: Python<'_>) -> Py<Memory> {
        self.memory.clone_ref(py)
    }

    /// Who answers which port and address.
    #[getter]
    fn bus(&self, py: Python<'_>) -> Py<Bus> {
        self.bus.clone_ref(py)
    }

    /// The VM's clock.
    #[getter]
    fn clock(&self, py: Python<'_>) -> Py<Clock> {
        self.clock.clone_ref(py)
    }

    /// How many vCPUs the VM can have.
    #[getter]
    fn max_vcpus(&self) -> u32 {
        self.vm.max_vcpus()
    }

    /// A descriptor of KVM's binary statistics of the machine as a whole; it lives as long as this does.
    #[getter]
    fn statistics_fd(&self) -> Option<RawFd> {
        self.statistics.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// What CPUID answers when nobody asks for another, or with `everything` can answer at most here: a
    /// list of `CpuidEntry`.
    #[pyo3(signature = (*, everything=false))]
    fn supported_cpuid<'py>(&self, py: Python<'py>, everything: bool) -> PyResult<Bound<'py, PyList>> {
        let entries = if everything { self.accelerator.possible_cpuid() } else { self.accelerator.supported_cpuid() };
        let entries = entries.iter().map(|entry| entry.to_python(py)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, entries)
    }

    /// Add PIC, IOAPIC, PIT and a local APIC per vCPU; before the first vCPU.
    fn create_irqchip(&self) -> PyResult<()> {
        self.vm.create_irqchip().map_err(raise)
    }

    /// Let the guest's writes to `size` bytes from `base` on wait until it next needs somebody; false where the
    /// accelerator brings every write at once.
    fn coalesce(&self, space: &str, base: u64, size: u32) -> PyResult<bool> {
        Ok(self.vm.coalesce(parse_space(space)?, base, size))
    }

    /// The state of PIC, IOAPIC and PIT.
    #[getter]
    fn get_irqchip_state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.vm.irqchip_state().map_err(raise)?.to_python(py)
    }

    #[setter]
    fn set_irqchip_state(&self, state: &Bound<'_, PyAny>) -> PyResult<()> {
        self.vm.set_irqchip_state(&IrqchipState::from_python(state)?).map_err(raise)
    }

    /// The interrupt input `gsi`: 0-15 reach PIC and IOAPIC, 16-23 the IOAPIC.
    fn irq_line(&self, gsi: u32) -> IrqLine {
        IrqLine::new(ostler_engine::IrqLine::new(Arc::clone(&self.vm), gsi))
    }

    /// A new message-signalled interrupt, masked.
    fn msi_route(&self) -> MsiRoute {
        MsiRoute { route: Arc::new(ostler_engine::MsiRoute::new(Arc::clone(&self.messages))) }
    }

    /// Replace the messages that interrupt numbers stand for: `{number: (address, data)}`, from 24 on.
    fn set_msi_routes(&self, routes: BTreeMap<u32, (u64, u32)>) -> PyResult<()> {
        let entry = |(gsi, (address, data))| MsiRouteEntry { gsi, msi: Msi { address, data } };
        let routes: Vec<_> = routes.into_iter().map(entry).collect();
        self.messages.choose(&routes).map_err(raise)
    }

    /// Interrupt the guest whenever the eventfd `fd` is written to, by whatever process (KVM's irqfd): `gsi` is
    /// a line, which makes one edge, or a number of `set_msi_routes`.
    ///
    /// With `resample_fd`, for level-triggered lines, the line stays asserted until the guest ends the
    /// interrupt at its APIC; it falls then, and `resample_fd` is written to. Both are duplicated.
    #[pyo3(signature = (gsi, fd, resample_fd=None))]
    fn bind_irqfd(&self, gsi: u32, fd: RawFd, resample_fd: Option<RawFd>) -> PyResult<()> {
        let resample = resample_fd.map(fd::duplicate).transpose()?;
        self.vm.bind_irqfd(IrqFd { gsi, event: fd::duplicate(fd)?, resample }).map_err(raise)
    }

    /// Let go of the eventfds bound to `gsi`; false when there are none.
    fn unbind_irqfd(&self, py: Python<'_>, gsi: u32) -> bool {
        py.detach(|| self.vm.unbind_irqfd(gsi))
    }

    /// Create the vCPU with APIC id `id`, as after power-up. 0 is the boot processor.
    fn create_vcpu(&self, id: u32) -> PyResult<Vcpu> {
        let vcpu = self.vm.create_vcpu(id).map_err(raise)?;
        Ok(Vcpu { handle: Arc::new(ostler_engine::VcpuHandle::new(vcpu)), bus: Arc::clone(&self.bus.get().bus) })
    }

    /// Run each vCPU on a thread of its own, named `vcpu0`, `vcpu1`...
    ///
    /// `on_exit(id, exit)` is called on the vCPU's thread for every exit that nobody answered; the
    /// VM is paused then. With `paused`, `Threads.resume` starts the guest.
    #[pyo3(signature = (vcpus, on_exit, *, paused=false))]
    fn start(&self, py: Python<'_>, vcpus: Vec<Py<Vcpu>>, on_exit: Py<PyAny>, paused: bool) -> PyResult<Threads> {
        let vcpus = vcpus.iter().map(|vcpu| Arc::clone(&vcpu.get().handle)).collect();
        let on_exit = self::on_exit(on_exit);
        let (bus, clock) = (Arc::clone(&self.bus.get().bus), Arc::clone(&self.clock.get().clock));
        // Reading and unpacking a kernel took memory that is not needed again.
        py.detach(ostler_memory::heap::give_back);
        let threads = py.detach(|| ostler_engine::Threads::start(vcpus, bus, clock, on_exit, paused));
        threads.map(Threads::new).map_err(raise)
    }

    /// Let go of every device on the bus, so that no cycle keeps the VM's memory.
    fn close(&self, py: Python<'_>) {
        self.bus.get().clear(py);
    }
}

/// The VM's clock (`virtual_machine.clock`): nanoseconds, standing still while the threads are
/// paused.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct Clock {
    clock: Arc<VmClock>,
}

#[pymethods]
impl Clock {
    /// Nanoseconds since the VM was created, less the time it was paused.
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Set the clock, the guest's paravirtual one included.
    fn set_ns(&self, ns: u64) {
        self.clock.set_ns(ns);
    }
}
