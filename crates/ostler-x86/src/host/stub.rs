//! One vector instruction as host code, its operands in fixed places.
//!
//! A stub loads the operands through the pointers of a [`Frame`], runs the instruction itself, and
//! stores what it wrote. Two guest instructions that differ only in their registers share a stub.
//! Guest memory is never touched: a memory operand is a buffer in the frame.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use iced_x86::code_asm::{CodeAssembler, r10, rax, rcx, rdi, rdx, rsi, xmm0, ymm0};
use iced_x86::{Encoder, EncodingKind, IcedError, Instruction, Mnemonic, OpAccess, OpKind, Register};

use crate::host::code_buffer::CodeBuffer;

/// What a stub works on. The offsets are written into the stubs: see `offset`.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Frame {
    /// The memory operand's bytes.
    pub memory: [u8; 64],
    /// Where each explicit operand lives: 32 bytes of a YMM, 8 of an MMX or general register.
    pub operands: [*mut u8; 4],
    /// YMM0, for instructions that use it without naming it.
    pub implicit: *mut u8,
    /// RAX, RDX in and RCX out, for the string comparisons.
    pub rax: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rflags: u64,
    /// What MXCSR is while the instruction runs, and what it is afterwards.
    pub mxcsr: u32,
    pub mxcsr_after: u32,
    pub mxcsr_host: u32,
    /// Not 0: an unmasked exception ended the stub early, at `recover`.
    pub trapped: u32,
    pub recover: *const u8,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            memory: [0; 64],
            operands: [std::ptr::null_mut(); 4],
            implicit: std::ptr::null_mut(),
            rax: 0,
            rdx: 0,
            rcx: 0,
            rflags: 0,
            mxcsr: 0,
            mxcsr_after: 0,
            mxcsr_host: 0,
            trapped: 0,
            recover: std::ptr::null(),
        }
    }
}

mod offset {
    pub const OPERANDS: i32 = 64;
    pub const IMPLICIT: i32 = 96;
    pub const RAX: i32 = 104;
    pub const RDX: i32 = 112;
    pub const RCX: i32 = 120;
    pub const RFLAGS: i32 = 128;
    pub const MXCSR: i32 = 136;
    pub const MXCSR_AFTER: i32 = 140;
    pub const MXCSR_HOST: i32 = 144;
    pub const TRAPPED: i32 = 148;
}

const _: () = {
    assert!(std::mem::offset_of!(Frame, operands) == offset::OPERANDS as usize);
    assert!(std::mem::offset_of!(Frame, implicit) == offset::IMPLICIT as usize);
    assert!(std::mem::offset_of!(Frame, rax) == offset::RAX as usize);
    assert!(std::mem::offset_of!(Frame, rdx) == offset::RDX as usize);
    assert!(std::mem::offset_of!(Frame, rcx) == offset::RCX as usize);
    assert!(std::mem::offset_of!(Frame, rflags) == offset::RFLAGS as usize);
    assert!(std::mem::offset_of!(Frame, mxcsr) == offset::MXCSR as usize);
    assert!(std::mem::offset_of!(Frame, mxcsr_after) == offset::MXCSR_AFTER as usize);
    assert!(std::mem::offset_of!(Frame, mxcsr_host) == offset::MXCSR_HOST as usize);
    assert!(std::mem::offset_of!(Frame, trapped) == offset::TRAPPED as usize);
};

/// What kind of register an explicit operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    None,
    Vector,
    Mmx,
    /// A general register of this many bytes.
    General(u8),
}

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    pub bytes: u8,
    pub read: bool,
    pub write: bool,
    pub aligned: bool,
}

/// A stub and what its caller has to know.
#[derive(Debug)]
pub struct Stub {
    pub run: extern "sysv64" fn(*mut Frame),
    /// Where a float stub ends that an unmasked exception has interrupted.
    pub recover: *const u8,
    pub operands: [Operand; 4],
    /// Whether each operand is written.
    pub written: [bool; 4],
    pub memory: Option<MemoryOperand>,
    /// Obeys MXCSR and may raise its exceptions.
    pub float: bool,
    /// Rounds to denormals whatever MXCSR.FTZ says.
    pub ignores_flush: bool,
    pub sets_flags: bool,
    pub vex: bool,
    pub string_compare: bool,
    /// Uses MMX registers.
    pub mmx: bool,
}

