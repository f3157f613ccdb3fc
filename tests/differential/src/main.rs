//! `ostler-differential`: see [`ostler_differential`].

use std::env;
use std::process::ExitCode;

use ostler_differential::arguments::{Arguments, USAGE};
use ostler_differential::batch::{Batch, MakeAccelerator};
use ostler_differential::cpu::Fallible;
use ostler_differential::pool;

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
    let make: MakeAccelerator = if arguments.self_check { || None } else { || None };
    let mut agree = true;
    for mode in arguments.modes() {
        agree &= Batch { arguments, mode, make }.run()?;
    }
    Ok(agree)
}

fn list(arguments: &Arguments) {
    for mode in arguments.modes() {
        for code in pool::comparable(mode) {
            println!("{} {code:?}", mode.bits());
        }
    }
}
