//! One virtual CPU.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ostler_engine::accel::AccelError;
use ostler_engine::counters::{DEVICES, ExitKind};
use ostler_engine::regs::{DebugRegs, Events, GuestDebug, LapicState, MpState, MsrEntry, Regs, Sregs, Xcr, XsaveArea};
use ostler_engine::ticker::Ticking;
use ostler_engine::{Bus, Exit, VcpuHandle};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyDict, PyList, PyString};

use crate::bus::raising;
use crate::convert::{Mirror, list_from_python};
use crate::error::raise;
use crate::exits;

/// A virtual CPU (`virtual_machine.create_vcpu`).
///
/// Registers are read and written as whole sets: `regs = vcpu.regs; regs.rax = 5; vcpu.regs = regs`,
/// or by name: `vcpu.set_regs(rax=5)`. While the vCPU runs that is an `OstlerError`.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) handle: Arc<VcpuHandle>,
    pub(crate) bus: Arc<Bus>,
}

type Accel<T> = Result<T, AccelError>;

impl Vcpu {
    fn with<R>(&self, act: impl FnOnce(&mut dyn ostler_engine::Vcpu) -> Accel<R>) -> PyResult<R> {
        self.handle.with(act).map_err(raise)
    }

    /// Reads a register set into its Python form.
    fn get<'py, T: Mirror>(
        &self,
        py: Python<'py>,
        get: impl FnOnce(&dyn ostler_engine::Vcpu) -> Accel<T>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.with(|vcpu| get(vcpu))?.to_python(py)
    }

    /// Writes a register set from its Python form.
    fn set<T: Mirror>(
        &self,
        value: &Bound<'_, PyAny>,
        set: impl FnOnce(&mut dyn ostler_engine::Vcpu, &T) -> Accel<()>,
    ) -> PyResult<()> {
        let value = T::from_python(value)?;
        self.with(|vcpu| set(vcpu, &value))
    }

    /// Runs on until an exit that somebody asked for; in between, Python sees to its signals.
    fn run_until_exit(&self, py: Python<'_>) -> PyResult<Exit> {
        let _ticking = Ticking::start(&self.handle)?;
        loop {
            let (exit, raised) = raising(|| py.detach(|| self.handle.run(&*self.bus)));
            raised.map_or(Ok(()), Err)?;
            match exit.map_err(raise)? {
                Exit::Interrupted if !self.handle.take_kick() => py.check_signals()?,
                exit => return Ok(exit),
            }
        }
    }
}

/// Sets the named attributes of `target`; a name it does not have is an `AttributeError`.
fn set_attributes(target: &Bound<'_, PyAny>, values: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    for (name, value) in values.into_iter().flatten() {
        target.setattr(name.cast::<PyString>()?, value)?;
    }
    Ok(())
}

#[pymethods]
impl Vcpu {
    /// The vCPU's number and APIC id.
    #[getter]
    fn id(&self) -> u32 {
        self.handle.id()
    }

