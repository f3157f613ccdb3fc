//! `ostler._native`: the engine as Python classes. Conversions and GIL discipline, no logic.
//!
//! Whatever can wait (running a vCPU, pausing threads, changing the bus) detaches from the
//! interpreter first. vCPU threads attach to it only to call a device written in Python, or to
//! report an exit.

mod accelerators;
mod balloon;
mod block;
mod bus;
mod convert;
mod crypto;
mod error;
mod exits;
mod fd;
mod irq;
mod memory;
mod net;
mod nic;
mod profile;
mod queues;
mod registers;
mod scsi;
mod threads;
mod vcpu;
mod virtio;
mod vm;
mod vsock;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use crate::balloon::VirtioBalloon;
    #[pymodule_export]
    use crate::block::{
        BlockBackup, BlockDisk, BlockStorage, CopyProgress, DirtyMap, LiveDisk, Qcow2Disk, bench_disk, compare_disks,
        copy_disk, copy_marked, data_bytes, map_json, map_layers, rebase_disk,
    };
    #[pymodule_export]
    use crate::bus::Bus;
    #[pymodule_export]
    use crate::crypto::{SectorCipher, argon2};
    #[pymodule_export]
    use crate::irq::{IrqInput, IrqLine, MsiRoute};
    #[pymodule_export]
    use crate::memory::Memory;
    #[pymodule_export]
    use crate::net::{NetLink, NetSwitch, VirtioNic};
    #[pymodule_export]
    use crate::nic::{ChipWindow, EthernetChip};
    #[pymodule_export]
    use crate::profile::Profiler;
    #[pymodule_export]
    use crate::queues::VirtioFeed;
    #[pymodule_export]
    use crate::scsi::VirtioScsi;
    #[pymodule_export]
    use crate::threads::Threads;
    #[pymodule_export]
    use crate::vcpu::Vcpu;
    #[pymodule_export]
    use crate::virtio::{VirtioDisk, VirtioWorker, VirtioWorkers};
    #[pymodule_export]
    use crate::vm::{Clock, VirtualMachine};
    #[pymodule_export]
    use crate::vsock::VirtioVsock;
}
