//! What can be wrong with what a cipher is asked for.

/// A cipher that cannot be, or data it cannot take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("a key of {0} bytes does not fit the cipher")]
    KeyLength(usize),
    #[error("sectors of {0} bytes")]
    SectorLength(usize),
    #[error("{length} bytes are no whole sectors of {sector}")]
    DataLength { length: usize, sector: usize },
    #[error("argon2: {0}")]
    Argon2(String),
}
