//! Which jumps lead where: links between blocks of a page, and the table of jumps.

use std::cell::{Cell, RefCell};

use crate::decode::block::{Block, CodeCache};
use crate::host::zeros::give_back;
use crate::jit::context::{Context, JUMP_ENTRIES};
use crate::jit::stubs::ARRIVAL_BYTES;
use crate::jit::{Jit, Key};

/// What a block knows of its translation.
#[derive(Debug, Default)]
pub struct Translated {
    /// Where its code is; 0 for none.
    entry: Cell<u64>,
    key: Cell<Key>,
    /// Executions by the interpreter.
    runs: Cell<u32>,
    /// What `runs` was when [`Translated::is_used`] was last asked.
    seen_runs: Cell<u32>,
    /// The sites linked to it.
    incoming: RefCell<Vec<u32>>,
}

impl Translated {
    /// The code, if it is for `key`.
    #[inline(always)]
    pub fn entry(&self, key: Key) -> Option<u64> {
        (self.entry.get() != 0 && self.key.get() == key).then(|| self.entry.get())
    }

    pub fn set(&self, entry: u64, key: Key) {
        self.entry.set(entry);
        self.key.set(key);
    }

    /// Whether it has code, or was counted since this was last asked.
    pub fn is_used(&self) -> bool {
        let runs = self.runs.get();
        self.entry.get() != 0 || self.seen_runs.replace(runs) != runs
    }

    pub fn is_linked(&self) -> bool {
        !self.incoming.borrow().is_empty()
    }

    /// Counts an execution; true when it is time to translate.
    #[inline(always)]
    pub fn is_due(&self, threshold: u32) -> bool {
        let runs = self.runs.get() + 1;
        self.runs.set(runs);
        if runs < threshold {
            return false;
        }
        // Code that alternates between keys is translated for another at growing intervals.
        self.runs.set(0);
        true
    }
}

/// Entries of the table of jumps noted before all are forgotten.
const NOTED: usize = 1 << 16;

fn index(linear: u64) -> usize {
    linear as usize % JUMP_ENTRIES
}

/// What `target` holds where nothing is known: an address of another index, negated.
fn nothing(index: usize) -> u64 {
    u64::from(index == 0)
}

/// The entries of the table of jumps that may be valid: bank and index.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// Those good in every address space.
    global: Vec<(u8, u16)>,
    /// Those good in the current one only.
    local: Vec<(u8, u16)>,
}

impl Jit {
    /// Makes jumps to `linear` lead to `entry`; `global`: in every address space.
    pub(super) fn remember_jump(&mut self, context: &mut Context, bank: usize, linear: u64, entry: u64, global: bool) {
        let (table, index) = (&mut context.jumps[bank], index(linear));
        let entry = entry - ARRIVAL_BYTES as u64;
        if table.target[index] == linear.wrapping_neg() && table.entry[index] == entry {
            return;
        }
        if self.noted.global.len() + self.noted.local.len() >= NOTED {
            self.forget_jumps(context, true);
        }
        let table = &mut context.jumps[bank];
        (table.target[index], table.entry[index]) = (linear.wrapping_neg(), entry);
        let noted = if global { &mut self.noted.global } else { &mut self.noted.local };
        noted.push((bank as u8, index as u16));
    }

    /// Empties the table of jumps, but for those good in every address space unless `all`.
    pub(super) fn forget_jumps(&mut self, context: &mut Context, all: bool) {
        let forget = |(bank, index): (u8, u16)| {
            context.jumps[usize::from(bank)].target[usize::from(index)] = nothing(usize::from(index));
        };
        let global = if all { 0 } else { self.noted.global.len() };
        self.noted.local.drain(..).chain(self.noted.global.drain(global..)).for_each(forget);
    }

    /// Empties the table of jumps, and gives its memory back to the host.
    pub fn give_back_jumps(&mut self, context: &mut Context) {
        self.forget_jumps(context, true);
        for bank in &mut context.jumps {
            give_back(&mut bank.target);
            give_back(&mut bank.entry);
        }
        Self::clear_jumps(context);
    }

