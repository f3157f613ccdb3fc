//! Which host register holds which guest register.
//!
//! RAX, RDX, RBX, RBP, RSI, RDI, R8, R9, R12, R13 hold themselves: instructions that name them
//! implicitly (MUL, CMPXCHG, CDQ) need no moves. RSP is the context; RCX and R11 are ours.

use crate::jit::code::{R10, R11, R14, R15, RCX};
use crate::jit::context::field;

/// The first scratch register: the address of a memory operand, then the index of its page.
pub const T: u8 = R11;
/// The second: what a look-up found, for LOOP or JRCXZ.
pub const C: u8 = RCX;
/// Guest RCX and RSP.
pub const GUEST_RCX: u8 = R14;
pub const GUEST_RSP: u8 = R15;

/// Where a guest register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    Host(u8),
    /// In the context, at this offset.
    Slot(i32),
}

/// Guest registers that live in the context, by slot.
pub const SLOTS: [u8; 3] = [10, 11, 15];

/// Where one of [`SLOTS`] is in the context.
pub fn slot(index: usize) -> i32 {
    field!(registers) + 8 * index as i32
}

/// The home of a guest register by number.
pub fn home(guest: u8) -> Home {
    match guest & 15 {
        1 => Home::Host(GUEST_RCX),
        4 => Home::Host(GUEST_RSP),
        14 => Home::Host(R10),
        10 => Home::Slot(slot(0)),
        11 => Home::Slot(slot(1)),
        15 => Home::Slot(slot(2)),
        same => Home::Host(same),
    }
}

/// Guest register and host register of those that have one.
pub fn held() -> impl Iterator<Item = (u8, u8)> {
    (0..16u8).filter_map(|guest| match home(guest) {
        Home::Host(host) => Some((guest, host)),
        Home::Slot(_) => None,
    })
}
