//! A decoded instruction: what the interpreter needs of it, in 48 bytes.

use crate::cpu::Cpu;
use crate::cpu::regs::RegOffset;
use crate::cpu::stop::Exec;

/// A semantic function, chosen at decode time for the operand width and kinds.
pub type Handler = fn(&mut Cpu, &Op) -> Exec;

/// Bits of [`Op::flags`].
pub mod op_flag {
    /// A LOCK prefix, or XCHG with memory.
    pub const LOCK: u8 = 1 << 0;
    /// REP or REPE.
    pub const REP: u8 = 1 << 1;
    pub const REPNE: u8 = 1 << 2;
    /// The memory operand's segment has to be checked: not 64-bit mode.
    pub const CHECKED: u8 = 1 << 3;
    /// The memory operand is relative to the stack: a non-canonical address is #SS.
    pub const STACK: u8 = 1 << 4;
    /// Decoded for 64-bit mode.
    pub const LONG: u8 = 1 << 5;
    /// No such instruction: #UD.
    pub const UNDEFINED: u8 = 1 << 6;
    /// The host may know a newer instruction of these bytes.
    pub const OLDER: u8 = 1 << 7;
}

/// Index into the segment bases that is always zero: ES, CS, SS and DS in 64-bit mode.
pub const FLAT: u8 = 8;

/// One decoded instruction.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    pub run: Handler,
    /// The immediate, sign-extended as the instruction wants it; or what the handler's selector put here.
    pub imm: u64,
    /// Displacement, sign-extended; of a RIP-relative operand relative to the start of the block.
    pub disp: u64,
    /// The memory operand: register indices (not offsets), shift of the index, segment.
    pub base: u8,
    pub index: u8,
    pub scale: u8,
    pub seg: u8,
    /// Register operands, as offsets into the register file; by default operand 0, 1 and 2.
    /// Vector, mask, segment, control and x87 registers are given by number.
    pub reg0: RegOffset,
    pub reg1: RegOffset,
    pub reg2: RegOffset,
    /// Operand size in bytes of the instruction as a whole.
    pub size: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub address_size: u8,
    pub flags: u8,
    /// Bytes from the start of the block to the end of this instruction.
    pub end: u16,
    pub len: u8,
    /// Free for the handler's selector: a sub-operation, a second immediate.
    pub sub: u8,
}

impl Op {
    #[inline(always)]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The part of an address that the address size keeps.
    #[inline(always)]
    pub fn address_mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(self.address_size))
    }
}
