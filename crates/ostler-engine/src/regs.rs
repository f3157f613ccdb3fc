//! The register sets of a vCPU, as `/dev/kvm` groups them. Names are the manuals'.

/// General-purpose registers, RIP and RFLAGS (`struct kvm_regs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part (`struct kvm_segment`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub base: u64,
    /// In bytes, after the granularity was applied.
    pub limit: u32,
    pub selector: u16,
    /// The descriptor's 4-bit type field.
    pub kind: u8,
    pub present: bool,
    pub dpl: u8,
    /// The D/B bit.
    pub db: bool,
    /// Code or data (set) or system (clear).
    pub s: bool,
    /// 64-bit code.
    pub l: bool,
    /// Limit in pages.
    pub g: bool,
    pub avl: bool,
    /// The register holds a null selector or one that may not be used.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}

/// Segment and control registers (`struct kvm_sregs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// The page directory pointers of PAE paging as CR3 loaded them; `None` where they are not in use or not
    /// known. Set as `None`, they are loaded from memory.
    pub pdptrs: Option<[u64; 4]>,
}

impl Sregs {
    /// Paging with PAE outside of long mode (SDM 3, 4.1.1): the only mode that has page directory pointers.
    pub fn is_pae_paging(&self) -> bool {
        const CR0_PG: u64 = 1 << 31;
        const CR4_PAE: u64 = 1 << 5;
        const EFER_LMA: u64 = 1 << 10;
        self.cr0 & CR0_PG != 0 && self.cr4 & CR4_PAE != 0 && self.efer & EFER_LMA == 0
    }
}

/// DR0..DR3, DR6, DR7 (`struct kvm_debugregs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegs {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// The standard XSAVE image: the 512-byte FXSAVE image, the 64-byte header, AVX from byte 576 on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XsaveArea {
    pub bytes: Vec<u8>,
}

/// An extended control register; 0 is XCR0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xcr {
    pub index: u32,
    pub value: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsrEntry {
    pub index: u32,
    pub value: u64,
}

/// One row of what CPUID answers (`struct kvm_cpuid_entry2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    /// Whether ECX selects among several rows of this function.
    pub significant_index: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Exceptions and interrupts under way (`struct kvm_vcpu_events`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// An exception to deliver before the next instruction: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// An external interrupt accepted but not delivered.
    pub interrupt: Option<u8>,
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// Interrupts are blocked for one instruction, by STI or by MOV SS.
    pub interrupt_shadow: bool,
    pub sipi_vector: u8,
}

/// What a vCPU is doing (`struct kvm_mp_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MpState {
    #[default]
    Runnable,
    /// An application processor before its first INIT.
    Uninitialized,
    /// After INIT, waiting for a SIPI.
    InitReceived,
    Halted,
}

/// A local APIC's registers as its 4 KiB MMIO page shows them: one 32-bit register at each 16 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LapicState {
    pub regs: [u8; 1024],
}

/// One 8259 (`struct kvm_pic_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicState {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub elcr: u8,
    pub elcr_mask: u8,
}

/// The 82093AA (`struct kvm_ioapic_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoapicState {
    pub base_address: u64,
    pub ioregsel: u32,
    pub id: u32,
    pub irr: u32,
    pub redirtbl: [u64; 24],
}

/// One counter of the 8254 (`struct kvm_pit_channel_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PitChannelState {
    /// 0x10000 stands for the counter value 0.
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    /// Nanoseconds of the VM's clock at which the count was loaded.
    pub count_load_time_ns: i64,
}

/// The interrupt controllers and the timer that belong to the VM as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqchipState {
    /// Master, slave.
    pub pics: [PicState; 2],
    pub ioapic: IoapicState,
    pub pit: [PitChannelState; 3],
    /// Port 0x61: speaker data and the gate of counter 2.
    pub speaker: u8,
}

/// What a debugger outside the guest asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestDebug {
    pub single_step: bool,
    /// `INT3` becomes [`crate::Exit::Debug`].
    pub software_breakpoints: bool,
    /// DR0..DR3 and DR7 in place of the guest's.
    pub hardware_breakpoints: Option<([u64; 4], u64)>,
}
