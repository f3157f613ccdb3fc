//! What kernels do at every system call and interrupt: CLI, STI, PUSHF, SWAPGS, STAC and CLAC in ring 0.
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
use crate::jit::{Jit, Key};
use crate::mmu::{Mmu, Privilege};
use crate::msr::Msrs;

/// Where the flags are that the host does not keep.
const SYSTEM_FLAGS: i32 = (offset_of!(Cpu, flags) + offset_of!(Flags, system)) as i32;
/// What PUSHF pushes in the host's user mode beside arithmetic flags, in the lower 16 bits.
const HOST_FLAGS: i32 = (bit::FIXED | bit::IF) as i32;
/// Whether an interrupt waits for IF.
const REQUESTED: i32 = (offset_of!(Cpu, events) + offset_of!(Events, requested)) as i32;
const KERNEL_GS_BASE: i32 = (offset_of!(Cpu, msrs) + offset_of!(Msrs, kernel_gs_base)) as i32;
const GS_BASE: i32 = (offset_of!(Cpu, segment_base) + GS * size_of::<u64>()) as i32;
const GS_SEGMENT_BASE: i32 =
    (offset_of!(Cpu, segments) + GS * size_of::<SegmentRegister>() + offset_of!(SegmentRegister, base)) as i32;
/// Rights of data accesses, and what the running code is for.
const PRIVILEGE: i32 = (offset_of!(Cpu, mmu) + offset_of!(Mmu, privilege)) as i32;
const KEY: i32 = (offset_of!(Cpu, jit) + offset_of!(Jit, key)) as i32;
const BANK_KEYS: i32 = (offset_of!(Cpu, jit) + offset_of!(Jit, bank_keys)) as i32;
const _: () = assert!(size_of::<Privilege>() == 8 && size_of::<Key>() == 1);

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
            Mnemonic::Stac => self.allow_user_pages(true),
            Mnemonic::Clac => self.allow_user_pages(false),
            _ => return None,
        }
        Some(())
    }

    /// C is the [`Cpu`], T its flags but for IF.
    fn load_without_interrupts(&mut self) {
        self.code.load(C, field!(cpu));
        self.code.load_from(T, Memory::at(C, SYSTEM_FLAGS));
        self.code.clear_bit(T, bit::IF.trailing_zeros() as u8);
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
        self.code.low_16(T, T);
        self.code.load(C, field!(cpu));
        self.code.load_from(C, Memory::at(C, SYSTEM_FLAGS));
        self.code.clear_bit(C, bit::RF.trailing_zeros() as u8);
        self.code.lea(T, Memory { base: Some(T), index: Some((C, 0)), disp: -HOST_FLAGS });
        self.push_t();
    }

    /// STAC and CLAC, which end their block: what follows has another bank of the TLB, so it is other code.
    fn allow_user_pages(&mut self, allowed: bool) {
        let (key, next) = (self.around.key, self.around.key.with_user_pages(allowed));
        if next != key {
            // The bank of the table of jumps has to be one of code for that key.
            self.code.load(C, field!(cpu));
            self.code.load_byte(C, Memory::at(C, BANK_KEYS + next.bank() as i32));
            self.code.lea(C, Memory::at(C, -i32::from(next.byte())));
            self.miss_unless_rcx_zero();
        }
        self.code.load(C, field!(cpu));
        self.code.load_from(T, Memory::at(C, SYSTEM_FLAGS));
        self.code.clear_bit(T, bit::AC.trailing_zeros() as u8);
        if allowed {
            self.code.lea(T, Memory::at(T, bit::AC as i32));
        }
        self.code.store_to(Memory::at(C, SYSTEM_FLAGS), T);
        if next != key {
            self.code.store_immediate_to(Memory::at(C, PRIVILEGE), next.bank() as u32);
            self.code.store_byte_to(Memory::at(C, KEY), next.byte());
            self.add_to_count(self.op + 1);
            self.load_linear(self.offset + i64::from(self.block.ops[self.op].end));
            self.code.jump(self.around.stubs.jump[next.bank()]);
        }
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
