//! The x87: arithmetic is run by the host ([`arithmetic`], [`host`]), control by us.

mod control;
mod mmx;
mod pending;
mod registers;

pub use control::{select_control, select_wait};
pub use mmx::select_emms;
