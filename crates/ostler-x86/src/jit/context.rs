//! What translated code and Rust share: one allocation that the host's RSP points into.
//!
//! While translated code runs, RSP is the address of [`Context`] plus [`BIAS`], so that every field is one
//! `[rsp + offset]` away and no general register is spent on it. Below it lies room for what the
//! kernel pushes when a signal arrives. The TLB's tables live here, too: they are looked up in line, by the low 16
//! bits of a page number or an address. Their invalid entries are zero but for a few, so that what a guest does not
//! use takes no memory.

use std::alloc::Layout;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU32;

use crate::cpu::Cpu;
use crate::cpu::vector::MXCSR_RESET;
use crate::host::zeros::ZeroPages;

/// RSP modulo 64: a shift by the low byte of RSP is one by as many bits as a page has, without a register for it.
pub const BIAS: usize = PAGE_SHIFT;
const PAGE_SHIFT: usize = 12;
/// TLB entries per bank: what 16 bits index. Direct-mapped; 256 MiB of 4 KiB pages.
pub const TLB_ENTRIES: usize = 1 << 16;
/// One bank per [`crate::mmu::Privilege`].
pub const TLB_BANKS: usize = 4;
/// Entries of the table of jump targets, per bank: what 16 bits of an address index.
pub const JUMP_ENTRIES: usize = 1 << 16;
/// Instructions of one block at most, plus one: what a block's exit may add to the count.
const COUNTS: usize = crate::decode::block::MAX_OPS + 1;
/// Room for a signal frame with all of the host's vector state, and for its handler.
const STACK_BYTES: usize = 256 * 1024;

/// One bank of translations: parallel arrays, so that an index scales by 8.
///
/// `read` and `write` hold the negated linear page, so that adding an address gives its offset in
/// the page on a hit, and at least a page's size on a miss; an invalid entry holds a page that
/// cannot be looked up at its index.
#[derive(Debug)]
#[repr(C)]
pub struct TlbBank {
    pub read: [u64; TLB_ENTRIES],
    pub write: [u64; TLB_ENTRIES],
    /// Host address minus linear address.
    pub addend: [u64; TLB_ENTRIES],
}

/// Where translated code goes on by linear address.
#[derive(Debug)]
#[repr(C)]
pub struct JumpBank {
    /// The negated address.
    pub target: [u64; JUMP_ENTRIES],
    pub entry: [u64; JUMP_ENTRIES],
}

/// Pages of a bank that translated code may store to although some of their lines are watched; by the low bits of
/// the page number.
pub const SPARED: usize = 64;

/// See [`crate::mmu::spared`].
#[derive(Debug)]
#[repr(C)]
pub struct SparedBank {
    /// The linear page.
    pub page: [u64; SPARED],
    /// Its lines that may not be stored to.
    pub lines: [u64; SPARED],
}

/// Guesses per bank: a block has the one at its number's low bits.
pub const GUESSES: usize = 64;

/// See [`crate::mmu::guesses`].
#[derive(Debug)]
#[repr(C)]
pub struct GuessBank {
    /// What an address turned right by three is shifted by to be the number of its page.
    pub shift: [u64; GUESSES],
    /// The page's number, all bits inverted.
    pub number: [u64; GUESSES],
    /// Host address minus linear address.
    pub addend: [u64; GUESSES],
}

/// Ranges of a block that are in use at a time.
pub const NEAR: usize = 4;

/// See the module.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Context {
    /// What a call pushes in translated code goes here.
    below: [u64; 2],
    /// The guest registers that have no host register: R10, R11, R15.
    pub registers: [u64; 3],
    /// Linear address of the page of the running block.
    pub page_base: u64,
    /// What [`super::near`] found: host address minus linear address.
    pub near: [u64; NEAR],
    /// [`crate::signals::Signals`]' word: 0 when translated code has to be left.
    pub signals: *const AtomicU32,
    /// Zero while the guest's vector registers are in the host's.
    pub vector_absent: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub scratch: u64,
    /// The jump that could be linked to what follows, plus one; 0 for none.
    pub site: u64,
    /// LAHF's byte in bits 8..16, OF in bit 0.
    pub flags: u64,
    pub resume: u64,
    pub saved_rax: u64,
    pub saved_t: u64,
    /// The instruction whose careful copy is needed.
    pub careful: u64,
    /// Instructions retired since translated code was entered.
    pub count: u64,
    /// RIP after an exit.
    pub rip: u64,
    pub cpu: *mut Cpu,
    /// The guest's register file.
    pub file: *mut u64,
    /// YMM0..YMM15.
    pub vector: *mut u8,
    pub mxcsr: *mut u32,
    pub host_mxcsr: u64,
    pub host_rsp: u64,
    pub entry: u64,
    pub call_out: u64,
    /// How translated code was left: see [`super::run`].
    pub exit: u64,
    /// `counts[n]` is `n`.
    pub counts: [u64; COUNTS],
    pub tlb: [TlbBank; TLB_BANKS],
    pub jumps: [JumpBank; super::BANKS],
    pub spared: [SparedBank; super::BANKS],
    pub guesses: [GuessBank; super::BANKS],
    /// Not 0 when a guess was made.
    pub guessed: u64,
}

