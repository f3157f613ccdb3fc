//! One instruction from iced's form to ours.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::Cpu;
use crate::cpu::regs::{BLOCK_RIP, ZERO};
use crate::cpu::stop::Exec;
use crate::cpuid::{CpuidTable, Feature};
use crate::decode::op::{FLAT, Op, op_flag};
use crate::isa;

/// The longest instruction there is.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// 0F 18 to 0F 1F are no-operations on a CPU without MPX and CET; ENDBR and PREFETCH are no more either.
const RESERVED_NOPS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

/// Decodes the instructions of one block.
#[expect(missing_debug_implementations, reason = "iced's decoder has none")]
pub struct BlockDecoder<'a> {
    decoder: Decoder<'a>,
    bytes: &'a [u8],
    bitness: u32,
    start_rip: u64,
    position: usize,
    cpuid: Option<&'a CpuidTable>,
}

/// What the bytes at a position turned out to be.
#[derive(Debug)]
pub enum Decoded {
    Instruction {
        op: Op,
        ends_block: bool,
    },
    /// The instruction goes on past the bytes at hand.
    Truncated,
}

impl<'a> BlockDecoder<'a> {
    /// Decodes `bytes`, the first of which is at `rip`.
    pub fn new(bitness: u32, bytes: &'a [u8], rip: u64) -> Self {
        Self {
            decoder: Decoder::with_ip(bitness, bytes, rip, RESERVED_NOPS),
            bytes,
            bitness,
            start_rip: rip,
            position: 0,
            cpuid: None,
        }
    }

    /// As [`BlockDecoder::new`], but instructions that `cpuid` does not offer are undefined.
    pub fn for_cpu(cpuid: &'a CpuidTable, bitness: u32, bytes: &'a [u8], rip: u64) -> Self {
        let options = RESERVED_NOPS | older_instructions(cpuid);
        let decoder = Decoder::with_ip(bitness, bytes, rip, options);
        Self { cpuid: Some(cpuid), decoder, ..Self::new(bitness, bytes, rip) }
    }

    /// Bytes decoded so far.
    pub fn position(&self) -> usize {
        self.position
    }

    fn is_offered(&self, instruction: &Instruction) -> bool {
        self.cpuid.is_none_or(|cpuid| cpuid.allows(instruction.code()))
    }

    pub fn decode_next(&mut self) -> Decoded {
        let instruction = self.decoder.decode();
        if instruction.is_invalid() && self.decoder.last_error() == DecoderError::NoMoreBytes {
            return Decoded::Truncated;
        }
        let rest = &self.bytes[self.position..];
        let len = instruction.len();
        self.position += len;
        let instruction = exchange_of_r8(self.bitness, &rest[..len], &instruction).unwrap_or(instruction);
        let mut op = generic_op(&instruction, self.bitness, self.start_rip);
        op.end = self.position as u16;
        op.len = len as u8;
        let selected = if instruction.is_invalid() || !lock_allowed(&instruction) || !self.is_offered(&instruction) {
            None
        } else {
            isa::row(instruction.mnemonic()).and_then(|row| (row.select)(&instruction, &mut op))
        };
        if is_older(&instruction) {
            op.flags |= op_flag::OLDER;
        }
        let too_long = instruction.is_invalid() && is_too_long(self.bitness, rest);
        op.run = selected.unwrap_or(if too_long { exceeds_limit } else { undefined });
        if selected.is_none() {
            op.flags |= op_flag::UNDEFINED;
        }
        let ends_block = selected.is_none() || isa::ends_block(&instruction);
        Decoded::Instruction { op, ends_block }
    }
}

/// F3 0F BC and F3 0F BD are BSF and BSR to a CPU without TZCNT and LZCNT: compilers count on it.
fn older_instructions(cpuid: &CpuidTable) -> u32 {
    let option = |newer, option| if cpuid.has(newer) { 0 } else { option };
    option(Feature::Bmi1, DecoderOptions::NO_MPFX_0FBC) | option(Feature::Lzcnt, DecoderOptions::NO_MPFX_0FBD)
}

fn is_older(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() && matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr)
}

/// F3 90 with REX.B: processors exchange RAX with R8, where iced has PAUSE.
fn exchange_of_r8(bitness: u32, bytes: &[u8], decoded: &Instruction) -> Option<Instruction> {
    let [.., rex, _] = bytes else { return None };
    if bitness != 64 || decoded.mnemonic() != Mnemonic::Pause || rex & 0xf1 != 0x41 {
        return None;
    }
    let without: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0xf3).collect();
    Some(Decoder::new(bitness, &without, RESERVED_NOPS).decode())
}

