//! Flags, loops, traps, and code that changes itself.

use super::Case;
use crate::layout::{CODE, DATA, SAVE_SLOT, STACK};
use crate::state::{RAX, RBX, RCX, RDI, RDX, RSP, rflags};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    flags(&mut cases);
    lengths(&mut cases);
    pauses(&mut cases);
    alignment(&mut cases);
    loops(&mut cases);
    self_modifying(&mut cases);
    single_step(&mut cases);
    extended_state(&mut cases);
    cases
}

/// POPF of everything, followed by PUSHF; SAHF and LAHF; the carry and direction instructions.
fn flags(cases: &mut Vec<Case>) {
    for value in
        [0, !(rflags::TF | rflags::AC), rflags::STATUS, rflags::NT, rflags::ID, 0x3000, rflags::DF, rflags::RF, 3 << 19]
    {
        for code in [&[0x9d, 0x9c][..], &[0x66, 0x9d, 0x9c]] {
            let case = Case::new("flags", code).memory(STACK.base + 0x800, &value.to_le_bytes());
            cases.push(case.clone());
            cases.push(case.compatibility());
        }
        cases.push(Case::new("flags", &[0x9e, 0x9f]).gpr(RAX, value << 8));
    }
    for opcode in [0xf5, 0xf8, 0xf9, 0xfc, 0xfd] {
        for start in [0, rflags::STATUS | rflags::DF] {
            cases.push(Case::new("flags", &[opcode]).flags(start));
        }
    }
}

/// F3 90 is PAUSE, but with REX.B it exchanges RAX and R8.
fn pauses(cases: &mut Vec<Case>) {
    for code in [
        &[0xf3, 0x90][..],
        &[0xf3, 0x48, 0x90],
        &[0xf3, 0x41, 0x90],
        &[0xf3, 0x4d, 0x90],
        &[0xf3, 0xf3, 0x49, 0x90],
        &[0x66, 0xf3, 0x41, 0x90],
    ] {
        cases.push(Case::new("pause", code).gpr(RAX, 0x1234_5678_9abc_def0).gpr(8, !0));
    }
}

/// Up to 15 bytes an instruction is what it is, from 16 on #GP(0), valid or not.
fn lengths(cases: &mut Vec<Case>) {
    let codes: [&[u8]; 11] = [
        &[0x90],
        &[0x01, 0x03],
        &[0x00, 0x83, 1, 2, 0, 0],
        &[0x05, 1, 2, 3, 4],
        &[0x48, 0x05, 1, 2, 3, 4],
        &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8],
        &[0x0f, 0x0b],
        &[0x0f, 0x04],
        &[0x06],
        &[0x0f, 0x38, 0x00, 0x03],
        &[0xc5, 0xf8, 0x10, 0x03],
    ];
    for prefixes in [&[0x66][..], &[0x2e], &[0x67], &[0xf2], &[0xf3], &[0xf0], &[0x3e, 0x66], &[0x64, 0x67, 0x2e]] {
        for code in codes {
            for len in 13..=17 {
                let padding = prefixes.iter().copied().cycle().take(len - code.len());
                let bytes: Vec<u8> = padding.chain(code.iter().copied()).collect();
                cases.push(Case::new("length", &bytes).gpr(RBX, DATA.base + 0x200));
            }
        }
    }
    for len in 14..=16 {
        cases.push(Case::new("length", &vec![0x66; len]));
        cases.push(Case::new("length", &vec![0x48; len]));
    }
}

/// With AC set, misaligned accesses of user mode are #AC.
fn alignment(cases: &mut Vec<Case>) {
    let codes: [&[u8]; 9] = [
        &[0x8a, 0x03],
        &[0x66, 0x8b, 0x03],
        &[0x8b, 0x03],
        &[0x48, 0x89, 0x03],
        &[0x0f, 0x10, 0x03],
        &[0xf0, 0x01, 0x03],
        &[0xdd, 0x03],
        &[0xff, 0x33],
        &[0xf3, 0x0f, 0x10, 0x03],
    ];
    for code in codes {
        for offset in [0, 1, 2, 4, 8] {
            cases.push(Case::new("alignment", code).gpr(RBX, DATA.base + 0x200 + offset).flags(rflags::AC));
        }
    }
    cases.push(Case::new("alignment", &[0x50]).gpr(RSP, STACK.base + 0x804).flags(rflags::AC));
}

fn loops(cases: &mut Vec<Case>) {
    // again: add rax, rcx; rol rax, 3; loop again
    let sum = [0x48, 0x01, 0xc8, 0x48, 0xc1, 0xc0, 0x03, 0xe2, 0xf7];
    // again: xor edx, ecx; dec ecx; jnz again
    let countdown = [0x31, 0xca, 0xff, 0xc9, 0x75, 0xfa];
    for count in [1, 2, 100, 5000] {
        cases.push(Case::new("loop", &sum).gpr(RCX, count).gpr(RAX, 1));
        cases.push(Case::new("loop", &countdown).gpr(RCX, count).gpr(RDX, 0x55));
    }
    for opcode in [0xe0, 0xe1, 0xe2, 0xe3] {
        for prefix in [&[][..], &[0x67]] {
            for count in [0, 1, 2, 1 << 32] {
                for start in [0, rflags::ZF] {
                    // The branch leaves out an INC EAX.
                    let code = [prefix, &[opcode, 0x02, 0xff, 0xc0]].concat();
                    cases.push(Case::new("loop", &code).gpr(RCX, count).flags(start));
                }
            }
        }
    }
    for condition in 0..16 {
        for pattern in 0..64u64 {
            let start =
                (pattern & 1) | (pattern & 2) << 1 | (pattern & 4) << 2 | (pattern & 0x18) << 3 | (pattern & 0x20) << 6;
            let code = [0x70 | condition, 0x02, 0xff, 0xc0, 0x0f, 0x90 | condition, 0xc3, 0x0f, 0x40 | condition, 0xd1];
            cases.push(Case::new("condition", &code).flags(start).gpr(RCX, 7));
        }
    }
}

