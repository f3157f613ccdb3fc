//! A toy accelerator and a toy device, for tests without a CPU.
//!
//! A toy vCPU knows a handful of x86 opcodes in real mode and keeps every other register set as it
//! was given.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use ostler_memory::{GuestRam, SlotConfig};

use crate::accel::{AccelError, Accelerator, Kick, Msi, Result, Vcpu, Vm};
use crate::bus::BusDevice;
use crate::exit::{Exit, IoHandler};
use crate::irq::{IrqFd, MsiRouteEntry};
use crate::regs::{
    CpuidEntry, DebugRegs, Events, GuestDebug, IrqchipState, LapicState, MpState, MsrEntry, Regs, Sregs, Xcr, XsaveArea,
};

/// `out 0x10, al`
pub const OUT_IMM8: [u8; 2] = [0xe6, 0x10];
/// `in al, 0x10`
pub const IN_IMM8: [u8; 2] = [0xe4, 0x10];
/// `hlt`
pub const HLT: [u8; 1] = [0xf4];
/// `jmp $`
pub const SPIN: [u8; 2] = [0xeb, 0xfe];
/// `ud2`, which without an IDT ends in a triple fault
pub const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];
/// `int3`, at which the toy panics, as it does at every opcode it does not know
pub const PANIC: [u8; 1] = [0xcc];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A VM without memory.
pub fn toy_vm() -> Arc<ToyVm> {
    Arc::new(ToyVm::new(Arc::new(GuestRam::new())))
}

/// Processor 0 of a VM with one page at 0, which starts at the first of `code`.
pub fn toy_vcpu(code: &[&[u8]]) -> Box<dyn Vcpu> {
    let memory = Arc::new(GuestRam::new());
    memory.set_slot(SlotConfig { size: 0x1000, ..Default::default() }).expect("one page");
    memory.write(0, &code.concat()).expect("code of less than a page");
    Box::new(ToyVcpu::new(0, memory))
}

/// Makes [`ToyVm`]s.
#[derive(Debug)]
pub struct ToyAccelerator;

impl Accelerator for ToyAccelerator {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn supported_cpuid(&self) -> Vec<CpuidEntry> {
        vec![CpuidEntry { function: 0, eax: 1, ..Default::default() }]
    }

    fn create_vm(&self, memory: Arc<GuestRam>) -> Result<Arc<dyn Vm>> {
        Ok(Arc::new(ToyVm::new(memory)))
    }
}

/// Remembers the interrupts it was sent.
#[derive(Debug)]
pub struct ToyVm {
    memory: Arc<GuestRam>,
    levels: Mutex<Vec<(u32, bool)>>,
    pub(crate) messages: Mutex<Vec<Msi>>,
    routes: Mutex<Vec<MsiRouteEntry>>,
    irqfds: Mutex<Vec<IrqFd>>,
    clock_ns: AtomicU64,
}

impl ToyVm {
    fn new(memory: Arc<GuestRam>) -> Self {
        Self {
            memory,
            levels: Mutex::default(),
            messages: Mutex::default(),
            routes: Mutex::default(),
            irqfds: Mutex::default(),
            clock_ns: AtomicU64::new(0),
        }
    }

    pub fn levels(&self) -> Vec<(u32, bool)> {
        lock(&self.levels).clone()
    }

    pub fn messages(&self) -> Vec<Msi> {
        lock(&self.messages).clone()
    }

    /// The messages that numbers stand for.
    pub fn routes(&self) -> Vec<MsiRouteEntry> {
        lock(&self.routes).clone()
    }

    /// The numbers that eventfds are bound to; nobody waits for them.
    pub fn irqfds(&self) -> Vec<u32> {
        lock(&self.irqfds).iter().map(|irqfd| irqfd.gsi).collect()
    }
}

