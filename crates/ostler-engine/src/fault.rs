//! A device that cannot go on tells the vCPU that asked it.
//!
//! [`crate::bus::BusDevice`] has no way to fail, for a guest's mistake is no failure. A defect of
//! the device itself, such as an exception in one written in Python, is left here by the device and
//! found by whoever runs the vCPU on this thread.

use std::cell::RefCell;
use std::sync::Arc;

use crate::accel::Kick;

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// The vCPU that this thread is running.
struct Current {
    kick: Arc<dyn Kick>,
    fault: Option<String>,
}

/// Stops the vCPU that this thread is running: its `run` ends in [`crate::Exit::InternalError`] with
/// `text`. The first report counts. False when this thread is not running a vCPU.
pub fn report(text: String) -> bool {
    CURRENT.with_borrow_mut(|current| match current {
        None => false,
        Some(current) => {
            current.fault.get_or_insert(text);
            current.kick.kick();
            true
        }
    })
}

/// From now on, this thread runs the vCPU of `kick`, until [`Watch::end`].
pub(crate) fn watch(kick: Arc<dyn Kick>) -> Watch {
    Watch { outer: CURRENT.replace(Some(Current { kick, fault: None })) }
}

/// A device may itself run another VM's vCPU; `outer` is the one that is interrupted by it.
pub(crate) struct Watch {
    outer: Option<Current>,
}

impl Watch {
    /// What was reported meanwhile.
    pub(crate) fn end(self) -> Option<String> {
        CURRENT.replace(self.outer).and_then(|current| current.fault)
    }
}
