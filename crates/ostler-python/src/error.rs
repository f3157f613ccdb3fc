//! The engine's errors as classes of `ostler.errors`.

use std::error::Error;
use std::io;

use ostler_engine::{AccelError, BusError, ThreadError, VcpuError};
use ostler_memory::MemoryError;
use pyo3::exceptions::{PyIndexError, PyOSError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// A class of `ostler.errors`.
#[derive(Clone, Copy)]
pub enum Kind {
    /// What the caller asked for cannot be built.
    Config,
    /// The host refuses.
    Host,
    /// A register value that no CPU can hold.
    State,
    /// The call does not fit what the VM is doing right now.
    Usage,
    /// A disk image is damaged, or cannot do what was asked.
    Disk,
}

impl Kind {
    fn class(self, py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
        static CLASSES: [PyOnceLock<Py<PyType>>; 5] = [const { PyOnceLock::new() }; 5];
        let name = match self {
            Self::Config => "ConfigError",
            Self::Host => "HostError",
            Self::State => "StateError",
            Self::Usage => "OstlerError",
            Self::Disk => "DiskError",
        };
        CLASSES[self as usize].import(py, "ostler.errors", name).cloned()
    }

    /// An exception of this class.
    pub fn error(self, message: String) -> PyErr {
        Python::attach(|py| match self.class(py) {
            Ok(class) => PyErr::from_type(class, message),
            Err(error) => error,
        })
    }
}

/// An `OSError` that knows its `errno`, as those that Python raises do.
pub fn os_error(error: &io::Error) -> PyErr {
    match error.raw_os_error() {
        // "No such file or directory (os error 2)" without its end is what strerror says.
        Some(number) => {
            let said = error.to_string();
            let text = said.rsplit_once(" (os error").map_or(said.as_str(), |(text, _)| text).to_owned();
            PyOSError::new_err((number, text))
        }
        None => PyOSError::new_err(error.to_string()),
    }
}

/// An engine error as a Python exception: `ram.read(..).map_err(raise)?`.
pub fn raise<E: Raise>(error: E) -> PyErr {
    error.raise()
}

/// An error that has a class in Python.
pub trait Raise: Error + Sized {
    fn raise(self) -> PyErr;
}

/// The error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

impl Raise for MemoryError {
    fn raise(self) -> PyErr {
        let text = chain(&self);
        match self {
            Self::Unmapped(_) => PyIndexError::new_err(text),
            Self::Map(_) | Self::TooLarge(_) => Kind::Host.error(text),
            Self::Unaligned(_) | Self::OutOfRange(_) | Self::Overlap(_) | Self::NoSlot(_) => Kind::Config.error(text),
        }
    }
}

impl Raise for AccelError {
    fn raise(self) -> PyErr {
        let text = chain(&self);
        match self {
            Self::Memory(error) => error.raise(),
            Self::Host { .. } | Self::Unavailable(_) | Self::TscRate { .. } => Kind::Host.error(text),
            Self::NoSuchMsr(_) | Self::BadMsrValue { .. } | Self::BadState { .. } => Kind::State.error(text),
            Self::WrongAnswer { .. } => Kind::Usage.error(text),
            Self::VcpuExists(_) | Self::TooManyVcpus { .. } | Self::NoIrqchip | Self::VcpusExist => {
                Kind::Config.error(text)
            }
        }
    }
}

impl Raise for VcpuError {
    fn raise(self) -> PyErr {
        match self {
            Self::Accel(error) => error.raise(),
            Self::Running(_) | Self::Owned(_) => Kind::Usage.error(self.to_string()),
        }
    }
}

impl Raise for ThreadError {
    fn raise(self) -> PyErr {
        match self {
            Self::Owned(_) => Kind::Usage.error(self.to_string()),
            Self::Spawn { .. } => Kind::Host.error(chain(&self)),
        }
    }
}

impl Raise for BusError {
    fn raise(self) -> PyErr {
        Kind::Config.error(self.to_string())
    }
}
