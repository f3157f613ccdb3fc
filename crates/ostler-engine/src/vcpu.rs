//! A vCPU that several threads hold: one runs it, the others look at it in between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rustix::thread::gettid;

use crate::accel::{AccelError, Kick, Vcpu};
use crate::counters::{Counted, ExitCounters};
use crate::exit::{Exit, IoHandler};
use crate::fault;
use crate::profile::{Activity, Published};

#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error("vCPU {0} is running; pause it first")]
    Running(u32),
    #[error("vCPU {0} belongs to a thread; stop the threads before running it here")]
    Owned(u32),
    #[error(transparent)]
    Accel(#[from] AccelError),
}

/// A vCPU and what is known about it from outside.
#[derive(Debug)]
pub struct VcpuHandle {
    id: u32,
    /// Empty while the vCPU runs, so that looking at it never waits for the guest.
    idle: Mutex<Option<Box<dyn Vcpu>>>,
    kick: Arc<dyn Kick>,
    /// A kick that somebody asked for, unlike those this crate makes for its own ends.
    kicked: AtomicBool,
    owned: AtomicBool,
    /// The host's number of the thread that has claimed this vCPU; 0 where none has.
    thread: AtomicI32,
    statistics: Option<OwnedFd>,
    counters: ExitCounters,
    published: OnceLock<Arc<Published>>,
}

impl VcpuHandle {
    pub fn new(vcpu: Box<dyn Vcpu>) -> Self {
        Self {
            id: vcpu.id(),
            kick: vcpu.kicker(),
            kicked: AtomicBool::new(false),
            owned: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            statistics: vcpu.statistics(),
            idle: Mutex::new(Some(vcpu)),
            counters: ExitCounters::default(),
            published: OnceLock::new(),
        }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn counters(&self) -> &ExitCounters {
        &self.counters
    }

    /// The kernel's statistics of this vCPU ([`Vcpu::statistics`]).
    pub fn statistics(&self) -> Option<BorrowedFd<'_>> {
        self.statistics.as_ref().map(AsFd::as_fd)
    }

    /// The number (TID) of the thread that runs this vCPU, while it has one of its own.
    pub fn thread(&self) -> Option<i32> {
        Some(self.thread.load(Ordering::Acquire)).filter(|thread| *thread != 0)
    }

    /// Has the vCPU, which must not be running, say what it does; `None` where its accelerator cannot.
    pub fn publish(&self) -> Result<Option<Arc<Published>>, VcpuError> {
        let published = self.with(|vcpu| Ok(vcpu.publish()))?;
        Ok(published.map(|published| Arc::clone(self.published.get_or_init(|| published))))
    }

