//! In and out of a sequence by signal frames.

use std::arch::{asm, global_asm};
use std::io;
use std::mem;
use std::ptr;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use crate::state::{
    CpuState, LocalSegment, Mode, SIXTEEN_CODE, SIXTEEN_DATA, Stop, XSAVE_BYTES, XSTATE, normalize_xsave,
};

/// What the handler and the harness hand each other. One thread runs sequences, and
/// the handler runs on that thread, so there is never a second access at the same time.
#[repr(C)]
struct Gate {
    /// FS and GS base at the moment of the signal, written by the entry code.
    seen_fs: u64,
    seen_gs: u64,
    /// The bases to return to the interrupted code with.
    next_fs: u64,
    next_gs: u64,
    /// The harness's own: Rust needs FS for thread-local storage.
    own_fs: u64,
    own_gs: u64,
    phase: Phase,
    mode: Mode,
    before: *const CpuState,
    after: *mut CpuState,
    stop: Stop,
    harness: [i64; GREGS],
    ticks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Launching,
    Running,
}

const GREGS: usize = 23;
/// Greg indices of the general registers in the processor's numbering.
const GPRS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];
const SIGNALS: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGALRM, libc::SIGSYS];
/// System calls are allowed from this address on: above the windows, and where everything else is.
const SYSTEM_CALLS_FROM: libc::c_ulong = 1 << 30;
/// Linux's `__USER_CS`, `__USER32_CS` and `__USER_DS`.
const USER_CS: u64 = 0x33;
const USER32_CS: u64 = 0x23;
const USER_DS: u64 = 0x2b;
/// Where the kernel keeps its description of the frame's XSAVE area (`struct _fpx_sw_bytes`).
const SOFTWARE_BYTES: std::ops::Range<usize> = 464..512;
const TICK_US: i64 = 20_000;
/// A sequence takes microseconds; after this many ticks it loops.
const TICKS_ALLOWED: u32 = 10;
const ALTERNATE_STACK_BYTES: usize = 1 << 18;

static mut GATE: Gate = Gate {
    seen_fs: 0,
    seen_gs: 0,
    next_fs: 0,
    next_gs: 0,
    own_fs: 0,
    own_gs: 0,
    phase: Phase::Idle,
    mode: Mode::Long,
    before: ptr::null(),
    after: ptr::null_mut(),
    stop: Stop::Timeout,
    harness: [0; GREGS],
    ticks: 0,
};

// Alignment checks, NT and ID survive the kernel's signal delivery and have to go before any Rust code runs;
// so do the sequence's FS and GS base.
global_asm!(
    r#"
ostler_differential_signal:
    pushfq
    and qword ptr [rsp], ~0x244100
    popfq
    push rbx
    lea rbx, [rip + {gate}]
    rdfsbase rax
    mov [rbx], rax
    mov [rbx + 16], rax
    rdgsbase rax
    mov [rbx + 8], rax
    mov [rbx + 24], rax
    mov rax, [rbx + 32]
    wrfsbase rax
    mov rax, [rbx + 40]
    wrgsbase rax
    call {handler}
    mov rax, [rbx + 16]
    wrfsbase rax
    mov rax, [rbx + 24]
    wrgsbase rax
    pop rbx
    ret
"#,
    gate = sym GATE,
    handler = sym on_signal,
);

unsafe extern "C" {
    fn ostler_differential_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void);
}

