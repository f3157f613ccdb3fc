//! One virtual CPU: its registers, and what derives from them.

pub mod control;
pub mod flags;
pub mod regs;
pub mod segment;
mod space;
pub mod stop;
pub mod vector;
pub mod width;

use std::ptr::NonNull;
use std::sync::Arc;

use ostler_engine::profile::Published;
use ostler_engine::{Exit, IoHandler, NobodyAnswers};

use crate::cpu::control::{cr0, cr4, efer};
use crate::cpu::flags::{Flags, bit};
use crate::cpu::regs::RegFile;
use crate::cpu::segment::{CS, DS, ES, FS, GS, LDTR, SS, SegmentRegister, TR};
use crate::cpu::stop::{Fault, Stop, vector as exception};
use crate::cpu::vector::VectorState;
use crate::decode::block::CodeCache;
use crate::decode::op::{FLAT, Op};
use crate::irqchip::Lapic;
use crate::jit::Jit;
use crate::mmu::{Mmu, Privilege};
use crate::msr::Msrs;
use crate::signals::Signals;
use crate::vm::{Sibling, VmShared};

/// The operating mode (SDM vol. 3, 2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Real,
    Virtual8086,
    Protected,
    /// A 16- or 32-bit code segment under long mode.
    Compatibility,
    Long,
}

/// Why the CPU has to look up between two blocks, besides its [`Signals`]; bits of [`Cpu::attention`].
pub mod attention {
    /// RFLAGS.IF, the TPR or the blocking of interrupts changed: one may be deliverable now.
    pub const INTERRUPT: u32 = 1 << 0;
    /// Interrupts are blocked for one instruction (STI, MOV SS, POP SS).
    pub const SHADOW: u32 = 1 << 1;
    /// RFLAGS.TF was set when the next instruction begins, or a debugger steps.
    pub const STEP: u32 = 1 << 2;
    /// HLT: wait for an interrupt.
    pub const HALTED: u32 = 1 << 3;
    /// An event injected from outside waits.
    pub const INJECTED: u32 = 1 << 4;
    /// A data or I/O breakpoint matched the last instruction.
    pub const BREAKPOINT: u32 = 1 << 5;
    /// An application processor that was not started.
    pub const WAIT_FOR_SIPI: u32 = 1 << 6;
    /// The triple-fault shutdown.
    pub const SHUTDOWN: u32 = 1 << 7;
    /// MWAIT: wait for a write to the line that MONITOR armed, or for whatever comes first.
    pub const MWAIT: u32 = 1 << 8;
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// One virtual CPU.
#[derive(Debug)]
pub struct Cpu {
    pub regs: RegFile,
    /// Offset into CS of the next instruction; while a block runs, of the block's first.
    pub rip: u64,
    pub flags: Flags,
    /// Base of each segment register; index [`FLAT`] is always zero.
    pub segment_base: [u64; 9],
    pub mmu: Mmu,
    pub code: CodeCache,
    pub jit: Jit,
    /// See [`attention`].
    pub attention: u32,
    /// The instruction that is running, for the replay of its accesses.
    pub current_op: *const Op,
    /// One past the last instruction to run of the running block.
    pub block_end: *const Op,
    /// The first block after an exit is executing its interrupted instruction again.
    pub replaying: bool,

    pub segments: [SegmentRegister; 8],
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub msrs: Msrs,
    pub vector: VectorState,

    pub cpl: u8,
    pub mode: Mode,
    /// 16, 32 or 64: how code is decoded.
    pub bitness: u32,
    /// The bits of RSP that stack operations use.
    pub stack_mask: u64,

    /// The exception that [`Stop::Fault`] speaks of.
    pub fault: Fault,
    /// The exit that [`Stop::Exit`] speaks of.
    pub exit: Option<Exit>,
    pub events: crate::event::Events,
    pub debug: crate::debug::DebugState,
    pub cpuid: Arc<crate::cpuid::CpuidTable>,
    /// Instructions retired.
    pub instructions: u64,

    pub id: u32,
    pub vm: Arc<VmShared>,
    pub sibling: Arc<Sibling>,
    pub signals: Arc<Signals>,
    pub lapic: Option<Arc<Lapic>>,
    /// Where it says what it does, while a profile is made.
    pub published: Option<Arc<Published>>,
    io: NonNull<dyn IoHandler>,
}

// SAFETY: `io` and `current_op` are only used inside `run`, on the thread that called it; the rest is Send.
unsafe impl Send for Cpu {}

static NOBODY: NobodyAnswers = NobodyAnswers;

/// A CPU that has a handler of accesses: until this is dropped, also by a panic.
struct Attended<'a>(&'a mut Cpu);

