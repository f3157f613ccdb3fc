//! What kernels do at every system call and interrupt: CLI, STI, PUSHF and SWAPGS in ring 0.
//!
//! The flags that are not arithmetic are in [`Cpu`], and so are the bases of segments. Nothing here changes a flag of
//! the host's.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::flags::{Flags, bit};
use crate::cpu::segment::{GS, SegmentRegister};
use crate::event::Events;
use crate::jit::code::Memory;
use crate::jit::context::field;
use crate::jit::registers::{C, T};
use crate::jit::translate::Translator;
use crate::msr::Msrs;

/// Where the flags are that the host does not keep.
const SYSTEM_FLAGS: i32 = (offset_of!(Cpu, flags) + offset_of!(Flags, system)) as i32;
/// Whether an interrupt waits for IF.
const REQUESTED: i32 = (offset_of!(Cpu, events) + offset_of!(Events, requested)) as i32;
const KERNEL_GS_BASE: i32 = (offset_of!(Cpu, msrs) + offset_of!(Msrs, kernel_gs_base)) as i32;
const GS_BASE: i32 = (offset_of!(Cpu, segment_base) + GS * size_of::<u64>()) as i32;
const GS_SEGMENT_BASE: i32 =
    (offset_of!(Cpu, segments) + GS * size_of::<SegmentRegister>() + offset_of!(SegmentRegister, base)) as i32;

impl Translator<'_> {
    pub fn system(&mut self, instruction: &Instruction) -> Option<()> {
        if !self.around.key.ring_0() {
            return None;
        }
        match instruction.mnemonic() {
            Mnemonic::Cli => {
                self.load_without_interrupts();
                self.code.store_to(Memory::at(C, SYSTEM_FLAGS), T);
            }
            Mnemonic::Sti => self.enable_interrupts()?,
            Mnemonic::Pushfq => self.push_flags(),
            Mnemonic::Swapgs => self.swap_gs(),
            _ => return None,
        }
        Some(())
    }

    /// C is the [`Cpu`], T its flags but for IF.
    fn load_without_interrupts(&mut self) {
        self.code.load(C, field!(cpu));
        self.code.load_from(T, Memory::at(C, SYSTEM_FLAGS));
        self.keep_bits(T, field!(all_but_if));
    }

    /// STI where nothing waits for it, and where the next instruction is not one that looks at the signals before it
    /// jumps: no interrupt may come in between.
    fn enable_interrupts(&mut self) -> Option<()> {
        if self.op + 1 >= self.block.ops.len() || self.next_jumps {
            return None;
        }
        self.code.load(C, field!(cpu));
        self.code.load_byte(C, Memory::at(C, REQUESTED));
        self.miss_unless_rcx_zero();
        self.load_without_interrupts();
        self.code.lea(T, Memory::at(T, bit::IF as i32));
        self.code.store_to(Memory::at(C, SYSTEM_FLAGS), T);
        Some(())
    }

    fn push_flags(&mut self) {
        // pushfq; pop r11
        self.code.put(&[0x9c, 0x41, 0x5b]);
        self.keep_bits(T, field!(arithmetic));
        self.code.load(C, field!(cpu));
        self.code.load_from(C, Memory::at(C, SYSTEM_FLAGS));
        self.keep_bits(C, field!(pushed));
        self.code.lea(T, Memory::indexed(T, C));
        self.push_t();
    }

    /// AND with a word of the context's.
    fn keep_bits(&mut self, register: u8, mask: i32) {
        self.code.pick_from(true, register);
        self.code.pick_bits(mask);
        self.code.picked(register);
    }

    fn swap_gs(&mut self) {
        self.code.load(C, field!(cpu));
        self.code.load_from(T, Memory::at(C, KERNEL_GS_BASE));
        self.code.store(field!(scratch), T);
        self.code.load(T, field!(gs_base));
        self.code.store_to(Memory::at(C, KERNEL_GS_BASE), T);
        self.code.load(T, field!(scratch));
        self.code.store(field!(gs_base), T);
        self.code.store_to(Memory::at(C, GS_BASE), T);
        self.code.store_to(Memory::at(C, GS_SEGMENT_BASE), T);
    }
}
