//! The least operating system: page tables, a GDT like Linux's, and an IDT whose 256 handlers are one HLT each.
//!
//! Without interrupt controllers HLT is an exit; RIP then tells the vector, and the stack holds what the processor pushed.

use ostler_engine::regs::{DescriptorTable, Segment, Sregs};
use ostler_memory::{GuestRam, MemoryError, SlotConfig};

use super::flat;
use crate::layout::{PAGE, WINDOWS, Window};
use crate::state::{LocalSegment, Mode, SIXTEEN_CODE, SIXTEEN_DATA};

/// Supervisor pages: this much physical memory from 0 on, at this linear address.
const SYSTEM_BASE: u64 = 0xffff_8000_0000_0000;
const SYSTEM_BYTES: u64 = 0x4_0000;
const GDT: u64 = 0x2_0000;
const TSS: u64 = 0x2_1000;
const IDT: u64 = 0x2_2000;
const STUBS: u64 = 0x2_3000;
const STACK: u64 = 0x2_4000;
const TABLES: u64 = 0x1000;
const WINDOWS_GPA: u64 = SYSTEM_BYTES;
const RAM_BYTES: u64 = 0x8_0000;

/// RSP0.
pub const STACK_TOP: u64 = SYSTEM_BASE + STACK + PAGE;
const STUB_BYTES: u64 = 16;
const HLT: u8 = 0xf4;

// Linux's selectors, so that storing a segment register gives the same on both CPUs.
const KERNEL_CS: u16 = 0x10;
const KERNEL_DS: u16 = 0x18;
const USER32_CS: u16 = 0x23;
const USER_DS: u16 = 0x2b;
const USER_CS: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;
const TSS_LIMIT: u16 = 103;
const GDT_LIMIT: u16 = 0x4f;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

pub fn window_gpa(window: &Window) -> u64 {
    WINDOWS_GPA + window.offset as u64
}

/// The physical address behind a linear one of the supervisor pages.
pub fn gpa_of(linear: u64) -> u64 {
    linear - SYSTEM_BASE
}

/// The vector whose handler has just executed its HLT.
pub fn vector_of(rip: u64) -> Option<u8> {
    let offset = rip.checked_sub(SYSTEM_BASE + STUBS + 1)?;
    if offset % STUB_BYTES == 0 { u8::try_from(offset / STUB_BYTES).ok() } else { None }
}

/// Adds the memory slot and writes everything but the windows' contents.
pub fn build(memory: &GuestRam) -> Result<(), MemoryError> {
    memory.set_slot(SlotConfig { slot: 0, gpa: 0, size: RAM_BYTES, ..SlotConfig::default() })?;
    memory.write(0, &image())
}

fn image() -> Vec<u8> {
    let mut image = Image { bytes: vec![0; SYSTEM_BYTES as usize], next_table: TABLES + PAGE };
    for page in (0..SYSTEM_BYTES).step_by(PAGE as usize) {
        image.map(SYSTEM_BASE + page, page | PRESENT | WRITE);
    }
    for window in &WINDOWS {
        let write = if window.writable { WRITE } else { 0 };
        let execute = if window.executable { 0 } else { NO_EXECUTE };
        for page in (0..window.bytes).step_by(PAGE as usize) {
            image.map(window.base + page, (window_gpa(window) + page) | PRESENT | USER | write | execute);
        }
    }
    image.descriptors();
    image.gates();
    image.bytes
}

struct Image {
    bytes: Vec<u8>,
    next_table: u64,
}

impl Image {
    fn put(&mut self, gpa: u64, value: u64) {
        self.bytes[gpa as usize..gpa as usize + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn get(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|byte| self.bytes[gpa as usize + byte]))
    }