impl Drop for Attended<'_> {
    fn drop(&mut self) {
        let nobody: &'static dyn IoHandler = &NOBODY;
        self.0.io = NonNull::from(nobody);
    }
}

impl Cpu {
    pub fn new(vm: Arc<VmShared>, sibling: Arc<Sibling>, lapic: Option<Arc<Lapic>>) -> Self {
        let nobody: &'static dyn IoHandler = &NOBODY;
        let id = sibling.id;
        let mut cpu = Self {
            regs: RegFile::default(),
            rip: 0,
            flags: Flags::default(),
            segment_base: [0; 9],
            mmu: Mmu::new(Arc::clone(vm.memory())),
            code: CodeCache::new(vm.memory()),
            jit: Jit::new(vm.translate),
            attention: 0,
            current_op: std::ptr::null(),
            block_end: std::ptr::null(),
            replaying: false,
            segments: [SegmentRegister::default(); 8],
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            msrs: Msrs::default(),
            vector: VectorState::default(),
            cpl: 0,
            mode: Mode::Real,
            bitness: 16,
            stack_mask: 0xffff,
            fault: Fault::default(),
            exit: None,
            events: crate::event::Events::default(),
            debug: crate::debug::DebugState::default(),
            cpuid: Arc::new(crate::cpuid::CpuidTable::supported(id)),
            instructions: 0,
            id,
            vm,
            signals: Arc::clone(&sibling.signals),
            sibling,
            lapic,
            published: None,
            io: NonNull::from(nobody),
        };
        cpu.reset();
        cpu
    }

    /// The state after power-up (SDM vol. 3, table 10-1).
    pub fn reset(&mut self) {
        self.init();
        self.cr0 = cr0::RESET;
        self.xcr0 = 1;
        self.vector = VectorState::default();
        self.msrs = Msrs::default();
        self.update_mode();
    }

    /// The state after INIT: as after reset but for the x87, SSE and MSR state.
    pub fn init(&mut self) {
        self.regs = RegFile::default();
        // DX has the family, model and stepping that CPUID leaf 1 reports.
        self.regs.set(regs::RDX, u64::from(self.cpuid.signature()));
        self.flags = Flags::default();
        self.rip = 0xfff0;
        for index in [ES, SS, DS, FS, GS] {
            self.segments[index] = SegmentRegister::real(0);
        }
        self.segments[CS] =
            SegmentRegister { base: 0xffff_0000, rights: segment::CODE_RIGHTS, ..SegmentRegister::real(0xf000) };
        self.segments[LDTR] = SegmentRegister { rights: segment::Rights(0x82), ..SegmentRegister::real(0) };
        self.segments[TR] = SegmentRegister { rights: segment::Rights(0x8b), ..SegmentRegister::real(0) };
        self.gdtr = TableRegister { base: 0, limit: 0xffff };
        self.idtr = TableRegister { base: 0, limit: 0xffff };
        self.cr0 = self.cr0 & (cr0::CD | cr0::NW) | cr0::ET;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.dr = [0; 4];
        self.dr6 = crate::debug::DR6_RESET;
        self.dr7 = crate::debug::DR7_RESET;
        self.cpl = 0;
        self.attention = 0;
        self.events = crate::event::Events::default();
        self.mmu.replay.clear();
        self.flush_tlb();
        self.update_mode();
    }

    /// The handler of the `run` under way.
    pub fn io(&self) -> &dyn IoHandler {
        // SAFETY: `with_io` holds the reference for as long as the pointer is set.
        unsafe { self.io.as_ref() }
    }

