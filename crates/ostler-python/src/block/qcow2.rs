//! qcow2.

use std::sync::Arc;

use ostler_block::Qcow2;
use ostler_block::qcow2::exchange::Change;
use ostler_block::qcow2::{Layout, Options};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::adapt::disk_of;
use crate::crypto::SectorCipher;

use super::{BlockDisk, BlockStorage, CopyProgress, DirtyMap, raise};

/// A qcow2 image's data path, and what Python's decisions about it are made of.
#[pyclass(frozen, extends = BlockDisk, module = "ostler.engine.block")]
#[derive(Debug)]
pub struct Qcow2Disk {
    name: String,
    image: Arc<Qcow2>,
}

/// The attributes of a `Layout`.
#[derive(Debug, FromPyObject)]
struct LayoutArgs {
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    size: u64,
    l1_offset: u64,
    l1_entries: u32,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    extended_l2: bool,
    zstd: bool,
    external_data: bool,
    lazy_refcounts: bool,
    incompatible: u64,
}

impl From<LayoutArgs> for Layout {
    fn from(args: LayoutArgs) -> Self {
        Self {
            version: args.version,
            cluster_bits: args.cluster_bits,
            refcount_order: args.refcount_order,
            size: args.size,
            l1_offset: args.l1_offset,
            l1_entries: args.l1_entries,
            refcount_table_offset: args.refcount_table_offset,
            refcount_table_clusters: args.refcount_table_clusters,
            extended_l2: args.extended_l2,
            zstd: args.zstd,
            external_data: args.external_data,
            lazy_refcounts: args.lazy_refcounts,
            incompatible: args.incompatible,
        }
    }
}

impl Qcow2Disk {
    fn run<T: Send>(&self, py: Python<'_>, act: impl FnOnce(&Qcow2) -> ostler_block::Result<T> + Send) -> PyResult<T> {
        py.detach(|| act(&self.image)).map_err(|error| raise(&self.name, error))
    }
}

