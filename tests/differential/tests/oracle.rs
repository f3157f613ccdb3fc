//! Runs the oracle as CI does. A difference prints its own `--seed ... --replay ...` line.

use std::process::{Command, Output};

fn oracle(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_ostler-differential")).args(arguments).output().expect("starts");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn host_compared_with_itself_never_differs() {
    assert!(oracle(&["--self-check", "--count", "10000", "--seed", "1"]).status.success());
}

/// The cases picked by hand, 100,000 random sequences of 64-bit code and 20,000 each of 32- and
/// 16-bit code; and every row of the instruction table is hit.
#[test]
fn software_cpu_compared_with_the_host_never_differs() {
    assert!(oracle(&["--count", "100000", "--seed", "1"]).status.success());
}

/// User mode of a guest on `/dev/kvm` is the CPU itself: our page tables, segments, register sets and exits are what is
/// compared. `build.rs` says whether there is one.
#[test]
#[cfg_attr(not(has_kvm), ignore = "no /dev/kvm here that can be opened")]
fn user_mode_under_kvm_compared_with_the_host_never_differs() {
    assert!(oracle(&["--side", "kvm", "--count", "5000", "--seed", "1"]).status.success());
}

#[test]
fn option_unknown_is_one_line_and_exit_code_2() {
    let output = oracle(&["--no-such-option"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
}
