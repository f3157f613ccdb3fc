//! SSE and AVX arithmetic and conversions on pairs of edge values, in every rounding mode, with and without DAZ and FTZ.

use super::Case;
use crate::state::RAX;

/// Offsets in the XSAVE image.
const MXCSR: usize = 24;
const XMM0: usize = 160;

const SINGLES: [u32; 16] = [
    0,
    0x8000_0000,
    1,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x3f80_0000,
    0xbf80_0000,
    0x3fff_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x4f00_0000,
    0xcf00_0001,
    0x3eaa_aaab,
];
const DOUBLES: [u64; 16] = [
    0,
    1 << 63,
    1,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x3fff_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x41df_ffff_ffe0_0000,
    0xc1e0_0000_0020_0000,
    0x3810_0000_0000_0001,
];
/// At both ends of the exponent: sums, products and quotients are tiny or too large, each exactly or not.
const SINGLE_ENDS: [u32; 11] = [
    0x0080_0000,
    0x00c0_0000,
    0x80a0_0001,
    0x0000_0003,
    0x3f00_0000,
    0x3eaa_aaab,
    0x7f00_0000,
    0xff7f_ffff,
    0x4040_0000,
    0,
    0x7f80_0000,
];
const DOUBLE_ENDS: [u64; 11] = [
    0x0010_0000_0000_0000,
    0x0018_0000_0000_0000,
    0x8014_0000_0000_0001,
    0x0000_0000_0000_0003,
    0x3fe0_0000_0000_0000,
    0x3fd5_5555_5555_5555,
    0x7fe0_0000_0000_0000,
    0xffef_ffff_ffff_ffff,
    0x4008_0000_0000_0000,
    // Tiny as a single, exactly; too large as one.
    0x3800_0000_0000_0000,
    0x47f0_0000_0000_0001,
];
/// Unmasked: all; underflow, without FTZ and with; overflow; both, with DAZ and rounding up; PE; IE; DE.
const TRAPS: [u32; 8] = [0, 0x1780, 0x9780, 0x1b80, 0x53c0, 0x0f80, 0x1f00, 0x1e80];
/// Masked with each rounding; FTZ, DAZ, both; all unmasked but underflow.
const CONTROLS: [u32; 8] = [0x1f80, 0x3f80, 0x5f80, 0x7f80, 0x9f80, 0x1fc0, 0x9fc0, 0x0800];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    binary(&mut cases);
    conversions(&mut cases);
    comparisons(&mut cases);
    traps(&mut cases);
    cases
}

fn with_values(name: &'static str, code: &[u8], control: u32, values: [[u8; 8]; 2]) -> Case {
    let case = Case::new(name, code).xsave(MXCSR, &control.to_le_bytes()).gpr(RAX, u64::MAX);
    case.xsave(XMM0, &values[0]).xsave(XMM0 + 16, &values[1])
}

fn single(value: u32) -> [u8; 8] {
    u64::from(value).to_le_bytes()
}

/// ADD, MUL, SUB, MIN, DIV, MAX, SQRT of XMM0 and XMM1, as scalars; VFMADD132, VFMSUB231.
fn binary(cases: &mut Vec<Case>) {
    let mut codes: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for opcode in [0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0x51] {
        codes.push((vec![0xf3, 0x0f, opcode, 0xc1], vec![0xf2, 0x0f, opcode, 0xc1]));
    }
    for opcode in [0x99, 0xbb, 0xad] {
        codes.push((vec![0xc4, 0xe2, 0x79, opcode, 0xc1], vec![0xc4, 0xe2, 0xf9, opcode, 0xc1]));
    }
    for (turn, (of_singles, of_doubles)) in codes.iter().enumerate() {
        for i in 0..SINGLES.len() {
            for j in 0..SINGLES.len() {
                for step in 0..2 {
                    let control = CONTROLS[(turn + i + 3 * j + 5 * step) % CONTROLS.len()];
                    let singles = [single(SINGLES[i]), single(SINGLES[j])];
                    cases.push(with_values("sse-binary", of_singles, control, singles));
                    let doubles = [DOUBLES[i].to_le_bytes(), DOUBLES[j].to_le_bytes()];
                    cases.push(with_values("sse-binary", of_doubles, control, doubles));
                }
            }
        }
    }
}