#[pymethods]
impl Qcow2Disk {
    #[new]
    #[pyo3(signature = (
        name, storage, layout, *, data, backing, readonly, l2_cache_bytes, is_unsafe, punch_holes, legacy_cipher = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "each is a choice of the caller's")]
    fn new(
        name: String,
        storage: &BlockStorage,
        layout: LayoutArgs,
        data: Option<&BlockStorage>,
        backing: Option<&Bound<'_, PyAny>>,
        readonly: bool,
        l2_cache_bytes: u64,
        is_unsafe: bool,
        punch_holes: bool,
        legacy_cipher: Option<&SectorCipher>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let options = Options { readonly, l2_cache_bytes, is_unsafe, punch_holes };
        let data = data.map(|data| Arc::clone(&data.storage));
        let backing = backing.map(disk_of).transpose()?;
        let opened = Qcow2::open(Arc::clone(&storage.storage), data, backing, layout.into(), options);
        let opened = opened.and_then(|image| match legacy_cipher {
            Some(cipher) => image.with_legacy_cipher(Arc::clone(&cipher.cipher)),
            None => Ok(image),
        });
        let image = Arc::new(opened.map_err(|error| raise(&name, error))?);
        let disk = BlockDisk { name: name.clone(), disk: Arc::clone(&image) as _ };
        Ok(PyClassInitializer::from(disk).add_subclass(Self { name, image }))
    }

    /// Write all tables: nothing of the image is only in memory afterwards.
    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Qcow2::settle)
    }

    /// Copy what is behind the image into it; requests are served meanwhile.
    #[pyo3(signature = (progress, *, limit = 0))]
    fn pull(&self, py: Python<'_>, progress: &CopyProgress, limit: u64) -> PyResult<()> {
        self.run(py, |image| image.pull(&progress.progress, limit))
    }

    /// The L1 table of the disk.
    #[getter]
    fn l1(&self) -> Vec<u64> {
        self.image.l1()
    }

    /// Make, apply or delete a snapshot: all of it or nothing is in the file after a crash. The
    /// offset of the disk's L1 table.
    #[pyo3(signature = (*, l1, size, copy_at, gone, snapshots, freed))]
    #[expect(clippy::too_many_arguments, reason = "each is a part of one change")]
    fn exchange(
        &self,
        py: Python<'_>,
        l1: Option<Vec<u64>>,
        size: u64,
        copy_at: Option<u64>,
        gone: Vec<u64>,
        snapshots: (u64, u32),
        freed: Vec<(u64, u64)>,
    ) -> PyResult<u64> {
        let change = Change { l1: l1.as_deref(), size, copy_at, gone: &gone, snapshots, freed: &freed };
        self.run(py, |image| image.exchange(&change))
    }

    /// Mark what is written from now on in these maps, and in no others.
    fn record(&self, py: Python<'_>, maps: Vec<PyRef<'_, DirtyMap>>) {
        let maps = maps.iter().map(|map| Arc::clone(&map.map)).collect();
        py.detach(|| self.image.record(maps));
    }

    fn read_l1(&self, py: Python<'_>, offset: u64, entries: u32) -> PyResult<Vec<u64>> {
        self.run(py, |image| image.read_l1_at(offset, entries))
    }

    fn refresh_flags(&self, py: Python<'_>) -> PyResult<u64> {
        self.run(py, Qcow2::refresh_flags)
    }

    fn allocate(&self, py: Python<'_>, length: u64) -> PyResult<u64> {
        self.run(py, |image| image.allocate(length))
    }

    fn release(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.run(py, |image| image.release(offset, length))
    }

    fn use_l1(&self, py: Python<'_>, offset: u64, entries: u32, size: u64) -> PyResult<()> {
        self.run(py, |image| image.use_l1(offset, entries, size))
    }

    fn set_refcounts(&self, py: Python<'_>, runs: Vec<(u64, u64, u64)>) -> PyResult<()> {
        self.run(py, |image| image.set_refcounts(&runs))
    }

    /// Map the clusters of a range without writing them.
    fn preallocate(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.run(py, |image| image.preallocate(offset, length))
    }

    #[pyo3(signature = (snapshots, others, *, order = None))]
    fn rebuild_refcounts(
        &self,
        py: Python<'_>,
        snapshots: Vec<(u64, u32)>,
        others: Vec<(u64, u64)>,
        order: Option<u32>,
    ) -> PyResult<()> {
        self.run(py, |image| image.rebuild_refcounts(&snapshots, &others, order))
    }

    fn unmap_all(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Qcow2::unmap_all)
    }

    fn clear_l2_entry(&self, py: Python<'_>, table: u64, index: u64) -> PyResult<()> {
        self.run(py, |image| image.clear_l2_entry(table, index))
    }

    fn clear_l1_entry(&self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.run(py, |image| image.clear_l1_entry(index))
    }

    /// What refers to each cluster against its refcount, as a dictionary of `CheckReport`'s fields.
    fn check<'py>(
        &self,
        py: Python<'py>,
        snapshots: Vec<(u64, u32)>,
        others: Vec<(u64, u64)>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let report = self.run(py, |image| image.check(&snapshots, &others))?;
        let found = PyDict::new(py);
        let runs = report.differences.iter().map(|run| (run.first, run.count, run.refcount, run.references));
        found.set_item("differences", runs.collect::<Vec<_>>())?;
        found.set_item("wrong_flags", report.wrong_flags)?;
        found.set_item("bad_l2", report.bad_l2)?;
        found.set_item("bad_l1", report.bad_l1)?;
        found.set_item("bad_blocks", report.bad_blocks)?;
        found.set_item("uncounted", report.uncounted)?;
        found.set_item("behind_end", report.behind_end)?;
        found.set_item("messages", report.messages)?;
        found.set_item("allocated", report.allocated)?;
        found.set_item("compressed", report.compressed)?;
        found.set_item("fragmented", report.fragmented)?;
        found.set_item("image_end", report.image_end)?;
        Ok(found)
    }
}
