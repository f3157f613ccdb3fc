//! The instruction table: one row per mnemonic, naming the semantic function that runs it.
//!
//! The decoder, the interpreter, CPUID and the differential tests read this table; nothing repeats
//! it. A row's selector looks at a decoded instruction's operands and picks the handler for their
//! width and kinds, so a semantic function is written once, generic over both.

mod integer;
mod system;
mod vector;
mod x87;

use std::sync::OnceLock;

use iced_x86::{FlowControl, Instruction, Mnemonic};

use crate::decode::op::{Handler, Op};

/// Picks the handler for one instruction, and may adapt the operands in the [`Op`]; `None` when
/// this form of the instruction does not exist on our CPU: #UD.
pub type Select = fn(&Instruction, &mut Op) -> Option<Handler>;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub mnemonic: Mnemonic,
    pub select: Select,
    pub native: Native,
}

/// How the translator treats an instruction; forms it cannot treat so are the interpreter's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Native {
    /// The semantic function is called.
    #[default]
    Interpreted,
    /// It becomes itself; its registers are general ones.
    Plain,
    /// It becomes itself and has vector registers; a float one obeys MXCSR.
    Vector,
    Float,
    /// It does nothing that can be seen.
    Nothing,
    /// LEA, DIV and IDIV, the stack's, and the branches.
    Address,
    Divide,
    Stack,
    Branch,
    /// CLI and its like, in ring 0.
    System,
    /// CMPXCHG16B.
    Pair,
}

/// Writes rows as `Mnemonic => selector, Native;`, the last for those that the translator knows.
macro_rules! table {
    ($($($mnemonic:ident)|+ => $select:expr $(, $native:ident)?;)*) => {
        pub(super) static ROWS: &[&[crate::isa::Row]] =
            &[$(crate::isa::line!($($mnemonic)|+ => $select; $($native)?)),*];
    };
}

/// The rows of one line of a table.
macro_rules! line {
    ($($mnemonic:ident)|+ => $select:expr;) => {
        crate::isa::line!($($mnemonic)|+ => $select; Interpreted)
    };
    ($($mnemonic:ident)|+ => $select:expr; $native:ident) => {
        &[$(crate::isa::Row {
            mnemonic: iced_x86::Mnemonic::$mnemonic,
            select: $select,
            native: crate::isa::Native::$native,
        }),+]
    };
}
use line;
use table;

/// Every row of the table.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [integer::ROWS, system::ROWS, vector::ROWS, x87::ROWS].into_iter().flatten().copied().flatten()
}

/// The row of a mnemonic.
pub fn row(mnemonic: Mnemonic) -> Option<&'static Row> {
    static INDEX: OnceLock<Vec<Option<&'static Row>>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let mut index = vec![None; Mnemonic::values().len()];
        for row in rows() {
            index[row.mnemonic as usize] = Some(row);
        }
        index
    });
    index[mnemonic as usize]
}

/// MOV to or from a segment, control or debug register.
pub fn special_move(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    system::select_move(instruction, op)
}

/// PUSH and POP of a segment register.
pub fn special_stack(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    system::select_stack(instruction, op)
}

/// Far JMP and CALL.
pub fn far_transfer(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    system::select_far(instruction, op)
}

/// Whether the instruction is the last of its block: it jumps, or what follows it may have to be
/// decoded, translated or interrupted differently.
pub fn ends_block(instruction: &Instruction) -> bool {
    let goes_on = matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
    !goes_on || system::ends_block(instruction.mnemonic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mnemonic_has_two_rows() {
        let mut seen = std::collections::HashSet::new();
        for row in rows() {
            assert!(seen.insert(row.mnemonic), "{:?} has two rows", row.mnemonic);
        }
    }
}
