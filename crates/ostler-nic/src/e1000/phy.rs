//! The 82540EM's transceiver: what drivers read to see a gigabit link (Marvell 88E1011, 8254x manual,
//! section 13.4.8 and 11).

const CONTROL: usize = 0;
const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_RESTART: u16 = 1 << 9;
const STATUS: usize = 1;
const STATUS_LINK: u16 = 1 << 2;
const STATUS_NEGOTIATED: u16 = 1 << 5;
const SPECIFIC_STATUS: usize = 17;
/// 1000 Mb/s, full duplex, resolved, link.
const SPECIFIC_UP: u16 = 0xac00;
pub const REGISTERS: usize = 32;

/// Registers after a reset.
const RESET: [(usize, u16); 11] = [
    (CONTROL, 0x1140),
    (STATUS, 0x7949),
    (2, 0x0141),
    (3, 0x0c20),
    (4, 0x0de1),
    (5, 0x45e1),
    (6, 0x0003),
    (9, 0x0e00),
    (10, 0x3c00),
    (15, 0x3000),
    (16, 0x0360),
];
/// Those that keep what is stored.
const WRITABLE: [usize; 7] = [CONTROL, 4, 7, 9, 16, 18, 20];

#[derive(Clone, Debug)]
pub struct Phy {
    registers: [u16; REGISTERS],
}

impl Default for Phy {
    fn default() -> Self {
        let mut registers = [0; REGISTERS];
        for (register, value) in RESET {
            registers[register] = value;
        }
        Self { registers }
    }
}

impl Phy {
    pub fn read(&self, register: usize, link: bool) -> u16 {
        let stored = self.registers[register % REGISTERS];
        match register {
            STATUS if link => stored | STATUS_LINK | STATUS_NEGOTIATED,
            SPECIFIC_STATUS if link => SPECIFIC_UP,
            5 | 6 | 10 if !link => 0,
            _ => stored,
        }
    }

    pub fn write(&mut self, register: usize, value: u16) {
        if register == CONTROL && value & CONTROL_RESET != 0 {
            *self = Self::default();
        } else if WRITABLE.contains(&register) {
            let passing = if register == CONTROL { CONTROL_RESTART } else { 0 };
            self.registers[register] = value & !passing;
        }
    }

    pub fn save(&self) -> Vec<u32> {
        self.registers.iter().map(|&value| value.into()).collect()
    }

    pub fn load(&mut self, saved: &[u32]) -> bool {
        let sound = saved.len() == REGISTERS && saved.iter().all(|&value| value <= 0xffff);
        if sound {
            for (register, &value) in self.registers.iter_mut().zip(saved) {
                *register = value as u16;
            }
        }
        sound
    }
}
