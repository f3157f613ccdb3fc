//! The bus, and devices written in Python on it.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::Arc;

use ostler_engine::bus::{BoundDoorbell, BusDevice, Space};
use ostler_engine::{IoHandler, Vm, fault};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::error::raise;
use crate::fd;
use crate::nic::ChipWindow;

/// The port and MMIO ranges of one VM (`virtual_machine.bus`).
///
/// A space is `"pio"` (64 Ki I/O ports) or `"mmio"` (guest physical addresses without memory).
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct Bus {
    pub(crate) bus: Arc<ostler_engine::Bus>,
    pub(crate) vm: Arc<dyn Vm>,
}

#[pymethods]
impl Bus {
    /// Give `size` bytes from `base` on to a Python device, or a `ChipWindow`, which answers without
    /// the interpreter.
    ///
    /// `device.read(offset, size) -> int` and `device.write(offset, size, value)` are called on
    /// vCPU threads with sizes 1, 2, 4 or 8, wholly inside the range. An exception there ends
    /// `Vcpu.run` with that exception; on a vCPU thread it pauses the VM with an `InternalError`
    /// that carries the traceback. `ConfigError` when the range overlaps another.
    #[pyo3(signature = (space, base, size, device, name=""))]
    fn add(
        &self,
        py: Python<'_>,
        space: &str,
        base: u64,
        size: u64,
        device: &Bound<'_, PyAny>,
        name: &str,
    ) -> PyResult<()> {
        let name = if name.is_empty() { name_of(device)? } else { name.to_owned() };
        let device: Arc<dyn BusDevice> = match device.cast::<ChipWindow>() {
            Ok(window) => window.get().device(),
            Err(_) => {
                let (read, write) = (device.getattr("read")?.unbind(), device.getattr("write")?.unbind());
                Arc::new(PythonDevice { name: name.clone(), read, write })
            }
        };
        let space = parse_space(space)?;
        py.detach(|| self.bus.add(space, base, size, &name, device)).map_err(raise)
    }

    /// Make any write to `size` bytes from `base` on add 1 to the eventfd `fd`, without the
    /// interpreter (KVM's ioeventfd); reads give zeros. `fd` is duplicated.
    #[pyo3(signature = (space, base, size, fd, name="eventfd"))]
    fn add_eventfd(&self, py: Python<'_>, space: &str, base: u64, size: u64, fd: RawFd, name: &str) -> PyResult<()> {
        let space = parse_space(space)?;
        let device = Arc::new(BoundDoorbell::new(Arc::clone(&self.vm), space, base, fd::eventfd(fd)?));
        py.detach(|| self.bus.add(space, base, size, name, device)).map_err(raise)
    }

    /// Take away the range that starts at `base`. An access under way still ends there.
    fn remove(&self, py: Python<'_>, space: &str, base: u64) -> PyResult<()> {
        let space = parse_space(space)?;
        py.detach(|| self.bus.remove(space, base)).map_err(raise)
    }

    /// Take away every range.
    pub(crate) fn clear(&self, py: Python<'_>) {
        py.detach(|| self.bus.clear());
    }

    /// Base, size and name of every range of a space, by address.
    fn ranges(&self, space: &str) -> PyResult<Vec<(u64, u64, String)>> {
        Ok(self.bus.list(parse_space(space)?))
    }

    /// Whether addresses that nobody owns read as ones and take writes silently; if not, such an
    /// access is an exit.
    #[getter]
    fn get_open_bus(&self) -> bool {
        self.bus.open_bus()
    }

    #[setter]
    fn set_open_bus(&self, open: bool) {
        self.bus.set_open_bus(open);
    }

    /// Read as a guest would; ones where nobody answers.
    fn read(&self, py: Python<'_>, space: &str, address: u64, size: usize) -> PyResult<u64> {
        let space = parse_space(space)?;
        check_size(size)?;
        let mut data = [0xff; 8];
        let (_answered, raised) = raising(|| py.detach(|| read(&self.bus, space, address, &mut data[..size])));
        raised.map_or(Ok(()), Err)?;
        data[size..].fill(0);
        Ok(u64::from_le_bytes(data))
    }

    /// Write as a guest would.
    fn write(&self, py: Python<'_>, space: &str, address: u64, size: usize, value: u64) -> PyResult<()> {
        let space = parse_space(space)?;
        check_size(size)?;
        let data = value.to_le_bytes();
        let (_answered, raised) = raising(|| py.detach(|| write(&self.bus, space, address, &data[..size])));
        raised.map_or(Ok(()), Err)
    }
}

