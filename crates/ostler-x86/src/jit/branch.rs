//! Jumps, calls and returns.
//!
//! A jump within the page is linked to its target once that is translated. Every other one looks
//! its target up in the table of jumps; what is not there is the interpreter's, which checks the
//! target before anything is pushed or popped. Each loop passes a look at the signals: at a jump
//! backwards, across pages, or through a register.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::jit::cold::Cold;
use crate::jit::context::field;
use crate::jit::encoding::Encoding;
use crate::jit::registers::{Home, T, home};
use crate::jit::stubs::{jump_to_found, look_up_jump};
use crate::jit::translate::Translator;

/// Bytes of code at most to push a return address, and to jump to a target that was found.
const PUSH_BYTES: usize = 90;
const JUMP_BYTES: usize = 60;

fn in_page(target: i64) -> bool {
    (0..0x1000).contains(&target)
}

impl Translator<'_> {
    pub fn branch(&mut self, instruction: &Instruction, encoding: &Encoding<'_>) -> Option<()> {
        if encoding.operand_size {
            return None;
        }
        let near = instruction.op0_kind() == OpKind::NearBranch64;
        match instruction.mnemonic() {
            Mnemonic::Jmp if near => {
                let target = instruction.near_branch64() as i64;
                self.taken(target);
                self.ended = true;
            }
            Mnemonic::Jmp => self.jump_indirect(instruction)?,
            Mnemonic::Call if near => self.call_direct(instruction.near_branch64() as i64),
            Mnemonic::Call => self.call_indirect(instruction)?,
            Mnemonic::Ret => self.ret(instruction),
            _ if near => self.conditional(instruction.near_branch64() as i64, encoding.opcode & 15),
            _ => return None,
        }
        Some(())
    }

    /// The taken side of a direct jump.
    pub fn taken(&mut self, target: i64) {
        if in_page(target) {
            self.jump_in_page(target);
        } else {
            self.load_linear(target);
            self.find_target();
            self.jump_to_target();
        }
        // The instruction jumps in Rust, too, so it never comes back here.
        self.flush_misses();
    }

    fn jump_in_page(&mut self, target: i64) {
        self.add_to_count(self.op + 1);
        if target > self.offset + i64::from(self.block.ops[self.op].end) {
            return self.link(target);
        }
        let raised = self.look_at_signals();
        self.link(target);
        self.leave_for_signals(raised, 0, target);
    }

    /// Looks T up; a miss runs the instruction in Rust.
    fn find_target(&mut self) {
        let miss = look_up_jump(&mut self.code, self.around.key.bank());
        self.misses.jumps.push(miss);
    }

    fn conditional(&mut self, target: i64, condition: u8) {
        let end = self.offset + i64::from(self.block.ops[self.op].end);
        if in_page(target) && target <= end {
            self.loop_back(target, condition);
        } else {
            let from = self.code.branch_later(condition);
            self.cold.push(Cold::Taken { from, op: self.op, target });
        }
    }

    /// A conditional jump back within the page, which will mostly be taken: the host's leads to the start of the loop
    /// itself. So what comes with it is done before, and the count taken back where it is not taken. A signal is seen
    /// before the jump.
    fn loop_back(&mut self, target: i64, condition: u8) {
        let op = self.block.ops[self.op];
        let raised = self.look_at_signals();
        self.add_to_count(self.op + 1);
        let end = self.code.branch_later(condition);
        match self.again {
            // No link is needed: whoever drops the block raises a signal.
            Some(again) if target == self.offset => self.code.fix(end, again),
            _ => self.add_site(end, target),
        }
        self.take_from_count(self.op + 1);
        let over = self.code.jump_short_later();
        self.leave_for_signals(raised, self.op, self.offset + i64::from(op.end) - i64::from(op.len));
        self.code.fix_short(over);
    }

    /// Jumps to T, which the table has.
    fn jump_to_target(&mut self) {
        self.add_to_count(self.op + 1);
        let raised = self.look_at_signals();
        jump_to_found(&mut self.code, self.around.key.bank());
        self.code.fix_short(raised);
        self.code.jump(self.around.stubs.leave);
    }

    /// The target in a register or in memory, in T.
    fn load_target(&mut self, instruction: &Instruction) -> Option<()> {
        match instruction.op0_kind() {
            OpKind::Memory if instruction.memory_size().size() == 8 => {
                let found = self.look_up_guessed(instruction)?;
                self.code.load_from(T, found);
            }
            OpKind::Register if instruction.op0_register().is_gpr64() => {
                match home(instruction.op0_register().number() as u8) {
                    Home::Host(host) => self.code.copy(T, host),
                    Home::Slot(offset) => self.code.load(T, offset),
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn jump_indirect(&mut self, instruction: &Instruction) -> Option<()> {
        self.load_target(instruction)?;
        self.find_target();
        self.jump_to_target();
        self.ended = true;
        Some(())
    }

    fn call_direct(&mut self, target: i64) {
        if in_page(target) {
            self.push_return_address();
            self.jump_in_page(target);
        } else {
            self.load_linear(target);
            self.find_target();
            self.push_return_address();
            self.code.island_before(JUMP_BYTES);
            self.load_linear(target);
            self.jump_to_target();
        }
        self.ended = true;
    }

    fn call_indirect(&mut self, instruction: &Instruction) -> Option<()> {
        self.load_target(instruction)?;
        self.code.store(field!(scratch), T);
        self.find_target();
        self.code.island_before(PUSH_BYTES);
        self.push_return_address();
        self.code.load(T, field!(scratch));
        self.jump_to_target();
        self.ended = true;
        Some(())
    }

    fn ret(&mut self, instruction: &Instruction) {
        let dropped = if instruction.op_count() == 1 { i32::from(instruction.immediate16()) } else { 0 };
        let top = self.look_up_top();
        self.code.load_from(T, top);
        self.find_target();
        self.move_stack_pointer(8 + dropped);
        self.jump_to_target();
        self.ended = true;
    }
}
