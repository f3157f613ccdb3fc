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
    let comparable = items.iter().all(|item| may_run(sequence, &bytes, item)) && flags::are_respected(&items);
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

fn bytes_of<'a>(sequence: &Sequence, bytes: &'a [u8], item: &Instruction) -> &'a [u8] {
    let start = (item.ip() - sequence.start) as usize;
    &bytes[start..start + item.len()]
}

fn may_run(sequence: &Sequence, bytes: &[u8], item: &Instruction) -> bool {
    if item.is_invalid() {
        return true;
    }
    // AMD truncates RIP to 16 bits behind an operand-size prefix.
    let is_near =
        matches!(item.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) || item.mnemonic() == Mnemonic::Ret;
    let truncates = is_near || item.is_jmp_near_indirect() || item.is_call_near_indirect();
    let prefixed = bytes_of(sequence, bytes, item).contains(&0x66);
    let undocumented = truncates && prefixed && sequence.mode == Mode::Long;
    pool::is_comparable(item.code(), sequence.mode)
        && !undocumented
        && !stores_pointers(item)
        && !has_undefined_result(item, Some(sequence.before.gprs[RCX]))
}
