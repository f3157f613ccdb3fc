//! An Ethernet switch for the VMs of one process: learns addresses, floods what it does not know.
//!
//! Frames cross as the sender's driver left them, checksums and segmentation undone; the receiver's
//! NIC does what its driver does not take.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Link, Sent};
use crate::net::frame::{ETHERNET_BYTES, Frame};
use crate::net::offload::Offloads;

/// Frames that wait at a port; the next ones are lost, as in any switch.
const QUEUE_FRAMES: usize = 512;
/// Bytes that wait at a port.
const QUEUE_BYTES: usize = 4 << 20;
/// Addresses the switch remembers; a guest that makes up more has the table begun anew.
const MAX_ADDRESSES: usize = 4096;

type Mac = [u8; 6];

#[derive(Debug, Default)]
pub struct Switch {
    ports: RwLock<Vec<Weak<SwitchPort>>>,
    addresses: Mutex<HashMap<Mac, Weak<SwitchPort>>>,
}

/// A port of a switch; it is unplugged when nobody refers to it any more.
#[derive(Debug)]
pub struct SwitchPort {
    switch: Arc<Switch>,
    waiting: Mutex<Waiting>,
    /// Readable while frames wait.
    news: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Frame>,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Switch {
    pub fn port(self: &Arc<Self>) -> io::Result<Arc<SwitchPort>> {
        let port = Arc::new(SwitchPort {
            switch: Arc::clone(self),
            waiting: Mutex::default(),
            news: EventFd::new(EFD_NONBLOCK)?,
        });
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|other| other.strong_count() > 0);
        ports.push(Arc::downgrade(&port));
        Ok(port)
    }

    fn forward(&self, from: &SwitchPort, frame: &Frame) {
        let Some((destination, source)) = addresses(frame.bytes()) else { return };
        self.learn(source, from);
        let known = if is_group(destination) { None } else { self.find(destination) };
        match known {
            Some(port) if std::ptr::eq(&*port, from) => {}
            Some(port) => port.deliver(frame),
            None => self.flood(from, frame),
        }
    }

    fn learn(&self, source: Mac, from: &SwitchPort) {
        if is_group(source) {
            return;
        }
        let mut addresses = lock(&self.addresses);
        let known = addresses.get(&source).is_some_and(|port| std::ptr::eq(port.as_ptr(), from));
        if !known {
            if addresses.len() >= MAX_ADDRESSES {
                addresses.clear();
            }
            if let Some(port) = self.all().into_iter().find(|port| std::ptr::eq(&**port, from)) {
                addresses.insert(source, Arc::downgrade(&port));
            }
        }
    }

    fn find(&self, destination: Mac) -> Option<Arc<SwitchPort>> {
        lock(&self.addresses).get(&destination)?.upgrade()
    }

    fn flood(&self, from: &SwitchPort, frame: &Frame) {
        for port in self.all() {
            if !std::ptr::eq(&*port, from) {
                port.deliver(frame);
            }
        }
    }

    fn all(&self) -> Vec<Arc<SwitchPort>> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        ports.iter().filter_map(Weak::upgrade).collect()
    }
}

impl SwitchPort {
    fn deliver(&self, frame: &Frame) {
        let len = frame.bytes().len();
        let mut waiting = lock(&self.waiting);
        if waiting.frames.len() < QUEUE_FRAMES && waiting.bytes + len <= QUEUE_BYTES {
            waiting.frames.push_back(Frame::exact(frame.header, frame.bytes()));
            waiting.bytes += len;
            drop(waiting);
            // The counter cannot be full: it is read whenever the queue was found empty.
            let _full = self.news.write(1);
        }
    }
}

impl Link for SwitchPort {
    fn takes(&self) -> Offloads {
        Offloads { jumbo: false, ..Offloads::ALL }
    }

    fn send(&self, _queue: usize, frame: &Frame) -> Sent {
        self.switch.forward(self, frame);
        Sent::Done
    }

    fn receive(&self, queue: usize, frame: &mut Frame) -> bool {
        if queue != 0 {
            return false;
        }
        let mut waiting = lock(&self.waiting);
        let Some(next) = waiting.frames.pop_front() else {
            // Under the lock: who delivers next writes after this.
            let _empty = self.news.read();
            return false;
        };
        waiting.bytes -= next.bytes().len();
        drop(waiting);
        frame.copy_from(next.header, next.bytes());
        true
    }

    fn readable(&self, queue: usize) -> Option<RawFd> {
        (queue == 0).then(|| self.news.as_raw_fd())
    }
}

fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.first_chunk::<ETHERNET_BYTES>()?;
    let (mut destination, mut source) = ([0; 6], [0; 6]);
    destination.copy_from_slice(&header[..6]);
    source.copy_from_slice(&header[6..12]);
    Some((destination, source))
}

fn is_group(address: Mac) -> bool {
    address[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::header::Header;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const ALL: Mac = [0xff; 6];

    fn frame(destination: Mac, source: Mac) -> Frame {
        let mut bytes = [0; 60];
        bytes[..6].copy_from_slice(&destination);
        bytes[6..12].copy_from_slice(&source);
        Frame::exact(Header::default(), &bytes)
    }

    fn count(port: &SwitchPort) -> usize {
        let mut frame = Frame::default();
        std::iter::from_fn(|| port.receive(0, &mut frame).then_some(())).count()
    }

    #[test]
    fn switch_floods_the_unknown_and_then_knows_it() {
        let switch = Arc::new(Switch::default());
        let ports: Vec<_> = (0..3).map(|_| switch.port().expect("a port")).collect();
        ports[0].send(0, &frame(B, A));
        assert_eq!([count(&ports[0]), count(&ports[1]), count(&ports[2])], [0, 1, 1]);
        ports[1].send(0, &frame(A, B));
        assert_eq!([count(&ports[0]), count(&ports[1]), count(&ports[2])], [1, 0, 0]);
        ports[0].send(0, &frame(B, A));
        assert_eq!([count(&ports[0]), count(&ports[1]), count(&ports[2])], [0, 1, 0]);
        ports[0].send(0, &frame(ALL, A));
        assert_eq!([count(&ports[1]), count(&ports[2])], [1, 1]);
    }

    #[test]
    fn port_that_nobody_reads_keeps_a_bounded_number_of_frames() {
        let switch = Arc::new(Switch::default());
        let (from, to) = (switch.port().expect("a port"), switch.port().expect("a port"));
        for _ in 0..2 * QUEUE_FRAMES {
            from.send(0, &frame(ALL, A));
        }
        assert_eq!(count(&to), QUEUE_FRAMES);
        for number in 0..2 * MAX_ADDRESSES as u32 {
            let [_, a, b, c] = number.to_be_bytes();
            from.send(0, &frame(ALL, [2, 0, 0, a, b, c]));
        }
        assert!(lock(&switch.addresses).len() <= MAX_ADDRESSES);
    }

    #[test]
    fn port_that_is_gone_gets_nothing_and_short_frames_go_nowhere() {
        let switch = Arc::new(Switch::default());
        let (from, to) = (switch.port().expect("a port"), switch.port().expect("a port"));
        to.send(0, &frame(ALL, B));
        drop(to);
        from.send(0, &frame(B, A));
        from.send(0, &Frame::exact(Header::default(), &[0xff; 13]));
        assert_eq!(count(&from), 1);
    }
}
