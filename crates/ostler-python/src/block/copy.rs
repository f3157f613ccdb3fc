//! Bulk copies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ostler_block::bench::{self, Load};
use ostler_block::compare;
use ostler_block::copy::{self, Job, Packing, Progress};
use ostler_block::layers::{self, Layer, Mapped};
use ostler_block::rebase;
use ostler_block::salvage::Salvaged;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{BlockDisk, BlockStorage, DirtyMap, raise};

/// Zeroes that are left out of a copy are at least as many.
pub const SPARSE_BYTES: u64 = 4096;

/// How far a copy is, and the way to end it early.
#[pyclass(frozen, module = "ostler.engine.block")]
#[derive(Debug, Default)]
pub struct CopyProgress {
    pub progress: Arc<Progress>,
}

#[pymethods]
impl CopyProgress {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Bytes of the disk that are done.
    #[getter]
    fn done(&self) -> u64 {
        self.progress.done.load(Ordering::Relaxed)
    }

    /// For work that Python does itself.
    fn set_done(&self, bytes: u64) {
        self.progress.done.store(bytes, Ordering::Relaxed);
    }

    #[getter]
    fn cancelled(&self) -> bool {
        self.progress.cancelled.load(Ordering::Acquire)
    }

    fn cancel(&self) {
        self.progress.cancelled.store(true, Ordering::Release);
    }
}

fn packing(compression: Option<(String, u64)>) -> PyResult<Option<(Packing, u64)>> {
    let Some((kind, cluster)) = compression else { return Ok(None) };
    match kind.as_str() {
        "zlib" => Ok(Some((Packing::Deflate, cluster))),
        "zstd" => Ok(Some((Packing::Zstd, cluster))),
        _ => Err(PyValueError::new_err(format!("no compression {kind}"))),
    }
}

/// Make `target` read like `source`. `compression` is its kind and the target's cluster size;
/// `sparse` is how long a run of zeroes is left out; `limit` is in bytes a second, 0 for none. With
/// `salvage` what cannot be read is zero in the target: how many bytes that is.
#[pyfunction]
#[pyo3(signature = (source, target, progress, *, threads, sparse, target_is_zero, compression = None, limit = 0, salvage = false))]
#[expect(clippy::too_many_arguments, reason = "each is a choice of the caller's")]
pub fn copy_disk(
    py: Python<'_>,
    source: &BlockDisk,
    target: &BlockDisk,
    progress: &CopyProgress,
    threads: usize,
    sparse: u64,
    target_is_zero: bool,
    compression: Option<(String, u64)>,
    limit: u64,
    salvage: bool,
) -> PyResult<u64> {
    let packing = packing(compression)?;
    let job = Job { threads, sparse_bytes: sparse, target_is_zero, keeps_zero_data: false, packing, limit };
    let (from, to) = (source.disk.as_ref(), target.disk.as_ref());
    let what_is_left = Salvaged::new(from);
    let from = if salvage { &what_is_left } else { from };
    py.detach(|| copy::copy(from, to, &job, &progress.progress)).map_err(|error| {
        let is_source = progress.progress.source_failed.load(Ordering::Acquire);
        raise(if is_source { &source.name } else { &target.name }, error)
    })?;
    Ok(what_is_left.lost())
}

/// Make `target` read like `source` where `map` is marked, and clear the marks.
#[pyfunction]
#[pyo3(signature = (source, target, map, progress, *, threads, target_is_zero, limit = 0))]
#[expect(clippy::too_many_arguments, reason = "each is a choice of the caller's")]
pub fn copy_marked(
    py: Python<'_>,
    source: &BlockDisk,
    target: &BlockDisk,
    map: &DirtyMap,
    progress: &CopyProgress,
    threads: usize,
    target_is_zero: bool,
    limit: u64,
) -> PyResult<()> {
    let job = Job { threads, sparse_bytes: SPARSE_BYTES, target_is_zero, keeps_zero_data: true, packing: None, limit };
    let (from, to) = (source.disk.as_ref(), target.disk.as_ref());
    py.detach(|| copy::copy_marked(from, to, &map.map, &job, &progress.progress)).map_err(|error| {
        let is_source = progress.progress.source_failed.load(Ordering::Acquire);
        raise(if is_source { &source.name } else { &target.name }, error)
    })
}

/// Disks each of which is behind the one before it, with the files to look into for holes.
type Layers<'py> = Vec<(PyRef<'py, BlockDisk>, Option<PyRef<'py, BlockStorage>>)>;

