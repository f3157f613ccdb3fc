//! What is printed: differences with everything needed to repeat them, and the coverage.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

use iced_x86::{Code, Formatter, IntelFormatter, Mnemonic};

use crate::compare::{describe_stop, hex};
use crate::layout::{CODE, memory_offset};
use crate::pool;
use crate::sequence::Sequence;
use crate::shared::Shared;
use crate::state::{CpuState, GPR_NAMES, Outcome};

/// A difference: the smallest sequence that shows it, its initial state, and how to see it again.
pub fn difference(sequence: &Sequence, expected: &Outcome, lines: &[String], replay: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "difference ({replay}):");
    text.push_str(&disassembly(sequence));
    text.push_str(&initial_state(&sequence.before));
    let _ = writeln!(text, "  host stopped by {} at rip {:#x}", describe_stop(&expected.stop), expected.state.rip);
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    text
}

fn disassembly(sequence: &Sequence) -> String {
    let mut formatter = IntelFormatter::new();
    let mut text = String::new();
    let decoder_bits = sequence.mode.bits();
    for (index, pair) in sequence.addresses.windows(2).enumerate() {
        let offset = (pair[0] - CODE.base) as usize;
        let end = ((pair[1] - CODE.base) as usize).min(CODE.bytes as usize);
        let bytes = sequence.before.memory.get(offset..end).unwrap_or_default();
        let decoded = iced_x86::Decoder::with_ip(decoder_bits, bytes, pair[0], 0).decode();
        let mut line = String::new();
        formatter.format(&decoded, &mut line);
        let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "  {:#x}  {bytes:<24} {line:<44} {:?}", pair[0], sequence.items[index].code());
    }
    text
}

fn initial_state(state: &CpuState) -> String {
    let mut text = String::new();
    for (index, name) in GPR_NAMES.iter().enumerate().filter(|(index, _)| state.gprs[*index] != 0) {
        let pointed = memory_offset(state.gprs[index])
            .and_then(|at| state.memory.get(at..at + 32))
            .map_or(String::new(), |bytes| format!("  -> {}", hex(bytes)));
        let _ = writeln!(text, "  {name:<5} {:#018x}{pointed}", state.gprs[index]);
    }
    let _ = writeln!(text, "  rflags {:#x} fs_base {:#x} gs_base {:#x}", state.rflags, state.fs_base, state.gs_base);
    let xsave = &state.xsave;
    let _ = writeln!(
        text,
        "  FCW {} FSW {} FTW {} MXCSR {}",
        hex(&xsave[0..2]),
        hex(&xsave[2..4]),
        hex(&xsave[4..5]),
        hex(&xsave[24..28])
    );
    for register in 0..8 {
        let value = &xsave[32 + 16 * register..][..10];
        if value.iter().any(|byte| *byte != 0) {
            let _ = writeln!(text, "  ST{register}   {}", hex(value));
        }
    }
    for register in 0..16 {
        let (low, high) = (&xsave[160 + 16 * register..][..16], &xsave[576 + 16 * register..][..16]);
        if low.iter().chain(high).any(|byte| *byte != 0) {
            let _ = writeln!(text, "  YMM{register:<3} {}_{}", hex(high), hex(low));
        }
    }
    text
}

/// How many of `codes` completed, only faulted, or never ran; the latter two by name.
pub fn coverage(shared: &Shared, codes: &[Code]) -> String {
    let completed = codes.iter().filter(|code| shared.completed(**code) > 0).count();
    let faulted: Vec<_> =
        codes.iter().filter(|code| shared.completed(**code) == 0 && shared.attempted(**code) > 0).collect();
    let missed: Vec<_> = codes.iter().filter(|code| shared.attempted(**code) == 0).collect();
    let mut text = format!("coverage: {completed} of {} instructions completed\n", codes.len());
    for (what, list) in [("only faulted", faulted), ("never ran", missed)] {
        if !list.is_empty() {
            let _ = writeln!(text, "{what} ({}): {list:?}", list.len());
        }
    }
    text
}

/// The rows of the software CPU's instruction table that did not run: with the reason, or as a failure. The second
/// value is how many failed.
pub fn rows(ran: &HashSet<Mnemonic>) -> (String, usize) {
    let mut reasons: BTreeMap<&str, Vec<Mnemonic>> = BTreeMap::new();
    let mut failed = Vec::new();
    let mut count = 0;
    for row in ostler_x86::isa::rows() {
        count += 1;
        match pool::reason_excluded(row.mnemonic) {
            _ if ran.contains(&row.mnemonic) => {}
            Some(reason) => reasons.entry(reason).or_default().push(row.mnemonic),
            None => failed.push(row.mnemonic),
        }
    }
    let mut text = format!("instruction table: {count} rows\n");
    for (reason, mnemonics) in reasons {
        let _ = writeln!(text, "not compared, {reason}: {mnemonics:?}");
    }
    if !failed.is_empty() {
        let _ = writeln!(text, "not hit: {failed:?}");
    }
    (text, failed.len())
}

/// The instructions with differences, most first.
pub fn ranking(shared: &Shared) -> String {
    let mut counted: Vec<_> =
        Code::values().map(|code| (shared.differed(code), code)).filter(|(count, _)| *count > 0).collect();
    counted.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    counted.iter().fold(String::new(), |mut text, (count, code)| {
        let _ = writeln!(text, "{count:>8} {code:?}");
        text
    })
}
