//! Sectors: a mode of operation, and an initialization vector from each sector's number.

use std::fmt;

use cipher::Array;

use crate::Error;
use crate::block::{Algorithm, BLOCK_BYTES, Block, BlockCipher};

/// The sectors of dm-crypt: 512 to 4096 bytes.
const SECTOR_BYTES_MAX: usize = 4096;
const BLOCKS_MAX: usize = SECTOR_BYTES_MAX / BLOCK_BYTES;

/// How the blocks of a sector depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: equal blocks look equal. Old images have it.
    Ecb,
    Cbc,
    /// IEEE 1619: the key is two keys of equal length.
    Xts,
}

/// How a sector's number becomes an initialization vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Iv {
    /// The low 32 bits of the number, little-endian.
    Plain,
    /// The number, little-endian.
    Plain64,
    /// The number, encrypted with a key that is a hash of the data's key.
    Essiv(Vec<u8>),
}

enum IvGenerator {
    Plain,
    Plain64,
    Essiv(Box<dyn BlockCipher>),
}

/// Encrypts and decrypts whole sectors.
pub struct SectorCipher {
    data: Box<dyn BlockCipher>,
    /// XTS's second key.
    tweak: Option<Box<dyn BlockCipher>>,
    mode: Mode,
    iv: IvGenerator,
    sector_bytes: usize,
}

impl fmt::Debug for SectorCipher {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorCipher")
            .field("mode", &self.mode)
            .field("sector_bytes", &self.sector_bytes)
            .finish_non_exhaustive()
    }
}

impl SectorCipher {
    pub fn new(algorithm: Algorithm, mode: Mode, iv: &Iv, key: &[u8], sector_bytes: usize) -> Result<Self, Error> {
        if !(512..=SECTOR_BYTES_MAX).contains(&sector_bytes) || !sector_bytes.is_power_of_two() {
            return Err(Error::SectorLength(sector_bytes));
        }
        let (key, second) = match mode {
            Mode::Xts if key.len().is_multiple_of(2) => key.split_at(key.len() / 2),
            Mode::Xts => return Err(Error::KeyLength(key.len())),
            Mode::Ecb | Mode::Cbc => (key, &[][..]),
        };
        let tweak = match mode {
            Mode::Xts => Some(algorithm.with_key(second)?),
            Mode::Ecb | Mode::Cbc => None,
        };
        let iv = match iv {
            Iv::Plain => IvGenerator::Plain,
            Iv::Plain64 => IvGenerator::Plain64,
            Iv::Essiv(key) => IvGenerator::Essiv(algorithm.with_key(key)?),
        };
        let data = algorithm.with_key(key)?;
        Ok(Self { data, tweak, mode, iv, sector_bytes })
    }

    /// Encrypt sectors in place; the first has number `first`, each next one `step` more.
    pub fn encrypt(&self, first: u64, step: u64, data: &mut [u8]) -> Result<(), Error> {
        self.each(first, step, data, |cipher, iv, blocks| match cipher.mode {
            Mode::Ecb => cipher.data.encrypt(blocks),
            Mode::Cbc => cipher.encrypt_cbc(iv, blocks),
            Mode::Xts => cipher.xts(iv, blocks, |blocks| cipher.data.encrypt(blocks)),
        })
    }

    /// Decrypt sectors in place; the first has number `first`, each next one `step` more.
    pub fn decrypt(&self, first: u64, step: u64, data: &mut [u8]) -> Result<(), Error> {
        self.each(first, step, data, |cipher, iv, blocks| match cipher.mode {
            Mode::Ecb => cipher.data.decrypt(blocks),
            Mode::Cbc => cipher.decrypt_cbc(iv, blocks),
            Mode::Xts => cipher.xts(iv, blocks, |blocks| cipher.data.decrypt(blocks)),
        })
    }

    fn each(
        &self,
        first: u64,
        step: u64,
        data: &mut [u8],
        act: impl Fn(&Self, Block, &mut [Block]),
    ) -> Result<(), Error> {
        let (length, sector) = (data.len(), self.sector_bytes);
        if !length.is_multiple_of(sector) {
            return Err(Error::DataLength { length, sector });
        }
        let mut number = first;
        for sector in data.chunks_exact_mut(sector) {
            let (blocks, _) = Block::slice_as_chunks_mut(sector);
            act(self, self.iv(number), blocks);
            number = number.wrapping_add(step);
        }
        Ok(())
    }

    fn iv(&self, number: u64) -> Block {
        let wide = |number: u64| Array(u128::from(number).to_le_bytes());
        match &self.iv {
            IvGenerator::Plain => wide(number & 0xffff_ffff),
            IvGenerator::Plain64 => wide(number),
            IvGenerator::Essiv(cipher) => {
                let mut iv = [wide(number)];
                cipher.encrypt(&mut iv);
                iv[0]
            }
        }
    }

    fn encrypt_cbc(&self, iv: Block, blocks: &mut [Block]) {
        let mut last = iv;
        for block in blocks {
            *block = xor(*block, last);
            self.data.encrypt(std::slice::from_mut(block));
            last = *block;
        }
    }