/// Sets the handlers, the alternate stack, the watchdog's timer and the local descriptor table.
pub fn install() -> io::Result<()> {
    let gate = &raw mut GATE;
    // SAFETY: reads this thread's segment bases into the gate, which no handler uses yet.
    unsafe {
        asm!("rdfsbase {}", out(reg)(*gate).own_fs, options(nomem, nostack));
        asm!("rdgsbase {}", out(reg)(*gate).own_gs, options(nomem, nostack));
    }
    set_local_segment(&SIXTEEN_CODE, true)?;
    set_local_segment(&SIXTEEN_DATA, false)?;
    let stack = Box::leak(vec![0u8; ALTERNATE_STACK_BYTES].into_boxed_slice());
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: ALTERNATE_STACK_BYTES };
    // SAFETY: the stack was leaked and lives as long as the process.
    check(unsafe { libc::sigaltstack(&alternate, ptr::null_mut()) })?;
    for signal in SIGNALS {
        set_handler(signal)?;
    }
    forbid_system_calls()?;
    let tick = libc::timeval { tv_sec: 0, tv_usec: TICK_US };
    let timer = libc::itimerval { it_interval: tick, it_value: tick };
    // SAFETY: the timer's signal has a handler.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) })
}

/// Makes system calls of sequences, which a jump into the middle of an instruction may lead to, SIGSYS.
fn forbid_system_calls() -> io::Result<()> {
    const PR_SET_SYSCALL_USER_DISPATCH: c_int = 59;
    const PR_SYS_DISPATCH_ON: libc::c_ulong = 1;
    let allowed_bytes: libc::c_ulong = (1 << 47) - SYSTEM_CALLS_FROM;
    // SAFETY: no selector byte is given, so that the kernel reads nothing of ours.
    check(unsafe {
        libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, SYSTEM_CALLS_FROM, allowed_bytes, 0usize)
    })
}

/// `struct user_desc` of `modify_ldt`.
#[repr(C)]
struct UserDescriptor {
    entry_number: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// Entry 0 or 1 of this process's local descriptor table.
fn set_local_segment(segment: &LocalSegment, code: bool) -> io::Result<()> {
    const WRITE: libc::c_long = 0x11;
    // 16-bit; contents 2 is code, 0 is data that grows up; code may be read, data written.
    let flags = if code { 2 << 1 } else { 0 };
    let (base, limit) = (segment.base, segment.limit);
    let descriptor = UserDescriptor { entry_number: u32::from(segment.selector >> 3), base, limit, flags };
    // SAFETY: the kernel copies the descriptor.
    let result = unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, &descriptor, size_of::<UserDescriptor>()) };
    check(result as c_int)
}

fn set_handler(signal: c_int) -> io::Result<()> {
    // SAFETY: an all-zero `sigaction` is a valid one.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = ostler_differential_signal as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: plain writes to a local; every signal is blocked while one is handled, so frames never nest.
    unsafe { libc::sigfillset(&mut action.sa_mask) };
    // SAFETY: the handler touches only the gate and its own frame.
    check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) })
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs the code at `before.rip` until a signal. The windows hold `before.memory` already.
pub fn run(mode: Mode, before: &CpuState) -> (CpuState, Stop) {
    let mut after = before.clone();
    let gate = &raw mut GATE;
    // SAFETY: the handler uses the gate between these statements only, on this thread. UD2 comes back behind itself
    // with the callee-saved registers restored; all others are declared lost. `before` and `after` outlive it. 64-bit code
    // ignores DS and ES.
    unsafe {
        (*gate).mode = mode;
        (*gate).before = before;
        (*gate).after = &raw mut after;
        (*gate).ticks = 0;
        (*gate).phase = Phase::Launching;
        let data = if mode == Mode::Sixteen { SIXTEEN_DATA.selector.into() } else { USER_DS };
        asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) data, options(nomem, nostack, preserves_flags));
        asm!("ud2", clobber_abi("C"));
        (after, mem::replace(&mut (*gate).stop, Stop::Timeout))
    }
}

extern "C" fn on_signal(signal: c_int, _info: *mut siginfo_t, context: *mut c_void) {
    let gate = &raw mut GATE;
    let context = context.cast::<ucontext_t>();
    // SAFETY: the kernel hands a valid frame; the gate belongs to this thread.
    unsafe {
        if signal == libc::SIGALRM {
            (*gate).ticks += 1;
            if (*gate).phase != Phase::Running || (*gate).ticks < TICKS_ALLOWED {
                return;
            }
        }
        match (*gate).phase {
            Phase::Launching => launch(gate, context),
            Phase::Running => finish(gate, context, signal),
            Phase::Idle => give_up(signal),
        }
    }
}

