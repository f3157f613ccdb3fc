//! The data path of disk images.
//!
//! Two traits, one on the other: a [`Storage`] is bytes somewhere (a host file, or anything Python
//! can read and write), a [`Disk`] is what a guest sees. [`Raw`] is a storage seen as a disk,
//! [`Qcow2`] finds the guest's bytes through the tables of that format, and allocates.
//!
//! Python decides what an image is to become: it reads headers, lays out new images, takes
//! snapshots, resizes, repairs. What is here serves requests and walks tables that are too large
//! to be walked there (`docs/decisions/0007-qcow2-in-two-languages.md`). Whatever an image says is
//! hostile: each offset is checked before it is used, and caches are bounded.

pub mod backup;
pub mod bench;
pub mod buffer;
pub mod compare;
pub mod copy;
pub mod dirty;
pub mod disk;
pub mod encrypted;
pub mod error;
mod known_data;
pub mod layers;
pub mod live;
pub mod pieces;
pub mod qcow2;
pub mod raw;
pub mod rebase;
pub mod salvage;
pub mod storage;
#[cfg(test)]
mod testing;

pub use backup::Backup;
pub use dirty::DirtyMap;
pub use disk::{Content, Disk, Extent};
pub use encrypted::EncryptedStorage;
pub use error::BlockError;
pub use live::LiveDisk;
pub use pieces::{Sink, Source};
pub use qcow2::Qcow2;
pub use raw::Raw;
pub use storage::{FileStorage, Storage};

pub type Result<T> = std::result::Result<T, BlockError>;
