//! Segments, gates and privilege levels of 32-bit protected mode.

use iced_x86::code_asm::*;

use crate::guest::*;

const CALLEE: u64 = 0x1_8000;

fn enter_user(a: &mut CodeAssembler) {
    for value in [u32::from(USER_DATA), USER_STACK as u32, 2, u32::from(USER_CODE32), USER_CODE as u32] {
        a.push(value as i32).unwrap();
    }
    a.iretd().unwrap();
}

/// Runs `write` and expects #GP, #NP or #SS with an error code.
fn faults(guest: &mut Guest, vector: u8, error: u64, write: impl FnOnce(&mut CodeAssembler)) {
    guest.code(32, CODE, write);
    assert_eq!(guest.run_to_exception(vector, true).error, Some(error));
}

fn load_ds(selector: u16) -> impl FnOnce(&mut CodeAssembler) {
    move |a| {
        a.mov(ax, u32::from(selector)).unwrap();
        a.mov(ds, ax).unwrap();
        a.hlt().unwrap();
    }
}

#[test]
fn segment_load_sets_the_accessed_bit() {
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0x1234_5678, 0xfff, 0x92, 4));
    guest.code(32, CODE, load_ds(FREE));
    guest.run_to_halt();
    let loaded = guest.sregs().ds;
    assert_eq!((loaded.selector, loaded.base, loaded.limit, loaded.kind), (FREE, 0x1234_5678, 0xfff, 3));
    assert_eq!(guest.get64(GDT + u64::from(FREE)) >> 40 & 0xff, 0x93);
}

#[test]
fn far_pointers_load_a_segment_and_a_register_or_neither() {
    const POINTER: u64 = 0x9000;
    for (load, name) in [
        ((|a: &mut CodeAssembler| a.lds(ebx, ptr(POINTER))) as fn(&mut CodeAssembler) -> _, "lds"),
        (|a: &mut CodeAssembler| a.les(ebx, ptr(POINTER)), "les"),
        (|a: &mut CodeAssembler| a.lfs(ebx, ptr(POINTER)), "lfs"),
        (|a: &mut CodeAssembler| a.lgs(ebx, ptr(POINTER)), "lgs"),
        (|a: &mut CodeAssembler| a.lss(ebx, ptr(POINTER)), "lss"),
    ] {
        let run = |access: u8, selector: u16| {
            let mut guest = Guest::protected();
            guest.set_descriptor(FREE, descriptor(0, 0xf_ffff, access, 0xc));
            guest.put64(POINTER, u64::from(selector) << 32 | 0x8765_4321);
            guest.set_regs(|regs| regs.rbx = 7);
            guest.code(32, CODE, |a| {
                load(a).unwrap();
                a.hlt().unwrap();
            });
            guest
        };
        let mut guest = run(0x93, FREE);
        guest.run_to_halt();
        let sregs = guest.sregs();
        let loaded = match name {
            "lds" => sregs.ds,
            "les" => sregs.es,
            "lfs" => sregs.fs,
            "lgs" => sregs.gs,
            _ => sregs.ss,
        };
        assert_eq!((loaded.selector, guest.regs().rbx), (FREE, 0x8765_4321), "{name}");
        // Not present: the register stays.
        let mut guest = run(0x13, FREE);
        let vector = if name == "lss" { 12 } else { 11 };
        assert_eq!(guest.run_to_exception(vector, true).error, Some(u64::from(FREE)), "{name}");
        assert_eq!(guest.regs().rbx, 7, "{name}");
        // Beyond the table.
        let mut guest = run(0x93, 0x1000);
        assert_eq!(guest.run_to_exception(13, true).error, Some(0x1000), "{name}");
        assert_eq!(guest.regs().rbx, 7, "{name}");
    }
}

#[test]
fn segment_load_checks_table_type_privilege_and_presence() {
    let selector = u64::from(FREE);
    faults(&mut Guest::protected(), 13, 0x1000, load_ds(0x1003));
    // Execute-only code.
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0xfff, 0x98, 4));
    faults(&mut guest, 13, selector, load_ds(FREE));
    // RPL 3 for data of level 0.
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0xfff, 0x92, 4));
    faults(&mut guest, 13, selector, load_ds(FREE | 3));
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0xfff, 0x12, 4));
    faults(&mut guest, 11, selector, load_ds(FREE));
}

#[test]
fn stack_segment_load_has_its_own_faults() {
    let load_ss = |selector: u16| {
        move |a: &mut CodeAssembler| {
            a.mov(ax, u32::from(selector)).unwrap();
            a.mov(ss, ax).unwrap();
        }
    };
    faults(&mut Guest::protected(), 13, 0, load_ss(0));
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0xf_ffff, 0x12, 0xc));
    faults(&mut guest, 12, u64::from(FREE), load_ss(FREE));
}

#[test]
fn limits_are_checked_to_the_last_byte() {
    for (offset, faults) in [(0xffcu32, false), (0xffd, true)] {
        let mut guest = Guest::protected();
        guest.set_descriptor(FREE, descriptor(0x9000, 0xfff, 0x92, 4));
        guest.code(32, CODE, |a| {
            a.mov(ax, u32::from(FREE)).unwrap();
            a.mov(ds, ax).unwrap();
            a.mov(ebx, dword_ptr(offset)).unwrap();
            a.hlt().unwrap();
        });
        if faults {
            assert_eq!(guest.run_to_exception(13, true).error, Some(0));
        } else {
            guest.run_to_halt();
        }
    }
}

