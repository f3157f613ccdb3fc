//! A serial EEPROM of 64 words, an NM93C46, which drivers read bit by bit over three wires.
//!
//! Not modelled: writing; such commands are taken and do nothing.

pub const WORDS: usize = 64;
const COMMAND_BITS: u32 = 9;
const READ: u32 = 0b10;

/// Where a transfer stands. The contents are made with the card.
#[derive(Clone, Debug)]
pub struct Eeprom {
    pub words: [u16; WORDS],
    clock: bool,
    /// The bits of a command so far, its start bit the first.
    command: u32,
    /// The address being read, and how many bits of its word are out.
    reading: Option<(u8, u8)>,
    output: bool,
}

impl Eeprom {
    pub fn new(words: [u16; WORDS]) -> Self {
        Self { words, clock: false, command: 0, reading: None, output: true }
    }

    pub fn word(&self, address: usize) -> u16 {
        self.words[address % WORDS]
    }

    /// The data output.
    pub fn output(&self) -> bool {
        self.output
    }

    /// The driver drives chip select, clock and data input.
    pub fn drive(&mut self, select: bool, clock: bool, input: bool) {
        let rises = clock && !self.clock;
        self.clock = clock;
        if !select {
            (self.command, self.reading, self.output) = (0, None, true);
        } else if rises {
            self.rise(input);
        }
    }

    fn rise(&mut self, input: bool) {
        if let Some((address, out)) = self.reading {
            self.output = self.word(address.into()) >> (15 - out) & 1 != 0;
            let next = if out == 15 { (address.wrapping_add(1), 0) } else { (address, out + 1) };
            self.reading = Some(next);
            return;
        }
        // A command begins with a one; zeros before it are nothing.
        self.command = self.command << 1 | u32::from(input);
        if self.command >> (COMMAND_BITS - 1) & 1 != 0 {
            self.begin();
        }
    }

    fn begin(&mut self) {
        if self.command >> 6 & 0b11 == READ {
            self.reading = Some(((self.command & 0x3f) as u8, 0));
            // The dummy bit before the word.
            self.output = false;
        }
        self.command = 0;
    }

    pub fn save(&self) -> Vec<u32> {
        let (address, out) = self.reading.unwrap_or((0, 0xff));
        vec![self.clock.into(), self.command, address.into(), out.into(), self.output.into()]
    }

    /// False when it cannot be so.
    pub fn load(&mut self, saved: &[u32]) -> bool {
        let &[clock, command, address, out, output] = saved else { return false };
        let reading = match out {
            0xff => None,
            0..16 if address <= 0xff => Some((address as u8, out as u8)),
            _ => return false,
        };
        let sound = clock <= 1 && output <= 1 && command < 1 << (COMMAND_BITS - 1);
        if sound {
            (self.clock, self.command, self.reading, self.output) = (clock != 0, command, reading, output != 0);
        }
        sound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock_in(eeprom: &mut Eeprom, bits: u32, count: u32) {
        for at in (0..count).rev() {
            let bit = bits >> at & 1 != 0;
            eeprom.drive(true, false, bit);
            eeprom.drive(true, true, bit);
        }
    }

    fn clock_out(eeprom: &mut Eeprom) -> u16 {
        (0..16).fold(0, |word, _| {
            eeprom.drive(true, false, false);
            eeprom.drive(true, true, false);
            word << 1 | u16::from(eeprom.output())
        })
    }

    #[test]
    fn words_are_read_one_after_another() {
        let mut words = [0; WORDS];
        words[5..7].copy_from_slice(&[0xbaba, 0x1234]);
        let mut eeprom = Eeprom::new(words);
        eeprom.drive(true, false, false);
        clock_in(&mut eeprom, 0b00_110 << 6 | 5, 11);
        assert!(!eeprom.output(), "the dummy bit");
        assert_eq!((clock_out(&mut eeprom), clock_out(&mut eeprom)), (0xbaba, 0x1234));
        eeprom.drive(false, false, false);
        clock_in(&mut eeprom, 0b110 << 6 | 6, 9);
        assert_eq!(clock_out(&mut eeprom), 0x1234);
    }

    #[test]
    fn transfer_saved_amid_a_word_goes_on() {
        let mut words = [0; WORDS];
        words[1] = 0xa5c3;
        let mut one = Eeprom::new(words);
        clock_in(&mut one, 0b110 << 6 | 1, 9);
        clock_in(&mut one, 0, 8);
        let mut two = Eeprom::new(words);
        assert!(two.load(&one.save()));
        assert_eq!(clock_out(&mut one) >> 8, 0xc3);
        assert_eq!(clock_out(&mut two) >> 8, 0xc3);
        assert!(!two.load(&[0, 0, 0, 16, 0]) && !two.load(&[0; 4]));
    }
}
