//! Emulated Ethernet controllers.

use std::collections::HashMap;
use std::sync::Arc;

use ostler_engine::BusDevice;
use ostler_engine::irq::Level;
use ostler_memory::GuestRam;
use ostler_nic::{Card, Chip, E1000, Rtl8139, Window};
use ostler_virtio::net::Nic;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::Kind;
use crate::irq::IrqInput;
use crate::net::{NetLink, numbers};

/// An Ethernet controller between a bus and a cable. Its thread runs until `stop`.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct EthernetChip {
    card: Card,
}

impl EthernetChip {
    /// A controller of the kind `model`.
    pub(crate) fn new(ram: &Arc<GuestRam>, model: &str, link: &NetLink, mac: [u8; 6]) -> PyResult<Self> {
        let link = Arc::clone(&link.link);
        let up = link.is_up();
        let chip: Box<dyn Chip> = match model {
            "e1000" => Box::new(E1000::new(mac, up)),
            "rtl8139" => Box::new(Rtl8139::new(mac, up, true)),
            "rtl8139-plain" => Box::new(Rtl8139::new(mac, up, false)),
            _ => return Err(PyValueError::new_err(format!("no Ethernet controller {model:?}"))),
        };
        let nic = Arc::new(Nic::new(link, mac, 1));
        let card = Card::start(&format!("net-{}", &model[..model.len().min(11)]), chip, nic, Arc::clone(ram));
        let card = card.map_err(|error| Kind::Host.error(format!("no thread for a network card: {error}")))?;
        Ok(Self { card })
    }
}

#[pymethods]
impl EthernetChip {
    /// The registers behind base address register `bar`, for `Bus.add`.
    fn window(&self, bar: u8) -> ChipWindow {
        ChipWindow { window: self.card.window(bar) }
    }

    /// Have the interrupt pin drive `line`: an `IrqInput`, or anything with `set_level`, which is
    /// called from any thread.
    fn connect(&self, py: Python<'_>, line: Bound<'_, PyAny>) -> PyResult<()> {
        let line: Box<dyn Level> = match line.cast::<IrqInput>() {
            Ok(input) => Box::new(Arc::clone(&input.get().input)),
            Err(_) => Box::new(PythonLine(line.getattr("set_level")?.unbind())),
        };
        py.detach(|| self.card.connect(line));
        Ok(())
    }

    /// What the PCI command register says: the pin is disabled, the function may access memory.
    fn command(&self, py: Python<'_>, intx_disabled: bool, master: bool) {
        py.detach(|| self.card.command(intx_disabled, master));
    }

    /// The level of the pin, whether or not it is disabled.
    #[getter]
    fn interrupting(&self, py: Python<'_>) -> bool {
        py.detach(|| self.card.interrupting())
    }

    /// The cable has a carrier or has lost it.
    fn set_link(&self, py: Python<'_>, up: bool) {
        py.detach(|| self.card.set_link(up));
    }

    /// The state after power-up.
    fn reset(&self, py: Python<'_>) {
        py.detach(|| self.card.reset());
    }

    /// The chip's state: words by the names of its parts.
    fn save(&self, py: Python<'_>) -> HashMap<&'static str, Vec<u32>> {
        py.detach(|| self.card.save()).into_iter().collect()
    }

    /// Take a saved state; `ValueError`, and nothing has changed, when it is not this chip's.
    fn load(&self, py: Python<'_>, saved: HashMap<String, Vec<u32>>) -> PyResult<()> {
        let saved: Vec<_> = saved.into_iter().collect();
        py.detach(|| self.card.load(&saved)).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Frames, bytes, dropped and faulty frames that came in, then the same of what went out.
    fn counters(&self) -> [[u64; 4]; 2] {
        let nic = self.card.nic();
        [&nic.received, &nic.sent].map(numbers)
    }

    /// End the thread.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.card.stop());
    }
}

/// A range of registers that the bus asks without the interpreter.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct ChipWindow {
    window: Window,
}

impl ChipWindow {
    pub(crate) fn device(&self) -> Arc<dyn BusDevice> {
        Arc::new(self.window.clone())
    }
}

#[pymethods]
impl ChipWindow {
    /// A load of 1, 2, 4 or 8 bytes.
    fn read(&self, py: Python<'_>, offset: u64, size: usize) -> PyResult<u64> {
        let mut bytes = [0; 8];
        let data = bytes.get_mut(..size).ok_or_else(too_wide)?;
        py.detach(|| BusDevice::read(&self.window, offset, data));
        Ok(u64::from_le_bytes(bytes))
    }

    /// A store of 1, 2, 4 or 8 bytes.
    fn write(&self, py: Python<'_>, offset: u64, size: usize, value: u64) -> PyResult<()> {
        let bytes = value.to_le_bytes();
        let data = bytes.get(..size).ok_or_else(too_wide)?;
        py.detach(|| BusDevice::write(&self.window, offset, data));
        Ok(())
    }
}

fn too_wide() -> PyErr {
    PyValueError::new_err("an access has at most 8 bytes")
}

/// A line whose other end is Python.
#[derive(Debug)]
struct PythonLine(Py<PyAny>);

impl Level for PythonLine {
    fn set_level(&self, level: bool) {
        let _gone = Python::try_attach(|py| {
            if let Err(error) = self.0.call1(py, (level,)) {
                error.write_unraisable(py, Some(self.0.bind(py)));
            }
        });
    }
}