    /// Makes `entry` the page-table entry of `linear`.
    fn map(&mut self, linear: u64, entry: u64) {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let at = table + ((linear >> shift) & 0x1ff) * 8;
            if self.get(at) == 0 {
                self.put(at, self.next_table | PRESENT | WRITE | USER);
                self.next_table += PAGE;
            }
            table = self.get(at) & ADDRESS;
        }
        self.put(table + ((linear >> 12) & 0x1ff) * 8, entry);
    }

    fn descriptors(&mut self) {
        let tss = SYSTEM_BASE + TSS;
        for (selector, value) in [
            (KERNEL_CS, 0x00af_9b00_0000_ffff),
            (KERNEL_DS, 0x00cf_9300_0000_ffff),
            (USER32_CS, 0x00cf_fb00_0000_ffff),
            (USER_DS, 0x00cf_f300_0000_ffff),
            (USER_CS, 0x00af_fb00_0000_ffff),
            (
                TSS_SELECTOR,
                0x8b00_0000_0000 | u64::from(TSS_LIMIT) | ((tss & 0xff_ffff) << 16) | ((tss >> 24 & 0xff) << 56),
            ),
            (TSS_SELECTOR + 8, tss >> 32),
        ] {
            self.put(GDT + u64::from(selector & !7), value);
        }
        for offset in (4..100).step_by(8) {
            self.put(TSS + offset, STACK_TOP);
        }
        // The I/O permission bitmap starts past the limit: every port faults.
        self.put(TSS + 96, u64::from(TSS_LIMIT + 1) << 48);
    }

    fn gates(&mut self) {
        for vector in 0..256 {
            let handler = SYSTEM_BASE + STUBS + vector * STUB_BYTES;
            // As in Linux: INT3 and INTO are for user mode, every other INT n faults.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = (handler & 0xffff) | u64::from(KERNEL_CS) << 16;
            let high = (handler >> 16 & 0xffff) << 48 | (0x8e00 | dpl << 13) << 32;
            self.put(IDT + vector * 16, low | high);
            self.put(IDT + vector * 16 + 8, handler >> 32);
            self.bytes[(STUBS + vector * STUB_BYTES) as usize] = HLT;
        }
    }
}

pub fn code_segment(mode: Mode) -> Segment {
    match mode {
        Mode::Long => Segment { db: false, l: true, ..flat(USER_CS, 0xb, 3) },
        Mode::Compatibility => flat(USER32_CS, 0xb, 3),
        Mode::Sixteen => local(&SIXTEEN_CODE, 0xb),
    }
}

/// DS and ES.
pub fn data_segment(mode: Mode) -> Segment {
    if mode == Mode::Sixteen { local(&SIXTEEN_DATA, 3) } else { flat(USER_DS, 3, 3) }
}

fn local(segment: &LocalSegment, kind: u8) -> Segment {
    let LocalSegment { selector, base, limit } = *segment;
    Segment { base: base.into(), limit, db: false, g: false, ..flat(selector, kind, 3) }
}

/// User mode under this system. What is not named keeps the value it has in `reset`.
pub fn sregs(reset: &Sregs) -> Sregs {
    let data = data_segment(Mode::Long);
    let null = Segment { unusable: true, ..Segment::default() };
    let tss = Segment {
        base: SYSTEM_BASE + TSS,
        limit: TSS_LIMIT.into(),
        s: false,
        db: false,
        g: false,
        ..flat(TSS_SELECTOR, 0xb, 0)
    };
    Sregs {
        cs: code_segment(Mode::Long),
        ds: data,
        es: data,
        ss: data,
        fs: null,
        gs: null,
        tr: tss,
        ldt: null,
        gdt: DescriptorTable { base: SYSTEM_BASE + GDT, limit: GDT_LIMIT },
        idt: DescriptorTable { base: SYSTEM_BASE + IDT, limit: 0xfff },
        // PG, AM, WP, NE, ET, MP, PE
        cr0: 0x8005_0033,
        cr2: 0,
        cr3: TABLES,
        // SMAP, SMEP, OSXSAVE, FSGSBASE, UMIP, OSXMMEXCPT, OSFXSR, PGE, MCE, PAE, DE
        cr4: 0x0035_0ee8,
        cr8: 0,
        // NXE, LMA, LME, SCE
        efer: 0xd01,
        apic_base: reset.apic_base,
        pdptrs: None,
    }
}
