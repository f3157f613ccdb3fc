//! BT, BTS, BTR and BTC with a bit offset in a register, which reaches beyond the memory operand; and CMPXCHG16B.

use iced_x86::{Instruction, Mnemonic};

use crate::jit::code::Memory;
use crate::jit::context::field;
use crate::jit::encoding::Encoding;
use crate::jit::memory::{Wanted, address_is_narrow};
use crate::jit::registers::{C, GUEST_RCX, Home, T, home};
use crate::jit::translate::Translator;

impl Translator<'_> {
    /// Bit offsets that are not negative; those are Rust's.
    pub fn bit_string(&mut self, instruction: &Instruction, encoding: &Encoding<'_>) -> Option<()> {
        let bytes = instruction.op1_register().size();
        let wide = bytes == 8;
        if !matches!(bytes, 4 | 8) || address_is_narrow(instruction) {
            return None;
        }
        let offset = instruction.op1_register().full_register().number() as u8;
        let changes = instruction.mnemonic() != Mnemonic::Bt;
        let address = self.linear_address(instruction)?;
        let (sign, word, scale) = if wide { (63, 6, 3) } else { (31, 5, 2) };
        self.pick_from_guest(offset, wide);
        self.code.pick_above(sign);
        self.code.picked(C);
        self.miss_unless_rcx_zero();
        self.pick_from_guest(offset, wide);
        self.code.pick_above(word);
        self.code.picked(C);
        self.code.lea(T, Memory { base: Some(address), index: Some((C, scale)), disp: 0 });
        self.look_up(T, Wanted { bytes: bytes as u8, write: changes, aligned: 1 });
        let rex = 0x41 | u8::from(wide) << 3;
        if changes {
            self.code.lea(T, Memory::indexed(T, C));
            self.pick_from_guest(offset, wide);
            self.code.pick_bits(field!(within_word) + if wide { 8 } else { 0 });
            self.code.picked(C);
            if encoding.lock {
                self.code.byte(0xf0);
            }
            // bts [r11], rcx and its like
            self.code.put(&[rex, 0x0f, encoding.opcode, 0x0b]);
        } else {
            self.code.with_memory(wide, &[0x8b], T, Memory::indexed(C, T));
            let register = match home(offset) {
                Home::Host(host) => host,
                Home::Slot(slot) => {
                    self.code.load(C, slot);
                    C
                }
            };
            // bt r11, register
            self.code.put(&[rex | register >> 3 << 2, 0x0f, 0xa3, 0xc3 | (register & 7) << 3]);
        }
        Some(())
    }

    /// Changes C.
    fn pick_from_guest(&mut self, guest: u8, wide: bool) {
        match home(guest) {
            Home::Host(host) => self.code.pick_from(wide, host),
            Home::Slot(offset) => {
                self.code.load(C, offset);
                self.code.pick_from(wide, C);
            }
        }
    }

    /// CMPXCHG16B, locked whether the guest wants it or not, as everywhere.
    pub fn exchange_pair(&mut self, instruction: &Instruction) -> Option<()> {
        let address = self.linear_address(instruction)?;
        self.look_up(address, Wanted { bytes: 16, write: true, aligned: 16 });
        self.code.lea(T, Memory::indexed(C, address));
        self.code.copy(C, GUEST_RCX);
        // lock cmpxchg16b [r11]
        self.code.put(&[0xf0, 0x49, 0x0f, 0xc7, 0x0b]);
        Some(())
    }
}
