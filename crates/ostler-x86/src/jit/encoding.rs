//! A guest instruction taken apart into the fields that are encoded anew.

/// The fields of a VEX prefix that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vex {
    pub wide: bool,
    pub vvvv: u8,
    pub length: u8,
    pub prefix: u8,
}

/// An instruction's bytes by meaning.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    pub operand_size: bool,
    pub lock: bool,
    /// F2 or F3, or 0.
    pub repeat: u8,
    /// The REX prefix, or 0.
    pub rex: u8,
    pub vex: Option<Vex>,
    /// 0: one byte; 1: 0F; 2: 0F 38; 3: 0F 3A.
    pub map: u8,
    pub opcode: u8,
    pub modrm: Option<u8>,
    pub immediate: &'a [u8],
}

/// One-byte opcodes with a ModRM byte, among those that are transcoded.
fn has_modrm(map: u8, opcode: u8) -> bool {
    match map {
        0 => match opcode {
            0x00..=0x3f => opcode & 7 < 4,
            0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 => true,
            0xf6 | 0xf7 | 0xfe | 0xff => true,
            _ => false,
        },
        1 => {
            !matches!(opcode, 0x05..=0x0b | 0x30..=0x37 | 0x77 | 0x80..=0x8f | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf)
        }
        _ => true,
    }
}

impl<'a> Encoding<'a> {
    /// Takes `bytes`, one whole instruction of 64-bit mode, apart; `None` for encodings that are not transcoded.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut this = Self {
            operand_size: false,
            lock: false,
            repeat: 0,
            rex: 0,
            vex: None,
            map: 0,
            opcode: 0,
            modrm: None,
            immediate: &[],
        };
        let mut at = this.prefixes(bytes)?;
        match *bytes.get(at)? {
            0xc4 | 0xc5 => at = this.vex(bytes, at)?,
            0x62 => return None,
            0x0f => {
                (this.map, at) = match *bytes.get(at + 1)? {
                    0x38 => (2, at + 2),
                    0x3a => (3, at + 2),
                    _ => (1, at + 1),
                };
            }
            _ => {}
        }
        this.opcode = *bytes.get(at)?;
        at += 1;
        if has_modrm(this.map, this.opcode) {
            let modrm = *bytes.get(at)?;
            this.modrm = Some(modrm);
            at += 1 + address_bytes(modrm, bytes.get(at + 1).copied());
        }
        this.immediate = bytes.get(at..)?;
        Some(this)
    }

    fn prefixes(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            let byte = *bytes.get(at)?;
            match byte {
                0x66 => self.operand_size = true,
                0xf0 => self.lock = true,
                0xf2 | 0xf3 => self.repeat = byte,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
                0x40..=0x4f => {
                    self.rex = byte;
                    at += 1;
                    continue;
                }
                _ => return Some(at),
            }
            // A REX prefix that another prefix follows is ignored.
            self.rex = 0;
            at += 1;
        }
    }

    /// Reads a VEX prefix at `at`; where the opcode is.
    fn vex(&mut self, bytes: &[u8], at: usize) -> Option<usize> {
        let first = *bytes.get(at + 1)?;
        let (last, map, wide, next) = if bytes[at] == 0xc5 {
            (first, 1, false, at + 2)
        } else {
            let last = *bytes.get(at + 2)?;
            (last, first & 31, last & 0x80 != 0, at + 3)
        };
        self.map = map;
        self.vex = Some(Vex { wide, vvvv: !last >> 3 & 15, length: last >> 2 & 1, prefix: last & 3 });
        (1..=3).contains(&map).then_some(next)
    }

    /// The `reg` field without its extension.
    pub fn reg_field(&self) -> u8 {
        self.modrm.unwrap_or(0) >> 3 & 7
    }

    /// The opcode byte or bytes, without prefixes.
    pub fn opcode_bytes(&self) -> ([u8; 3], usize) {
        match self.map {
            0 => ([self.opcode, 0, 0], 1),
            1 => ([0x0f, self.opcode, 0], 2),
            2 => ([0x0f, 0x38, self.opcode], 3),
            _ => ([0x0f, 0x3a, self.opcode], 3),
        }
    }
}

/// Bytes of SIB and displacement after a ModRM byte.
fn address_bytes(modrm: u8, sib: Option<u8>) -> usize {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return 0;
    }
    let has_sib = rm == 4;
    let no_base = if has_sib { sib.is_some_and(|sib| sib & 7 == 5) } else { rm == 5 };
    let displacement = match mode {
        0 if no_base => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    usize::from(has_sib) + displacement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediate_follows_sib_and_displacement() {
        // add dword ptr [rax+rcx*4+0x12345678], 0x11223344
        let bytes = [0x81, 0x84, 0x88, 0x78, 0x56, 0x34, 0x12, 0x44, 0x33, 0x22, 0x11];
        let encoding = Encoding::parse(&bytes).expect("parses");
        assert_eq!((encoding.opcode, encoding.immediate), (0x81, &bytes[7..]));
    }

    #[test]
    fn rex_before_another_prefix_is_ignored() {
        let encoding = Encoding::parse(&[0x48, 0x66, 0x01, 0xc8]).expect("parses");
        assert!(encoding.rex == 0 && encoding.operand_size && encoding.opcode == 1);
    }

    #[test]
    fn vex_of_two_and_three_bytes_give_the_same_fields() {
        // vpxor ymm0, ymm1, ymm2
        let short = Encoding::parse(&[0xc5, 0xf5, 0xef, 0xc2]).expect("parses");
        let long = Encoding::parse(&[0xc4, 0xe1, 0x75, 0xef, 0xc2]).expect("parses");
        assert_eq!((short.vex, short.map, short.opcode), (long.vex, long.map, long.opcode));
        assert_eq!(short.vex, Some(Vex { wide: false, vvvv: 1, length: 1, prefix: 1 }));
    }
}
