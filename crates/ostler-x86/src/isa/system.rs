//! Rows.

use crate::isa::table;

table! {}

/// Whether an instruction changes how what follows it is decoded, translated or interrupted.
pub fn ends_block(mnemonic: iced_x86::Mnemonic) -> bool {
    let _ = mnemonic;
    false
}
