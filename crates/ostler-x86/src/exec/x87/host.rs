//! Running one x87 instruction on the host.
//!
//! The guest's x87 state is loaded into the host's, the instruction itself runs, and the state is
//! fetched back. Only FXRSTOR, FXSAVE and FNINIT, none of which waits, run while an exception that
//! the guest has unmasked may be pending: the host never sees one.

use std::arch::{asm, global_asm};

use crate::cpu::vector::{MXCSR_RESET, X87Image};

/// Opcodes D8..DF.
const FIRST_OPCODE: u8 = 0xd8;
const LAST_OPCODE: u8 = 0xdf;
/// Forms of one opcode: 8 with a memory operand, 64 without.
const FORMS_PER_OPCODE: usize = 72;
const MEMORY_FORMS: usize = 8;
/// Bytes of one form: two of the instruction, RET, and one to align.
const FORM_BYTES: usize = 4;

// Every x87 instruction that there can be, as a subroutine, its memory operand at [RSI]. Only those that the instruction table
// names are ever called.
global_asm!(
    ".pushsection .text.ostler_x87_forms, \"ax\", @progbits",
    ".balign 16",
    ".hidden ostler_x87_forms",
    ".globl ostler_x87_forms",
    "ostler_x87_forms:",
    ".set ostler_x87_opcode, 0xd8",
    ".rept 8",
    ".set ostler_x87_modrm, 0x06",
    ".rept 8",
    ".byte ostler_x87_opcode, ostler_x87_modrm, 0xc3, 0xcc",
    ".set ostler_x87_modrm, ostler_x87_modrm + 8",
    ".endr",
    ".set ostler_x87_modrm, 0xc0",
    ".rept 64",
    ".byte ostler_x87_opcode, ostler_x87_modrm, 0xc3, 0xcc",
    ".set ostler_x87_modrm, ostler_x87_modrm + 1",
    ".endr",
    ".set ostler_x87_opcode, ostler_x87_opcode + 1",
    ".endr",
    ".popsection",
);

unsafe extern "C" {
    static ostler_x87_forms: [[[u8; FORM_BYTES]; FORMS_PER_OPCODE]; 8];
}

/// An x87 instruction: its opcode and ModRM bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    index: u16,
}

impl Form {
    /// The instruction with these two bytes; its memory operand, if it has one, is put at [RSI].
    pub fn new(opcode: u8, modrm: u8) -> Option<Self> {
        if !(FIRST_OPCODE..=LAST_OPCODE).contains(&opcode) {
            return None;
        }
        let form = if modrm >= 0xc0 { MEMORY_FORMS + usize::from(modrm & 0x3f) } else { usize::from(modrm >> 3 & 7) };
        let index = usize::from(opcode - FIRST_OPCODE) * FORMS_PER_OPCODE + form;
        Some(Self { index: index as u16 })
    }

    pub fn index(self) -> u16 {
        self.index
    }

    /// The form of [`Form::index`]; an index out of range becomes one in range.
    pub fn from_index(index: u16) -> Self {
        Self { index: index % (8 * FORMS_PER_OPCODE as u16) }
    }

    fn code(self) -> *const u8 {
        let (opcode, form) = (usize::from(self.index) / FORMS_PER_OPCODE, usize::from(self.index) % FORMS_PER_OPCODE);
        // SAFETY: the table is in the text section, 8 by FORMS_PER_OPCODE forms large.
        unsafe { (&raw const ostler_x87_forms[opcode][form]).cast() }
    }
}

/// The host's FXSAVE image.
#[repr(C, align(64))]
struct Image {
    x87: X87Image,
    rest: [u8; 352],
}

const _: () = assert!(size_of::<Image>() == 512);

/// A memory operand: up to 10 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Memory(pub [u8; 16]);

/// Runs `form` on the registers of `x87`; gives the state afterwards (but for FCW, FOP, FIP and FDP,
/// which the instruction does not change or the caller knows better) and the arithmetic flags.
///
/// `flags` are the arithmetic flags before. No unmasked exception may be pending.
pub fn run(form: Form, x87: &X87Image, flags: u64, memory: &mut Memory) -> (X87Image, u64) {
    let clean = X87Image { fop: 0, fip: 0, fdp: 0, mxcsr: MXCSR_RESET, mxcsr_mask: 0, ..*x87 };
    let mut image = Image { x87: clean, rest: [0; 352] };
    let mut flags = flags & crate::cpu::flags::bit::ARITH | crate::cpu::flags::bit::FIXED;
    // SAFETY: the image is a valid FXSAVE image (MXCSR has no reserved bit set), so FXRSTOR does not
    // fault; the instruction accesses at most the 16 bytes at RSI; it traps on no exception, as none
    // is pending before and nothing that waits follows. What FXRSTOR overwrites is declared, and
    // FNINIT and the image's MXCSR leave the control words as Rust expects them.
    unsafe {
        asm!(
            "fxrstor64 [{image}]",
            "push {flags}",
            "popfq",
            "call {code}",
            "pushfq",
            "pop {flags}",
            "fxsave64 [{image}]",
            "fninit",
            image = in(reg) &raw mut image,
            code = in(reg) form.code(),
            flags = inout(reg) flags,
            in("rsi") memory.0.as_mut_ptr(),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    (image.x87, flags)
}
