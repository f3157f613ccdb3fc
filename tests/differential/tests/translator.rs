//! Long random programs, interpreted and translated.

use ostler_differential::generate::Generator;
use ostler_differential::programs::{of_bytes, program};
use ostler_differential::random::{Random, mix};
use ostler_differential::state::Mode;
use ostler_differential::twins::{Twins, Verdict};

/// Programs; `OSTLER_PROGRAMS` runs another number of them.
const PROGRAMS: u64 = 10_000;
/// Bytes of code that are random.
const BYTES: usize = 48;

fn count() -> u64 {
    std::env::var("OSTLER_PROGRAMS").map_or(PROGRAMS, |count| count.parse().expect("a number"))
}

#[test]
fn random_bytes_translated_never_differ_from_the_same_interpreted() {
    let mut twins = Twins::new().expect("two CPUs");
    let (mut same, mut different) = (0, 0);
    for index in 0..count() {
        let mut random = Random::new(mix(index));
        let code: Vec<u8> = (0..BYTES).map(|_| random.below(256) as u8).collect();
        match twins.compare(&of_bytes(index, &code)).expect("both run") {
            Verdict::Same => same += 1,
            Verdict::Different(found) => {
                different += 1;
                println!("bytes {index}, {code:02x?}:\n  {}", found.join("\n  "));
            }
            _ => {}
        }
    }
    assert_eq!(different, 0);
    assert!(same > count() / 2, "only {same} of {} could be compared", count());
}

#[test]
fn program_translated_never_differs_from_the_same_interpreted() {
    let count = count();
    let generator = Generator::new(Mode::Long, None);
    let mut twins = Twins::new().expect("two CPUs");
    let (mut same, mut different) = (0, 0);
    for index in 0..count {
        let Ok(program) = program(&generator, mix(index), 4 * index) else { continue };
        match twins.compare(&program.before).expect("both run") {
            Verdict::Same => same += 1,
            Verdict::Different(found) => {
                different += 1;
                println!("program {index}:\n  {}", found.join("\n  "));
            }
            _ => {}
        }
    }
    println!("{same} of {count} ran the same");
    assert_eq!(different, 0);
    assert!(same > count / 2, "only {same} programs of {count} could be compared");
}
