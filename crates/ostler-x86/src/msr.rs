//! Model-specific registers.

/// The MSRs that are plain storage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Msrs {
    pub star: u64,
}
