//! What counts as a difference between two outcomes of one sequence.

use iced_x86::{Code, Instruction};

use crate::address::stores_pointers;
use crate::flags;
use crate::layout::{SAVE_SLOT, WINDOWS, memory_offset};
use crate::sequence::Sequence;
use crate::state::{GPR_NAMES, Memory, Outcome, Stop, XSAVE_BYTES};

/// Above this, Linux reports user page faults as protection violations, whatever the page tables say.
const USER_END: u64 = (1 << 47) - 0x1000;
const MEMORY_DIFFERENCES_SHOWN: usize = 4;

/// One line per difference; none when the outcomes agree in all that is defined.
pub fn differences(sequence: &Sequence, expected: &Outcome, actual: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    stop(&expected.stop, &actual.stop, &mut found);
    registers(sequence, expected, actual, &mut found);
    xsave(sequence, expected, actual, &mut found);
    memory(sequence, &expected.state.memory, &actual.state.memory, &mut found);
    found
}

fn stop(expected: &Stop, actual: &Stop, found: &mut Vec<String>) {
    if comparable_stop(expected) != comparable_stop(actual) {
        found.push(format!("stop: host {}, ours {}", describe_stop(expected), describe_stop(actual)));
    }
}

fn comparable_stop(stop: &Stop) -> Stop {
    match stop {
        Stop::Exception { vector: 14, error, address: Some(address) } if *address >= USER_END => {
            Stop::Exception { vector: 14, error: error | 1, address: Some(*address) }
        }
        other => other.clone(),
    }
}

pub fn describe_stop(stop: &Stop) -> String {
    match stop {
        Stop::Exception { vector, error, address } => {
            let name = EXCEPTIONS.get(*vector as usize).copied().unwrap_or("interrupt");
            let address = address.map_or(String::new(), |address| format!(" at {address:#x}"));
            format!("{name} ({vector}) error {error:#x}{address}")
        }
        Stop::Timeout => "no stop in time".to_owned(),
        Stop::Broken(what) => format!("broken: {what}"),
    }
}

const EXCEPTIONS: [&str; 20] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "CSO", "#TS", "#NP", "#SS", "#GP", "#PF", "15",
    "#MF", "#AC", "#MC", "#XM",
];

fn registers(sequence: &Sequence, expected: &Outcome, actual: &Outcome, found: &mut Vec<String>) {
    let (host, ours) = (&expected.state, &actual.state);
    let mut differ = |name: &str, host: u64, ours: u64| {
        if host != ours {
            found.push(format!("{name}: host {host:#018x}, ours {ours:#018x}"));
        }
    };
    for (index, name) in GPR_NAMES.iter().enumerate() {
        differ(name, host.gprs[index], ours.gprs[index]);
    }
    differ("rip", host.rip, ours.rip);
    differ("fs_base", host.fs_base, ours.fs_base);
    differ("gs_base", host.gs_base, ours.gs_base);
    let ignored = flags::rflags_mask(flags::undefined_at(sequence, host.rip));
    let changed = (host.rflags ^ ours.rflags) & !ignored;
    if changed != 0 {
        found.push(format!("rflags: host {:#x}, ours {:#x}, differ in {changed:#x}", host.rflags, ours.rflags));
    }
}

fn xsave(sequence: &Sequence, expected: &Outcome, actual: &Outcome, found: &mut Vec<String>) {
    let (host, ours) = (&expected.state.xsave, &actual.state.xsave);
    if host == ours {
        return;
    }
    let ignored = flags::status_word_mask(flags::undefined_at(sequence, expected.state.rip));
    let word = |image: &[u8; XSAVE_BYTES], at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let (host_status, our_status) = (word(host, 2), word(ours, 2));
    if (host_status ^ our_status) & !ignored != 0 {
        found.push(format!("FSW: host {host_status:#06x}, ours {our_status:#06x}"));
    }
    for (name, range) in fields() {
        if host[range.clone()] != ours[range.clone()] {
            found.push(format!("{name}: host {}, ours {}", hex(&host[range.clone()]), hex(&ours[range])));
        }
    }
}

/// The XSAVE fields compared byte by byte; FSW is not among them.
fn fields() -> impl Iterator<Item = (String, std::ops::Range<usize>)> {
    let fixed = [("FCW", 0..2), ("FTW", 4..5), ("MXCSR", 24..28)];
    let fixed = fixed.into_iter().map(|(name, range)| (name.to_owned(), range));
    let x87 = (0..8).map(|n| (format!("ST{n}"), 32 + 16 * n..42 + 16 * n));
    let xmm = (0..16).map(|n| (format!("XMM{n}"), 160 + 16 * n..176 + 16 * n));
    let ymm = (0..16).map(|n| (format!("YMM{n} high"), 576 + 16 * n..592 + 16 * n));
    fixed.chain(x87).chain(xmm).chain(ymm)
}

/// Little-endian bytes as one number, and words of it apart.
pub fn hex(bytes: &[u8]) -> String {
    let words = bytes.chunks(8).rev();
    words
        .map(|word| word.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>())
        .collect::<Vec<_>>()
        .join("_")
}

fn memory(sequence: &Sequence, host: &Memory, ours: &Memory, found: &mut Vec<String>) {
    if host == ours {
        return;
    }
    let ignored = ignored_bytes(sequence);
    let mut count = 0;
    for window in &WINDOWS {
        for offset in window.range() {
            if host[offset] == ours[offset] || ignored.contains(&offset) {
                continue;
            }
            count += 1;
            if count <= MEMORY_DIFFERENCES_SHOWN {
                let address = window.base + (offset - window.offset) as u64;
                found.push(format!("[{address:#x}]: host {:#04x}, ours {:#04x}", host[offset], ours[offset]));
            }
        }
    }
    if count > MEMORY_DIFFERENCES_SHOWN {
        found.push(format!("and {} more bytes of memory", count - MEMORY_DIFFERENCES_SHOWN));
    }
}

/// Bytes of memory that hold x87 pointers, FOP or MXCSR_MASK.
fn ignored_bytes(sequence: &Sequence) -> Vec<usize> {
    let Some(slot) = memory_offset(SAVE_SLOT) else { return Vec::new() };
    let stores = sequence.items.iter().filter(|item| stores_pointers(item));
    stores.flat_map(pointer_fields).map(|offset| slot + offset).collect()
}

fn pointer_fields(item: &Instruction) -> Vec<usize> {
    match item.code() {
        // 16-bit environments: FIP, CS, FDP, DS.
        Code::Fnstenv_m14byte | Code::Fstenv_m14byte | Code::Fnsave_m94byte | Code::Fsave_m94byte => (6..14).collect(),
        Code::Fnstenv_m28byte | Code::Fstenv_m28byte | Code::Fnsave_m108byte | Code::Fsave_m108byte => {
            (12..28).collect()
        }
        // FXSAVE: FOP, FIP, FDP; MXCSR_MASK; what software may use.
        _ => (6..24).chain(28..32).chain(416..512).collect(),
    }
}
