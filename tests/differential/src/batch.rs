//! Runs a range of sequences in a forked process and goes on behind the one that killed it.

use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::{Code, FlowControl, Mnemonic};
use ostler_engine::Accelerator;

use crate::arguments::Arguments;
use crate::cases::Case;
use crate::compare;
use crate::cpu::{Cpu, Fallible};
use crate::emulated::is_native;
use crate::generate::Generator;
use crate::native::NativeCpu;
use crate::random::mix;
use crate::report;
use crate::sequence::Sequence;
use crate::shared::Shared;
use crate::shrink::shrink;
use crate::soft::SoftCpu;
use crate::state::{Outcome, Stop};
use crate::vendor;

/// Sequences take microseconds: a process that does not get on for this long never will.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Makes the accelerator to compare with the host; `None` compares the host with itself.
pub type MakeAccelerator = fn() -> Option<Box<dyn Accelerator>>;

/// Where the sequences of a batch come from.
#[derive(Debug)]
pub enum Source {
    Random(Generator),
    /// Picked by hand.
    Cases(Vec<Case>),
}

impl Source {
    /// The sequence of this number, assembled.
    fn sequence(&self, seed: u64, index: u64) -> Fallible<Sequence> {
        let mut sequence = match self {
            Self::Random(generator) => generator.sequence(mix(seed ^ index.wrapping_mul(0x9e37_79b9)), index),
            Self::Cases(cases) => cases[index as usize].sequence(index),
        };
        sequence.assemble()?;
        Ok(sequence)
    }

    /// The options that name this source.
    fn options(&self, arguments: &Arguments) -> String {
        let filter = arguments.filter.as_ref().map_or(String::new(), |filter| format!(" --filter {filter}"));
        match self {
            Self::Random(generator) => format!("--seed {} --mode {}{filter}", arguments.seed, generator.mode().bits()),
            Self::Cases(_) => format!("--cases{filter}"),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Random(generator) => format!("{}-bit", generator.mode().bits()),
            Self::Cases(_) => "by hand".to_owned(),
        }
    }
}

/// Some sequences of one source.
#[derive(Debug)]
pub struct Batch<'a> {
    pub arguments: &'a Arguments,
    pub source: Source,
    pub count: u64,
    pub make: MakeAccelerator,
    /// The other side is a KVM that emulates: only what it runs on the CPU is compared.
    pub natively: bool,
}

/// What is left of a batch.
#[derive(Debug)]
pub struct Summary {
    pub different: u64,
    /// What was executed or faulted.
    pub ran: HashSet<Mnemonic>,
}

/// The two CPUs of one process.
struct Pair {
    host: NativeCpu,
    other: Option<SoftCpu>,
    make: MakeAccelerator,
    natively: bool,
}

impl Pair {
    fn new(make: MakeAccelerator, natively: bool) -> Fallible<Self> {
        Ok(Self { host: NativeCpu::new()?, other: new_soft(make)?, make, natively })
    }

    fn run(&mut self, sequence: &Sequence) -> Fallible<(Outcome, Outcome)> {
        let expected = self.host.run(sequence.mode, &sequence.before)?;
        let emulated = self.natively && !is_native(sequence, &expected);
        if expected.stop == Stop::Timeout || emulated {
            // It is not compared, and may not end there either.
            return Ok((expected.clone(), expected));
        }
        let Some(soft) = &mut self.other else {
            return Ok((expected, self.host.run(sequence.mode, &sequence.before)?));
        };
        let run = panic::catch_unwind(AssertUnwindSafe(|| soft.run(sequence.mode, &sequence.before)));
        let actual = match run {
            Ok(actual) => actual?,
            Err(_) => {
                self.other = new_soft(self.make)?;
                Outcome { state: sequence.before.clone(), stop: Stop::Broken(format!("panicked at {}", panic_place())) }
            }
        };
        Ok((expected, actual))
    }

    fn differs(&mut self, sequence: &Sequence) -> Fallible<bool> {
        let (expected, actual) = self.run(sequence)?;
        Ok(is_difference(sequence, &expected, &actual))
    }
}

/// Where the last panic was.
static PANIC_PLACE: Mutex<String> = Mutex::new(String::new());