    /// Runs `body` with `io` answering accesses.
    pub fn with_io<R>(&mut self, io: &dyn IoHandler, body: impl FnOnce(&mut Cpu) -> R) -> R {
        // SAFETY: only the lifetime is erased; the pointer is replaced before this function returns.
        let erased: &'static dyn IoHandler =
            unsafe { std::mem::transmute::<&dyn IoHandler, &'static dyn IoHandler>(io) };
        self.io = NonNull::from(erased);
        let attended = Attended(self);
        body(&mut *attended.0)
    }

    /// Recomputes what depends on CR0, CR4, EFER, CPL, RFLAGS.VM/AC and the segment registers. To be
    /// called after any of them changed.
    pub fn update_mode(&mut self) {
        let cs = self.segments[CS].rights;
        self.mode = if self.cr0 & cr0::PE == 0 {
            Mode::Real
        } else if self.flags.has(bit::VM) {
            Mode::Virtual8086
        } else if self.efer & efer::LMA == 0 {
            Mode::Protected
        } else if cs.long() {
            Mode::Long
        } else {
            Mode::Compatibility
        };
        self.bitness = match self.mode {
            Mode::Long => 64,
            _ if cs.big() => 32,
            _ => 16,
        };
        self.stack_mask = match self.mode {
            Mode::Long => u64::MAX,
            _ if self.segments[SS].rights.big() => 0xffff_ffff,
            _ => 0xffff,
        };
        for index in [ES, CS, SS, DS, FS, GS] {
            self.segment_base[index] = self.segments[index].base;
        }
        if self.mode == Mode::Long {
            for index in [ES, CS, SS, DS] {
                self.segment_base[index] = 0;
            }
        }
        self.update_privilege();
        self.code.set_mode(self.bitness, self.cpl == 3);
    }

    /// Recomputes the rights of data accesses: after CPL, CR0.AM, CR4.SMAP or RFLAGS.AC changed.
    pub fn update_privilege(&mut self) {
        self.mmu.privilege = if self.cpl == 3 {
            let checked = self.cr0 & cr0::AM != 0 && self.flags.has(bit::AC);
            if checked { Privilege::UserAligned } else { Privilege::User }
        } else if self.cr4 & cr4::SMAP != 0 && !self.flags.has(bit::AC) {
            Privilege::SupervisorSmap
        } else {
            Privilege::Supervisor
        };
    }

    /// Whether real-mode segment and interrupt rules hold.
    pub fn is_real_or_v86(&self) -> bool {
        matches!(self.mode, Mode::Real | Mode::Virtual8086)
    }

    /// Makes an exception the reason for leaving the instruction.
    #[cold]
    pub fn raise_fault(&mut self, fault: Fault) -> Stop {
        self.fault = fault;
        Stop::Fault
    }

    /// An exception without an error code.
    #[cold]
    pub fn raise(&mut self, vector: u8) -> Stop {
        self.raise_fault(Fault { vector, ..Fault::default() })
    }

    #[cold]
    pub fn raise_error(&mut self, vector: u8, error: u32) -> Stop {
        self.raise_fault(Fault { vector, error: Some(error), ..Fault::default() })
    }

    /// #GP with the given error code: 0, or a selector's index and table bits.
    #[cold]
    pub fn gp(&mut self, error: u32) -> Stop {
        self.raise_error(exception::GP, error)
    }

    #[cold]
    pub fn undefined(&mut self) -> Stop {
        self.raise(exception::UD)
    }

    /// RIP of the instruction after `op`.
    #[inline(always)]
    pub fn next_rip(&self, op: &Op) -> u64 {
        self.mask_rip(self.rip.wrapping_add(u64::from(op.end)))
    }

    /// RIP of `op` itself.
    pub fn op_rip(&self, op: &Op) -> u64 {
        self.mask_rip(self.rip.wrapping_add(u64::from(op.end)).wrapping_sub(u64::from(op.len)))
    }

    /// The bits of RIP that exist in this mode.
    #[inline(always)]
    pub fn mask_rip(&self, rip: u64) -> u64 {
        match self.bitness {
            64 => rip,
            32 => rip & 0xffff_ffff,
            // A 16-bit segment's EIP may exceed 64 KiB only by falling off its end, which the limit check catches.
            _ => rip & 0xffff_ffff,
        }
    }

    /// The linear address of `offset` in a segment, for system structures: no checks.
    pub fn linear_of(&self, segment: usize, offset: u64) -> u64 {
        self.wrap(self.segment_base[segment].wrapping_add(offset))
    }

    /// The linear address of the memory operand, unchecked in 64-bit mode (the access itself finds
    /// non-canonical addresses), checked against the segment elsewhere.
    #[inline(always)]
    pub fn linear(&mut self, op: &Op, bytes: usize, write: bool) -> Result<u64, Stop> {
        let offset = self.effective_address(op);
        if op.flags & crate::decode::op::op_flag::CHECKED == 0 {
            return Ok(self.segment_base[usize::from(op.seg)].wrapping_add(offset));
        }
        self.checked_linear(usize::from(op.seg), offset, bytes, write)
    }

    /// The offset part of the memory operand.
    #[inline(always)]
    pub fn effective_address(&self, op: &Op) -> u64 {
        let base = self.regs.get(usize::from(op.base));
        let index = self.regs.get(usize::from(op.index)) << op.scale;
        base.wrapping_add(index).wrapping_add(op.disp) & op.address_mask()
    }
}

const _: () = assert!(FLAT as usize == 8);
