//! One thread per vCPU.

use ostler_engine::thread::State;
use pyo3::prelude::*;

use crate::exits;

/// The running vCPU threads of one VM (`virtual_machine.start`).
///
/// An exit that nobody answers pauses the VM before it is reported. A device or `on_exit` may call
/// `pause` and `stop` on a vCPU thread itself: they then return at once.
#[pyclass(frozen, weakref, module = "ostler.engine")]
#[derive(Debug)]
pub struct Threads {
    threads: ostler_engine::Threads,
}

impl Threads {
    pub fn new(threads: ostler_engine::Threads) -> Self {
        Self { threads }
    }
}

#[pymethods]
impl Threads {
    /// Return when no vCPU runs any more.
    fn pause(&self, py: Python<'_>) {
        py.detach(|| self.threads.pause());
    }

    /// Let every vCPU run on; nothing after `stop`.
    fn resume(&self, py: Python<'_>) {
        py.detach(|| self.threads.resume());
    }

    /// End the threads and return when they are gone.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.threads.stop());
    }

    /// Whether the vCPUs run, or are about to.
    #[getter]
    fn running(&self) -> bool {
        self.threads.is_running()
    }

    /// What each thread is doing: `"running"`, `"paused"` or `"finished"`.
    #[getter]
    fn states(&self) -> Vec<&'static str> {
        let name = |state| match state {
            State::Running => "running",
            State::Paused => "paused",
            State::Finished => "finished",
        };
        self.threads.states().into_iter().map(name).collect()
    }
}

impl Drop for Threads {
    /// The threads may need the interpreter to end, so they are not waited for while holding it.
    fn drop(&mut self) {
        let _finalizing = Python::try_attach(|py| py.detach(|| self.threads.stop()));
    }
}

/// Calls `callback(id, exit)` on the vCPU's thread.
pub fn on_exit(callback: Py<PyAny>) -> Box<ostler_engine::thread::OnExit> {
    Box::new(move |id, exit| {
        let _finalizing = Python::try_attach(|py| {
            let called = exits::to_python(py, exit).and_then(|exit| callback.call1(py, (id, exit)));
            if let Err(error) = called {
                error.write_unraisable(py, Some(callback.bind(py)));
            }
        });
    })
}
