//! The data clusters of crypt_method 1: AES-CBC in sectors that the disk numbers, not the file. Read only.

use std::io;
use std::sync::Arc;

use ostler_crypto::SectorCipher;

use super::Qcow2;
use crate::pieces::Sink;
use crate::{BlockError, Result};

const SECTOR_BYTES: usize = 512;
/// What is decrypted at a time.
const PIECE_BYTES: usize = 1 << 20;

impl Qcow2 {
    /// Has the content of data clusters decrypted, its sectors numbered by where the guest sees them.
    pub fn with_legacy_cipher(self, cipher: Arc<SectorCipher>) -> Result<Self> {
        if !self.options.readonly {
            return Err(BlockError::Refused("qcow2's own AES encryption is only read; open it read-only".into()));
        }
        Ok(Self { legacy_cipher: Some(cipher), ..self })
    }

    /// Reads what is at `host` of the file and at `guest` of the disk.
    pub(super) fn read_legacy(&self, cipher: &SectorCipher, into: &Sink<'_>, host: u64, guest: u64) -> Result<()> {
        for done in (0..into.len()).step_by(PIECE_BYTES) {
            let piece = into.slice(done, PIECE_BYTES.min(into.len() - done));
            // Clusters are whole sectors, so both offsets are as far into one.
            let (at, from) = (guest + done as u64, host + done as u64);
            let skipped = at as usize % SECTOR_BYTES;
            let mut bytes = vec![0; (skipped + piece.len()).next_multiple_of(SECTOR_BYTES)];
            self.data.read_bytes(&mut bytes, from - skipped as u64)?;
            cipher.decrypt(at / SECTOR_BYTES as u64, 1, &mut bytes).map_err(io::Error::other)?;
            piece.copy_from(&bytes[skipped..skipped + piece.len()]);
        }
        Ok(())
    }
}
