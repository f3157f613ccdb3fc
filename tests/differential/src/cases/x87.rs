//! The x87 unit on pairs of edge values, in every rounding mode and precision.

use super::Case;
use crate::layout::DATA;
use crate::state::RBX;

/// Offsets in the XSAVE image.
const FCW: usize = 0;
const FTW: usize = 4;
const ST0: usize = 32;
const ST1: usize = 48;

/// Sign and exponent, mantissa: numbers of each kind and the encodings only memory can hold.
const VALUES: [(u16, u64); 20] = [
    (0, 0),
    (0x8000, 0),
    (0, 1),
    (0x8000, 0x7fff_ffff_ffff_ffff),
    (0, 1 << 63),
    (1, 1 << 63),
    (0x7ffe, u64::MAX),
    (0x7fff, 1 << 63),
    (0xffff, 1 << 63),
    (0x7fff, 0xc000_0000_0000_0000),
    (0x7fff, 0xa000_0000_0000_0001),
    (0x3fff, 1 << 63),
    (0xbfff, 1 << 63),
    (0x3fff, u64::MAX),
    (0x4000, 0xc90f_daa2_2168_c235),
    (0x3ffe, 0xaaaa_aaaa_aaaa_aaab),
    (0xc03e, 0xffff_ffff_ffff_fffe),
    (0x4030, 0x8000_0000_0000_1000),
    (0x3fff, 0x4000_0000_0000_0000),
    (0x7fff, 0x4000_0000_0000_0000),
];
/// All exceptions masked, with each rounding and each valid precision.
const CONTROLS: [u16; 12] = [0x07f, 0x27f, 0x37f, 0x47f, 0x67f, 0x77f, 0x87f, 0xa7f, 0xb7f, 0xc7f, 0xe7f, 0xf7f];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    binary(&mut cases);
    unary(&mut cases);
    stores(&mut cases);
    stack_errors(&mut cases);
    cases
}

fn bytes((exponent, mantissa): (u16, u64)) -> Vec<u8> {
    [&mantissa.to_le_bytes()[..], &exponent.to_le_bytes()].concat()
}

/// ST(0) and ST(1) are in use.
fn with_values(name: &'static str, code: &[u8], control: u16, st0: (u16, u64), st1: (u16, u64)) -> Case {
    let case = Case::new(name, code).xsave(FCW, &control.to_le_bytes()).xsave(FTW, &[0x03]);
    case.xsave(ST0, &bytes(st0)).xsave(ST1, &bytes(st1))
}

/// FADD, FMUL, FSUB, FSUBR, FDIV, FDIVR, FCOM, FUCOM, FCOMI, FUCOMI, FPREM, FPREM1, FSCALE, FPATAN, FYL2X, FYL2XP1.
fn binary(cases: &mut Vec<Case>) {
    let codes: [[u8; 2]; 16] = [
        [0xd8, 0xc1],
        [0xd8, 0xc9],
        [0xd8, 0xe1],
        [0xd8, 0xe9],
        [0xd8, 0xf1],
        [0xd8, 0xf9],
        [0xd8, 0xd1],
        [0xdd, 0xe1],
        [0xdb, 0xf1],
        [0xdb, 0xe9],
        [0xd9, 0xf8],
        [0xd9, 0xf5],
        [0xd9, 0xfd],
        [0xd9, 0xf3],
        [0xd9, 0xf1],
        [0xd9, 0xf9],
    ];
    for (turn, code) in codes.iter().enumerate() {
        for (i, st0) in VALUES.into_iter().enumerate() {
            for (j, st1) in VALUES.into_iter().enumerate() {
                let control = CONTROLS[(turn + 5 * i + j) % CONTROLS.len()];
                cases.push(with_values("x87-binary", code, control, st0, st1));
                // The same with all exceptions unmasked; FNOP then takes what is pending.
                let code = [&code[..], &[0x9b]].concat();
                cases.push(with_values("x87-unmasked", &code, 0x340, st0, st1));
            }
        }
    }
}

/// FCHS, FABS, FTST, FXAM, FSQRT, FRNDINT, FXTRACT, F2XM1, FSIN, FCOS, FSINCOS, FPTAN.
fn unary(cases: &mut Vec<Case>) {
    for second in [0xe0, 0xe1, 0xe4, 0xe5, 0xfa, 0xfc, 0xf4, 0xf0, 0xfe, 0xff, 0xfb, 0xf2] {
        for value in VALUES {
            for control in CONTROLS {
                cases.push(with_values("x87-unary", &[0xd9, second], control, value, VALUES[11]));
            }
            cases.push(with_values("x87-unmasked", &[0xd9, second, 0x9b], 0x340, value, VALUES[11]));
        }
    }
}

/// Stores as single, double, extended, the integers, packed decimal; with and without rounding by FISTTP.
fn stores(cases: &mut Vec<Case>) {
    let codes: [[u8; 2]; 12] = [
        [0xd9, 0x13],
        [0xd9, 0x1b],
        [0xdd, 0x13],
        [0xdb, 0x3b],
        [0xdf, 0x13],
        [0xdb, 0x1b],
        [0xdf, 0x3b],
        [0xdf, 0x33],
        [0xdf, 0x0b],
        [0xdb, 0x0b],
        [0xdd, 0x0b],
        [0xdb, 0x13],
    ];
    let integers =
        [(0x401d, 0xffff_ffff_0000_0000), (0xc01e, 1 << 63), (0x400e, 0xfffe_8000_0000_0000), (0xbffe, 3 << 62)];
    for code in codes {
        for value in VALUES.into_iter().chain(integers) {
            for control in [0x37f, 0x77f, 0xb7f, 0xf7f, 0x340] {
                let code = [&code[..], &[0x9b]].concat();
                let case = with_values("x87-store", &code, control, value, VALUES[11]);
                cases.push(case.gpr(RBX, DATA.base + 0x400));
            }
        }
    }
}

/// Pushes onto a full stack, pops and reads of empty registers, masked and not.
fn stack_errors(cases: &mut Vec<Case>) {
    let codes: [&[u8]; 14] = [
        &[0xd9, 0xe8],
        &[0xd9, 0xc0],
        &[0xdd, 0xd8],
        &[0xd8, 0xc1],
        &[0xd9, 0xc9],
        &[0xda, 0xe9],
        &[0xd9, 0xf7],
        &[0xd9, 0xf6],
        &[0xdd, 0xc0],
        &[0xd9, 0x1b],
        &[0xdb, 0xf1],
        &[0xda, 0xc1],
        &[0xd9, 0xfb],
        &[0x0f, 0x77],
    ];
    for code in codes {
        for tags in [0x00, 0x01, 0x02, 0x03, 0xff] {
            for control in [0x37fu16, 0x37e] {
                let code = [code, &[0x9b]].concat();
                let case = with_values("x87-stack", &code, control, VALUES[11], VALUES[14]).xsave(FTW, &[tags]);
                cases.push(case.gpr(RBX, DATA.base + 0x400));
            }
        }
    }
}
