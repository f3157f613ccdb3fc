//! Loads of jump targets: they are expected to be in the page they were in before.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::jit::code::{Memory, Way};
use crate::jit::context::{GUESSES, field, guess_addend, guess_number, guess_shift};
use crate::jit::memory::Linear;
use crate::jit::registers::{C, T};
use crate::jit::translate::Translator;

/// Bytes of a target, and the bits of its address that are 0.
const BYTES: i32 = 8;
const ALIGNED: u8 = 3;
/// By how much an address turned right by [`ALIGNED`] is shifted: bits that are not 0 are above those of a page's number.
const SHIFT: u32 = 12 - ALIGNED as u32;

/// A load whose page was not the expected one.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuessMiss {
    way: Way,
    instruction: Instruction,
    /// Where it goes on once the guess is right.
    resume: u64,
}

/// Whether `instruction` loads the register that the one behind it jumps to.
pub(super) fn loads_target(instruction: &Instruction, next: Option<&Instruction>) -> bool {
    let Some(next) = next else { return false };
    let jumps = matches!(next.mnemonic(), Mnemonic::Jmp | Mnemonic::Call) && next.op0_kind() == OpKind::Register;
    let loads = instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Memory;
    let register = instruction.op0_register();
    jumps && loads && register.is_gpr64() && register != Register::RSP && next.op0_register() == register
}

impl Translator<'_> {
    /// Emits the look-up of the eight bytes that the instruction loads, as [`Translator::look_up`].
    pub fn look_up_guessed(&mut self, instruction: &Instruction) -> Option<Memory> {
        let (bank, number) = (self.around.key.bank(), self.around.block as usize % GUESSES);
        let address = self.linear_address(instruction)?;
        let mut from = address.base;
        if address.disp != 0 {
            self.code.lea(T, Memory::at(address.base, address.disp));
            from = T;
        }
        self.code.rotate(T, from, ALIGNED);
        self.code.load(C, guess_shift(bank, number));
        self.code.shift_right(true, T, T, C);
        self.code.load(C, guess_number(bank, number));
        let disp = 1 + i32::from(self.code.found());
        self.code.lea(C, Memory { base: Some(C), index: Some((T, 0)), disp });
        let way = self.code.miss_unless_found();
        let address = if address.base == T { self.linear_address(instruction)? } else { address };
        let resume = self.code.here();
        self.misses.guesses.push(GuessMiss { way, instruction: *instruction, resume });
        self.code.load(C, guess_addend(bank, number));
        Some(address.found())
    }

    /// Looks up what was not where it was expected, and expects it there from now on: the way where the TLB does not have it.
    pub fn guess_miss(&mut self, miss: GuessMiss) -> Option<Way> {
        let here = self.code.here();
        self.code.lead(miss.way, here);
        let address = self.linear_address(&miss.instruction)?;
        let way = self.look_up_bytes(address, false, BYTES);
        self.guess(address);
        self.code.jump(miss.resume);
        self.code.island(false);
        Some(way)
    }

    /// Expects the page of `address`, for which the TLB says C.
    fn guess(&mut self, address: Linear) {
        let (bank, number) = (self.around.key.bank(), self.around.block as usize % GUESSES);
        self.code.store(guess_addend(bank, number), C);
        self.code.lea(C, Memory::at(address.base, address.disp));
        self.code.page_number(C);
        self.code.not_rcx(true);
        self.code.store(guess_number(bank, number), C);
        self.code.store_immediate(guess_shift(bank, number), SHIFT);
        self.code.store_immediate(field!(guessed), 1);
    }
}
