//! One decoded block as host code.
//!
//! The hot path runs straight through; what is rare (misses, calls to Rust, jumps that are not
//! linked yet) follows at the end.

use iced_x86::{Decoder, DecoderOptions, EncodingKind, Instruction, InstructionInfoFactory, OpKind};

use crate::decode::block::Block;
use crate::decode::op::op_flag;
use crate::isa::{self, Native};
use crate::jit::code::{Code, Memory, Way};
use crate::jit::cold::{Cold, Misses};
use crate::jit::context::field;
use crate::jit::encoding::Encoding;
use crate::jit::guess::loads_target;
use crate::jit::key::Key;
use crate::jit::memory::Linear;
use crate::jit::near::{Range, Ranges};
use crate::jit::registers::{C, T};
use crate::jit::stubs::{ARRIVAL_BYTES, Stubs, arrive};
use crate::jit::transcode::reaches_beyond;

/// A jump to a block of the same page, which can be made to lead there directly.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Where its displacement ends.
    pub end: u64,
    /// Where it leads as long as it is not linked: to code that leaves, so that it will be.
    pub unlinked: u64,
    /// Where the displacement of the jump that does so ends.
    pub way_out: u64,
    /// Guest physical address of its target.
    pub target: u64,
}

/// What the whole of translated code provides.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    pub stubs: Stubs,
    pub key: Key,
    /// The number of the block, and of the next site.
    pub block: u32,
    pub site: u32,
    /// Where the block says that it runs; 0 for nowhere.
    pub place_word: u64,
    /// Whether look-ups are to end in LOOP: see [`Code`].
    pub loops: bool,
}

#[derive(Debug)]
pub(super) struct Translator<'a> {
    pub code: Code,
    pub around: Surroundings,
    pub block: &'a Block,
    /// Offset of the block in its page.
    pub offset: i64,
    /// The instruction under way, and the jumps of its code that lead to its [`Cold::CallOut`].
    pub op: usize,
    pub misses: Misses,
    pub cold: Vec<Cold>,
    pub sites: Vec<Site>,
    /// The guest's vector registers are known to be in the host's.
    vector_loaded: bool,
    /// Nothing runs into what follows.
    pub ended: bool,
    /// The instruction after the one under way is a jump.
    pub next_jumps: bool,
    /// The instruction after the one under way jumps to what it loads.
    pub loads_target: bool,
    /// The accesses that share look-ups, in the copy of the block where they do.
    ranges: Option<Ranges>,
    /// The last instruction that Rust ran, plus one: ranges that began before are stale.
    called_out: usize,
    /// Where the code of the last range's look-up ends.
    found_until: u64,
    /// Jumps to the careful copy of an instruction.
    pub escapes: Vec<(Way, usize)>,
    /// Where each instruction begins.
    starts: Vec<u64>,
    /// Where a jump back to the block itself leads, which has passed what is done once.
    pub again: Option<u64>,
}

/// A translated block.
#[derive(Debug)]
pub struct Translation {
    /// An arrival ([`super::stubs::arrive`]) ends at [`ENTRY`].
    pub bytes: Vec<u8>,
    pub sites: Vec<Site>,
}

/// Where the context keeps what a range was found at.
fn near(range: &Range) -> i32 {
    field!(near) + 8 * range.slot as i32
}

/// About how many bytes of code an instruction becomes at most.
fn expected_bytes(instruction: &Instruction) -> usize {
    let memory = (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory);
    match isa::row(instruction.mnemonic()).map_or(Native::Interpreted, |row| row.native) {
        Native::Branch if instruction.is_jcc_short_or_near() => 35,
        Native::Branch | Native::Stack if memory => 95,
        Native::Branch => 85,
        Native::Stack => 70,
        _ if memory => 65,
        _ => 20,
    }
}

/// Where in a translation its block begins.
pub const ENTRY: usize = 16;

/// Makes host code for `block`, to be put at `start`.
pub fn translate(block: &Block, around: Surroundings, start: u64, factory: &mut InstructionInfoFactory) -> Translation {
    let translator = translated(block, around, start, factory);
    if translator.code.is_broken {
        let translator = translated(block, Surroundings { loops: false, ..around }, start, factory);
        return translator.into();
    }
    translator.into()
}

