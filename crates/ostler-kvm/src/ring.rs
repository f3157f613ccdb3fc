//! KVM's dirty rings: one a vCPU, of the pages it wrote first since they were last taken.
//!
//! Where the log is a bitmap, reading it costs by the size of memory; a ring costs by what was written, and a vCPU
//! that fills its own leaves the guest until it is emptied. Linux, Documentation/virt/kvm/api.rst, 8.29.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn, kvm_enable_cap};
use kvm_ioctls::VmFd;
use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_memory::PAGE_BYTES;

use crate::capability::Capabilities;
use crate::ioctl::{host, reset_dirty_rings};
use crate::kick::KvmKick;

/// Flags of an entry: it is to be taken; it was, and KVM may use it again.
const DIRTY: u32 = 1;
const RESET: u32 = 2;
/// KVM keeps some hundred for what the CPU logs by itself.
const LEAST_ENTRIES: u32 = 1024;
const ENTRY_BYTES: usize = size_of::<kvm_dirty_gfn>();

/// The rings of one VM.
#[derive(Debug)]
pub struct Rings {
    entries: u32,
    rings: Mutex<Vec<Ring>>,
}

#[derive(Debug)]
struct Ring {
    /// `entries` of them, mapped as long as this lives.
    first: NonNull<kvm_dirty_gfn>,
    entries: u32,
    /// The entry to take next.
    next: u32,
    kick: Arc<KvmKick>,
}

// SAFETY: the mapping is this structure's own; the kernel is the only other one to touch it.
unsafe impl Send for Ring {}

impl Rings {
    /// Has `vm` log into rings of `entries`; before its first vCPU.
    pub fn enable(vm: &VmFd, capabilities: &Capabilities, entries: u32) -> Result<Self> {
        let most = capabilities.dirty_ring_bytes / ENTRY_BYTES as u32;
        if most == 0 {
            return Err(AccelError::Unavailable("this KVM has no dirty ring; leave it out".into()));
        }
        if !entries.is_power_of_two() || !(LEAST_ENTRIES..=most).contains(&entries) {
            return Err(AccelError::Unavailable(format!(
                "a dirty ring of {entries}: KVM takes a power of two from {LEAST_ENTRIES} to {most}"
            )));
        }
        let mut cap = kvm_enable_cap { cap: KVM_CAP_DIRTY_LOG_RING, ..Default::default() };
        cap.args[0] = u64::from(entries) * ENTRY_BYTES as u64;
        vm.enable_cap(&cap).map_err(host("KVM_CAP_DIRTY_LOG_RING"))?;
        Ok(Self { entries, rings: Mutex::default() })
    }

    fn rings(&self) -> MutexGuard<'_, Vec<Ring>> {
        self.rings.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes up the ring of a new vCPU, which is interrupted by `kick`.
    pub fn add(&self, vcpu: &impl AsRawFd, kick: Arc<KvmKick>) -> Result<()> {
        let ring = Ring::map(vcpu, self.entries, kick)
            .map_err(|source| AccelError::Host { what: "mapping a dirty ring", source })?;
        self.rings().push(ring);
        Ok(())
    }

    /// Gives `found` the slot and page of every entry, of the stores too that vCPUs retired before this call.
    pub fn take(&self, vm: &VmFd, mut found: impl FnMut(u32, u64)) -> Result<()> {
        let mut rings = self.rings();
        // What the CPU logged by itself comes into the ring when the guest is left.
        rings.iter().for_each(|ring| ring.kick.interrupt());
        rings.iter().for_each(|ring| ring.kick.wait_until_left());
        let mut taken = 0;
        for ring in rings.iter_mut() {
            while let Some((slot, page)) = ring.take() {
                found(slot, page);
                taken += 1;
            }
        }
        if taken > 0 {
            reset_dirty_rings(vm).map_err(host("KVM_RESET_DIRTY_RINGS"))?;
        }
        Ok(())
    }
}

impl Ring {
    fn map(vcpu: &impl AsRawFd, entries: u32, kick: Arc<KvmKick>) -> io::Result<Self> {
        let bytes = entries as usize * ENTRY_BYTES;
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_BYTES as i64;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping that replaces none.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { first, entries, next: 0, kick })
    }

    /// The next entry, handed back to KVM.
    fn take(&mut self) -> Option<(u32, u64)> {
        // SAFETY: the index is below the number of entries that are mapped.
        let entry = unsafe { self.first.add((self.next % self.entries) as usize) }.as_ptr();
        // SAFETY: the kernel writes the flags as one aligned word, and reads them so.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
        if flags.load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        // SAFETY: with its flag set the entry is ours until the flag says otherwise.
        let (slot, page) = unsafe { ((*entry).slot, (*entry).offset) };
        fence(Ordering::AcqRel);
        flags.store(RESET, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        Some((slot, page))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.entries as usize * ENTRY_BYTES) };
    }
}
