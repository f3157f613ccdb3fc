//! The CPU under test, driven through the accelerator contract: any accelerator can take the place of `soft`.

mod system;

use std::sync::Arc;

use ostler_engine::cpuid::leaf;
use ostler_engine::regs::{CpuidEntry, GuestDebug, MsrEntry, Regs, Segment, Sregs, Xcr, XsaveArea};
use ostler_engine::{Accelerator, Exit, Kick, NobodyAnswers, Vcpu};
use ostler_memory::GuestRam;

use crate::cpu::{Cpu, Fallible};
use crate::layout::{CODE, WINDOWS};
use crate::state::{CpuState, Mode, Outcome, Stop, XSAVE_BYTES, XSTATE, normalize_xsave};

const IA32_FS_BASE: u32 = 0xc000_0100;
const IA32_GS_BASE: u32 = 0xc000_0101;
/// A standard XSAVE area as the contract hands it over.
const AREA_BYTES: usize = 4096;

#[derive(Debug)]
pub struct SoftCpu {
    name: &'static str,
    memory: Arc<GuestRam>,
    vcpu: Box<dyn Vcpu>,
    sregs: Sregs,
}

/// What the processor pushed for the exception handler.
#[derive(Clone, Copy, Debug)]
struct Frame {
    error: u32,
    rip: u64,
    rflags: u64,
    rsp: u64,
}

impl SoftCpu {
    pub fn new(accelerator: &dyn Accelerator) -> Fallible<Self> {
        let memory = Arc::new(GuestRam::new());
        system::build(&memory)?;
        let vm = accelerator.create_vm(Arc::clone(&memory))?;
        let mut vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid(&accelerator.supported_cpuid())?;
        let sregs = system::sregs(&vcpu.sregs()?);
        vcpu.set_sregs(&sregs)?;
        let xsave = |row: &CpuidEntry| row.function == leaf::FEATURES && row.ecx >> 26 & 1 != 0;
        if vcpu.cpuid().iter().any(xsave) {
            vcpu.set_xcrs(&[Xcr { index: 0, value: XSTATE }])?;
        }
        Ok(Self { name: accelerator.name(), memory, vcpu, sregs })
    }

    /// Ends a run under way with [`Stop::Timeout`].
    pub fn kicker(&self) -> Arc<dyn Kick> {
        self.vcpu.kicker()
    }

    /// Runs 64-bit code instruction by instruction, at most `steps` of them; `each` sees the bytes at each RIP in the
    /// code window before they run.
    pub fn step(&mut self, before: &CpuState, steps: usize, mut each: impl FnMut(&[u8], u64)) -> Fallible<()> {
        self.load(Mode::Long, before)?;
        self.vcpu.set_guest_debug(GuestDebug { single_step: true, ..GuestDebug::default() })?;
        for _ in 0..steps {
            let rip = self.vcpu.regs()?.rip;
            let Some(left) = CODE.end().checked_sub(rip).filter(|left| (1..=CODE.bytes).contains(left)) else { break };
            let mut code = vec![0; left.min(15) as usize];
            self.memory.read(system::window_gpa(&CODE) + (rip - CODE.base), &mut code)?;
            each(&code, rip);
            if !matches!(self.vcpu.run(&NobodyAnswers)?, Exit::Debug { .. }) {
                break;
            }
        }
        self.vcpu.set_guest_debug(GuestDebug::default())?;
        Ok(())
    }

    fn load(&mut self, mode: Mode, before: &CpuState) -> Fallible<()> {
        for window in &WINDOWS {
            self.memory.write(system::window_gpa(window), &before.memory[window.range()])?;
        }
        self.sregs.cs = system::code_segment(mode);
        self.sregs.ds = system::data_segment(mode);
        self.sregs.es = system::data_segment(mode);
        self.vcpu.set_sregs(&self.sregs)?;
        self.vcpu.set_msr(MsrEntry { index: IA32_FS_BASE, value: before.fs_base })?;
        self.vcpu.set_msr(MsrEntry { index: IA32_GS_BASE, value: before.gs_base })?;
        let mut area = vec![0; AREA_BYTES];
        area[..XSAVE_BYTES].copy_from_slice(&before.xsave[..]);
        self.vcpu.set_xsave(&XsaveArea { bytes: area })?;
        self.vcpu.set_regs(&regs_of(before))?;
        Ok(())
    }

    fn outcome(&mut self, exit: Exit) -> Fallible<Outcome> {
        let regs = self.vcpu.regs()?;
        let mut state = CpuState { gprs: gprs_of(&regs), rip: regs.rip, rflags: regs.rflags, ..CpuState::default() };
        for window in &WINDOWS {
            self.memory.read(system::window_gpa(window), &mut state.memory[window.range()])?;
        }
        state.fs_base = self.vcpu.msr(IA32_FS_BASE)?;
        state.gs_base = self.vcpu.msr(IA32_GS_BASE)?;
        let area = self.vcpu.xsave()?.bytes;
        state.xsave.copy_from_slice(area.get(..XSAVE_BYTES).ok_or("the XSAVE area is too short")?);
        normalize_xsave(&mut state.xsave);
        let stop = match (exit, system::vector_of(regs.rip)) {
            (Exit::Hlt, Some(vector)) => self.stop_of(vector, regs.rsp, &mut state)?,
            (Exit::Interrupted, _) => Stop::Timeout,
            (exit, _) => Stop::Broken(format!("{exit:?} at rip {:#x}", regs.rip)),
        };
        Ok(Outcome { state, stop })
    }

    fn stop_of(&self, vector: u8, rsp: u64, state: &mut CpuState) -> Fallible<Stop> {
        let Some(frame) = self.frame(rsp)? else {
            return Ok(Stop::Broken(format!("exception {vector} left rsp at {rsp:#x}")));
        };
        state.rip = frame.rip;
        state.rflags = frame.rflags;
        state.gprs[crate::state::RSP] = frame.rsp;
        let address = if vector == 14 { Some(self.vcpu.sregs()?.cr2) } else { None };
        Ok(Stop::Exception { vector, error: frame.error, address })
    }

    /// The frame on the exception stack; `None` when RSP is not where an exception from user mode leaves it.
    fn frame(&self, rsp: u64) -> Fallible<Option<Frame>> {
        let Some(words) = system::STACK_TOP.checked_sub(rsp).filter(|bytes| matches!(bytes, 40 | 48)) else {
            return Ok(None);
        };
        let mut bytes = [0; 48];
        self.memory.read(system::gpa_of(system::STACK_TOP - 48), &mut bytes)?;
        let word = |index: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * index + byte]));
        let error = if words == 48 { word(0) as u32 } else { 0 };
        Ok(Some(Frame { error, rip: word(1), rflags: word(3), rsp: word(4) }))
    }
}

impl Cpu for SoftCpu {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, mode: Mode, before: &CpuState) -> Fallible<Outcome> {
        self.load(mode, before)?;
        let exit = self.vcpu.run(&NobodyAnswers)?;
        self.outcome(exit)
    }
}

fn regs_of(state: &CpuState) -> Regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gprs;
    Regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn gprs_of(regs: &Regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

/// A present flat segment; the caller sets what makes it code, data or a TSS.
const fn flat(selector: u16, kind: u8, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        kind,
        present: true,
        dpl,
        db: true,
        s: true,
        l: false,
        g: true,
        avl: false,
        unusable: false,
    }
}
