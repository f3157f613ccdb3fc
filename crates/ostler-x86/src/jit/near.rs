//! Which accesses of a block share one look-up in the TLB.
//!
//! Accesses at constant distances from one register are mostly in one page: a function's frame, a structure. The
//! first of them looks up the whole range; the others use what it found. Where the range is not in one page that
//! may be accessed, the block goes on in a careful copy of itself, which looks each access up and is made when it is first
//! needed. So it does after any miss that called Rust, which may change translations: between two calls, nothing does.

use iced_x86::{Code, EncodingKind, Instruction, InstructionInfo, InstructionInfoFactory, OpAccess, OpKind, Register};

use crate::host::stub::must_be_aligned;
use crate::isa::{self, Native};
use crate::jit::context::NEAR;
use crate::jit::memory::address_is_narrow;
use crate::jit::registers::{Home, home};
use crate::jit::transcode::reaches_beyond;

/// Bytes from the first to the last of a range: longer ones cross a page too often.
const REACH: i64 = 256;
const RSP: usize = 4;

/// Accesses that are looked up as one.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The host register that they are relative to.
    pub base: u8,
    /// The first and the last access.
    pub head: usize,
    last: usize,
    accesses: u32,
    /// From `base` as it is before the first one.
    pub low: i64,
    pub high: i64,
    pub write: bool,
    /// Where the context keeps what was found.
    pub slot: usize,
}

/// An access in a range.
#[derive(Clone, Copy, Debug)]
struct Access {
    base: usize,
    /// From the register as it is before the instruction.
    offset: i64,
    bytes: i64,
    write: bool,
}

/// The ranges of a block.
#[derive(Debug, Default)]
pub struct Ranges {
    ranges: Vec<Range>,
    /// The range of each instruction's access.
    of_op: Vec<Option<usize>>,
}

/// Ranges that may go on, by guest register: their number, and what was added to the register since they began.
type Open = [Option<(usize, i64)>; 16];

impl Ranges {
    /// The ranges worth having in a block of these instructions.
    pub fn of(instructions: &[Instruction], factory: &mut InstructionInfoFactory) -> Self {
        let mut found = Self { ranges: Vec::new(), of_op: vec![None; instructions.len()] };
        let mut open = Open::default();
        for (op, instruction) in instructions.iter().enumerate() {
            let native = isa::row(instruction.mnemonic()).map_or(Native::Interpreted, |row| row.native);
            let info = factory.info(instruction);
            if let Some(access) = access(instruction, native, info) {
                found.add(op, access, &mut open);
            }
            if native == Native::Interpreted {
                open = Open::default();
            }
            follow(instruction, info, &mut open);
        }
        found.keep_shared();
        found
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The range that instruction `op` has its access in.
    pub fn of_op(&self, op: usize) -> Option<&Range> {
        self.of_op[op].map(|range| &self.ranges[range])
    }

    fn add(&mut self, op: usize, access: Access, open: &mut Open) {
        if let Some((number, moved)) = open[access.base] {
            let range = &mut self.ranges[number];
            let low = range.low.min(moved + access.offset);
            let high = range.high.max(moved + access.offset + access.bytes);
            if high - low <= REACH && i32::try_from(low).is_ok() {
                (range.low, range.high, range.last) = (low, high, op);
                range.write |= access.write;
                range.accesses += 1;
                self.of_op[op] = Some(number);
                return;
            }
        }
        let Home::Host(base) = home(access.base as u8) else { return };
        open[access.base] = Some((self.ranges.len(), 0));
        self.of_op[op] = Some(self.ranges.len());
        let (low, high) = (access.offset, access.offset + access.bytes);
        self.ranges.push(Range { base, head: op, last: op, accesses: 1, low, high, write: access.write, slot: 0 });
    }

    /// Drops ranges of one access, and those for which the context has no room; gives the others theirs.
    fn keep_shared(&mut self) {
        let mut free_after = [None; NEAR];
        let mut kept = vec![None; self.ranges.len()];
        let mut ranges = Vec::new();
        for (number, range) in self.ranges.iter().enumerate().filter(|(_, range)| range.accesses > 1) {
            let slot = free_after.iter().position(|last| last.is_none_or(|last| last < range.head));
            if let Some(slot) = slot {
                free_after[slot] = Some(range.last);
                kept[number] = Some(ranges.len());
                ranges.push(Range { slot, ..*range });
            }
        }
        self.ranges = ranges;
        self.of_op.iter_mut().for_each(|range| *range = range.and_then(|range| kept[range]));
    }
}

/// The instruction's access, if it is one that may share a look-up.
fn access(instruction: &Instruction, native: Native, info: &InstructionInfo) -> Option<Access> {
    match native {
        Native::Stack | Native::Branch => stack_access(instruction),
        Native::Plain | Native::Vector | Native::Float if !reaches_beyond(instruction) => {
            memory_access(instruction, info)
        }
        _ => None,
    }
}

fn stack_access(instruction: &Instruction) -> Option<Access> {
    let write = match instruction.code() {
        Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Call_rel32_64 => true,
        Code::Call_rm64 if instruction.op0_kind() == OpKind::Register => true,
        Code::Pop_r64 | Code::Retnq | Code::Retnq_imm16 => false,
        _ => return None,
    };
    Some(Access { base: RSP, offset: if write { -8 } else { 0 }, bytes: 8, write })
}

fn memory_access(instruction: &Instruction, info: &InstructionInfo) -> Option<Access> {
    let mut operands = (0..instruction.op_count()).filter(|op| instruction.op_kind(*op) == OpKind::Memory);
    let (operand, None) = (operands.next()?, operands.next()) else { return None };
    let base = instruction.memory_base();
    let plain = base.is_gpr64() && instruction.memory_index() == Register::None && !address_is_narrow(instruction);
    if !plain || matches!(instruction.memory_segment(), Register::FS | Register::GS) {
        return None;
    }
    let bytes = u8::try_from(instruction.memory_size().size()).ok().filter(|bytes| (1..=32).contains(bytes))?;
    if must_be_aligned(instruction, bytes, instruction.code().encoding() != EncodingKind::Legacy) {
        return None;
    }
    let offset = i64::from(i32::try_from(instruction.memory_displacement64() as i64).ok()?);
    let write = !matches!(info.op_access(operand), OpAccess::Read | OpAccess::CondRead);
    Some(Access { base: base.number(), offset, bytes: bytes.into(), write })
}

/// Notes what the instruction does to the registers of open ranges.
fn follow(instruction: &Instruction, info: &InstructionInfo, open: &mut Open) {
    let moved = moved(instruction);
    for used in info.used_registers() {
        let register = used.register();
        if !register.is_gpr() || matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
            continue;
        }
        let number = register.full_register().number();
        open[number] = match (open[number], moved) {
            (Some((range, before)), Some((of, by))) if of == number => Some((range, before + by)),
            _ => None,
        };
    }
}

