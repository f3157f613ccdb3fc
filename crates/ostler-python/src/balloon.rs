//! The memory balloon.

use std::os::fd::RawFd;
use std::sync::Arc;

use ostler_memory::GuestRam;
use ostler_virtio::balloon::{Balloon, DeflateService, HintService, InflateService, ReportService, StatsService};
use pyo3::prelude::*;

use crate::fd;
use crate::virtio::{QueueArgs, VirtioWorker, call, start};

/// What the queues of one virtio-balloon device share. Each method serves one of them.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioBalloon {
    memory: Arc<GuestRam>,
    balloon: Arc<Balloon>,
}

impl VirtioBalloon {
    pub(crate) fn new(memory: Arc<GuestRam>) -> Self {
        Self { memory, balloon: Arc::default() }
    }
}

#[pymethods]
impl VirtioBalloon {
    /// Bytes that the guest gave back to the host so far; given back twice counts twice.
    #[getter]
    fn returned_bytes(&self) -> u64 {
        self.balloon.returned_bytes()
    }

    /// With `keep`, free pages that the guest reports or lends keep their contents.
    fn keep_reported(&self, keep: bool) {
        self.balloon.set_keep_reported(keep);
    }

    /// Take the pages that the guest puts into the balloon.
    fn inflate(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "balloon-inflate", queue, InflateService(Arc::clone(&self.balloon)))
    }

    /// Let the guest have pages back.
    fn deflate(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "balloon-deflate", queue, DeflateService)
    }

    /// Take the free pages that the guest reports by itself.
    fn reports(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "balloon-report", queue, ReportService(Arc::clone(&self.balloon)))
    }

    /// Take the free pages that the guest lends; `on_command` is called with each command id.
    fn hints(&self, py: Python<'_>, queue: QueueArgs, on_command: Py<PyAny>) -> PyResult<VirtioWorker> {
        let on_command = Box::new(move |id| call(&on_command, (id,)));
        start(py, &self.memory, "balloon-hint", queue, HintService::new(Arc::clone(&self.balloon), on_command))
    }

    /// Call `on_stats` with the guest's statistics, a list of (tag, value), at first and whenever
    /// they were asked for by a write to the eventfd `wanted_fd`.
    fn statistics(
        &self,
        py: Python<'_>,
        queue: QueueArgs,
        wanted_fd: RawFd,
        on_stats: Py<PyAny>,
    ) -> PyResult<VirtioWorker> {
        let on_stats = Box::new(move |stats: &[(u16, u64)]| call(&on_stats, (stats.to_vec(),)));
        start(py, &self.memory, "balloon-stats", queue, StatsService::new(fd::eventfd(wanted_fd)?, on_stats))
    }
}
