//! The accelerators by the names users know.

use std::sync::Arc;

use ostler_engine::Accelerator;
use ostler_kvm::{KvmAccelerator, Options};
use ostler_x86::{SoftAccelerator, Translate};
use pyo3::prelude::*;

use crate::error::{Kind, raise};

const NAMES: &[&str] = &["kvm", "soft"];

/// The accelerator called `name`, or what to say to whoever asked for it.
pub fn by_name(name: &str, soft_jit: &str, options: Options) -> PyResult<Arc<dyn Accelerator>> {
    match name {
        "kvm" => Ok({
            let device = ostler_kvm::DEVICE.as_ref();
            Arc::new(KvmAccelerator::open_with(device, options).map_err(raise)?)
        }),
        "soft" => Ok(Arc::new(SoftAccelerator { translate: translate(soft_jit)? })),
        _ => {
            let known = NAMES.join(", ");
            Err(Kind::Config.error(format!("unknown accelerator {name:?}; this build has: {known}")))
        }
    }
}

fn translate(soft_jit: &str) -> PyResult<Translate> {
    match soft_jit {
        "on" => Ok(Translate::WhenHot),
        "off" => Ok(Translate::Never),
        "eager" => Ok(Translate::Eagerly),
        _ => Err(Kind::Config.error(format!("unknown soft_jit {soft_jit:?}; there is: on, off, eager"))),
    }
}
