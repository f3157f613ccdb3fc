//! The VM's clock as devices see it: it stands still while the VM is paused.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::accel::Vm;

/// Nanoseconds since the VM was created, less the time it was paused.
#[derive(Debug)]
pub struct VmClock {
    vm: Arc<dyn Vm>,
    /// What the clock shows while it stands.
    frozen_ns: Mutex<Option<u64>>,
}

impl VmClock {
    pub fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm, frozen_ns: Mutex::new(None) }
    }

    fn frozen(&self) -> MutexGuard<'_, Option<u64>> {
        self.frozen_ns.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn now_ns(&self) -> u64 {
        self.frozen().unwrap_or_else(|| self.vm.clock_ns())
    }

    /// Sets the clock, also the guest's paravirtual one.
    pub fn set_ns(&self, ns: u64) {
        let mut frozen = self.frozen();
        if frozen.is_some() {
            *frozen = Some(ns);
        }
        self.vm.set_clock_ns(ns);
    }

    /// Stops the clock; nothing when it stands already.
    pub fn freeze(&self) {
        let mut frozen = self.frozen();
        frozen.get_or_insert_with(|| self.vm.clock_ns());
    }

    /// Lets the clock go on from where it stopped.
    pub fn thaw(&self) {
        let mut frozen = self.frozen();
        if let Some(ns) = frozen.take() {
            self.vm.set_clock_ns(ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::toy_vm;

    #[test]
    fn clock_frozen_stands_and_goes_on_from_there() {
        let vm = toy_vm();
        let clock = VmClock::new(vm.clone());
        vm.set_clock_ns(100);
        clock.freeze();
        vm.set_clock_ns(900);
        clock.freeze();
        assert_eq!(clock.now_ns(), 100);
        clock.thaw();
        assert_eq!(clock.now_ns(), 100);
        clock.thaw();
    }

    #[test]
    fn clock_set_while_frozen_goes_on_from_the_new_time() {
        let clock = VmClock::new(toy_vm());
        clock.freeze();
        clock.set_ns(7);
        clock.thaw();
        assert_eq!(clock.now_ns(), 7);
    }
}
