//! Interrupts `KVM_RUN` from another thread.
//!
//! A kick sets `immediate_exit`, which the kernel looks at when it is about to enter the guest, and
//! sends a signal, which brings it back from there. Whichever comes too late for one is in time for
//! the other.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once};
use std::time::Duration;

use ostler_engine::Kick;

/// A vCPU leaves the guest within microseconds of a signal.
const LEAVING: Duration = Duration::from_micros(50);

/// The kick of one vCPU.
#[derive(Debug, Default)]
pub struct KvmKick {
    kicked: AtomicBool,
    /// In `KVM_RUN`, and how often it came back.
    inside: AtomicBool,
    returns: AtomicU64,
    runner: Mutex<Option<Runner>>,
    /// A vCPU that is halted without the kernel's knowledge waits here.
    wake: Condvar,
}

/// The thread that is in `run`, and the byte that keeps it from entering the guest.
#[derive(Debug)]
struct Runner {
    thread: libc::pid_t,
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is used under the mutex, and only while the vCPU that owns it is in `run`.
unsafe impl Send for Runner {}

impl KvmKick {
    fn runner(&self) -> MutexGuard<'_, Option<Runner>> {
        self.runner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether there was a kick since the last time.
    pub fn take(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// From now on this thread is the one to signal, until the guard goes.
    ///
    /// # Safety
    /// `immediate_exit` points to that byte of the vCPU's `kvm_run` page, which stays mapped until the
    /// guard goes.
    pub unsafe fn enter(self: &Arc<Self>, immediate_exit: *mut u8) -> Entered {
        prepare_thread();
        // SAFETY: no preconditions.
        let thread = unsafe { libc::gettid() };
        *self.runner() = Some(Runner { thread, immediate_exit });
        Entered(Arc::clone(self))
    }

    /// `KVM_RUN` begins and ends.
    pub fn begins(&self) {
        self.inside.store(true, Ordering::SeqCst);
    }

    pub fn ends(&self) {
        self.returns.fetch_add(1, Ordering::SeqCst);
        self.inside.store(false, Ordering::SeqCst);
    }

    /// Brings the vCPU out of `KVM_RUN`, from where it goes on by itself; unlike a kick.
    pub fn interrupt(&self) {
        if self.inside.load(Ordering::SeqCst) {
            self.signal();
        }
    }

    /// Returns when the vCPU has left the guest since this call, or is not there.
    pub fn wait_until_left(&self) {
        let before = self.returns.load(Ordering::SeqCst);
        while self.inside.load(Ordering::SeqCst) && self.returns.load(Ordering::SeqCst) == before {
            self.signal();
            std::thread::sleep(LEAVING);
        }
    }

    fn signal(&self) {
        let runner = self.runner();
        self.wake.notify_all();
        let Some(runner) = runner.as_ref() else { return };
        // SAFETY: the page stays mapped while there is a runner, and we hold the lock that it takes to
        // change that; the kernel only reads the byte.
        unsafe { AtomicU8::from_ptr(runner.immediate_exit) }.store(1, Ordering::SeqCst);
        // SAFETY: no preconditions.
        let (process, this) = unsafe { (libc::getpid(), libc::gettid()) };
        if runner.thread != this {
            // SAFETY: the thread is in `run`, so it exists, and its handler for the signal does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, process, runner.thread, signal()) };
        }
    }

    /// Sleeps until the next kick.
    pub fn wait(&self) {
        let mut runner = self.runner();
        while !self.kicked.load(Ordering::SeqCst) {
            runner = self.wake.wait(runner).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.signal();
    }
}

/// While this lives, kicks signal the thread that made it.
#[derive(Debug)]
pub struct Entered(Arc<KvmKick>);

impl Drop for Entered {
    fn drop(&mut self) {
        *self.0.runner() = None;
    }
}

/// A real-time signal that neither glibc nor Python uses.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// Installs a handler that does nothing (the signal's default is to end the process), and lets this
/// thread receive the signal.
fn prepare_thread() {
    static INSTALLED: Once = Once::new();
    thread_local! {
        static PREPARED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if PREPARED.replace(true) {
        return;
    }
    INSTALLED.call_once(|| {
        // SAFETY: zeros are a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        // Other system calls on the thread go on; KVM_RUN ends in any case.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialized, and its handler async-signal-safe.
        let result = unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) };
        assert_eq!(result, 0, "a real-time signal takes a handler");
    });
    // SAFETY: zeros are a valid set, which `sigemptyset` then initializes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
