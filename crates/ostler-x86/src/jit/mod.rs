//! The translator: hot blocks as host code.
//!
//! The guest speaks the host's language, so an instruction becomes itself, its registers renamed
//! and its memory operand replaced by a host address. Guest flags are the host's. What is not
//! transcoded calls the interpreter's semantic function in the middle of the block.
//!
//! * [`translate`]: one block; [`cold`]: what is behind it; [`transcode`], [`divide`], [`stack`], [`branch`], [`memory`],
//!   [`bits`], [`system`]: its instructions; [`encoding`]: a guest instruction's fields; [`code`]: the host's;
//! * [`registers`]: which host register is which guest register; [`context`]: what is in memory;
//! * [`near`]: which memory operands are looked up together; [`guess`]: which are expected where they were;
//! * [`stubs`]: the way in and out; [`run`]: Rust's side of it;
//! * [`links`]: which jumps lead where; [`arena`]: the memory code lives in;
//! * [`key`]: what code was translated for.

pub mod arena;
mod bits;
mod branch;
mod code;
mod cold;
pub mod context;
mod divide;
mod encoding;
mod guess;
mod key;
pub mod links;
mod memory;
mod near;
mod registers;
mod run;
mod stack;
mod stubs;
mod system;
mod transcode;
mod translate;

use std::collections::HashMap;

use iced_x86::InstructionInfoFactory;

use crate::decode::block::{Block, CodeCache};
use crate::jit::arena::Arena;
use crate::jit::code::{Code, loop_is_fast};
use crate::jit::stubs::Stubs;
use crate::jit::translate::{Site, Surroundings};

pub use key::Key;

/// Banks of the table of jumps: one per [`crate::mmu::Privilege`] for which code is translated.
pub const BANKS: usize = 3;

/// Executions of a block by the interpreter before it is translated.
const THRESHOLD: u32 = 12;
/// A block's number and an instruction's index share 32 bits with a site's.
const MAX_BLOCKS: usize = 1 << 24;

/// When code is translated, where the host is fit for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Translate {
    Never,
    /// When it has run a few times.
    #[default]
    WhenHot,
    /// Before it runs: for tests.
    Eagerly,
}

/// How translated code was left: [`context::Context::exit`].
pub(crate) mod exit {
    /// RIP is in the context; look up what is there.
    pub const JUMP: u32 = 0;
    /// A call to Rust stopped with [`super::Jit::stop`].
    pub const STOPPED: u32 = 1;
    /// The block goes on in its careful copy.
    pub const CAREFUL: u32 = 2;
}

/// What happened, for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Blocks translated, and the nanoseconds that took.
    pub translations: u64,
    pub translation_ns: u64,
    /// Entries into translated code, and calls out of it.
    pub entries: u64,
    pub call_outs: u64,
    /// Jumps that were made to lead straight to their target.
    pub links: u64,
    /// Careful copies of blocks.
    pub careful: u64,
    /// Times all code was dropped because the memory for it was full.
    pub flushes: u64,
}

/// The translator of one vCPU.
pub struct Jit {
    pub enabled: bool,
    pub threshold: u32,
    pub statistics: Statistics,
    arena: Option<Arena>,
    stubs: Stubs,
    /// Bytes of the arena that the stubs take.
    stub_bytes: usize,
    /// Translated blocks by number.
    blocks: Vec<*const Block>,
    sites: Vec<Site>,
    /// Where each instruction of careful copies begins, by the block's number.
    careful: HashMap<u32, Vec<u64>>,
    noted: links::Noted,
    /// What the code that each bank of the table leads to was translated for.
    bank_keys: [Key; BANKS],
    /// The generation of translations of linear addresses that the table of jumps belongs to.
    generation: u64,
    factory: InstructionInfoFactory,
    /// Why a call to Rust stopped.
    stop: crate::cpu::stop::Stop,
    /// What the running code was translated for.
    key: Key,
    /// Where blocks say that they run, for a profile; 0 when there is none.
    place_word: u64,
    /// [`loop_is_fast`]
    loops: bool,
}

impl std::fmt::Debug for Jit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Jit").field("enabled", &self.enabled).field("statistics", &self.statistics).finish()
    }
}

