//! Lines that somebody waits for a write to: what MONITOR arms.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::log::{LINE_BYTES, WatchedWrite};

/// Who waits for a write.
pub trait Waiter: Send + Sync + std::fmt::Debug {
    /// The line was written. Called from the writer's thread.
    fn written(&self);
}

/// A waiter and the line it waits for, by guest physical address.
#[derive(Debug)]
struct Armed {
    line: u64,
    waiter: Arc<dyn Waiter>,
}

/// The waiters of one VM. Who arms one has to see to it that writes to the line are announced.
#[derive(Debug, Default)]
pub struct LineMonitors {
    /// The length of `armed`, so that writers beside a line nobody waits for any more take no lock.
    count: AtomicUsize,
    armed: Mutex<Vec<Armed>>,
}

impl LineMonitors {
    /// Tells `waiter`, once, of the next write to the line of `gpa`, in place of a line it waited for before.
    pub fn arm(&self, gpa: u64, waiter: &Arc<dyn Waiter>) {
        let mut armed = self.lock();
        armed.retain(|other| !Arc::ptr_eq(&other.waiter, waiter));
        armed.push(Armed { line: gpa / LINE_BYTES, waiter: Arc::clone(waiter) });
        self.count.store(armed.len(), Ordering::SeqCst);
    }

    /// `waiter` no longer waits.
    pub fn disarm(&self, waiter: &Arc<dyn Waiter>) {
        let mut armed = self.lock();
        armed.retain(|other| !Arc::ptr_eq(&other.waiter, waiter));
        self.count.store(armed.len(), Ordering::SeqCst);
    }

    /// Tells those who wait for a line that `write` touched.
    pub(crate) fn written(&self, write: WatchedWrite) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let lines = write.gpa / LINE_BYTES..=(write.gpa + write.len.saturating_sub(1)) / LINE_BYTES;
        let mut armed = self.lock();
        armed.retain(|one| {
            let touched = lines.contains(&one.line);
            if touched {
                one.waiter.written();
            }
            !touched
        });
        self.count.store(armed.len(), Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Counter(AtomicUsize);

    impl Waiter for Counter {
        fn written(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn waiter_hears_once_of_a_write_to_its_last_line() {
        let monitors = LineMonitors::default();
        let counter = Arc::new(Counter::default());
        let waiter: Arc<dyn Waiter> = Arc::clone(&counter) as _;
        let heard = || counter.0.load(Ordering::SeqCst);
        monitors.arm(0x1000, &waiter);
        monitors.arm(0x2010, &waiter);
        monitors.written(WatchedWrite { gpa: 0x1000, len: 64 });
        monitors.written(WatchedWrite { gpa: 0x2040, len: 8 });
        assert_eq!(heard(), 0);
        monitors.written(WatchedWrite { gpa: 0x1ff8, len: 9 });
        assert_eq!(heard(), 1);
        monitors.written(WatchedWrite { gpa: 0x2000, len: 8 });
        assert_eq!(heard(), 1, "once");
        monitors.arm(0x2000, &waiter);
        monitors.disarm(&waiter);
        monitors.written(WatchedWrite { gpa: 0x2000, len: 8 });
        assert_eq!(heard(), 1);
    }
}