fn undefined(cpu: &mut Cpu, _op: &Op) -> Exec {
    Err(cpu.undefined())
}

/// An instruction of more than 15 bytes.
fn exceeds_limit(cpu: &mut Cpu, _op: &Op) -> Exec {
    Err(cpu.gp(0))
}

/// Whether the instruction that `bytes` begin with, which the decoder calls invalid, is so for its length.
///
/// It is when, with one of its prefixes away, the rest of its first 15 bytes is still not all of it. A prefix that
/// there is twice, or else one that never changes the length: what is too long has either. An opcode that nobody
/// defined ends where it is known, however many operand bytes the decoder would like to see.
fn is_too_long(bitness: u32, bytes: &[u8]) -> bool {
    let Some(bytes) = bytes.first_chunk::<MAX_INSTRUCTION_BYTES>() else { return false };
    let prefixes = bytes.iter().take_while(|byte| is_prefix(**byte, bitness)).count();
    let is_repeated = |index: &usize| bytes[index + 1..prefixes].contains(&bytes[*index]);
    let keeps_length = |index: &usize| !matches!(bytes[*index], 0x66 | 0x67 | 0x40..=0x4f);
    let Some(superfluous) = (0..prefixes).find(is_repeated).or_else(|| (0..prefixes).find(keeps_length)) else {
        return false;
    };
    let mut shorter = bytes.to_vec();
    shorter.remove(superfluous);
    let goes_on = decoder_error(bitness, &shorter) == DecoderError::NoMoreBytes;
    let is_defined = |filler: u8| {
        let mut longer = shorter[prefixes - 1..].to_vec();
        longer.resize(MAX_INSTRUCTION_BYTES, filler);
        decoder_error(bitness, &longer) == DecoderError::None
    };
    goes_on && (prefixes == bytes.len() || [0, 0x10, 0xff].into_iter().any(is_defined))
}

/// What is wrong with an instruction apart from prefixes it should not have.
fn decoder_error(bitness: u32, bytes: &[u8]) -> DecoderError {
    let mut decoder = Decoder::new(bitness, bytes, RESERVED_NOPS | DecoderOptions::NO_INVALID_CHECK);
    let _ = decoder.decode();
    decoder.last_error()
}

fn is_prefix(byte: u8, bitness: u32) -> bool {
    match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => true,
        // REX.
        0x40..=0x4f => bitness == 64,
        _ => false,
    }
}

/// LOCK is only allowed on read-modify-writes of memory; the decoder rejects it elsewhere.
fn lock_allowed(instruction: &Instruction) -> bool {
    !instruction.has_lock_prefix() || instruction.op0_kind() == OpKind::Memory
}

/// Fills what every instruction has in common: registers, immediate, memory operand, prefixes.
fn generic_op(instruction: &Instruction, bitness: u32, start_rip: u64) -> Op {
    let mut op = Op {
        run: undefined,
        imm: 0,
        disp: 0,
        base: ZERO as u8,
        index: ZERO as u8,
        scale: 0,
        seg: FLAT,
        reg0: 0,
        reg1: 0,
        reg2: 0,
        size: 0,
        address_size: (bitness / 8) as u8,
        flags: 0,
        end: 0,
        len: 0,
        sub: 0,
    };
    if bitness == 64 {
        op.flags |= op_flag::LONG;
    }
    for (prefix, flag) in [
        (instruction.has_lock_prefix(), op_flag::LOCK),
        (instruction.has_rep_prefix(), op_flag::REP),
        (instruction.has_repne_prefix(), op_flag::REPNE),
    ] {
        if prefix {
            op.flags |= flag;
        }
    }
    for index in 0..instruction.op_count() {
        match instruction.op_kind(index) {
            OpKind::Register => {
                let offset = register_offset(instruction.op_register(index));
                match index {
                    0 => op.reg0 = offset,
                    1 => op.reg1 = offset,
                    2 => op.reg2 = offset,
                    // A fourth register operand is in an immediate byte.
                    _ => op.sub = offset,
                }
            }
            OpKind::Memory => memory_operand(instruction, bitness, start_rip, &mut op),
            OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI => implicit_operand(instruction, index, bitness, &mut op),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                // Relative to the block, so that the block serves every linear address it appears at.
                op.imm = instruction.near_branch_target().wrapping_sub(start_rip);
            }
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                op.imm = match instruction.op_kind(index) {
                    OpKind::FarBranch16 => u64::from(instruction.far_branch16()),
                    _ => u64::from(instruction.far_branch32()),
                } | u64::from(instruction.far_branch_selector()) << 32;
            }
            // ENTER's and EXTRQ's second immediate.
            OpKind::Immediate8_2nd => op.sub = instruction.immediate8_2nd(),
            _ => op.imm = instruction.immediate(index),
        }
    }
    op.size = operand_size(instruction);
    op
}

