//! What the vCPUs of one VM share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, Weak};

use ostler_engine::AccelError;
use ostler_memory::{GuestRam, Waiter};

use crate::irqchip::Irqchip;
use crate::jit::Translate;
use crate::signals::{Signals, signal};
use ostler_irqchip::GuestClock;

/// Another vCPU, as far as its siblings have to know it.
#[derive(Debug)]
pub struct Sibling {
    pub id: u32,
    pub signals: Arc<Signals>,
    /// Running guest code, as opposed to outside `run`, in a device, or asleep.
    pub running: AtomicBool,
    /// The memory generation it has taken over.
    pub acknowledged: AtomicU64,
}

impl Sibling {
    /// Says that the vCPU runs guest code, until the answer is dropped; a panic drops it, too.
    pub fn run(self: &Arc<Self>, vm: &VmShared) -> Running {
        vm.begin_running(self);
        Running(Arc::clone(self))
    }
}

/// Code was written: whoever runs translations of it finds out before its next look-up.
impl Waiter for Sibling {
    fn written(&self) {
        self.signals.mark(signal::CODE);
    }
}

/// A vCPU runs guest code: others wait for it to drop its translations.
#[derive(Debug)]
pub struct Running(Arc<Sibling>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::SeqCst);
    }
}

/// A vCPU is between watching a page and knowing that every other one notices its stores to it.
#[derive(Debug)]
pub struct Watching<'a> {
    vm: &'a VmShared,
    page: u64,
}

impl Watching<'_> {
    /// Whether another vCPU may still be waiting for its siblings to hear of this page.
    pub fn is_contended(&self) -> bool {
        self.vm.watching().iter().filter(|page| **page == self.page).count() > 1
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        let mut pages = self.vm.watching();
        if let Some(index) = pages.iter().position(|page| *page == self.page) {
            pages.swap_remove(index);
        }
    }
}

/// No other vCPU runs guest code while this lives. It has the bus lock.
#[derive(Debug)]
pub struct Alone<'a> {
    vm: &'a VmShared,
    _bus: MutexGuard<'a, ()>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // Before the lock goes: who gets it next finds nobody alone.
        self.vm.alone.store(NOBODY, Ordering::SeqCst);
    }
}

/// In [`VmShared::alone`]: every vCPU may run.
const NOBODY: u64 = u64::MAX;

/// The part of a VM that every vCPU sees.
#[derive(Debug)]
pub struct VmShared {
    memory: Arc<GuestRam>,
    pub translate: Translate,
    pub clock: Arc<GuestClock>,
    irqchip: OnceLock<Arc<Irqchip>>,
    siblings: RwLock<Vec<Arc<Sibling>>>,
    bus_lock: Mutex<()>,
    /// The id of the vCPU that runs alone; [`NOBODY`] otherwise. Changed under the bus lock.
    alone: AtomicU64,
    /// Counts requests to [`VmShared::synchronize`].
    epoch: AtomicU64,
    /// The page of each [`Watching`].
    watching: Mutex<Vec<u64>>,
    /// How many vCPUs may have code in a page; none for those that are not there.
    holders: Mutex<HashMap<u64, u32>>,
}

