//! Multiplication, division, decimal adjustment and the compare-and-exchange family at their edges.

use super::Case;
use crate::layout::DATA;
use crate::state::{RAX, RBX, RCX, RDX, rflags};

const EDGES: [u64; 8] =
    [0, 1, 0xff, 0x8000_0000_8000_8080, 0x7fff_ffff_7fff_7f7f, u64::MAX, 0x8000_0000_0000_0000, 0x0000_0000_8000_0000];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    products_and_quotients(&mut cases);
    decimal(&mut cases);
    exchanges(&mut cases);
    bit_scans(&mut cases);
    cases
}

/// MUL, IMUL, DIV, IDIV of RDX:RAX by RBX in all widths.
fn products_and_quotients(cases: &mut Vec<Case>) {
    for group in 4..8u8 {
        for (prefix, opcode) in [(&[][..], 0xf6), (&[0x66], 0xf7), (&[], 0xf7), (&[0x48], 0xf7)] {
            let code = [prefix, &[opcode, 0xc3 | group << 3]].concat();
            for rax in EDGES {
                for rdx in [0, 1, u64::MAX, EDGES[4], EDGES[6]] {
                    for source in EDGES {
                        let case = Case::new("multiply-divide", &code).gpr(RAX, rax).gpr(RDX, rdx);
                        cases.push(case.gpr(RBX, source));
                    }
                }
            }
        }
    }
}

fn decimal(cases: &mut Vec<Case>) {
    for opcode in [0x27, 0x2f, 0x37, 0x3f] {
        for al in 0..=255u64 {
            for flags in [0, rflags::CF, rflags::AF, rflags::CF | rflags::AF] {
                let case = Case::new("decimal-adjust", &[opcode]).compatibility().flags(flags);
                cases.push(case.gpr(RAX, 0x1234_5600 | al));
            }
        }
    }
    for opcode in [0xd4, 0xd5] {
        for base in [0, 1, 7, 10, 16, 255] {
            for ax in [0, 9, 0x0a, 0x63, 0xff, 0x0105, 0xff02, 0xffff] {
                cases.push(Case::new("decimal-adjust", &[opcode, base]).compatibility().gpr(RAX, ax));
            }
        }
    }
}

/// CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD, XCHG: equal and not, locked and not, on themselves and misaligned.
fn exchanges(cases: &mut Vec<Case>) {
    let old = 0x1122_3344_5566_7788u64;
    let operand = [old.to_le_bytes(), (!old).to_le_bytes()].concat();
    for lock in [&[][..], &[0xf0]] {
        for code in [&[0x0f, 0xc7, 0x0e][..], &[0x48, 0x0f, 0xc7, 0x0e]] {
            for address in [DATA.base + 0x200, DATA.base + 0x208, DATA.base + 0x203, DATA.base + 0xff8, DATA.end() - 8]
            {
                for (rax, rdx) in [(old, !old), (old & 0xffff_ffff, old >> 32), (old, 0), (0, !old)] {
                    let code = [lock, code].concat();
                    let case = Case::new("compare-exchange-pair", &code).memory(address, &operand).gpr(6, address);
                    cases.push(case.gpr(RAX, rax).gpr(RDX, rdx).gpr(RBX, 0xb).gpr(RCX, 0xc));
                }
            }
        }
        for opcode in [0xb0, 0xb1] {
            for rax in [old, !old, old & 0xff, old ^ 1 << 40] {
                for prefix in [&[][..], &[0x66], &[0x48]] {
                    let code = [lock, prefix, &[0x0f, opcode, 0x1e]].concat();
                    let case = Case::new("compare-exchange", &code).memory(DATA.base + 0x200, &operand);
                    cases.push(case.gpr(RAX, rax).gpr(RBX, 0xb0b0));
                }
            }
        }
    }
    for prefix in [&[][..], &[0x66], &[0x48]] {
        for code in [[0x0f, 0xc1, 0xc0], [0x0f, 0xc1, 0xd8], [0x0f, 0xb1, 0xc0], [0x0f, 0xb1, 0xc3], [0x0f, 0xb1, 0xdb]]
        {
            let code = [prefix, &code[..]].concat();
            cases.push(Case::new("exchange-registers", &code).gpr(RAX, old).gpr(RBX, !old));
        }
    }
}

fn bit_scans(cases: &mut Vec<Case>) {
    for repeat in [&[][..], &[0xf3]] {
        for prefix in [&[0x66][..], &[], &[0x48]] {
            for opcode in [0xbc, 0xbd] {
                for source in [0, 1, 0x8000, 0x1_0000, 0x8000_0000, 1 << 32, 1 << 63] {
                    let code = match prefix {
                        [0x66] => [prefix, repeat, &[0x0f, opcode, 0xc3]].concat(),
                        _ => [repeat, prefix, &[0x0f, opcode, 0xc3]].concat(),
                    };
                    cases.push(Case::new("bit-scan", &code).gpr(RAX, u64::MAX).gpr(RBX, source));
                }
            }
        }
    }
}
