//! The requests of `/dev/vhost-net` (`linux/vhost.h`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use ostler_memory::GuestMap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use crate::ring::{RingConfig, RingError};

const DEVICE: &str = "/dev/vhost-net";
const VHOST_VIRTIO: u32 = 0xaf;

ioctl_ior_nr!(VHOST_GET_FEATURES, VHOST_VIRTIO, 0x00, u64);
ioctl_iow_nr!(VHOST_SET_FEATURES, VHOST_VIRTIO, 0x00, u64);
ioctl_io_nr!(VHOST_SET_OWNER, VHOST_VIRTIO, 0x01);
ioctl_iow_nr!(VHOST_SET_MEM_TABLE, VHOST_VIRTIO, 0x03, u64);
ioctl_iow_nr!(VHOST_SET_VRING_NUM, VHOST_VIRTIO, 0x10, VringState);
ioctl_iow_nr!(VHOST_SET_VRING_ADDR, VHOST_VIRTIO, 0x11, VringAddr);
ioctl_iow_nr!(VHOST_SET_VRING_BASE, VHOST_VIRTIO, 0x12, VringState);
ioctl_iowr_nr!(VHOST_GET_VRING_BASE, VHOST_VIRTIO, 0x12, VringState);
ioctl_iow_nr!(VHOST_SET_VRING_KICK, VHOST_VIRTIO, 0x20, VringFile);
ioctl_iow_nr!(VHOST_SET_VRING_CALL, VHOST_VIRTIO, 0x21, VringFile);
ioctl_iow_nr!(VHOST_SET_VRING_ERR, VHOST_VIRTIO, 0x22, VringFile);
ioctl_iow_nr!(VHOST_NET_SET_BACKEND, VHOST_VIRTIO, 0x30, VringFile);

/// `struct vhost_vring_state`.
#[repr(C)]
#[derive(Debug, Default)]
struct VringState {
    index: u32,
    num: u32,
}

/// `struct vhost_vring_file`; no file is -1.
#[repr(C)]
#[derive(Debug)]
struct VringFile {
    index: u32,
    fd: RawFd,
}

/// `struct vhost_vring_addr`: addresses of this process.
#[repr(C)]
#[derive(Debug, Default)]
struct VringAddr {
    index: u32,
    flags: u32,
    desc_table: u64,
    used_ring: u64,
    avail_ring: u64,
    log: u64,
}

/// Which of a vring's eventfds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VringEvent {
    /// The driver's doorbell.
    Kick,
    /// Written to when buffers were used.
    Call,
    /// Written to when the ring or a buffer cannot be used.
    Error,
}

/// One open `/dev/vhost-net`: a thread of the kernel that serves the vrings 0, receive, and 1, transmit.
#[derive(Debug)]
pub struct Kernel {
    file: File,
}

impl Kernel {
    pub fn open() -> io::Result<Self> {
        let kernel = Self { file: File::options().read(true).write(true).open(DEVICE)? };
        // SAFETY: this ioctl takes no argument.
        done(unsafe { ioctl(&kernel.file, VHOST_SET_OWNER()) })?;
        Ok(kernel)
    }

    pub fn features(&self) -> io::Result<u64> {
        let mut features = 0;
        // SAFETY: the argument is the number that this ioctl fills.
        done(unsafe { ioctl_with_mut_ref(&self.file, VHOST_GET_FEATURES(), &mut features) })?;
        Ok(features)
    }

    pub fn set_features(&self, features: u64) -> io::Result<()> {
        // SAFETY: the argument is the number that this ioctl reads.
        done(unsafe { ioctl_with_ref(&self.file, VHOST_SET_FEATURES(), &features) })
    }

    /// Where guest memory is in this process. Whoever starts a vring has to keep `map` until it is stopped.
    pub fn set_memory(&self, map: &GuestMap) -> io::Result<()> {
        // `struct vhost_memory`: the number of regions, 32 bits of padding, and four words a region.
        let mut table = vec![map.num_regions() as u64];
        for region in map.iter() {
            table.extend([region.start_addr().0, region.len(), region.as_ptr() as u64, 0]);
        }
        // SAFETY: the kernel reads as many regions as the first word says, which are there.
        done(unsafe { ioctl_with_ptr(&self.file, VHOST_SET_MEM_TABLE(), table.as_ptr()) })
    }

