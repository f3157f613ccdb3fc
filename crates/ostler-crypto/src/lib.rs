//! Encryption of disk sectors as dm-crypt and QEMU have it, and Argon2.
//!
//! The block ciphers are RustCrypto's; the modes around them are here because a disk needs them a
//! sector at a time, with the initialization vector made from the sector's number.
#![forbid(unsafe_code)]

mod block;
mod error;
mod kdf;
mod sector;

pub use block::Algorithm;
pub use error::Error;
pub use kdf::{Argon2Kind, argon2};
pub use sector::{Iv, Mode, SectorCipher};