// SAFETY: `blocks` point into the code cache of the same vCPU and are only used by its thread.
unsafe impl Send for Jit {}

/// Whether translated code runs on this host: x86-64 with AVX2, BMI2 and the rest of x86-64-v3.
pub fn host_is_fit() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("movbe")
        && is_x86_feature_detected!("sse4.2")
}

impl Jit {
    pub fn new(when: Translate) -> Self {
        Self {
            enabled: when != Translate::Never && host_is_fit(),
            threshold: if when == Translate::Eagerly { 1 } else { THRESHOLD },
            statistics: Statistics::default(),
            arena: None,
            stubs: Stubs::default(),
            stub_bytes: 0,
            blocks: Vec::new(),
            sites: Vec::new(),
            careful: HashMap::new(),
            noted: links::Noted::default(),
            bank_keys: [Key::default(); BANKS],
            generation: 0,
            factory: InstructionInfoFactory::new(),
            stop: crate::cpu::stop::Stop::EndBlock,
            key: Key::default(),
            place_word: 0,
            loops: loop_is_fast(),
        }
    }

    /// Has blocks say in the word at this address that they run; those that do not are dropped.
    pub fn publish(&mut self, context: &mut context::Context, code: &CodeCache, place_word: u64) {
        self.place_word = place_word;
        self.drop_all(context, code);
    }

    /// Makes the arena and the stubs at the first use; turns the translator off where that fails.
    fn prepare(&mut self) -> bool {
        if self.arena.is_some() {
            return true;
        }
        let Ok(mut arena) = Arena::new() else {
            self.enabled = false;
            return false;
        };
        let mut code = Code::new(arena.next(), loop_is_fast());
        self.stubs = stubs::emit(&mut code);
        arena.append(&code.bytes);
        self.stub_bytes = arena.used();
        self.arena = Some(arena);
        true
    }

    /// Whether look-ups of the next block end in LOOP; in tests, both kinds of blocks are there on any host.
    fn loops(&self) -> bool {
        if self.threshold == 1 { self.blocks.len() % 2 == 1 } else { self.loops }
    }

    /// Translates `block` for `key`; false when the memory for code is full.
    fn translate(&mut self, block: &Block, key: Key) -> bool {
        if !self.prepare() {
            return true;
        }
        let loops = self.loops();
        let Some(arena) = &mut self.arena else { return true };
        if self.blocks.len() >= MAX_BLOCKS {
            return false;
        }
        let began = std::time::Instant::now();
        let around = Surroundings {
            stubs: self.stubs,
            key,
            block: self.blocks.len() as u32,
            site: self.sites.len() as u32,
            place_word: self.place_word,
            loops,
        };
        let start = arena.next();
        let translation = translate::translate(block, around, start, &mut self.factory);
        if !arena.append(&translation.bytes) {
            return false;
        }
        self.blocks.push(block);
        self.sites.extend(translation.sites);
        block.translated.set(start + translate::ENTRY as u64, key);
        self.statistics.translations += 1;
        self.statistics.translation_ns += began.elapsed().as_nanos() as u64;
        true
    }

    /// Where instruction `op` of block `number` begins in its careful copy, to which the jump that ends at `end` is made to
    /// lead; `None` when the memory for code is full.
    fn careful(&mut self, number: u32, op: usize, end: u64) -> Option<u64> {
        let arena = self.arena.as_mut()?;
        if !self.careful.contains_key(&number) {
            // SAFETY: the block's code was running, so it was not buried.
            let block = unsafe { &*self.blocks[number as usize] };
            let site = self.sites.len() as u32;
            let (stubs, key, place_word) = (self.stubs, self.key, self.place_word);
            let around = Surroundings { stubs, key, block: number, site, place_word, loops: false };
            let (copy, starts) = translate::careful(block, around, arena.next(), &mut self.factory);
            if !arena.append(&copy.bytes) {
                return None;
            }
            self.sites.extend(copy.sites);
            self.careful.insert(number, starts);
            self.statistics.careful += 1;
        }
        let start = *self.careful.get(&number)?.get(op)?;
        arena.patch_jump(end, start);
        Some(start)
    }
}