// SAFETY: `recover` points to code that is never unmapped, and is only jumped to.
unsafe impl Sync for Stub {}
// SAFETY: as above.
unsafe impl Send for Stub {}

#[derive(Debug, Default)]
struct Stubs {
    code: CodeBuffer,
    known: HashMap<(Vec<u8>, [Operand; 4]), &'static Stub>,
}

static STUBS: Mutex<Option<Stubs>> = Mutex::new(None);

/// The stub for an instruction; `None` when it cannot be run this way.
pub fn stub(instruction: &Instruction, float: bool) -> Option<&'static Stub> {
    let canonical = Canonical::of(instruction)?;
    let body = canonical.encode()?;
    let key = (body, canonical.operands);
    let mut stubs = STUBS.lock().unwrap_or_else(PoisonError::into_inner);
    let stubs = stubs.get_or_insert_default();
    if let Some(known) = stubs.known.get(&key) {
        return Some(known);
    }
    let mut code = canonical.assemble(&key.0, float).ok()?;
    let recover = code.len();
    code.extend(canonical.assemble_recovery().ok()?);
    let start = stubs.code.add(&code).ok()?;
    // SAFETY: `start` is the code just written, which follows the sysv64 convention.
    let run = unsafe { std::mem::transmute::<*const u8, extern "sysv64" fn(*mut Frame)>(start) };
    let recover = start.wrapping_add(recover);
    // Leaked on purpose: decoded instructions point to it for the life of the process.
    let stub: &'static Stub = Box::leak(Box::new(canonical.describe(run, recover, float)));
    stubs.known.insert(key, stub);
    Some(stub)
}

/// An instruction with its operands in the fixed places.
struct Canonical {
    instruction: Instruction,
    operands: [Operand; 4],
    access: [OpAccess; 4],
    memory: Option<(u8, OpAccess)>,
    vex: bool,
}

/// Where general-register operands go, by position.
const GENERAL_64: [Register; 4] = [Register::RAX, Register::RCX, Register::RDX, Register::R8];
const GENERAL_32: [Register; 4] = [Register::EAX, Register::ECX, Register::EDX, Register::R8D];
const GENERAL_16: [Register; 4] = [Register::AX, Register::CX, Register::DX, Register::R8W];
const GENERAL_8: [Register; 4] = [Register::AL, Register::CL, Register::DL, Register::R8L];

impl Canonical {
    fn of(original: &Instruction) -> Option<Self> {
        let vex = match original.code().op_code().encoding() {
            EncodingKind::Legacy => false,
            EncodingKind::VEX => true,
            _ => return None,
        };
        if original.is_vsib() {
            return None;
        }
        let mut factory = iced_x86::InstructionInfoFactory::new();
        let info = factory.info(original);
        let mut this = Self {
            instruction: *original,
            operands: [Operand::None; 4],
            access: [OpAccess::None; 4],
            memory: None,
            vex,
        };
        for index in 0..original.op_count() {
            let position = index as usize;
            match original.op_kind(index) {
                OpKind::Register => {
                    let register = original.op_register(index);
                    let (place, operand) = canonical_register(register, position)?;
                    this.instruction.set_op_register(index, place);
                    *this.operands.get_mut(position)? = operand;
                    this.access[position] = info.op_access(index);
                }
                OpKind::Memory => {
                    let bytes = u8::try_from(original.memory_size().size()).ok().filter(|bytes| *bytes <= 32)?;
                    this.memory = Some((bytes, info.op_access(index)));
                    let instruction = &mut this.instruction;
                    instruction.set_memory_base(Register::RSI);
                    instruction.set_memory_index(Register::None);
                    instruction.set_memory_index_scale(1);
                    instruction.set_memory_displacement64(0);
                    instruction.set_memory_displ_size(0);
                    instruction.set_segment_prefix(Register::None);
                }
                OpKind::Immediate8 => {}
                _ => return None,
            }
        }
        Some(this)
    }

    fn encode(&self) -> Option<Vec<u8>> {
        let mut encoder = Encoder::new(64);
        encoder.encode(&self.instruction, 0).ok()?;
        Some(encoder.take_buffer())
    }

