//! Rust's side of translated code: the way in, and what it calls.

use ostler_engine::profile::Activity;

use crate::cpu::Cpu;
use crate::cpu::flags::bit;
use crate::cpu::regs::BLOCK_RIP;
use crate::cpu::segment::{FS, GS};
use crate::cpu::stop::Stop;
use crate::decode::block::{Block, CodeCache};
use crate::decode::op::Op;
use crate::jit::{Jit, Key, exit};
use crate::mmu::physical::PAGE_MASK;

/// The index of an instruction is below the number of its block.
const OP_BITS: u32 = 6;
const _: () = assert!(crate::decode::block::MAX_OPS == 1 << OP_BITS);

/// The arithmetic flags as translated code keeps them: LAHF's byte above, OF below.
fn packed_flags(arithmetic: u64) -> u64 {
    (arithmetic & 0xff & !bit::OF) << 8 | arithmetic >> 11 & 1
}

fn unpacked_flags(packed: u64) -> u64 {
    packed >> 8 & 0xff | (packed & 1) << 11
}

impl Cpu {
    /// Code for `block`, translated now if it has become hot.
    #[inline(always)]
    pub(crate) fn translation(&mut self, block: *const Block, key: Key) -> Option<u64> {
        // SAFETY: blocks are freed only by `bury`, which is not called here.
        let block = unsafe { &*block };
        if let Some(entry) = block.translated.entry(key) {
            return Some(entry);
        }
        if !block.translated.is_due(self.jit.threshold) {
            return None;
        }
        self.counted_as(Activity::Translation, |cpu| cpu.translate_block(block, key))
    }

    #[cold]
    #[inline(never)]
    fn translate_block(&mut self, block: &Block, key: Key) -> Option<u64> {
        if block.translated.is_linked() {
            // It was translated for another state of the CPU, and jumps lead to that.
            self.jit.unlink(block);
        }
        if !self.jit.translate(block, key) {
            self.jit.drop_all(&mut self.mmu.tlb.context, &self.code);
            self.jit.translate(block, key);
        }
        block.translated.entry(key)
    }

    /// Runs translated code from `entry`, the code of `block` at RIP, until it leaves.
    pub(crate) fn run_translated(&mut self, block: *const Block, entry: u64, key: Key) -> Stop {
        self.prepare_jumps();
        let linear = self.rip;
        let cpu: *mut Cpu = self;
        let context = &mut *self.mmu.tlb.context;
        self.jit.adopt_key(context, key);
        let global = self.code.is_in_every_space(linear);
        self.jit.remember_jump(context, key.bank(), linear, entry, global);
        if context.site != 0 {
            if self.jit.key == key {
                // SAFETY: as in `translation`.
                self.jit.link(context.site as u32 - 1, unsafe { &*block }, entry, key);
            }
            context.site = 0;
        }
        context.page_base = linear & PAGE_MASK;
        context.flags = packed_flags(self.flags.arithmetic());
        (context.fs_base, context.gs_base) = (self.segment_base[FS], self.segment_base[GS]);
        self.signals.arm();
        context.signals = self.signals.quiet_word();
        context.cpu = cpu;
        context.file = self.regs.as_mut_ptr();
        context.vector = self.vector.ymm.as_mut_ptr().cast();
        context.mxcsr = &raw mut self.vector.mxcsr;
        context.call_out = call_out as *const () as u64;
        context.count = 0;
        let stack_pointer = self.mmu.tlb.context.stack_pointer();
        self.jit.key = key;
        self.jit.statistics.entries += 1;
        // SAFETY: the stub was emitted with this signature.
        let enter: extern "sysv64" fn(*mut u8, u64) = unsafe { std::mem::transmute(self.jit.stubs.enter) };
        let before = self.begins(Activity::Translated);
        enter(stack_pointer, entry);
        let mut goes_on = true;
        while goes_on && self.mmu.tlb.context.exit == u64::from(exit::CAREFUL) {
            let resume = self.careful_copy();
            goes_on = resume.is_some();
            resume.into_iter().for_each(|resume| enter(stack_pointer, resume));
        }
        self.goes_back_to(before);
        if !goes_on {
            return Stop::Jump;
        }
        self.left_translated()
    }

