//! The run loop: blocks, and what happens between them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ostler_engine::{Exit, IoHandler};
use ostler_memory::{PAGE_BYTES, PageLog};

use crate::cpu::regs::BLOCK_RIP;
use crate::cpu::stop::Stop;
use crate::cpu::{Cpu, Mode};
use crate::cpuid::CpuidTable;
use crate::decode::block::{Block, MAX_OPS, lines_of};
use crate::decode::decoder::{BlockDecoder, Decoded, MAX_INSTRUCTION_BYTES};
use crate::decode::op::Op;
use crate::jit::Key;
use crate::jit::links::Translated;
use crate::mmu::Privilege;
use crate::mmu::physical::PAGE_MASK;
use crate::mmu::walk::Translation;
use crate::signals::signal;

/// Bytes looked at for one block.
const BLOCK_BYTES: usize = 512;
/// Pages that are looked for in the TLB; with more, all of it is forgotten.
const FORGOTTEN_ONE_BY_ONE: usize = 8;

impl Cpu {
    /// Runs until an exit that neither the CPU nor `io` can finish.
    pub fn run(&mut self, io: &dyn IoHandler) -> Exit {
        self.with_io(io, |cpu| {
            let _running = cpu.sibling.run(&cpu.vm);
            cpu.refresh_memory();
            cpu.mmu.replay.rewind();
            cpu.replaying = cpu.mmu.replay.is_active();
            let exit = cpu.run_until_exit();
            // Who reads the state between two runs sees what is in service.
            cpu.settle_pv_eoi();
            exit
        })
    }

