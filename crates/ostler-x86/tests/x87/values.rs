//! Random x87 states with values that matter, from a fixed seed.

use ostler_x86::cpu::vector::X87Image;

pub struct Values {
    state: u64,
}

impl Values {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn mantissa(&mut self) -> u64 {
        const INTEGER_BIT: u64 = 1 << 63;
        match self.below(8) {
            0 => 0,
            1 => INTEGER_BIT,
            2 => INTEGER_BIT | 1 << 62,
            3 => INTEGER_BIT | u64::MAX << self.below(63),
            4 => self.next(),
            _ => self.next() | INTEGER_BIT,
        }
    }

    /// A register: normal numbers of all sizes, zeros, denormals, infinities, NaNs, unnormals.
    pub fn register(&mut self) -> [u8; 16] {
        let exponent = match self.below(8) {
            0 => 0,
            1 => 0x7fff,
            2 => self.below(0x8000),
            3 => 1 + self.below(4),
            _ => 0x3fff + self.below(80) - 10,
        };
        let mut register = [0; 16];
        register[..8].copy_from_slice(&self.mantissa().to_le_bytes());
        let sign = self.below(2) << 15;
        register[8..10].copy_from_slice(&((exponent | sign) as u16).to_le_bytes());
        register
    }

    /// A memory operand.
    pub fn memory(&mut self) -> [u8; 128] {
        let mut bytes = [0; 128];
        bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&self.next().to_le_bytes()));
        match self.below(5) {
            0 => bytes[..16].copy_from_slice(&self.register()),
            1 => bytes[..8].copy_from_slice(&(self.below(2000) as f64 / 8.0 - 100.0).to_le_bytes()),
            2 => bytes[..4].copy_from_slice(&(self.below(2000) as f32 / 8.0 - 100.0).to_le_bytes()),
            3 => bytes[..8].copy_from_slice(
                &[0, f64::NAN.to_bits(), f64::INFINITY.to_bits(), 1][self.below(4) as usize].to_le_bytes(),
            ),
            // Packed decimal.
            _ => bytes[..10].iter_mut().for_each(|byte| *byte = (*byte >> 4) % 10 * 16 + (*byte & 15) % 10),
        }
        bytes
    }

    /// A state in which no unmasked exception is pending.
    pub fn state(&mut self) -> X87Image {
        let masks = if self.below(3) == 0 { self.next() as u16 & 0x3f } else { 0x3f };
        let fcw = masks | 0x40 | self.next() as u16 & 0x1f00;
        let sticky = self.next() as u16 & self.next() as u16 & masks;
        let stack_fault = if sticky & 1 != 0 { self.next() as u16 & 0x40 } else { 0 };
        let fsw = self.next() as u16 & 0x7f00 | sticky | stack_fault;
        let ftw = if self.below(4) == 0 { self.next() as u8 } else { 0xff };
        let st = std::array::from_fn(|_| self.register());
        X87Image { fcw, fsw, ftw, st, ..X87Image::default() }
    }
}