fn self_modifying(cases: &mut Vec<Case>) {
    // mov byte [rdi], 0x42; add al, 1; add al, 1: the second byte of an ADD becomes 0x42.
    let patch_next = [0xc6, 0x07, 0x42, 0x04, 0x01, 0x04, 0x01];
    for place in 0..4 {
        cases.push(Case::new("self-modifying", &patch_next).gpr(RDI, CODE.base + 3 + place));
    }
    // rep stosb over what follows: INC EAX (ff c0) becomes LAHFs.
    let fill = [0xf3, 0xaa, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0];
    for count in [1, 2, 4, 6] {
        cases.push(Case::new("self-modifying", &fill).gpr(RDI, CODE.base + 2).gpr(RCX, count).gpr(RAX, 0x9f));
    }
    // A loop whose body changes its own immediate: again: add al, 1; inc byte [rdi]; dec ecx; jnz again
    let looping = [0x04, 0x01, 0xfe, 0x07, 0xff, 0xc9, 0x75, 0xf8];
    for count in [1, 2, 10, 100] {
        cases.push(Case::new("self-modifying", &looping).gpr(RDI, CODE.base + 1).gpr(RCX, count));
    }
    // The same across a page: mov [rdi], eax; nop; add al, 1
    let across = [0x89, 0x07, 0x90, 0x04, 0x01];
    for back in 1..6 {
        let start = CODE.base + 0x1000 - back;
        cases.push(Case::new("self-modifying", &across).start(start).gpr(RDI, start + 1).gpr(RAX, 0xc0ff_9090));
        cases.push(Case::new("self-modifying", &across).start(start).gpr(RDI, start + 2).gpr(RAX, 0x04c0_ff90));
    }
}

fn single_step(cases: &mut Vec<Case>) {
    let codes: [&[u8]; 10] = [
        &[0x90, 0x90],
        &[0xff, 0xc0],
        &[0xf3, 0xa4],
        &[0xf3, 0xaa],
        &[0xeb, 0x01, 0x90],
        &[0xcc],
        &[0x0f, 0x0b],
        &[0x9c, 0x58],
        &[0x8c, 0xd0],
        &[0xf7, 0xf1],
    ];
    for code in codes {
        for count in [0, 1, 3] {
            cases.push(Case::new("single-step", code).flags(rflags::TF).gpr(RCX, count));
        }
    }
    // POPF sets TF: the trap comes after the instruction that follows.
    let value = rflags::TF | rflags::FIXED;
    for code in [&[0x9d, 0x90, 0x90][..], &[0x9d, 0xff, 0xc0, 0xff, 0xc0], &[0x9d, 0xf4]] {
        cases.push(Case::new("single-step", code).memory(STACK.base + 0x800, &value.to_le_bytes()));
    }
}

/// XSAVE and XRSTOR of each set of components, of headers that must be refused, and misaligned.
fn extended_state(cases: &mut Vec<Case>) {
    let area = DATA.base + 0x400;
    for mask in 0..8 {
        for present in 0..8u64 {
            let header = [present.to_le_bytes(), [0; 8], [0; 8]].concat();
            let xrstor = Case::new("xrstor", &[0x0f, 0xae, 0x2b]).gpr(RBX, area).gpr(RAX, mask);
            let image = xrstor.memory(area + 24, &0x5f80_u32.to_le_bytes()).memory(area + 512, &header);
            cases.push(image.memory(area + 536, &[0; 40]));
        }
    }
    for mask in 0..8 {
        let xsave = Case::new("xsave", &[0x0f, 0xae, 0x23]).gpr(RBX, SAVE_SLOT).gpr(RAX, mask).xsave(160, &[7; 64]);
        cases.push(xsave.memory(SAVE_SLOT + 512, &[0; 64]).xsave(576, &[9; 64]).xsave(0, &[0x7f, 0x02, 0, 0, 1]));
    }
    // Not XCOMP_BV bit 63: the host may have the compacted format.
    let refused = [(512, 8u64), (520, 1), (24, 0x1_0000)];
    for (offset, value) in refused {
        let case = Case::new("xrstor", &[0x0f, 0xae, 0x2b]).gpr(RBX, area).gpr(RAX, 7);
        cases.push(case.memory(area + 512, &[0; 64]).memory(area + offset, &value.to_le_bytes()));
    }
    cases.push(Case::new("xrstor", &[0x0f, 0xae, 0x2b]).gpr(RBX, area + 8).gpr(RAX, 7));
}