/// Between singles, doubles, half precision and integers of 32 and 64 bits, rounding and truncating.
fn conversions(cases: &mut Vec<Case>) {
    let codes: [&[u8]; 18] = [
        &[0xf3, 0x0f, 0x5a, 0xc1],
        &[0xf3, 0x0f, 0x2c, 0xc1],
        &[0xf3, 0x48, 0x0f, 0x2c, 0xc1],
        &[0xf3, 0x0f, 0x2d, 0xc1],
        &[0xf3, 0x48, 0x0f, 0x2d, 0xc1],
        &[0x0f, 0x5b, 0xc1],
        &[0x66, 0x0f, 0x5b, 0xc1],
        &[0xf3, 0x0f, 0x5b, 0xc1],
        &[0xc4, 0xe3, 0x79, 0x1d, 0xc8, 0x04],
        &[0xc4, 0xe3, 0x79, 0x1d, 0xc8, 0x03],
        &[0xc4, 0xe2, 0x79, 0x13, 0xc1],
        &[0x66, 0x0f, 0x3a, 0x0a, 0xc1, 0x04],
        &[0x66, 0x0f, 0x3a, 0x0a, 0xc1, 0x0b],
        &[0xf2, 0x0f, 0x5a, 0xc1],
        &[0xf2, 0x48, 0x0f, 0x2d, 0xc1],
        &[0xf2, 0x0f, 0x2c, 0xc1],
        &[0x66, 0x0f, 0xe6, 0xc1],
        &[0x66, 0x0f, 0x3a, 0x0b, 0xc1, 0x04],
    ];
    for (index, code) in codes.iter().enumerate() {
        for value in 0..SINGLES.len() {
            for control in CONTROLS {
                let value = if index < 13 { single(SINGLES[value]) } else { DOUBLES[value].to_le_bytes() };
                cases.push(with_values("sse-convert", code, control, [value, value]));
            }
        }
    }
}

/// CMPSS with all predicates of AVX, UCOMISS, COMISS and their doubles.
fn comparisons(cases: &mut Vec<Case>) {
    for i in 0..SINGLES.len() {
        for j in 0..SINGLES.len() {
            let singles = [single(SINGLES[i]), single(SINGLES[j])];
            let doubles = [DOUBLES[i].to_le_bytes(), DOUBLES[j].to_le_bytes()];
            for opcode in [0x2e, 0x2f] {
                let control = CONTROLS[(i + j) % CONTROLS.len()];
                cases.push(with_values("sse-compare", &[0x0f, opcode, 0xc1], control, singles));
                cases.push(with_values("sse-compare", &[0x66, 0x0f, opcode, 0xc1], control, doubles));
            }
            let predicate = ((i * 16 + j) % 32) as u8;
            let control = CONTROLS[(i ^ j) % CONTROLS.len()];
            for predicate in [predicate, predicate ^ 0x11] {
                cases.push(with_values("sse-compare", &[0xc5, 0xfa, 0xc2, 0xc1, predicate], control, singles));
                cases.push(with_values("sse-compare", &[0xc5, 0xfb, 0xc2, 0xc1, predicate], control, doubles));
            }
        }
    }
}

/// Arithmetic on one element and on several, dot products and conversions to smaller formats, with exceptions unmasked.
fn traps(cases: &mut Vec<Case>) {
    let on_singles: [&[u8]; 12] = [
        &[0xf3, 0x0f, 0x58, 0xc1],
        &[0xf3, 0x0f, 0x59, 0xc1],
        &[0xf3, 0x0f, 0x5e, 0xc1],
        &[0x0f, 0x5c, 0xc1],
        &[0x0f, 0x59, 0xc1],
        &[0xf2, 0x0f, 0x7c, 0xc1],
        &[0x66, 0x0f, 0x3a, 0x40, 0xc1, 0xff],
        &[0x66, 0x0f, 0x3a, 0x40, 0xc1, 0x31],
        &[0xc4, 0xe3, 0x75, 0x40, 0xc0, 0x77],
        &[0xc4, 0xe2, 0x71, 0x99, 0xc1],
        &[0xc4, 0xe3, 0x79, 0x1d, 0xc8, 0x04],
        &[0xf3, 0x0f, 0x53, 0xc1],
    ];
    let on_doubles: [&[u8]; 9] = [
        &[0xf2, 0x0f, 0x5c, 0xc1],
        &[0xf2, 0x0f, 0x59, 0xc1],
        &[0xf2, 0x0f, 0x5e, 0xc1],
        &[0x66, 0x0f, 0x58, 0xc1],
        &[0x66, 0x0f, 0x59, 0xc1],
        &[0x66, 0x0f, 0x3a, 0x41, 0xc1, 0x33],
        &[0xc4, 0xe2, 0xf1, 0xb8, 0xc1],
        &[0xf2, 0x0f, 0x5a, 0xc1],
        &[0x66, 0x0f, 0x5a, 0xc1],
    ];
    for i in 0..SINGLE_ENDS.len() {
        for j in 0..SINGLE_ENDS.len() {
            for control in TRAPS {
                // A different pair in the upper half: which of the elements traps must not matter.
                let pair = u64::from(SINGLE_ENDS[i]) | u64::from(SINGLE_ENDS[(i + j) % SINGLE_ENDS.len()]) << 32;
                let other = u64::from(SINGLE_ENDS[j]) | u64::from(SINGLE_ENDS[(i + 2 * j) % SINGLE_ENDS.len()]) << 32;
                let singles = [pair.to_le_bytes(), other.to_le_bytes()];
                cases.extend(on_singles.iter().map(|code| with_values("sse-trap", code, control, singles)));
                let doubles = [DOUBLE_ENDS[i].to_le_bytes(), DOUBLE_ENDS[j].to_le_bytes()];
                cases.extend(on_doubles.iter().map(|code| with_values("sse-trap", code, control, doubles)));
            }
        }
    }
}
