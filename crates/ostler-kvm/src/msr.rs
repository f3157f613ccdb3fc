//! Model-specific registers. KVM stops at the first of several that it refuses.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::regs::MsrEntry;

use crate::ioctl::host;

fn one(index: u32, data: u64) -> Result<Msrs> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry]).map_err(|_| AccelError::NoSuchMsr(index))
}

/// The value of an MSR; [`AccelError::NoSuchMsr`] where the host refuses it.
pub fn read(vcpu: &VcpuFd, index: u32) -> Result<u64> {
    let mut msrs = one(index, 0)?;
    match vcpu.get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS"))? {
        0 => Err(AccelError::NoSuchMsr(index)),
        _ => Ok(msrs.as_slice()[0].data),
    }
}

/// Sets an MSR; the error says whether the host does not know it, or not the value.
pub fn write(vcpu: &VcpuFd, index: u32, value: u64) -> Result<()> {
    match vcpu.set_msrs(&one(index, value)?).map_err(host("KVM_SET_MSRS"))? {
        0 => Err(read(vcpu, index).err().unwrap_or(AccelError::BadMsrValue { index, value })),
        _ => Ok(()),
    }
}

/// Registers that one `KVM_SET_MSRS` takes at most.
const BATCH: usize = 256;

/// Sets all that the host takes, and says which it refused and why.
pub fn write_all(vcpu: &VcpuFd, entries: &[MsrEntry]) -> Vec<(u32, AccelError)> {
    let mut refused = Vec::new();
    let mut left = entries;
    while !left.is_empty() {
        let batch = &left[..left.len().min(BATCH)];
        let done = set(vcpu, batch).unwrap_or(0).min(batch.len());
        left = &left[done..];
        if let Some(entry) = left.first().filter(|_| done < batch.len()) {
            // Once more alone, for the reason, and in case that the call itself had failed.
            refused.extend(write(vcpu, entry.index, entry.value).err().map(|error| (entry.index, error)));
            left = &left[1..];
        }
    }
    refused
}

/// How many of them KVM set before one that it refused.
fn set(vcpu: &VcpuFd, entries: &[MsrEntry]) -> Option<usize> {
    let entries: Vec<_> = entries
        .iter()
        .map(|entry| kvm_msr_entry { index: entry.index, data: entry.value, ..Default::default() })
        .collect();
    vcpu.set_msrs(&Msrs::from_entries(&entries).ok()?).ok()
}

/// Those of `listed` that can be read: a KVM may list more than this CPU has.
pub fn readable(vcpu: &VcpuFd, listed: &[u32]) -> Vec<u32> {
    listed.iter().copied().filter(|index| read(vcpu, *index).is_ok()).collect()
}
