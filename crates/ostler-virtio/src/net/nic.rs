//! What the queues of one NIC share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::filter::{Filter, Mac};
use super::hash::HashConfig;
use super::link::Link;
use super::offload::Offloads;

/// Feature bits of the device (virtio 1.2, section 5.1.3) that the data path looks at.
pub mod features {
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HASH_REPORT: u64 = 1 << 57;

    /// What `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` may name.
    pub const OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
}

/// Frames and bytes of one direction, and what was lost there.
#[derive(Debug, Default)]
pub struct Counters {
    pub frames: AtomicU64,
    pub bytes: AtomicU64,
    /// Frames nobody took, or too long for the driver's buffers.
    pub dropped: AtomicU64,
    /// Frames whose header was a lie.
    pub errors: AtomicU64,
}

impl Counters {
    pub fn count(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub fn fail_one(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the control queue changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub filter: Filter,
    /// Pairs of queues that the driver uses.
    pub pairs: u16,
    /// The receive offloads switched on, as feature bits.
    pub offloads: u64,
    pub hash: HashConfig,
}

#[derive(Debug)]
pub struct Nic {
    pub link: Arc<dyn Link>,
    features: AtomicU64,
    max_pairs: u16,
    settings: Mutex<Settings>,
    announce: AtomicBool,
    pub received: Counters,
    pub sent: Counters,
}

impl Nic {
    pub fn new(link: Arc<dyn Link>, mac: Mac, max_pairs: u16) -> Self {
        let settings = Settings { filter: Filter::open(mac), pairs: 1, ..Settings::default() };
        Self {
            link,
            features: AtomicU64::new(0),
            max_pairs,
            settings: Mutex::new(settings),
            announce: AtomicBool::new(false),
            received: Counters::default(),
            sent: Counters::default(),
        }
    }

    /// Goes on with what was negotiated before.
    pub fn resume(&self, negotiated: u64) {
        self.features.store(negotiated, Ordering::Release);
    }

    /// Begins with what the driver has negotiated; a control queue narrows the filter from here on.
    pub fn negotiate(&self, negotiated: u64) {
        self.resume(negotiated);
        let mut settings = self.settings();
        // The driver asks for more on the control queue (section 5.1.6.5.6).
        settings.pairs = 1;
        settings.offloads = negotiated & features::OFFLOADS;
        settings.filter.promiscuous = negotiated & features::CTRL_RX == 0;
        settings.filter.vlan_filtering = negotiated & features::CTRL_VLAN != 0;
        drop(settings);
        self.tell_link();
    }

    pub fn negotiated(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }

    pub fn has(&self, feature: u64) -> bool {
        self.negotiated() & feature != 0
    }

    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn max_pairs(&self) -> u16 {
        self.max_pairs
    }

    /// Takes settings that were saved.
    pub fn restore(&self, settings: Settings) {
        *self.settings() = settings;
        self.tell_link();
    }

    pub fn set_offloads(&self, offloads: u64) {
        self.settings().offloads = offloads;
        self.tell_link();
    }

    /// What the driver takes undone.
    pub fn guest_takes(&self) -> Offloads {
        let on = self.settings().offloads;
        Offloads {
            checksum: on & features::GUEST_CSUM != 0,
            tcp4: on & features::GUEST_TSO4 != 0,
            tcp6: on & features::GUEST_TSO6 != 0,
            ecn: on & features::GUEST_ECN != 0,
            udp: on & (features::GUEST_USO4 | features::GUEST_USO6) == features::GUEST_USO4 | features::GUEST_USO6,
            jumbo: false,
        }
    }

    pub fn set_pairs(&self, pairs: u16) {
        self.settings().pairs = pairs;
        self.tell_link();
    }

    fn tell_link(&self) {
        self.link.guest_takes(self.guest_takes());
        let pairs = self.settings().pairs;
        self.link.use_pairs(pairs.into());
    }

    /// Whether the driver has been asked to announce itself and has not done so.
    pub fn announcing(&self) -> bool {
        self.announce.load(Ordering::Acquire)
    }

    pub fn set_announcing(&self, announcing: bool) {
        self.announce.store(announcing, Ordering::Release);
    }
}
