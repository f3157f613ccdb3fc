//! The accelerator contract over the software CPU.

/// Makes VMs whose CPUs are software.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftAccelerator;
