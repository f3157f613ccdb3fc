//! The state of user mode before and after a sequence, the same type for both CPUs.

use crate::layout::{CODE, DATA, MEMORY_BYTES, WINDOWS};

/// The legacy area, the header and the upper halves of the YMM registers.
pub const XSAVE_BYTES: usize = 832;
/// x87, SSE and AVX.
pub const XSTATE: u64 = 7;

/// Indices into [`CpuState::gprs`]: the processor's own numbering.
pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

pub const GPR_NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

pub mod rflags {
    pub const CF: u64 = 1;
    pub const FIXED: u64 = 2;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const AC: u64 = 1 << 18;
    pub const ID: u64 = 1 << 21;
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// A segment of [`Mode::Sixteen`], in the local descriptor table of both CPUs.
#[derive(Clone, Copy, Debug)]
pub struct LocalSegment {
    pub selector: u16,
    pub base: u32,
    pub limit: u32,
}

/// CS: the code is at offset 0.
pub const SIXTEEN_CODE: LocalSegment = LocalSegment { selector: 0x07, base: CODE.base as u32, limit: 0xffff };
/// DS and ES: the constant page is at 0x3000, the data behind it; one page more than there is can be addressed.
pub const SIXTEEN_DATA: LocalSegment = LocalSegment { selector: 0x0f, base: DATA.base as u32 - 0x4000, limit: 0x6fff };

/// The mode a sequence runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit code.
    Long,
    /// 32-bit code under a 64-bit system.
    Compatibility,
    /// The same with a 16-bit code segment, and data segments that do not begin at 0 and end early.
    Sixteen,
}

impl Mode {
    pub const fn bits(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Compatibility => 32,
            Self::Sixteen => 16,
        }
    }

    /// The base of CS.
    pub const fn code_base(self) -> u64 {
        if matches!(self, Self::Sixteen) { CODE.base } else { 0 }
    }

    /// The base of DS and ES.
    pub const fn data_base(self) -> u64 {
        if matches!(self, Self::Sixteen) { SIXTEEN_DATA.base as u64 } else { 0 }
    }

    pub const fn gprs(self) -> usize {
        if matches!(self, Self::Long) { 16 } else { 8 }
    }
}

/// The contents of all [`WINDOWS`], one after another.
pub type Memory = Box<[u8; MEMORY_BYTES]>;
/// An XSAVE image in the standard format, header included.
pub type Xsave = Box<[u8; XSAVE_BYTES]>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub xsave: Xsave,
    pub memory: Memory,
}

impl Default for CpuState {
    /// All zero but what reset gives: RFLAGS, FCW, MXCSR.
    fn default() -> Self {
        let mut xsave = Box::new([0; XSAVE_BYTES]);
        initialize_xsave(&mut xsave);
        Self {
            gprs: [0; 16],
            rip: 0,
            rflags: rflags::FIXED | rflags::IF,
            fs_base: 0,
            gs_base: 0,
            xsave,
            memory: Box::new([0; MEMORY_BYTES]),
        }
    }
}

/// Why a CPU stopped running a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    Exception {
        vector: u8,
        error: u32,
        address: Option<u64>,
    },
    /// It did not stop by itself, or by a system call.
    Timeout,
    /// The CPU under test did something no sequence can make a CPU do.
    Broken(String),
}

#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: CpuState,
    pub stop: Stop,
}

/// Sets `xsave` to the state after FNINIT with all registers empty and zero.
pub fn initialize_xsave(xsave: &mut [u8; XSAVE_BYTES]) {
    xsave.fill(0);
    xsave[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    xsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    xsave[512..520].copy_from_slice(&XSTATE.to_le_bytes());
}

/// Makes two images comparable: components that the header calls initial are written out, and fields that
/// differ between processors (x87 instruction and data pointers, FOP, MXCSR_MASK, reserved bytes) are cleared.
pub fn normalize_xsave(xsave: &mut [u8; XSAVE_BYTES]) {
    let present = u64::from_le_bytes(xsave[512..520].try_into().unwrap_or_default());
    if present & 1 == 0 {
        xsave[0..24].fill(0);
        xsave[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        xsave[32..160].fill(0);
    }
    if present & 2 == 0 {
        xsave[160..416].fill(0);
    }
    if present & 4 == 0 {
        xsave[576..832].fill(0);
    }
    xsave[5..24].fill(0);
    xsave[28..32].fill(0);
    for register in 0..8 {
        xsave[32 + 16 * register + 10..32 + 16 * register + 16].fill(0);
    }
    xsave[416..576].fill(0);
    xsave[512..520].copy_from_slice(&XSTATE.to_le_bytes());
}

impl CpuState {
    /// The bytes of the window with this index.
    pub fn window(&self, index: usize) -> &[u8] {
        &self.memory[WINDOWS[index].range()]
    }

    pub fn write_memory(&mut self, address: u64, bytes: &[u8]) {
        if let Some(offset) = crate::layout::memory_offset(address) {
            let end = (offset + bytes.len()).min(MEMORY_BYTES);
            self.memory[offset..end].copy_from_slice(&bytes[..end - offset]);
        }
    }
}
