//! One host thread per vCPU, and the means to pause, resume and stop them together.
//!
//! The threads of a VM share one target, and each has one state:
//!
//! ```text
//!              target Run                     target Stop
//!   Paused <==============> Running     any ==============> Finished
//!              target Pause, or an exit that nobody answers
//! ```
//!
//! The target is changed by callers, a state only by its own thread, both under one lock. A caller
//! that wants less running kicks every vCPU whose state is `Running`; a kick is never lost, so it
//! is enough to kick once.

use std::cell::Cell;
use std::fmt::{self, Debug};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};

use crate::clock::VmClock;
use crate::exit::{Exit, IoHandler};
use crate::vcpu::VcpuHandle;

/// What one vCPU thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// Waits; its vCPU can be looked at.
    Paused,
    /// The thread is leaving, or gone.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Run,
    Pause,
    Stop,
}

#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    #[error("vCPU {0} has a thread already")]
    Owned(u32),
    #[error("the host gives no thread for vCPU {id}")]
    Spawn {
        id: u32,
        #[source]
        source: std::io::Error,
    },
}

/// Is told of every exit that nobody answered, on the thread of the vCPU (by number) that made it.
pub type OnExit = dyn Fn(u32, Exit) + Send + Sync;

/// The running threads of one VM.
///
/// Any exit that reaches a thread (a triple fault, a breakpoint, an access nobody owns) pauses the
/// whole VM, and is then reported. [`Threads::resume`] runs on from there.
///
/// [`Threads::pause`] and [`Threads::stop`] may be called on the vCPU threads themselves, by a
/// device or by `on_exit`: they then only ask and return at once, and take effect when this vCPU's
/// current instruction is done.
#[derive(Debug)]
pub struct Threads {
    group: Arc<Group>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts a thread named `vcpu0`, `vcpu1`.. for each vCPU, after its number. `clock` stands
    /// still while no vCPU runs; with `paused`, the first to let them is [`Threads::resume`].
    pub fn start(
        vcpus: Vec<Arc<VcpuHandle>>,
        io: Arc<dyn IoHandler + Send>,
        clock: Arc<VmClock>,
        on_exit: Box<OnExit>,
        paused: bool,
    ) -> Result<Self, ThreadError> {
        claim_all(&vcpus)?;
        let target = if paused { Target::Pause } else { Target::Run };
        let states = vec![State::Paused; vcpus.len()];
        if paused {
            clock.freeze()
        } else {
            clock.thaw()
        }
        let group = Arc::new(Group {
            control: Mutex::new(Control { target, states }),
            wake: Condvar::new(),
            settled: Condvar::new(),
            vcpus,
            io,
            clock,
            on_exit,
        });
        let threads = Self { group, handles: Mutex::default() };
        threads.spawn_all()?;
        Ok(threads)
    }

    /// On an error the threads that were started end when `self` is dropped.
    fn spawn_all(&self) -> Result<(), ThreadError> {
        let mut handles = lock(&self.handles);
        for (index, vcpu) in self.group.vcpus.iter().enumerate() {
            let (group, id) = (Arc::clone(&self.group), vcpu.id());
            let thread = Builder::new().name(format!("vcpu{id}")).spawn(move || group.run(index));
            match thread {
                Ok(handle) => handles.push(handle),
                Err(source) => {
                    self.group.vcpus[index..].iter().for_each(|vcpu| vcpu.release());
                    return Err(ThreadError::Spawn { id, source });
                }
            }
        }
        Ok(())
    }

    /// Returns when no vCPU runs any more, or when somebody else resumed meanwhile.
    pub fn pause(&self) {
        let mut control = self.group.request(Target::Pause);
        if self.group.is_mine() {
            return;
        }
        while control.target == Target::Pause && control.states.contains(&State::Running) {
            control = wait(&self.group.settled, control);
        }
    }

    /// Lets every vCPU run on; nothing after [`Threads::stop`].
    pub fn resume(&self) {
        drop(self.group.request(Target::Run));
    }

    /// Returns when every thread is gone.
    pub fn stop(&self) {
        drop(self.group.request(Target::Stop));
        if self.group.is_mine() {
            return;
        }
        for handle in lock(&self.handles).drain(..) {
            // A thread that panicked has left its state behind as `Finished` like any other.
            let _panicked = handle.join();
        }
    }

