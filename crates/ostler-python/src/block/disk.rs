//! Storages and disks.

use std::os::fd::RawFd;
use std::sync::Arc;

use ostler_block::disk::{Content, Disk, check_range};
use ostler_block::{EncryptedStorage, FileStorage, Raw, Sink, Source, Storage};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::adapt::{PyStorage, disk_of};
use super::raise;
use crate::crypto::SectorCipher;
use crate::fd;

/// Where an image's bytes are: a descriptor of this host, or an `ImageFile` written in Python.
#[pyclass(frozen, module = "ostler.engine.block")]
#[derive(Debug)]
pub struct BlockStorage {
    pub storage: Arc<dyn Storage>,
}

#[pymethods]
impl BlockStorage {
    /// The file or block device `fd`, which is duplicated; if `direct`, requests go around the host's page
    /// cache where they are aligned.
    #[staticmethod]
    #[pyo3(signature = (fd, *, direct = false))]
    fn from_fd(fd: RawFd, direct: bool) -> PyResult<Self> {
        let file = fd::file(fd)?;
        let storage = if direct { FileStorage::new_direct(file) } else { FileStorage::new(file) };
        Ok(Self { storage: Arc::new(storage?) })
    }

    /// Any `ostler.block.image.ImageFile`.
    #[staticmethod]
    fn from_file(file: Py<PyAny>) -> Self {
        Self { storage: Arc::new(PyStorage(file)) }
    }

    /// What the sectors of this storage read as, decrypted; each has its place as its number.
    fn decrypted(&self, cipher: &SectorCipher) -> Self {
        let below = Arc::clone(&self.storage);
        Self { storage: Arc::new(EncryptedStorage::new(below, Arc::clone(&cipher.cipher))) }
    }
}

/// What a guest sees of an image. Methods raise `DiskError` or `HostError` that names the image.
#[pyclass(frozen, subclass, module = "ostler.engine.block")]
#[derive(Debug)]
pub struct BlockDisk {
    pub name: String,
    pub disk: Arc<dyn Disk>,
}

impl BlockDisk {
    fn done<T>(&self, result: ostler_block::Result<T>) -> PyResult<T> {
        result.map_err(|error| raise(&self.name, error))
    }
}

#[pymethods]
impl BlockDisk {
    /// The first `size` bytes of a storage. A write after which the first sector would have one of
    /// the `guarded` byte strings at its offset is refused.
    #[staticmethod]
    #[pyo3(signature = (name, storage, size, *, readonly, guarded = Vec::new()))]
    fn raw(name: String, storage: &BlockStorage, size: u64, readonly: bool, guarded: Vec<(usize, Vec<u8>)>) -> Self {
        let mut raw = Raw::new(Arc::clone(&storage.storage), size, readonly);
        raw.guard(guarded);
        Self { name, disk: Arc::new(raw) }
    }

    /// Any `ostler.block.image.Image`.
    #[staticmethod]
    fn from_image(name: String, image: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self { name, disk: disk_of(image)? })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.disk.size()
    }

    fn read<'py>(&self, py: Python<'py>, offset: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        self.done(check_range(offset, length, self.disk.size()))?;
        PyBytes::new_with(py, length as usize, |bytes| {
            self.done(py.detach(|| self.disk.read(&Sink::new(bytes), offset)))
        })
    }

    fn write(&self, py: Python<'_>, offset: u64, data: PyBuffer<u8>) -> PyResult<()> {
        let bytes = libc::iovec { iov_base: data.buf_ptr(), iov_len: data.len_bytes() };
        if !data.is_c_contiguous() {
            return Err(pyo3::exceptions::PyBufferError::new_err("data is not contiguous"));
        }
        // SAFETY: the buffer is held, so its memory is there; no reference to it is made.
        let source = unsafe { Source::from_vectors(vec![bytes]) };
        self.done(py.detach(|| self.disk.write(&source, offset)))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.done(py.detach(|| self.disk.flush()))
    }

    fn discard(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.done(py.detach(|| self.disk.discard(offset, length)))
    }

    #[pyo3(signature = (offset, length, *, unmap = true))]
    fn write_zeroes(&self, py: Python<'_>, offset: u64, length: u64, unmap: bool) -> PyResult<()> {
        self.done(py.detach(|| self.disk.write_zeroes(offset, length, unmap)))
    }

    /// What this layer holds at `offset`: length, `"unallocated"`, `"zero"`, `"data"` or
    /// `"compressed"`, and where in the file.
    fn extent_at(&self, py: Python<'_>, offset: u64, limit: u64) -> PyResult<(u64, &'static str, Option<u64>)> {
        let extent = self.done(py.detach(|| self.disk.extent_at(offset, limit)))?;
        let content = match extent.content {
            Content::Unallocated => "unallocated",
            Content::Zero => "zero",
            Content::Data => "data",
            Content::Compressed => "compressed",
        };
        Ok((extent.len, content, extent.host_offset))
    }

    /// Whether the bytes at `offset` are known to be zero, through all layers, and for how long.
    fn zero_at(&self, py: Python<'_>, offset: u64, limit: u64) -> PyResult<(bool, u64)> {
        self.done(check_range(offset, limit, self.disk.size()))?;
        self.done(py.detach(|| self.disk.zero_at(offset, limit)))
    }
}
