//! A tap or macvtap device of the host's kernel, one descriptor for each pair of queues.
//!
//! Frames cross with their `virtio_net_hdr`, so checksums and segmentation are the kernel's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::poller::{is_passing, moved, set_nonblocking};
use super::{Link, Sent};
use crate::net::frame::Frame;
use crate::net::header::{HEADER_BYTES, Header};
use crate::net::offload::Offloads;

/// `ioctl` numbers and flags of `linux/if_tun.h`.
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_ATTACH_QUEUE: libc::c_short = 0x0200;
const IFF_DETACH_QUEUE: libc::c_short = 0x0400;
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;

#[derive(Debug)]
pub struct TapLink {
    queues: Vec<OwnedFd>,
    udp: bool,
    gone: AtomicBool,
    /// How many of the queues, from the first on, the kernel sends frames to.
    used: Mutex<usize>,
}

impl TapLink {
    /// `queues` are opened with `IFF_VNET_HDR`, a header of 12 little-endian bytes.
    pub fn new(queues: Vec<OwnedFd>) -> io::Result<Self> {
        let first = queues.first().ok_or(io::ErrorKind::InvalidInput)?;
        // Kernels before 6.2 do not cut UDP.
        let udp = set_offload(first, TUN_F_CSUM | TUN_F_USO).is_ok();
        for fd in &queues {
            set_offload(fd, 0)?;
            set_nonblocking(fd)?;
        }
        let used = Mutex::new(queues.len());
        Ok(Self { queues, udp, gone: AtomicBool::new(false), used })
    }

    /// How many pairs of queues it has.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The descriptor of pair number `queue`.
    pub fn queue(&self, queue: usize) -> Option<RawFd> {
        self.queues.get(queue).map(AsRawFd::as_raw_fd)
    }

    /// The device is down or was deleted. A deleted one does not come back.
    fn note(&self, error: &io::Error) {
        if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV)) {
            self.gone.store(true, Ordering::Release);
        }
    }
}

impl Link for TapLink {
    fn takes(&self) -> Offloads {
        Offloads { udp: self.udp, ..Offloads::ALL }
    }

    fn send(&self, queue: usize, frame: &Frame) -> Sent {
        let Some(fd) = self.queues.get(queue % self.queues.len()) else { return Sent::Dropped };
        let header = frame.header.bytes(0);
        let vectors = [vector(&header), vector(frame.bytes())];
        // SAFETY: the vectors are those of two live slices, which are only read.
        match moved(unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), 2) }) {
            Ok(_) => Sent::Done,
            Err(error) if is_passing(&error) => Sent::Later,
            Err(error) => {
                self.note(&error);
                Sent::Dropped
            }
        }
    }

    fn receive(&self, queue: usize, frame: &mut Frame) -> bool {
        let Some(fd) = self.queues.get(queue) else { return false };
        let mut header = [0; HEADER_BYTES];
        let vectors = [vector(&header), vector(frame.room())];
        let (base, len) = (header.as_mut_ptr(), HEADER_BYTES);
        let vectors = [libc::iovec { iov_base: base.cast(), iov_len: len }, vectors[1]];
        // SAFETY: the vectors are those of two live slices that nobody else uses.
        match moved(unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), 2) }) {
            Ok(len) if len >= HEADER_BYTES => {
                frame.header = Header::parse(&header);
                frame.set_len(len - HEADER_BYTES);
                true
            }
            Ok(_) => false,
            Err(error) => {
                self.note(&error);
                false
            }
        }
    }

    fn readable(&self, queue: usize) -> Option<RawFd> {
        // A device that is gone is readable for ever, and has nothing.
        let fd = self.queues.get(queue)?;
        (!self.gone.load(Ordering::Acquire)).then(|| fd.as_raw_fd())
    }

    fn writable(&self) -> Option<(RawFd, libc::c_short)> {
        let fd = self.queues.first()?;
        (!self.gone.load(Ordering::Acquire)).then(|| (fd.as_raw_fd(), libc::POLLOUT))
    }

    fn guest_takes(&self, offloads: Offloads) {
        let wanted = [
            (offloads.checksum, TUN_F_CSUM),
            (offloads.checksum && offloads.tcp4, TUN_F_TSO4),
            (offloads.checksum && offloads.tcp6, TUN_F_TSO6),
            (offloads.checksum && offloads.ecn && (offloads.tcp4 || offloads.tcp6), TUN_F_TSO_ECN),
            (offloads.checksum && offloads.udp && self.udp, TUN_F_USO),
        ];
        let flags = wanted.iter().filter(|(wanted, _)| *wanted).fold(0, |flags, (_, flag)| flags | flag);
        for fd in &self.queues {
            if let Err(error) = set_offload(fd, flags) {
                // What the guest does not take is cut in software on its way in.
                self.note(&error);
            }
        }
    }

    /// The kernel spreads flows over the queues that are attached: a driver that uses fewer would not get them all.
    fn use_pairs(&self, pairs: usize) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = pairs.clamp(1, self.queues.len());
        for (number, fd) in self.queues.iter().enumerate() {
            let (is_attached, is_wanted) = (number < *used, number < wanted);
            if is_attached != is_wanted
                && let Err(error) = set_attached(fd, is_wanted)
            {
                self.note(&error);
            }
        }
        *used = wanted;
    }

    fn unplug(&self) {
        self.gone.store(true, Ordering::Release);
    }

    fn is_up(&self) -> bool {
        !self.gone.load(Ordering::Acquire)
    }
}

fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn set_offload(fd: &OwnedFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: this request takes its argument by value.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_attached(fd: &OwnedFd, attached: bool) -> io::Result<()> {
    // SAFETY: every part of an `ifreq` may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    // SAFETY: the argument is the structure that this request reads.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETQUEUE, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
