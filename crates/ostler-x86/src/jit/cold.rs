//! What is placed behind a block: misses, calls to Rust, jumps that are not linked yet.

use crate::jit::code::{Memory, Way};
use crate::jit::context::field;
use crate::jit::guess::GuessMiss;
use crate::jit::memory::Linear;
use crate::jit::registers::C;
use crate::jit::translate::{Site, Translator};

/// What of an instruction's code leads to its [`Cold::CallOut`].
#[derive(Debug, Default)]
pub(super) struct Misses {
    pub jumps: Vec<Way>,
    pub stores: Vec<StoreMiss>,
    pub guesses: Vec<GuessMiss>,
}

/// A store that the TLB does not allow, but that may be to a spared line.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreMiss {
    pub way: Way,
    pub address: Linear,
    /// Log2 of the operand's bytes.
    pub size: usize,
    /// Where it goes on after all.
    pub resume: u64,
}

impl Misses {
    pub fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.stores.is_empty() && self.guesses.is_empty()
    }

    pub fn clear(&mut self) {
        self.jumps.clear();
        self.stores.clear();
        self.guesses.clear();
    }
}

/// Code that is placed behind the block.
#[derive(Debug)]
pub(super) enum Cold {
    /// Runs instruction `op` in Rust and goes on at `resume`; in the careful copy of the next one where that is `None`.
    CallOut { from: Misses, op: usize, resume: Option<u64> },
    /// The taken side of a conditional jump.
    Taken { from: u64, op: usize, target: i64 },
    /// A jump that was not linked yet.
    Unlinked { site: usize },
}

impl Translator<'_> {
    /// Emits what leads to careful copies: it leaves, and is replaced by a jump there.
    pub fn escape(&mut self) {
        let mut escapes = std::mem::take(&mut self.escapes);
        escapes.sort_by_key(|(_, op)| *op);
        for ways in escapes.chunk_by(|one, other| one.1 == other.1) {
            let here = self.code.here();
            ways.iter().for_each(|(way, _)| self.code.lead(*way, here));
            self.code.set32(C, self.site_of_op(ways[0].1));
            self.code.call(self.around.stubs.careful);
        }
    }

    pub fn cold_paths(&mut self) {
        let mut done = 0;
        while done < self.cold.len() {
            let cold = std::mem::replace(&mut self.cold[done], Cold::Unlinked { site: usize::MAX });
            done += 1;
            self.cold_path(cold);
            // Each of them ends in a jump.
            self.code.island(false);
        }
    }

    fn cold_path(&mut self, cold: Cold) {
        let here = self.code.here();
        match cold {
            Cold::CallOut { from, op, resume } => {
                let mut jumps = from.jumps;
                jumps.extend(from.stores.into_iter().map(|miss| self.store_miss(miss)));
                jumps.extend(from.guesses.into_iter().filter_map(|miss| self.guess_miss(miss)));
                let here = self.code.here();
                jumps.into_iter().for_each(|way| self.code.lead(way, here));
                let site = self.site_of_op(op);
                self.code.set32(C, site);
                self.code.call(self.around.stubs.call_out);
                match resume {
                    Some(resume) => self.code.jump(resume),
                    None => {
                        let way = self.code.way_later();
                        self.escapes.push((way, op + 1));
                    }
                }
            }
            Cold::Taken { from, op, target } => {
                self.code.fix(from, here);
                self.op = op;
                self.taken(target);
            }
            Cold::Unlinked { site } => self.unlinked(site),
        }
    }

    /// The way where the store has to be noted.
    fn store_miss(&mut self, miss: StoreMiss) -> Way {
        let here = self.code.here();
        self.code.lead(miss.way, here);
        self.code.lea(C, Memory::at(miss.address.base, miss.address.disp));
        self.code.call(self.around.stubs.spared[self.around.key.bank()][miss.size]);
        self.code.jump(miss.resume);
        self.code.way_later()
    }

    fn unlinked(&mut self, index: usize) {
        let here = self.code.here();
        self.sites[index].unlinked = here;
        let Site { end, target, .. } = self.sites[index];
        self.code.fix(end, here);
        self.load_linear((target & 0xfff) as i64);
        self.code.store_immediate(field!(site), self.around.site + index as u32 + 1);
        self.code.jump(self.around.stubs.leave);
        self.sites[index].way_out = self.code.here();
    }
}
