//! From real mode to long mode and back, as boot code does it; segments of real mode.

use iced_x86::code_asm::*;

use crate::guest::*;

fn with_tables(guest: &mut Guest) {
    let tables = Guest::long();
    for (from, len) in [(GDT, 0x100), (PML4, 0x3000)] {
        let mut bytes = vec![0; len];
        tables.vm.memory().read(from, &mut bytes).unwrap();
        guest.put(from, &bytes);
    }
    // The pseudo-descriptor of LGDT.
    guest.put64(0x4000, GDT << 16 | 0xff);
}

#[test]
fn boot_code_reaches_long_mode() {
    let mut guest = Guest::real();
    with_tables(&mut guest);
    let real = assemble(16, 0, |a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.db(&[0x66, 0x0f, 0x01, 0x16, 0x00, 0x40]).unwrap(); // lgdtd [0x4000]
        a.mov(eax, cr0).unwrap();
        a.or(al, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0x66, 0xea, 0x00, 0x20, 0x01, 0x00, 0x40, 0x00]).unwrap(); // jmp 0x40:0x12000
    });
    guest.put(CODE, &real);
    guest.code(32, 0x1_2000, |a| {
        a.mov(ax, u32::from(DATA)).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(eax, cr4).unwrap();
        a.or(eax, 0x20).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, PML4 as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0x100).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 0x8000_0000u32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0xea, 0x00, 0x30, 0x01, 0x00, 0x08, 0x00]).unwrap(); // jmp 8:0x13000
    });
    guest.code(64, 0x1_3000, |a| {
        a.mov(rbx, 0x1234_5678_9abc_def0u64).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let sregs = guest.sregs();
    assert_eq!(guest.regs().rbx, 0x1234_5678_9abc_def0);
    assert_eq!((sregs.efer & 0x500, sregs.cs.l, sregs.cs.selector), (0x500, true, CODE64));
}

#[test]
fn long_mode_is_left_by_clearing_paging() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.push(i32::from(CODE32)).unwrap();
        a.push(0x1_2000).unwrap();
        a.db(&[0x48, 0xcb]).unwrap(); // retfq
    });
    guest.code(32, 0x1_2000, |a| {
        a.mov(eax, cr0).unwrap();
        a.and(eax, 0x7fff_ffff).unwrap();
        a.mov(cr0, eax).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!(guest.sregs().efer & 0x500, 0x100, "LME stays, LMA goes");
}

#[test]
fn clearing_paging_in_64_bit_code_faults() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.mov(rax, cr0).unwrap();
        a.and(eax, 0x7fff_ffff).unwrap();
        a.mov(cr0, rax).unwrap();
    });
    guest.run_to_exception(13, true);
}

#[test]
fn limits_outlive_the_return_to_real_mode() {
    let mut guest = Guest::real();
    with_tables(&mut guest);
    guest.put64(0x20_0000, 0x5a);
    let code = assemble(16, 0, |a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.db(&[0x66, 0x0f, 0x01, 0x16, 0x00, 0x40]).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(al, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.mov(bx, u32::from(DATA)).unwrap();
        a.mov(ds, bx).unwrap();
        a.and(al, 0xfeu32 as i32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.xor(bx, bx).unwrap();
        a.mov(ds, bx).unwrap();
        a.mov(ecx, 0x20_0000).unwrap();
        a.mov(al, byte_ptr(ecx)).unwrap();
        a.hlt().unwrap();
    });
    guest.put(CODE, &code);
    guest.run_to_halt();
    assert_eq!(guest.regs().rax & 0xff, 0x5a);
}

#[test]
fn real_mode_interrupt_pushes_three_words_and_returns() {
    let mut guest = Guest::real();
    guest.put(0x21 * 4, &[0x00, 0x02, 0x00, 0x10]); // 1000:0200
    let main = assemble(16, 0, |a| {
        a.sti().unwrap();
        a.int(0x21).unwrap();
        a.hlt().unwrap();
    });
    guest.put(CODE, &main);
    let handler = assemble(16, 0x200, |a| {
        a.pushf().unwrap();
        a.pop(dx).unwrap();
        a.mov(bx, sp).unwrap();
        a.iret().unwrap();
    });
    guest.put(CODE + 0x200, &handler);
    guest.run_to_halt();
    let regs = guest.regs();
    assert_eq!((regs.rbx, regs.rsp, regs.rdx & 0x200, regs.rflags & 0x200), (0x8000 - 6, 0x8000, 0, 0x200));
}

#[test]
fn real_mode_offset_past_the_limit_is_gp_through_vector_13() {
    let mut guest = Guest::real();
    guest.put(13 * 4, &[0x00, 0x02, 0x00, 0x10]);
    let main = assemble(16, 0, |a| {
        a.mov(bx, 0xffffu32 as i32).unwrap();
        a.mov(ax, word_ptr(bx)).unwrap();
    });
    guest.put(CODE, &main);
    guest.put(CODE + 0x200, &[0xf4]);
    guest.run_to_halt();
    assert_eq!(guest.regs().rip, 0x201);
    assert_eq!(guest.regs().rsp, 0x8000 - 6, "no error code");
}
