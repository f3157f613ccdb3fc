//! Rows.

use crate::isa::table;

table! {}

/// MOVSD of SSE2.
pub fn select_movsd(_: &iced_x86::Instruction, _: &mut crate::decode::op::Op) -> Option<crate::decode::op::Handler> {
    None
}

/// CMPSD of SSE2.
pub fn select_cmpsd(_: &iced_x86::Instruction, _: &mut crate::decode::op::Op) -> Option<crate::decode::op::Handler> {
    None
}
