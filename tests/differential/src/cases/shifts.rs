//! Shifts and rotates by every count; double shifts; bit tests with offsets far from their operand.

use super::Case;
use crate::layout::DATA;
use crate::state::{RAX, RBX, RCX, RDX, rflags};

const VALUES: [u64; 4] = [0x8000_0000_8000_8081, 0x7fff_ffff_7fff_7f7e, 0xdead_beef_1234_5678, u64::MAX];
const COUNTS: std::ops::RangeInclusive<u8> = 0..=67;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for group in 0..8u8 {
        for (prefix, opcode_cl, opcode_imm) in WIDTHS {
            shift_by_every_count(&mut cases, group, prefix, opcode_cl, opcode_imm);
        }
    }
    double_shifts(&mut cases);
    bit_tests(&mut cases);
    cases
}

/// Prefix, op-code with the count in CL, op-code with an immediate.
const WIDTHS: [(&[u8], u8, u8); 4] =
    [(&[], 0xd2, 0xc0), (&[0x66], 0xd3, 0xc1), (&[], 0xd3, 0xc1), (&[0x48], 0xd3, 0xc1)];

fn shift_by_every_count(cases: &mut Vec<Case>, group: u8, prefix: &[u8], by_cl: u8, by_immediate: u8) {
    let modrm = 0xc0 | group << 3;
    for count in COUNTS {
        for value in VALUES {
            for flags in [0, rflags::STATUS] {
                let code = [prefix, &[by_cl, modrm]].concat();
                cases.push(Case::new("shift-cl", &code).gpr(RAX, value).gpr(RCX, count.into()).flags(flags));
            }
        }
        let code = [prefix, &[by_immediate, modrm, count]].concat();
        cases.push(Case::new("shift-immediate", &code).gpr(RAX, VALUES[2]).flags(rflags::CF | rflags::ZF));
    }
}

fn double_shifts(cases: &mut Vec<Case>) {
    for opcode in [0xa5, 0xad] {
        for (prefix, most) in [(&[0x66][..], 16), (&[], 67), (&[0x48], 67)] {
            for count in 0..=most {
                let code = [prefix, &[0x0f, opcode, 0xd8]].concat();
                for (value, source) in [(VALUES[0], VALUES[2]), (VALUES[1], VALUES[0])] {
                    let case = Case::new("double-shift", &code).gpr(RAX, value).gpr(RBX, source);
                    cases.push(case.gpr(RCX, count).flags(rflags::STATUS));
                }
            }
        }
    }
}

fn bit_tests(cases: &mut Vec<Case>) {
    let offsets: [i64; 13] = [0, 1, 7, 8, 15, 16, 31, 32, 63, 64, -1, -64, -1025];
    for opcode in [0xa3, 0xab, 0xb3, 0xbb] {
        for prefix in [&[0x66][..], &[], &[0x48]] {
            for offset in offsets {
                let in_memory = [prefix, &[0x0f, opcode, 0x03]].concat();
                let case = Case::new("bit-test-memory", &in_memory).gpr(RBX, DATA.base + 0x800);
                cases.push(case.gpr(RAX, offset as u64));
                let in_register = [prefix, &[0x0f, opcode, 0xc2]].concat();
                let case = Case::new("bit-test-register", &in_register).gpr(RDX, VALUES[2]);
                cases.push(case.gpr(RAX, offset as u64));
            }
        }
    }
}
