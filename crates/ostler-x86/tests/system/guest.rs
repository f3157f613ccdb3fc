//! A VM of one vCPU in a known state.

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use ostler_engine::regs::{DescriptorTable, MpState, Regs, Segment, Sregs};
use ostler_engine::{Accelerator, Exit, NobodyAnswers, Vcpu, Vm};
use ostler_memory::{Backing, GuestRam, SlotConfig};
use ostler_x86::{SoftAccelerator, Translate};

pub const RAM_BYTES: u64 = 16 << 20;
/// Where code is put, for the kernel and for user mode.
pub const CODE: u64 = 0x1_0000;
pub const USER_CODE: u64 = 0x2_0000;
/// Tops of stacks.
pub const STACK: u64 = 0x3_0000;
pub const USER_STACK: u64 = 0x4_0000;
/// Where the TSS says that inner levels and IST 1 begin.
pub const RSP0: u64 = 0x5_0000;
pub const IST1: u64 = 0x6_0000;
pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x6000;
pub const TSS: u64 = 0x7000;
const HANDLERS: u64 = 0x8000;
/// The root of the page tables of 64-bit guests; PDPT, PD follow.
pub const PML4: u64 = 0x10_0000;
pub const PD: u64 = PML4 + 0x2000;

/// Selectors.
pub const CODE64: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const USER_CODE32: u16 = 0x18 | 3;
pub const USER_DATA: u16 = 0x20 | 3;
pub const USER_CODE64: u16 = 0x28 | 3;
pub const TASK: u16 = 0x30;
pub const CODE32: u16 = 0x40;
/// For tests to put a descriptor of their own at.
pub const FREE: u16 = 0x48;

pub const PAGE_PRESENT: u64 = 1;
pub const PAGE_WRITABLE: u64 = 2;
pub const PAGE_USER: u64 = 4;
pub const PAGE_LARGE: u64 = 0x80;

#[derive(Debug)]
pub struct Guest {
    pub vm: Arc<dyn Vm>,
    pub vcpu: Box<dyn Vcpu>,
}

fn segment(selector: u16, kind: u8, dpl: u8, bits: u32) -> Segment {
    let (l, db) = (bits == 64, bits == 32);
    Segment { selector, limit: u32::MAX, kind, dpl, s: true, present: true, g: true, l, db, ..Segment::default() }
}

fn system_segment(selector: u16, base: u64, limit: u32, kind: u8) -> Segment {
    Segment { selector, base, limit, kind, present: true, ..Segment::default() }
}

/// A descriptor: `access` is byte 5, `flags` the upper half of byte 6.
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 15) << 48
        | u64::from(flags & 15) << 52
        | (base >> 24) << 56
}

/// The low half of a gate.
pub fn gate(selector: u16, offset: u64, access: u8, count: u8) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(count) << 32
        | u64::from(access) << 40
        | (offset >> 16 & 0xffff) << 48
}

pub fn assemble(bitness: u32, at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut code = CodeAssembler::new(bitness).expect("a known bitness");
    write(&mut code);
    code.assemble(at).expect("the code assembles")
}

/// These tests are two executables: one interprets, one translates everything.
const TRANSLATE: Translate = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"system_translated" => Translate::Eagerly,
    _ => Translate::Never,
};

impl Guest {
    fn new(irqchip: bool) -> Self {
        let memory = Arc::new(GuestRam::new());
        memory
            .set_slot(SlotConfig {
                slot: 0,
                gpa: 0,
                size: RAM_BYTES,
                read_only: false,
                log_dirty: false,
                backing: Backing::Anonymous,
            })
            .expect("the slot fits");
        let vm = SoftAccelerator { translate: TRANSLATE }.create_vm(memory).expect("a VM");
        if irqchip {
            vm.create_irqchip().expect("interrupt controllers");
        }
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        Self { vm, vcpu }
    }

