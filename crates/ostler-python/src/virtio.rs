//! The workers that serve virtqueues.

use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use ostler_engine::irq::Interrupt;
use ostler_memory::GuestRam;
use ostler_virtio::limit::{Budget, Limited};
use ostler_virtio::net::Nic;
use ostler_virtio::net::vhost::{Direction, Vhost};
use ostler_virtio::worker::StartError;
use ostler_virtio::{
    BlkService, Disk, InputService, OutputService, Position, Queue, RingConfig, RngService, ServedQueue, Service,
    Worker,
};
use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::balloon::VirtioBalloon;
use crate::block::BlockDisk;
use crate::error::{Kind, os_error};
use crate::fd;
use crate::irq::MsiRoute;
use crate::memory::Memory;
use crate::net::{NetLink, VirtioNic};
use crate::nic::EthernetChip;
use crate::queues::{VirtioFeed, call_worker};
use crate::scsi::VirtioScsi;
use crate::vsock::VirtioVsock;

/// Starts the threads that serve a VM's virtqueues: `VirtioWorkers(virtual_machine.memory)`.
///
/// Each method that takes a queue (see `QueueSetup`) raises `ValueError` when its rings are not in
/// guest memory. File descriptors are duplicated.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioWorkers {
    memory: Arc<GuestRam>,
}

#[pymethods]
impl VirtioWorkers {
    #[new]
    fn new(memory: &Memory) -> Self {
        Self { memory: Arc::clone(memory.ram()) }
    }

    /// A disk of what `disk` holds; `serial` has up to 20 bytes.
    fn disk(&self, disk: &BlockDisk, readonly: bool, serial: &[u8]) -> PyResult<VirtioDisk> {
        let mut padded = [0; ostler_virtio::blk::SERIAL_BYTES];
        let room = padded.get_mut(..serial.len()).ok_or_else(|| {
            PyValueError::new_err(format!("a disk's serial has at most 20 bytes, not {}", serial.len()))
        })?;
        room.copy_from_slice(serial);
        let disk = Disk::over(Arc::clone(&disk.disk), readonly, padded);
        Ok(VirtioDisk { memory: Arc::clone(&self.memory), disk: Arc::new(disk), budget: Arc::new(Budget::new(0, 0)) })
    }

    /// A memory balloon.
    fn balloon(&self) -> VirtioBalloon {
        VirtioBalloon::new(Arc::clone(&self.memory))
    }

    /// A SCSI host.
    fn scsi(&self) -> VirtioScsi {
        VirtioScsi::new(Arc::clone(&self.memory))
    }

    /// Sockets of the guest `cid`. Host programs call at the listening unix socket `listener_fd`; a
    /// guest that calls port n of the host reaches the one at `path`, `_` and n.
    fn vsock(&self, cid: u64, listener_fd: RawFd, path: PathBuf) -> PyResult<VirtioVsock> {
        VirtioVsock::new(Arc::clone(&self.memory), cid, listener_fd, path)
    }

    /// Messages for a driver, from Python.
    fn feed(&self) -> PyResult<VirtioFeed> {
        VirtioFeed::new(Arc::clone(&self.memory))
    }

    /// Call `handler(request, room)` for each chain, with the bytes that the driver sends (at most
    /// 1 MiB) and the number that it takes back; `handler` returns those, at most `room`. An
    /// exception there is reported, and the driver sees a device that needs a reset.
    fn calls(&self, py: Python<'_>, queue: QueueArgs, handler: Py<PyAny>) -> PyResult<VirtioWorker> {
        call_worker(py, &self.memory, queue, handler)
    }

    /// Fill buffers with random bytes, at most `bytes_per_second` where that is not 0.
    fn rng(&self, py: Python<'_>, queue: QueueArgs, bytes_per_second: u64) -> PyResult<VirtioWorker> {
        if bytes_per_second == 0 {
            return start(py, &self.memory, "virtio-rng", queue, RngService);
        }
        let limited = Limited::new(RngService, bytes_per_second)?;
        start(py, &self.memory, "virtio-rng", queue, limited)
    }

    /// A NIC with the address `mac` and up to `pairs` pairs of queues on `link`.
    fn nic(&self, link: &NetLink, mac: [u8; 6], pairs: u16) -> VirtioNic {
        let nic = Arc::new(Nic::new(Arc::clone(&link.link), mac, pairs));
        VirtioNic { memory: Arc::clone(&self.memory), nic, vhost: link.vhost.clone() }
    }

    /// An emulated Ethernet controller with the address `mac` on `link`: `e1000`, `rtl8139` (the C+)
    /// or `rtl8139-plain`.
    fn ethernet(&self, model: &str, link: &NetLink, mac: [u8; 6]) -> PyResult<EthernetChip> {
        EthernetChip::new(&self.memory, model, link, mac)
    }

    /// Hand the bytes read from `fd` to the guest.
    fn console_input(&self, py: Python<'_>, queue: QueueArgs, fd: RawFd) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "virtio-input", queue, InputService::new(OwnedFd::from(fd::file(fd)?)))
    }

    /// Write the guest's bytes to `fd`.
    fn console_output(&self, py: Python<'_>, queue: QueueArgs, fd: RawFd) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "virtio-output", queue, OutputService::new(OwnedFd::from(fd::file(fd)?)))
    }
}

/// A disk shared by the queues of one virtio-blk device.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioDisk {
    memory: Arc<GuestRam>,
    disk: Arc<Disk>,
    budget: Arc<Budget>,
}

#[pymethods]
impl VirtioDisk {
    /// Whether a write may be answered before it is on stable storage.
    #[getter]
    fn get_writeback(&self) -> bool {
        self.disk.writeback()
    }

