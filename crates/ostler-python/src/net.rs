//! NICs, and the host's ends of their cables.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ostler_memory::GuestRam;
use ostler_virtio::net::{
    Capture, CaptureLink, ControlService, Counters, DatagramLink, Filter, HandshakeLink, HashConfig, Link, Nic,
    ReceiveService, Settings, StreamLink, Switch, TapLink, TransmitService,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::fd;
use crate::virtio::{QueueArgs, VirtioWorker, start};

/// Where a NIC's cable leads. File descriptors are duplicated; `OSError` when the host refuses.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct NetLink {
    pub(crate) link: Arc<dyn Link>,
    /// The same, where it is a stream socket.
    stream: Option<Arc<StreamLink>>,
}

impl NetLink {
    fn new(link: impl Link + 'static) -> Self {
        Self { link: Arc::new(link), stream: None }
    }

    fn stream_link(&self) -> PyResult<&StreamLink> {
        self.stream.as_deref().ok_or_else(no_stream)
    }
}

fn no_stream() -> PyErr {
    PyValueError::new_err("this link is not a stream socket")
}

#[pymethods]
impl NetLink {
    /// A tap device, opened once for each pair of queues, with `virtio_net_hdr`s of 12
    /// little-endian bytes.
    #[staticmethod]
    fn tap(fds: Vec<RawFd>) -> PyResult<Self> {
        let queues = fds.into_iter().map(owned).collect::<PyResult<_>>()?;
        Ok(Self::new(TapLink::new(queues)?))
    }

    /// A stream socket with a 4-byte big-endian length before each frame; `attach` gives it its
    /// peer. A `jumbo` peer is on this host and takes TCP segments of 64 KiB whole.
    #[staticmethod]
    fn stream(jumbo: bool) -> PyResult<Self> {
        let stream = Arc::new(StreamLink::new(jumbo)?);
        Ok(Self { link: stream.clone(), stream: Some(stream) })
    }

    /// A connected datagram socket, one frame a datagram.
    #[staticmethod]
    fn datagram(fd: RawFd) -> PyResult<Self> {
        Ok(Self::new(DatagramLink::new(owned(fd)?)?))
    }

    /// Take the stream socket `fd` as the peer, in place of the one before.
    fn attach(&self, fd: RawFd) -> PyResult<()> {
        Ok(self.stream_link()?.attach(owned(fd)?)?)
    }

    /// Let go of the peer; of a tap device for good.
    fn detach(&self) {
        match &self.stream {
            Some(stream) => stream.detach(),
            None => self.link.unplug(),
        }
    }

    /// The same link, with a copy of every frame in the file `fd` (pcap with nanoseconds).
    fn captured(&self, fd: RawFd) -> PyResult<Self> {
        let capture = Arc::new(Capture::begin(fd::file(fd)?)?);
        let link = CaptureLink { link: Arc::clone(&self.link), capture };
        Ok(Self { link: Arc::new(link), stream: self.stream.clone() })
    }

    /// The same link, which acknowledges the guest's SYN-ACKs in place of its peer, and answers pings
    /// of the IPv4 address `gateway`.
    fn completing_handshakes(&self, gateway: [u8; 4]) -> PyResult<Self> {
        let stream = self.stream.clone().ok_or_else(no_stream)?;
        let link = HandshakeLink::new(Arc::clone(&stream), gateway)?;
        Ok(Self { link: Arc::new(link), stream: Some(stream) })
    }

    /// Whether somebody is at the other end.
    #[getter]
    fn up(&self) -> bool {
        self.link.is_up()
    }
}

fn owned(fd: RawFd) -> PyResult<OwnedFd> {
    Ok(OwnedFd::from(fd::file(fd)?))
}

/// An Ethernet switch in this process: `NetSwitch().port()` is a link.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct NetSwitch {
    switch: Arc<Switch>,
}

#[pymethods]
impl NetSwitch {
    #[new]
    fn new() -> Self {
        Self { switch: Arc::default() }
    }

    /// A new port; it is unplugged when nothing refers to it any more.
    fn port(&self) -> PyResult<NetLink> {
        Ok(NetLink { link: self.switch.port()?, stream: None })
    }
}

/// What the queues of one NIC share.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioNic {
    pub(crate) memory: Arc<GuestRam>,
    pub(crate) nic: Arc<Nic>,
}

