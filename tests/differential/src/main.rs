//! `ostler-differential`: see [`ostler_differential`].

use std::collections::HashSet;
use std::env;
use std::process::ExitCode;

use ostler_differential::arguments::{Arguments, SideName, USAGE};
use ostler_differential::batch::{Batch, MakeAccelerator, Source};
use ostler_differential::cases::{self, Case};
use ostler_differential::cpu::Fallible;
use ostler_differential::emulated::is_emulating;
use ostler_differential::generate::Generator;
use ostler_differential::pool;
use ostler_differential::report;
use ostler_differential::state::Mode;
use ostler_engine::Accelerator;
use ostler_kvm::KvmAccelerator;
use ostler_x86::{SoftAccelerator, Translate};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => return bad_input(&error),
    };
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => bad_input(&error.to_string()),
    }
}

fn bad_input(error: &str) -> ExitCode {
    eprintln!("ostler-differential: {error}");
    ExitCode::from(2)
}

fn run(arguments: &Arguments) -> Fallible<bool> {
    if arguments.help {
        print!("{USAGE}");
        return Ok(true);
    }
    if arguments.list {
        list(arguments);
        return Ok(true);
    }
    println!("seed {}", arguments.seed);
    let natively = arguments.side == SideName::Kvm && kvm_emulates()?;
    let (mut different, mut ran) = (0, HashSet::new());
    for (side, make) in sides(arguments) {
        println!("compared with: {side}");
        for (source, count) in sources(arguments, natively) {
            let summary = Batch { arguments, source, count, make: *make, natively }.run()?;
            different += summary.different;
            ran.extend(summary.ran);
        }
    }
    // The rows are the software CPU's.
    let whole = !arguments.self_check && arguments.side == SideName::Soft && is_whole(arguments);
    let (rows, not_hit) = if whole { report::rows(&ran) } else { (String::new(), 0) };
    print!("{rows}");
    Ok(different == 0 && not_hit == 0)
}

/// What the host is compared with, by name.
type Side = (&'static str, MakeAccelerator);

const INTERPRETER: Side = ("interpreter", || soft(Translate::Never));
const TRANSLATOR: Side = ("translator", || soft(Translate::Eagerly));
const ITSELF: Side = ("itself", || None);
const KVM: Side = ("kvm", kvm);

fn kvm() -> Option<Box<dyn Accelerator>> {
    let opened = KvmAccelerator::open(ostler_kvm::DEVICE.as_ref());
    opened.ok().map(|kvm| Box::new(kvm) as Box<dyn Accelerator>)
}

/// Whether this host's KVM emulates what processors run, so that not all can be compared with it.
fn kvm_emulates() -> Fallible<bool> {
    is_emulating(&KvmAccelerator::open(ostler_kvm::DEVICE.as_ref())?)
}

fn soft(translate: Translate) -> Option<Box<dyn Accelerator>> {
    Some(Box::new(SoftAccelerator { translate }))
}

fn sides(arguments: &Arguments) -> &'static [Side] {
    match arguments.side {
        _ if arguments.self_check => &[ITSELF],
        SideName::Soft => &[INTERPRETER, TRANSLATOR],
        SideName::Kvm => &[KVM],
    }
}

/// Whether nothing narrows the run: then every row of the instruction table has to be hit.
fn is_whole(arguments: &Arguments) -> bool {
    !arguments.cases && arguments.mode.is_none() && arguments.filter.is_none() && arguments.replay.is_none()
}

/// What to run, and how many sequences of it.
fn sources(arguments: &Arguments, natively: bool) -> Vec<(Source, u64)> {
    let mut sources = Vec::new();
    if arguments.cases || is_whole(arguments) {
        let wanted = |case: &Case| arguments.filter.as_deref().is_none_or(|name| case.name.contains(name));
        let cases: Vec<_> = cases::all().into_iter().filter(wanted).collect();
        let count = cases.len() as u64;
        sources.push((Source::Cases(cases), count));
    }
    for mode in arguments.modes().into_iter().filter(|mode| !natively || *mode == Mode::Long) {
        let generator = Generator::new(mode, arguments.filter.as_deref());
        if !generator.leaders().is_empty() {
            sources.push((Source::Random(generator), arguments.count_of(mode)));
        }
    }
    sources
}

fn list(arguments: &Arguments) {
    for mode in arguments.modes() {
        for code in pool::comparable(mode) {
            println!("{} {code:?}", mode.bits());
        }
    }
}
