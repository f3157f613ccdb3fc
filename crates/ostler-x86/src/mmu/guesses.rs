//! Guesses of translated code: the page that an address was in the last time is the one it will be in.
//!
//! Where a processor guesses wrong to where an indirect jump leads, it notices when the target was loaded, so the way there
//! should be short. A look-up in the TLB needs the address before it can load what is added to it; a guess has that in a place
//! of its own, and only its check needs the address. Translated code writes guesses itself, of what it found in the TLB.

use crate::jit::context::{Context, GUESSES, GuessBank};
use crate::mmu::Privilege;

/// Makes all of a number but its top bit vanish: it is 0 or 1, which with [`NO_NUMBER`] is no page's.
const NO_SHIFT: u64 = 63;
const NO_NUMBER: u64 = 0;

/// Fills the places for the first time.
pub fn prepare(context: &mut Context) {
    context.guesses.iter_mut().for_each(forget_bank);
}

/// Takes every guess back.
#[inline]
pub fn forget(context: &mut Context) {
    if std::mem::take(&mut context.guessed) != 0 {
        context.guesses.iter_mut().for_each(forget_bank);
    }
}

/// Takes the guesses of accesses with `privilege` back.
#[inline]
pub fn forget_of(context: &mut Context, privilege: Privilege) {
    if context.guessed != 0 {
        context.guesses.get_mut(privilege as usize).into_iter().for_each(forget_bank);
    }
}

fn forget_bank(bank: &mut GuessBank) {
    bank.shift = [NO_SHIFT; GUESSES];
    bank.number = [NO_NUMBER; GUESSES];
}