    /// Real mode, CS:IP = 0:[`CODE`] >> 4 in a segment that starts at [`CODE`].
    pub fn real() -> Self {
        let mut guest = Self::new(false);
        let mut sregs = guest.vcpu.sregs().expect("sregs");
        sregs.cs.selector = (CODE >> 4) as u16;
        sregs.cs.base = CODE;
        guest.vcpu.set_sregs(&sregs).expect("set sregs");
        guest.set_regs(|regs| {
            regs.rip = 0;
            regs.rsp = 0x8000;
        });
        guest
    }

    /// 32-bit protected mode, flat, without paging, at level 0.
    pub fn protected() -> Self {
        let mut guest = Self::new(false);
        guest.write_tables(32);
        let mut sregs = guest.vcpu.sregs().expect("sregs");
        guest.fill_segments(&mut sregs, 32);
        sregs.cr0 = 0x11;
        guest.vcpu.set_sregs(&sregs).expect("set sregs");
        guest.start_at(CODE);
        guest
    }

    /// 64-bit mode; the first GiB is mapped to itself by large pages for everyone.
    pub fn long() -> Self {
        Self::long_with(Self::new(false))
    }

    /// As [`Guest::long`], with interrupt controllers: HLT sleeps.
    pub fn with_irqchip() -> Self {
        Self::long_with(Self::new(true))
    }

