//! Address spaces: what of the translations stays over writes to CR3, CR4 and INVPCID.
//!
//! That a translation was kept shows in that a changed table entry does not count yet.

use iced_x86::code_asm::*;

use crate::guest::*;

/// The page whose translation changes, and the tables that map it in the spaces A and B.
const WINDOW: u64 = 4 << 20;
const TABLE_A: u64 = 0x11_0000;
const TABLE_B: u64 = 0x11_1000;
/// The root of space B; its PDPT and PD follow.
const ROOT_B: u64 = 0x11_4000;
/// Pages with the numbers 1, 2 and 3.
const PAGES: u64 = 0x20_0000;
const RESULTS: u64 = 0x9_0000;
const DESCRIPTOR: u64 = 0x9_1000;

const A: u64 = PML4 | 1;
const B: u64 = ROOT_B | 2;
const KEEP: u64 = 1 << 63;
const PCIDE: u64 = 1 << 17;
const PGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;

/// A leaf that maps the page with the number `page`.
fn leaf(page: u64) -> u64 {
    (PAGES + 0x1000 * page) | PAGE_PRESENT | PAGE_WRITABLE
}

/// A in force, with PCIDs and global pages on; `WINDOW` is page 1 in A, page 2 in B.
fn two_spaces(rights: u64) -> Guest {
    let mut guest = Guest::long();
    let table = PAGE_PRESENT | PAGE_WRITABLE;
    guest.put64(ROOT_B, (ROOT_B + 0x1000) | table);
    guest.put64(ROOT_B + 0x1000, (ROOT_B + 0x2000) | table);
    for page in 0..8 {
        guest.put64(ROOT_B + 0x2000 + 8 * page, page << 21 | table | PAGE_LARGE);
    }
    for (directory, table_gpa, page) in [(PD, TABLE_A, 1), (ROOT_B + 0x2000, TABLE_B, 2)] {
        guest.put64(directory + 8 * 2, table_gpa | table);
        guest.put64(table_gpa, leaf(page) | rights);
    }
    for page in 1..4 {
        // MOV EAX, imm32; RET: code, and data that tells the pages apart by its second byte.
        guest.code(64, PAGES + 0x1000 * page, |a| {
            a.mov(eax, page as u32).unwrap();
            a.ret().unwrap();
        });
    }
    guest.set_sregs(|sregs| {
        sregs.cr4 |= PCIDE | PGE;
        sregs.cr3 = A;
    });
    guest
}

/// What a guest does to its address spaces.
enum Step {
    Cr3(u64),
    Cr4(u64),
    /// Maps [`WINDOW`] to a page in a table.
    Map(u64, u64),
    Invpcid(u64, u64),
    /// Reads the number of the page at [`WINDOW`] as data, and by calling it.
    Look,
}
use Step::{Cr3, Cr4, Invpcid, Look, Map};