    /// Whether the vCPUs run, or are about to.
    pub fn is_running(&self) -> bool {
        let control = lock(&self.group.control);
        control.target == Target::Run && control.states.iter().any(|state| *state != State::Finished)
    }

    /// What each thread is doing, in the order the vCPUs were given.
    pub fn states(&self) -> Vec<State> {
        lock(&self.group.control).states.clone()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn claim_all(vcpus: &[Arc<VcpuHandle>]) -> Result<(), ThreadError> {
    match vcpus.iter().position(|vcpu| !vcpu.claim()) {
        None => Ok(()),
        Some(taken) => {
            vcpus[..taken].iter().for_each(|vcpu| vcpu.release());
            Err(ThreadError::Owned(vcpus[taken].id()))
        }
    }
}

struct Group {
    control: Mutex<Control>,
    /// Paused threads wait here for another target.
    wake: Condvar,
    /// Callers wait here for states.
    settled: Condvar,
    vcpus: Vec<Arc<VcpuHandle>>,
    io: Arc<dyn IoHandler + Send>,
    clock: Arc<VmClock>,
    on_exit: Box<OnExit>,
}

struct Control {
    target: Target,
    states: Vec<State>,
}

thread_local! {
    /// The group whose vCPU this thread is; an address that is only compared.
    static MINE: Cell<*const Group> = const { Cell::new(std::ptr::null()) };
}

impl Group {
    fn is_mine(&self) -> bool {
        MINE.get() == std::ptr::from_ref(self)
    }

    /// Sets the target and sees to it that every thread takes notice. Stopping is final.
    fn request(&self, target: Target) -> MutexGuard<'_, Control> {
        let mut control = lock(&self.control);
        if control.target != Target::Stop {
            control.target = target;
            self.announce(&control);
        }
        control
    }

    fn announce(&self, control: &Control) {
        if control.target == Target::Run {
            self.clock.thaw();
        } else {
            let running = control.states.iter().zip(&self.vcpus).filter(|(state, _)| **state == State::Running);
            running.for_each(|(_, vcpu)| vcpu.nudge());
            self.freeze_if_still(control);
        }
        self.wake.notify_all();
        self.settled.notify_all();
    }

    fn freeze_if_still(&self, control: &Control) {
        if control.target != Target::Run && !control.states.contains(&State::Running) {
            self.clock.freeze();
        }
    }

    fn settle(&self, control: &mut Control, index: usize, state: State) {
        control.states[index] = state;
        self.freeze_if_still(control);
        self.settled.notify_all();
    }

    /// The body of the thread of vCPU number `index` of this group.
    fn run(&self, index: usize) {
        MINE.set(self);
        self.vcpus[index].runs_here();
        let _leaving = Leaving { group: self, index };
        while self.may_run(index) {
            let exit = self.vcpus[index].run_owned(&*self.io);
            match exit.unwrap_or_else(|error| Exit::InternalError(error.to_string())) {
                Exit::Interrupted => {}
                exit => self.report(index, exit),
            }
        }
    }

    /// Waits for another target than Pause; false when it is Stop.
    fn may_run(&self, index: usize) -> bool {
        let mut control = lock(&self.control);
        loop {
            match control.target {
                Target::Stop => return false,
                Target::Pause => {
                    self.settle(&mut control, index, State::Paused);
                    control = wait(&self.wake, control);
                }
                Target::Run => {
                    control.states[index] = State::Running;
                    return true;
                }
            }
        }
    }

    /// Pauses the VM and says why. Meanwhile the vCPU counts as paused: it can be looked at.
    fn report(&self, index: usize, exit: Exit) {
        let mut control = lock(&self.control);
        self.settle(&mut control, index, State::Paused);
        if control.target == Target::Run {
            control.target = Target::Pause;
            self.announce(&control);
        }
        drop(control);
        (self.on_exit)(self.vcpus[index].id(), exit);
    }
}

impl Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}

/// Marks a thread as finished, however it leaves.
struct Leaving<'a> {
    group: &'a Group,
    index: usize,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.group.vcpus[self.index].release();
        self.group.settle(&mut lock(&self.group.control), self.index, State::Finished);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn wait<'a>(condition: &Condvar, control: MutexGuard<'a, Control>) -> MutexGuard<'a, Control> {
    condition.wait(control).unwrap_or_else(|poisoned| poisoned.into_inner())
}