impl VmShared {
    pub fn new(memory: Arc<GuestRam>, translate: Translate) -> Self {
        Self {
            memory,
            translate,
            clock: Arc::default(),
            irqchip: OnceLock::new(),
            siblings: RwLock::default(),
            bus_lock: Mutex::default(),
            alone: AtomicU64::new(NOBODY),
            epoch: AtomicU64::new(0),
            watching: Mutex::default(),
            holders: Mutex::default(),
        }
    }

    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.memory
    }

    #[inline]
    pub fn irqchip(&self) -> Option<&Arc<Irqchip>> {
        self.irqchip.get()
    }

    /// Creates the interrupt controllers, once.
    pub fn create_irqchip(&self) -> Result<(), AccelError> {
        if self.irqchip.get().is_none() {
            let irqchip = Irqchip::new(Arc::clone(&self.clock))?;
            // Another thread may have been first; then its chips are the ones.
            let _ = self.irqchip.set(irqchip);
        }
        Ok(())
    }

    pub fn siblings(&self) -> Vec<Arc<Sibling>> {
        self.siblings.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// One vCPU more has code in the physical `page`; before it is watched.
    pub fn hold_code(&self, page: u64) {
        *self.holders().entry(page).or_default() += 1;
    }

    /// One vCPU less has code in `page`; calls `last` when it was the last one, before there can be another.
    pub fn release_code(&self, page: u64, last: impl FnOnce()) {
        let mut holders = self.holders();
        let Some(count) = holders.get_mut(&page) else { return };
        *count -= 1;
        if *count == 0 {
            holders.remove(&page);
            last();
        }
    }

    fn holders(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.holders.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Registers a vCPU; `None` when `id` is taken.
    pub fn add_sibling(&self, id: u32, signals: Arc<Signals>) -> Option<Arc<Sibling>> {
        let mut siblings = self.siblings.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if siblings.iter().any(|sibling| sibling.id == id) {
            return None;
        }
        let acknowledged = AtomicU64::new(self.epoch.load(Ordering::Acquire));
        let sibling = Arc::new(Sibling { id, signals, running: AtomicBool::new(false), acknowledged });
        let watcher: Weak<Sibling> = Arc::downgrade(&sibling);
        self.memory.watch().add_watcher(watcher);
        siblings.push(Arc::clone(&sibling));
        Some(sibling)
    }

    pub fn remove_sibling(&self, id: u32) {
        self.siblings.write().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|sibling| sibling.id != id);
    }

    /// Says that a vCPU runs guest code, as soon as no other one wants to be alone.
    pub fn begin_running(&self, sibling: &Sibling) {
        loop {
            sibling.running.store(true, Ordering::SeqCst);
            let alone = self.alone.load(Ordering::SeqCst);
            if alone == NOBODY || alone == u64::from(sibling.id) {
                return;
            }
            sibling.running.store(false, Ordering::SeqCst);
            drop(self.bus_lock());
        }
    }

    /// Waits until no vCPU but `id` runs guest code: each is between two instructions, in a device, or asleep, and stays
    /// there. To be called while `id` does not count as running, as two of them may ask.
    pub fn run_alone(&self, id: u32) -> Alone<'_> {
        let alone = Alone { vm: self, _bus: self.bus_lock() };
        self.alone.store(u64::from(id), Ordering::SeqCst);
        for sibling in self.siblings().iter().filter(|sibling| sibling.id != id) {
            // Asked again and again: one that just begins to run takes what was raised before.
            while sibling.running.load(Ordering::SeqCst) {
                sibling.signals.mark(signal::ALONE);
                std::thread::yield_now();
            }
        }
        alone
    }

    /// Held by a LOCKed access that one host atomic cannot do: to a device, or, with the others stopped, across pages.
    pub fn bus_lock(&self) -> MutexGuard<'_, ()> {
        self.bus_lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until every other vCPU that runs has dropped its translations; one that does not run, and is left
    /// alone, does so before it goes on. `waiting` is called while it waits, so that two vCPUs that wait for each
    /// other both go on.
    pub fn synchronize(&self, except: Option<u32>, mut waiting: impl FnMut()) {
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let siblings = self.siblings();
        let others = siblings.iter().filter(|sibling| Some(sibling.id) != except);
        let behind = |sibling: &Sibling| {
            sibling.running.load(Ordering::SeqCst) && sibling.acknowledged.load(Ordering::SeqCst) < epoch
        };
        let others: Vec<_> = others.filter(|sibling| behind(sibling)).collect();
        others.iter().for_each(|sibling| sibling.signals.raise(signal::MEMORY));
        for sibling in others {
            while behind(sibling) {
                waiting();
                std::thread::yield_now();
            }
        }
    }

    /// To be held from before the physical `page` is watched until every sibling was synchronized.
    pub fn begin_watching(&self, page: u64) -> Watching<'_> {
        self.watching().push(page);
        Watching { vm: self, page }
    }

    fn watching(&self) -> MutexGuard<'_, Vec<u64>> {
        self.watching.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The request number that a vCPU which has just dropped its translations may acknowledge; read
    /// it before dropping them.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;

    use ostler_memory::SlotConfig;

    use super::*;
    use crate::accel::SoftVcpu;
    use crate::cpu::Cpu;

    fn vm() -> Arc<VmShared> {
        let memory = Arc::new(GuestRam::new());
        memory.set_slot(SlotConfig { size: 1 << 20, ..SlotConfig::default() }).expect("the slot fits");
        Arc::new(VmShared::new(memory, Translate::default()))
    }

    fn cpu(vm: &Arc<VmShared>, id: u32) -> Cpu {
        let sibling = vm.add_sibling(id, Arc::default()).expect("the id is free");
        Cpu::new(Arc::clone(vm), sibling, None)
    }

    #[test]
    fn vcpu_that_panics_no_longer_counts_as_running() {
        let vm = vm();
        let sibling = vm.add_sibling(0, Arc::default()).expect("the id is free");
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _running = sibling.run(&vm);
            assert!(!sibling.running.load(Ordering::SeqCst), "this is the panic");
        }));
        assert!(panicked.is_err());
        vm.synchronize(None, || panic!("nobody runs"));
    }

    #[test]
    fn vcpu_that_sleeps_is_not_woken_to_drop_its_translations() {
        let vm = vm();
        let sleeping = vm.add_sibling(0, Arc::default()).expect("the id is free");
        vm.synchronize(None, || panic!("nobody runs"));
        assert_eq!(sleeping.signals.pending(), 0);
        assert_ne!(sleeping.acknowledged.load(Ordering::SeqCst), vm.epoch(), "it has to see to it when it wakes");
    }

    #[test]
    fn page_watched_by_two_is_trusted_by_neither_before_all_know() {
        let vm = vm();
        // A third vCPU may store to the page until it acknowledges.
        let storing = vm.add_sibling(2, Arc::default()).expect("the id is free");
        let _running = storing.run(&vm);
        let (report, done) = mpsc::channel();
        let watchers = [0, 1].map(|id| {
            let (mut cpu, report) = (cpu(&vm, id), report.clone());
            let watcher = std::thread::spawn(move || {
                cpu.watch_code(0x5000, 1);
                report.send(id).expect("the test listens");
            });
            // The first asks the others to drop their translations, and so has to the second.
            while vm.epoch() <= u64::from(id) {
                assert_eq!(done.try_recv(), Err(mpsc::TryRecvError::Empty), "a watcher went on too early");
                std::thread::yield_now();
            }
            watcher
        });
        assert_eq!(done.try_recv(), Err(mpsc::TryRecvError::Empty), "a watcher went on too early");
        storing.acknowledged.store(u64::MAX, Ordering::SeqCst);
        for watcher in watchers {
            watcher.join().expect("it ends");
        }
        assert_eq!(done.try_iter().count(), 2);
    }

    #[test]
    fn vcpu_that_goes_leaves_no_page_watched() {
        let vm = vm();
        let (mut staying, mut going) = (cpu(&vm, 0), cpu(&vm, 1));
        staying.watch_code(0x5000, 1);
        going.watch_code(0x5000, 1);
        going.watch_code(0x6000, 1);
        drop(SoftVcpu::new(going));
        assert_eq!(*vm.holders(), HashMap::from([(0x5000, 1)]));
    }
}
