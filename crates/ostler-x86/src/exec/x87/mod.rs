//! The x87: arithmetic is run by the host ([`arithmetic`], [`host`]), control by us.

mod arithmetic;
mod control;
mod environment;
mod host;
mod mmx;
mod pending;
mod registers;

pub use arithmetic::select_arithmetic;
pub use control::{select_control, select_wait};
pub use environment::select_environment;
pub use mmx::select_emms;
