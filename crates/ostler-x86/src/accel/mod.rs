//! The accelerator contract over the software CPU.

mod state;
mod vcpu;
mod vm;
mod xsave;

use std::sync::Arc;

use ostler_engine::accel::Result;
use ostler_engine::regs::CpuidEntry;
use ostler_engine::{Accelerator, Vm};
use ostler_memory::GuestRam;

use crate::cpuid::CpuidTable;
use crate::jit::Translate;

pub use vcpu::SoftVcpu;
pub use vm::SoftVm;

/// Makes VMs whose CPUs are software.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftAccelerator {
    pub translate: Translate,
}

impl Accelerator for SoftAccelerator {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn supported_cpuid(&self) -> Vec<CpuidEntry> {
        CpuidTable::supported(0).entries().to_vec()
    }

    fn create_vm(&self, memory: Arc<GuestRam>) -> Result<Arc<dyn Vm>> {
        Ok(Arc::new(SoftVm::new(memory, self.translate)))
    }
}
