//! What this host's KVM can do.

use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm};

/// A capability by name: a number of `KVM_CHECK_EXTENSION`, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Needed {
    number: u32,
    name: &'static str,
}

macro_rules! needed {
    ($($name:ident)*) => { [$(Needed { number: $name, name: stringify!($name) }),*] };
}

/// Without one of these there is no VM; every KVM since Linux 4.12 has them all.
const NEEDED: [Needed; 18] = needed! {
    KVM_CAP_USER_MEMORY
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS
    KVM_CAP_SYNC_MMU
    KVM_CAP_READONLY_MEM
    KVM_CAP_IRQCHIP
    KVM_CAP_PIT2
    KVM_CAP_PIT_STATE2
    KVM_CAP_IRQ_ROUTING
    KVM_CAP_IRQFD
    KVM_CAP_IOEVENTFD
    KVM_CAP_SIGNAL_MSI
    KVM_CAP_EXT_CPUID
    KVM_CAP_MP_STATE
    KVM_CAP_VCPU_EVENTS
    KVM_CAP_DEBUGREGS
    KVM_CAP_XSAVE
    KVM_CAP_XCRS
    KVM_CAP_IMMEDIATE_EXIT
};

/// The names of what `has` says is missing.
pub fn missing(has: impl Fn(u32) -> i32) -> Vec<&'static str> {
    NEEDED.iter().filter(|needed| has(needed.number) <= 0).map(|needed| needed.name).collect()
}

/// The capabilities that are used where they exist.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    pub max_vcpus: u32,
    pub max_vcpu_id: u32,
    pub memory_slots: u32,
    /// Bytes of the XSAVE image; 0 for the 4096 that every KVM knows.
    pub xsave_bytes: usize,
    pub sregs2: bool,
    /// The dirty log is not cleared by reading it, so that pages are protected again in batches.
    pub manual_protect: u32,
    /// Bytes of a dirty ring at most; 0 where there is none.
    pub dirty_ring_bytes: u32,
    pub x2apic_api: bool,
    pub tsc_deadline: bool,
    pub set_tss: bool,
    pub identity_map: bool,
    pub kvmclock_ctrl: bool,
    pub triple_fault_event: bool,
    pub split_irqchip: bool,
    /// Writes to ports and to memory can wait in a ring.
    pub coalesced_io: bool,
}

impl Capabilities {
    pub fn of(kvm: &Kvm) -> Self {
        let number = |cap: u32| kvm.check_extension_raw(cap.into()).max(0) as u32;
        let has = |cap: u32| number(cap) > 0;
        Self {
            max_vcpus: kvm.get_max_vcpus() as u32,
            max_vcpu_id: kvm.get_max_vcpu_id() as u32,
            memory_slots: kvm.get_nr_memslots() as u32,
            xsave_bytes: number(KVM_CAP_XSAVE2) as usize,
            sregs2: has(KVM_CAP_SREGS2),
            manual_protect: number(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
            dirty_ring_bytes: number(KVM_CAP_DIRTY_LOG_RING),
            x2apic_api: has(KVM_CAP_X2APIC_API),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            set_tss: has(KVM_CAP_SET_TSS_ADDR),
            identity_map: has(KVM_CAP_SET_IDENTITY_MAP_ADDR),
            kvmclock_ctrl: has(KVM_CAP_KVMCLOCK_CTRL),
            triple_fault_event: has(KVM_CAP_X86_TRIPLE_FAULT_EVENT),
            split_irqchip: has(KVM_CAP_SPLIT_IRQCHIP),
            coalesced_io: has(KVM_CAP_COALESCED_MMIO) && has(KVM_CAP_COALESCED_PIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_missing_is_named() {
        assert!(missing(|_| 1).is_empty());
        assert_eq!(missing(|number| i32::from(number != KVM_CAP_IRQFD)), ["KVM_CAP_IRQFD"]);
    }
}
