//! What CPUID answers.

/// The rows of CPUID of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct CpuidTable {}

impl CpuidTable {
    pub fn supported(id: u32) -> Self {
        let _ = id;
        Self {}
    }
    /// Family, model and stepping: EAX of leaf 1.
    pub fn signature(&self) -> u32 {
        0x00a2_0f12
    }
}
