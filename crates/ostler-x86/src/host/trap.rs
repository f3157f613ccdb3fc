//! Runs a stub with floating-point exceptions unmasked, so that the host itself says what traps and which flags are set.
//!
//! Only the processor knows that exactly: a tiny result that is exact, PE of a result whose exponent did not fit, and in
//! what order DPPS looks at products and sums. The kernel answers #XM with SIGFPE. The handler is installed only
//! while stubs run here, and gives every other SIGFPE back to the action that was there before.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use crate::host::stub::{Frame, Stub};

thread_local! {
    /// The frame of the stub that runs on this thread and may trap.
    static TRAPPING: Cell<*mut Frame> = const { Cell::new(std::ptr::null_mut()) };
}

/// How many threads need the handler.
static USERS: Mutex<usize> = Mutex::new(0);

/// The action that was there before ours.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: written only under USERS and while our handler is not installed; the handler only reads it.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));

/// Runs `stub`, whose frame says which exceptions are unmasked. Afterwards `trapped` is not 0 if one of them was
/// raised: then nothing was stored, and `mxcsr_after` has its flags.
pub fn run(stub: &Stub, frame: &mut Frame) {
    frame.recover = stub.recover;
    frame.trapped = 0;
    let frame = std::ptr::from_mut(frame);
    let handled = Handled::begin();
    TRAPPING.set(frame);
    (stub.run)(frame);
    TRAPPING.set(std::ptr::null_mut());
    drop(handled);
}

/// While this lives, SIGFPE has our handler and is not blocked on this thread.
struct Handled {
    mask: libc::sigset_t,
}

impl Handled {
    fn begin() -> Self {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            // SAFETY: zeros are a valid sigaction; the handler is async-signal-safe; nobody reads PREVIOUS yet.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_trap as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
                libc::sigaction(libc::SIGFPE, &raw const action, PREVIOUS.0.get().cast());
            }
        }
        *users += 1;
        // SAFETY: zeros are valid sets, and the calls initialize them.
        let mask = unsafe {
            let (mut trap, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&raw mut trap);
            libc::sigaddset(&raw mut trap, libc::SIGFPE);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const trap, &raw mut before);
            before
        };
        Self { mask }
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        // SAFETY: the set is what `begin` found, and PREVIOUS what it put there.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, std::ptr::null_mut()) };
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0 {
            restore();
        }
    }
}

fn restore() {
    // SAFETY: PREVIOUS was filled when our handler was installed.
    unsafe { libc::sigaction(libc::SIGFPE, PREVIOUS.0.get().cast(), std::ptr::null_mut()) };
}

/// Goes on where the stub ends without a result. A trap elsewhere happens again, and finds the action it belongs to.
extern "C" fn on_trap(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    let frame = TRAPPING.get();
    if frame.is_null() {
        restore();
        return;
    }
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel hands a valid context; the frame belongs to the stub that was interrupted on this thread.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = (*frame).recover as i64 };
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Instruction, Register};

    use super::*;
    use crate::host::stub::stub;

    /// All exceptions unmasked.
    const UNMASKED: u32 = 0;
    const UNDERFLOW: u32 = 0x10;
    const HOST: u32 = 0x1f80;

    /// Multiplies two doubles as MULSD does; the product, MXCSR afterwards and whether it trapped.
    fn multiply(left: f64, right: f64) -> (f64, u32, bool) {
        let instruction = Instruction::with2(Code::Mulsd_xmm_xmmm64, Register::XMM5, Register::XMM6).expect("exists");
        let stub = stub(&instruction, true).expect("the host has SSE2");
        let mut registers = [[0u8; 32]; 2];
        registers[0][..8].copy_from_slice(&left.to_le_bytes());
        registers[1][..8].copy_from_slice(&right.to_le_bytes());
        let mut frame = Frame { mxcsr: UNMASKED, mxcsr_host: HOST, ..Frame::default() };
        for (operand, register) in frame.operands.iter_mut().zip(&mut registers) {
            *operand = register.as_mut_ptr();
        }
        let mut unused = [0u8; 32];
        frame.implicit = unused.as_mut_ptr();
        run(stub, &mut frame);
        let product = f64::from_le_bytes(registers[0][..8].try_into().expect("8 bytes"));
        (product, frame.mxcsr_after, frame.trapped != 0)
    }

    extern "C" fn of_somebody_else(_signal: c_int) {}

    fn action() -> usize {
        // SAFETY: zeros are a valid sigaction, which the call replaces.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGFPE, std::ptr::null(), &raw mut action);
            action.sa_sigaction
        }
    }

    #[test]
    fn traps_of_many_threads_are_each_their_own_and_leave_the_action_of_others() {
        let theirs = of_somebody_else as extern "C" fn(c_int) as usize;
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGFPE, theirs) };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        // Tiny, and exact: the result stays away, and only UE says why.
                        assert_eq!(multiply(f64::MIN_POSITIVE, 0.5), (f64::MIN_POSITIVE, UNDERFLOW, true));
                        assert_eq!(multiply(1.5, 2.0), (3.0, 0, false));
                    }
                });
            }
        });
        assert_eq!(action(), theirs);
    }
}
