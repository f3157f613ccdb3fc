//! What the host's CPU and the software CPU have in common here.

use std::error::Error;

use crate::state::{CpuState, Mode, Outcome};

pub type Fallible<T> = Result<T, Box<dyn Error>>;

/// Runs user-mode code from a full state until an exception stops it.
///
/// A sequence ends with HLT, which user mode may not execute: the general-protection exception at
/// its address is the ordinary end. No register has to be given up for a way out, and the state
/// after is what the processor saved for the handler.
pub trait Cpu {
    fn name(&self) -> &'static str;
    fn run(&mut self, mode: Mode, before: &CpuState) -> Fallible<Outcome>;
}
