//! Guest physical memory.

use std::os::fd::RawFd;
use std::sync::Arc;

use ostler_engine::{AccelError, Vm};
use ostler_memory::{Backing, GuestRam, MemoryError, SlotConfig};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::raise;
use crate::fd;

/// The memory slots of one VM (`virtual_machine.memory`). Addresses and sizes are in bytes.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct Memory {
    pub(crate) vm: Arc<dyn Vm>,
}

impl Memory {
    pub(crate) fn ram(&self) -> &Arc<GuestRam> {
        self.vm.memory()
    }
}

#[pymethods]
impl Memory {
    /// Map `size` bytes at guest physical address `gpa`; a slot of the same number is replaced.
    ///
    /// The bytes are zeroed private memory, or those of the file `fd` (a memfd, too) from `offset`
    /// on, shared with whoever maps it; `fd` may be closed afterwards. Guest writes to a
    /// `read_only` slot are MMIO. `ConfigError` when the slot is misaligned (4096 bytes) or
    /// overlaps another, `HostError` when the host cannot map it.
    #[pyo3(signature = (slot, gpa, size, *, read_only=false, log_dirty=false, fd=None, offset=0))]
    #[expect(clippy::too_many_arguments, reason = "named arguments in Python")]
    fn add_slot(
        &self,
        py: Python<'_>,
        slot: u32,
        gpa: u64,
        size: u64,
        read_only: bool,
        log_dirty: bool,
        fd: Option<RawFd>,
        offset: u64,
    ) -> PyResult<()> {
        let backing = match fd {
            None => Backing::Anonymous,
            Some(fd) => Backing::Shared { file: fd::file(fd)?, offset },
        };
        let config = SlotConfig { slot, gpa, size, read_only, log_dirty, backing };
        py.detach(|| {
            self.ram().set_slot(config)?;
            self.vm.synchronize().inspect_err(|_| self.take_back(slot))
        })
        .map_err(raise)
    }

    /// Unmap a slot; returns when no vCPU uses it any more.
    fn remove_slot(&self, py: Python<'_>, slot: u32) -> PyResult<()> {
        self.change(py, |ram| ram.remove_slot(slot))
    }

    /// Give the host back the whole pages in `size` bytes at `gpa`, which read as zeros afterwards.
    /// Returns how many bytes that were; where no memory is, there is none to give.
    fn discard(&self, py: Python<'_>, gpa: u64, size: u64) -> u64 {
        py.detach(|| ostler_memory::discard(&self.ram().map(), gpa, size))
    }

    /// `length` bytes at `gpa`; `IndexError` where no memory is.
    fn read<'py>(&self, py: Python<'py>, gpa: u64, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        let ram = self.ram();
        PyBytes::new_with(py, length, |buffer| copying(py, length, || ram.read(gpa, buffer)))
    }

    /// Store `data`, any bytes-like object, at `gpa`, in read-only slots, too; `IndexError` where no
    /// memory is.
    fn write(&self, py: Python<'_>, gpa: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffer = PyBuffer::<u8>::get(data)?;
        if !buffer.readonly() || !buffer.is_c_contiguous() {
            // Somebody might change it while the interpreter is detached.
            let copy = buffer.to_vec(py)?;
            return copying(py, copy.len(), || self.ram().write(gpa, &copy));
        }
        let bytes = frozen(&buffer);
        copying(py, bytes.len(), || self.ram().write(gpa, bytes))
    }

    /// Read and clear the dirty log of a slot: bit `n % 8` of byte `n // 8` is its page `n`.
    fn dirty_log<'py>(&self, py: Python<'py>, slot: u32) -> PyResult<Bound<'py, PyBytes>> {
        let words = py.detach(|| {
            self.vm.synchronize()?;
            Ok::<_, AccelError>(self.ram().take_dirty_log(slot)?)
        });
        let bytes: Vec<u8> = words.map_err(raise)?.into_iter().flat_map(u64::to_le_bytes).collect();
        Ok(PyBytes::new(py, &bytes))
    }

    /// Start or stop the dirty log of a slot; it is empty afterwards.
    fn set_dirty_log(&self, py: Python<'_>, slot: u32, on: bool) -> PyResult<()> {
        self.change(py, |ram| ram.set_dirty_log(slot, on))
    }
}

/// The bytes of a read-only buffer: a `bytes` object, or a file that was mapped to be read.
fn frozen(buffer: &PyBuffer<u8>) -> &[u8] {
    if buffer.len_bytes() == 0 {
        return &[];
    }
    // SAFETY: the buffer is contiguous, stays exported while `buffer` lives, and Python cannot write
    // it. A mapped file that another process changes is read as it is at that moment, as any file.
    unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes()) }
}

/// A copy that takes longer than giving the interpreter away and taking it back does so.
const LONG_COPY_BYTES: usize = 64 << 10;

/// Copies `length` bytes to or from the guest.
fn copying(py: Python<'_>, length: usize, copy: impl FnOnce() -> Result<(), MemoryError> + Send) -> PyResult<()> {
    if length < LONG_COPY_BYTES { copy() } else { py.detach(copy) }.map_err(raise)
}

impl Memory {
    /// Makes a change that running vCPUs have to know of.
    fn change(&self, py: Python<'_>, change: impl FnOnce(&GuestRam) -> Result<(), MemoryError> + Send) -> PyResult<()> {
        py.detach(|| {
            change(self.ram())?;
            self.vm.synchronize()
        })
        .map_err(raise)
    }

    /// After the accelerator refused a slot. What it says of the rest was said before.
    fn take_back(&self, slot: u32) {
        let _gone = self.ram().remove_slot(slot);
        let _refused = self.vm.synchronize();
    }
}
