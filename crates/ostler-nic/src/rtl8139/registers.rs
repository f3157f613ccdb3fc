//! Offsets and bits of the RTL8139C+'s registers (RTL8139C(L)+ data sheet, chapter 6).

pub const IDR: usize = 0x00;
pub const MAR: usize = 0x08;
/// Status of four transmit descriptors of four bytes. Of the C+ with rings, the first is DTCCR.
pub const TSD: usize = 0x10;
pub const TSD_SIZE: u32 = 0x1fff;
pub const TSD_OWN: u32 = 1 << 13;
pub const TSD_OK: u32 = 1 << 15;
/// Dump of the statistics counters.
pub const DTCCR: usize = 0x10;
pub const DTCCR_COMMAND: u32 = 1 << 3;
/// Addresses of the four; of the C+, that of its ring.
pub const TSAD: usize = 0x20;
pub const TNPDS: usize = 0x20;
pub const RBSTART: usize = 0x30;
pub const CR: usize = 0x37;
pub const CR_BUFFER_EMPTY: u8 = 1 << 0;
pub const CR_TRANSMIT: u8 = 1 << 2;
pub const CR_RECEIVE: u8 = 1 << 3;
pub const CR_RESET: u8 = 1 << 4;
pub const CAPR: usize = 0x38;
pub const CBR: usize = 0x3a;
pub const IMR: usize = 0x3c;
pub const ISR: usize = 0x3e;
pub const ISR_RECEIVED: u16 = 1 << 0;
pub const ISR_SENT: u16 = 1 << 2;
pub const ISR_LINK: u16 = 1 << 5;
pub const TCR: usize = 0x40;
/// Which chip it is: bits 30 to 26, 23 and 22.
#[cfg(test)]
pub const TCR_VERSION: u32 = 0x7cc0_0000;
pub const TCR_PLUS: u32 = 0x7480_0000;
pub const TCR_PLAIN: u32 = 0x7400_0000;
pub const RCR: usize = 0x44;
pub const RCR_ALL: u32 = 1 << 0;
pub const RCR_OWN: u32 = 1 << 1;
pub const RCR_MULTICAST: u32 = 1 << 2;
pub const RCR_BROADCAST: u32 = 1 << 3;
pub const RCR_NO_WRAP: u32 = 1 << 7;
pub const EECR: usize = 0x50;
pub const EECR_DATA_OUT: u8 = 1 << 0;
pub const EECR_DATA_IN: u8 = 1 << 1;
pub const EECR_CLOCK: u8 = 1 << 2;
pub const EECR_SELECT: u8 = 1 << 3;
pub const MSR: usize = 0x58;
pub const MSR_LINK_DOWN: u8 = 1 << 2;
pub const TSAD_ALL: usize = 0x60;
pub const BMCR: usize = 0x62;
pub const BMSR: usize = 0x64;
pub const BMSR_UP: u16 = 1 << 2 | 1 << 5;
pub const CSCR: usize = 0x74;
pub const CSCR_LINK: u8 = 1 << 2;
pub const CSCR_CHANGED: u8 = 1 << 3;
pub const TPPOLL: usize = 0xd9;
pub const TPPOLL_NORMAL: u8 = 1 << 6;
pub const CPCR: usize = 0xe0;
pub const CPCR_TRANSMIT: u16 = 1 << 0;
pub const CPCR_RECEIVE: u16 = 1 << 1;
pub const CPCR_CHECKSUMS: u16 = 1 << 5;
pub const CPCR_VLAN: u16 = 1 << 6;
pub const RDSAR: usize = 0xe4;
pub const BYTES: usize = 0x100;

/// Which bits of a byte are state; others are as the chip was made.
pub fn kept(offset: usize) -> u8 {
    match offset {
        CBR | 0x3b | ISR | 0x3f => 0xff,
        0x75 => CSCR_CHANGED,
        _ => writable(offset),
    }
}

/// Which bits of a byte a store sets; those of others are computed, or cleared by writing ones.
pub fn writable(offset: usize) -> u8 {
    match offset {
        // Identity, multicast filter, transmit and receive buffers.
        0x00..=0x05 | 0x08..=0x33 => 0xff,
        CR => CR_TRANSMIT | CR_RECEIVE,
        0x38 | 0x39 | 0x3c | 0x3d | 0x40 | 0x41 | 0x44..=0x47 => 0xff,
        // All but the version.
        0x42 => 0x07,
        0x43 => 0x03,
        EECR => 0xce,
        0x52 | 0x54..=0x57 | 0x59..=0x5b | 0x5c | 0x5d => 0xff,
        0x62 | 0x63 | 0x66 | 0x67 | 0x70..=0x73 | 0x78..=0x7f => 0xff,
        0xda..=0xdb | 0xe0..=0xe2 | 0xe4..=0xec => 0xff,
        _ => 0,
    }
}