#[repr(C, align(64))]
struct Allocation {
    stack: [u8; STACK_BYTES],
    context: Context,
}

/// The offset of a field from RSP.
macro_rules! field {
    ($($name:tt)+) => {
        std::mem::offset_of!(crate::jit::context::Context, $($name)+) as i32 - crate::jit::context::BIAS as i32
    };
}
pub(crate) use field;

/// Offsets of the arrays of a bank from RSP.
pub fn tlb_read(bank: usize) -> i32 {
    (offset_of!(Context, tlb) + bank * size_of::<TlbBank>() + offset_of!(TlbBank, read) - BIAS) as i32
}
pub fn tlb_write(bank: usize) -> i32 {
    (offset_of!(Context, tlb) + bank * size_of::<TlbBank>() + offset_of!(TlbBank, write) - BIAS) as i32
}
pub fn tlb_addend(bank: usize) -> i32 {
    (offset_of!(Context, tlb) + bank * size_of::<TlbBank>() + offset_of!(TlbBank, addend) - BIAS) as i32
}
pub fn spared_page(bank: usize) -> i32 {
    (offset_of!(Context, spared) + bank * size_of::<SparedBank>() + offset_of!(SparedBank, page) - BIAS) as i32
}
pub fn spared_lines(bank: usize) -> i32 {
    (offset_of!(Context, spared) + bank * size_of::<SparedBank>() + offset_of!(SparedBank, lines) - BIAS) as i32
}
pub fn jump_target(bank: usize) -> i32 {
    (offset_of!(Context, jumps) + bank * size_of::<JumpBank>() + offset_of!(JumpBank, target) - BIAS) as i32
}
pub fn jump_entry(bank: usize) -> i32 {
    (offset_of!(Context, jumps) + bank * size_of::<JumpBank>() + offset_of!(JumpBank, entry) - BIAS) as i32
}

/// Offsets of the parts of a guess from RSP.
pub fn guess_shift(bank: usize, number: usize) -> i32 {
    guess(bank) + (offset_of!(GuessBank, shift) + 8 * number) as i32
}
pub fn guess_number(bank: usize, number: usize) -> i32 {
    guess(bank) + (offset_of!(GuessBank, number) + 8 * number) as i32
}
pub fn guess_addend(bank: usize, number: usize) -> i32 {
    guess(bank) + (offset_of!(GuessBank, addend) + 8 * number) as i32
}
fn guess(bank: usize) -> i32 {
    (offset_of!(Context, guesses) + bank * size_of::<GuessBank>() - BIAS) as i32
}

/// An owned [`Context`] at a fixed address.
#[derive(Debug)]
pub struct ContextBox(ZeroPages);

// SAFETY: the pages belong to the box; its pointers are set anew before each use.
unsafe impl Send for ContextBox {}

impl Default for ContextBox {
    fn default() -> Self {
        // Every field of a context may be zero.
        let mut this = Self(ZeroPages::new(Layout::new::<Allocation>()));
        this.vector_absent = 1;
        this.host_mxcsr = u64::from(MXCSR_RESET);
        for (number, count) in this.counts.iter_mut().enumerate() {
            *count = number as u64;
        }
        this
    }
}

impl ContextBox {
    fn allocation(&self) -> *mut Allocation {
        self.0.start().as_ptr().cast()
    }

    /// RSP of translated code.
    pub fn stack_pointer(&mut self) -> *mut u8 {
        // SAFETY: inside the context.
        unsafe { (&raw mut (*self.allocation()).context).cast::<u8>().add(BIAS) }
    }
}

impl Deref for ContextBox {
    type Target = Context;
    fn deref(&self) -> &Context {
        // SAFETY: the pages live as long as the box.
        unsafe { &(*self.allocation()).context }
    }
}

impl DerefMut for ContextBox {
    fn deref_mut(&mut self) -> &mut Context {
        // SAFETY: as above; `&mut self` makes it ours alone.
        unsafe { &mut (*self.allocation()).context }
    }
}