    #[setter]
    fn set_writeback(&self, writeback: bool) {
        self.disk.set_writeback(writeback);
    }

    /// Requests that the host failed so far; the guest has seen each as an I/O error.
    #[getter]
    fn host_errors(&self) -> u64 {
        self.disk.host_errors()
    }

    /// At most so many bytes and requests a second from now on, on all queues together; 0 is no limit.
    fn limit(&self, bytes_per_second: u64, requests_per_second: u64) {
        self.budget.change(bytes_per_second, requests_per_second);
    }

    /// Serve block requests.
    fn serve(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        let service = Limited::within(BlkService(Arc::clone(&self.disk)), Arc::clone(&self.budget))?;
        start(py, &self.memory, "virtio-blk", queue, service)
    }
}

/// A thread that serves one virtqueue. It ends with `stop`, or when nobody refers to it any more.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioWorker {
    worker: Mutex<Box<dyn ServedQueue>>,
}

impl VirtioWorker {
    fn worker(&self) -> MutexGuard<'_, Box<dyn ServedQueue>> {
        self.worker.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[pymethods]
impl VirtioWorker {
    /// The next entries of the available and the used ring, between two requests.
    fn position(&self, py: Python<'_>) -> (u16, u16) {
        pair(py.detach(|| self.worker().position()))
    }

    /// Finish the request in flight, end the thread, and return the position.
    fn stop(&self, py: Python<'_>) -> (u16, u16) {
        pair(py.detach(|| self.worker().stop()))
    }
}

impl Drop for VirtioWorker {
    /// The thread may be waiting for the interpreter to call back: it has to be free while we join.
    /// An interpreter that is ending is never free again; the thread is left to end by itself.
    fn drop(&mut self) {
        if Python::try_attach(|py| py.detach(|| self.worker().stop())).is_none() {
            self.worker().abandon();
        }
    }
}

fn pair(position: Position) -> (u16, u16) {
    (position.next_avail, position.next_used)
}

/// The attributes of a `QueueSetup`.
#[derive(Debug, FromPyObject)]
pub(crate) struct QueueArgs {
    size: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    indirect: bool,
    packed: bool,
    kick_fd: RawFd,
    interrupt: Option<Py<PyAny>>,
    on_broken: Py<PyAny>,
}

impl QueueArgs {
    fn config(&self) -> RingConfig {
        RingConfig {
            size: self.size,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
            position: Position { next_avail: self.next_avail, next_used: self.next_used },
            event_idx: self.event_idx,
            indirect: self.indirect,
            packed: self.packed,
        }
    }

    fn queue(self, py: Python<'_>, name: &str, memory: &Arc<GuestRam>) -> PyResult<Queue> {
        Ok(Queue {
            name: name.into(),
            memory: Arc::clone(memory),
            config: self.config(),
            kick: fd::eventfd(self.kick_fd)?,
            interrupt: self.interrupt.map(|interrupt| way_to_interrupt(py, interrupt)),
            on_broken: Arc::new(Callback(self.on_broken)),
        })
    }
}

/// A route is signalled without the interpreter, anything else is called.
fn way_to_interrupt(py: Python<'_>, interrupt: Py<PyAny>) -> Arc<dyn Interrupt> {
    match interrupt.cast_bound::<MsiRoute>(py) {
        Ok(route) => route.get().route.clone(),
        Err(_) => Arc::new(Callback(interrupt)),
    }
}

/// A Python function to call; its exceptions are reported as unraisable.
#[derive(Debug)]
struct Callback(Py<PyAny>);

impl Interrupt for Callback {
    fn trigger(&self) {
        call(&self.0, ());
    }
}

/// Calls a Python function from a worker's thread; its exceptions are reported as unraisable.
pub(crate) fn call<A>(function: &Py<PyAny>, arguments: A)
where
    A: for<'py> PyCallArgs<'py>,
{
    // An interpreter that is ending has no more use for the news.
    Python::try_attach(|py| {
        if let Err(error) = function.call1(py, arguments) {
            error.write_unraisable(py, Some(function.bind(py)));
        }
    });
}

/// Starts the worker of `queue`, on a thread of that name.
pub(crate) fn start(
    py: Python<'_>,
    memory: &Arc<GuestRam>,
    name: &str,
    queue: QueueArgs,
    service: impl Service + 'static,
) -> PyResult<VirtioWorker> {
    let queue = queue.queue(py, name, memory)?;
    let started = py.detach(|| Worker::start(queue, Box::new(service)));
    let worker = started.map_err(|error| match error {
        StartError::Ring(error) => PyValueError::new_err(error.to_string()),
        StartError::Host(ref cause) => Kind::Host.error(format!("{error}: {cause}; end some processes")),
    })?;
    Ok(VirtioWorker { worker: Mutex::new(Box::new(worker)) })
}

/// Has the kernel serve one queue of pair number `pair`; `OSError` where it does not.
pub(crate) fn start_in_kernel(
    py: Python<'_>,
    memory: &Arc<GuestRam>,
    nic: &Nic,
    (vhost, pair, direction): (&Vhost, usize, Direction),
    queue: QueueArgs,
) -> PyResult<VirtioWorker> {
    let name = format!("vhost-{}{pair}", if direction == Direction::Receive { "rx" } else { "tx" });
    let queue = queue.queue(py, &name, memory)?;
    let started = py.detach(|| vhost.start(pair, direction, nic.negotiated(), queue));
    let served = started.map_err(|error| match error {
        StartError::Ring(error) => PyValueError::new_err(error.to_string()),
        StartError::Host(cause) => os_error(&cause),
    })?;
    Ok(VirtioWorker { worker: Mutex::new(Box::new(served)) })
}
