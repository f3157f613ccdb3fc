//! The software CPU against itself: what is translated has to do what is interpreted, whatever the code.
//!
//! Here code may be anything, also what no oracle on the host could run: endless loops, jumps into the middle of
//! instructions, code that changes itself. A run that does not end by itself is ended, and compared with nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iced_x86::{Decoder, DecoderOptions};
use ostler_engine::Kick;
use ostler_x86::{SoftAccelerator, Translate};

use crate::cpu::{Cpu, Fallible};
use crate::flags;
use crate::soft::SoftCpu;
use crate::state::{CpuState, GPR_NAMES, Mode, Outcome, Stop};

/// How long an interpreted run may take, and how long a translated one gets that ended when interpreted.
const BUDGET: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// Instructions that are looked at one by one where the flags differ.
const STEPS: usize = 100_000;

/// What came of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    /// It did not end in time.
    Endless,
    /// It differs from itself: it read the time, or random numbers.
    Unsteady,
    /// It left flags undefined, so that what differs may differ.
    Undefined,
    /// One line per difference.
    Different(Vec<String>),
}

/// Kicks a CPU that runs for too long.
#[derive(Debug)]
struct Watchdog {
    shared: Arc<(Mutex<Option<Instant>>, Condvar)>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn new(kicker: Arc<dyn Kick>) -> Self {
        let shared: Arc<(Mutex<Option<Instant>>, Condvar)> = Arc::default();
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (shared, ended) = (Arc::clone(&shared), Arc::clone(&ended));
            move || watch(&shared, &ended, kicker.as_ref())
        });
        Self { shared, ended, thread: Some(thread) }
    }

    fn set(&self, deadline: Option<Instant>) {
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
        self.shared.1.notify_one();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.set(None);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &(Mutex<Option<Instant>>, Condvar), ended: &AtomicBool, kicker: &dyn Kick) {
    let mut deadline = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !ended.load(Ordering::SeqCst) {
        let left = deadline.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            // The kick may hit between two runs, and end the next at once: that one is then started again.
            *deadline = None;
            kicker.kick();
        }
        deadline = shared.1.wait_timeout(deadline, left.max(BUDGET)).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// One of the two.
#[derive(Debug)]
struct Twin {
    cpu: SoftCpu,
    watchdog: Watchdog,
}

impl Twin {
    fn new(translate: Translate) -> Fallible<Self> {
        let cpu = SoftCpu::new(&SoftAccelerator { translate })?;
        let watchdog = Watchdog::new(cpu.kicker());
        Ok(Self { cpu, watchdog })
    }

    fn run(&mut self, before: &CpuState, budget: Duration) -> Fallible<Outcome> {
        loop {
            let began = Instant::now();
            self.watchdog.set(Some(began + budget));
            let outcome = self.cpu.run(Mode::Long, before)?;
            self.watchdog.set(None);
            if outcome.stop != Stop::Timeout || began.elapsed() >= budget {
                return Ok(outcome);
            }
        }
    }
}

/// An interpreter and a translator.
#[derive(Debug)]
pub struct Twins {
    interpreter: Twin,
    translator: Twin,
}

impl Twins {
    pub fn new() -> Fallible<Self> {
        Ok(Self { interpreter: Twin::new(Translate::Never)?, translator: Twin::new(Translate::Eagerly)? })
    }

    /// Runs 64-bit code from `before` on both.
    pub fn compare(&mut self, before: &CpuState) -> Fallible<Verdict> {
        let interpreted = self.interpreter.run(before, BUDGET)?;
        if interpreted.stop == Stop::Timeout {
            return Ok(Verdict::Endless);
        }
        let translated = self.translator.run(before, PATIENCE)?;
        let found = differences(&interpreted, &translated);
        if found.is_empty() {
            return Ok(Verdict::Same);
        }
        let again = self.interpreter.run(before, PATIENCE)?;
        if !differences(&interpreted, &again).is_empty() {
            return Ok(Verdict::Unsteady);
        }
        let undefined = self.leaves_flags_undefined(before)?;
        Ok(if undefined { Verdict::Undefined } else { Verdict::Different(found) })
    }

    /// Whether an instruction that runs leaves a flag undefined.
    fn leaves_flags_undefined(&mut self, before: &CpuState) -> Fallible<bool> {
        let mut undefined = false;
        self.interpreter.cpu.step(before, STEPS, |code, rip| {
            let mut decoder = Decoder::with_ip(64, code, rip, DecoderOptions::NONE);
            undefined |= flags::after(&decoder.decode(), 0) != 0;
        })?;
        Ok(undefined)
    }
}

/// One line per difference.
fn differences(interpreted: &Outcome, translated: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    if interpreted.stop != translated.stop {
        found.push(format!("stop: interpreted {:?}, translated {:?}", interpreted.stop, translated.stop));
    }
    let (one, other) = (&interpreted.state, &translated.state);
    let mut differ = |name: &str, one: u64, other: u64| {
        if one != other {
            found.push(format!("{name}: interpreted {one:#x}, translated {other:#x}"));
        }
    };
    for (index, name) in GPR_NAMES.iter().enumerate() {
        differ(name, one.gprs[index], other.gprs[index]);
    }
    differ("rip", one.rip, other.rip);
    differ("rflags", one.rflags, other.rflags);
    differ("fs_base", one.fs_base, other.fs_base);
    differ("gs_base", one.gs_base, other.gs_base);
    bytes("xsave", &one.xsave[..], &other.xsave[..], &mut found);
    bytes("memory", &one.memory[..], &other.memory[..], &mut found);
    found
}

fn bytes(name: &str, one: &[u8], other: &[u8], found: &mut Vec<String>) {
    if let Some(at) = one.iter().zip(other).position(|(one, other)| one != other) {
        found.push(format!("{name} from {at:#x} on: interpreted {:#x}, translated {:#x}", one[at], other[at]));
    }
}
