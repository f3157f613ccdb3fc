//! Which flags the manuals leave undefined after a sequence, so that no comparison and no instruction depends on them.
//!
//! Bits are iced's `RflagsBits`: the status flags of RFLAGS and the x87 condition codes.

use iced_x86::{FlowControl, Instruction, Mnemonic, RflagsBits};

use crate::sequence::{Sequence, branch_skip};
use crate::state::{Mode, rflags};

/// Everything that can be undefined.
pub const ALL: u32 = EFLAGS | X87;
const EFLAGS: u32 = RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
const X87: u32 = RflagsBits::C0 | RflagsBits::C1 | RflagsBits::C2 | RflagsBits::C3;

/// What is undefined after `item`, given what was before.
pub fn after(item: &Instruction, before: u32) -> u32 {
    let undefined = item.rflags_undefined() & ALL;
    let defined = item.rflags_written() | item.rflags_cleared() | item.rflags_set();
    if may_leave_alone(item) { before | undefined } else { (before & !defined) | undefined }
}

/// Instructions that leave flags as they were for some counts: shifts and rotates by 0, REP with RCX 0.
fn may_leave_alone(item: &Instruction) -> bool {
    let counted = matches!(
        item.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    counted || item.has_rep_prefix() || item.has_repne_prefix()
}

/// The flags `item` looks at.
pub fn read(item: &Instruction) -> u32 {
    let stores_x87_status = matches!(
        item.mnemonic(),
        Mnemonic::Fnstsw
            | Mnemonic::Fstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fsave
            | Mnemonic::Fxsave
            | Mnemonic::Fxsave64
    );
    item.rflags_read() | if stores_x87_status { X87 } else { 0 }
}

/// What is undefined before each instruction and, last, at the end.
pub fn undefined(items: &[Instruction]) -> Vec<u32> {
    let mut before = vec![0; items.len() + 1];
    for (index, item) in items.iter().enumerate() {
        let after = after(item, before[index]);
        before[index + 1] |= after;
        if let Some(skip) = branch_skip(item) {
            let target = (index + 1 + skip as usize).min(items.len());
            before[target] |= after;
        }
    }
    before
}

/// Whether no instruction looks at a flag that an earlier one left undefined.
pub fn are_respected(items: &[Instruction]) -> bool {
    let before = undefined(items);
    items.iter().zip(before).all(|(item, undefined)| read(item) & undefined == 0)
}

/// What is undefined where the sequence stopped; everything that ever was, when that is not an instruction of it.
pub fn undefined_at(sequence: &Sequence, rip: u64) -> u32 {
    let before = undefined(&sequence.items);
    if sequence.mode == Mode::Sixteen && sequence.items.iter().any(leaves) {
        // A random 16-bit address may be anywhere in the code.
        return ALL;
    }
    // The targets of branches nobody encoded are not followed.
    let followed = sequence.verbatim.is_none() || sequence.items.iter().all(|item| branch_skip(item).is_none());
    match sequence.index_at(rip) {
        Some(index) if followed => before[index],
        _ => before.into_iter().fold(0, |all, one| all | one),
    }
}

fn leaves(item: &Instruction) -> bool {
    matches!(item.flow_control(), FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall)
}

/// `undefined` as a mask of RFLAGS.
pub fn rflags_mask(undefined: u32) -> u64 {
    let pairs = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ];
    pairs.into_iter().filter(|(bit, _)| undefined & bit != 0).fold(0, |mask, (_, flag)| mask | flag)
}

/// `undefined` as a mask of the x87 status word.
pub fn status_word_mask(undefined: u32) -> u16 {
    let pairs = [(RflagsBits::C0, 8), (RflagsBits::C1, 9), (RflagsBits::C2, 10), (RflagsBits::C3, 14)];
    pairs.into_iter().filter(|(bit, _)| undefined & bit != 0).fold(0, |mask, (_, position)| mask | 1 << position)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Instruction, OpKind, Register};

    use super::*;

    fn two(code: Code) -> Instruction {
        Instruction::with2(code, Register::EAX, Register::EBX).expect("operands fit")
    }

    #[test]
    fn flags_undefined_by_one_instruction_are_defined_by_the_next_that_writes_them() {
        let items = [two(Code::Imul_r32_rm32), two(Code::Add_rm32_r32)];
        let undefined = undefined(&items);
        assert_ne!(undefined[1] & RflagsBits::ZF, 0);
        assert_eq!(undefined[2], 0);
        assert!(are_respected(&items));
    }

    #[test]
    fn flags_undefined_stay_so_behind_a_branch_around_their_definition() {
        let mut branch = Instruction::default();
        branch.set_code(Code::Jrcxz_rel8_64);
        branch.set_op0_kind(OpKind::NearBranch64);
        branch.set_near_branch64(1);
        let items = [two(Code::Imul_r32_rm32), branch, two(Code::Add_rm32_r32), two(Code::Adc_rm32_r32)];
        assert_ne!(undefined(&items)[3] & RflagsBits::ZF, 0);
        assert!(are_respected(&items), "ADC reads CF only, which IMUL defines");
        let items = [two(Code::Imul_r32_rm32), branch, two(Code::Cmove_r32_rm32)];
        assert!(!are_respected(&items));
    }
}