    /// Makes the bank of `key` one of code that was translated for `key`: it is looked up by address alone.
    #[inline]
    pub(super) fn adopt_key(&mut self, context: &mut Context, key: Key) {
        let bank = key.bank();
        if self.bank_keys[bank] == key {
            return;
        }
        self.bank_keys[bank] = key;
        for noted in [&mut self.noted.global, &mut self.noted.local] {
            noted.retain(|(of, index)| {
                let stays = usize::from(*of) != bank;
                if !stays {
                    context.jumps[bank].target[usize::from(*index)] = nothing(usize::from(*index));
                }
                stays
            });
        }
    }

    /// Fills the table of jumps for the first time: elsewhere, nothing is zero.
    pub(super) fn clear_jumps(context: &mut Context) {
        for bank in &mut context.jumps {
            bank.target[0] = nothing(0);
        }
    }

    /// Links the jump `site` to `block`, if that is where it leads. Both are for `key`.
    pub(super) fn link(&mut self, site: u32, block: &Block, entry: u64, key: Key) {
        let (Some(arena), Some(known)) = (&mut self.arena, self.sites.get(site as usize)) else { return };
        if known.target != block.gpa {
            return;
        }
        if block.second_page.is_some() {
            // What crosses a page depends on where the next page is: this one goes by the table from now on.
            arena.patch(known.way_out, self.stubs.jump[key.bank()]);
            return;
        }
        arena.patch(known.end, entry);
        self.statistics.links += 1;
        block.translated.incoming.borrow_mut().push(site);
    }

    /// Makes every jump to `block` find its way anew.
    pub fn unlink(&mut self, block: &Block) {
        let Some(arena) = &mut self.arena else { return };
        for site in block.translated.incoming.borrow_mut().drain(..) {
            if let Some(site) = self.sites.get(site as usize) {
                arena.patch(site.end, site.unlinked);
            }
        }
    }

    /// Drops all translated code; none of it may be running.
    pub(super) fn drop_all(&mut self, context: &mut Context, code: &CodeCache) {
        self.forget_jumps(context, true);
        for block in code.blocks() {
            block.translated.set(0, Key::default());
            block.translated.incoming.borrow_mut().clear();
        }
        self.blocks.clear();
        self.sites.clear();
        self.careful.clear();
        if let Some(arena) = &mut self.arena {
            arena.truncate(self.stub_bytes);
        }
        self.statistics.flushes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::Translate;
    use crate::jit::context::ContextBox;

    const ENTRY: u64 = 0x1000;

    fn leads(context: &Context, linear: u64) -> bool {
        context.jumps[0].target[index(linear)].wrapping_add(linear) == 0
    }

    #[test]
    fn jump_good_in_every_space_is_remembered_until_all_are_forgotten() {
        let (mut jit, mut context) = (Jit::new(Translate::Never), ContextBox::default());
        Jit::clear_jumps(&mut context);
        let (global, local) = (0xffff_ffff_8100_0000, 0x40_1234);
        assert!(!leads(&context, 0) && !leads(&context, global) && !leads(&context, local));
        jit.remember_jump(&mut context, 0, global, ENTRY, true);
        jit.remember_jump(&mut context, 0, local, ENTRY, false);
        assert!(leads(&context, global) && leads(&context, local));
        jit.forget_jumps(&mut context, false);
        assert!(leads(&context, global) && !leads(&context, local));
        jit.forget_jumps(&mut context, true);
        assert!(!leads(&context, global) && !leads(&context, 0));
        jit.remember_jump(&mut context, 0, global, ENTRY, true);
        jit.give_back_jumps(&mut context);
        assert!(!leads(&context, global) && !leads(&context, 0));
    }

    #[test]
    fn jumps_beyond_what_is_noted_are_forgotten_with_all_others() {
        let (mut jit, mut context) = (Jit::new(Translate::Never), ContextBox::default());
        Jit::clear_jumps(&mut context);
        for linear in 1..=NOTED as u64 + 1 {
            jit.remember_jump(&mut context, 0, linear, ENTRY, linear % 2 == 0);
        }
        assert!(!leads(&context, NOTED as u64) && leads(&context, NOTED as u64 + 1));
    }
}
