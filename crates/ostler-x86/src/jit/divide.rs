//! DIV and IDIV, which must not fault on the host.
//!
//! The usual case is divided here: a high half that is the zero or sign extension of the low one,
//! and a divisor that cannot overflow. Everything else, and every fault, is the interpreter's.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::jit::code::{Code, Memory, RAX, RDX};
use crate::jit::encoding::Encoding;
use crate::jit::memory::Wanted;
use crate::jit::registers::{C, Home, T, home};
use crate::jit::transcode::Fields;
use crate::jit::translate::Translator;

/// mov to, from of 32 or 64 bits; 32 clear the upper half.
fn copy(code: &mut Code, wide: bool, to: u8, from: u8) {
    let rex = u8::from(wide) << 3 | from >> 3 << 2 | to >> 3;
    if rex != 0 {
        code.byte(0x40 | rex);
    }
    code.put(&[0x89, 0xc0 | (from & 7) << 3 | to & 7]);
}

impl Translator<'_> {
    pub fn divide(&mut self, instruction: &Instruction, encoding: &Encoding<'_>) -> Option<()> {
        let signed = instruction.mnemonic() == Mnemonic::Idiv;
        let memory = instruction.op0_kind() == OpKind::Memory;
        let bytes = if memory { instruction.memory_size().size() } else { instruction.op0_register().size() };
        if !matches!(bytes, 4 | 8) {
            return None;
        }
        let wide = bytes == 8;
        if signed {
            self.check_sign_extended(wide)
        } else {
            self.check_zero_extended(wide)
        }
        let divisor = if memory {
            let address = self.linear_address(instruction)?;
            let found = self.look_up(address, Wanted::read(bytes as u8));
            self.code.with_memory(wide, &[0x8b], T, found);
            T
        } else {
            match home(instruction.op0_register().full_register().number() as u8) {
                Home::Host(host) => host,
                Home::Slot(offset) => {
                    self.code.load(T, offset);
                    T
                }
            }
        };
        copy(&mut self.code, wide, C, divisor);
        self.miss_if_rcx_zero();
        if signed {
            copy(&mut self.code, wide, C, divisor);
            self.code.not_rcx(wide);
            self.miss_if_rcx_zero();
        }
        self.encode(encoding, &Fields { rm: divisor, opcode: encoding.opcode, ..Fields::default() })
    }

    fn miss(&mut self) {
        let miss = self.code.way_later();
        self.misses.jumps.push(miss);
    }

    fn miss_if_rcx_zero(&mut self) {
        // jrcxz +2; jmp +5; jmp miss
        self.code.put(&[0xe3, 2, 0xeb, 5]);
        self.miss();
    }

    fn check_zero_extended(&mut self, wide: bool) {
        copy(&mut self.code, wide, C, RDX);
        self.code.skip_jump_if_rcx_zero();
        self.miss();
    }

    /// RDX has to be the sign of RAX all over.
    fn check_sign_extended(&mut self, wide: bool) {
        if wide {
            // mov r11d, 63; sarx rcx, rax, r11
            self.code.set32(T, 63);
            self.code.put(&[0xc4, 0xe2, 0xa2, 0xf7, 0xc8]);
        } else {
            // movsxd rcx, eax; rorx rcx, rcx, 32
            self.code.put(&[0x48, 0x63, 0xc8, 0xc4, 0xe3, 0xfb, 0xf0, 0xc9, 32]);
        }
        self.code.not_rcx(wide);
        // not x = -x - 1: zero when equal.
        let difference = Memory { base: Some(C), index: Some((RDX, 0)), disp: 1 };
        self.code.with_memory(wide, &[0x8d], C, difference);
        self.code.skip_jump_if_rcx_zero();
        self.miss();
        debug_assert_eq!(RAX, 0);
    }
}
