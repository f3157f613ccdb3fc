//! BT, BTS, BTR and BTC with a bit offset in a register, which reaches beyond the memory operand; and CMPXCHG16B.

use iced_x86::{Instruction, Mnemonic};

use crate::jit::code::Memory;
use crate::jit::context::field;
use crate::jit::encoding::Encoding;
use crate::jit::memory::{Linear, Wanted, address_is_narrow};
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
        let (scale, bits) = if wide { (3, 6) } else { (2, 5) };
        self.shift_offset(offset, wide, 8 * bytes as u32 - 1);
        self.miss_unless_rcx_zero();
        self.shift_offset(offset, wide, bits);
        self.code.store(field!(scratch), C);
        let Linear { base, disp } = self.linear_address(instruction)?;
        self.code.load(C, field!(scratch));
        self.code.lea(T, Memory { base: Some(base), index: Some((C, scale)), disp });
        let found = self.look_up(Linear::at(T), Wanted { bytes: bytes as u8, write: changes, aligned: 1 });
        let rex = 0x41 | u8::from(wide) << 3;
        if changes {
            self.code.lea(T, found);
            // The instruction goes from the string's beginning to that word itself: back by as many words.
            self.code.load(C, field!(scratch));
            self.code.not_rcx(true);
            self.code.lea(T, Memory { base: Some(T), index: Some((C, scale)), disp: bytes as i32 });
            let register = self.offset_register(offset);
            if encoding.lock {
                self.code.byte(0xf0);
            }
            // bts [r11], register and its like
            self.code.put(&[rex | register >> 3 << 2, 0x0f, encoding.opcode, 0x03 | (register & 7) << 3]);
        } else {
            self.code.with_memory(wide, &[0x8b], T, found);
            let register = self.offset_register(offset);
            // bt r11, register
            self.code.put(&[rex | register >> 3 << 2, 0x0f, 0xa3, 0xc3 | (register & 7) << 3]);
        }
        Some(())
    }

    /// The bit offset in a host register, C where it has none.
    fn offset_register(&mut self, guest: u8) -> u8 {
        match home(guest) {
            Home::Host(host) => host,
            Home::Slot(slot) => {
                self.code.load(C, slot);
                C
            }
        }
    }

    /// C is the bit offset, shifted to the right. Uses T.
    fn shift_offset(&mut self, guest: u8, wide: bool, by: u32) {
        let register = self.offset_register(guest);
        self.code.set32(T, by);
        self.code.shift_right(wide, C, register, T);
    }

    /// CMPXCHG16B, locked whether the guest wants it or not, as everywhere.
    pub fn exchange_pair(&mut self, instruction: &Instruction) -> Option<()> {
        let address = self.linear_address(instruction)?;
        let found = self.look_up(address, Wanted { bytes: 16, write: true, aligned: 16 });
        self.code.lea(T, found);
        self.code.copy(C, GUEST_RCX);
        // lock cmpxchg16b [r11]
        self.code.put(&[0xf0, 0x49, 0x0f, 0xc7, 0x0b]);
        Some(())
    }
}
