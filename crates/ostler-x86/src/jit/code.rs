//! Host instructions as bytes: the few that translated code needs of its own.
//!
//! None of them changes a flag unless its name says so: the guest's flags are in the host's. None is PEXT or PDEP, which
//! are microcode of a hundred cycles and more on Zen and Zen 2.

use std::arch::x86_64::__cpuid;

/// Host registers by number.
pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RDX: u8 = 2;
pub const RBX: u8 = 3;
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;
pub const RDI: u8 = 7;
pub const R10: u8 = 10;
pub const R11: u8 = 11;
pub const R12: u8 = 12;
pub const R13: u8 = 13;
pub const R14: u8 = 14;
pub const R15: u8 = 15;

/// Whether LOOP that is not taken costs no more than other branches: on AMD's processors and Hygon's. On Intel's it is
/// microcode.
pub fn loop_is_fast() -> bool {
    let vendor = __cpuid(0);
    let of = |name: &[u8; 12]| {
        [vendor.ebx, vendor.edx, vendor.ecx].iter().flat_map(|word| word.to_le_bytes()).eq(name.iter().copied())
    };
    of(b"AuthenticAMD") || of(b"HygonGenuine")
}

/// A jump whose target is not known yet.
#[derive(Clone, Copy, Debug)]
pub struct Way(usize);

/// How much of a [`Code`] there is.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    bytes: usize,
    ways: usize,
    short: usize,
}

/// Code under construction for a known address.
///
/// Most look-ups find what they look for, so the branch behind one should not be taken then: a branch that is taken costs
/// some processors two cycles. No flag may be used, and JRCXZ jumps where there is no difference. LOOP is the branch that
/// falls through where RCX is 1; it only reaches 127 bytes, so the jumps that it leads to are placed in between
/// ([`Code::island`]).
#[derive(Debug)]
pub struct Code {
    start: u64,
    pub bytes: Vec<u8>,
    /// Look-ups end in LOOP.
    loops: bool,
    /// Where the 32-bit displacement of each way ends; 0 as long as it has none.
    ways: Vec<u64>,
    /// Those that are branched to but not placed: where the displacement of the branch ends, and which way.
    short: Vec<(usize, usize)>,
    /// A way was placed too far from its branch: this code is of no use.
    pub is_broken: bool,
}

/// How far LOOP reaches.
const REACH: usize = 127;
/// Bytes of a jump, and of one over others.
const JUMP_BYTES: usize = 5;
const SHORT_JUMP_BYTES: usize = 2;

impl Code {
    pub fn new(start: u64, loops: bool) -> Self {
        let bytes = Vec::with_capacity(1024);
        Self { start, bytes, loops, ways: Vec::new(), short: Vec::new(), is_broken: false }
    }

    /// What RCX is behind a look-up that found something, for [`Code::miss_unless_found`].
    pub fn found(&self) -> u8 {
        u8::from(self.loops)
    }

    /// Branches unless RCX is [`Code::found`].
    pub fn miss_unless_found(&mut self) -> Way {
        if !self.loops {
            self.skip_jump_if_rcx_zero();
            return self.way_later();
        }
        // loop
        self.put(&[0xe2, 0]);
        self.short.push((self.bytes.len(), self.ways.len()));
        self.ways.push(0);
        Way(self.ways.len() - 1)
    }

    /// A jump.
    pub fn way_later(&mut self) -> Way {
        let end = self.jump_later();
        self.ways.push(end);
        Way(self.ways.len() - 1)
    }

    /// Makes a way, which was placed, lead to `target`.
    pub fn lead(&mut self, way: Way, target: u64) {
        self.fix(self.ways[way.0], target);
    }

    /// Places the ways that are only branched to so far; `passed` where code runs through here.
    pub fn island(&mut self, passed: bool) {
        if self.short.is_empty() {
            return;
        }
        let over = passed.then(|| self.jump_short_later());
        for (end, way) in std::mem::take(&mut self.short) {
            let distance = self.bytes.len() - end;
            self.is_broken |= distance > REACH;
            self.bytes[end - 1] = distance as u8;
            self.ways[way] = self.jump_later();
        }
        if let Some(over) = over {
            self.is_broken |= self.bytes.len() - over > REACH;
            self.fix_short(over);
        }
    }

    /// Places ways here that would be out of reach after `coming` bytes with another two of them.
    pub fn island_before(&mut self, coming: usize) {
        let Some((first, _)) = self.short.first() else { return };
        let stubs = SHORT_JUMP_BYTES + JUMP_BYTES * (self.short.len() + 2);
        if self.bytes.len() - first + coming + stubs > REACH {
            self.island(true);
        }
    }