    /// Run guest code until an exit: one of `ostler.engine.Exit`.
    ///
    /// Accesses that the bus answers are no exits. Raises what a Python device raised, and
    /// `KeyboardInterrupt` on Ctrl-C; the vCPU can be run on afterwards.
    fn run<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let exit = self.run_until_exit(py)?;
        exits::to_python(py, exit)
    }

    /// Answer the read of the last `IoIn` or `MmioRead` with exactly its size in bytes,
    /// little-endian. Unanswered, the guest reads ones.
    fn supply_read(&self, data: PyBackedBytes) -> PyResult<()> {
        self.with(|vcpu| vcpu.supply_read(&data))
    }

    /// Make the `run` under way, or the next one, return `Interrupted`. Callable from any thread.
    fn kick(&self) {
        self.handle.kick();
    }

    /// Queue an external interrupt, in a VM without interrupt controllers.
    fn interrupt(&self, vector: u8) -> PyResult<()> {
        self.with(|vcpu| vcpu.interrupt(vector))
    }

    /// Queue a non-maskable interrupt.
    fn nmi(&self) -> PyResult<()> {
        self.with(|vcpu| vcpu.nmi())
    }

    /// General-purpose registers, RIP and RFLAGS.
    #[getter]
    fn get_regs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |vcpu| vcpu.regs())
    }

    #[setter(regs)]
    fn replace_regs(&self, regs: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<Regs>(regs, |vcpu, regs| vcpu.set_regs(regs))
    }

    /// Change some general-purpose registers: `set_regs(rax=5, rip=0x1000)`.
    #[pyo3(signature = (**registers))]
    fn set_regs(&self, py: Python<'_>, registers: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let regs = self.get_regs(py)?;
        set_attributes(&regs, registers)?;
        self.replace_regs(&regs)
    }

    /// Segment, descriptor-table and control registers.
    #[getter]
    fn get_sregs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |vcpu| vcpu.sregs())
    }

    #[setter(sregs)]
    fn replace_sregs(&self, sregs: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<Sregs>(sregs, |vcpu, sregs| vcpu.set_sregs(sregs))
    }

    /// Change some segment or control registers: `set_sregs(cr0=0x11)`. Page directory pointers of PAE
    /// paging are loaded from memory, unless `pdptrs` says otherwise.
    #[pyo3(signature = (**registers))]
    fn set_sregs(&self, py: Python<'_>, registers: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let sregs = self.get_sregs(py)?;
        sregs.setattr("pdptrs", py.None())?;
        set_attributes(&sregs, registers)?;
        self.replace_sregs(&sregs)
    }

    /// DR0-DR3, DR6 and DR7.
    #[getter]
    fn get_debug_regs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |vcpu| vcpu.debug_regs())
    }

    #[setter]
    fn set_debug_regs(&self, regs: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<DebugRegs>(regs, |vcpu, regs| vcpu.set_debug_regs(regs))
    }

    /// x87, SSE and AVX registers as an XSAVE image.
    #[getter]
    fn get_xsave<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |vcpu| vcpu.xsave())
    }

    #[setter]
    fn set_xsave(&self, area: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<XsaveArea>(area, |vcpu, area| vcpu.set_xsave(area))
    }

    /// Extended control registers by number; 0 is XCR0.
    #[getter]
    fn get_xcrs(&self) -> PyResult<BTreeMap<u32, u64>> {
        let xcrs = self.with(|vcpu| vcpu.xcrs())?;
        Ok(xcrs.into_iter().map(|xcr| (xcr.index, xcr.value)).collect())
    }

    #[setter]
    fn set_xcrs(&self, xcrs: BTreeMap<u32, u64>) -> PyResult<()> {
        let xcrs: Vec<_> = xcrs.into_iter().map(|(index, value)| Xcr { index, value }).collect();
        self.with(|vcpu| vcpu.set_xcrs(&xcrs))
    }

    /// The value of a model-specific register.
    fn msr(&self, index: u32) -> PyResult<u64> {
        self.with(|vcpu| vcpu.msr(index))
    }

    /// Write a model-specific register; `StateError` when it does not exist or take the value.
    fn set_msr(&self, index: u32, value: u64) -> PyResult<()> {
        self.with(|vcpu| vcpu.set_msr(MsrEntry { index, value }))
    }

    /// Every model-specific register that is part of the vCPU's state, by number.
    fn msrs(&self) -> PyResult<BTreeMap<u32, u64>> {
        self.with(|vcpu| vcpu.msr_list().into_iter().map(|index| Ok((index, vcpu.msr(index)?))).collect())
    }

    /// Write several model-specific registers, in the order given, going on after one that is refused.
    ///
    /// `StateError` with the first refusal at the end; with `keep_going` no error, but the refused ones by
    /// number, each with the reason.
    #[pyo3(signature = (msrs, *, keep_going=false))]
    fn set_msrs(&self, msrs: &Bound<'_, PyDict>, keep_going: bool) -> PyResult<BTreeMap<u32, String>> {
        let entry = |(index, value): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
            Ok(MsrEntry { index: index.extract()?, value: value.extract()? })
        };
        let entries = msrs.iter().map(entry).collect::<PyResult<Vec<_>>>()?;
        let refused = self.with(|vcpu| Ok(vcpu.set_msrs(&entries)))?;
        if keep_going {
            return Ok(refused.into_iter().map(|(index, error)| (index, error.to_string())).collect());
        }
        refused.into_iter().next().map_or(Ok(BTreeMap::new()), |(_, error)| Err(raise(error)))
    }

    /// How many times in a millisecond the guest's TSC counts. Set it before the guest runs; `HostError`
    /// where the TSC cannot be scaled that far.
    #[getter]
    fn get_tsc_khz(&self) -> PyResult<u32> {
        self.with(|vcpu| vcpu.tsc_khz())
    }

    #[setter]
    fn set_tsc_khz(&self, khz: u32) -> PyResult<()> {
        self.with(|vcpu| vcpu.set_tsc_khz(khz))
    }

    /// What CPUID answers, a list of `CpuidEntry`.
    #[getter]
    fn get_cpuid<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let entries = self.with(|vcpu| Ok(vcpu.cpuid()))?;
        let entries = entries.iter().map(|entry| entry.to_python(py)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, entries)
    }

    #[setter]
    fn set_cpuid(&self, entries: &Bound<'_, PyAny>) -> PyResult<()> {
        let entries = list_from_python(entries)?;
        self.with(|vcpu| vcpu.set_cpuid(&entries))
    }

    /// Exceptions and interrupts under way.
    #[getter]
    fn get_events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |vcpu| vcpu.events())
    }

    #[setter]
    fn set_events(&self, events: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<Events>(events, |vcpu, events| vcpu.set_events(events))
    }

    /// What the vCPU is doing.
    #[getter]
    fn get_mp_state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |vcpu| vcpu.mp_state())
    }

    #[setter]
    fn set_mp_state(&self, state: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<MpState>(state, |vcpu, state| vcpu.set_mp_state(*state))
    }

    /// The local APIC's registers; `ConfigError` in a VM without interrupt controllers.
    #[getter]
    fn get_lapic<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |vcpu| vcpu.lapic())
    }

    #[setter]
    fn set_lapic(&self, state: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<LapicState>(state, |vcpu, state| vcpu.set_lapic(state))
    }

    /// Set breakpoints and single-stepping for a debugger outside the guest.
    fn set_guest_debug(&self, debug: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set::<GuestDebug>(debug, |vcpu, debug| vcpu.set_guest_debug(*debug))
    }

    /// The guest physical address of a linear one; `None` where nothing is mapped.
    fn translate(&self, linear: u64) -> PyResult<Option<u64>> {
        self.with(|vcpu| Ok(vcpu.translate(linear)))
    }

    /// Instructions retired, where the accelerator counts them.
    #[getter]
    fn instructions(&self) -> PyResult<Option<u64>> {
        self.with(|vcpu| Ok(vcpu.instructions()))
    }

    /// How often the vCPU needed somebody, by kind. Readable while it runs.
    #[getter]
    fn counters(&self) -> BTreeMap<&'static str, u64> {
        let counters = self.handle.counters();
        ExitKind::ALL.into_iter().map(|kind| (kind.name(), counters.get(kind))).collect()
    }

    /// How often devices answered the vCPU, by name; `nobody` is the open bus. Readable while it runs.
    #[getter]
    fn device_accesses(&self) -> BTreeMap<String, u64> {
        let devices = self.handle.counters().devices();
        let names = self.bus.device_names();
        let others = "others".into();
        let told_apart = names.iter().take(DEVICES - 1).chain((names.len() >= DEVICES).then_some(&others));
        let counted = (0..).zip(told_apart).map(|(number, name)| (name.to_string(), devices.accesses(number)));
        counted.filter(|(_, accesses)| *accesses > 0).collect()
    }

    /// CPU time in nanoseconds that devices written in Python took, from a sample of the accesses.
    #[getter]
    fn decision_ns(&self) -> u64 {
        self.handle.counters().devices().decision_ns()
    }

    /// A descriptor of KVM's binary statistics, where KVM runs the vCPU; it lives as long as this does.
    #[getter]
    fn statistics_fd(&self) -> Option<i32> {
        self.handle.statistics().map(|fd| fd.as_raw_fd())
    }

    /// The number (TID) of the thread that runs the vCPU, while it has one of its own.
    #[getter]
    fn thread(&self) -> Option<i32> {
        self.handle.thread()
    }

    fn __repr__(&self) -> String {
        format!("Vcpu({})", self.handle.id())
    }
}
