//! BT, BTS, BTR and BTC with a bit offset in a register, which reaches beyond the memory operand; and CMPXCHG16B.

use iced_x86::{Instruction, Mnemonic};

use crate::jit::code::Memory;
use crate::jit::context::{BitMasks, field};
use crate::jit::encoding::Encoding;
use crate::jit::memory::{Wanted, address_is_narrow};
use crate::jit::registers::{C, GUEST_RCX, Home, T, home};
use crate::jit::translate::Translator;

/// Offsets of the masks for a width, from RSP.
fn mask(wide: bool, within: usize) -> i32 {
    field!(bits) + (usize::from(wide) * size_of::<BitMasks>() + within) as i32
}

impl Translator<'_> {
    /// Bit offsets that are not negative; those are Rust's.
    pub fn bit_string(&mut self, instruction: &Instruction, encoding: &Encoding<'_>) -> Option<()> {
        use std::mem::offset_of;
        let bytes = instruction.op1_register().size();
        let wide = bytes == 8;
        if !matches!(bytes, 4 | 8) || address_is_narrow(instruction) {
            return None;
        }
        let offset = instruction.op1_register().full_register().number() as u8;
        let changes = instruction.mnemonic() != Mnemonic::Bt;
        let address = self.linear_address(instruction)?;
        self.take_bits(offset, mask(wide, offset_of!(BitMasks, sign)));
        self.miss_unless_rcx_zero();
        self.take_bits(offset, mask(wide, offset_of!(BitMasks, index)));
        let scale = if wide { 3 } else { 2 };
        self.code.lea(T, Memory { base: Some(address), index: Some((C, scale)), disp: 0 });
        self.look_up(T, Wanted { bytes: bytes as u8, write: changes, aligned: 1 });
        let rex = 0x41 | u8::from(wide) << 3;
        if changes {
            self.code.lea(T, Memory::indexed(T, C));
            self.take_bits(offset, mask(wide, offset_of!(BitMasks, within)));
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

    /// C is the bits of a guest register that a mask of the context's picks.
    fn take_bits(&mut self, guest: u8, mask: i32) {
        match home(guest) {
            Home::Host(host) => self.code.pext(C, host, mask),
            Home::Slot(offset) => {
                self.code.load(C, offset);
                self.code.pext(C, C, mask);
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