    fn describe(&self, run: extern "sysv64" fn(*mut Frame), recover: *const u8, float: bool) -> Stub {
        let written = self.access.map(is_write);
        Stub {
            run,
            recover,
            operands: self.operands,
            written,
            memory: self.memory.map(|(bytes, access)| MemoryOperand {
                bytes,
                read: access != OpAccess::Write,
                write: is_write(access),
                aligned: must_be_aligned(&self.instruction, bytes, self.vex),
            }),
            float,
            ignores_flush: self.instruction.mnemonic() == Mnemonic::Vcvtps2ph,
            sets_flags: self.sets_flags(),
            vex: self.vex,
            string_compare: self.is_string_compare(),
            mmx: self.operands.contains(&Operand::Mmx),
        }
    }

    fn sets_flags(&self) -> bool {
        self.instruction.rflags_modified() != 0
    }

    fn is_string_compare(&self) -> bool {
        is_string_compare(self.instruction.mnemonic())
    }

    fn uses_xmm0(&self) -> bool {
        use Mnemonic as M;
        let mnemonic = self.instruction.mnemonic();
        self.is_string_compare() || matches!(mnemonic, M::Pblendvb | M::Blendvps | M::Blendvpd | M::Sha256rnds2)
    }

    fn assemble(&self, body: &[u8], float: bool) -> Result<Vec<u8>, IcedError> {
        let mut asm = CodeAssembler::new(64)?;
        self.load_operands(&mut asm)?;
        if float {
            asm.ldmxcsr(iced_x86::code_asm::dword_ptr(rdi + offset::MXCSR))?;
        }
        asm.db(body)?;
        if float {
            asm.stmxcsr(iced_x86::code_asm::dword_ptr(rdi + offset::MXCSR_AFTER))?;
            asm.ldmxcsr(iced_x86::code_asm::dword_ptr(rdi + offset::MXCSR_HOST))?;
        }
        self.store_results(&mut asm)?;
        self.leave(&mut asm)?;
        asm.assemble(0)
    }

    /// Where the stub goes on, RDI still its frame, when its instruction raised an unmasked exception.
    fn assemble_recovery(&self) -> Result<Vec<u8>, IcedError> {
        use iced_x86::code_asm::dword_ptr;
        let mut asm = CodeAssembler::new(64)?;
        asm.stmxcsr(dword_ptr(rdi + offset::MXCSR_AFTER))?;
        asm.ldmxcsr(dword_ptr(rdi + offset::MXCSR_HOST))?;
        asm.mov(dword_ptr(rdi + offset::TRAPPED), 1)?;
        self.leave(&mut asm)?;
        asm.assemble(0)
    }

    fn leave(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.vex {
            asm.vzeroupper()?;
        }
        if self.operands.contains(&Operand::Mmx) {
            asm.emms()?;
        }
        asm.ret()
    }

    fn load_operands(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        use iced_x86::code_asm::qword_ptr;
        for (position, operand) in self.operands.into_iter().enumerate() {
            if operand == Operand::None {
                continue;
            }
            asm.mov(r10, qword_ptr(rdi + offset::OPERANDS + 8 * position as i32))?;
            load(asm, operand, position, self.vex)?;
        }
        if self.uses_xmm0() {
            asm.mov(r10, qword_ptr(rdi + offset::IMPLICIT))?;
            asm.movups(xmm0, iced_x86::code_asm::xmmword_ptr(r10))?;
        }
        if self.is_string_compare() {
            asm.mov(rax, qword_ptr(rdi + offset::RAX))?;
            asm.mov(rdx, qword_ptr(rdi + offset::RDX))?;
            asm.mov(rcx, qword_ptr(rdi + offset::RCX))?;
        }
        asm.mov(rsi, rdi)
    }

    fn store_results(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        use iced_x86::code_asm::qword_ptr;
        if self.sets_flags() {
            asm.pushfq()?;
            asm.pop(r10)?;
            asm.mov(qword_ptr(rdi + offset::RFLAGS), r10)?;
        }
        if self.is_string_compare() {
            asm.mov(qword_ptr(rdi + offset::RCX), rcx)?;
            asm.mov(r10, qword_ptr(rdi + offset::IMPLICIT))?;
            store_implicit(asm, self.instruction.mnemonic())?;
        }
        for (position, operand) in self.operands.into_iter().enumerate() {
            if operand != Operand::None && is_write(self.access[position]) {
                asm.mov(r10, qword_ptr(rdi + offset::OPERANDS + 8 * position as i32))?;
                store(asm, operand, position, self.vex)?;
            }
        }
        Ok(())
    }
}

