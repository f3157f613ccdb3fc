//! Where processors of different makers do not agree, and the manuals let them: not held against the software CPU.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

use crate::address::uses_save_slot;
use crate::layout::{CODE, memory_offset};
use crate::sequence::Sequence;
use crate::state::{Mode, Outcome, Stop};

/// Accesses this near to 4 GiB may wrap around in 32-bit code, or be beyond the limit.
const WRAPPING_BYTES: u64 = 64;

/// Whether the outcomes may differ because one of them stopped at an instruction that is not the same everywhere.
pub fn may_differ(sequence: &Sequence, host: &Outcome, ours: &Outcome) -> bool {
    let stopped_at = |outcome: &Outcome| {
        let index = sequence.index_at(outcome.state.rip)?;
        Some((sequence.items.get(index)?, sequence.addresses[index]))
    };
    let last = [stopped_at(host), stopped_at(ours)];
    last.into_iter().flatten().any(|(item, address)| {
        of_instruction(item, host, ours) || item.is_invalid() && of_vector(sequence, address, ours)
    }) || overwrites_itself(sequence, host)
        || wraps(sequence.mode, host, ours)
        || misaligned_beyond_limit(sequence.mode, host, ours)
        || is_special_address(host, ours)
}

fn of_instruction(item: &Instruction, host: &Outcome, ours: &Outcome) -> bool {
    let (host, ours) = (vector(&host.stop), vector(&ours.stop));
    match item.mnemonic() {
        // #UD before or after the operand's bytes were fetched.
        Mnemonic::Ud1 => true,
        // Registers are loaded one by one, or after all were read.
        Mnemonic::Popa | Mnemonic::Popad => host == ours,
        // The two operands are read in either order, and either may be the one that faults.
        _ if is_string_compare(item) => host.is_some_and(is_of_memory) && ours.is_some_and(is_of_memory),
        // Whether bytes that are masked out are looked at is up to the processor (SDM, MASKMOVQ).
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => matches!(host, Some(13 | 14 | 17)),
        // The stack is written before or after the target is known to be canonical.
        Mnemonic::Call => matches!(host, Some(12 | 14 | 17)) && ours == Some(13),
        // AMD reads 32 bits for the 16-bit form.
        Mnemonic::Movsxd => item.op0_register().size() == 2,
        // AMD has MXCSR.MM.
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => ours == Some(13),
        // Found to be invalid before or after all of its bytes were fetched.
        Mnemonic::INVALID => matches!((host, ours), (Some(6), Some(14)) | (Some(14), Some(6))),
        // The order in which a long operand is read or written is nobody's business.
        // And AMD has MXCSR.MM.
        _ if uses_save_slot(item) => matches!((host, ours), (Some(14), Some(14)) | (_, Some(13))),
        // AMD's SHA instructions take misaligned operands, Intel's are #GP(0) then.
        _ => item.code().cpuid_features().contains(&CpuidFeature::SHA) && ours == Some(13),
    }
}

/// A repeated store over its own bytes. Code that is modified is only sure to be what runs behind a jump (SDM vol. 3,
/// 9.1.3): the instruction goes on as it was decoded, or a processor that notices fetches what it has become between
/// two elements.
fn overwrites_itself(sequence: &Sequence, host: &Outcome) -> bool {
    let (before, after) = (&sequence.before.memory, &host.state.memory);
    sequence.items.iter().zip(sequence.addresses.windows(2)).any(|(item, ends)| {
        let repeats = item.has_rep_prefix() || item.has_repne_prefix();
        let stores = matches!(item.op0_kind(), OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI);
        let mut own = (ends[0]..ends[1]).filter_map(memory_offset);
        repeats && stores && own.any(|offset| before[offset] != after[offset])
    })
}

/// A host with AVX-512 takes what ours finds invalid: it does not look at every bit after a VEX or EVEX prefix.
fn of_vector(sequence: &Sequence, address: u64, ours: &Outcome) -> bool {
    const VEX_AND_EVEX: [u8; 3] = [0xc4, 0xc5, 0x62];
    const LEGACY_PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    let code = &sequence.before.memory[CODE.range()];
    let bytes = code.get((address - CODE.base) as usize..).unwrap_or_default();
    let first = bytes.iter().find(|byte| !LEGACY_PREFIXES.contains(byte));
    vector(&ours.stop) == Some(6) && first.is_some_and(|byte| VEX_AND_EVEX.contains(byte))
}

/// CMPS; the vector instruction CMPSD has the same name.
fn is_string_compare(item: &Instruction) -> bool {
    let name = item.mnemonic();
    matches!(name, Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsq)
        || name == Mnemonic::Cmpsd && item.is_string_instruction()
}

/// #SS, #GP, #PF and #AC are what an operand in memory may raise.
fn is_of_memory(vector: u8) -> bool {
    matches!(vector, 12 | 13 | 14 | 17)
}

/// Linux answers fetches from its vsyscall page itself; and a long operand that ends behind the canonical
/// addresses faults at its first page, or because of its end.
fn is_special_address(host: &Outcome, ours: &Outcome) -> bool {
    const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;
    const CANONICAL_END: u64 = 1 << 47;
    let Stop::Exception { vector: 14, address: Some(address), .. } = host.stop else { return false };
    let at_end = (CANONICAL_END - 128..CANONICAL_END).contains(&address) && matches!(vector(&ours.stop), Some(12 | 13));
    at_end || host.state.rip & !0xfff == VSYSCALL
}

/// An operand that is misaligned and beyond the limit of SS: either is checked first.
fn misaligned_beyond_limit(mode: Mode, host: &Outcome, ours: &Outcome) -> bool {
    mode != Mode::Long && (vector(&host.stop), vector(&ours.stop)) == (Some(13), Some(12))
}

fn vector(stop: &Stop) -> Option<u8> {
    match stop {
        Stop::Exception { vector, .. } => Some(*vector),
        _ => None,
    }
}

fn wraps(mode: Mode, host: &Outcome, ours: &Outcome) -> bool {
    let near_edge = |outcome: &Outcome| match outcome.stop {
        Stop::Exception { address: Some(address), .. } => {
            address.wrapping_add(WRAPPING_BYTES) as u32 <= 2 * WRAPPING_BYTES as u32
        }
        _ => false,
    };
    mode != Mode::Long && (near_edge(host) || near_edge(ours)) && vector(&host.stop) != vector(&ours.stop)
}
