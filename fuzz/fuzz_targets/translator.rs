//! The translator against the interpreter, on bytes as code: `cargo fuzz run translator`.
//!
//! The first eight bytes are the seed of the state that the code starts from, and where it begins; the rest is code. What
//! leaves flags undefined may differ in them, and is compared by `tests/differential`, which knows which those are.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use ostler_differential::programs::of_bytes;
use ostler_differential::twins::{Twins, Verdict};

thread_local! {
    static TWINS: RefCell<Twins> = RefCell::new(Twins::new().expect("two CPUs"));
}

fuzz_target!(|data: &[u8]| {
    let Some((seed, code)) = data.split_first_chunk() else { return };
    let before = of_bytes(u64::from_le_bytes(*seed), code);
    TWINS.with_borrow_mut(|twins| {
        if let Verdict::Different(found) = twins.compare(&before).expect("both run") {
            panic!("at {:#x}: {}", before.rip, found.join("; "));
        }
    });
});
