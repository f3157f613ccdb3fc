//! Strings, the stack, and accesses of which only a part may be made.

use super::Case;
use crate::layout::{CODE, DATA, STACK};
use crate::state::{RAX, RBP, RBX, RCX, RDI, RSI, RSP, rflags};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    strings(&mut cases);
    overlapping_strings(&mut cases);
    stack(&mut cases);
    across_pages(&mut cases);
    cases
}

/// Op-codes of MOVS, CMPS, STOS, LODS, SCAS with a size of one byte; the next is that of the other sizes.
const STRINGS: [u8; 5] = [0xa4, 0xa6, 0xaa, 0xac, 0xae];
const SIZES: [(&[u8], u8); 4] = [(&[], 0), (&[0x66], 1), (&[], 1), (&[0x48], 1)];

fn strings(cases: &mut Vec<Case>) {
    for opcode in STRINGS {
        for (prefix, sized) in SIZES {
            for repeat in [&[][..], &[0xf2], &[0xf3]] {
                let code = match prefix {
                    [0x66] => [prefix, repeat, &[opcode + sized]].concat(),
                    _ => [repeat, prefix, &[opcode + sized]].concat(),
                };
                string_ends(cases, &code);
            }
        }
    }
}

/// Counts from none to more than there is memory, up and down, from the middle and from the edges.
fn string_ends(cases: &mut Vec<Case>, code: &[u8]) {
    let places = [
        (DATA.base + 0x200, DATA.base + 0x800),
        (DATA.base + 0x1f3, DATA.base + 0x1ff5),
        (DATA.end() - 17, DATA.base + 0x100),
        (DATA.base + 9, DATA.base + 0x11),
    ];
    for count in [0, 1, 2, 17, 0x3000, u64::MAX] {
        for flags in [0, rflags::DF] {
            for (source, destination) in places {
                let case = Case::new("string", code).gpr(RCX, count).gpr(RAX, 0x4141_4141_4141_4141);
                cases.push(case.gpr(RSI, source).gpr(RDI, destination).flags(flags));
            }
        }
    }
}

/// Source and destination nearer than an element, and comparisons that stop in the middle.
fn overlapping_strings(cases: &mut Vec<Case>) {
    for opcode in [0xa4, 0xa5] {
        for distance in [-9i64, -4, -1, 0, 1, 3, 4, 8, 64] {
            for flags in [0, rflags::DF] {
                let source = DATA.base + 0x800;
                let case = Case::new("string-overlap", &[0xf3, opcode]).gpr(RCX, 100).flags(flags);
                cases.push(case.gpr(RSI, source).gpr(RDI, source.wrapping_add_signed(distance)));
            }
        }
    }
    for code in [[0xf3, 0xa6], [0xf2, 0xae], [0xf3, 0xa7], [0xf2, 0xaf], [0xf3, 0xae]] {
        let text = b"the quick brown fox jumps over the lazy dog";
        let case = Case::new("string-compare", &code).memory(DATA.base + 0x200, text).memory(DATA.base + 0x800, text);
        for count in [5, 16, 40, 60] {
            cases.push(case.clone().gpr(RCX, count).gpr(RAX, u64::from(b'z')));
            cases.push(case.clone().gpr(RCX, count).gpr(RAX, u64::from(b't')));
        }
    }
}

fn stack(cases: &mut Vec<Case>) {
    let codes: [&[u8]; 19] = [
        &[0x54],
        &[0x5c],
        &[0xff, 0x34, 0x24],
        &[0x8f, 0x04, 0x24],
        &[0x8f, 0x44, 0x24, 0x08],
        &[0xff, 0x74, 0x24, 0xf8],
        &[0x66, 0x50],
        &[0x66, 0x58],
        &[0x66, 0x5c],
        &[0x9c],
        &[0x66, 0x9c],
        &[0xc9],
        &[0x66, 0xc9],
        &[0x6a, 0x80],
        &[0x66, 0x68, 0x34, 0x92],
        &[0x68, 0x78, 0x56, 0x34, 0x92],
        &[0x0f, 0xa0],
        &[0xff, 0xd4],
        &[0xc2, 0x08, 0x00],
    ];
    for code in codes {
        for rsp in [STACK.base + 0x800, STACK.base, STACK.base + 4, STACK.end() - 4, STACK.end(), 0x8000_0000_0000] {
            let case =
                Case::new("stack", code).gpr(RSP, rsp).gpr(RBP, STACK.base + 0x400).gpr(RAX, 0x1234_5678_9abc_def0);
            cases.push(case);
        }
    }
    for level in 0..34 {
        for prefix in [&[][..], &[0x66]] {
            let code = [prefix, &[0xc8, 0x20, 0x00, level]].concat();
            cases.push(Case::new("enter", &code).gpr(RBP, STACK.base + 0x900));
            cases.push(Case::new("enter", &code).gpr(RBP, STACK.base + 0x10));
            cases.push(Case::new("enter", &code).gpr(RSP, STACK.base + 0x40).gpr(RBP, STACK.base + 0x900));
        }
    }
    for code in [&[0x60][..], &[0x61], &[0x66, 0x60], &[0x66, 0x61]] {
        for rsp in [STACK.base + 0x800, STACK.base + 12, STACK.end() - 12] {
            cases.push(Case::new("push-all", code).compatibility().gpr(RSP, rsp).gpr(RAX, 0xaaaa_aaaa));
        }
    }
}

/// Reads, writes and read-modify-writes of each size with their last byte on a page that is not there, and
/// writes that begin on a page that is read-only: nothing may have changed when the fault is taken.
fn across_pages(cases: &mut Vec<Case>) {
    let codes: [(&[u8], u64); 22] = [
        (&[0x66, 0x8b, 0x03], 2),
        (&[0x8b, 0x03], 4),
        (&[0x48, 0x8b, 0x03], 8),
        (&[0x66, 0x89, 0x03], 2),
        (&[0x89, 0x03], 4),
        (&[0x48, 0x89, 0x03], 8),
        (&[0x66, 0x01, 0x03], 2),
        (&[0x01, 0x03], 4),
        (&[0x48, 0x01, 0x03], 8),
        (&[0xf0, 0x48, 0x01, 0x03], 8),
        (&[0x48, 0x87, 0x03], 8),
        (&[0x48, 0x0f, 0xc1, 0x03], 8),
        (&[0x0f, 0x10, 0x03], 16),
        (&[0x0f, 0x11, 0x03], 16),
        (&[0xf3, 0x0f, 0x7f, 0x03], 16),
        (&[0xc5, 0xfc, 0x10, 0x03], 32),
        (&[0xc5, 0xfc, 0x11, 0x03], 32),
        (&[0xdb, 0x2b], 10),
        (&[0xdb, 0x3b], 10),
        (&[0xdf, 0x33], 10),
        (&[0xff, 0x33], 8),
        (&[0x8f, 0x03], 8),
    ];
    for (code, size) in codes {
        for inside in 1..=size {
            for edge in [DATA.end(), DATA.base + 0x1000, DATA.base, STACK.end(), CODE.base] {
                let case = Case::new("across-pages", code).gpr(RBX, edge - inside).gpr(RAX, 0x0102_0304_0506_0708);
                cases.push(case.xsave(4, &[0xc0]).xsave(2, &[0x00, 0x30]));
            }
        }
    }
}
