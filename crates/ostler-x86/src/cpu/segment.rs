//! Segment registers: the visible selector and the hidden descriptor.

use ostler_engine::regs::Segment;

/// Index of a segment register; the encoding's order.
pub const ES: usize = 0;
pub const CS: usize = 1;
pub const SS: usize = 2;
pub const DS: usize = 3;
pub const FS: usize = 4;
pub const GS: usize = 5;
pub const TR: usize = 6;
pub const LDTR: usize = 7;

/// A segment register as the CPU keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRegister {
    pub selector: u16,
    pub base: u64,
    /// In bytes, granularity applied.
    pub limit: u32,
    pub rights: Rights,
    /// Null or otherwise not to be used: any access faults outside 64-bit mode.
    pub unusable: bool,
}

/// The access rights of a descriptor: its bits 40..56 with the limit bits left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights(pub u16);

impl Rights {
    pub const PRESENT: u16 = 1 << 7;
    pub const NOT_SYSTEM: u16 = 1 << 4;
    pub const AVL: u16 = 1 << 12;
    pub const LONG: u16 = 1 << 13;
    pub const DB: u16 = 1 << 14;
    pub const GRANULAR: u16 = 1 << 15;

    /// The 4-bit type field.
    pub fn kind(self) -> u8 {
        (self.0 & 15) as u8
    }
    pub fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    pub fn present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }
    /// Code or data rather than system.
    pub fn is_user(self) -> bool {
        self.0 & Self::NOT_SYSTEM != 0
    }
    pub fn is_code(self) -> bool {
        self.is_user() && self.0 & 8 != 0
    }
    pub fn is_data(self) -> bool {
        self.is_user() && self.0 & 8 == 0
    }
    pub fn conforming(self) -> bool {
        self.is_code() && self.0 & 4 != 0
    }
    pub fn expand_down(self) -> bool {
        self.is_data() && self.0 & 4 != 0
    }
    pub fn readable(self) -> bool {
        self.is_data() || self.is_code() && self.0 & 2 != 0
    }
    pub fn writable(self) -> bool {
        self.is_data() && self.0 & 2 != 0
    }
    /// The D/B bit.
    pub fn big(self) -> bool {
        self.0 & Self::DB != 0
    }
    /// The L bit.
    pub fn long(self) -> bool {
        self.0 & Self::LONG != 0
    }
}

/// Read/write data, accessed, present.
pub const DATA_RIGHTS: Rights = Rights(0x93);
/// Execute/read code, accessed, present.
pub const CODE_RIGHTS: Rights = Rights(0x9b);

impl SegmentRegister {
    /// As real mode, virtual-8086 mode and the reset leave it.
    pub fn real(selector: u16) -> Self {
        Self { selector, base: u64::from(selector) << 4, limit: 0xffff, rights: DATA_RIGHTS, unusable: false }
    }

    /// A null selector was loaded.
    pub fn null(selector: u16) -> Self {
        Self { selector, unusable: true, ..Self::default() }
    }

    pub fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }

    /// Whether `last - first` bytes at `offset` are inside the limit.
    pub fn within_limit(&self, first: u64, last: u64) -> bool {
        let limit = u64::from(self.limit);
        if last < first {
            return false;
        }
        if self.rights.expand_down() {
            let top = if self.rights.big() { u64::from(u32::MAX) } else { 0xffff };
            first > limit && last <= top
        } else {
            last <= limit
        }
    }
}

impl From<&SegmentRegister> for Segment {
    fn from(register: &SegmentRegister) -> Self {
        let rights = register.rights;
        Self {
            base: register.base,
            limit: register.limit,
            selector: register.selector,
            kind: rights.kind(),
            present: rights.present(),
            dpl: rights.dpl(),
            db: rights.big(),
            s: rights.is_user(),
            l: rights.long(),
            g: rights.0 & Rights::GRANULAR != 0,
            avl: rights.0 & Rights::AVL != 0,
            unusable: register.unusable,
        }
    }
}

impl From<&Segment> for SegmentRegister {
    fn from(segment: &Segment) -> Self {
        let bit = |on: bool, mask: u16| if on { mask } else { 0 };
        let rights = u16::from(segment.kind & 15)
            | bit(segment.s, Rights::NOT_SYSTEM)
            | u16::from(segment.dpl & 3) << 5
            | bit(segment.present, Rights::PRESENT)
            | bit(segment.avl, Rights::AVL)
            | bit(segment.l, Rights::LONG)
            | bit(segment.db, Rights::DB)
            | bit(segment.g, Rights::GRANULAR);
        Self {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            rights: Rights(rights),
            unusable: segment.unusable,
        }
    }
}
