//! Images and files that are written in Python, as the block layer sees them.

use std::io;
use std::sync::Arc;

use ostler_block::disk::{Content, Disk, Extent};
use ostler_block::storage::{Run, Storage};
use ostler_block::{BlockError, Result, Sink, Source};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator};

/// What one call to Python moves at most.
const PIECE: usize = 4 << 20;

type Bounded<'a, T> = &'a dyn Fn(&T, usize, usize) -> io::Result<()>;

fn in_pieces<T>(whole: &T, len: usize, act: Bounded<'_, T>) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let piece = PIECE.min(len - done);
        act(whole, done, piece)?;
        done += piece;
    }
    Ok(())
}

fn as_io(error: PyErr) -> io::Error {
    io::Error::other(error)
}

fn as_block(error: PyErr) -> BlockError {
    BlockError::Host(as_io(error))
}

fn read_from(object: &Py<PyAny>, into: &Sink<'_>, offset: u64) -> io::Result<()> {
    in_pieces(into, into.len(), &|into: &Sink<'_>, from, len| {
        Python::attach(|py| {
            let bytes = object.call_method1(py, "read", (offset + from as u64, len))?;
            let bytes = bytes.bind(py).cast::<PyBytes>()?.as_bytes();
            let piece = into.slice(from, len);
            piece.copy_from(bytes);
            piece.slice(bytes.len(), len).fill_zero();
            PyResult::Ok(())
        })
        .map_err(as_io)
    })
}

fn write_to(object: &Py<PyAny>, from: &Source<'_>, offset: u64) -> io::Result<()> {
    in_pieces(from, from.len(), &|source: &Source<'_>, start, len| {
        Python::attach(|py| {
            let bytes = PyBytes::new_with(py, len, |room| {
                source.slice(start, len).copy_to(room);
                Ok(())
            })?;
            object.call_method1(py, "write", (offset + start as u64, bytes)).map(drop)
        })
        .map_err(as_io)
    })
}

fn call(object: &Py<PyAny>, name: &str, range: (u64, u64)) -> PyResult<()> {
    Python::attach(|py| object.call_method1(py, name, range).map(drop))
}

fn call_zeroes(object: &Py<PyAny>, range: (u64, u64), unmap: bool) -> PyResult<()> {
    Python::attach(|py| {
        let options = PyDict::new(py);
        options.set_item("unmap", unmap)?;
        object.call_method(py, "write_zeroes", range, Some(&options)).map(drop)
    })
}

/// The fields of `ostler.block.image.Extent` that matter here.
#[derive(FromPyObject)]
struct Found {
    length: u64,
    allocated: bool,
    zero: bool,
    host_offset: Option<u64>,
    compressed: bool,
}

impl Found {
    fn extent(&self) -> Extent {
        let content = match self {
            Self { allocated: false, .. } => Content::Unallocated,
            Self { zero: true, .. } => Content::Zero,
            Self { compressed: true, .. } => Content::Compressed,
            _ => Content::Data,
        };
        Extent { len: self.length, content, host_offset: self.host_offset }
    }
}

/// The first extent of a range.
fn first_extent(object: &Py<PyAny>, range: (u64, u64)) -> PyResult<Option<Found>> {
    Python::attach(|py| {
        let extents = object.call_method1(py, "extents", range)?;
        let first = PyIterator::from_object(extents.bind(py))?.next();
        first.map(|extent| extent?.extract()).transpose()
    })
}

/// An `ImageFile`.
#[derive(Debug)]
pub struct PyStorage(pub Py<PyAny>);

impl Storage for PyStorage {
    fn len(&self) -> io::Result<u64> {
        Python::attach(|py| self.0.getattr(py, "size_bytes")?.extract(py)).map_err(as_io)
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        read_from(&self.0, into, offset)
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> io::Result<()> {
        write_to(&self.0, from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Python::attach(|py| self.0.call_method0(py, "flush").map(drop)).map_err(as_io)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Python::attach(|py| self.0.call_method1(py, "truncate", (len,)).map(drop)).map_err(as_io)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        call(&self.0, "discard", (offset, len)).map_err(as_io)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        call_zeroes(&self.0, (offset, len), unmap).map_err(as_io)
    }

    fn run_at(&self, offset: u64, limit: u64) -> io::Result<Run> {
        let found = first_extent(&self.0, (offset, limit)).map_err(as_io)?;
        Ok(found.map_or(Run { is_data: true, len: limit }, |extent| Run {
            is_data: extent.allocated && !extent.zero,
            len: extent.length.clamp(1, limit.max(1)),
        }))
    }

    fn grows_with_zeroes(&self) -> bool {
        false
    }
}

/// An `Image` whose format is written in Python.
#[derive(Debug)]
pub struct PyDisk {
    pub image: Py<PyAny>,
    pub size: u64,
}

impl Disk for PyDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        Ok(read_from(&self.image, into, offset)?)
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> Result<()> {
        Ok(write_to(&self.image, from, offset)?)
    }

    fn flush(&self) -> Result<()> {
        Python::attach(|py| self.image.call_method0(py, "flush").map(drop)).map_err(as_block)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        call(&self.image, "discard", (offset, len)).map_err(as_block)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        call_zeroes(&self.image, (offset, len), unmap).map_err(as_block)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let found = first_extent(&self.image, (offset, limit)).map_err(as_block)?;
        let mut extent =
            found.map_or(Extent { len: limit, content: Content::Data, host_offset: None }, |it| it.extent());
        extent.len = extent.len.clamp(1, limit.max(1));
        Ok(extent)
    }

    /// What a layered image of Python's does not hold is read: only the image knows what is behind.
    fn zero_at(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        let extent = self.extent_at(offset, limit)?;
        Ok((extent.content == Content::Zero, extent.len))
    }
}

/// The disk behind any Python image: its own if it has one in Rust, else calls.
pub fn disk_of(image: &Bound<'_, PyAny>) -> PyResult<Arc<dyn Disk>> {
    if let Ok(disk) = image.getattr("disk")
        && let Ok(native) = disk.cast::<super::BlockDisk>()
    {
        return Ok(Arc::clone(&native.get().disk));
    }
    let size = image.getattr("size_bytes")?.extract()?;
    Ok(Arc::new(PyDisk { image: image.clone().unbind(), size }))
}