/// The numbers that each [`Look`] sees, which has to be the same for data and code.
fn seen(mut guest: Guest, steps: &[Step]) -> Vec<u64> {
    let mut looks = 0;
    guest.code(64, CODE, |a| {
        for step in steps {
            match *step {
                Cr3(value) => {
                    a.mov(rax, value).unwrap();
                    a.mov(cr3, rax).unwrap();
                }
                Cr4(value) => {
                    a.mov(rax, value).unwrap();
                    a.mov(cr4, rax).unwrap();
                }
                Map(table, entry) => {
                    a.mov(rax, entry).unwrap();
                    a.mov(qword_ptr(table), rax).unwrap();
                }
                Invpcid(kind, pcid) => {
                    for (offset, value) in [(0, pcid), (8, WINDOW)] {
                        a.mov(rax, value).unwrap();
                        a.mov(qword_ptr(DESCRIPTOR + offset), rax).unwrap();
                    }
                    a.mov(rax, kind).unwrap();
                    a.invpcid(rax, xmmword_ptr(DESCRIPTOR)).unwrap();
                }
                Look => {
                    a.movzx(ebx, byte_ptr(WINDOW + 1)).unwrap();
                    a.mov(qword_ptr(RESULTS + 16 * looks), rbx).unwrap();
                    a.mov(rbp, WINDOW).unwrap();
                    a.call(rbp).unwrap();
                    a.mov(qword_ptr(RESULTS + 16 * looks + 8), rax).unwrap();
                    looks += 1;
                }
            }
        }
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let result = |at| guest.get64(RESULTS + at);
    (0..looks)
        .map(|look| {
            assert_eq!(result(16 * look), result(16 * look + 8), "look {look}: data and code");
            result(16 * look)
        })
        .collect()
}

#[test]
fn space_left_and_returned_to_has_its_translations_if_they_are_to_be_kept() {
    let change = Map(TABLE_A, leaf(3));
    let numbers =
        seen(two_spaces(0), &[Look, Cr3(B), Look, change, Cr3(A | KEEP), Look, Cr3(B | KEEP), Look, Cr3(A), Look]);
    assert_eq!(numbers, [1, 2, 1, 2, 3]);
}

#[test]
fn space_switched_to_without_pcids_begins_empty() {
    let mut guest = two_spaces(0);
    guest.set_sregs(|sregs| (sregs.cr3, sregs.cr4) = (PML4, sregs.cr4 & !PCIDE));
    let numbers = seen(guest, &[Look, Cr3(ROOT_B), Look, Map(TABLE_A, leaf(3)), Cr3(PML4), Look]);
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn global_page_stays_over_cr3_until_cr4_pge_changes() {
    let without_pge = 0x620 | PCIDE;
    let numbers = seen(
        two_spaces(GLOBAL),
        &[Look, Map(TABLE_A, leaf(3) | GLOBAL), Cr3(A), Look, Cr3(B), Look, Cr4(without_pge), Cr3(A), Look],
    );
    assert_eq!(numbers, [1, 1, 1, 3]);
}

#[test]
fn global_bit_means_nothing_without_cr4_pge() {
    let mut guest = two_spaces(GLOBAL);
    guest.set_sregs(|sregs| sregs.cr4 &= !PGE);
    assert_eq!(seen(guest, &[Look, Map(TABLE_A, leaf(3) | GLOBAL), Cr3(A), Look]), [1, 3]);
}

#[test]
fn invpcid_forgets_what_its_type_says() {
    const ADDRESS: u64 = 0;
    const SPACE: u64 = 1;
    const ALL: u64 = 2;
    const ALL_BUT_GLOBAL: u64 = 3;
    for (kind, pcid, forgotten) in
        [(ADDRESS, 1, true), (SPACE, 1, true), (SPACE, 2, false), (ALL, 0, true), (ALL_BUT_GLOBAL, 0, true)]
    {
        let away = [Look, Cr3(B), Map(TABLE_A, leaf(3)), Invpcid(kind, pcid), Cr3(A | KEEP), Look];
        assert_eq!(seen(two_spaces(0), &away), [1, if forgotten { 3 } else { 1 }], "type {kind} from B");
    }
    for (kind, forgotten) in [(SPACE, false), (ALL, true), (ALL_BUT_GLOBAL, false)] {
        let here = [Look, Map(TABLE_A, leaf(3) | GLOBAL), Invpcid(kind, 1), Look];
        assert_eq!(seen(two_spaces(GLOBAL), &here), [1, if forgotten { 3 } else { 1 }], "type {kind}, global");
    }
}

#[test]
fn write_that_was_not_allowed_yet_is_noted_in_a_revived_global_page() {
    let mut guest = two_spaces(GLOBAL);
    guest.put64(TABLE_B, leaf(1) | GLOBAL);
    guest.code(64, CODE, |a| {
        a.mov(rax, qword_ptr(WINDOW)).unwrap();
        a.mov(rax, B).unwrap();
        a.mov(cr3, rax).unwrap();
        a.mov(byte_ptr(WINDOW), 0).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!(guest.get64(TABLE_B) & 0x40, 0x40, "the dirty bit is set in the tables of B");
}
