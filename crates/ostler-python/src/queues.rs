//! Virtqueues that Python answers.

use std::sync::Arc;

use ostler_memory::GuestRam;
use ostler_virtio::host::{CallService, Feed, FeedService};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Kind;
use crate::virtio::{QueueArgs, VirtioWorker, start};

/// Messages on their way to the driver: what devices written in Python say unasked.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioFeed {
    memory: Arc<GuestRam>,
    feed: Arc<Feed>,
}

impl VirtioFeed {
    pub(crate) fn new(memory: Arc<GuestRam>) -> PyResult<Self> {
        let feed = Feed::new().map_err(|error| Kind::Host.error(format!("no eventfd: {error}; close some files")))?;
        Ok(Self { memory, feed: Arc::new(feed) })
    }
}

#[pymethods]
impl VirtioFeed {
    /// Add a message; false when 1024 wait already, and it is dropped.
    fn put(&self, message: &[u8]) -> bool {
        self.feed.put(message.to_vec())
    }

    /// Drop what waits.
    fn clear(&self) {
        self.feed.clear();
    }

    /// Fill the buffers of `queue`, one message each; what does not fit is cut off.
    fn serve(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "virtio-feed", queue, FeedService(Arc::clone(&self.feed)))
    }
}

/// A worker that answers what `handler(request, room)` returns.
pub(crate) fn call_worker(
    py: Python<'_>,
    memory: &Arc<GuestRam>,
    queue: QueueArgs,
    handler: Py<PyAny>,
) -> PyResult<VirtioWorker> {
    let handler = Box::new(move |request: &[u8], room: usize| answer(&handler, request, room));
    start(py, memory, "virtio-call", queue, CallService::new(handler))
}

/// What Python answers; its exceptions are reported as unraisable, and the device is defective.
fn answer(handler: &Py<PyAny>, request: &[u8], room: usize) -> Option<Vec<u8>> {
    Python::try_attach(|py| {
        let asked = handler.bind(py).call1((PyBytes::new(py, request), room));
        match asked.and_then(|answer| answer.extract::<Vec<u8>>()) {
            Ok(answer) => Some(answer),
            Err(error) => {
                error.write_unraisable(py, Some(handler.bind(py)));
                None
            }
        }
    })
    .flatten()
}
