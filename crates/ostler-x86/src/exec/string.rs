//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, with their repeat prefixes.
//!
//! A repeated MOVS or STOS that goes upwards works on runs within pages, with the host's copy and
//! fill; everything else goes element by element. Registers are up to date at every fault and at
//! every pause, so that the instruction restarts where it was.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::flags::bit;
use crate::cpu::regs::{RAX, RCX, RDI, RSI};
use crate::cpu::segment::ES;
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::width::Width;
use crate::cpu::{Cpu, attention};
use crate::decode::op::{Handler, Op, op_flag};
use crate::exec::branch::set_address_register;
use crate::exec::operand::by_width;
use crate::mmu::walk::Access;

/// Elements done before a repeated instruction lets the run loop look at the signals.
const ELEMENTS_PER_TURN: u64 = 4096;
/// Elements done by runs before the same.
const RUN_ELEMENTS_PER_TURN: u64 = 1 << 20;

impl Cpu {
    /// The step from one element to the next, backwards when DF is set.
    fn string_step<W: Width>(&self) -> u64 {
        let step = W::BYTES as u64;
        if self.flags.has(bit::DF) { step.wrapping_neg() } else { step }
    }

    fn source_linear<W: Width>(&mut self, op: &Op) -> Result<u64, Stop> {
        let offset = self.regs.get(RSI) & op.address_mask();
        self.segment_linear(op, offset, W::BYTES, false)
    }

    /// Destinations are in ES, whatever the prefixes say.
    pub fn destination_linear<W: Width>(&mut self, op: &Op, write: bool) -> Result<u64, Stop> {
        let offset = self.regs.get(RDI) & op.address_mask();
        if op.flags & op_flag::LONG != 0 {
            return Ok(offset);
        }
        self.checked_linear(ES, offset, W::BYTES, write)
    }

    /// Moves RSI or RDI on, with the width of the address size.
    pub fn advance(&mut self, op: &Op, register: usize, by: u64) {
        let value = self.regs.get(register).wrapping_add(by) & op.address_mask();
        set_address_register(self, register, op.address_size, value);
    }

    /// The repeat count, or 1 without a prefix.
    pub fn repeat_count(&self, op: &Op) -> u64 {
        if op.flags & (op_flag::REP | op_flag::REPNE) != 0 { self.regs.get(RCX) & op.address_mask() } else { 1 }
    }

    /// Takes `done` elements off the count.
    pub fn count_off(&mut self, op: &Op, done: u64) {
        if op.flags & (op_flag::REP | op_flag::REPNE) != 0 {
            let left = (self.regs.get(RCX) & op.address_mask()).wrapping_sub(done);
            set_address_register(self, RCX, op.address_size, left);
        }
    }

    /// Repeats `element` until the count is used up or it says to stop; gives way now and then.
    pub fn repeat(&mut self, op: &Op, mut element: impl FnMut(&mut Cpu) -> Result<bool, Stop>) -> Exec {
        // Single-stepping traps after each element.
        let elements = if self.attention & attention::STEP != 0 { 1 } else { ELEMENTS_PER_TURN };
        for _ in 0..elements {
            if self.repeat_count(op) == 0 {
                return Ok(());
            }
            let go_on = element(self)?;
            self.count_off(op, 1);
            // What this element did to a device must not be done again when the next one faults.
            self.mmu.replay.element_done();
            if !go_on || op.flags & (op_flag::REP | op_flag::REPNE) == 0 {
                return Ok(());
            }
        }
        if self.repeat_count(op) == 0 { Ok(()) } else { Err(Stop::Repeat) }
    }

    /// Elements that a run of up to `count` may cover: in the pages of all `linears`, and before
    /// the address wraps.
    fn run_length<W: Width>(&self, op: &Op, count: u64, linears: &[u64], registers: &[usize]) -> u64 {
        let size = W::BYTES as u64;
        let in_pages = linears.iter().map(|linear| (4096 - linear % 4096) / size);
        let before_wrap = registers.iter().map(|register| {
            let offset = self.regs.get(*register) & op.address_mask();
            (op.address_mask() - offset).saturating_add(1) / size
        });
        in_pages.chain(before_wrap).fold(count, u64::min)
    }

    /// Whether runs may replace elements: forwards, and no segment limit to check.
    fn runs_allowed(&self, op: &Op) -> bool {
        !self.flags.has(bit::DF) && op.has(op_flag::LONG) && self.attention & attention::STEP == 0
    }
}

fn movs<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    if op.has(op_flag::REP) && cpu.runs_allowed(op) {
        return repeat_runs(cpu, op, move_run::<W>, move_element::<W>);
    }
    cpu.repeat(op, |cpu| move_element::<W>(cpu, op))
}

fn move_element<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let source = cpu.source_linear::<W>(op)?;
    let value = cpu.load::<W>(source)?;
    let destination = cpu.destination_linear::<W>(op, true)?;
    cpu.store(destination, value)?;
    let step = cpu.string_step::<W>();
    cpu.advance(op, RSI, step);
    cpu.advance(op, RDI, step);
    Ok(true)
}

