//! The split irqchip: local APICs in the kernel, PIC, IOAPIC and PIT of `ostler-irqchip` in this process.
//!
//! The chips' messages go to the kernel by `KVM_SIGNAL_MSI`. Level-triggered pins of the IOAPIC have rows in the kernel's
//! routing table, under the numbers that `KVM_CAP_SPLIT_IRQCHIP` reserves: from them it knows for the end of which
//! vectors to come back (`KVM_EXIT_IOAPIC_EOI`). The PIC's vectors are injected by `KVM_INTERRUPT` when the boot
//! processor is ready for one; nobody else takes them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::irq::MsiRouteEntry;
use ostler_engine::regs::{IoapicState, IrqchipState};
use ostler_irqchip::message::Message;
use ostler_irqchip::{Chips, GuestClock, IOAPIC_BASE, Processors, Timers, level_messages};

use crate::ioctl::host;
use crate::irqchip::{self, PINS};

const IOAPIC_PAGE: u64 = !0xfff;

/// The chips of one VM, and the routing table.
#[derive(Debug)]
pub struct Split {
    pub chips: Arc<Chips>,
    clock: Arc<GuestClock>,
    routes: Mutex<Routes>,
}

/// What the kernel's routing table holds.
#[derive(Debug, Default)]
struct Routes {
    /// Level-triggered pins of the IOAPIC.
    pins: Vec<MsiRouteEntry>,
    messages: Vec<MsiRouteEntry>,
    /// Why the kernel did not take the pins, until somebody is told.
    refused: Option<AccelError>,
}

impl Routes {
    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        self.pins.iter().chain(&self.messages).map(irqchip::message).collect()
    }

    /// Takes `pins` if `set` gives the kernel the table they make. Otherwise they are what the kernel still has, so that
    /// the next change is one.
    fn set_pins(&mut self, pins: Vec<MsiRouteEntry>, set: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        if self.pins == pins {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.pins, pins);
        let done = set(self);
        if done.is_err() {
            self.pins = before;
        }
        done
    }
}

impl Split {
    /// Has the kernel leave all but the local APICs to us. `processors` deliver what the chips send.
    pub fn create(vm: &VmFd, clock_ns: u64, processors: Weak<dyn Processors>) -> Result<Self> {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        cap.args[0] = PINS.into();
        vm.enable_cap(&cap).map_err(host("KVM_CAP_SPLIT_IRQCHIP"))?;
        let clock = Arc::new(GuestClock::default());
        clock.set_ns(clock_ns);
        let timers = Timers::start(Arc::clone(&clock))?;
        Ok(Self { chips: Chips::new(timers, processors), clock, routes: Mutex::default() })
    }

    pub fn set_messages(&self, vm: &VmFd, messages: &[MsiRouteEntry]) -> Result<()> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut routes.messages, messages.to_vec());
        let set = irqchip::set_table(vm, &routes.entries());
        if set.is_err() {
            routes.messages = before;
        }
        set
    }

    /// Tells the kernel of the level-triggered pins, where they have changed.
    /// What it does not take is for [`Split::check`]: the write that changed them cannot fail.
    pub fn set_pins(&self, vm: &VmFd, ioapic: &IoapicState) {
        let row = |(gsi, message): (u32, Message)| MsiRouteEntry { gsi, msi: message.to_msi() };
        let pins: Vec<_> = level_messages(ioapic).into_iter().map(row).collect();
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = routes.set_pins(pins, |routes| irqchip::set_table(vm, &routes.entries())) {
            routes.refused = Some(error);
        }
    }

    /// Fails, once, after the kernel did not take the pins: without them the guest's level-triggered interrupts end
    /// unheard.
    pub fn check(&self) -> Result<()> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).refused.take().map_or(Ok(()), Err)
    }

    /// Has the chips answer a port access; false when it is not theirs.
    pub fn port(&self, port: u16, data: &mut [u8], is_write: bool) -> bool {
        if is_write { self.chips.io_write(port, data) } else { self.chips.io_read(port, data) }
    }

    /// Has the chips answer a memory access; false when it is not theirs.
    pub fn memory(&self, gpa: u64, data: &mut [u8], is_write: bool) -> bool {
        let (page, offset) = (gpa & IOAPIC_PAGE, gpa & !IOAPIC_PAGE);
        match page {
            IOAPIC_BASE if is_write => self.chips.ioapic_write(offset, data),
            IOAPIC_BASE => self.chips.ioapic_read(offset, data),
            _ => return false,
        }
        true
    }

    /// The chips' state. Its times are by a clock that was last set when the VM's was.
    pub fn state(&self) -> IrqchipState {
        self.chips.state()
    }

    pub fn set_state(&self, state: &IrqchipState, clock_ns: u64) -> Result<()> {
        self.clock.set_ns(clock_ns);
        self.chips.set_state(state)
    }

    /// The VM's clock was set.
    pub fn set_clock_ns(&self, ns: u64) {
        self.clock.set_ns(ns);
        self.chips.clock_changed();
    }
}

#[cfg(test)]
mod tests {
    use ostler_engine::accel::Msi;

    use super::*;

    #[test]
    fn pins_that_the_kernel_does_not_take_are_offered_again() {
        let pins = vec![MsiRouteEntry { gsi: 9, msi: Msi { address: 0xfee0_0000, data: 0x8031 } }];
        let mut routes = Routes::default();
        let refused = routes.set_pins(pins.clone(), |_| Err(AccelError::Unavailable("no room".into())));
        assert!(refused.is_err() && routes.pins.is_empty());
        let mut offered = 0;
        for _ in 0..2 {
            let taken = routes.set_pins(pins.clone(), |routes| {
                offered += routes.entries().len();
                Ok(())
            });
            taken.expect("the kernel takes it");
        }
        assert_eq!((offered, routes.pins), (1, pins));
    }
}