fn translated<'a>(
    block: &'a Block,
    around: Surroundings,
    start: u64,
    factory: &mut InstructionInfoFactory,
) -> Translator<'a> {
    let mut translator = Translator::new(block, around, start);
    translator.code.bytes.resize(ENTRY - ARRIVAL_BYTES, 0xcc);
    arrive(&mut translator.code, translator.offset);
    translator.say_place();
    let instructions = translator.decode();
    let ranges = Ranges::of(&instructions, factory);
    translator.ranges = (!ranges.is_empty()).then_some(ranges);
    translator.copy(&instructions, factory);
    translator
}

/// Makes the careful copy of `block`, to be put at `start`, and where each of its instructions begins.
pub fn careful(
    block: &Block,
    around: Surroundings,
    start: u64,
    factory: &mut InstructionInfoFactory,
) -> (Translation, Vec<u64>) {
    // It runs rarely.
    let mut translator = Translator::new(block, Surroundings { loops: false, ..around }, start);
    let instructions = translator.decode();
    translator.copy(&instructions, factory);
    let starts = std::mem::take(&mut translator.starts);
    (translator.into(), starts)
}

impl From<Translator<'_>> for Translation {
    fn from(translator: Translator<'_>) -> Self {
        Self { bytes: translator.code.bytes, sites: translator.sites }
    }
}

impl<'a> Translator<'a> {
    fn new(block: &'a Block, around: Surroundings, start: u64) -> Self {
        Self {
            code: Code::new(start, around.loops),
            around,
            block,
            offset: (block.gpa & 0xfff) as i64,
            op: 0,
            misses: Misses::default(),
            cold: Vec::new(),
            sites: Vec::new(),
            vector_loaded: false,
            ended: false,
            next_jumps: false,
            loads_target: false,
            ranges: None,
            called_out: 0,
            found_until: 0,
            escapes: Vec::new(),
            starts: Vec::with_capacity(block.ops.len()),
            again: None,
        }
    }
}