    pub fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), ways: self.ways.len(), short: self.short.len() }
    }

    /// Takes back what was emitted since `mark`, where no island was.
    pub fn back_to(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.ways.truncate(mark.ways);
        self.short.truncate(mark.short);
    }

    /// Where the next byte will run.
    pub fn here(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn put32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    pub fn align(&mut self, to: usize) {
        while !self.here().is_multiple_of(to as u64) {
            self.byte(0xcc);
        }
    }

    /// Makes the displacement that ends at `end` lead to `target`.
    pub fn fix(&mut self, end: u64, target: u64) {
        let at = (end - self.start) as usize - 4;
        let displacement = target.wrapping_sub(end) as u32;
        self.bytes[at..at + 4].copy_from_slice(&displacement.to_le_bytes());
    }

    /// `[rsp + offset]` as ModRM, SIB and displacement.
    fn context_operand(&mut self, reg: u8, offset: i32) {
        let reg = (reg & 7) << 3;
        if let Ok(short) = i8::try_from(offset) {
            self.put(&[0x44 | reg, 0x24, short as u8]);
        } else {
            self.put(&[0x84 | reg, 0x24]);
            self.put32(offset as u32);
        }
    }

    /// An opcode with REX.W, a register and `[rsp + offset]`.
    pub fn with_context(&mut self, opcode: &[u8], reg: u8, offset: i32) {
        self.byte(0x48 | reg >> 3 << 2);
        self.put(opcode);
        self.context_operand(reg, offset);
    }

    /// mov reg, [rsp + offset]
    pub fn load(&mut self, reg: u8, offset: i32) {
        self.with_context(&[0x8b], reg, offset);
    }

    /// mov [rsp + offset], reg
    pub fn store(&mut self, offset: i32, reg: u8) {
        self.with_context(&[0x89], reg, offset);
    }

    /// mov qword [rsp + offset], imm32
    pub fn store_immediate(&mut self, offset: i32, value: u32) {
        self.with_context(&[0xc7], 0, offset);
        self.put32(value);
    }

    /// mov to, from (64 bits)
    pub fn copy(&mut self, to: u8, from: u8) {
        self.put(&[0x48 | from >> 3 << 2 | to >> 3, 0x89, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    /// mov reg32, imm32
    pub fn set32(&mut self, reg: u8, value: u32) {
        if reg >= 8 {
            self.byte(0x41);
        }
        self.byte(0xb8 | reg & 7);
        self.put32(value);
    }

    /// mov reg, imm64, as short as it can be.
    pub fn set64(&mut self, reg: u8, value: u64) {
        if let Ok(small) = u32::try_from(value) {
            self.set32(reg, small);
        } else if let Ok(signed) = i32::try_from(value as i64) {
            self.put(&[0x48 | reg >> 3, 0xc7, 0xc0 | reg & 7]);
            self.put32(signed as u32);
        } else {
            self.put(&[0x48 | reg >> 3, 0xb8 | reg & 7]);
            self.put(&value.to_le_bytes());
        }
    }

    /// An opcode with a memory operand `[base + index << scale + disp]`; `base` may be absent.
    pub fn with_memory(&mut self, wide: bool, opcode: &[u8], reg: u8, memory: Memory) {
        let rex = memory.rex(reg) | u8::from(wide) << 3;
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        self.put(opcode);
        self.memory_operand(reg, memory);
    }

    /// ModRM, SIB and displacement of a memory operand.
    pub fn memory_operand(&mut self, reg: u8, memory: Memory) {
        let reg = (reg & 7) << 3;
        let Some(base) = memory.base else {
            let (index, scale) = memory.index.map_or((4, 0), |(index, scale)| (index & 7, scale));
            self.put(&[0x04 | reg, scale << 6 | index << 3 | 5]);
            self.put32(memory.disp as u32);
            return;
        };
        let short = i8::try_from(memory.disp);
        let mode = match (memory.disp, short) {
            (0, _) if base & 7 != RBP => 0x00,
            (_, Ok(_)) => 0x40,
            _ => 0x80,
        };
        if memory.index.is_some() || base & 7 == RSP {
            let (index, scale) = memory.index.map_or((4, 0), |(index, scale)| (index & 7, scale));
            self.put(&[mode | reg | 4, scale << 6 | index << 3 | base & 7]);
        } else {
            self.byte(mode | reg | base & 7);
        }
        match (mode, short) {
            (0x40, Ok(short)) => self.byte(short as u8),
            (0x80, _) => self.put32(memory.disp as u32),
            _ => {}
        }
    }

    /// lea reg, memory
    pub fn lea(&mut self, reg: u8, memory: Memory) {
        self.with_memory(true, &[0x8d], reg, memory);
    }

    /// mov reg, memory (64 bits)
    pub fn load_from(&mut self, reg: u8, memory: Memory) {
        self.with_memory(true, &[0x8b], reg, memory);
    }

    /// mov memory, reg (64 bits)
    pub fn store_to(&mut self, memory: Memory, reg: u8) {
        self.with_memory(true, &[0x89], reg, memory);
    }

    /// mov qword memory, imm32
    pub fn store_immediate_to(&mut self, memory: Memory, value: u32) {
        self.with_memory(true, &[0xc7], 0, memory);
        self.put32(value);
    }

    /// mov byte memory, imm8
    pub fn store_byte_to(&mut self, memory: Memory, value: u8) {
        self.with_memory(false, &[0xc6], 0, memory);
        self.byte(value);
    }

    /// rorx to, from, count: a rotation to the right.
    pub fn rotate(&mut self, to: u8, from: u8, count: u8) {
        // VEX.LZ.F2.0F3A.W1 F0 /r ib
        self.put(&[0xc4, (!to >> 3 & 1) << 7 | 0x40 | (!from >> 3 & 1) << 5 | 3, 0xfb, 0xf0]);
        self.put(&[0xc0 | (to & 7) << 3 | from & 7, count]);
    }

    /// movzx to32, from16
    pub fn low_16(&mut self, to: u8, from: u8) {
        if (to | from) >= 8 {
            self.byte(0x40 | to >> 3 << 2 | from >> 3);
        }
        self.put(&[0x0f, 0xb7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// shrx reg, reg, rsp: to the right by RSP modulo 64, which is by 12.
    pub fn page_number(&mut self, reg: u8) {
        self.shift_right(true, reg, reg, RSP);
    }

    /// shrx to, from, count
    pub fn shift_right(&mut self, wide: bool, to: u8, from: u8, count: u8) {
        // VEX.LZ.F2.0F38 F7 /r: vvvv has the count.
        self.put(&[0xc4, (!to >> 3 & 1) << 7 | 0x40 | (!from >> 3 & 1) << 5 | 2]);
        self.put(&[u8::from(wide) << 7 | (!count & 15) << 3 | 3, 0xf7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// Clears bit `bit` of a register: it is rotated to the top and shifted out.
    pub fn clear_bit(&mut self, reg: u8, bit: u8) {
        self.rotate(reg, reg, bit + 1);
        self.lea(reg, Memory::indexed(reg, reg));
        self.rotate(reg, reg, (64 - bit) & 63);
    }

    /// mov cl, value
    pub fn set_low_byte_of_rcx(&mut self, value: u8) {
        self.put(&[0xb1, value]);
    }

    /// not rcx, or not ecx
    pub fn not_rcx(&mut self, wide: bool) {
        if wide {
            self.byte(0x48);
        }
        self.put(&[0xf7, 0xd1]);
    }

    /// movzx reg32, byte memory
    pub fn load_byte(&mut self, reg: u8, memory: Memory) {
        self.with_memory(false, &[0x0f, 0xb6], reg, memory);
    }

    /// jrcxz over the five bytes of a jump that follows.
    pub fn skip_jump_if_rcx_zero(&mut self) {
        self.put(&[0xe3, 5]);
    }

    /// jrcxz to be fixed later, to at most 127 bytes further on: where its displacement ends.
    pub fn jrcxz_later(&mut self) -> usize {
        self.put(&[0xe3, 0]);
        self.bytes.len()
    }

    /// A short jmp to be fixed later, as [`Code::jrcxz_later`].
    pub fn jump_short_later(&mut self) -> usize {
        self.put(&[0xeb, 0]);
        self.bytes.len()
    }

    /// Makes the short displacement that ends at `end` lead here.
    pub fn fix_short(&mut self, end: usize) {
        self.bytes[end - 1] = (self.bytes.len() - end) as u8;
    }

    /// jmp target
    pub fn jump(&mut self, target: u64) {
        self.byte(0xe9);
        let end = self.here() + 4;
        self.put32(target.wrapping_sub(end) as u32);
    }

    /// A jump to be fixed later: where its displacement ends.
    pub fn jump_later(&mut self) -> u64 {
        self.byte(0xe9);
        self.put32(0);
        self.here()
    }

    /// Jcc to be fixed later.
    pub fn branch_later(&mut self, condition: u8) -> u64 {
        self.put(&[0x0f, 0x80 | condition]);
        self.put32(0);
        self.here()
    }

    pub fn call(&mut self, target: u64) {
        self.byte(0xe8);
        let end = self.here() + 4;
        self.put32(target.wrapping_sub(end) as u32);
    }

    /// jmp [rsp + offset]
    pub fn jump_through(&mut self, offset: i32) {
        self.byte(0xff);
        self.context_operand(4, offset);
    }

    /// paddq mm0, [rsp + offset]: counts without touching a flag or a register of the guest's.
    pub fn add_to_count(&mut self, offset: i32) {
        self.put(&[0x0f, 0xd4]);
        self.context_operand(0, offset);
    }

    /// psubq mm0, [rsp + offset]: the reverse.
    pub fn take_from_count(&mut self, offset: i32) {
        self.put(&[0x0f, 0xfb]);
        self.context_operand(0, offset);
    }
}

/// A memory operand of the host's.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub base: Option<u8>,
    /// Register, and log2 of the scale.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

impl Memory {
    pub fn at(base: u8, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp }
    }

    pub fn indexed(base: u8, index: u8) -> Self {
        Self { base: Some(base), index: Some((index, 0)), disp: 0 }
    }

    /// The R, X and B bits of REX.
    pub fn rex(&self, reg: u8) -> u8 {
        let index = self.index.map_or(0, |(index, _)| index);
        reg >> 3 << 2 | index >> 3 << 1 | self.base.unwrap_or(0) >> 3
    }
}