    /// Where translated code goes on in the careful copy of the block it was in; `None` when it cannot, and RIP is where
    /// to look up what can.
    #[cold]
    fn careful_copy(&mut self) -> Option<u64> {
        let context = &mut *self.mmu.tlb.context;
        self.instructions += context.count;
        let site = context.careful as u32;
        let (number, index) = (site >> OP_BITS, (site & ((1 << OP_BITS) - 1)) as usize);
        if let Some(start) = self.jit.careful(number, index, context.resume) {
            context.resume = start;
            return Some(self.jit.stubs.resume);
        }
        // SAFETY: the block's code was running, so the block was not buried.
        let block = unsafe { &*self.jit.blocks[number as usize] };
        let op = &block.ops[index];
        self.rip = context.page_base + (block.gpa & !PAGE_MASK) + u64::from(op.end) - u64::from(op.len);
        self.instructions += index as u64;
        let flags = context.flags;
        self.flags.set_arithmetic(unpacked_flags(flags));
        self.jit.drop_all(&mut self.mmu.tlb.context, &self.code);
        None
    }

    fn left_translated(&mut self) -> Stop {
        let context = &mut *self.mmu.tlb.context;
        self.instructions += context.count;
        if context.exit == u64::from(exit::STOPPED) {
            context.site = 0;
            return self.jit.stop;
        }
        self.rip = context.rip;
        let flags = context.flags;
        self.flags.set_arithmetic(unpacked_flags(flags));
        Stop::Jump
    }

    /// Forgets jumps whose targets may have moved.
    #[inline]
    fn prepare_jumps(&mut self) {
        let generation = self.code.generation();
        if self.jit.generation == generation {
            return;
        }
        if self.jit.generation == 0 {
            Jit::clear_jumps(&mut self.mmu.tlb.context);
        }
        let all = !CodeCache::differ_by_space(self.jit.generation, generation);
        self.jit.forget_jumps(&mut self.mmu.tlb.context, all);
        self.jit.generation = generation;
    }

    /// Runs one instruction for translated code. True when that must not go on.
    fn run_for_translated(&mut self, site: u32) -> bool {
        self.jit.statistics.call_outs += 1;
        let index = (site & ((1 << OP_BITS) - 1)) as usize;
        let block = self.jit.blocks[(site >> OP_BITS) as usize];
        // SAFETY: the block's code is running, so the block was not buried.
        let ops: &[Op] = unsafe { &(*block).ops };
        // SAFETY: as above.
        let offset = unsafe { (*block).gpa } & !PAGE_MASK;
        let op = &ops[index];
        let context = &mut *self.mmu.tlb.context;
        self.rip = context.page_base + offset;
        let (flags, retired) = (context.flags, context.count + index as u64);
        context.site = 0;
        self.regs.set(BLOCK_RIP, self.rip);
        self.flags.set_arithmetic(unpacked_flags(flags));
        self.current_op = op;
        // SAFETY: one past an instruction of the block.
        let end = unsafe { self.current_op.add(1) };
        self.block_end = end;
        self.instructions += retired;
        let before = self.begins(Activity::Interpreter);
        let result = (op.run)(self, op);
        self.goes_back_to(before);
        match result {
            Ok(()) if self.block_end == end && self.goes_on() => {
                self.instructions -= retired;
                let packed = packed_flags(self.flags.arithmetic());
                let (fs, gs) = (self.segment_base[FS], self.segment_base[GS]);
                let context = &mut *self.mmu.tlb.context;
                context.flags = packed;
                (context.fs_base, context.gs_base) = (fs, gs);
                false
            }
            result => {
                let stop = result.err().unwrap_or(Stop::EndBlock);
                self.jit.stop = self.stopped_at(op, stop);
                let context = &mut *self.mmu.tlb.context;
                (context.count, context.exit) = (0, u64::from(exit::STOPPED));
                true
            }
        }
    }

    /// Whether translated code may go on after an instruction that ran in Rust. It may not where another vCPU
    /// changed code: after a serializing instruction that has to be seen.
    fn goes_on(&self) -> bool {
        self.attention | self.signals.pending() == 0
            && Key::of(self) == Some(self.jit.key)
            && self.code.generation() == self.jit.generation
    }
}

/// What translated code calls: runs the instruction `site`; not 0 when translated code must be left.
extern "sysv64" fn call_out(cpu: *mut Cpu, site: u32) -> u32 {
    // SAFETY: `run_translated` stored its own `self`, and does not touch it until translated code returns.
    let cpu = unsafe { &mut *cpu };
    u32::from(cpu.run_for_translated(site))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_survive_packing_in_any_combination() {
        for pattern in 0..0x1000u64 {
            let flags = pattern & bit::ARITH;
            assert_eq!(unpacked_flags(packed_flags(flags)) & bit::ARITH, flags);
        }
    }
}
