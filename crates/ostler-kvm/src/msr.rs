//! Model-specific registers, one at a time: KVM stops at the first of several that it refuses.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use ostler_engine::AccelError;
use ostler_engine::accel::Result;

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

/// Those of `listed` that can be read: a KVM may list more than this CPU has.
pub fn readable(vcpu: &VcpuFd, listed: &[u32]) -> Vec<u32> {
    listed.iter().copied().filter(|index| read(vcpu, *index).is_ok()).collect()
}
