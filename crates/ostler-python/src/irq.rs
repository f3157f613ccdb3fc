//! Interrupt lines and message-signalled interrupts.
//!
//! Nothing here waits for anybody who may need the interpreter, so nothing detaches from it: taking
//! it back costs far more than an interrupt.

use std::sync::{Arc, OnceLock};

use ostler_engine::Msi;
use ostler_engine::irq::{Level, SharedInput, SharedLine};
use pyo3::prelude::*;

/// An interrupt input of the VM's interrupt controllers (`virtual_machine.irq_line(gsi)`).
///
/// Devices that share a line have an `input` of it each.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct IrqLine {
    pub(crate) line: ostler_engine::IrqLine,
    /// The same for several devices, once there is a second.
    shared: OnceLock<Arc<SharedLine>>,
}

impl IrqLine {
    pub(crate) fn new(line: ostler_engine::IrqLine) -> Self {
        Self { line, shared: OnceLock::new() }
    }
}

#[pymethods]
impl IrqLine {
    /// The global system interrupt this line is.
    #[getter]
    fn gsi(&self) -> u32 {
        self.line.gsi()
    }

    /// Assert (true) or deassert the line.
    fn set_level(&self, level: bool) {
        self.line.set_level(level);
    }

    /// A wire of one of several devices that share the line, which is active while any of them is.
    fn input(&self) -> IrqInput {
        let shared = self.shared.get_or_init(|| SharedLine::new(self.line.clone()));
        IrqInput { input: Arc::new(shared.input()) }
    }

    /// One edge: assert and deassert.
    fn pulse(&self) {
        self.line.pulse();
    }

    fn __repr__(&self) -> String {
        format!("IrqLine({})", self.line.gsi())
    }
}

/// One device's wire to a line that several share.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct IrqInput {
    pub(crate) input: Arc<SharedInput>,
}

#[pymethods]
impl IrqInput {
    /// Pull (true) or let go of the line.
    fn set_level(&self, level: bool) {
        self.input.set_level(level);
    }
}

/// One message-signalled interrupt: a row of an MSI-X table and its pending bit.
///
/// New routes are masked, as MSI-X entries are after reset.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct MsiRoute {
    pub(crate) route: Arc<ostler_engine::MsiRoute>,
}

#[pymethods]
impl MsiRoute {
    /// Replace the message: a 64-bit address and 32 bits of data.
    fn update(&self, address: u64, data: u32) {
        self.route.update(Msi { address, data });
    }

    #[getter]
    fn address(&self) -> u64 {
        self.route.msi().address
    }

    #[getter]
    fn data(&self) -> u32 {
        self.route.msi().data
    }

    /// Whether interrupts are held back. Unmasking fires the one that is pending.
    #[getter]
    fn get_masked(&self) -> bool {
        self.route.is_masked()
    }

    #[setter]
    fn set_masked(&self, masked: bool) {
        self.route.set_masked(masked);
    }

    /// Whether an interrupt waits for the mask to go. Setting it (from a saved state) fires nothing.
    #[getter]
    fn get_pending(&self) -> bool {
        self.route.is_pending()
    }

    #[setter]
    fn set_pending(&self, pending: bool) {
        self.route.set_pending(pending);
    }

    /// Send the message, or, while masked, set the pending bit.
    fn signal(&self) {
        self.route.signal();
    }

    fn __repr__(&self) -> String {
        let Msi { address, data } = self.route.msi();
        format!("MsiRoute(address={address:#x}, data={data:#x}, masked={})", self.route.is_masked())
    }
}