    fn says(&self, activity: Activity) {
        if let Some(published) = self.published.get() {
            published.begin(activity);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Option<Box<dyn Vcpu>>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Looks at, or changes, the vCPU while it is not running.
    pub fn with<R>(&self, act: impl FnOnce(&mut dyn Vcpu) -> Result<R, AccelError>) -> Result<R, VcpuError> {
        match self.idle().as_mut() {
            None => Err(VcpuError::Running(self.id)),
            Some(vcpu) => Ok(act(vcpu.as_mut())?),
        }
    }

    /// Runs the vCPU on this thread until an exit. A panic of the accelerator, or a fault of a
    /// device, is an [`Exit::InternalError`].
    ///
    /// [`Exit::Interrupted`] may also be a nudge: [`VcpuHandle::take_kick`] tells.
    pub fn run(&self, io: &dyn IoHandler) -> Result<Exit, VcpuError> {
        if self.owned.load(Ordering::Acquire) {
            return Err(VcpuError::Owned(self.id));
        }
        self.run_owned(io)
    }

    pub(crate) fn run_owned(&self, io: &dyn IoHandler) -> Result<Exit, VcpuError> {
        let mut vcpu = self.idle().take().ok_or(VcpuError::Running(self.id))?;
        let io = Counted { io, counters: &self.counters };
        let watch = fault::watch(Arc::clone(&self.kick));
        self.says(Activity::Interpreter);
        let outcome = catch_unwind(AssertUnwindSafe(|| vcpu.run(&io)));
        self.says(Activity::Paused);
        let fault = watch.end();
        *self.idle() = Some(vcpu);
        let exit = match (fault, outcome) {
            (Some(text), _) => Exit::InternalError(text),
            (None, Ok(result)) => result?,
            (None, Err(panic)) => Exit::InternalError(format!("the accelerator panicked: {}", panic_text(&*panic))),
        };
        self.counters.count(&exit);
        Ok(exit)
    }

    /// Makes the `run` under way, or the next one, return [`Exit::Interrupted`].
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.kick.kick();
    }

    /// As [`VcpuHandle::kick`], for whoever runs the vCPU and calls `run` again.
    pub fn nudge(&self) {
        self.kick.kick();
    }

    /// Whether [`VcpuHandle::kick`] was called since the last `take_kick`.
    pub fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::AcqRel)
    }

    /// Makes the vCPU a thread's own; false when it is one's already.
    pub(crate) fn claim(&self) -> bool {
        !self.owned.swap(true, Ordering::AcqRel)
    }

    /// The thread that claimed the vCPU says that it is this one.
    pub(crate) fn runs_here(&self) {
        self.thread.store(gettid().as_raw_nonzero().get(), Ordering::Release);
    }

    pub(crate) fn release(&self) {
        self.thread.store(0, Ordering::Release);
        self.owned.store(false, Ordering::Release);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Bus, BusDevice, Space};
    use crate::counters::ExitKind;
    use crate::exit::NobodyAnswers;
    use crate::testing::{HLT, OUT_IMM8, PANIC, SPIN, toy_vcpu};

    #[derive(Debug)]
    struct Faulty;

    impl BusDevice for Faulty {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) {
            assert!(fault::report("first".into()) && fault::report("second".into()));
        }
    }

    #[test]
    fn run_gives_each_exit_and_counts_it_once() {
        let vcpu = VcpuHandle::new(toy_vcpu(&[&OUT_IMM8, &HLT]));
        assert_eq!(vcpu.run(&NobodyAnswers).expect("runs"), Exit::IoOut { port: 0x10, data: vec![0] });
        assert_eq!(vcpu.run(&NobodyAnswers).expect("runs"), Exit::Hlt);
        let counts = ExitKind::ALL.map(|kind| vcpu.counters().get(kind));
        assert_eq!(counts, [0, 1, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn panic_in_the_accelerator_is_an_internal_error_and_the_vcpu_stays() {
        let vcpu = VcpuHandle::new(toy_vcpu(&[&PANIC]));
        let exit = vcpu.run(&NobodyAnswers).expect("runs");
        assert_eq!(exit, Exit::InternalError("the accelerator panicked: opcode 0xcc".into()));
        vcpu.with(|vcpu| vcpu.regs()).expect("registers");
    }

    #[test]
    fn fault_of_a_device_ends_the_run_with_the_first_report() {
        let bus = Bus::new();
        bus.add(Space::Pio, 0x10, 1, "faulty", Arc::new(Faulty)).expect("a free range");
        let vcpu = VcpuHandle::new(toy_vcpu(&[&OUT_IMM8, &SPIN]));
        assert_eq!(vcpu.run(&bus).expect("runs"), Exit::InternalError("first".into()));
        assert!(!fault::report("nobody runs".into()));
    }

    #[test]
    fn vcpu_running_refuses_a_look_until_it_is_kicked() {
        let vcpu = Arc::new(VcpuHandle::new(toy_vcpu(&[&SPIN])));
        let runner = std::thread::spawn({
            let vcpu = Arc::clone(&vcpu);
            move || vcpu.run(&NobodyAnswers).expect("runs")
        });
        while vcpu.with(|vcpu| vcpu.regs()).is_ok() {
            std::thread::yield_now();
        }
        assert!(matches!(vcpu.run(&NobodyAnswers), Err(VcpuError::Running(0))));
        vcpu.kick();
        assert_eq!(runner.join().expect("ends"), Exit::Interrupted);
        assert!(vcpu.take_kick() && !vcpu.take_kick());
    }
}