/// A fault of the harness itself: die of it, so that the parent process sees it.
fn give_up(signal: c_int) {
    // SAFETY: restores the default action; the fault repeats when the handler returns.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// # Safety
/// `gate` and `context` are valid and used by nobody else; `gate.before` is set.
unsafe fn launch(gate: *mut Gate, context: *mut ucontext_t) {
    // SAFETY: the caller's promise; `fpregs` points to the frame's XSAVE area, which the kernel made of at least
    // XSAVE_BYTES because the host has AVX.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let before = &*(*gate).before;
        (*gate).harness = *registers;
        for (index, greg) in GPRS.into_iter().enumerate() {
            registers[greg as usize] = before.gprs[index] as i64;
        }
        registers[libc::REG_RIP as usize] = before.rip as i64;
        registers[libc::REG_EFL as usize] = before.rflags as i64;
        let cs = match (*gate).mode {
            Mode::Long => USER_CS,
            Mode::Compatibility => USER32_CS,
            Mode::Sixteen => SIXTEEN_CODE.selector.into(),
        };
        registers[libc::REG_CSGSFS as usize] = ((USER_DS << 48) | cs) as i64;
        store_xsave((*context).uc_mcontext.fpregs.cast(), &before.xsave);
        (*gate).next_fs = before.fs_base;
        (*gate).next_gs = before.gs_base;
        (*gate).phase = Phase::Running;
    }
}

/// # Safety
/// As for [`launch`]; `gate.after` and `gate.harness` are set.
unsafe fn finish(gate: *mut Gate, context: *mut ucontext_t, signal: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let after = &mut *(*gate).after;
        for (index, greg) in GPRS.into_iter().enumerate() {
            after.gprs[index] = registers[greg as usize] as u64;
        }
        after.rip = registers[libc::REG_RIP as usize] as u64;
        after.rflags = registers[libc::REG_EFL as usize] as u64;
        after.fs_base = (*gate).seen_fs;
        after.gs_base = (*gate).seen_gs;
        let area = (*context).uc_mcontext.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(area, after.xsave.as_mut_ptr(), XSAVE_BYTES);
        normalize_xsave(&mut after.xsave);
        (*gate).stop = stop_of(registers, signal);
        *registers = (*gate).harness;
        registers[libc::REG_RIP as usize] += 2;
        let mut initial = [0; XSAVE_BYTES];
        crate::state::initialize_xsave(&mut initial);
        store_xsave(area, &initial);
        (*gate).next_fs = (*gate).own_fs;
        (*gate).next_gs = (*gate).own_gs;
        (*gate).phase = Phase::Idle;
    }
}

fn stop_of(registers: &[i64; GREGS], signal: c_int) -> Stop {
    if matches!(signal, libc::SIGALRM | libc::SIGSYS) {
        return Stop::Timeout;
    }
    let vector = registers[libc::REG_TRAPNO as usize] as u8;
    let error = registers[libc::REG_ERR as usize] as u32;
    let address = (vector == 14).then(|| registers[libc::REG_CR2 as usize] as u64);
    Stop::Exception { vector, error: if has_error_code(vector) { error } else { 0 }, address }
}

const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// # Safety
/// `area` points to the XSAVE area of a signal frame.
unsafe fn store_xsave(area: *mut u8, image: &[u8; XSAVE_BYTES]) {
    // SAFETY: the caller's promise; the kernel's own fields are left alone.
    unsafe {
        ptr::copy_nonoverlapping(image.as_ptr(), area, SOFTWARE_BYTES.start);
        ptr::copy_nonoverlapping(image[512..].as_ptr(), area.add(512), XSAVE_BYTES - 512);
        area.add(512).cast::<u64>().write_unaligned(XSTATE);
        area.add(520).write_bytes(0, 56);
    }
}
