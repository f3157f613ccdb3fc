//! The oracle: the CPU this process runs on.
//!
//! The kernel is the trampoline. `UD2` raises SIGILL; its handler replaces the interrupted state with the
//! sequence's and returns, so that `rt_sigreturn` loads every register, RIP and the XSAVE image at once. The
//! exception that ends the sequence is a signal again, whose frame holds the state after it, the
//! vector, the error code and CR2; its handler puts the harness's own state back.

mod signals;
mod windows;

use crate::cpu::{Cpu, Fallible};
use crate::state::{CpuState, Mode, Outcome};

use windows::Windows;

/// One per process, used by the thread that made it.
#[derive(Debug)]
pub struct NativeCpu {
    windows: Windows,
}

impl NativeCpu {
    /// # Errors
    /// When the fixed addresses are taken or the kernel does not let user mode write FS.base.
    pub fn new() -> Fallible<Self> {
        // SAFETY: `getauxval` reads the auxiliary vector only.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
        if !fsgsbase {
            return Err("the host's kernel does not enable FSGSBASE; Linux 5.11 and later do".into());
        }
        let windows = Windows::map()?;
        signals::install().map_err(|error| {
            format!("the host does not let this process set up signals, modify_ldt or syscall user dispatch: {error}")
        })?;
        Ok(Self { windows })
    }
}

impl Cpu for NativeCpu {
    fn name(&self) -> &'static str {
        "host"
    }

    fn run(&mut self, mode: Mode, before: &CpuState) -> Fallible<Outcome> {
        self.windows.store(&before.memory);
        let (mut state, stop) = signals::run(mode, before);
        self.windows.load(&mut state.memory);
        Ok(Outcome { state, stop })
    }
}