    fn long_with(mut guest: Self) -> Self {
        guest.write_tables(64);
        let user = PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER;
        guest.put64(PML4, (PML4 + 0x1000) | user);
        guest.put64(PML4 + 0x1000, PD | user);
        for page in 0..512 {
            guest.put64(PD + 8 * page, page << 21 | user | PAGE_LARGE);
        }
        let mut sregs = guest.vcpu.sregs().expect("sregs");
        guest.fill_segments(&mut sregs, 64);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0031, PML4, 0x620, 0xd01);
        guest.vcpu.set_sregs(&sregs).expect("set sregs");
        guest.start_at(CODE);
        guest
    }

    fn start_at(&mut self, rip: u64) {
        self.set_regs(|regs| {
            regs.rip = rip;
            regs.rsp = STACK;
            regs.rflags = 2;
        });
    }

    /// Another vCPU in the same state, which starts at `rip` and has its stack at `stack`.
    pub fn add_vcpu(&self, id: u32, rip: u64, stack: u64) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(id).expect("another vCPU");
        vcpu.set_sregs(&self.sregs()).expect("set sregs");
        vcpu.set_regs(&Regs { rip, rsp: stack, rflags: 2, ..Regs::default() }).expect("set regs");
        vcpu.set_mp_state(MpState::Runnable).expect("it runs");
        vcpu
    }

    fn fill_segments(&self, sregs: &mut Sregs, bits: u32) {
        sregs.cs = segment(if bits == 64 { CODE64 } else { CODE32 }, 11, 0, bits);
        let data = segment(DATA, 3, 0, 32);
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.tr = system_segment(TASK, TSS, 0x67, 11);
        sregs.ldt = Segment { unusable: true, ..Segment::default() };
        sregs.gdt = DescriptorTable { base: GDT, limit: 0xff };
        sregs.idt = DescriptorTable { base: IDT, limit: 0xfff };
    }

    /// GDT, TSS, and an IDT whose handlers leave their vector in R15 (EBP in 32 bits) and halt.
    fn write_tables(&self, bits: u32) {
        for (selector, bits) in [
            (CODE64, descriptor(0, 0xf_ffff, 0x9b, 0xa)),
            (DATA, descriptor(0, 0xf_ffff, 0x93, 0xc)),
            (USER_CODE32, descriptor(0, 0xf_ffff, 0xfb, 0xc)),
            (USER_DATA, descriptor(0, 0xf_ffff, 0xf3, 0xc)),
            (USER_CODE64, descriptor(0, 0xf_ffff, 0xfb, 0xa)),
            (TASK, descriptor(TSS as u32, 0x67, 0x8b, 0)),
            (CODE32, descriptor(0, 0xf_ffff, 0x9b, 0xc)),
        ] {
            self.set_descriptor(selector, bits);
        }
        for vector in 0..=255u8 {
            let at = HANDLERS + 16 * u64::from(vector);
            let handler = assemble(bits, at, |a| {
                use iced_x86::code_asm::*;
                if bits == 64 { a.mov(r15, u64::from(vector)) } else { a.mov(ebp, u32::from(vector)) }.expect("mov");
                a.hlt().expect("hlt");
            });
            self.put(at, &handler);
            self.set_gate(vector, at, 0x8e, 0, bits);
        }
        if bits == 64 {
            self.put64(TSS + 4, RSP0);
            self.put64(TSS + 36, IST1);
        } else {
            self.put64(TSS + 4, RSP0 | u64::from(DATA) << 32);
        }
    }

    /// An IDT entry; `table` is the IST number.
    pub fn set_gate(&self, vector: u8, offset: u64, access: u8, table: u8, bits: u32) {
        if bits == 64 {
            let at = IDT + 16 * u64::from(vector);
            self.put64(at, gate(CODE64, offset, access, table));
            self.put64(at + 8, offset >> 32);
        } else {
            self.put64(IDT + 8 * u64::from(vector), gate(CODE32, offset, access, 0));
        }
    }

    pub fn set_descriptor(&self, selector: u16, bits: u64) {
        self.put64(GDT + u64::from(selector & 0xfff8), bits);
    }

    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        self.vm.memory().write(gpa, bytes).expect("RAM");
    }

    pub fn put64(&self, gpa: u64, value: u64) {
        self.put(gpa, &value.to_le_bytes());
    }

    pub fn get64(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.vm.memory().read(gpa, &mut bytes).expect("RAM");
        u64::from_le_bytes(bytes)
    }

    pub fn get32(&self, gpa: u64) -> u32 {
        self.get64(gpa) as u32
    }

    /// Assembles at `at`.
    pub fn code(&self, bitness: u32, at: u64, write: impl FnOnce(&mut CodeAssembler)) {
        self.put(at, &assemble(bitness, at, write));
    }

    pub fn set_regs(&mut self, change: impl FnOnce(&mut Regs)) {
        let mut regs = self.regs();
        change(&mut regs);
        self.vcpu.set_regs(&regs).expect("set regs");
    }

    pub fn set_sregs(&mut self, change: impl FnOnce(&mut Sregs)) {
        let mut sregs = self.sregs();
        change(&mut sregs);
        self.vcpu.set_sregs(&sregs).expect("set sregs");
    }

    pub fn regs(&self) -> Regs {
        self.vcpu.regs().expect("regs")
    }

    pub fn sregs(&self) -> Sregs {
        self.vcpu.sregs().expect("sregs")
    }

    pub fn run(&mut self) -> Exit {
        self.vcpu.run(&NobodyAnswers).expect("run")
    }

    /// Runs to HLT.
    pub fn run_to_halt(&mut self) {
        let exit = self.run();
        assert_eq!(exit, Exit::Hlt, "at {:#x?}", self.regs());
    }

    /// Runs into a handler; its frame: error code if `with_error`, RIP, CS, RFLAGS, RSP, SS.
    pub fn run_to_exception(&mut self, vector: u8, with_error: bool) -> Frame {
        self.run_to_halt();
        let regs = self.regs();
        let long = self.sregs().efer & 0x400 != 0;
        let found = if long { regs.r15 } else { regs.rbp };
        assert_eq!(found, u64::from(vector), "the vector; at {:#x?}", self.frame(with_error, long));
        self.frame(with_error, long)
    }

    fn frame(&self, with_error: bool, long: bool) -> Frame {
        let rsp = self.regs().rsp;
        let slot = |index: u64| if long { self.get64(rsp + 8 * index) } else { u64::from(self.get32(rsp + 4 * index)) };
        let first = u64::from(with_error);
        Frame {
            error: with_error.then(|| slot(0)),
            rip: slot(first),
            cs: slot(first + 1),
            flags: slot(first + 2),
            rsp: slot(first + 3),
            ss: slot(first + 4),
        }
    }
}

/// What an exception pushed.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub error: Option<u64>,
    pub rip: u64,
    pub cs: u64,
    pub flags: u64,
    pub rsp: u64,
    pub ss: u64,
}