fn panic_place() -> String {
    PANIC_PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

fn new_soft(make: MakeAccelerator) -> Fallible<Option<SoftCpu>> {
    make().map(|accelerator| SoftCpu::new(accelerator.as_ref())).transpose()
}

impl Batch<'_> {
    /// Runs all sequences.
    pub fn run(&self) -> Fallible<Summary> {
        let shared = Shared::new()?;
        let range = self.range();
        shared.counters().next.store(range.start, Ordering::Relaxed);
        let begun = Instant::now();
        while shared.counters().next.load(Ordering::Relaxed) < range.end {
            self.run_process(&shared, range.end)?;
        }
        self.summarize(&shared, begun.elapsed());
        Ok(Summary {
            different: shared.counters().different.load(Ordering::Relaxed),
            ran: Code::values().filter(|code| shared.attempted(*code) > 0).map(Code::mnemonic).collect(),
        })
    }

    fn range(&self) -> std::ops::Range<u64> {
        match self.arguments.replay {
            Some(index) => index..self.count.min(index + 1),
            None => 0..self.count,
        }
    }

    fn summarize(&self, shared: &Shared, elapsed: Duration) {
        let counters = shared.counters();
        let ran = counters.ran.load(Ordering::Relaxed);
        println!(
            "{}: {ran} sequences in {:.1} s, {} different, {} without an end, seed {}",
            self.source.name(),
            elapsed.as_secs_f64(),
            counters.different.load(Ordering::Relaxed),
            counters.skipped.load(Ordering::Relaxed),
            self.arguments.seed,
        );
        if self.natively {
            println!("not compared, as this KVM emulates it: {}", counters.emulated.load(Ordering::Relaxed));
        }
        if self.arguments.replay.is_none() {
            print!("{}", report::ranking(shared));
            if let Source::Random(generator) = &self.source {
                print!("{}", report::coverage(shared, generator.leaders()));
            }
        }
    }

    /// One process: until the range is done, or it dies, in which case the sequence it died of is left behind.
    fn run_process(&self, shared: &Shared, end: u64) -> Fallible<()> {
        // SAFETY: this process has one thread, so that the child may do anything.
        let child = unsafe { libc::fork() };
        match child {
            -1 => return Err(std::io::Error::last_os_error().into()),
            0 => {
                let done = self.work(shared, end);
                if let Err(error) = &done {
                    eprintln!("{error}");
                }
                // SAFETY: leaves without the parent's exit handlers.
                unsafe { libc::_exit(if done.is_ok() { 0 } else { 2 }) }
            }
            _ => {}
        }
        let how = wait(child, shared)?;
        if how == "exit status 0" {
            return Ok(());
        }
        let index = shared.counters().next.fetch_add(1, Ordering::Relaxed);
        shared.counters().different.fetch_add(1, Ordering::Relaxed);
        println!("process ended: {how} ({})", self.replay(index));
        Ok(())
    }

    fn work(&self, shared: &Shared, end: u64) -> Fallible<()> {
        // A panic of the software CPU is a difference like others; where it was is part of the report.
        panic::set_hook(Box::new(|information| {
            let place = information.location().map_or(String::new(), ToString::to_string);
            *PANIC_PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = place;
        }));
        let mut pair = Pair::new(self.make, self.natively)?;
        loop {
            let index = shared.counters().next.load(Ordering::Relaxed);
            if index >= end {
                return Ok(());
            }
            self.one(&mut pair, shared, index)?;
            shared.counters().next.store(index + 1, Ordering::Relaxed);
        }
    }

    fn one(&self, pair: &mut Pair, shared: &Shared, index: u64) -> Fallible<()> {
        let sequence = self.source.sequence(self.arguments.seed, index)?;
        let (expected, actual) = pair.run(&sequence)?;
        shared.counters().ran.fetch_add(1, Ordering::Relaxed);
        if expected.stop == Stop::Timeout {
            shared.counters().skipped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if self.natively && !is_native(&sequence, &expected) {
            shared.counters().emulated.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        note_coverage(shared, &sequence, expected.state.rip);
        if is_difference(&sequence, &expected, &actual) {
            self.report(pair, shared, &sequence, index)?;
        }
        Ok(())
    }

    fn report(&self, pair: &mut Pair, shared: &Shared, sequence: &Sequence, index: u64) -> Fallible<()> {
        let small = shrink(sequence, |trial| pair.differs(trial))?;
        let (expected, actual) = pair.run(&small)?;
        let lines = compare::differences(&small, &expected, &actual);
        let culprit = small.items.last().or(sequence.items.last()).map_or(Code::INVALID, |item| item.code());
        if shared.note_difference(culprit) < self.arguments.details {
            println!("{}", report::difference(&small, &expected, &lines, &self.replay(index)));
        }
        Ok(())
    }

    fn replay(&self, index: u64) -> String {
        format!("{} --replay {index}", self.source.options(self.arguments))
    }
}

fn is_difference(sequence: &Sequence, expected: &Outcome, actual: &Outcome) -> bool {
    expected.stop != Stop::Timeout
        && !vendor::may_differ(sequence, expected, actual)
        && !compare::differences(sequence, expected, actual).is_empty()
}

/// Counts what ran: all before the instruction at `rip`, as far as no branch can have left something out.
fn note_coverage(shared: &Shared, sequence: &Sequence, rip: u64) {
    let stopped = sequence.index_at(rip);
    for (position, item) in sequence.items.iter().enumerate() {
        shared.note(item.code(), stopped != Some(position));
        if stopped == Some(position) || item.flow_control() != FlowControl::Next {
            break;
        }
    }
}

/// Waits for `child`, kills it when it makes no progress, and says how it ended.
fn wait(child: i32, shared: &Shared) -> Fallible<String> {
    let mut seen = (shared.counters().next.load(Ordering::Relaxed), Instant::now());
    loop {
        let mut status = 0;
        // SAFETY: `child` is this process's own.
        match unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } {
            -1 => return Err(std::io::Error::last_os_error().into()),
            0 => {}
            _ if libc::WIFEXITED(status) => return Ok(format!("exit status {}", libc::WEXITSTATUS(status))),
            _ => return Ok(format!("signal {}", libc::WTERMSIG(status))),
        }
        let now = shared.counters().next.load(Ordering::Relaxed);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        if seen.1.elapsed() > PATIENCE {
            // SAFETY: `child` has not been waited for, so the number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        thread::sleep(POLL);
    }
}
