//! How devices interrupt the guest.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::accel::{AccelError, Msi, Result, Vm};

/// What a device does to say "look here". Called from any thread; never blocks for long.
pub trait Interrupt: Send + Sync + Debug {
    fn trigger(&self);

    /// Has every write to the eventfd `event` trigger it until [`Interrupt::unfollow`], without a thread of the
    /// caller's; false where the caller has to wait for the eventfd himself.
    fn follow(&self, _event: &Arc<OwnedFd>) -> bool {
        false
    }

    /// Lets go of an eventfd that it follows; what was written to it before is not lost.
    fn unfollow(&self, _event: &Arc<OwnedFd>) {}
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
    fn eventfd_counts_triggers() {
        let interrupt = EventFdInterrupt(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        interrupt.trigger();
        interrupt.trigger();
        assert_eq!(interrupt.0.read().expect("a count"), 2);
    }
}
