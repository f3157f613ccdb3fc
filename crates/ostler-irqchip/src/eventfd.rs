//! Interrupts that come by eventfd, as `KVM_IRQFD` and `KVM_SET_GSI_ROUTING` give them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use ostler_engine::irq::{IrqFd, MsiRouteEntry};
use ostler_engine::pump::{Pump, signal};
use ostler_engine::{AccelError, Msi};

use crate::chips::{Chips, TIMER_GSI, TIMER_PIN, lock};
use crate::message::Message;

/// The eventfds of one VM, and where they lead.
#[derive(Debug, Default)]
pub struct EventFds {
    /// Made for the first eventfd.
    pump: Mutex<Option<Pump>>,
    routes: RwLock<BTreeMap<u32, Msi>>,
    resamplers: Mutex<Vec<Resampler>>,
}

/// Told when the guest ends the interrupt of a level-triggered line.
#[derive(Debug)]
struct Resampler {
    gsi: u32,
    event: Arc<OwnedFd>,
}

impl Chips {
    /// Replaces the messages that interrupts from 24 on lead to.
    pub fn set_msi_routes(&self, routes: &[MsiRouteEntry]) {
        let routes = routes.iter().map(|route| (route.gsi, route.msi)).collect();
        *self.eventfds.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// Interrupts whenever the eventfd is written to: its line once, or until the guest ends the interrupt.
    pub fn bind_irqfd(&self, irqfd: IrqFd) -> Result<(), AccelError> {
        let mut pump = lock(&self.eventfds.pump);
        if pump.is_none() {
            let started = Pump::start("irqfd");
            *pump = Some(started.map_err(|source| AccelError::Host { what: "starting the irqfd thread", source })?);
        }
        let IrqFd { gsi, event, resample } = irqfd;
        let asserts = resample.is_some();
        if let Some(event) = resample {
            lock(&self.eventfds.resamplers).push(Resampler { gsi, event: Arc::new(event) });
        }
        let chip = Weak::clone(&self.this);
        let act = move || {
            if let Some(chip) = chip.upgrade() {
                chip.signalled(gsi, asserts);
            }
        };
        if let Some(pump) = pump.as_ref() {
            pump.add(gsi, event, Arc::new(act));
        }
        Ok(())
    }

    /// Lets go of the eventfds of `gsi`; false when there are none.
    pub fn unbind_irqfd(&self, gsi: u32) -> bool {
        let pump = lock(&self.eventfds.pump);
        let found = pump.as_ref().is_some_and(|pump| pump.remove(gsi));
        drop(pump);
        let mut resamplers = lock(&self.eventfds.resamplers);
        let before = resamplers.len();
        resamplers.retain(|resampler| resampler.gsi != gsi);
        if resamplers.len() != before {
            drop(resamplers);
            self.set_irq_line(gsi, false);
        }
        found
    }

    fn signalled(&self, gsi: u32, asserts: bool) {
        let route = self.eventfds.routes.read().unwrap_or_else(PoisonError::into_inner).get(&gsi).copied();
        if let Some(msi) = route {
            // A message to no processor is lost, as it is on the real bus.
            let _delivered = Message::from_msi(msi).is_some_and(|message| self.deliver(&message));
            return;
        }
        self.set_irq_line(gsi, true);
        if !asserts {
            self.set_irq_line(gsi, false);
        }
    }

    /// The guest has ended the interrupts of these level-triggered pins: their lines fall, and whoever still
    /// wants attention raises his again.
    pub(crate) fn resample(&self, pins: u32) {
        let pin_of = |gsi| if gsi == TIMER_GSI { TIMER_PIN } else { gsi };
        let told: Vec<_> = lock(&self.eventfds.resamplers)
            .iter()
            .filter(|resampler| pins >> pin_of(resampler.gsi) & 1 != 0)
            .map(|resampler| (resampler.gsi, Arc::clone(&resampler.event)))
            .collect();
        for (gsi, event) in told {
            self.set_irq_line(gsi, false);
            signal(&event);
        }
    }
}
