//! Page sizes, rights and error codes.

use iced_x86::code_asm::*;
use ostler_engine::regs::MsrEntry;

use crate::guest::*;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const RESERVED: u64 = 8;
const FETCH: u64 = 16;

/// A page table for the 2 MiB from 4 MiB on, each page mapped to itself with `rights`.
const PT: u64 = 0x10_4000;
const WINDOW: u64 = 4 << 20;

fn with_window(rights: u64) -> Guest {
    let guest = Guest::long();
    guest.put64(PD + 8 * 2, PT | PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER);
    for page in 0..512 {
        guest.put64(PT + 8 * page, (WINDOW + page * 4096) | rights);
    }
    guest
}

fn page_fault(guest: &mut Guest, linear: u64) -> u64 {
    let frame = guest.run_to_exception(14, true);
    assert_eq!(guest.sregs().cr2, linear);
    frame.error.unwrap()
}

fn load(guest: &Guest, at: u64, linear: u64) {
    guest.code(64, at, |a| {
        a.mov(rax, qword_ptr(linear)).unwrap();
        a.hlt().unwrap();
    });
}

fn store(guest: &Guest, at: u64, linear: u64) {
    guest.code(64, at, |a| {
        a.mov(qword_ptr(linear), rax).unwrap();
        a.hlt().unwrap();
    });
}

#[test]
fn missing_page_reports_the_access() {
    let mut guest = with_window(0);
    load(&guest, CODE, WINDOW);
    assert_eq!(page_fault(&mut guest, WINDOW), 0);
    let mut guest = with_window(0);
    store(&guest, CODE, WINDOW + 8);
    assert_eq!(page_fault(&mut guest, WINDOW + 8), WRITE);
}

#[test]
fn access_across_pages_faults_at_the_second_and_changes_nothing() {
    let mut guest = with_window(PAGE_PRESENT | PAGE_WRITABLE);
    guest.put64(PT + 8, 0);
    guest.put64(WINDOW + 0xff8, 0x1111);
    guest.set_regs(|regs| regs.rax = u64::MAX);
    store(&guest, CODE, WINDOW + 0xffc);
    assert_eq!(page_fault(&mut guest, WINDOW + 0x1000), WRITE);
    assert_eq!(guest.get64(WINDOW + 0xff8), 0x1111);
}

#[test]
fn write_protection_holds_for_the_kernel_only_with_cr0_wp() {
    let mut guest = with_window(PAGE_PRESENT);
    store(&guest, CODE, WINDOW);
    assert_eq!(page_fault(&mut guest, WINDOW), PRESENT | WRITE);
    let mut guest = with_window(PAGE_PRESENT);
    guest.set_sregs(|sregs| sregs.cr0 &= !0x1_0000);
    store(&guest, CODE, WINDOW);
    guest.run_to_halt();
}

