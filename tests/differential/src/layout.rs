//! Where a sequence's code and data live: at the same linear addresses on both CPUs.
//!
//! All of it is below 4 GiB, so that 32-bit addressing and compatibility mode reach it, and far from
//! anything else the host process maps there (a position-independent executable maps nothing).

pub const PAGE: u64 = 0x1000;

/// A range of linear addresses that exists on both CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub name: &'static str,
    pub base: u64,
    pub bytes: u64,
    pub writable: bool,
    pub executable: bool,
    /// Where the window's bytes are in a [`crate::state::Memory`].
    pub offset: usize,
}

/// Two pages, writable for the self-modifying cases; what lies before and after is not mapped.
pub const CODE: Window =
    Window { name: "code", base: 0x1000_0000, bytes: 2 * PAGE, writable: true, executable: true, offset: 0 };
/// One page that stores fault on, directly before [`DATA`].
pub const CONSTANT: Window =
    Window { name: "constant", base: 0x100f_f000, bytes: PAGE, writable: false, executable: false, offset: 0x2000 };
/// Two pages; the page after them is not mapped.
pub const DATA: Window =
    Window { name: "data", base: 0x1010_0000, bytes: 2 * PAGE, writable: true, executable: false, offset: 0x3000 };
/// One page between pages that are not mapped.
pub const STACK: Window =
    Window { name: "stack", base: 0x1030_0000, bytes: PAGE, writable: true, executable: false, offset: 0x5000 };

pub const WINDOWS: [Window; 4] = [CODE, CONSTANT, DATA, STACK];
/// The bytes of all windows together.
pub const MEMORY_BYTES: usize = 0x6000;

/// Where sequences that leave by a jump or RET are sent: a HLT like every byte around the code.
pub const LANDING: u64 = CODE.base + 0x800;
/// Where instructions that store x87 pointers and other incomparable fields put them
/// (832 bytes in [`DATA`], 64-byte aligned); other operands are chosen to stay away.
pub const SAVE_SLOT: u64 = DATA.base + 0x1900;
pub const SAVE_SLOT_BYTES: u64 = 0x400;

impl Window {
    pub const fn end(&self) -> u64 {
        self.base + self.bytes
    }

    pub const fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.bytes as usize
    }
}

/// The byte of a [`crate::state::Memory`] that `address` names, if it lies in a window.
pub fn memory_offset(address: u64) -> Option<usize> {
    WINDOWS
        .iter()
        .find(|window| (window.base..window.end()).contains(&address))
        .map(|window| window.offset + (address - window.base) as usize)
}