#[test]
fn expand_down_segment_is_valid_above_its_limit() {
    for (offset, faults) in [(0x1000u32, false), (0xfff, true), (0x8000_0000, true)] {
        let mut guest = Guest::protected();
        // 16-bit: up to 0xffff.
        guest.set_descriptor(FREE, descriptor(0x9000, 0xfff, 0x96, 0));
        guest.code(32, CODE, |a| {
            a.mov(ax, u32::from(FREE)).unwrap();
            a.mov(ds, ax).unwrap();
            a.mov(bl, byte_ptr(offset)).unwrap();
            a.hlt().unwrap();
        });
        if faults {
            guest.run_to_exception(13, true);
        } else {
            guest.run_to_halt();
        }
    }
}

#[test]
fn read_only_and_null_segments_refuse_accesses() {
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0xf_ffff, 0x90, 0xc));
    faults(&mut guest, 13, 0, |a| {
        a.mov(ax, u32::from(FREE)).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(dword_ptr(0x9000), eax).unwrap();
    });
    faults(&mut Guest::protected(), 13, 0, |a| {
        a.xor(eax, eax).unwrap();
        a.mov(es, ax).unwrap();
        a.mov(eax, dword_ptr(0x9000).es()).unwrap();
    });
}

#[test]
fn call_gate_changes_the_stack_and_copies_parameters() {
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, gate(CODE32, CALLEE, 0xec, 2));
    guest.code(32, CODE, enter_user);
    guest.code(32, USER_CODE, |a| {
        a.push(0x111).unwrap();
        a.push(0x222).unwrap();
        a.db(&[0x9a, 0, 0, 0, 0, FREE as u8 | 3, 0]).unwrap(); // call gate:0
        a.mov(ecx, esp).unwrap();
        a.hlt().unwrap();
    });
    guest.code(32, CALLEE, |a| {
        a.mov(eax, dword_ptr(esp + 8)).unwrap();
        a.mov(ebx, dword_ptr(esp + 12)).unwrap();
        a.mov(edx, esp).unwrap();
        a.mov(esi, cs).unwrap();
        a.retf_1(8).unwrap();
    });
    let frame = guest.run_to_exception(13, true);
    let regs = guest.regs();
    assert_eq!((regs.rax, regs.rbx), (0x222, 0x111));
    assert_eq!((regs.rdx, regs.rsi), (RSP0 - 24, u64::from(CODE32)));
    assert_eq!((frame.cs, regs.rcx), (u64::from(USER_CODE32), USER_STACK), "back, parameters released");
}

#[test]
fn call_gate_needs_its_privilege() {
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, gate(CODE32, CALLEE, 0x8c, 0));
    guest.code(32, CODE, enter_user);
    guest.put(USER_CODE, &[0x9a, 0, 0, 0, 0, FREE as u8 | 3, 0]);
    assert_eq!(guest.run_to_exception(13, true).error, Some(u64::from(FREE)));
}

#[test]
fn return_outward_takes_inner_data_segments_away() {
    let mut guest = Guest::protected();
    guest.code(32, CODE, enter_user);
    guest.code(32, USER_CODE, |a| {
        a.mov(eax, es).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_exception(13, true);
    assert_eq!(guest.regs().rax, 0, "ES was the kernel's");
}

#[test]
fn far_jump_checks_privilege_and_limit() {
    faults(&mut Guest::protected(), 13, u64::from(USER_CODE32 & !3), |a| {
        a.db(&[0xea, 0, 0, 0, 0, USER_CODE32 as u8, 0]).unwrap();
    });
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0xfff, 0x9a, 4));
    faults(&mut guest, 13, 0, |a| {
        a.db(&[0xea, 0, 0x10, 0, 0, FREE as u8, 0]).unwrap();
    });
}

#[test]
fn conforming_code_runs_at_the_caller_level() {
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0xf_ffff, 0x9e, 0xc));
    guest.code(32, CODE, enter_user);
    guest.put(USER_CODE, &[0xea, 0, 0x80, 1, 0, FREE as u8, 0]);
    guest.code(32, CALLEE, |a| {
        a.mov(eax, cs).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_exception(13, true);
    assert_eq!(guest.regs().rax, u64::from(FREE | 3));
}

#[test]
fn descriptors_can_be_asked_about() {
    let mut guest = Guest::protected();
    guest.set_descriptor(FREE, descriptor(0, 0x12, 0x90, 0xc));
    guest.code(32, CODE, |a| {
        a.mov(ecx, u32::from(FREE)).unwrap();
        a.lar(eax, ecx).unwrap();
        a.lsl(ebx, ecx).unwrap();
        a.verr(cx).unwrap();
        a.setz(dl).unwrap();
        a.verw(cx).unwrap();
        a.setz(dh).unwrap();
        a.mov(ecx, 0x1000).unwrap();
        a.lar(esi, ecx).unwrap();
        a.setz(cl).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let regs = guest.regs();
    assert_eq!((regs.rax, regs.rbx), (0xc0_9000, 0x1_2fff));
    assert_eq!((regs.rdx & 0xffff, regs.rcx & 0xff), (1, 0));
}

#[test]
fn arpl_raises_the_requested_level() {
    let mut guest = Guest::protected();
    guest.code(32, CODE, |a| {
        a.mov(eax, 0x10).unwrap();
        a.mov(ecx, 3).unwrap();
        a.arpl(ax, cx).unwrap();
        a.setz(bl).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!((guest.regs().rax, guest.regs().rbx), (0x13, 1));
}