/// PCMPxSTRx, which use RAX, RCX, RDX and XMM0 without naming them.
pub fn is_string_compare(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Vpcmpestri64
            | M::Vpcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Vpcmpestri
            | M::Vpcmpestrm
            | M::Vpcmpistri
            | M::Vpcmpistrm
    )
}

/// PCMPxSTRM write XMM0; the VEX forms clear the rest of YMM0.
fn store_implicit(asm: &mut CodeAssembler, mnemonic: Mnemonic) -> Result<(), IcedError> {
    match mnemonic {
        Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64 | Mnemonic::Pcmpistrm => {
            asm.movups(iced_x86::code_asm::xmmword_ptr(r10), xmm0)
        }
        Mnemonic::Vpcmpestrm | Mnemonic::Vpcmpestrm64 | Mnemonic::Vpcmpistrm => {
            asm.vmovups(iced_x86::code_asm::ymmword_ptr(r10), ymm0)
        }
        _ => Ok(()),
    }
}

fn canonical_register(register: Register, position: usize) -> Option<(Register, Operand)> {
    // XMM0 is for instructions that use it without naming it.
    let number = position as u32 + 1;
    if register.is_xmm() {
        return Some((Register::XMM0 + number, Operand::Vector));
    }
    if register.is_ymm() {
        return Some((Register::YMM0 + number, Operand::Vector));
    }
    if register.is_mm() {
        return Some((Register::MM0 + number, Operand::Mmx));
    }
    let table = match register {
        _ if register.is_gpr64() => GENERAL_64,
        _ if register.is_gpr32() => GENERAL_32,
        _ if register.is_gpr16() => GENERAL_16,
        _ if register.is_gpr8() => GENERAL_8,
        _ => return None,
    };
    Some((*table.get(position)?, Operand::General(register.size() as u8)))
}

fn is_write(access: OpAccess) -> bool {
    use OpAccess as A;
    matches!(access, A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite)
}

/// Legacy SSE faults on an unaligned 16-byte operand unless the instruction is made for it; VEX
/// only where the instruction says so.
pub fn must_be_aligned(instruction: &Instruction, bytes: u8, vex: bool) -> bool {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    if vex {
        return matches!(
            mnemonic,
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
        );
    }
    let made_for_it = matches!(mnemonic, M::Movups | M::Movupd | M::Movdqu | M::Lddqu)
        || matches!(
            mnemonic,
            M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpistri | M::Pcmpistrm
        );
    bytes == 16 && !made_for_it
}

/// Loads an operand from where R10 points.
fn load(asm: &mut CodeAssembler, operand: Operand, position: usize, vex: bool) -> Result<(), IcedError> {
    asm.db(&transfer(operand, position, vex, true)?)
}

/// Stores an operand to where R10 points.
fn store(asm: &mut CodeAssembler, operand: Operand, position: usize, vex: bool) -> Result<(), IcedError> {
    asm.db(&transfer(operand, position, vex, false)?)
}

/// The bytes of a move between an operand's fixed place and `[r10]`.
fn transfer(operand: Operand, position: usize, vex: bool, load: bool) -> Result<Vec<u8>, IcedError> {
    use iced_x86::{Code, MemoryOperand as Memory};
    let memory = Memory::with_base(Register::R10);
    let number = position as u32 + 1;
    let (code_load, code_store, register) = match (operand, vex) {
        (Operand::Vector, false) => (Code::Movups_xmm_xmmm128, Code::Movups_xmmm128_xmm, Register::XMM0 + number),
        (Operand::Vector, true) => {
            (Code::VEX_Vmovups_ymm_ymmm256, Code::VEX_Vmovups_ymmm256_ymm, Register::YMM0 + number)
        }
        (Operand::Mmx, _) => (Code::Movq_mm_mmm64, Code::Movq_mmm64_mm, Register::MM0 + number),
        _ => (Code::Mov_r64_rm64, Code::Mov_rm64_r64, GENERAL_64[position]),
    };
    let instruction = if load {
        Instruction::with2(code_load, register, memory)?
    } else {
        Instruction::with2(code_store, memory, register)?
    };
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, 0)?;
    Ok(encoder.take_buffer())
}