#[test]
fn accessed_and_dirty_bits_are_set_by_use() {
    let mut guest = with_window(PAGE_PRESENT | PAGE_WRITABLE);
    guest.code(64, CODE, |a| {
        a.mov(rax, qword_ptr(WINDOW)).unwrap();
        a.mov(qword_ptr(WINDOW + 0x1000), rax).unwrap();
        a.mov(rax, qword_ptr(WINDOW + 0x2000)).unwrap();
        a.mov(qword_ptr(WINDOW + 0x2000), rax).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let bits = [0, 1, 2, 3].map(|page| guest.get64(PT + 8 * page) & 0x60);
    assert_eq!(bits, [0x20, 0x60, 0x60, 0]);
    assert_eq!(guest.get64(PML4) & 0x20, 0x20, "upper levels too");
}

fn user_frame(a: &mut CodeAssembler) {
    for value in [u32::from(USER_DATA), USER_STACK as u32, 2, u32::from(USER_CODE64), USER_CODE as u32] {
        a.push(value as i32).unwrap();
    }
    a.iretq().unwrap();
}

#[test]
fn user_mode_may_not_touch_supervisor_pages() {
    let mut guest = with_window(PAGE_PRESENT | PAGE_WRITABLE);
    guest.code(64, CODE, user_frame);
    load(&guest, USER_CODE, WINDOW);
    assert_eq!(page_fault(&mut guest, WINDOW), PRESENT | USER);
}

#[test]
fn no_execute_stops_fetches() {
    let mut guest = with_window(PAGE_PRESENT | 1 << 63);
    guest.code(64, CODE, |a| {
        a.mov(rax, WINDOW).unwrap();
        a.jmp(rax).unwrap();
    });
    assert_eq!(page_fault(&mut guest, WINDOW), PRESENT | FETCH);
}

#[test]
fn no_execute_is_reserved_without_efer_nxe() {
    let mut guest = with_window(PAGE_PRESENT | 1 << 63);
    guest.vcpu.set_msr(MsrEntry { index: 0xc000_0080, value: 0x501 }).unwrap();
    load(&guest, CODE, WINDOW);
    assert_eq!(page_fault(&mut guest, WINDOW), PRESENT | RESERVED);
}

#[test]
fn smep_stops_the_kernel_from_running_user_pages() {
    let mut guest = with_window(PAGE_PRESENT | PAGE_USER);
    // The kernel's own code has to be a supervisor page then.
    guest.put64(PD, PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE);
    guest.set_sregs(|sregs| sregs.cr4 |= 1 << 20);
    guest.code(64, CODE, |a| {
        a.mov(rax, WINDOW).unwrap();
        a.jmp(rax).unwrap();
    });
    assert_eq!(page_fault(&mut guest, WINDOW), PRESENT | FETCH);
}

#[test]
fn smap_stops_the_kernel_from_reading_user_pages_unless_ac_is_set() {
    for allowed in [false, true] {
        let mut guest = with_window(PAGE_PRESENT | PAGE_USER);
        guest.put64(PD, PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE);
        guest.set_sregs(|sregs| sregs.cr4 |= 1 << 21);
        guest.code(64, CODE, |a| {
            if allowed {
                a.stac().unwrap();
            }
            a.mov(rax, qword_ptr(WINDOW)).unwrap();
            a.clac().unwrap();
            a.hlt().unwrap();
        });
        if allowed {
            guest.run_to_halt();
        } else {
            assert_eq!(page_fault(&mut guest, WINDOW), PRESENT);
        }
    }
}

#[test]
fn invlpg_makes_a_changed_entry_count() {
    let mut guest = with_window(PAGE_PRESENT | PAGE_WRITABLE);
    guest.put64(WINDOW, 1);
    guest.put64(WINDOW + 0x1000, 2);
    guest.code(64, CODE, |a| {
        a.mov(rax, qword_ptr(WINDOW)).unwrap();
        a.mov(rcx, (WINDOW + 0x1000) | 3).unwrap();
        a.mov(qword_ptr(PT), rcx).unwrap();
        a.invlpg(ptr(WINDOW)).unwrap();
        a.mov(rbx, qword_ptr(WINDOW)).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!((guest.regs().rax, guest.regs().rbx), (1, 2));
}

#[test]
fn invlpg_makes_a_changed_page_of_code_count() {
    // The code page is a small page at WINDOW, then WINDOW + 0x1000; and a large one at 6 MiB, then 8.
    for (code, entry, other) in
        [(WINDOW, PT, (WINDOW + 0x1000) | 3), (6 << 20, PD + 8 * 3, 8 << 20 | PAGE_PRESENT | PAGE_LARGE)]
    {
        let mut guest = with_window(PAGE_PRESENT | PAGE_WRITABLE);
        let (first, second) = (code, other & !0xfff);
        for (at, value) in [(first, 1), (second, 2)] {
            guest.code(64, at, |a| {
                a.mov(eax, value).unwrap();
                a.ret().unwrap();
            });
        }
        guest.code(64, CODE, |a| {
            a.mov(rbp, code).unwrap();
            a.call(rbp).unwrap();
            a.mov(ebx, eax).unwrap();
            a.mov(rcx, other).unwrap();
            a.mov(rdx, entry).unwrap();
            a.mov(qword_ptr(rdx), rcx).unwrap();
            a.invlpg(ptr(rbp + 0x800)).unwrap();
            a.call(rbp).unwrap();
            a.hlt().unwrap();
        });
        guest.run_to_halt();
        assert_eq!((guest.regs().rbx, guest.regs().rax), (1, 2));
    }
}

#[test]
fn gigabyte_page_maps_everything_below_it() {
    let mut guest = Guest::long();
    guest.put64(PML4 + 0x1000, PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE);
    guest.put64(0x70_1238, 0xabcd);
    load(&guest, CODE, 0x70_1238);
    guest.run_to_halt();
    assert_eq!(guest.regs().rax, 0xabcd);
}

/// 32-bit paging with a directory at 1 MiB: 4 MiB pages, and PSE-36's and PAE's ways with it.
fn directory32(guest: &mut Guest, features: u64) {
    guest.set_sregs(|sregs| {
        sregs.cr3 = 0x10_0000;
        sregs.cr4 = features;
        sregs.cr0 = 0x8000_0011;
    });
}

#[test]
fn legacy_paging_maps_small_and_large_pages() {
    let mut guest = Guest::protected();
    let entry = |gpa: u64, value: u32| guest.put(gpa, &value.to_le_bytes());
    entry(0x10_0000, 0x83); // 0..4 MiB to itself
    entry(0x10_0004, 0x10_1003); // 4 MiB.. through a table
    entry(0x10_1000, 0x70_0003);
    guest.put64(0x70_0010, 0x77);
    directory32(&mut guest, 0x10);
    guest.code(32, CODE, |a| {
        a.mov(eax, dword_ptr(WINDOW + 0x10)).unwrap();
        a.mov(ebx, dword_ptr(WINDOW + 0x1010)).unwrap();
    });
    let frame = guest.run_to_exception(14, true);
    assert_eq!((guest.regs().rax, guest.sregs().cr2, frame.error), (0x77, WINDOW + 0x1010, Some(0)));
}

#[test]
fn pae_paging_uses_the_pointers_loaded_with_cr3() {
    let mut guest = Guest::protected();
    guest.put64(0x10_0000, 0x10_1001); // PDPTE 0
    guest.put64(0x10_1000, 0x83); // 0..2 MiB to itself
    guest.put64(0x10_1008, 0x60_0083); // 2..4 MiB to 6 MiB
    guest.put64(0x60_0020, 0x99);
    directory32(&mut guest, 0x20);
    guest.code(32, CODE, |a| {
        a.mov(dword_ptr(0x10_0000), 0).unwrap(); // not looked at again
        a.mov(eax, dword_ptr(0x20_0020)).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!(guest.regs().rax, 0x99);
}

/// 32-bit code whose page table leaves out the page after [`LAST_PAGE`], where CS ends, too.
const LAST_PAGE: u64 = 0x2_0000;

fn at_code_limit(offset: u64, bytes: &[u8]) -> Guest {
    let mut guest = Guest::protected();
    let table = PML4 + 0x1000;
    guest.put64(PML4, table | PAGE_PRESENT | PAGE_WRITABLE);
    for page in (0..1024u64).filter(|page| page << 12 != LAST_PAGE + 0x1000) {
        let entry = page << 12 | PAGE_PRESENT | PAGE_WRITABLE;
        guest.put(table + 4 * page, &(entry as u32).to_le_bytes());
    }
    guest.set_sregs(|sregs| {
        (sregs.cr0, sregs.cr3) = (0x8000_0011, PML4);
        sregs.cs.limit = (LAST_PAGE + 0xfff) as u32;
    });
    guest.put(LAST_PAGE + offset, bytes);
    guest.set_regs(|regs| regs.rip = LAST_PAGE + offset);
    guest
}

#[test]
fn code_past_the_limit_is_general_protection_before_its_page_is_missing() {
    // MOV EAX, imm32 that goes on past the limit; NOP, with the next instruction past it.
    for (offset, bytes) in [(0xffe, &[0xb8, 1][..]), (0xfff, &[0x90])] {
        let mut guest = at_code_limit(offset, bytes);
        assert_eq!(guest.run_to_exception(13, true).error, Some(0), "at {offset:#x}");
    }
}

#[test]
fn block_across_pages_runs_again_only_within_the_limit() {
    let mut guest = at_code_limit(0xffe, &[0xb8, 1]);
    let absent = PML4 + 0x1000 + 4 * ((LAST_PAGE >> 12) + 1);
    guest.put(absent, &((LAST_PAGE + 0x1000) as u32 | 3).to_le_bytes());
    guest.put(LAST_PAGE + 0x1000, &[0, 0, 0, 0xf4]);
    let start = guest.regs();
    guest.set_sregs(|sregs| sregs.cs.limit = u32::MAX);
    guest.run_to_halt();
    guest.put(absent, &[0; 4]);
    guest.vcpu.set_regs(&start).unwrap();
    guest.set_sregs(|sregs| sregs.cs.limit = (LAST_PAGE + 0xfff) as u32);
    assert_eq!(guest.run_to_exception(13, true).error, Some(0));
}
