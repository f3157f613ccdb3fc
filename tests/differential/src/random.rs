//! Random numbers that depend on a seed alone, biased to where processors have edges.

/// xoshiro256** seeded by SplitMix64.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

/// One step of SplitMix64: also the way one sequence's seed is derived from the run's.
pub fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut at = seed;
        let state = std::array::from_fn(|_| {
            at = mix(at);
            at
        });
        Self { state }
    }

    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `0..limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer: any, small, or next to a power of two, in equal parts.
    pub fn integer(&mut self) -> u64 {
        match self.below(6) {
            0 | 1 => self.bits(),
            2 => self.below(0x200).wrapping_sub(0x80),
            3 => self.bits() >> self.below(64),
            4 => (1u64 << self.below(64)).wrapping_add(self.below(3)).wrapping_sub(1),
            _ => self.pick(&INTEGER_EDGES),
        }
    }

    /// The bits of a single: any, an edge, or an ordinary number.
    pub fn single(&mut self) -> u32 {
        match self.below(4) {
            0 => self.bits() as u32,
            1 => self.pick(&SINGLE_EDGES) ^ ((self.bits() as u32) & 0x8000_0000),
            2 => ((self.integer() as i32) as f32).to_bits(),
            _ => ((self.bits() as u32) & 0x807f_ffff) | ((0x70 + self.below(0x20) as u32) << 23),
        }
    }

    /// The bits of a double: any, an edge, or an ordinary number.
    pub fn double(&mut self) -> u64 {
        match self.below(4) {
            0 => self.bits(),
            1 => self.pick(&DOUBLE_EDGES) ^ (self.bits() & (1 << 63)),
            2 => ((self.integer() as i64) as f64).to_bits(),
            _ => (self.bits() & 0x800f_ffff_ffff_ffff) | ((0x3f0 + self.below(0x20)) << 52),
        }
    }

    /// An 80-bit x87 value: numbers, and the encodings only memory can hold (unnormals, pseudo-denormals).
    pub fn extended(&mut self) -> [u8; 10] {
        let sign = (self.bits() as u16) & 0x8000;
        let (exponent, mantissa) = match self.below(6) {
            0 => (self.bits() as u16, self.bits()),
            1 => self.pick(&EXTENDED_EDGES),
            2 => (0x3fff_u16.wrapping_add(self.below(64) as u16), (1 << 63) | (self.bits() << self.below(63))),
            _ => (0x3ff0 + self.below(0x20) as u16, (1 << 63) | self.bits()),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&(exponent ^ sign).to_le_bytes());
        bytes
    }

    /// Fills with one kind of content or another: noise, small numbers, singles, doubles, edges.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let kind = self.below(6);
            for word in chunk.chunks_mut(8) {
                let value = self.word(kind);
                word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
            }
        }
    }

    fn word(&mut self, kind: u64) -> u64 {
        match kind {
            0 | 1 => self.bits(),
            2 => u64::from(self.single()) | (u64::from(self.single()) << 32),
            3 => self.double(),
            4 => self.integer(),
            _ => {
                let bytes: [u8; 8] = std::array::from_fn(|_| self.pick(&BYTE_EDGES));
                u64::from_le_bytes(bytes)
            }
        }
    }
}

const INTEGER_EDGES: [u64; 20] = [
    0,
    1,
    2,
    3,
    u64::MAX,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_8000_0000,
    0x5555_5555_5555_5555,
    0xaaaa_aaaa_aaaa_aaaa,
    0x0101_0101_0101_0101,
];
const BYTE_EDGES: [u8; 10] = [0, 1, 2, 0x7f, 0x80, 0x81, 0xff, 0xfe, 0x40, 0x61];
/// Zero, the least denormal and the greatest, the least normal and the greatest, one, infinity, quiet and
/// signalling NaN, the bounds of 32- and 64-bit integers, one half.
const SINGLE_EDGES: [u32; 14] = [
    0,
    1,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x3f80_0000,
    0x7f80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x7fff_ffff,
    0x4f00_0000,
    0x4eff_ffff,
    0x5f00_0000,
    0x3f00_0000,
];
const DOUBLE_EDGES: [u64; 14] = [
    0,
    1,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x3ff0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x41e0_0000_0000_0000,
    0x41df_ffff_ffc0_0000,
    0x43e0_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x36a0_0000_0000_0000,
];
const EXTENDED_EDGES: [(u16, u64); 16] = [
    (0, 0),
    (0, 1),
    (0, 0x7fff_ffff_ffff_ffff),
    (0, 1 << 63),
    (1, 1 << 63),
    (0x7ffe, u64::MAX),
    (0x7fff, 1 << 63),
    (0x7fff, 3 << 62),
    (0x7fff, (1 << 63) | 1),
    (0x7fff, u64::MAX),
    (0x3fff, 1 << 63),
    (0x3ffe, 1 << 63),
    (0x3fff, 0),
    (0x7fff, 0),
    (0x403e, 1 << 63),
    (0x3fc0, 1 << 63),
];
