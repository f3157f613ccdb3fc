//! virtio-net: `cargo fuzz run virtio_net`. The first byte chooses the queue, the second the features.

#![no_main]

mod ring;

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use ostler_virtio::net::{
    ControlService, Frame, Header, Link, Nic, ReceiveService, Switch, SwitchPort, TransmitService, features,
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const PAIRS: u16 = 4;
/// A frame that the card is sent where the driver receives: TCP over IPv4, whose checksum and
/// segmentation are left to it.
const FRAME_BYTES: usize = 3000;

static ENDS: LazyLock<[Arc<SwitchPort>; 2]> = LazyLock::new(|| {
    let switch = Arc::new(Switch::default());
    [switch.port().expect("a port"), switch.port().expect("a port")]
});

fn segments() -> Frame {
    let mut bytes = vec![0; FRAME_BYTES];
    bytes[..6].copy_from_slice(&MAC);
    bytes[12..14].copy_from_slice(&[8, 0]);
    (bytes[14], bytes[23], bytes[46]) = (0x45, 6, 0x50);
    let header = Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1000, csum_start: 34, csum_offset: 16 };
    Frame::exact(header, &bytes)
}

fn negotiated(choice: u8) -> u64 {
    let some = [
        features::MRG_RXBUF,
        features::HASH_REPORT,
        features::GUEST_CSUM,
        features::GUEST_CSUM | features::GUEST_TSO4,
        features::CTRL_RX,
        features::CTRL_VLAN,
        features::MQ,
        features::CTRL_MAC_ADDR,
    ];
    let chosen = some.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 != 0);
    chosen.fold(features::CTRL_VQ, |all, (_, feature)| all | feature)
}

fuzz_target!(|data: &[u8]| {
    let [queue, choice, data @ ..] = data else { return };
    let [ours, peer] = &*ENDS;
    let nic = Arc::new(Nic::new(ours.clone(), MAC, PAIRS));
    nic.negotiate(negotiated(*choice));
    match queue % 3 {
        0 => ring::run(data, &mut ControlService(nic)),
        1 => ring::run(data, &mut TransmitService::new(nic, 0)),
        _ => {
            peer.send(0, &segments());
            ring::run(data, &mut ReceiveService::new(nic, 0));
        }
    }
    let mut taken = Frame::default();
    while ours.receive(0, &mut taken) || peer.receive(0, &mut taken) {}
});
