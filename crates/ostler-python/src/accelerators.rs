//! The accelerators by the names users know.

use std::sync::Arc;

use ostler_engine::Accelerator;
use ostler_x86::SoftAccelerator;

const NAMES: &[&str] = &["soft"];

/// The accelerator called `name`, or what to say to whoever asked for it.
pub fn by_name(name: &str) -> Result<Arc<dyn Accelerator>, String> {
    match name {
        "soft" => Ok(Arc::new(SoftAccelerator)),
        _ => Err(format!("unknown accelerator {name:?}; this build has: {}", NAMES.join(", "))),
    }
}
