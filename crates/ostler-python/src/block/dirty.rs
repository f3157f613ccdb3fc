//! Bitmaps of what was written.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A bit for each granule of a disk.
#[pyclass(frozen, module = "ostler.engine.block")]
#[derive(Debug)]
pub struct DirtyMap {
    pub map: Arc<ostler_block::DirtyMap>,
}

#[pymethods]
impl DirtyMap {
    #[new]
    fn new(size_bytes: u64, granularity_bits: u32, bits: &[u8]) -> Self {
        Self { map: Arc::new(ostler_block::DirtyMap::new(size_bytes, granularity_bits).with_bytes(bits)) }
    }

    /// The bits; the lowest of the first byte is the first granule.
    fn bits<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.map.bytes())
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.map.size()
    }

    #[getter]
    fn granularity_bytes(&self) -> u64 {
        self.map.granularity()
    }

    /// Bytes of the disk that are in granules which are set.
    #[getter]
    fn dirty_bytes(&self) -> u64 {
        self.map.dirty_bytes()
    }

    /// Whether the byte at `offset` is in a granule that is set, and how many bytes, up to `limit`, are
    /// alike from there.
    fn run_at(&self, offset: u64, limit: u64) -> (bool, u64) {
        self.map.run_at(offset, limit)
    }

    fn mark(&self, offset: u64, length: u64) {
        self.map.mark(offset, length);
    }

    /// Set all that is set in `other`.
    fn merge(&self, other: &Self) {
        self.map.merge(&other.map);
    }

    fn clear(&self) {
        self.map.clear();
    }
}