/// What the driver has set on the control queue: the attributes of a `NetSettings`.
#[derive(FromPyObject, IntoPyObject)]
#[pyo3(from_item_all)]
struct SettingsData {
    mac: [u8; 6],
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Vec<[u8; 6]>,
    multicast: Vec<[u8; 6]>,
    vlan_filtering: bool,
    vlans: Vec<u64>,
    pairs: u16,
    offloads: u64,
    hash_types: u32,
    hash_key: [u8; ostler_virtio::net::KEY_BYTES],
}

impl From<Settings> for SettingsData {
    fn from(settings: Settings) -> Self {
        let Settings { filter, pairs, offloads, hash } = settings;
        Self {
            mac: filter.mac,
            promiscuous: filter.promiscuous,
            all_multicast: filter.all_multicast,
            all_unicast: filter.all_unicast,
            no_multicast: filter.no_multicast,
            no_unicast: filter.no_unicast,
            no_broadcast: filter.no_broadcast,
            unicast: filter.unicast,
            multicast: filter.multicast,
            vlan_filtering: filter.vlan_filtering,
            vlans: filter.vlans,
            pairs,
            offloads,
            hash_types: hash.types,
            hash_key: hash.key,
        }
    }
}

impl From<SettingsData> for Settings {
    fn from(data: SettingsData) -> Self {
        let filter = Filter {
            mac: data.mac,
            promiscuous: data.promiscuous,
            all_multicast: data.all_multicast,
            all_unicast: data.all_unicast,
            no_multicast: data.no_multicast,
            no_unicast: data.no_unicast,
            no_broadcast: data.no_broadcast,
            unicast: data.unicast,
            multicast: data.multicast,
            vlan_filtering: data.vlan_filtering,
            vlans: data.vlans,
        };
        let hash = HashConfig { types: data.hash_types, key: data.hash_key };
        Self { filter, pairs: data.pairs, offloads: data.offloads, hash }
    }
}

#[pymethods]
impl VirtioNic {
    /// Begin with what the driver has negotiated: its settings are those of a new start.
    fn negotiate(&self, features: u64) {
        self.nic.negotiate(features);
    }

    /// Go on with what was negotiated before.
    fn resume(&self, features: u64) {
        self.nic.resume(features);
    }

    /// What the driver has set, by name (see `NetSettings`).
    fn settings(&self) -> SettingsData {
        self.nic.settings().clone().into()
    }

    /// Take settings that were saved.
    fn restore(&self, settings: SettingsData) {
        self.nic.restore(settings.into());
    }

    /// The address the driver has given the NIC, or the one it was made with.
    #[getter]
    fn mac(&self) -> [u8; 6] {
        self.nic.settings().filter.mac
    }

    /// Whether the driver was asked to announce itself on the network and has not done so.
    #[getter]
    fn get_announcing(&self) -> bool {
        self.nic.announcing()
    }

    #[setter]
    fn set_announcing(&self, announcing: bool) {
        self.nic.set_announcing(announcing);
    }

    /// Frames, bytes, dropped and faulty frames that came in, then the same of what went out.
    fn counters(&self) -> [[u64; 4]; 2] {
        [&self.nic.received, &self.nic.sent].map(numbers)
    }

    /// Serve the receive queue of pair number `pair`.
    fn receive(&self, py: Python<'_>, queue: QueueArgs, pair: usize) -> PyResult<VirtioWorker> {
        let service = ReceiveService::new(Arc::clone(&self.nic), pair);
        start(py, &self.memory, &format!("net-rx{pair}"), queue, service)
    }

    /// Serve the transmit queue of pair number `pair`.
    fn transmit(&self, py: Python<'_>, queue: QueueArgs, pair: usize) -> PyResult<VirtioWorker> {
        let service = TransmitService::new(Arc::clone(&self.nic), pair);
        start(py, &self.memory, &format!("net-tx{pair}"), queue, service)
    }

    /// Serve the control queue.
    fn control(&self, py: Python<'_>, queue: QueueArgs) -> PyResult<VirtioWorker> {
        start(py, &self.memory, "net-control", queue, ControlService(Arc::clone(&self.nic)))
    }
}

pub(crate) fn numbers(counters: &Counters) -> [u64; 4] {
    [&counters.frames, &counters.bytes, &counters.dropped, &counters.errors]
        .map(|number| number.load(Ordering::Relaxed))
}