    /// Tells vring `index` its size, where it is, and where it stands.
    pub fn set_vring(&self, index: u32, ring: &RingConfig, addresses: &Addresses) -> io::Result<()> {
        let address = VringAddr {
            index,
            flags: 0,
            desc_table: addresses.desc_table,
            used_ring: addresses.used_ring,
            avail_ring: addresses.avail_ring,
            log: 0,
        };
        let size = VringState { index, num: ring.size.into() };
        let base = VringState { index, num: ring.position.next_avail.into() };
        // SAFETY: each argument is the structure that its ioctl reads.
        unsafe {
            done(ioctl_with_ref(&self.file, VHOST_SET_VRING_NUM(), &size))?;
            done(ioctl_with_ref(&self.file, VHOST_SET_VRING_BASE(), &base))?;
            done(ioctl_with_ref(&self.file, VHOST_SET_VRING_ADDR(), &address))
        }
    }

    /// The next entry of the available ring that it will take, between two frames.
    pub fn next_avail(&self, index: u32) -> io::Result<u16> {
        let mut state = VringState { index, num: 0 };
        // SAFETY: the argument is the structure that this ioctl reads and fills.
        done(unsafe { ioctl_with_mut_ref(&self.file, VHOST_GET_VRING_BASE(), &mut state) })?;
        Ok(state.num as u16)
    }

    pub fn set_event(&self, index: u32, kind: VringEvent, event: &impl AsRawFd) -> io::Result<()> {
        let request = match kind {
            VringEvent::Kick => VHOST_SET_VRING_KICK(),
            VringEvent::Call => VHOST_SET_VRING_CALL(),
            VringEvent::Error => VHOST_SET_VRING_ERR(),
        };
        // SAFETY: the argument is the structure that these ioctls read.
        done(unsafe { ioctl_with_ref(&self.file, request, &VringFile { index, fd: event.as_raw_fd() }) })
    }

    /// Starts vring `index` on a queue of a tap device, or with `None` stops it: what is under way is done then.
    pub fn set_backend(&self, index: u32, tap: Option<RawFd>) -> io::Result<()> {
        let backend = VringFile { index, fd: tap.unwrap_or(-1) };
        // SAFETY: the argument is the structure that this ioctl reads.
        done(unsafe { ioctl_with_ref(&self.file, VHOST_NET_SET_BACKEND(), &backend) })
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where the parts of a split ring are in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl Addresses {
    /// Each part has to lie in one region of `map`: behind it, something else is mapped in this process.
    pub fn of(ring: &RingConfig, map: &GuestMap) -> Result<Self, RingError> {
        let size = usize::from(ring.size);
        let place = |gpa, bytes| {
            let slice = map.get_slice(GuestAddress(gpa), bytes).map_err(|_| RingError::NotMemory)?;
            Ok(slice.ptr_guard().as_ptr() as u64)
        };
        Ok(Self {
            desc_table: place(ring.desc_table, 16 * size)?,
            // Flags and index before the entries, and the other side's event index behind them.
            avail_ring: place(ring.avail_ring, 6 + 2 * size)?,
            used_ring: place(ring.used_ring, 6 + 8 * size)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use ostler_memory::{GuestRam, SlotConfig};

    use super::*;

    /// The numbers in `linux/vhost.h` of x86-64.
    #[test]
    fn requests_have_the_numbers_of_the_kernel() {
        assert_eq!(VHOST_GET_FEATURES(), 0x8008_af00);
        assert_eq!(VHOST_SET_OWNER(), 0xaf01);
        assert_eq!(VHOST_SET_MEM_TABLE(), 0x4008_af03);
        assert_eq!(VHOST_SET_VRING_ADDR(), 0x4028_af11);
        assert_eq!(VHOST_GET_VRING_BASE(), 0xc008_af12);
        assert_eq!(VHOST_NET_SET_BACKEND(), 0x4008_af30);
    }

    #[test]
    fn ring_across_two_slots_is_refused() {
        let ram = GuestRam::new();
        for slot in 0..2 {
            let config = SlotConfig { slot, gpa: u64::from(slot) * 0x4000, size: 0x4000, ..SlotConfig::default() };
            ram.set_slot(config).expect("a slot");
        }
        let map = ram.map();
        let inside = RingConfig {
            size: 256,
            desc_table: 0x3000,
            avail_ring: 0x1000,
            used_ring: 0x4000,
            ..RingConfig::default()
        };
        let addresses = Addresses::of(&inside, &map).expect("each in one slot");
        assert_eq!(addresses.desc_table - addresses.avail_ring, 0x2000);
        let across = RingConfig { desc_table: 0x3010, ..inside };
        assert!(matches!(Addresses::of(&across, &map), Err(RingError::NotMemory)));
        let beyond = RingConfig { used_ring: 0x7900, ..inside };
        assert!(matches!(Addresses::of(&beyond, &map), Err(RingError::NotMemory)));
    }
}