    fn decrypt_cbc(&self, iv: Block, blocks: &mut [Block]) {
        let mut encrypted = [Block::default(); BLOCKS_MAX];
        encrypted[..blocks.len()].copy_from_slice(blocks);
        self.data.decrypt(blocks);
        let before = std::iter::once(&iv).chain(&encrypted);
        for (block, before) in blocks.iter_mut().zip(before) {
            *block = xor(*block, *before);
        }
    }

    /// XTS: each block is masked with the tweak times a power of alpha, before and after.
    fn xts(&self, iv: Block, blocks: &mut [Block], act: impl FnOnce(&mut [Block])) {
        let mut tweak = [iv];
        if let Some(cipher) = &self.tweak {
            cipher.encrypt(&mut tweak);
        }
        let mut masks = [0_u128; BLOCKS_MAX];
        let mut mask = u128::from_le_bytes(tweak[0].0);
        for slot in &mut masks[..blocks.len()] {
            *slot = mask;
            mask = double(mask);
        }
        apply(blocks, &masks);
        act(blocks);
        apply(blocks, &masks);
    }
}

fn apply(blocks: &mut [Block], masks: &[u128]) {
    for (block, mask) in blocks.iter_mut().zip(masks) {
        *block = Array((u128::from_le_bytes(block.0) ^ mask).to_le_bytes());
    }
}

fn xor(one: Block, other: Block) -> Block {
    Array((u128::from_le_bytes(one.0) ^ u128::from_le_bytes(other.0)).to_le_bytes())
}

/// Times alpha in GF(2^128), as IEEE 1619 has it: x^128 + x^7 + x^2 + x + 1, little-endian.
fn double(value: u128) -> u128 {
    let carry = value >> 127;
    (value << 1) ^ (carry * 0x87)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xts(key: &[u8]) -> SectorCipher {
        SectorCipher::new(Algorithm::Aes, Mode::Xts, &Iv::Plain64, key, 512).unwrap()
    }

    #[test]
    fn xts_aes_is_the_standards_vector_4() {
        // IEEE 1619-2007, annex B, vector 4: sector 0 of bytes 0 to 255, twice.
        let key = [
            0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26, 0x31, 0x41,
            0x59, 0x26, 0x53, 0x58, 0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95,
        ];
        let mut data: Vec<u8> = (0..512).map(|n| n as u8).collect();
        let plain = data.clone();
        xts(&key).encrypt(0, 1, &mut data).unwrap();
        let begins = [0x27, 0xa7, 0x47, 0x9b, 0xef, 0xa1, 0xd4, 0x76, 0x48, 0x9f, 0x30, 0x8c];
        assert_eq!(data[..12], begins);
        xts(&key).decrypt(0, 1, &mut data).unwrap();
        assert_eq!(data, plain);
    }

    #[test]
    fn every_cipher_mode_and_vector_turns_back() {
        let plain: Vec<u8> = (0..8192_usize).map(|n| (n * 7 % 251) as u8).collect();
        for algorithm in [Algorithm::Aes, Algorithm::Serpent, Algorithm::Twofish] {
            for mode in [Mode::Ecb, Mode::Cbc, Mode::Xts] {
                for iv in [Iv::Plain, Iv::Plain64, Iv::Essiv(vec![9; 32])] {
                    for sector in [512, 4096] {
                        let key: Vec<u8> = (0..64).collect();
                        let key = &key[..if mode == Mode::Xts { 64 } else { 32 }];
                        let cipher = SectorCipher::new(algorithm, mode, &iv, key, sector).unwrap();
                        let mut data = plain.clone();
                        cipher.encrypt(1 << 33, 1, &mut data).unwrap();
                        assert_ne!(data, plain);
                        cipher.decrypt(1 << 33, 1, &mut data).unwrap();
                        assert_eq!(data, plain, "{algorithm:?} {mode:?} {iv:?} {sector}");
                    }
                }
            }
        }
    }

    #[test]
    fn plain_forgets_what_is_above_32_bits_and_plain64_does_not() {
        let encrypted = |iv: &Iv, sector: u64| {
            let cipher = SectorCipher::new(Algorithm::Aes, Mode::Cbc, iv, &[1; 16], 512).unwrap();
            let mut data = vec![0; 512];
            cipher.encrypt(sector, 1, &mut data).unwrap();
            data
        };
        assert_eq!(encrypted(&Iv::Plain, 5), encrypted(&Iv::Plain, (1 << 32) | 5));
        assert_ne!(encrypted(&Iv::Plain64, 5), encrypted(&Iv::Plain64, (1 << 32) | 5));
    }

    #[test]
    fn keys_and_data_of_wrong_lengths_are_errors() {
        let new =
            |mode, key: &[u8], sector| SectorCipher::new(Algorithm::Aes, mode, &Iv::Plain64, key, sector).map(|_| ());
        assert_eq!(new(Mode::Cbc, &[0; 15], 512), Err(Error::KeyLength(15)));
        assert_eq!(new(Mode::Xts, &[0; 33], 512), Err(Error::KeyLength(33)));
        assert_eq!(new(Mode::Cbc, &[0; 16], 513), Err(Error::SectorLength(513)));
        assert_eq!(new(Mode::Cbc, &[0; 16], 8192), Err(Error::SectorLength(8192)));
        let odd = xts(&[0; 32]).encrypt(0, 1, &mut [0; 100]);
        assert_eq!(odd, Err(Error::DataLength { length: 100, sector: 512 }));
    }
}
