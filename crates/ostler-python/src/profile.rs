//! Where the time of vCPUs goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ostler_engine::profile::{Activity, ProfileError, VcpuProfile};
use pyo3::prelude::*;

use crate::error::{Kind, raise};
use crate::vcpu::Vcpu;

/// Nanoseconds by activity.
type Activities = BTreeMap<&'static str, u64>;
/// vCPUs by number; nanoseconds by linear address of a block; nanoseconds in further ones.
type Seen = (BTreeMap<u32, Activities>, HashMap<u64, u64>, u64);

/// Looks at vCPUs a thousand times a second, from now on until `stop`: what they do, and where.
///
/// None of them may be running yet. `ConfigError` where the accelerator does not say what they do.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct Profiler {
    profiler: ostler_engine::profile::Profiler,
}

#[pymethods]
impl Profiler {
    #[new]
    fn new(vcpus: Vec<Py<Vcpu>>) -> PyResult<Self> {
        let vcpus: Vec<_> = vcpus.iter().map(|vcpu| Arc::clone(&vcpu.get().handle)).collect();
        let profiler = ostler_engine::profile::Profiler::start(&vcpus).map_err(refused)?;
        Ok(Self { profiler })
    }

    /// What was seen up to now, in nanoseconds: by vCPU and activity, by block of guest code (its linear
    /// address) while not idle, and in blocks past the first 65,536. Readable while they run.
    fn read(&self, py: Python<'_>) -> Seen {
        let profile = py.detach(|| self.profiler.profile());
        let vcpus = profile.vcpus.iter().map(|vcpu| (vcpu.id, by_name(vcpu))).collect();
        (vcpus, profile.places, profile.elsewhere_ns)
    }

    /// Look no more; what was seen stays.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.profiler.stop());
    }
}

fn by_name(vcpu: &VcpuProfile) -> Activities {
    Activity::ALL.into_iter().map(|activity| (activity.name(), vcpu.ns[activity as usize])).collect()
}

fn refused(error: ProfileError) -> PyErr {
    match error {
        ProfileError::Vcpu(error) => raise(error),
        ProfileError::Unsupported => Kind::Config.error(error.to_string()),
        ProfileError::Spawn(source) => Kind::Host.error(format!("no thread for the profile: {source}")),
    }
}
