//! The accelerators by the names users know.

use std::sync::Arc;

use ostler_engine::Accelerator;
use ostler_kvm::KvmAccelerator;
use ostler_x86::SoftAccelerator;
use pyo3::prelude::*;

use crate::error::{Kind, raise};

const NAMES: &[&str] = &["kvm", "soft"];

/// The accelerator called `name`, or what to say to whoever asked for it.
pub fn by_name(name: &str) -> PyResult<Arc<dyn Accelerator>> {
    match name {
        "kvm" => Ok(Arc::new(KvmAccelerator::open(ostler_kvm::DEVICE.as_ref()).map_err(raise)?)),
        "soft" => Ok(Arc::new(SoftAccelerator)),
        _ => {
            let known = NAMES.join(", ");
            Err(Kind::Config.error(format!("unknown accelerator {name:?}; this build has: {known}")))
        }
    }
}
