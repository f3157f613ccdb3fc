//! Block ciphers of 16-byte blocks, by name, behind one object.

use cipher::consts::U16;
use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use crate::Error;

pub(crate) type Block = Array<u8, U16>;
pub(crate) const BLOCK_BYTES: usize = 16;

/// Which block cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Aes,
    Serpent,
    Twofish,
}

/// A block cipher with its key. Many blocks at once is what the hardware is fast at.
pub(crate) trait BlockCipher: Send + Sync {
    fn encrypt(&self, blocks: &mut [Block]);
    fn decrypt(&self, blocks: &mut [Block]);
}

impl<C> BlockCipher for C
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, blocks: &mut [Block]) {
        self.encrypt_blocks(blocks);
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(blocks);
    }
}

impl Algorithm {
    /// The cipher with a key of 16, 24 or 32 bytes.
    pub(crate) fn with_key(self, key: &[u8]) -> Result<Box<dyn BlockCipher>, Error> {
        match (self, key.len()) {
            (Self::Aes, 16) => keyed::<aes::Aes128>(key),
            (Self::Aes, 24) => keyed::<aes::Aes192>(key),
            (Self::Aes, 32) => keyed::<aes::Aes256>(key),
            (Self::Serpent, 16 | 24 | 32) => keyed::<serpent::Serpent>(key),
            (Self::Twofish, 16 | 24 | 32) => keyed::<twofish::Twofish>(key),
            (_, length) => Err(Error::KeyLength(length)),
        }
    }
}

fn keyed<C>(key: &[u8]) -> Result<Box<dyn BlockCipher>, Error>
where
    C: KeyInit + BlockCipher + 'static,
{
    let cipher = C::new_from_slice(key).map_err(|_| Error::KeyLength(key.len()))?;
    Ok(Box::new(cipher))
}