/// The name of the first one, and all as the engine has them.
fn taken(layers: &Layers<'_>) -> (String, Vec<Layer>) {
    let name = layers.first().map(|(disk, _)| disk.name.clone()).unwrap_or_default();
    let as_layer = |(disk, file): &(PyRef<'_, BlockDisk>, Option<PyRef<'_, BlockStorage>>)| Layer {
        disk: Arc::clone(&disk.disk),
        file: file.as_ref().map(|file| Arc::clone(&file.storage)),
    };
    (name, layers.iter().map(as_layer).collect())
}

/// Bytes of the clusters of a disk that hold anything but zeroes, through all layers.
#[pyfunction]
pub fn data_bytes(py: Python<'_>, layers: Layers<'_>, cluster: u64) -> PyResult<u64> {
    let (name, layers) = taken(&layers);
    let end = layers.first().map_or(0, |layer| layer.disk.size());
    py.detach(|| layers::data_bytes(&layers, end, cluster.max(1))).map_err(|error| raise(&name, error))
}

/// A run of a disk: offset, bytes, depth of the layer, whether one holds it, whether it is zero, is
/// data, is compressed, and where in the layer's file.
type Run = (u64, u64, usize, bool, bool, bool, bool, Option<u64>);

/// Where the bytes from `offset` to `end` are kept, through disks each of which is behind the one
/// before it. The storage of one, if there is, is looked into for holes.
#[pyfunction]
pub fn map_layers(py: Python<'_>, layers: Layers<'_>, offset: u64, end: u64) -> PyResult<Vec<Run>> {
    let (name, layers) = taken(&layers);
    let runs = py.detach(|| layers::map(&layers, offset, end)).map_err(|error| raise(&name, error))?;
    let plain =
        |run: Mapped| (run.start, run.len, run.depth, run.present, run.zero, run.data, run.compressed, run.host_offset);
    Ok(runs.into_iter().map(plain).collect())
}

/// The first byte that differs between two disks, or `None`. A shorter one is as if followed by
/// zeroes.
#[pyfunction]
pub fn compare_disks(
    py: Python<'_>,
    one: &BlockDisk,
    other: &BlockDisk,
    progress: &CopyProgress,
    threads: usize,
) -> PyResult<Option<u64>> {
    py.detach(|| compare::compare(one.disk.as_ref(), other.disk.as_ref(), threads, &progress.progress))
        .map_err(|error| raise(&one.name, error))
}

/// Write into `overlay` what it does not hold and what would read otherwise over `new` than over `old`.
#[pyfunction]
#[pyo3(signature = (overlay, old, new, progress, *, cluster, threads))]
pub fn rebase_disk(
    py: Python<'_>,
    overlay: &BlockDisk,
    old: Option<PyRef<'_, BlockDisk>>,
    new: Option<PyRef<'_, BlockDisk>>,
    progress: &CopyProgress,
    cluster: u64,
    threads: usize,
) -> PyResult<()> {
    let behind = |disk: Option<PyRef<'_, BlockDisk>>| disk.map(|disk| Arc::clone(&disk.disk));
    let (old, new, disk) = (behind(old), behind(new), overlay.disk.as_ref());
    py.detach(|| {
        let change = rebase::Change { old: old.as_deref(), new: new.as_deref() };
        rebase::rebase(disk, &change, cluster.max(1), threads, &progress.progress)
    })
    .map_err(|error| raise(&overlay.name, error))
}

/// The JSON of `qemu-img map` for the bytes from `offset` to `end`: as [`map_layers`], as text.
#[pyfunction]
pub fn map_json(py: Python<'_>, layers: Layers<'_>, offset: u64, end: u64) -> PyResult<String> {
    let (name, layers) = taken(&layers);
    py.detach(|| layers::map(&layers, offset, end).map(|runs| layers::json(&runs))).map_err(|error| raise(&name, error))
}

/// Make `count` requests of `length` bytes, `step` apart: writes of the byte `pattern`, or reads.
#[pyfunction]
#[pyo3(signature = (disk, *, count, length, offset, step, pattern, flush_every, threads))]
#[expect(clippy::too_many_arguments, reason = "each is a choice of the caller's")]
pub fn bench_disk(
    py: Python<'_>,
    disk: &BlockDisk,
    count: u64,
    length: u64,
    offset: u64,
    step: u64,
    pattern: Option<u8>,
    flush_every: u64,
    threads: usize,
) -> PyResult<()> {
    let load = Load { count, bytes: length, offset, step, pattern, flush_every, threads };
    py.detach(|| bench::run(disk.disk.as_ref(), &load)).map_err(|error| raise(&disk.name, error))
}
