//! Random initial states: pointers into the windows, small numbers, edges, and x87 and SSE control words in all their modes.

use crate::layout::{CODE, DATA, LANDING, MEMORY_BYTES, SAVE_SLOT, STACK};
use crate::random::Random;
use crate::state::{CpuState, Mode, RBP, RBX, RCX, RDI, RSI, RSP, rflags};

/// HLT, which ends a sequence.
pub const FILLER: u8 = 0xf4;
/// Vector registers that hold small indices for gathers.
pub const INDEX_VECTORS: [usize; 2] = [6, 9];

const MXCSR_MASKED: u32 = 0x1f80;
const FCW_MASKED: u16 = 0x003f;

/// A state in which nothing is set that makes every instruction fault.
pub fn state(random: &mut Random, mode: Mode) -> CpuState {
    let mut state = CpuState::default();
    memory(random, &mut state);
    general(random, &mut state, mode);
    if mode != Mode::Long {
        state.gprs = std::array::from_fn(|index| if index < 8 { state.gprs[index] & 0xffff_ffff } else { 0 });
    } else {
        state.fs_base = segment_base(random);
        state.gs_base = segment_base(random);
    }
    x87(random, &mut state);
    vectors(random, &mut state);
    // A valid image for FXRSTOR and the like: this very state.
    let image: [u8; 512] = std::array::from_fn(|index| state.xsave[index]);
    state.write_memory(SAVE_SLOT, &image);
    state
}

fn memory(random: &mut Random, state: &mut CpuState) {
    random.fill(&mut state.memory[CODE.bytes as usize..MEMORY_BYTES]);
    state.memory[CODE.range()].fill(FILLER);
}

fn general(random: &mut Random, state: &mut CpuState, mode: Mode) {
    for index in 0..16 {
        state.gprs[index] = random.integer();
    }
    for index in [RSI, RDI, RBX, RBP, 8 + random.below(8) as usize] {
        if random.percent(80) {
            state.gprs[index] = data_pointer(random).wrapping_sub(mode.data_base());
        }
    }
    for _ in 0..2 {
        state.gprs[random.below(16) as usize] = random.below(80).wrapping_sub(16);
    }
    if random.percent(60) {
        state.gprs[RCX] = random.below(40);
    }
    if random.percent(10) {
        state.gprs[random.below(16) as usize] = LANDING - mode.code_base();
    }
    if random.percent(30) {
        state.gprs[RBP] = stack_pointer(random);
    }
    state.gprs[RSP] = stack_pointer(random);
    let top = state.gprs[RSP];
    if random.percent(80) {
        state.write_memory(top, &(LANDING - mode.code_base()).to_le_bytes());
    }
    state.rflags = rflags::FIXED | rflags::IF | (random.bits() & rflags::STATUS);
    if random.percent(20) {
        state.rflags |= rflags::DF;
    }
    if random.percent(2) {
        state.rflags |= random.pick(&[rflags::TF, rflags::AC]);
    }
}

fn data_pointer(random: &mut Random) -> u64 {
    match random.below(20) {
        0 => DATA.base + random.below(64),
        1 => DATA.end() - random.below(64),
        2 => DATA.base + 0x1000 - random.below(64),
        3 => STACK.base + random.below(STACK.bytes),
        4..=8 => DATA.base + 0x100 + random.below(0x1700),
        _ => DATA.base + 0x100 + (random.below(0x1700) & !63),
    }
}

fn stack_pointer(random: &mut Random) -> u64 {
    match random.below(40) {
        0 => STACK.base + random.below(64),
        1 => STACK.end() - 64 + random.below(64),
        2 => STACK.base + 0x400 + random.below(0x800),
        _ => STACK.base + 0x400 + (random.below(0x800) & !15),
    }
}

fn segment_base(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 0,
        1 => random.below(0x1000),
        2 => DATA.base + random.below(0x1000),
        _ => 0x6f00_0000_0000 + random.below(1 << 32),
    }
}

fn x87(random: &mut Random, state: &mut CpuState) {
    let xsave = &mut state.xsave;
    let control = if random.percent(40) {
        0x37f
    } else {
        let masks = if random.percent(85) { FCW_MASKED } else { random.bits() as u16 & FCW_MASKED };
        0x40 | masks | (random.bits() as u16 & 0x0f00)
    };
    let flags = if random.percent(90) { random.bits() as u16 & control & 0x3f } else { random.bits() as u16 & 0x3f };
    let summary = if flags & !control & 0x3f == 0 { 0 } else { 0x8080 };
    let status = flags | summary | (random.bits() as u16 & 0x7f00 & if random.percent(70) { !0x3800 } else { !0 });
    xsave[0..2].copy_from_slice(&control.to_le_bytes());
    xsave[2..4].copy_from_slice(&status.to_le_bytes());
    xsave[4] = match random.below(4) {
        0 => 0,
        1 => 0xff,
        2 => random.bits() as u8,
        // The registers from TOP on are in use: ST(0)..ST(n) can be read, others pushed.
        _ => 0x1fu8.rotate_left(u32::from(status >> 11 & 7)),
    };
    for register in 0..8 {
        xsave[32 + 16 * register..][..10].copy_from_slice(&random.extended());
    }
}

fn vectors(random: &mut Random, state: &mut CpuState) {
    let mut mxcsr = MXCSR_MASKED;
    if random.percent(50) {
        mxcsr |= random.bits() as u32 & 0x6000;
        mxcsr |= random.bits() as u32 & 0x003f;
    }
    if random.percent(15) {
        mxcsr |= random.bits() as u32 & 0x8040;
    }
    if random.percent(8) {
        mxcsr &= !(random.bits() as u32 & MXCSR_MASKED);
    }
    state.xsave[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    let mut whole = [0; 32];
    for register in 0..16 {
        if INDEX_VECTORS.contains(&register) {
            for pair in whole.chunks_mut(8) {
                pair.copy_from_slice(&random.below(64).to_le_bytes());
            }
        } else {
            random.fill(&mut whole);
        }
        set_vector(state, register, &whole);
    }
}

fn set_vector(state: &mut CpuState, register: usize, value: &[u8; 32]) {
    state.xsave[160 + 16 * register..][..16].copy_from_slice(&value[..16]);
    state.xsave[576 + 16 * register..][..16].copy_from_slice(&value[16..]);
}
