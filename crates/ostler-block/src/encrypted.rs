//! Storage whose content is encrypted, in sectors whose number is their place in it.

use std::io;
use std::sync::{Arc, Mutex};

use ostler_crypto::SectorCipher;

use crate::pieces::{Sink, Source};
use crate::storage::{Run, Storage};

const SECTOR_BYTES: u64 = 512;
/// What is encrypted at a time.
const PIECE_BYTES: usize = 1 << 20;

/// The clear content of encrypted storage. It has no holes: what nobody wrote is noise.
#[derive(Debug)]
pub struct EncryptedStorage {
    below: Arc<dyn Storage>,
    cipher: Arc<SectorCipher>,
    /// Two writes into one sector must not both begin with what was in it before.
    around: Mutex<()>,
}

impl EncryptedStorage {
    pub fn new(below: Arc<dyn Storage>, cipher: Arc<SectorCipher>) -> Self {
        Self { below, cipher, around: Mutex::new(()) }
    }

    /// The clear content of whole sectors.
    fn decrypted(&self, start: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.below.read_bytes(&mut bytes, start)?;
        self.cipher.decrypt(start / SECTOR_BYTES, 1, &mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn write_sectors(&self, start: u64, mut bytes: Vec<u8>) -> io::Result<()> {
        self.cipher.encrypt(start / SECTOR_BYTES, 1, &mut bytes).map_err(io::Error::other)?;
        self.below.write_bytes(&bytes, start)
    }

    fn write_piece(&self, from: &Source<'_>, offset: u64) -> io::Result<()> {
        let (start, len) = sectors(offset, from.len());
        let at = (offset - start) as usize;
        if at == 0 && len == from.len() {
            let mut bytes = vec![0; len];
            from.copy_to(&mut bytes);
            return self.write_sectors(start, bytes);
        }
        let _alone = self.around.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut bytes = self.decrypted(start, len)?;
        from.copy_to(&mut bytes[at..at + from.len()]);
        self.write_sectors(start, bytes)
    }
}

/// The whole sectors around a range.
fn sectors(offset: u64, len: usize) -> (u64, usize) {
    let start = offset / SECTOR_BYTES * SECTOR_BYTES;
    let end = (offset + len as u64).next_multiple_of(SECTOR_BYTES);
    (start, (end - start) as usize)
}

impl Storage for EncryptedStorage {
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        for done in (0..into.len()).step_by(PIECE_BYTES) {
            let piece = into.slice(done, PIECE_BYTES.min(into.len() - done));
            let at = offset + done as u64;
            let (start, len) = sectors(at, piece.len());
            let bytes = self.decrypted(start, len)?;
            let skipped = (at - start) as usize;
            piece.copy_from(&bytes[skipped..skipped + piece.len()]);
        }
        Ok(())
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> io::Result<()> {
        for done in (0..from.len()).step_by(PIECE_BYTES) {
            let piece = from.slice(done, PIECE_BYTES.min(from.len() - done));
            self.write_piece(&piece, offset + done as u64)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.below.flush()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.below.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let zeroes = vec![0; PIECE_BYTES.min(len as usize)];
        for done in (0..len).step_by(PIECE_BYTES) {
            let piece = &zeroes[..PIECE_BYTES.min((len - done) as usize)];
            self.write_bytes(piece, offset + done)?;
        }
        Ok(())
    }

    fn run_at(&self, _offset: u64, limit: u64) -> io::Result<Run> {
        Ok(Run { is_data: true, len: limit })
    }

    fn grows_with_zeroes(&self) -> bool {
        false
    }
}
