//! Why a disk could not do what it was asked.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The host, or whatever the image is kept in, failed.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// The image contradicts itself; the text names the field.
    #[error("the image is damaged: {0}; run: ostler image check -r all")]
    Damaged(String),
    /// An L2 entry points behind the end of the file.
    #[error(
        "the image is cut off: its tables name data up to byte {host} of the file, which has {file_end}; \
         copy the whole file again, or save what is left: ostler image convert --salvage"
    )]
    CutOff { host: u64, file_end: u64 },
    #[error("bytes {offset} to {end} are not on a disk of {size} bytes")]
    Range { offset: u64, end: u64, size: u64 },
    #[error("opened read-only; open it for writing")]
    ReadOnly,
    /// The format cannot do it; the text says what to do instead.
    #[error("{0}")]
    Refused(String),
    #[error("cancelled")]
    Cancelled,
}

impl BlockError {
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}
