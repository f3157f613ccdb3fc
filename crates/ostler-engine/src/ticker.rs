//! Brings vCPUs that run on somebody's own thread back to it from time to time.
//!
//! A thread inside `run` cannot see a signal that its language runtime keeps for it (Ctrl-C in
//! Python). One thread per process nudges whoever asked for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crate::vcpu::VcpuHandle;

/// Short beside a human's patience, long beside the cost of leaving `run`.
const PERIOD: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Ticker {
    state: Mutex<State>,
    wanted: Condvar,
}

#[derive(Default)]
struct State {
    vcpus: Vec<Arc<VcpuHandle>>,
    /// The ticking thread sleeps until it is wanted.
    asleep: bool,
    started: bool,
}

fn ticker() -> &'static Ticker {
    static TICKER: OnceLock<Ticker> = OnceLock::new();
    TICKER.get_or_init(Ticker::default)
}

/// Nudges a vCPU every 50 ms as long as it lives.
#[derive(Debug)]
pub struct Ticking(Arc<VcpuHandle>);

impl Ticking {
    /// Starts nudging. An error means that the host gives no thread.
    pub fn start(vcpu: &Arc<VcpuHandle>) -> std::io::Result<Self> {
        let ticker = ticker();
        let mut state = ticker.lock();
        if !state.started {
            std::thread::Builder::new().name("ticker".into()).spawn(|| ticker.tick_forever())?;
            state.started = true;
        }
        state.vcpus.push(Arc::clone(vcpu));
        if state.asleep {
            ticker.wanted.notify_one();
        }
        Ok(Self(Arc::clone(vcpu)))
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        let mut state = ticker().lock();
        if let Some(at) = state.vcpus.iter().position(|vcpu| Arc::ptr_eq(vcpu, &self.0)) {
            state.vcpus.swap_remove(at);
        }
    }
}

impl Ticker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Falls asleep only after a period in which nobody ran, so that a loop of short runs does not
    /// wake this thread each time.
    fn tick_forever(&self) -> ! {
        loop {
            std::thread::sleep(PERIOD);
            let mut state = self.lock();
            while state.vcpus.is_empty() {
                state.asleep = true;
                state = self.wanted.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            state.asleep = false;
            state.vcpus.iter().for_each(|vcpu| vcpu.nudge());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, NobodyAnswers};
    use crate::testing::{SPIN, toy_vcpu};

    #[test]
    fn ticking_interrupts_each_run_without_a_kick() {
        let vcpu = Arc::new(VcpuHandle::new(toy_vcpu(&[&SPIN])));
        let _ticking = Ticking::start(&vcpu).expect("a thread");
        for _ in 0..2 {
            assert_eq!(vcpu.run(&NobodyAnswers).expect("runs"), Exit::Interrupted);
            assert!(!vcpu.take_kick());
        }
    }
}
