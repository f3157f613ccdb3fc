//! Encodings that no assembler makes: superfluous prefixes, and single bits turned over.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use crate::address::stores_pointers;
use crate::flags;
use crate::generate::has_undefined_result;
use crate::layout::CODE;
use crate::pool;
use crate::random::Random;
use crate::sequence::Sequence;
use crate::state::{Mode, RCX};

const PREFIXES: [u8; 13] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x40, 0x48, 0x4f];
/// Most of a sequence's bytes that are decoded again.
const LONGEST: usize = 128;

/// Changes the first instruction's bytes; `None` when the result cannot be compared.
///
/// An encoding that iced calls invalid is compared, too: both CPUs have to refuse it.
pub fn mutate(random: &mut Random, sequence: &Sequence) -> Option<Sequence> {
    let offset = (sequence.start - CODE.base) as usize;
    let window = &sequence.before.memory[CODE.range()];
    let mut bytes = window[offset..window.len().min(offset + LONGEST)].to_vec();
    if random.percent(50) {
        bytes.insert(0, random.pick(&PREFIXES));
    } else {
        let length = sequence.addresses.get(1)? - sequence.start;
        let bit = random.below(length.min(6) * 8) as usize;
        *bytes.get_mut(bit / 8)? ^= 1 << (bit % 8);
    }
    let (items, addresses) = decode(sequence, &bytes);
    let lands = |item: &Instruction| !is_relative(item) || addresses.contains(&item.near_branch_target());
    let comparable = items.iter().all(|item| may_run(sequence, &bytes, item) && lands(item));
    let comparable = comparable && flags::are_respected(&items);
    comparable.then(|| Sequence { items, addresses, verbatim: Some(bytes), ..sequence.clone() })
}

/// The instructions up to the first that surely stops the sequence.
fn decode(sequence: &Sequence, bytes: &[u8]) -> (Vec<Instruction>, Vec<u64>) {
    let decoder = Decoder::with_ip(sequence.mode.bits(), bytes, sequence.start, DecoderOptions::NONE);
    let mut items = Vec::new();
    let mut addresses = vec![sequence.start];
    for item in decoder {
        if item.code() == Code::Hlt {
            break;
        }
        addresses.push(item.next_ip());
        items.push(item);
        if item.is_invalid() {
            break;
        }
    }
    (items, addresses)
}

/// VPERMQ and VPERMPD with VEX.W 0, and MOV CR8 as LOCK MOV CR0: undefined elsewhere.
fn amd_accepts(bytes: &[u8]) -> bool {
    let permutes = bytes.windows(4).any(|window| window[0] == 0xc4 && window[1] & 0x1f == 3 && window[3] < 2);
    let moves_cr8 = bytes.contains(&0xf0) && bytes.windows(2).any(|window| matches!(window, [0x0f, 0x20 | 0x22]));
    permutes || moves_cr8
}

fn is_relative(item: &Instruction) -> bool {
    matches!(item.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16)
}

fn bytes_of<'a>(sequence: &Sequence, bytes: &'a [u8], item: &Instruction) -> &'a [u8] {
    let start = (item.ip() - sequence.start) as usize;
    &bytes[start..start + item.len()]
}

fn may_run(sequence: &Sequence, bytes: &[u8], item: &Instruction) -> bool {
    if item.is_invalid() {
        return !amd_accepts(bytes_of(sequence, bytes, item));
    }
    let prefixes = bytes_of(sequence, bytes, item);
    let repeats = prefixes.contains(&0xf2) || prefixes.contains(&0xf3);
    // AMD's take their condition from a repeat prefix.
    if matches!(item.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne) && repeats {
        return false;
    }
    if item.is_ip_rel_memory_operand() && item.ip_rel_memory_address().wrapping_sub(CODE.base) < CODE.bytes {
        return false;
    }
    // AMD truncates RIP to 16 bits behind an operand-size prefix.
    let is_near = is_relative(item) || item.mnemonic() == Mnemonic::Ret;
    let truncates = is_near || item.is_jmp_near_indirect() || item.is_call_near_indirect();
    let prefixed = bytes_of(sequence, bytes, item).contains(&0x66);
    let undocumented = truncates && prefixed && sequence.mode == Mode::Long;
    pool::is_comparable(item.code(), sequence.mode)
        && !undocumented
        && !stores_pointers(item)
        && !has_undefined_result(item, Some(sequence.before.gprs[RCX]))
}
