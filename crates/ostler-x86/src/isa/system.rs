//! Rows.

use crate::isa::table;

table! {}

/// Whether an instruction changes how what follows it is decoded, translated or interrupted.
pub fn ends_block(mnemonic: iced_x86::Mnemonic) -> bool {
    let _ = mnemonic;
    false
}

/// MOV to or from a segment, control or debug register.
pub fn select_move(_: &iced_x86::Instruction, _: &mut crate::decode::op::Op) -> Option<crate::decode::op::Handler> {
    None
}

/// PUSH and POP of a segment register.
pub fn select_stack(_: &iced_x86::Instruction, _: &mut crate::decode::op::Op) -> Option<crate::decode::op::Handler> {
    None
}

/// Far JMP and CALL.
pub fn select_far(_: &iced_x86::Instruction, _: &mut crate::decode::op::Op) -> Option<crate::decode::op::Handler> {
    None
}