impl Vm for ToyVm {
    fn memory(&self) -> &Arc<GuestRam> {
        &self.memory
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn max_vcpus(&self) -> u32 {
        64
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        if id >= self.max_vcpus() {
            return Err(AccelError::TooManyVcpus { id, limit: self.max_vcpus() });
        }
        Ok(Box::new(ToyVcpu::new(id, Arc::clone(&self.memory))))
    }

    fn create_irqchip(&self) -> Result<()> {
        Ok(())
    }

    fn set_irq_line(&self, gsi: u32, level: bool) {
        lock(&self.levels).push((gsi, level));
    }

    fn signal_msi(&self, msi: Msi) -> bool {
        lock(&self.messages).push(msi);
        true
    }

    fn set_msi_routes(&self, routes: &[MsiRouteEntry]) -> Result<()> {
        // As KVM does, all of them.
        if let Some(route) = routes.iter().find(|route| route.msi.address >> 32 & 0xff != 0) {
            return Err(AccelError::BadState { what: "the address of a message", value: route.msi.address });
        }
        *lock(&self.routes) = routes.to_vec();
        Ok(())
    }

    fn bind_irqfd(&self, irqfd: IrqFd) -> Result<()> {
        lock(&self.irqfds).push(irqfd);
        Ok(())
    }

    fn unbind_irqfd(&self, gsi: u32) -> bool {
        let mut irqfds = lock(&self.irqfds);
        let before = irqfds.len();
        irqfds.retain(|irqfd| irqfd.gsi != gsi);
        irqfds.len() != before
    }

    fn irqchip_state(&self) -> Result<IrqchipState> {
        Err(AccelError::NoIrqchip)
    }

    fn set_irqchip_state(&self, _state: &IrqchipState) -> Result<()> {
        Err(AccelError::NoIrqchip)
    }

    fn clock_ns(&self) -> u64 {
        self.clock_ns.load(Ordering::Relaxed)
    }

    fn set_clock_ns(&self, ns: u64) {
        self.clock_ns.store(ns, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct ToyKick {
    kicked: Mutex<bool>,
    arrived: Condvar,
}

impl Kick for ToyKick {
    fn kick(&self) {
        *lock(&self.kicked) = true;
        self.arrived.notify_all();
    }
}

#[derive(Debug)]
struct ToyVcpu {
    id: u32,
    memory: Arc<GuestRam>,
    kick: Arc<ToyKick>,
    /// A read that left `run`; its answer goes to AL.
    reading: bool,
    regs: Regs,
    sregs: Sregs,
    debug_regs: DebugRegs,
    xsave: XsaveArea,
    xcrs: Vec<Xcr>,
    cpuid: Vec<CpuidEntry>,
    events: Events,
    mp_state: MpState,
    lapic: LapicState,
}

impl ToyVcpu {
    fn new(id: u32, memory: Arc<GuestRam>) -> Self {
        Self {
            id,
            memory,
            kick: Arc::default(),
            reading: false,
            regs: Regs::default(),
            sregs: Sregs::default(),
            debug_regs: DebugRegs::default(),
            xsave: XsaveArea { bytes: vec![0; 832] },
            xcrs: vec![Xcr { index: 0, value: 1 }],
            cpuid: Vec::new(),
            events: Events::default(),
            mp_state: MpState::default(),
            lapic: LapicState { regs: [0; 1024] },
        }
    }

    fn byte(&self, offset: u64) -> Result<u8> {
        let mut byte = [0];
        self.memory.read(self.regs.rip + offset, &mut byte)?;
        Ok(byte[0])
    }

    fn set_al(&mut self, al: u8) {
        self.regs.rax = self.regs.rax & !0xff | u64::from(al);
    }

    /// One instruction; an exit when `io` cannot finish it.
    fn step(&mut self, io: &dyn IoHandler) -> Result<Option<Exit>> {
        let (opcode, operand) = (self.byte(0)?, self.byte(1)?);
        let port = u16::from(operand);
        match opcode {
            0xe6 => {
                self.regs.rip += 2;
                let data = [self.regs.rax as u8];
                return Ok((!io.io_write(port, &data)).then(|| Exit::IoOut { port, data: data.to_vec() }));
            }
            0xe4 => {
                self.regs.rip += 2;
                let mut data = [0xff];
                self.reading = !io.io_read(port, &mut data);
                self.set_al(data[0]);
                return Ok(self.reading.then_some(Exit::IoIn { port, size: 1 }));
            }
            0xf4 => {
                self.regs.rip += 1;
                return Ok(Some(Exit::Hlt));
            }
            0xeb => self.regs.rip = self.regs.rip.wrapping_add(2).wrapping_add_signed((operand as i8).into()),
            0x0f => return Ok(Some(Exit::Shutdown)),
            _ => panic!("opcode {opcode:#x}"),
        }
        Ok(None)
    }
}

impl Vcpu for ToyVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn run(&mut self, io: &dyn IoHandler) -> Result<Exit> {
        self.reading = false;
        loop {
            if std::mem::take(&mut *lock(&self.kick.kicked)) {
                return Ok(Exit::Interrupted);
            }
            if let Some(exit) = self.step(io)? {
                return Ok(exit);
            }
            if self.byte(0)? == SPIN[0] && self.byte(1)? == SPIN[1] {
                let kicked = lock(&self.kick.kicked);
                let waited = self.kick.arrived.wait_while(kicked, |kicked| !*kicked);
                drop(waited.unwrap_or_else(|poisoned| poisoned.into_inner()));
            }
        }
    }

    fn supply_read(&mut self, data: &[u8]) -> Result<()> {
        let expected = usize::from(self.reading);
        match data {
            [al] if self.reading => {
                self.set_al(*al);
                Ok(())
            }
            _ => Err(AccelError::WrongAnswer { expected, got: data.len() }),
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn interrupt(&mut self, vector: u8) -> Result<()> {
        self.events.interrupt = Some(vector);
        Ok(())
    }

    fn nmi(&mut self) -> Result<()> {
        self.events.nmi_pending = true;
        Ok(())
    }

    fn regs(&self) -> Result<Regs> {
        Ok(self.regs)
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        self.regs = *regs;
        Ok(())
    }

    fn sregs(&self) -> Result<Sregs> {
        Ok(self.sregs)
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()> {
        self.sregs = *sregs;
        Ok(())
    }

    fn debug_regs(&self) -> Result<DebugRegs> {
        Ok(self.debug_regs)
    }

    fn set_debug_regs(&mut self, regs: &DebugRegs) -> Result<()> {
        self.debug_regs = *regs;
        Ok(())
    }

    fn xsave(&self) -> Result<XsaveArea> {
        Ok(self.xsave.clone())
    }

    fn set_xsave(&mut self, area: &XsaveArea) -> Result<()> {
        self.xsave = area.clone();
        Ok(())
    }

    fn xcrs(&self) -> Result<Vec<Xcr>> {
        Ok(self.xcrs.clone())
    }

    fn set_xcrs(&mut self, xcrs: &[Xcr]) -> Result<()> {
        self.xcrs = xcrs.to_vec();
        Ok(())
    }

    fn msr_list(&self) -> Vec<u32> {
        Vec::new()
    }

    fn msr(&self, index: u32) -> Result<u64> {
        Err(AccelError::NoSuchMsr(index))
    }

    fn tsc_khz(&self) -> Result<u32> {
        Ok(1_000_000)
    }

    fn set_tsc_khz(&mut self, _khz: u32) -> Result<()> {
        Ok(())
    }

    fn set_msr(&mut self, entry: MsrEntry) -> Result<()> {
        Err(AccelError::NoSuchMsr(entry.index))
    }

    fn cpuid(&self) -> Vec<CpuidEntry> {
        self.cpuid.clone()
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()> {
        self.cpuid = entries.to_vec();
        Ok(())
    }

    fn events(&self) -> Result<Events> {
        Ok(self.events)
    }

    fn set_events(&mut self, events: &Events) -> Result<()> {
        self.events = *events;
        Ok(())
    }

    fn mp_state(&self) -> Result<MpState> {
        Ok(self.mp_state)
    }

    fn set_mp_state(&mut self, state: MpState) -> Result<()> {
        self.mp_state = state;
        Ok(())
    }

    fn lapic(&self) -> Result<LapicState> {
        Ok(self.lapic.clone())
    }

    fn set_lapic(&mut self, state: &LapicState) -> Result<()> {
        self.lapic = state.clone();
        Ok(())
    }

    fn set_guest_debug(&mut self, _debug: GuestDebug) -> Result<()> {
        Ok(())
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        (linear < 1 << 20).then_some(linear)
    }

    fn instructions(&self) -> Option<u64> {
        None
    }
}

/// A device of plain bytes that remembers who came: offset, size and whether it was a write.
#[derive(Debug)]
pub struct Scratch {
    bytes: Mutex<Vec<u8>>,
    accesses: Mutex<Vec<(u64, usize, bool)>>,
}

impl Scratch {
    pub fn new(size: u64) -> Self {
        Self { bytes: Mutex::new(vec![0; size as usize]), accesses: Mutex::default() }
    }

    pub fn accesses(&self) -> Vec<(u64, usize, bool)> {
        lock(&self.accesses).clone()
    }
}

impl BusDevice for Scratch {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.accesses).push((offset, data.len(), false));
        data.copy_from_slice(&lock(&self.bytes)[offset as usize..][..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(&self.accesses).push((offset, data.len(), true));
        lock(&self.bytes)[offset as usize..][..data.len()].copy_from_slice(data);
    }
}
