//! A sequence: instructions, where they start, and the state they start from.

use iced_x86::{Encoder, IcedError, Instruction, OpKind};

use crate::initial::FILLER;
use crate::layout::CODE;
use crate::state::{CpuState, Mode};

#[derive(Clone, Debug)]
pub struct Sequence {
    /// What it was made from: [`crate::generate::Generator::sequence`] makes the same from the same seed.
    pub seed: u64,
    pub mode: Mode,
    /// A linear address.
    pub start: u64,
    /// A near branch's target is the number of following instructions to leave out.
    pub items: Vec<Instruction>,
    /// The bytes to run in place of the encoded instructions, which then only describe them.
    pub verbatim: Option<Vec<u8>>,
    pub before: CpuState,
    /// The linear address of each instruction and of the byte after the last, as of [`Sequence::assemble`].
    pub addresses: Vec<u64>,
}

impl Sequence {
    /// Puts the instructions' bytes into the code window of `before` and points RIP at them.
    pub fn assemble(&mut self) -> Result<(), IcedError> {
        self.before.rip = self.start - self.mode.code_base();
        if let Some(bytes) = self.verbatim.take() {
            self.place(&bytes);
            self.verbatim = Some(bytes);
            return Ok(());
        }
        // A first pass finds the addresses; a branch's length does not depend on its target.
        let (_, addresses) = self.encode(None)?;
        let (bytes, addresses) = self.encode(Some(&addresses))?;
        self.place(&bytes);
        self.addresses = addresses;
        Ok(())
    }

    /// What does not fit into the window is left out: the CPU faults where it ends.
    fn place(&mut self, bytes: &[u8]) {
        let window = &mut self.before.memory[CODE.range()];
        window.fill(FILLER);
        let offset = (self.start - CODE.base) as usize;
        let fitting = bytes.len().min(window.len() - offset);
        window[offset..offset + fitting].copy_from_slice(&bytes[..fitting]);
    }

    fn encode(&self, known: Option<&[u64]>) -> Result<(Vec<u8>, Vec<u64>), IcedError> {
        let mut encoder = Encoder::new(self.mode.bits());
        let mut addresses = vec![self.start];
        let base = self.mode.code_base();
        let mut at = self.start;
        for (index, item) in self.items.iter().enumerate() {
            let target = branch_skip(item).map(|skip| {
                let to = (index + 1 + skip as usize).min(self.items.len());
                known.map_or(at, |addresses| addresses[to])
            });
            let target = target.map(|target| target - base);
            at += encoder.encode(&with_target(item, target), at - base)? as u64;
            addresses.push(at);
        }
        Ok((encoder.take_buffer(), addresses))
    }

    /// The index of the instruction that `rip` points to; the number of instructions for the end.
    pub fn index_at(&self, rip: u64) -> Option<usize> {
        let address = rip.wrapping_add(self.mode.code_base());
        self.addresses.iter().position(|start| *start == address)
    }
}

/// How many instructions a near branch of a sequence leaves out; `None` for all other instructions.
pub fn branch_skip(item: &Instruction) -> Option<u64> {
    let near = item.op_count() > 0
        && matches!(item.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    near.then(|| item.near_branch_target())
}

fn with_target(item: &Instruction, target: Option<u64>) -> Instruction {
    let mut item = *item;
    if let Some(target) = target {
        match item.op0_kind() {
            OpKind::NearBranch16 => item.set_near_branch16(target as u16),
            OpKind::NearBranch32 => item.set_near_branch32(target as u32),
            _ => item.set_near_branch64(target),
        }
    }
    item
}