fn read(bus: &ostler_engine::Bus, space: Space, address: u64, data: &mut [u8]) -> bool {
    match space {
        Space::Pio => bus.io_read(address as u16, data),
        Space::Mmio => bus.mmio_read(address, data),
    }
}

fn write(bus: &ostler_engine::Bus, space: Space, address: u64, data: &[u8]) -> bool {
    match space {
        Space::Pio => bus.io_write(address as u16, data),
        Space::Mmio => bus.mmio_write(address, data),
    }
}

pub fn parse_space(space: &str) -> PyResult<Space> {
    match space {
        "pio" => Ok(Space::Pio),
        "mmio" => Ok(Space::Mmio),
        _ => Err(PyValueError::new_err(format!("no space {space:?}; use \"pio\" or \"mmio\""))),
    }
}

fn check_size(size: usize) -> PyResult<()> {
    match size {
        1 | 2 | 4 | 8 => Ok(()),
        _ => Err(PyValueError::new_err(format!("an access has 1, 2, 4 or 8 bytes, not {size}"))),
    }
}

/// The device's own name for itself, else its class's.
fn name_of(device: &Bound<'_, PyAny>) -> PyResult<String> {
    match device.getattr_opt("name")? {
        Some(name) if name.is_instance_of::<PyString>() => name.extract(),
        _ => Ok(device.get_type().name()?.to_string()),
    }
}

/// A range's owner that is a Python object. The only place where a vCPU needs the interpreter.
#[derive(Debug)]
struct PythonDevice {
    name: String,
    read: Py<PyAny>,
    write: Py<PyAny>,
}

impl PythonDevice {
    fn call_read(&self, py: Python<'_>, offset: u64, data: &mut [u8]) -> PyResult<()> {
        let size = data.len();
        let value: u64 = self.read.call1(py, (offset, size))?.extract(py)?;
        if size < 8 && value >> (8 * size) != 0 {
            return Err(PyValueError::new_err(format!("{value:#x} is more than {size} bytes hold")));
        }
        data.copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }

    fn call_write(&self, py: Python<'_>, offset: u64, data: &[u8]) -> PyResult<()> {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        self.write.call1(py, (offset, data.len(), u64::from_le_bytes(value)))?;
        Ok(())
    }

    /// An exception has nobody to catch it here: it goes to whoever runs the vCPU.
    fn fail(&self, py: Python<'_>, verb: &str, offset: u64, error: PyErr) {
        let reported = fault::report(format!("{}: {verb} at offset {offset:#x}\n{}", self.name, traceback(py, &error)));
        let unclaimed = RAISED.with_borrow_mut(|raised| match raised {
            Some(slot) => {
                slot.get_or_insert(error);
                None
            }
            None => Some(error),
        });
        if let (false, Some(error)) = (reported, unclaimed) {
            error.write_unraisable(py, None);
        }
    }
}

impl BusDevice for PythonDevice {
    fn decides(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        // Without an interpreter (it is being finalized) the device is gone, as from an open bus.
        let _gone = Python::try_attach(|py| {
            if let Err(error) = self.call_read(py, offset, data) {
                self.fail(py, "read", offset, error);
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let _gone = Python::try_attach(|py| {
            if let Err(error) = self.call_write(py, offset, data) {
                self.fail(py, "write", offset, error);
            }
        });
    }
}

/// The exception as Python prints it.
fn traceback(py: Python<'_>, error: &PyErr) -> String {
    let parts = (error.get_type(py), error.value(py), error.traceback(py));
    let lines = py.import("traceback").and_then(|module| module.call_method1("format_exception", parts));
    let lines = lines.and_then(|lines| lines.extract::<Vec<String>>());
    lines.map_or_else(|_| error.to_string(), |lines| lines.concat())
}

thread_local! {
    /// The first exception of a device, when there is Python code up the stack to raise it to.
    static RAISED: RefCell<Option<Option<PyErr>>> = const { RefCell::new(None) };
}

/// Runs `act` and gives the first exception that a device raised meanwhile on this thread.
pub fn raising<R>(act: impl FnOnce() -> R) -> (R, Option<PyErr>) {
    let outer = RAISED.replace(Some(None));
    let result = act();
    (result, RAISED.replace(outer).flatten())
}
