//! Sequences picked by hand: every value where few exist, and what chance seldom finds.

mod arithmetic;
mod control;
mod float;
mod memory;
mod shifts;
mod x87;

use iced_x86::{Decoder, DecoderOptions};

use crate::initial::FILLER;
use crate::layout::{CODE, DATA, LANDING, MEMORY_BYTES, STACK};
use crate::random::Random;
use crate::sequence::Sequence;
use crate::state::{CpuState, Mode, RDI, RSI, RSP};

/// Machine code and what differs from the common initial state.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    mode: Mode,
    code: Vec<u8>,
    start: u64,
    gprs: Vec<(usize, u64)>,
    flags: u64,
    memory: Vec<(u64, Vec<u8>)>,
    xsave: Vec<(usize, Vec<u8>)>,
}

impl Case {
    pub fn new(name: &'static str, code: &[u8]) -> Self {
        let (gprs, memory, xsave) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, mode: Mode::Long, code: code.to_vec(), start: CODE.base, gprs, flags: 0, memory, xsave }
    }

    fn compatibility(mut self) -> Self {
        self.mode = Mode::Compatibility;
        self
    }

    fn start(mut self, address: u64) -> Self {
        self.start = address;
        self
    }

    fn gpr(mut self, index: usize, value: u64) -> Self {
        self.gprs.push((index, value));
        self
    }

    /// RFLAGS bits set besides those that always are.
    fn flags(mut self, flags: u64) -> Self {
        self.flags = flags;
        self
    }

    fn memory(mut self, address: u64, bytes: &[u8]) -> Self {
        self.memory.push((address, bytes.to_vec()));
        self
    }

    fn xsave(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.xsave.push((offset, bytes.to_vec()));
        self
    }

    pub fn sequence(&self, index: u64) -> Sequence {
        let mut before = common_state();
        before.rflags |= self.flags;
        for (register, value) in &self.gprs {
            before.gprs[*register] = if self.mode == Mode::Long { *value } else { value & 0xffff_ffff };
        }
        for (address, bytes) in &self.memory {
            before.write_memory(*address, bytes);
        }
        for (offset, bytes) in &self.xsave {
            before.xsave[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        let (items, addresses) = decode(self.mode, &self.code, self.start);
        Sequence {
            seed: index,
            mode: self.mode,
            start: self.start,
            items,
            verbatim: Some(self.code.clone()),
            before,
            addresses,
        }
    }
}

/// RSI and RDI point into the data, RSP at the address of a HLT; the data are noise, the same each time.
fn common_state() -> CpuState {
    let mut state = CpuState::default();
    Random::new(0).fill(&mut state.memory[CODE.bytes as usize..MEMORY_BYTES]);
    state.memory[CODE.range()].fill(FILLER);
    state.gprs[RSI] = DATA.base + 0x200;
    state.gprs[RDI] = DATA.base + 0x800;
    state.gprs[RSP] = STACK.base + 0x800;
    state.write_memory(STACK.base + 0x800, &LANDING.to_le_bytes());
    state
}

fn decode(mode: Mode, code: &[u8], start: u64) -> (Vec<iced_x86::Instruction>, Vec<u64>) {
    let decoder = Decoder::with_ip(mode.bits(), code, start, DecoderOptions::NONE);
    let items: Vec<_> = decoder.into_iter().collect();
    let ends = items.iter().map(|item| item.next_ip());
    let addresses = std::iter::once(start).chain(ends).collect();
    (items, addresses)
}

/// All cases, in an order that does not change between runs.
pub fn all() -> Vec<Case> {
    [shifts::cases, arithmetic::cases, memory::cases, control::cases, x87::cases, float::cases]
        .into_iter()
        .flat_map(|cases| cases())
        .collect()
}
