//! Sockets between the guest and the host.

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use ostler_memory::GuestRam;
use ostler_virtio::vsock::{Door, Hub, ReceiveService, TransmitService};
use pyo3::prelude::*;

use crate::error::Kind;
use crate::fd;
use crate::virtio::{QueueArgs, VirtioWorker, start};

/// The connections of one virtio-vsock device.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioVsock {
    memory: Arc<GuestRam>,
    hub: Arc<Hub>,
    /// Answers callers while no driver does.
    _door: Door,
}

impl VirtioVsock {
    pub(crate) fn new(memory: Arc<GuestRam>, cid: u64, listener_fd: RawFd, path: PathBuf) -> PyResult<Self> {
        let listener = UnixListener::from(OwnedFd::from(fd::file(listener_fd)?));
        let no_room = |error| Kind::Host.error(format!("vsock: {error}; close some files"));
        let hub = Arc::new(Hub::new(cid, listener, path).map_err(no_room)?);
        let door = Door::new(Arc::clone(&hub)).map_err(no_room)?;
        Ok(Self { memory, hub, _door: door })
    }
}

#[pymethods]
impl VirtioVsock {
    /// Connections there are.
    #[getter]
    fn connections(&self) -> usize {
        self.hub.connections()
    }

    /// Close all connections.
    fn reset(&self, py: Python<'_>) {
        py.detach(|| self.hub.reset());
    }

    /// Serve the queue on which the guest receives.
    fn receive(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "vsock-receive", queue, ReceiveService::new(Arc::clone(&self.hub)))
    }

    /// Serve the queue on which the guest sends.
    fn transmit(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "vsock-transmit", queue, TransmitService::new(Arc::clone(&self.hub)))
    }
}
