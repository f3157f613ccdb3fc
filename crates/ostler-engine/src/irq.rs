//! How devices interrupt the guest.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use crate::accel::{AccelError, Msi, Result, Vm};

/// What a device does to say "look here". Called from any thread; never blocks for long.
pub trait Interrupt: Send + Sync + Debug {
    fn trigger(&self);
}

/// An input of the interrupt controllers.
///
/// Several devices may hold the same line; combining their levels (wired OR) is theirs to do.
#[derive(Clone, Debug)]
pub struct IrqLine {
    vm: Arc<dyn Vm>,
    gsi: u32,
}

impl IrqLine {
    pub fn new(vm: Arc<dyn Vm>, gsi: u32) -> Self {
        Self { vm, gsi }
    }

    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    pub fn set_level(&self, level: bool) {
        self.vm.set_irq_line(self.gsi, level);
    }

    /// One edge: up and down again.
    pub fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

/// A level that a device drives. From any thread; never blocks for long.
pub trait Level: Send + Sync + Debug {
    fn set_level(&self, level: bool);
}

impl Level for IrqLine {
    fn set_level(&self, level: bool) {
        self.set_level(level);
    }
}

/// An input that several devices pull: active while any of them does.
#[derive(Debug)]
pub struct SharedLine {
    line: IrqLine,
    /// How many pull.
    pulls: Mutex<u32>,
}

impl SharedLine {
    pub fn new(line: IrqLine) -> Arc<Self> {
        Arc::new(Self { line, pulls: Mutex::new(0) })
    }

    /// A new wire to it. One that is dropped pulls no more.
    pub fn input(self: &Arc<Self>) -> SharedInput {
        SharedInput { shared: Arc::clone(self), level: Mutex::new(false) }
    }
}

/// One device's wire to a [`SharedLine`].
#[derive(Debug)]
pub struct SharedInput {
    shared: Arc<SharedLine>,
    level: Mutex<bool>,
}

impl Level for SharedInput {
    fn set_level(&self, level: bool) {
        let mut current = self.level.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *current == level {
            return;
        }
        *current = level;
        let mut pulls = self.shared.pulls.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *pulls = if level { *pulls + 1 } else { *pulls - 1 };
        if *pulls == u32::from(level) {
            self.shared.line.set_level(level);
        }
    }
}

impl Level for Arc<SharedInput> {
    fn set_level(&self, level: bool) {
        Level::set_level(&**self, level);
    }
}

impl Drop for SharedInput {
    fn drop(&mut self) {
        Level::set_level(self, false);
    }
}

impl Interrupt for IrqLine {
    /// Asserts the line; it stays so until the device's status register is read.
    fn trigger(&self) {
        self.set_level(true);
    }
}

/// One message-signalled interrupt: what a row of an MSI-X table says, and its pending bit.
#[derive(Debug)]
pub struct MsiRoute {
    vm: Arc<dyn Vm>,
    /// One lock makes a new address, its data and the mask visible together.
    row: Mutex<Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    msi: Msi,
    masked: bool,
    pending: bool,
}

impl MsiRoute {
    /// A route that is masked, as MSI-X entries are after reset (PCI 3.0, 6.8.2.9).
    pub fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm, row: Mutex::new(Row { msi: Msi::default(), masked: true, pending: false }) }
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn msi(&self) -> Msi {
        self.row().msi
    }

    /// Replaces the message.
    pub fn update(&self, msi: Msi) {
        self.row().msi = msi;
    }

    pub fn is_masked(&self) -> bool {
        self.row().masked
    }

    /// Masks or unmasks; an interrupt that is pending fires when the mask goes.
    pub fn set_masked(&self, masked: bool) {
        let mut row = self.row();
        row.masked = masked;
        if !masked && std::mem::take(&mut row.pending) {
            let msi = row.msi;
            drop(row);
            self.vm.signal_msi(msi);
        }
    }

    /// Whether an interrupt waits for the mask to go.
    pub fn is_pending(&self) -> bool {
        self.row().pending
    }

    /// Sets the pending bit as a saved state has it; fires nothing.
    pub fn set_pending(&self, pending: bool) {
        self.row().pending = pending;
    }

    /// Sends the message, or remembers to when the mask goes.
    pub fn signal(&self) {
        let mut row = self.row();
        if row.masked {
            row.pending = true;
            return;
        }
        let msi = row.msi;
        drop(row);
        // A message to no processor is lost, as it is on the real bus.
        let _delivered = self.vm.signal_msi(msi);
    }
}

