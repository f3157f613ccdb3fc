//! NICs, and the host's ends of their cables.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ostler_memory::GuestRam;
use ostler_virtio::net::{
    Capture, CaptureLink, ControlService, Counters, DatagramLink, Filter, HandshakeLink, HashConfig, Link, Nic,
    ReceiveService, Settings, StreamLink, Switch, TapLink, TransmitService, Vhost, vhost::Direction,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::os_error;
use crate::fd;
use crate::virtio::{QueueArgs, VirtioWorker, start, start_in_kernel};

/// Where a NIC's cable leads. File descriptors are duplicated; `OSError` when the host refuses.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct NetLink {
    pub(crate) link: Arc<dyn Link>,
    /// The same, where it is a stream socket.
    stream: Option<Arc<StreamLink>>,
    /// The same, where it is a tap device.
    tap: Option<Arc<TapLink>>,
    /// The kernel's threads that serve a NIC's queues.
    pub(crate) vhost: Option<Arc<Vhost>>,
}

impl NetLink {
    fn new(link: Arc<dyn Link>) -> Self {
        Self { link, stream: None, tap: None, vhost: None }
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
        let tap = Arc::new(TapLink::new(queues)?);
        Ok(Self { tap: Some(Arc::clone(&tap)), ..Self::new(tap) })
    }

    /// A stream socket with a 4-byte big-endian length before each frame; `attach` gives it its
    /// peer. A `jumbo` peer is on this host and takes TCP segments of 64 KiB whole.
    #[staticmethod]
    fn stream(jumbo: bool) -> PyResult<Self> {
        let stream = Arc::new(StreamLink::new(jumbo)?);
        Ok(Self { stream: Some(Arc::clone(&stream)), ..Self::new(stream) })
    }

    /// A connected datagram socket, one frame a datagram.
    #[staticmethod]
    fn datagram(fd: RawFd) -> PyResult<Self> {
        Ok(Self::new(Arc::new(DatagramLink::new(owned(fd)?)?)))
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
        Ok(Self { stream: self.stream.clone(), ..Self::new(Arc::new(link)) })
    }

    /// The same link, which acknowledges the guest's SYN-ACKs in place of its peer, and answers pings
    /// of the IPv4 address `gateway`.
    fn completing_handshakes(&self, gateway: [u8; 4]) -> PyResult<Self> {
        let stream = self.stream.clone().ok_or_else(no_stream)?;
        let link = HandshakeLink::new(Arc::clone(&stream), gateway)?;
        Ok(Self { stream: Some(stream), ..Self::new(Arc::new(link)) })
    }

    /// The same tap device, whose frames the kernel moves between it and a NIC's rings (vhost-net). What it writes to
    /// guest memory is seen by no watch or log. `OSError` when the host has no vhost-net, or refuses.
    fn served_by_kernel(&self) -> PyResult<Self> {
        let tap = self.tap.as_ref().ok_or_else(|| PyValueError::new_err("this link is not a plain tap device"))?;
        let vhost = Vhost::new(Arc::clone(tap)).map_err(|error| os_error(&error))?;
        Ok(Self { tap: Some(Arc::clone(tap)), vhost: Some(Arc::new(vhost)), ..Self::new(Arc::clone(&self.link)) })
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
        Ok(NetLink::new(self.switch.port()?))
    }
}

/// What the queues of one NIC share.
#[pyclass(frozen, module = "ostler.engine")]
#[derive(Debug)]
pub struct VirtioNic {
    pub(crate) memory: Arc<GuestRam>,
    pub(crate) nic: Arc<Nic>,
    pub(crate) vhost: Option<Arc<Vhost>>,
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

    /// The features of rings and buffers with which the kernel can serve the queues; `None` where it does not.
    #[getter]
    fn kernel_features(&self) -> Option<u64> {
        self.vhost.as_ref().map(|vhost| vhost.features())
    }

    /// Have the kernel serve the receive queue, or the `transmit` queue, of pair number `pair`; `OSError` where it does
    /// not.
    fn serve_in_kernel(&self, py: Python<'_>, queue: QueueArgs, pair: usize, transmit: bool) -> PyResult<VirtioWorker> {
        let vhost = self.vhost.as_ref().ok_or_else(|| PyValueError::new_err("the kernel does not serve this NIC"))?;
        let direction = if transmit { Direction::Transmit } else { Direction::Receive };
        start_in_kernel(py, &self.memory, &self.nic, (vhost, pair, direction), queue)
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
