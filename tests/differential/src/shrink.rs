//! Makes a sequence that shows a difference small.

use crate::cpu::Fallible;
use crate::flags;
use crate::sequence::Sequence;
use crate::state::{CpuState, Mode, RSP, initialize_xsave, rflags};

/// Leaves out instructions, then parts of the initial state, for as long as `differs` stays true.
pub fn shrink(sequence: &Sequence, mut differs: impl FnMut(&Sequence) -> Fallible<bool>) -> Fallible<Sequence> {
    let mut best = sequence.clone();
    let mut accept = |best: &mut Sequence, trial: Sequence| -> Fallible<bool> {
        let mut trial = trial;
        if !flags::are_respected(&trial.items) || trial.assemble().is_err() || !differs(&trial)? {
            return Ok(false);
        }
        *best = trial;
        Ok(true)
    };
    for index in (0..best.items.len()).rev() {
        let trial = without(&best, index);
        accept(&mut best, trial)?;
    }
    for simplify in simplifications(best.mode) {
        let mut trial = best.clone();
        simplify(&mut trial.before);
        accept(&mut best, trial)?;
    }
    Ok(best)
}

/// One instruction less; of bytes that nobody encoded, their end from that instruction on.
fn without(sequence: &Sequence, index: usize) -> Sequence {
    let mut trial = sequence.clone();
    match &mut trial.verbatim {
        None => {
            trial.items.remove(index);
        }
        Some(bytes) => {
            bytes.truncate((trial.addresses[index] - trial.start) as usize);
            trial.items.truncate(index);
            trial.addresses.truncate(index + 1);
        }
    }
    trial
}

type Simplify = Box<dyn Fn(&mut CpuState)>;

fn simplifications(mode: Mode) -> Vec<Simplify> {
    let mut all: Vec<Simplify> = vec![
        Box::new(|state| initialize_xsave(&mut state.xsave)),
        Box::new(|state| state.xsave[160..416].fill(0)),
        Box::new(|state| state.xsave[576..832].fill(0)),
        Box::new(|state| state.xsave[32..160].fill(0)),
        Box::new(|state| state.xsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes())),
        Box::new(|state| state.rflags = rflags::FIXED | rflags::IF),
        Box::new(|state| state.fs_base = 0),
        Box::new(|state| state.gs_base = 0),
    ];
    for index in (0..mode.gprs()).filter(|index| *index != RSP) {
        all.push(Box::new(move |state| state.gprs[index] = 0));
    }
    for register in 0..16 {
        all.push(Box::new(move |state| state.xsave[160 + 16 * register..][..16].fill(0)));
        all.push(Box::new(move |state| state.xsave[576 + 16 * register..][..16].fill(0)));
    }
    all
}
