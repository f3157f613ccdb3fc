//! Exits as the dataclasses of `ostler.engine.exits`.

use ostler_engine::Exit;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

macro_rules! exit {
    ($py:expr, $name:literal, $arguments:expr) => {{
        static CLASS: pyo3::sync::PyOnceLock<Py<PyAny>> = pyo3::sync::PyOnceLock::new();
        CLASS.import($py, "ostler.engine.exits", $name)?.call1($arguments)
    }};
}

pub fn to_python(py: Python<'_>, exit: Exit) -> PyResult<Bound<'_, PyAny>> {
    match exit {
        Exit::IoIn { port, size } => exit!(py, "IoIn", (port, size)),
        Exit::IoOut { port, data } => exit!(py, "IoOut", (port, PyBytes::new(py, &data))),
        Exit::MmioRead { gpa, size } => exit!(py, "MmioRead", (gpa, size)),
        Exit::MmioWrite { gpa, data } => exit!(py, "MmioWrite", (gpa, PyBytes::new(py, &data))),
        Exit::Hlt => exit!(py, "Hlt", ()),
        Exit::Shutdown => exit!(py, "Shutdown", ()),
        Exit::Interrupted => exit!(py, "Interrupted", ()),
        Exit::Debug { rip, dr6, exception } => exit!(py, "Debug", (rip, dr6, exception)),
        Exit::InternalError(text) => exit!(py, "InternalError", (text,)),
    }
}
