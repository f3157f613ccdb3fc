//! PUSH, POP and LEAVE of 64 bits.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::jit::code::{Memory, RBP};
use crate::jit::context::field;
use crate::jit::encoding::Encoding;
use crate::jit::memory::{Linear, Wanted};
use crate::jit::registers::{GUEST_RSP, Home, T, home};
use crate::jit::translate::Translator;

impl Translator<'_> {
    pub fn stack(&mut self, instruction: &Instruction, encoding: &Encoding<'_>) -> Option<()> {
        if encoding.operand_size {
            return None;
        }
        match (instruction.mnemonic(), instruction.op0_kind()) {
            (Mnemonic::Leave, _) => self.leave(),
            (Mnemonic::Push, OpKind::Register) if instruction.op0_register().is_gpr64() => {
                self.push_register(instruction.op0_register().number() as u8);
            }
            (Mnemonic::Push, OpKind::Immediate8to64 | OpKind::Immediate32to64) => {
                self.push_immediate(instruction.immediate(0) as u32);
            }
            (Mnemonic::Push, OpKind::Memory) if instruction.memory_size().size() == 8 => {
                self.push_memory(instruction)?
            }
            (Mnemonic::Pop, OpKind::Register) if instruction.op0_register().is_gpr64() => {
                self.pop_register(instruction.op0_register().number() as u8);
            }
            _ => return None,
        }
        Some(())
    }

    /// Looks up the eight bytes below the top of the stack; C is in use afterwards, and T free.
    fn look_up_below(&mut self) -> Memory {
        match self.found_near(-8) {
            Some(found) => found,
            None => self.look_up(Linear { base: GUEST_RSP, disp: -8 }, Wanted::write(8)),
        }
    }

    /// Looks up the eight bytes at the top of the stack; C is in use afterwards, and T free.
    pub fn look_up_top(&mut self) -> Memory {
        match self.found_near(0) {
            Some(found) => found,
            None => self.look_up(Linear::at(GUEST_RSP), Wanted::read(8)),
        }
    }

    pub fn move_stack_pointer(&mut self, by: i32) {
        self.code.lea(GUEST_RSP, Memory::at(GUEST_RSP, by));
    }

    fn push_register(&mut self, guest: u8) {
        let below = self.look_up_below();
        match home(guest) {
            Home::Host(host) => self.code.store_to(below, host),
            Home::Slot(offset) => {
                self.code.load(T, offset);
                self.code.store_to(below, T);
            }
        }
        self.move_stack_pointer(-8);
    }

    fn push_immediate(&mut self, value: u32) {
        let below = self.look_up_below();
        self.code.store_immediate_to(below, value);
        self.move_stack_pointer(-8);
    }

    fn push_memory(&mut self, instruction: &Instruction) -> Option<()> {
        let address = self.linear_address(instruction)?;
        let found = self.look_up(address, Wanted::read(8));
        self.code.load_from(T, found);
        self.push_t();
        Some(())
    }

    /// Pushes T.
    pub fn push_t(&mut self) {
        self.code.store(field!(scratch), T);
        let below = self.look_up_below();
        self.code.load(T, field!(scratch));
        self.code.store_to(below, T);
        self.move_stack_pointer(-8);
    }

    /// Pushes the address of the next instruction.
    pub fn push_return_address(&mut self) {
        let below = self.look_up_below();
        self.load_linear(self.offset + i64::from(self.block.ops[self.op].end));
        self.code.store_to(below, T);
        self.move_stack_pointer(-8);
    }

    fn pop_register(&mut self, guest: u8) {
        let top = self.look_up_top();
        match home(guest) {
            Home::Host(GUEST_RSP) => return self.code.load_from(GUEST_RSP, top),
            Home::Host(host) => self.code.load_from(host, top),
            Home::Slot(offset) => {
                self.code.load_from(T, top);
                self.code.store(offset, T);
            }
        }
        self.move_stack_pointer(8);
    }

    fn leave(&mut self) {
        let found = self.look_up(Linear::at(RBP), Wanted::read(8));
        self.code.load_from(T, found);
        self.code.lea(GUEST_RSP, Memory::at(RBP, 8));
        self.code.copy(RBP, T);
    }
}
