//! Errors of ioctls, and the ioctls that `kvm-ioctls` does not have.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_interrupt, kvm_sregs2};
use ostler_engine::AccelError;
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

const KVMIO: u32 = 0xAE;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Makes an [`AccelError`] of an ioctl's errno.
pub fn host(what: &'static str) -> impl Fn(Error) -> AccelError {
    move |error| AccelError::Host { what, source: error.into() }
}

fn done(result: i32) -> Result<(), Error> {
    if result < 0 { Err(Error::last()) } else { Ok(()) }
}

/// `KVM_INTERRUPT`: injects an external interrupt into a vCPU whose VM has no irqchip.
pub fn interrupt(vcpu: &impl AsRawFd, vector: u8) -> Result<(), Error> {
    // SAFETY: the argument is the structure that this ioctl reads.
    done(unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &kvm_interrupt { irq: vector.into() }) })
}

/// `KVM_CLEAR_DIRTY_LOG`: forgets the pages set in `bitmap`, of which bit 0 is `first_page` of the slot,
/// and logs them again from now on. `first_page` is a multiple of 64.
pub fn clear_dirty_log(vm: &impl AsRawFd, slot: u32, first_page: u64, pages: u32, bitmap: &[u64]) -> Result<(), Error> {
    assert!(bitmap.len() as u64 * 64 >= u64::from(pages));
    let clear = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_ptr().cast_mut().cast() },
    };
    // SAFETY: the kernel reads one bit a page of `bitmap`, which holds as many, and writes nothing.
    done(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &clear) })
}

/// `KVM_RESET_DIRTY_RINGS`: logs the pages anew that were taken out of the rings.
pub fn reset_dirty_rings(vm: &impl AsRawFd) -> Result<(), Error> {
    // SAFETY: this ioctl takes no argument.
    done(unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) })
}

/// `KVM_GET_SREGS2`.
pub fn sregs2(vcpu: &impl AsRawFd) -> Result<kvm_sregs2, Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the argument is the structure that this ioctl fills.
    done(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// `KVM_SET_SREGS2`.
pub fn set_sregs2(vcpu: &impl AsRawFd, sregs: &kvm_sregs2) -> Result<(), Error> {
    // SAFETY: the argument is the structure that this ioctl reads.
    done(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

/// `KVM_GET_STATS_FD`: a descriptor of the statistics of a VM or a vCPU.
pub fn stats_fd(of: &impl AsRawFd) -> Result<OwnedFd, Error> {
    // SAFETY: this ioctl takes no argument.
    let fd = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
    done(fd)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