/// The register to which the instruction adds a constant, if that is all it does to it.
fn moved(instruction: &Instruction) -> Option<(usize, i64)> {
    let register = instruction.op0_register();
    let by = match instruction.code() {
        Code::Pop_r64 if register == Register::RSP => return None,
        Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Push_rm64 | Code::Pop_r64 => {
            return Some((RSP, i64::from(instruction.stack_pointer_increment())));
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32 => instruction.immediate(1) as i64,
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_RAX_imm32 => {
            (instruction.immediate(1) as i64).checked_neg()?
        }
        Code::Inc_rm64 => 1,
        Code::Dec_rm64 => -1,
        Code::Lea_r64_m if instruction.memory_base() == register && instruction.memory_index() == Register::None => {
            instruction.memory_displacement64() as i64
        }
        _ => return None,
    };
    (register.is_gpr64() && !address_is_narrow(instruction)).then(|| (register.number(), by))
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    /// The ranges of a block, each as its accesses and what they span.
    fn ranges(write: impl FnOnce(&mut CodeAssembler)) -> Vec<(Vec<usize>, i64, i64, bool)> {
        let mut assembler = CodeAssembler::new(64).expect("64 bits");
        write(&mut assembler);
        let bytes = assembler.assemble(0).expect("code");
        let instructions: Vec<Instruction> = Decoder::new(64, &bytes, DecoderOptions::NONE).into_iter().collect();
        let found = Ranges::of(&instructions, &mut InstructionInfoFactory::new());
        let of = |number: usize| (0..instructions.len()).filter(|op| found.of_op[*op] == Some(number)).collect();
        (0..found.ranges.len())
            .map(|number| {
                let Range { low, high, write, .. } = found.ranges[number];
                (of(number), low, high, write)
            })
            .collect()
    }

    #[test]
    fn frame_is_one_range_from_its_first_push_to_the_call() {
        let found = ranges(|a| {
            a.push(rbp).unwrap();
            a.push(rbx).unwrap();
            a.sub(rsp, 24).unwrap();
            a.mov(eax, dword_ptr(rsp + 8)).unwrap();
            a.call(0x100).unwrap();
        });
        assert_eq!(found, [(vec![0, 1, 3, 4], -48, 0, true)]);
    }

    #[test]
    fn range_ends_where_its_register_changes_by_what_is_not_known() {
        let found = ranges(|a| {
            a.mov(rcx, qword_ptr(rax)).unwrap();
            a.mov(rax, qword_ptr(rax + 8)).unwrap();
            a.mov(rcx, qword_ptr(rax + 16)).unwrap();
            a.add(rax, 64).unwrap();
            a.add(rdx, qword_ptr(rax)).unwrap();
            a.mov(ax, 1).unwrap();
            a.mov(rdx, qword_ptr(rax)).unwrap();
        });
        assert_eq!(found, [(vec![0, 1], 0, 16, false), (vec![2, 4], 16, 72, false)]);
    }

    #[test]
    fn call_to_rust_ends_all_ranges() {
        let found = ranges(|a| {
            a.mov(rcx, qword_ptr(rax)).unwrap();
            a.invlpg(byte_ptr(rax)).unwrap();
            a.mov(rcx, qword_ptr(rax)).unwrap();
        });
        assert_eq!(found, []);
    }

    #[test]
    fn accesses_far_apart_or_aligned_or_indexed_are_looked_up_alone() {
        let found = ranges(|a| {
            a.mov(rcx, qword_ptr(rax)).unwrap();
            a.mov(rcx, qword_ptr(rax + 0x1000)).unwrap();
            a.movaps(xmm0, xmmword_ptr(rbx)).unwrap();
            a.movups(xmm0, xmmword_ptr(rbx + 16)).unwrap();
            a.mov(rcx, qword_ptr(rdx + rcx)).unwrap();
            a.mov(rcx, qword_ptr(rdx)).unwrap();
            a.mov(rcx, qword_ptr(rsi).gs()).unwrap();
            a.mov(rcx, qword_ptr(rsi)).unwrap();
        });
        assert_eq!(found, []);
    }

    #[test]
    fn no_more_ranges_are_open_at_a_time_than_the_context_has_room_for() {
        let bases = [rax, rbx, rdx, rsi, rdi, r8];
        let found = ranges(|a| {
            for offset in [0, 8] {
                bases.into_iter().for_each(|base| a.inc(qword_ptr(base + offset)).unwrap());
            }
        });
        assert_eq!(found.len(), NEAR);
    }
}