/// Byte offset of a general-purpose register in the register file; other registers by number.
pub fn register_offset(register: Register) -> u8 {
    if register.is_gpr() {
        // By the full register: among themselves, iced numbers AL..BL, AH..BH, SPL..DIL, R8L..
        let number = register.full_register().number() as u8;
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        return number * 8 + u8::from(high);
    }
    if register == Register::None { 0 } else { register.number() as u8 }
}

fn memory_operand(instruction: &Instruction, bitness: u32, start_rip: u64, op: &mut Op) {
    op.disp = instruction.memory_displacement64();
    op.address_size = address_size(instruction, bitness);
    let base = instruction.memory_base();
    if instruction.is_ip_rel_memory_operand() {
        op.base = BLOCK_RIP as u8;
        op.disp = instruction.ip_rel_memory_address().wrapping_sub(start_rip);
    } else if base != Register::None {
        op.base = base.number() as u8;
    }
    let index = instruction.memory_index();
    if index != Register::None && !instruction.is_vsib() {
        op.index = index.number() as u8;
        op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    }
    let prefix = instruction.memory_segment();
    let on_stack = matches!(base.full_register(), Register::RSP | Register::RBP);
    let default = if on_stack { Register::SS } else { Register::DS };
    segment_of(segment_in_force(prefix, default, bitness), bitness, op);
}

/// The segment of a memory operand that the instruction does not name: DS, or what a prefix says.
pub fn implied_data_segment(instruction: &Instruction, op: &mut Op) {
    let bitness = if op.has(op_flag::LONG) { 64 } else { 32 };
    let prefix = match instruction.segment_prefix() {
        Register::None => Register::DS,
        prefix => prefix,
    };
    segment_of(segment_in_force(prefix, Register::DS, bitness), bitness, op);
}

/// 64-bit mode ignores all overrides but FS and GS: the default stays.
fn segment_in_force(prefix: Register, default: Register, bitness: u32) -> Register {
    if bitness == 64 && !matches!(prefix, Register::FS | Register::GS) { default } else { prefix }
}

fn address_size(instruction: &Instruction, bitness: u32) -> u8 {
    let register = match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, index) if !instruction.is_vsib() => index,
        (base, _) => base,
    };
    match register {
        Register::None => match instruction.memory_displ_size() {
            2 => 2,
            4 if bitness == 64 => 4,
            4 => 4,
            8 => 8,
            _ => (bitness / 8) as u8,
        },
        register => register.size() as u8,
    }
}

fn segment_of(segment: Register, bitness: u32, op: &mut Op) {
    let number = segment.number() as u8;
    if segment == Register::SS {
        op.flags |= op_flag::STACK;
    }
    if bitness == 64 {
        op.seg = if matches!(segment, Register::FS | Register::GS) { number } else { FLAT };
    } else {
        op.seg = number;
        op.flags |= op_flag::CHECKED;
    }
}

/// String instructions: RSI with a segment that prefixes change, RDI with ES.
fn implicit_operand(instruction: &Instruction, index: u32, bitness: u32, op: &mut Op) {
    let (size, is_source) = match instruction.op_kind(index) {
        OpKind::MemorySegSI => (2, true),
        OpKind::MemorySegESI => (4, true),
        OpKind::MemorySegRSI => (8, true),
        OpKind::MemorySegDI => (2, true),
        OpKind::MemorySegEDI => (4, true),
        OpKind::MemorySegRDI => (8, true),
        OpKind::MemoryESDI => (2, false),
        OpKind::MemoryESEDI => (4, false),
        _ => (8, false),
    };
    op.address_size = size;
    if is_source {
        segment_of(segment_in_force(instruction.memory_segment(), Register::DS, bitness), bitness, op);
    } else if bitness != 64 {
        op.flags |= op_flag::CHECKED;
    }
}

/// The width of the first operand that has one: what "operand size" means for most instructions.
fn operand_size(instruction: &Instruction) -> u8 {
    for index in 0..instruction.op_count() {
        match instruction.op_kind(index) {
            OpKind::Register => return instruction.op_register(index).size() as u8,
            OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI => {
                let size = instruction.memory_size().size();
                if size != 0 {
                    return size.min(64) as u8;
                }
            }
            _ => {}
        }
    }
    0
}