    fn run_until_exit(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.look_up() {
                return exit;
            }
            if let Some(exit) = self.run_blocks() {
                return exit;
            }
        }
    }

    /// Runs blocks until something asks for attention.
    fn run_blocks(&mut self) -> Option<Exit> {
        let mut stepping = self.begins_step() | self.replaying;
        loop {
            if self.code.has_changes() {
                self.code.take_changes();
                self.unwatch_emptied();
            }
            self.bury_code();
            let stop = match self.next_block() {
                Ok(block) => self.run_hot_or_cold(block, stepping),
                Err(stop) => stop,
            };
            match stop {
                Stop::Jump | Stop::EndBlock | Stop::Repeat => {}
                Stop::Fault => {
                    if let Some(exit) = self.deliver_fault() {
                        return Some(exit);
                    }
                }
                Stop::Exit => return self.exit.take(),
            }
            if stepping {
                if stop != Stop::Repeat {
                    self.mmu.replay.clear();
                }
                self.replaying = self.mmu.replay.is_active();
                return self.stepped(stop);
            }
            if self.signals.pending() | self.attention != 0 {
                return None;
            }
            stepping = false;
        }
    }

    /// Runs a block as host code if it has any, and whatever that goes on to.
    #[inline(always)]
    fn run_hot_or_cold(&mut self, block: *const Block, stepping: bool) -> Stop {
        if self.jit.enabled
            && !stepping
            && let Some(key) = Key::of(self)
            && let Some(entry) = self.translation(block, key)
        {
            return self.run_translated(block, entry, key);
        }
        self.run_block(block, stepping)
    }

    /// Frees dropped blocks. Only between blocks, when no code of them is running.
    #[inline(always)]
    fn bury_code(&mut self) {
        if self.code.retired().is_empty() {
            return;
        }
        for block in self.code.retired() {
            self.jit.unlink(block);
        }
        self.code.bury();
    }

    /// The block at RIP.
    #[inline(always)]
    fn next_block(&mut self) -> Result<*const Block, Stop> {
        let linear = if self.bitness == 64 {
            self.rip
        } else {
            self.wrap(self.segment_base[crate::cpu::segment::CS].wrapping_add(self.rip))
        };
        self.is_at(linear);
        match self.code.jump(linear) {
            Some(block) => Ok(block),
            None => self.find_block(linear),
        }
    }

    /// Runs a block, or its first instruction only; RIP is the next instruction's afterwards, the
    /// faulting one's when it returns [`Stop::Fault`] or [`Stop::Exit`].
    ///
    /// A semantic function that needs the block to end moves `block_end` to `current_op`.
    #[inline(always)]
    fn run_block(&mut self, block: *const Block, single: bool) -> Stop {
        // SAFETY: blocks are freed only by `bury`, which is not called while one runs.
        let ops: &[Op] = unsafe { &(*block).ops };
        self.regs.set(BLOCK_RIP, self.rip);
        let start = ops.as_ptr();
        // SAFETY: one past the last instruction, or past the first: a block has at least one.
        self.block_end = unsafe { start.add(if single { 1 } else { ops.len() }) };
        if self.mode != Mode::Long && !self.in_code_limit(ops) {
            return self.gp(0);
        }
        let mut op = start;
        loop {
            // SAFETY: `op` is before `block_end`, which only ever moves towards it.
            let current = unsafe { &*op };
            self.current_op = op;
            let result = (current.run)(self, current);
            // SAFETY: at most one past the last instruction.
            op = unsafe { op.add(1) };
            match result {
                Ok(()) if op >= self.block_end => {
                    self.retire(start, op);
                    self.rip = self.next_rip(current);
                    return Stop::EndBlock;
                }
                Ok(()) => {}
                Err(stop) => return self.leave_block(start, op, stop),
            }
        }
    }

    #[inline(always)]
    fn retire(&mut self, start: *const Op, end: *const Op) {
        self.instructions += (end as u64 - start as u64) / size_of::<Op>() as u64;
    }

    /// Leaves the block at the instruction before `end`.
    #[inline(always)]
    fn leave_block(&mut self, start: *const Op, end: *const Op, stop: Stop) -> Stop {
        if stop == Stop::Jump {
            self.retire(start, end);
            return stop;
        }
        // SAFETY: `end` is one past an instruction of the running block.
        let op = unsafe { &*end.sub(1) };
        if stop == Stop::EndBlock {
            self.retire(start, end);
            self.rip = self.next_rip(op);
            return stop;
        }
        // SAFETY: as above: the faulting instruction did not retire.
        self.retire(start, unsafe { end.sub(1) });
        self.faulted_at(op, stop)
    }

    fn faulted_at(&mut self, op: &Op, stop: Stop) -> Stop {
        if stop == Stop::Fault {
            self.refine_fault(op);
        }
        self.rip = self.op_rip(op);
        stop
    }

    /// Leaves translated code at `op`, which stopped; the instructions before it are counted.
    pub(crate) fn stopped_at(&mut self, op: &Op, stop: Stop) -> Stop {
        match stop {
            Stop::Jump => self.instructions += 1,
            Stop::EndBlock => {
                self.instructions += 1;
                self.rip = self.next_rip(op);
            }
            _ => return self.faulted_at(op, stop),
        }
        stop
    }

    /// A non-canonical stack operand is #SS(0), not #GP(0).
    fn refine_fault(&mut self, op: &Op) {
        use crate::cpu::stop::vector;
        use crate::decode::op::op_flag;
        if self.fault.non_canonical && op.has(op_flag::STACK) {
            self.fault.vector = vector::SS;
        }
    }

    /// Whether the block lies in the limit of CS; if only its first instruction does, runs just that.
    fn in_code_limit(&mut self, ops: &[Op]) -> bool {
        let limit = u64::from(self.segments[crate::cpu::segment::CS].limit);
        let Some(last) = ops.last() else { return false };
        if self.rip.wrapping_add(u64::from(last.end)) <= limit + 1 {
            return true;
        }
        // SAFETY: a block has at least one instruction.
        self.block_end = unsafe { ops.as_ptr().add(1) };
        self.rip.wrapping_add(u64::from(ops[0].end)) <= limit + 1
    }

    #[cold]
    #[inline(never)]
    fn find_block(&mut self, linear: u64) -> Result<*const Block, Stop> {
        self.require_in_code_limit(self.rip)?;
        let (gpa, global) = self.fetch_gpa(linear)?;
        if let Some(block) = self.code.find(gpa, self.bitness) {
            let (pointer, second) = (std::ptr::from_ref(block), block.second_page);
            if second.is_none() || second == Some(self.fetch_next_page(linear)? & PAGE_MASK) {
                self.code.remember_jump(linear, pointer, global && second.is_none());
                return Ok(pointer);
            }
        }
        let found = self.decode_block(linear, gpa).map(|block| {
            let global = global && block.second_page.is_none();
            if self.jit.enabled && self.code.is_crowded() {
                self.code.shed();
            }
            let pointer = self.code.insert(block);
            self.code.remember_jump(linear, pointer, global);
            pointer
        });
        if found.is_err() {
            self.code.abandon(gpa & PAGE_MASK);
        }
        if self.code.has_emptied() {
            self.unwatch_emptied();
        }
        found
    }

    /// Translates an instruction fetch; and whether every address space has that page.
    fn fetch_gpa(&mut self, linear: u64) -> Result<(u64, bool), Stop> {
        if let Some((page, global)) = self.code.fetch(linear) {
            return Ok((page | linear & !PAGE_MASK, global));
        }
        let before = self.mmu.privilege;
        self.mmu.privilege = if self.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        let found = self.translate_fetch(linear);
        self.mmu.privilege = before;
        let Translation { gpa, global, .. } = found?;
        self.code.remember_fetch(linear, gpa, global);
        Ok((gpa, global))
    }

    /// Translates the fetch of the rest of an instruction that begins in the page before.
    fn fetch_next_page(&mut self, linear: u64) -> Result<u64, Stop> {
        let in_page = PAGE_BYTES - linear % PAGE_BYTES;
        self.require_in_code_limit(self.rip.wrapping_add(in_page))?;
        Ok(self.fetch_gpa(self.wrap(linear.wrapping_add(in_page)))?.0)
    }

    /// #GP(0) where an instruction byte is past the limit of CS: that comes before any page fault.
    fn require_in_code_limit(&mut self, offset: u64) -> Result<(), Stop> {
        let limit = u64::from(self.segments[crate::cpu::segment::CS].limit);
        if self.mode != Mode::Long && offset > limit { Err(self.gp(0)) } else { Ok(()) }
    }

    /// Decodes the block at `gpa`. The bytes are watched before they are trusted; as the watched ones only
    /// grow, a guest that keeps changing them is not waited for.
    fn decode_block(&mut self, linear: u64, gpa: u64) -> Result<Block, Stop> {
        let in_page = (PAGE_BYTES - gpa % PAGE_BYTES) as usize;
        let window = in_page.min(BLOCK_BYTES);
        let mut bytes = [0; BLOCK_BYTES];
        let mut watched = 0;
        self.fetch_bytes(gpa, &mut bytes[..window])?;
        loop {
            let Some((ops, len)) = decode_ops(&self.cpuid, self.bitness, &bytes[..window], self.rip) else {
                return self.decode_crossing(linear, gpa, in_page);
            };
            let lines = lines_of(gpa % PAGE_BYTES, len as u64);
            let mut unchanged = lines & !watched == 0;
            if !unchanged {
                self.watch_code(gpa, len);
                watched |= lines;
                let mut again = [0; BLOCK_BYTES];
                self.fetch_bytes(gpa, &mut again[..window])?;
                unchanged = again[..len] == bytes[..len];
                bytes = again;
            }
            if unchanged {
                return Ok(Block {
                    ops: ops.into(),
                    bytes: bytes[..len].into(),
                    gpa,
                    len: len as u16,
                    bitness: self.bitness as u8,
                    second_page: None,
                    translated: Translated::default(),
                });
            }
        }
    }

    /// Decodes an instruction that goes on in the next page.
    fn decode_crossing(&mut self, linear: u64, gpa: u64, in_page: usize) -> Result<Block, Stop> {
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let in_page = in_page.min(MAX_INSTRUCTION_BYTES);
        let second = self.fetch_next_page(linear)?;
        self.watch_code(gpa, in_page);
        self.watch_code(second, MAX_INSTRUCTION_BYTES - in_page);
        // Unless a block comes of it.
        self.code.abandon(second & PAGE_MASK);
        self.fetch_bytes(gpa, &mut bytes[..in_page])?;
        self.fetch_bytes(second, &mut bytes[in_page..])?;
        let Decoded::Instruction { op, .. } =
            BlockDecoder::for_cpu(&self.cpuid, self.bitness, &bytes, self.rip).decode_next()
        else {
            // Fifteen bytes are enough for any instruction: the decoder calls longer ones invalid.
            return Err(self.gp(0));
        };
        Ok(Block {
            ops: Box::new([op]),
            bytes: bytes[..usize::from(op.len)].into(),
            gpa,
            len: u16::from(op.len),
            bitness: self.bitness as u8,
            second_page: Some(second & PAGE_MASK),
            translated: Translated::default(),
        })
    }

    fn fetch_bytes(&mut self, gpa: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        if self.mmu.physical.find(gpa).is_some() {
            return self.read_physical(gpa, buffer);
        }
        self.exit = Some(Exit::InternalError(format!("the guest executes at {gpa:#x}, where there is no memory")));
        Err(Stop::Exit)
    }

    /// Asks to be told of writes to `len` bytes at `gpa`, which are in one page.
    pub fn watch_code(&mut self, gpa: u64, len: usize) {
        if self.code.hold(gpa & PAGE_MASK) {
            self.vm.hold_code(gpa & PAGE_MASK);
        }
        self.announce_writes(gpa, |log, page| log.watch_lines(page, lines_of(gpa % PAGE_BYTES, len as u64)));
    }

    /// Stops watching pages that have no code any more, so that stores to them are fast again. Only where nobody else
    /// has code there.
    #[cold]
    fn unwatch_emptied(&mut self) {
        let emptied = self.code.take_emptied();
        self.unwatch(emptied);
    }

    /// Drops all code: this vCPU is going, and its siblings' stores to those pages shall be fast again.
    pub fn release_code(&mut self) {
        let held = self.code.release_all();
        self.unwatch(held);
    }

    fn unwatch(&mut self, pages: Vec<u64>) {
        let mut unwatched = Vec::new();
        for page in pages {
            self.vm.release_code(page, || {
                if let Some(place) = self.mmu.physical.find(page) {
                    place.log.unwatch_page(place.offset / PAGE_BYTES);
                    unwatched.push(page);
                }
            });
        }
        if unwatched.len() > FORGOTTEN_ONE_BY_ONE {
            return self.mmu.tlb.flush();
        }
        unwatched.into_iter().for_each(|page| self.mmu.tlb.forget_physical(page));
    }

    /// Has writes to the page of `gpa` announced to its log from now on. `request` asks for that, with the index of the
    /// page, and says whether somebody may still store there unnoticed.
    pub fn announce_writes(&mut self, gpa: u64, request: impl FnOnce(&PageLog, u64) -> bool) {
        let Some(place) = self.mmu.physical.find(gpa) else { return };
        let vm = Arc::clone(&self.vm);
        let watching = vm.begin_watching(gpa & PAGE_MASK);
        // Who was first on this page may still be waiting for the others.
        if request(place.log, place.offset / PAGE_BYTES) || watching.is_contended() {
            self.mmu.tlb.forbid_writes(gpa);
            self.synchronize_siblings();
        }
    }

    /// Notices what came from outside, and delivers what is due.
    fn look_up(&mut self) -> Option<Exit> {
        if self.replaying {
            return None;
        }
        loop {
            let raised = self.signals.take(signal::ALL);
            self.end_mwait(raised);
            if raised & signal::ALONE != 0 {
                self.stand_aside();
            }
            if raised & signal::MEMORY != 0 {
                self.refresh_memory();
            }
            if let Some(exit) = self.take_events(raised) {
                return Some(exit);
            }
            if raised & signal::KICK != 0 {
                return Some(Exit::Interrupted);
            }
            if !self.is_idle() {
                return None;
            }
            self.sleep();
        }
    }

    /// Lets another vCPU run alone, if one still wants to. Only between blocks.
    #[cold]
    fn stand_aside(&mut self) {
        self.sibling.running.store(false, Ordering::SeqCst);
        self.run_again();
    }

    /// Counts as running again, with translations that are not stale. Only between blocks.
    pub(crate) fn run_again(&mut self) {
        self.vm.begin_running(&self.sibling);
        if self.sibling.acknowledged.load(Ordering::SeqCst) != self.vm.epoch() {
            self.refresh_memory();
        }
    }

    /// Takes over changes of the memory slots and acknowledges them. What the guest's tables say stays known.
    ///
    /// Only between blocks: it frees them.
    pub(crate) fn refresh_memory(&mut self) {
        let epoch = self.vm.epoch();
        if self.mmu.physical.refresh() {
            self.code.forget_all();
        }
        self.bury_code();
        self.mmu.tlb.flush();
        self.sibling.acknowledged.store(epoch, Ordering::SeqCst);
    }

    /// Makes the other vCPUs drop the translations through which they would store unnoticed.
    fn synchronize_siblings(&mut self) {
        let vm = Arc::clone(&self.vm);
        vm.synchronize(Some(self.id), || {
            // One of them may wait for us in the same way.
            let epoch = self.vm.epoch();
            self.mmu.tlb.flush();
            self.sibling.acknowledged.store(epoch, Ordering::SeqCst);
        });
    }
}

/// Decodes instructions up to the end of the block; `None` when the very first one is cut off.
fn decode_ops(cpuid: &CpuidTable, bitness: u32, bytes: &[u8], rip: u64) -> Option<(Vec<Op>, usize)> {
    let mut decoder = BlockDecoder::for_cpu(cpuid, bitness, bytes, rip);
    let mut ops = Vec::with_capacity(8);
    let mut len = 0;
    while ops.len() < MAX_OPS {
        match decoder.decode_next() {
            Decoded::Instruction { op, ends_block } => {
                ops.push(op);
                len = decoder.position();
                if ends_block {
                    break;
                }
            }
            Decoded::Truncated => break,
        }
    }
    (!ops.is_empty()).then_some((ops, len))
}
