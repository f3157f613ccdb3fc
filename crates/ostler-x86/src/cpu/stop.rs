//! Why execution leaves a block early: faults and the other stops.

/// Exception vectors (SDM vol. 3, table 6-1).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// Why an instruction did not simply fall through to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// [`crate::cpu::Cpu::fault`] holds an exception; the instruction did not happen.
    Fault,
    /// The instruction is done and wrote RIP.
    Jump,
    /// The instruction is done; what follows has to be looked up anew (mode, mappings, code changed).
    EndBlock,
    /// An access that nobody answered became [`crate::cpu::Cpu::exit`]; the instruction restarts.
    Exit,
    /// A repeated instruction made progress and has to be entered again after a look at the signals.
    Repeat,
}

/// What a semantic function returns: `Ok` falls through.
pub type Exec = Result<(), Stop>;

/// An exception about to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: Option<u32>,
    /// The address for CR2, on a page fault.
    pub address: u64,
    /// A #GP(0) because of a non-canonical address: #SS(0) if the operand was on the stack.
    pub non_canonical: bool,
}
