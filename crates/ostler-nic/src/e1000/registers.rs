//! Offsets and bits of the 82540EM's registers (Intel 8254x Software Developer's Manual, chapter 13).

pub const CTRL: usize = 0x0000;
pub const CTRL_RESET: u32 = 1 << 26;
pub const CTRL_VLAN_MODE: u32 = 1 << 30;
pub const CTRL_PHY_RESET: u32 = 1 << 31;
/// Full duplex, set link up, 1000 Mb/s.
pub const CTRL_DEFAULT: u32 = 1 | 1 << 6 | 0b10 << 8;
pub const STATUS: usize = 0x0008;
pub const STATUS_LINK_UP: u32 = 1 << 1;
/// Full duplex, 1000 Mb/s.
pub const STATUS_DEFAULT: u32 = 1 | 0b10 << 6;
pub const EECD: usize = 0x0010;
pub const EECD_CLOCK: u32 = 1 << 0;
pub const EECD_SELECT: u32 = 1 << 1;
pub const EECD_DATA_IN: u32 = 1 << 2;
pub const EECD_DATA_OUT: u32 = 1 << 3;
pub const EECD_REQUEST: u32 = 1 << 6;
pub const EECD_GRANT: u32 = 1 << 7;
pub const EECD_PRESENT: u32 = 1 << 8;
/// What a store sets.
pub const EECD_KEPT: u32 = EECD_SELECT | EECD_CLOCK | EECD_DATA_IN | EECD_REQUEST;
pub const EERD: usize = 0x0014;
pub const EERD_START: u32 = 1 << 0;
pub const EERD_DONE: u32 = 1 << 4;
pub const CTRL_EXT: usize = 0x0018;
pub const MDIC: usize = 0x0020;
pub const MDIC_READ: u32 = 0b10;
pub const MDIC_WRITE: u32 = 0b01;
pub const MDIC_READY: u32 = 1 << 28;
pub const MDIC_INTERRUPT: u32 = 1 << 29;
pub const MDIC_ERROR: u32 = 1 << 30;
pub const VET: usize = 0x0038;
pub const ICR: usize = 0x00c0;
pub const ITR: usize = 0x00c4;
pub const ICS: usize = 0x00c8;
pub const IMS: usize = 0x00d0;
pub const IMC: usize = 0x00d8;
pub const RCTL: usize = 0x0100;
pub const RCTL_ENABLE: u32 = 1 << 1;
pub const RCTL_UNICAST: u32 = 1 << 3;
pub const RCTL_MULTICAST: u32 = 1 << 4;
pub const RCTL_LONG: u32 = 1 << 5;
pub const RCTL_BROADCAST: u32 = 1 << 15;
pub const RCTL_VLAN_FILTER: u32 = 1 << 18;
pub const RCTL_SIZE_EXTENSION: u32 = 1 << 25;
pub const RCTL_STRIP_CRC: u32 = 1 << 26;
pub const TCTL: usize = 0x0400;
pub const TCTL_ENABLE: u32 = 1 << 1;
pub const PBA: usize = 0x1000;
/// 48 KiB for frames that come in, 16 for those that go out.
pub const PBA_DEFAULT: u32 = 0x0010_0030;
pub const RDBAL: usize = 0x2800;
pub const RDBAH: usize = 0x2804;
pub const RDLEN: usize = 0x2808;
pub const RDH: usize = 0x2810;
pub const RDT: usize = 0x2818;
pub const TDBAL: usize = 0x3800;
pub const TDBAH: usize = 0x3804;
pub const TDLEN: usize = 0x3808;
pub const TDH: usize = 0x3810;
pub const TDT: usize = 0x3818;
pub const STATISTICS: std::ops::Range<usize> = 0x4000..0x4128;
/// Good frames and their bytes, each a pair for the latter; then all of them.
pub const RECEIVED: [usize; 4] = [0x4074, 0x4088, 0x40d0, 0x40c0];
pub const SENT: [usize; 4] = [0x4080, 0x4090, 0x40d4, 0x40c8];
pub const RXCSUM: usize = 0x5000;
pub const RXCSUM_IP: u32 = 1 << 8;
pub const RXCSUM_TRANSPORT: u32 = 1 << 9;
pub const MTA: usize = 0x5200;
pub const RA: usize = 0x5400;
pub const RA_COUNT: usize = 16;
pub const RAH_VALID: u32 = 1 << 31;
pub const VFTA: usize = 0x5600;
/// Past the last register.
pub const END: usize = 0x5c00;

/// Causes of interrupts.
pub const CAUSE_SENT: u32 = 1 << 0;
pub const CAUSE_QUEUE_EMPTY: u32 = 1 << 1;
pub const CAUSE_LINK: u32 = 1 << 2;
pub const CAUSE_FEW_DESCRIPTORS: u32 = 1 << 4;
pub const CAUSE_RECEIVED: u32 = 1 << 7;
pub const CAUSE_MDIO: u32 = 1 << 9;
pub const CAUSES: u32 = 0x1_f7df;

/// Which bits of a register may be set in a saved state.
pub fn kept(register: usize) -> u32 {
    match register {
        CTRL => !(CTRL_RESET | CTRL_PHY_RESET),
        EECD => EECD_KEPT,
        EERD | MDIC => u32::MAX,
        ICR | IMS => CAUSES,
        _ if STATISTICS.contains(&register) => u32::MAX,
        _ => writable(register),
    }
}

/// Which bits a store sets, for registers that are memory; others keep none.
pub fn writable(register: usize) -> u32 {
    match register {
        // EERD keeps nothing without its start bit.
        CTRL_EXT | VET | ITR | RCTL | TCTL | PBA | RXCSUM => u32::MAX,
        // Flow control, timers, thresholds, LEDs, wake-up: taken and without effect.
        0x0028..=0x0030 | 0x0170..=0x0178 | 0x0410 | 0x0458 | 0x0e00 | 0x2160..=0x2168 => u32::MAX,
        0x2410..=0x2428 | 0x2820..=0x282c | 0x3820..=0x3830 | 0x5800..=0x5838 | 0x5b50 => u32::MAX,
        RDBAL | TDBAL => !0xf,
        RDBAH | TDBAH => u32::MAX,
        RDLEN | TDLEN => 0xf_ff80,
        RDH | RDT | TDH | TDT => 0xffff,
        MTA..0x5480 | VFTA..0x5800 => u32::MAX,
        _ => 0,
    }
}
