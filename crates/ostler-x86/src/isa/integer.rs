//! Rows.

use crate::isa::table;

table! {}
