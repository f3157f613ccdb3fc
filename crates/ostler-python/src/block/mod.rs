//! Disk images: the data path of `ostler-block` as Python classes.

mod adapt;
mod copy;
mod dirty;
mod disk;
mod live;
mod qcow2;

use ostler_block::BlockError;
use pyo3::prelude::*;

pub use copy::{
    CopyProgress, bench_disk, compare_disks, copy_disk, copy_marked, data_bytes, map_json, map_layers, rebase_disk,
};
pub use dirty::DirtyMap;
pub use disk::{BlockDisk, BlockStorage};
pub use live::{BlockBackup, LiveDisk};
pub use qcow2::Qcow2Disk;

use crate::error::Kind;

/// An error of the block layer as a Python exception that names the image. One that Python code
/// below raised is handed on as it was.
fn raise(name: &str, error: BlockError) -> PyErr {
    match error {
        BlockError::Host(error) => match error.downcast::<PyErr>() {
            Ok(raised) => raised,
            Err(error) => Kind::Host.error(format!("{name}: {}", plain(&error))),
        },
        BlockError::Cancelled => Kind::Usage.error(format!("{name}: cancelled")),
        error => Kind::Disk.error(format!("{name}: {error}")),
    }
}

/// What the host said, without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_string()
}