/// Copies a run; the number of elements done, 0 where single elements have to decide.
fn move_run<W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> u64 {
    let (Ok(source), Ok(destination)) = (cpu.source_linear::<W>(op), cpu.destination_linear::<W>(op, true)) else {
        return 0;
    };
    let count = cpu.run_length::<W>(op, count, &[source, destination], &[RSI, RDI]);
    let (Some((from, _)), Some((to, _))) =
        (cpu.host_run(source, Access::Read), cpu.host_run(destination, Access::Write))
    else {
        return 0;
    };
    let bytes = count as usize * W::BYTES;
    let apart = (to as usize).wrapping_sub(from as usize);
    if apart < bytes && apart != 0 {
        // The destination overlaps the source from above: the pattern repeats, as element by element.
        if apart < W::BYTES {
            return 0;
        }
        // SAFETY: both runs lie in their pages, `apart` bytes at a time do not overlap.
        unsafe { copy_pattern(from, to, bytes, apart) };
    } else {
        // SAFETY: both runs lie in their pages.
        unsafe { std::ptr::copy(from, to, bytes) };
    }
    cpu.advance(op, RSI, bytes as u64);
    cpu.advance(op, RDI, bytes as u64);
    count
}

/// # Safety
/// `from` and `to` = `from + apart` are valid for `bytes` bytes.
unsafe fn copy_pattern(from: *const u8, to: *mut u8, bytes: usize, apart: usize) {
    let mut done = 0;
    while done < bytes {
        let piece = apart.min(bytes - done);
        // SAFETY: pieces are no longer than the distance, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.add(done), to.add(done), piece) };
        done += piece;
    }
}

fn stos<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    if op.has(op_flag::REP) && cpu.runs_allowed(op) {
        return repeat_runs(cpu, op, store_run::<W>, store_element::<W>);
    }
    cpu.repeat(op, |cpu| store_element::<W>(cpu, op))
}

fn store_element<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let destination = cpu.destination_linear::<W>(op, true)?;
    let value = W::truncate(cpu.regs.get(RAX));
    cpu.store(destination, value)?;
    let step = cpu.string_step::<W>();
    cpu.advance(op, RDI, step);
    Ok(true)
}

fn store_run<W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> u64 {
    let Ok(destination) = cpu.destination_linear::<W>(op, true) else { return 0 };
    let count = cpu.run_length::<W>(op, count, &[destination], &[RDI]);
    let Some((to, _)) = cpu.host_run(destination, Access::Write) else { return 0 };
    let value = W::truncate(cpu.regs.get(RAX));
    let bytes = value.zero_extend().to_le_bytes();
    // SAFETY: the run lies in its page.
    unsafe {
        if bytes[..W::BYTES].iter().all(|byte| *byte == bytes[0]) {
            to.write_bytes(bytes[0], count as usize * W::BYTES);
        } else {
            for index in 0..count as usize {
                to.cast::<W>().add(index).write_unaligned(value);
            }
        }
    }
    cpu.advance(op, RDI, count * W::BYTES as u64);
    count
}

/// Repeats by runs where possible, by single elements where not: at page ends, on misses, MMIO.
fn repeat_runs(
    cpu: &mut Cpu,
    op: &Op,
    run: fn(&mut Cpu, &Op, u64) -> u64,
    element: fn(&mut Cpu, &Op) -> Result<bool, Stop>,
) -> Exec {
    let mut budget = RUN_ELEMENTS_PER_TURN;
    while budget > 0 {
        let count = cpu.repeat_count(op);
        if count == 0 {
            return Ok(());
        }
        let done = run(cpu, op, count.min(budget));
        if done != 0 {
            cpu.count_off(op, done);
            budget -= done;
            continue;
        }
        element(cpu, op)?;
        cpu.count_off(op, 1);
        cpu.mmu.replay.element_done();
        // A single element is much slower than one of a run, above all where a device answers.
        budget = budget.saturating_sub(RUN_ELEMENTS_PER_TURN / ELEMENTS_PER_TURN);
    }
    Err(Stop::Repeat)
}

fn lods<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.repeat(op, |cpu| {
        let source = cpu.source_linear::<W>(op)?;
        let value = cpu.load::<W>(source)?;
        cpu.regs.write(0, value);
        let step = cpu.string_step::<W>();
        cpu.advance(op, RSI, step);
        Ok(true)
    })
}

/// Whether REPE or REPNE wants to go on after a comparison.
fn goes_on(cpu: &Cpu, op: &Op) -> bool {
    cpu.flags.zf() != op.has(op_flag::REPNE)
}

fn cmps<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.repeat(op, |cpu| {
        let source = cpu.source_linear::<W>(op)?;
        let a = cpu.load::<W>(source)?;
        let destination = cpu.destination_linear::<W>(op, false)?;
        let b = cpu.load::<W>(destination)?;
        cpu.flags.set_sub(a, b, a.minus(b));
        let step = cpu.string_step::<W>();
        cpu.advance(op, RSI, step);
        cpu.advance(op, RDI, step);
        Ok(goes_on(cpu, op))
    })
}

fn scas<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.repeat(op, |cpu| {
        let destination = cpu.destination_linear::<W>(op, false)?;
        let (a, b) = (W::truncate(cpu.regs.get(RAX)), cpu.load::<W>(destination)?);
        cpu.flags.set_sub(a, b, a.minus(b));
        let step = cpu.string_step::<W>();
        cpu.advance(op, RDI, step);
        Ok(goes_on(cpu, op))
    })
}

pub fn select_string(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => by_width!(op.size, movs),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => by_width!(op.size, stos),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => by_width!(op.size, lods),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => by_width!(op.size, cmps),
        _ => by_width!(op.size, scas),
    }
}