impl Translator<'_> {
    /// Stores the block's linear address for who makes a profile.
    fn say_place(&mut self) {
        if self.around.place_word != 0 {
            self.load_linear(self.offset);
            self.code.set64(C, self.around.place_word);
            self.code.store_to(Memory::at(C, 0), T);
        }
    }

    /// The block's instructions. Addresses come out relative to the page: what is added at run time is the page's address.
    fn decode(&self) -> Vec<Instruction> {
        let options = DecoderOptions::FORCE_RESERVED_NOP;
        let mut decoder = Decoder::with_ip(64, &self.block.bytes, self.offset as u64, options);
        self.block.ops.iter().map(|_| decoder.decode()).collect()
    }

    /// Emits the block, with what it has cold behind it.
    fn copy(&mut self, instructions: &[Instruction], factory: &mut InstructionInfoFactory) {
        self.prepare_loop(instructions);
        self.instructions(instructions, factory);
        // The last instruction jumped.
        self.code.island(false);
        self.cold_paths();
        self.escape();
    }

    /// Does what a loop of one block needs to have done once before its first instruction.
    fn prepare_loop(&mut self, instructions: &[Instruction]) {
        let loops = instructions
            .last()
            .is_some_and(|last| last.is_jcc_short_or_near() && last.near_branch_target() as i64 == self.offset);
        if loops && instructions.iter().any(|instruction| self.is_vector(instruction)) {
            self.ensure_vector();
        }
        self.again = loops.then(|| self.code.here());
    }

    /// Whether the instruction becomes one that works on the host's vector registers.
    fn is_vector(&self, instruction: &Instruction) -> bool {
        let native = isa::row(instruction.mnemonic()).map_or(Native::Interpreted, |row| row.native);
        matches!(native, Native::Vector | Native::Float) && self.may_run(instruction, native)
    }

    fn instructions(&mut self, instructions: &[Instruction], factory: &mut InstructionInfoFactory) {
        let mut at = 0;
        let count = self.block.ops.len();
        for (index, instruction) in instructions.iter().enumerate() {
            let op = &self.block.ops[index];
            let bytes = &self.block.bytes[at..at + usize::from(op.len)];
            at += usize::from(op.len);
            self.op = index;
            let next = instructions.get(index + 1).and_then(|next| isa::row(next.mnemonic()));
            self.loads_target = loads_target(instruction, instructions.get(index + 1));
            self.next_jumps = next.is_some_and(|row| row.native == Native::Branch);
            self.code.island_before(expected_bytes(instruction));
            let here = self.code.here();
            self.starts.push(here);
            self.look_up_range();
            let known = !op.has(op_flag::UNDEFINED | op_flag::OLDER);
            let native = known && self.native(instruction, bytes, factory);
            if !native {
                self.call_out();
                self.called_out = index + 1;
            }
            self.flush_misses();
            if index + 1 == count && !self.ended {
                // What ends a block without jumping may have changed what follows.
                self.end(!native);
            }
        }
    }

    /// Emits the instruction as host code; false, and nothing emitted, when Rust has to run it.
    fn native(&mut self, instruction: &Instruction, bytes: &[u8], factory: &mut InstructionInfoFactory) -> bool {
        let Some(row) = isa::row(instruction.mnemonic()) else { return false };
        if row.native == Native::Interpreted {
            return false;
        }
        let Some(encoding) = Encoding::parse(bytes) else { return false };
        let (mark, before) = (self.code.mark(), (self.cold.len(), self.sites.len(), self.vector_loaded));
        let done = match row.native {
            Native::Interpreted => None,
            Native::Nothing => Some(()),
            Native::Plain if instruction.op_count() == 0 => {
                // What it works on, if anything, is at home: the flags, RAX and RDX.
                self.code.put(bytes);
                Some(())
            }
            Native::Plain if reaches_beyond(instruction) => self.bit_string(instruction, &encoding),
            Native::Plain => self.transcode(instruction, &encoding, factory),
            Native::Vector | Native::Float => self.vector(instruction, &encoding, factory, row.native),
            Native::Address => self.load_address(instruction),
            Native::Divide => self.divide(instruction, &encoding),
            Native::Stack => self.stack(instruction, &encoding),
            Native::Branch => self.branch(instruction, &encoding),
            Native::System => self.system(instruction),
            Native::Pair => self.exchange_pair(instruction),
        };
        if done.is_none() {
            self.code.back_to(mark);
            self.cold.truncate(before.0);
            self.sites.truncate(before.1);
            self.vector_loaded = before.2;
            self.misses.clear();
            self.ended = false;
        }
        done.is_some()
    }

    fn vector(
        &mut self,
        instruction: &Instruction,
        encoding: &Encoding<'_>,
        factory: &mut InstructionInfoFactory,
        native: Native,
    ) -> Option<()> {
        if !self.may_run(instruction, native) {
            return None;
        }
        self.ensure_vector();
        self.transcode(instruction, encoding, factory)
    }

    /// Whether the host may run the vector instruction as itself.
    fn may_run(&self, instruction: &Instruction, native: Native) -> bool {
        let key = self.around.key;
        let usable = if instruction.code().encoding() == EncodingKind::Legacy { key.sse() } else { key.avx() };
        usable && (native != Native::Float || key.exceptions_masked()) && crate::exec::vector::host_has(instruction)
    }

    /// Looks up the range that begins with the instruction under way, if one does.
    fn look_up_range(&mut self) {
        let Some(range) = self.ranges.as_ref().and_then(|ranges| ranges.of_op(self.op)).copied() else { return };
        if range.head != self.op {
            return;
        }
        let address = Linear { base: range.base, disp: range.low as i32 };
        let miss = self.look_up_bytes(address, range.write, (range.high - range.low) as i32);
        self.escapes.push((miss, self.op));
        self.code.store(near(&range), C);
        self.found_until = self.code.here();
    }

    /// The access of the instruction under way, at `offset` from the range's register, if it was looked up before: C
    /// is part of its address.
    pub fn found_near(&mut self, offset: i32) -> Option<Memory> {
        let range = self.ranges.as_ref()?.of_op(self.op).copied()?;
        if range.head < self.called_out {
            return None;
        }
        // Right behind the look-up, C still is what was found.
        if self.code.here() != self.found_until {
            self.code.load(C, near(&range));
        }
        Some(Memory { base: Some(C), index: Some((range.base, 0)), disp: offset })
    }

    fn ensure_vector(&mut self) {
        if self.vector_loaded {
            return;
        }
        self.vector_loaded = true;
        self.code.load(C, field!(vector_absent));
        self.code.skip_jump_if_rcx_zero();
        self.code.call(self.around.stubs.load_vector);
    }

    pub fn site_of_op(&self, op: usize) -> u32 {
        self.around.block << 6 | op as u32
    }

    /// Runs the instruction in Rust unless C is zero.
    pub fn miss_unless_rcx_zero(&mut self) {
        self.code.skip_jump_if_rcx_zero();
        let miss = self.code.way_later();
        self.misses.jumps.push(miss);
    }

    /// Has what missed so far run the instruction in Rust, and go on here.
    pub fn flush_misses(&mut self) {
        if !self.misses.is_empty() {
            let last = self.op + 1 == self.block.ops.len();
            let resume = (last || self.ranges.is_none()).then(|| self.code.here());
            self.cold.push(Cold::CallOut { from: std::mem::take(&mut self.misses), op: self.op, resume });
        }
    }

    /// Runs the instruction in Rust.
    fn call_out(&mut self) {
        let site = self.site_of_op(self.op);
        self.code.set32(C, site);
        self.code.call(self.around.stubs.call_out);
    }

    /// Emits what follows the last instruction when it does not jump.
    fn end(&mut self, look_up: bool) {
        self.add_to_count(self.block.ops.len());
        let next = self.offset + i64::from(self.block.len);
        if look_up {
            self.load_linear(next);
            self.code.jump(self.around.stubs.leave);
        } else {
            self.go_on(next);
        }
    }

    /// Goes on at `target`, an offset from the page: linked if it is in the page.
    pub fn go_on(&mut self, target: i64) {
        if (0..0x1000).contains(&target) {
            self.link(target);
        } else {
            self.load_linear(target);
            self.code.jump(self.around.stubs.jump[self.around.key.bank()]);
        }
    }

    /// A jump within the page.
    pub fn link(&mut self, target: i64) {
        let end = self.code.jump_later();
        self.add_site(end, target);
    }

    /// Makes the jump whose displacement ends at `end` one that can be linked.
    pub fn add_site(&mut self, end: u64, target: i64) {
        self.cold.push(Cold::Unlinked { site: self.sites.len() });
        self.sites.push(Site { end, unlinked: 0, way_out: 0, target: (self.block.gpa & !0xfff) + target as u64 });
    }

    /// The linear address of an offset from the page, in T.
    pub fn load_linear(&mut self, target: i64) {
        self.code.load(T, field!(page_base));
        // Branch displacements and offsets in a block are far below 2 GiB together, but for the very last ones.
        match i32::try_from(target) {
            Ok(disp) => self.code.lea(T, Memory::at(T, disp)),
            Err(_) => {
                self.code.set64(C, target as u64);
                self.code.lea(T, Memory::indexed(T, C));
            }
        }
    }

    pub fn add_to_count(&mut self, instructions: usize) {
        if instructions != 0 {
            self.code.add_to_count(field!(counts) + 8 * instructions as i32);
        }
    }

    pub fn take_from_count(&mut self, instructions: usize) {
        self.code.take_from_count(field!(counts) + 8 * instructions as i32);
    }

    /// Looks at the signals: a jump to be fixed, which is taken when one is raised. Uses C.
    pub fn look_at_signals(&mut self) -> usize {
        self.code.load(C, field!(signals));
        // mov ecx, [rcx]
        self.code.put(&[0x8b, 0x09]);
        self.code.jrcxz_later()
    }

    /// Where `raised` of [`Translator::look_at_signals`] leads: leaves, with `target` as RIP, when `instructions` of the
    /// block were not counted yet. Nothing runs into it.
    pub fn leave_for_signals(&mut self, raised: usize, instructions: usize, target: i64) {
        self.code.fix_short(raised);
        self.add_to_count(instructions);
        self.load_linear(target);
        self.code.jump(self.around.stubs.leave);
    }
}
