//! Logical units of a SCSI host.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use ostler_memory::GuestRam;
use ostler_virtio::scsi::{Bus, ControlService, Generic, Kind, RequestService, Tray, Unit};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::block::BlockDisk;
use crate::error::os_error;
use crate::virtio::{QueueArgs, VirtioWorker, start};

/// The units of one virtio-scsi device.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioScsi {
    memory: Arc<GuestRam>,
    bus: Arc<Bus>,
}

impl VirtioScsi {
    pub(crate) fn new(memory: Arc<GuestRam>) -> Self {
        Self { memory, bus: Arc::default() }
    }
}

#[pymethods]
impl VirtioScsi {
    /// Put what `disk` holds at `target` and `lun`, as a disk or, with `disc`, a CD-ROM; what was
    /// there is gone. `granularity_bytes` is what is best given up at once.
    #[pyo3(signature = (target, lun, disk, *, disc, readonly, serial, discard, writeback, granularity_bytes))]
    #[expect(clippy::too_many_arguments, reason = "Python names each of them")]
    fn attach(
        &self,
        target: u8,
        lun: u16,
        disk: &BlockDisk,
        disc: bool,
        readonly: bool,
        serial: &[u8],
        discard: bool,
        writeback: bool,
        granularity_bytes: u32,
    ) {
        let unit = Unit {
            kind: if disc { Kind::Disc } else { Kind::Disk },
            image: Arc::clone(&disk.disk),
            readonly: readonly || disc,
            serial: serial.to_vec(),
            discard,
            writeback,
            granularity_bytes,
            tray: Tray::default(),
        };
        self.bus.attach((target, lun), unit);
    }

    /// Have commands for the unit at `target` and `lun` passed on to the SCSI device of the host at `path`, for us alone;
    /// the most bytes of data that one may have. `OSError` when it cannot be opened, `ValueError` for what is none.
    fn pass_through(&self, target: u8, lun: u16, path: PathBuf) -> PyResult<u64> {
        let device = Generic::open(&path).map_err(|error| match error.kind() {
            ErrorKind::Unsupported => PyValueError::new_err("it is no SCSI device, or a part of one"),
            _ => os_error(&error),
        })?;
        let max_bytes = device.max_bytes();
        self.bus.pass_through((target, lun), device);
        Ok(max_bytes)
    }

    /// Take the unit at `target` and `lun` away when no command is executed; whether there was one.
    fn detach(&self, py: Python<'_>, target: u8, lun: u16) -> bool {
        py.detach(|| self.bus.detach((target, lun)))
    }

    /// Take the disc out of the drive at `target` and `lun`; whether there is such a drive.
    fn eject(&self, target: u8, lun: u16) -> bool {
        self.bus.eject((target, lun))
    }

    /// Put what `disk` holds into that drive, in place of what is in it, which is not used any more
    /// then; whether there is such a drive.
    fn insert(&self, py: Python<'_>, target: u8, lun: u16, disk: &BlockDisk) -> bool {
        py.detach(|| self.bus.insert((target, lun), Arc::clone(&disk.disk)))
    }

    /// The sizes of command blocks and of sense data in requests.
    fn set_sizes(&self, cdb_bytes: u32, sense_bytes: u32) {
        self.bus.set_sizes(cdb_bytes, sense_bytes);
    }

    /// Serve the control queue.
    fn control(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "scsi-control", queue, ControlService(Arc::clone(&self.bus)))
    }

    /// Serve a request queue.
    fn requests(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "virtio-scsi", queue, RequestService(Arc::clone(&self.bus)))
    }
}
