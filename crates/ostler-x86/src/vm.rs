//! What the vCPUs of one VM share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};

use ostler_engine::AccelError;
use ostler_memory::GuestRam;

use crate::clock::GuestClock;
use crate::irqchip::Irqchip;
use crate::signals::{Signals, signal};

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

/// The part of a VM that every vCPU sees.
#[derive(Debug)]
pub struct VmShared {
    memory: Arc<GuestRam>,
    pub clock: Arc<GuestClock>,
    irqchip: OnceLock<Arc<Irqchip>>,
    siblings: RwLock<Vec<Arc<Sibling>>>,
    bus_lock: Mutex<()>,
    /// Counts requests to [`VmShared::synchronize`].
    epoch: AtomicU64,
}

impl VmShared {
    pub fn new(memory: Arc<GuestRam>) -> Self {
        Self {
            memory,
            clock: Arc::default(),
            irqchip: OnceLock::new(),
            siblings: RwLock::default(),
            bus_lock: Mutex::default(),
            epoch: AtomicU64::new(0),
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

    /// Registers a vCPU; `None` when `id` is taken.
    pub fn add_sibling(&self, id: u32, signals: Arc<Signals>) -> Option<Arc<Sibling>> {
        let mut siblings = self.siblings.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if siblings.iter().any(|sibling| sibling.id == id) {
            return None;
        }
        let acknowledged = AtomicU64::new(self.epoch.load(Ordering::Acquire));
        let sibling = Arc::new(Sibling { id, signals, running: AtomicBool::new(false), acknowledged });
        siblings.push(Arc::clone(&sibling));
        Some(sibling)
    }

    pub fn remove_sibling(&self, id: u32) {
        self.siblings.write().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|sibling| sibling.id != id);
    }

    /// Held by a LOCKed access that one host atomic cannot do: across pages, or to a device.
    pub fn bus_lock(&self) -> MutexGuard<'_, ()> {
        self.bus_lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until every other vCPU that runs has dropped its translations. `waiting` is called
    /// while it waits, so that two vCPUs that wait for each other both go on.
    pub fn synchronize(&self, except: Option<u32>, mut waiting: impl FnMut()) {
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let siblings = self.siblings();
        let others = siblings.iter().filter(|sibling| Some(sibling.id) != except);
        for sibling in others {
            sibling.signals.raise(signal::MEMORY);
            while sibling.running.load(Ordering::SeqCst) && sibling.acknowledged.load(Ordering::SeqCst) < epoch {
                waiting();
                std::thread::yield_now();
            }
        }
    }

    /// The request number that a vCPU which has just dropped its translations may acknowledge; read
    /// it before dropping them.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }
}