impl Interrupt for MsiRoute {
    fn trigger(&self) {
        self.signal();
    }
}

/// An eventfd that interrupts the guest when it is written to (`KVM_IRQFD`).
#[derive(Debug)]
pub struct IrqFd {
    /// A line of the controllers, below [`FIRST_MESSAGE`], or the number of a [`MsiRouteEntry`].
    pub gsi: u32,
    pub event: OwnedFd,
    /// For a level-triggered line: it stays asserted until the guest ends the interrupt; then it falls and this is
    /// written to, so that whoever still wants attention writes to `event` again.
    pub resample: Option<OwnedFd>,
}

/// An interrupt number that stands for a message (`KVM_SET_GSI_ROUTING`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRouteEntry {
    pub gsi: u32,
    pub msi: Msi,
}

/// Lines of the interrupt controllers are below, messages from here on.
pub const FIRST_MESSAGE: u32 = 24;
/// Numbers of messages are below: as many as KVM routes, less the wires of the controllers.
pub const LAST_MESSAGE: u32 = 4000;

/// Refuses numbers that are lines, or past the last one.
pub fn check_routes(routes: &[MsiRouteEntry]) -> Result<()> {
    let bad = routes.iter().find(|route| !(FIRST_MESSAGE..LAST_MESSAGE).contains(&route.gsi));
    bad.map_or(Ok(()), |route| Err(AccelError::BadState { what: "the number of a message", value: route.gsi.into() }))
}

/// Refuses what can be no interrupt: a number past the last one, and to ask for the end of a message.
pub fn check_irqfd(irqfd: &IrqFd) -> Result<()> {
    let limit = if irqfd.resample.is_some() { FIRST_MESSAGE } else { LAST_MESSAGE };
    if irqfd.gsi < limit {
        return Ok(());
    }
    Err(AccelError::BadState { what: "the number of an interrupt", value: irqfd.gsi.into() })
}

/// An interrupt that somebody else delivers: another process, or Python.
#[derive(Debug)]
pub struct EventFdInterrupt(pub EventFd);

impl Interrupt for EventFdInterrupt {
    fn trigger(&self) {
        // A full counter means that the reader has all the news it needs.
        let _full = self.0.write(1);
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::testing::toy_vm;

    const MESSAGE: Msi = Msi { address: 0xfee0_0000, data: 0x41 };

    #[test]
    fn line_level_and_pulse_reach_the_controllers() {
        let vm = toy_vm();
        let line = IrqLine::new(vm.clone(), 4);
        line.trigger();
        line.set_level(false);
        line.pulse();
        assert_eq!(vm.levels(), [(4, true), (4, false), (4, true), (4, false)]);
    }

    #[test]
    fn line_shared_follows_whoever_pulls() {
        let vm = toy_vm();
        let shared = SharedLine::new(IrqLine::new(vm.clone(), 16));
        let (one, two) = (shared.input(), shared.input());
        one.set_level(true);
        two.set_level(true);
        two.set_level(true);
        one.set_level(false);
        assert_eq!(vm.levels(), [(16, true)]);
        drop(two);
        assert_eq!(vm.levels(), [(16, true), (16, false)]);
    }

    #[test]
    fn route_unmasked_sends_its_message() {
        let vm = toy_vm();
        let route = MsiRoute::new(vm.clone());
        route.update(MESSAGE);
        route.set_masked(false);
        route.trigger();
        assert_eq!(vm.messages(), [MESSAGE]);
        assert!(!route.is_pending());
    }

    #[test]
    fn route_masked_keeps_one_interrupt_until_it_is_unmasked() {
        let vm = toy_vm();
        let route = MsiRoute::new(vm.clone());
        route.signal();
        route.signal();
        assert!(route.is_pending() && vm.messages().is_empty());
        route.update(MESSAGE);
        route.set_masked(false);
        assert_eq!(vm.messages(), [MESSAGE]);
        assert!(!route.is_pending());
    }

    #[test]
    fn eventfd_counts_triggers() {
        let interrupt = EventFdInterrupt(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        interrupt.trigger();
        interrupt.trigger();
        assert_eq!(interrupt.0.read().expect("a count"), 2);
    }
}
