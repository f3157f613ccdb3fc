//! Random sequences over a pool of instructions.

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::flags;
use crate::initial;
use crate::layout::{CODE, PAGE};
use crate::mutate::mutate;
use crate::operands;
use crate::pool;
use crate::random::Random;
use crate::sequence::Sequence;
use crate::state::{CpuState, Mode, RCX};

const LONGEST: u64 = 8;
const MUTATED_PERCENT: u64 = 6;
/// Candidates tried for one place in a sequence before it is left empty.
const ATTEMPTS: usize = 20;

/// Makes the sequences of one mode.
#[derive(Debug)]
pub struct Generator {
    mode: Mode,
    /// What fills the places after the first.
    pool: Vec<Code>,
    /// What the first instruction is taken from, in turn.
    leaders: Vec<Code>,
}

/// What is known while a sequence grows.
#[derive(Debug)]
pub struct Draft {
    pub mode: Mode,
    pub random: Random,
    /// The values of general registers no instruction has written yet.
    pub known: [Option<u64>; 16],
    /// Whether the vector registers of [`initial::INDEX_VECTORS`] still hold indices.
    pub index_vectors: [bool; 2],
    pub fs_base: Option<u64>,
    pub gs_base: Option<u64>,
    /// An instruction stored x87 pointers to [`crate::layout::SAVE_SLOT`].
    pub save_slot_written: bool,
    undefined: u32,
}

impl Generator {
    /// `filter` keeps the first instruction to those whose mnemonic or `Code` is (or, failing that, contains) it.
    pub fn new(mode: Mode, filter: Option<&str>) -> Self {
        let pool = pool::comparable(mode);
        let leaders = match filter {
            None => pool.clone(),
            Some(name) => named(&pool, name),
        };
        Self { mode, pool, leaders }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn leaders(&self) -> &[Code] {
        &self.leaders
    }

    /// The sequence of `seed`, beginning with the `turn`th instruction of the pool.
    pub fn sequence(&self, seed: u64, turn: u64) -> Sequence {
        let mut random = Random::new(seed);
        let before = initial::state(&mut random, self.mode);
        let leader = self.leaders[(turn % self.leaders.len() as u64) as usize];
        let mut draft = Draft::new(self.mode, random, &before);
        let length = 1 + draft.random.below(LONGEST);
        let mut items = Vec::new();
        if let Some(item) = draft.instruction(leader, &[]) {
            items.push(item);
        }
        for _ in 1..length {
            let next = (0..ATTEMPTS).find_map(|_| {
                let code = draft.random.pick(&self.pool);
                draft.instruction(code, &items)
            });
            items.extend(next);
        }
        let start = start(&mut draft.random);
        let mut sequence =
            Sequence { seed, mode: self.mode, start, items, verbatim: None, before, addresses: Vec::new() };
        if draft.random.percent(MUTATED_PERCENT) && sequence.assemble().is_ok() {
            return mutate(&mut draft.random, &sequence).unwrap_or(sequence);
        }
        sequence
    }
}

fn named(pool: &[Code], name: &str) -> Vec<Code> {
    let wanted = name.to_lowercase();
    let mnemonic = |code: &Code| format!("{:?}", code.mnemonic()).to_lowercase();
    let code_name = |code: &Code| format!("{code:?}").to_lowercase();
    let exact: Vec<Code> =
        pool.iter().copied().filter(|code| mnemonic(code) == wanted || code_name(code) == wanted).collect();
    if exact.is_empty() {
        pool.iter().copied().filter(|code| code_name(code).contains(&wanted)).collect()
    } else {
        exact
    }
}

/// Mostly the window's start; now and then across its pages or into the page that is not there.
fn start(random: &mut Random) -> u64 {
    match random.below(20) {
        0 => CODE.base + PAGE - 1 - random.below(24),
        1 => CODE.end() - 1 - random.below(40),
        _ => CODE.base + random.below(64),
    }
}

impl Draft {
    fn new(mode: Mode, random: Random, before: &CpuState) -> Self {
        Self {
            mode,
            random,
            known: before.gprs.map(Some),
            index_vectors: [true; 2],
            fs_base: (mode == Mode::Long).then_some(before.fs_base),
            gs_base: (mode == Mode::Long).then_some(before.gs_base),
            save_slot_written: false,
            undefined: 0,
        }
    }

    /// An instruction of this code with random operands that may follow `items`; `None` when it may not.
    fn instruction(&mut self, code: Code, items: &[Instruction]) -> Option<Instruction> {
        let item = operands::fill(self, code)?;
        // A string may run over the fields in the save slot that differ.
        if self.save_slot_written && item.is_string_instruction() {
            return None;
        }
        if flags::read(&item) & self.undefined != 0 || has_undefined_result(&item, self.known[RCX]) {
            return None;
        }
        let mut trial = Sequence {
            seed: 0,
            mode: self.mode,
            start: CODE.base,
            items: vec![item],
            verbatim: None,
            before: CpuState::default(),
            addresses: Vec::new(),
        };
        trial.assemble().ok()?;
        let mut all = items.to_vec();
        all.push(item);
        self.undefined = flags::undefined(&all).pop().unwrap_or(0);
        self.forget_written(&item);
        Some(item)
    }

    fn forget_written(&mut self, item: &Instruction) {
        let mut factory = InstructionInfoFactory::new();
        for used in factory.info(item).used_registers() {
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess) {
                self.forget(used.register());
            }
        }
        match item.mnemonic() {
            Mnemonic::Wrfsbase => self.fs_base = None,
            Mnemonic::Wrgsbase => self.gs_base = None,
            _ => {}
        }
        if item.op_count() > 0 && item.op0_kind() == OpKind::Register {
            self.forget(item.op0_register());
        }
    }

    fn forget(&mut self, register: Register) {
        if register.is_gpr() {
            self.known[register.full_register().number()] = None;
        }
        if register.is_vector_register() {
            for (slot, vector) in initial::INDEX_VECTORS.into_iter().enumerate() {
                self.index_vectors[slot] &= register.number() != vector;
            }
        }
    }
}

/// Whether the manuals leave a destination, not only flags, undefined; `rcx` is its value, if known.
pub fn has_undefined_result(item: &Instruction, rcx: Option<u64>) -> bool {
    match item.code() {
        Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8 => item.immediate8() & 0x1f > 16,
        Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL => rcx.is_none_or(|count| count & 0x1f > 16),
        // System calls of the host.
        Code::Int_imm8 => item.immediate8() == 0x80,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_of_a_seed_is_always_the_same() {
        let generator = Generator::new(Mode::Long, None);
        for turn in 0..200 {
            let (first, second) = (generator.sequence(7, turn), generator.sequence(7, turn));
            assert_eq!(first.items, second.items);
            assert!(first.before == second.before);
        }
    }

    #[test]
    fn sequences_assemble_and_never_read_undefined_flags() {
        for mode in [Mode::Long, Mode::Compatibility] {
            let generator = Generator::new(mode, None);
            for turn in 0..2000 {
                let mut sequence = generator.sequence(turn, turn);
                sequence.assemble().expect("was assembled when it was made");
                assert!(flags::are_respected(&sequence.items));
            }
        }
    }

    #[test]
    fn filter_keeps_a_mnemonic_or_a_code() {
        let by_mnemonic = Generator::new(Mode::Long, Some("bsf"));
        assert_eq!(by_mnemonic.leaders().len(), 3);
        let by_code = Generator::new(Mode::Long, Some("Bsf_r64_rm64"));
        assert_eq!(by_code.leaders(), [Code::Bsf_r64_rm64]);
    }
}
