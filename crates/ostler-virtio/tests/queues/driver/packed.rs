//! The driver's side of a packed virtqueue.

use ostler_virtio::{Position, RingConfig};

use super::{Driver, INDIRECT, NEXT, TABLE, WRITE};

pub const AVAIL_BIT: u16 = 1 << 7;
pub const USED_BIT: u16 = 1 << 15;
/// Where the driver's and the device's event suppression structures are.
pub const DRIVER_EVENT: u64 = 0x8000;
pub const DEVICE_EVENT: u64 = 0xc000;
/// Not a power of two: a packed ring may have any size.
pub const PACKED_SIZE: u16 = 7;

/// A descriptor of a used buffer, as the device wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub id: u16,
    pub len: u32,
    pub written: bool,
}

/// A driver that knows where it stands on its packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    pub inner: Driver,
    avail: (u16, bool),
    used: (u16, bool),
}

impl PackedDriver {
    pub fn new() -> Self {
        let mut inner = Driver::new();
        inner.config = RingConfig {
            size: PACKED_SIZE,
            packed: true,
            position: Position::PACKED_START,
            avail_ring: DRIVER_EVENT,
            used_ring: DEVICE_EVENT,
            ..inner.config
        };
        Self { inner, avail: (0, true), used: (0, true) }
    }

    /// Makes one buffer of `(gpa, len, flags)` available; its first descriptor is written last.
    pub fn offer(&mut self, id: u16, pieces: &[(u64, u32, u16)]) {
        let first = self.avail;
        for (index, &(gpa, len, flags)) in pieces.iter().enumerate() {
            let more = if index + 1 < pieces.len() { NEXT } else { 0 };
            self.describe(self.avail.0, gpa, len, id);
            if index != 0 {
                self.set_flags(self.avail, flags | more);
            }
            self.avail = forward(self.avail, 1);
        }
        let more = if pieces.len() > 1 { NEXT } else { 0 };
        self.set_flags(first, pieces[0].2 | more);
    }

    /// The same by an indirect table at `table`.
    pub fn offer_indirect(&mut self, id: u16, table: u64, pieces: &[(u64, u32, u16)]) {
        for (index, &(gpa, len, flags)) in (0..).zip(pieces) {
            self.inner.put(table + 16 * index, &descriptor(gpa, len, 0, flags));
        }
        self.offer(id, &[(table, 16 * pieces.len() as u32, INDIRECT)]);
    }

    /// The next buffer the device has used, which had `slots` descriptors.
    pub fn take_used(&mut self, slots: u16) -> Option<Used> {
        let at = TABLE + 16 * u64::from(self.used.0);
        let bytes = self.inner.get(at, 16);
        let flags = u16::from_le_bytes([bytes[14], bytes[15]]);
        if (flags & AVAIL_BIT != 0, flags & USED_BIT != 0) != (self.used.1, self.used.1) {
            return None;
        }
        self.used = forward(self.used, slots);
        Some(Used {
            id: u16::from_le_bytes([bytes[12], bytes[13]]),
            len: u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            written: flags & WRITE != 0,
        })
    }

    /// Where the next used buffer will be, as an event suppression structure says it.
    pub fn used_position(&self) -> u16 {
        self.used.0 | u16::from(self.used.1) << 15
    }

    pub fn want_event(&self, position: u16, flags: u16) {
        self.inner.put(DRIVER_EVENT, &position.to_le_bytes());
        self.inner.put(DRIVER_EVENT + 2, &flags.to_le_bytes());
    }

    /// The device's wish: where, and the flags.
    pub fn device_event(&self) -> (u16, u16) {
        let bytes = self.inner.get(DEVICE_EVENT, 4);
        (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]]))
    }

    fn describe(&self, index: u16, gpa: u64, len: u32, id: u16) {
        self.inner.put(TABLE + 16 * u64::from(index), &descriptor(gpa, len, id, 0)[..14]);
    }

    /// Stores flags that say "available" in the turn of `at`.
    pub fn set_flags(&self, at: (u16, bool), flags: u16) {
        let turn = if at.1 { AVAIL_BIT } else { USED_BIT };
        self.inner.put(TABLE + 16 * u64::from(at.0) + 14, &(flags | turn).to_le_bytes());
    }
}

fn descriptor(gpa: u64, len: u32, id: u16, flags: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&gpa.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn forward((index, wrap): (u16, bool), slots: u16) -> (u16, bool) {
    let sum = index + slots;
    if sum < PACKED_SIZE { (sum, wrap) } else { (sum - PACKED_SIZE, !wrap) }
}
