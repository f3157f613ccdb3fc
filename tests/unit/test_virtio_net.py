"""virtio-net's control side: features, configuration space, queues, what is saved."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from ostler.devices.virtio import net
from ostler.devices.virtio.device import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_RING_RESET,
    F_VERSION_1,
    RING_FEATURES,
)
from ostler.devices.virtio.net import NetState, VirtioNet
from ostler.devices.virtio.workers import Queue
from ostler.errors import StateError
from ostler.testing.pci import FakeCable, FakeWorkers

MAC = bytes.fromhex("525400123456")
QUEUE = Queue(
    index=0,
    size=16,
    desc_table=0,
    avail_ring=0,
    used_ring=0,
    next_avail=0,
    next_used=0,
    event_idx=False,
    indirect=False,
    packed=False,
    kick_fd=0,
    interrupt=None,
    on_broken=lambda: None,
)


def card(workers: FakeWorkers | None = None, pairs: int = 1, mtu: int = 0) -> VirtioNet:
    return VirtioNet(FakeCable(), workers or FakeWorkers(), MAC, pairs=pairs, mtu=mtu)


def test_config_tells_address_status_queues_and_mtu() -> None:
    device = card(pairs=4, mtu=1400)
    assert struct.unpack_from("<6sHHH", device.config()) == (MAC, net.S_LINK_UP, 4, 1400)
    assert device.features & net.F_MQ
    assert device.features & net.F_MTU
    assert not card().features & (net.F_MQ | net.F_MTU)


def test_link_pulled_on_either_side_is_announced_as_down() -> None:
    told: list[None] = []
    cable = FakeCable()
    device = VirtioNet(cable, FakeWorkers(), MAC)
    device.announce_config = lambda: told.append(None)
    device.set_link(False)
    assert not device.config()[6] & net.S_LINK_UP
    device.set_link(True)
    cable.up = False
    device.link_changed()
    assert not device.config()[6] & net.S_LINK_UP
    device.announce()
    assert device.config()[6] & net.S_ANNOUNCE
    assert len(told) == 4


@pytest.mark.parametrize("feature", sorted(net.NEEDS))
def test_feature_without_what_it_needs_is_not_accepted(feature: int) -> None:
    assert not card().accept(feature)
    assert card().accept(net.FEATURES)


@pytest.mark.parametrize(("features", "control"), [(net.F_MQ, 8), (0, 2)])
def test_control_queue_is_behind_the_pairs_that_were_negotiated(
    features: int, control: int
) -> None:
    workers = FakeWorkers()
    device = card(workers, pairs=4)
    for index in (0, 1, control):
        device.start(features, replace(QUEUE, index=index))
    assert [worker.kind for worker in workers.started] == ["receive0", "transmit0", "control"]


def test_state_impossible_for_a_card_is_refused() -> None:
    saved = NetState(mac=MAC, unicast=[MAC]).to_dict()
    assert NetState.from_dict(saved).unicast == [MAC]
    for wrong in (
        {"mac": b"12345"},
        {"unicast": [b"1"]},
        {"multicast": [MAC] * 257},
        {"vlans": [0]},
        {"pairs": 0},
        {"hash_key": b""},
        {"offloads": -1},
    ):
        with pytest.raises(StateError):
            NetState.from_dict({**saved, **wrong})


GIVEN = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1 | net.F_MRG_RXBUF


def test_card_that_the_kernel_serves_offers_what_it_can() -> None:
    workers = FakeWorkers(kernel_features=GIVEN & ~F_EVENT_IDX)
    device = card(workers, pairs=2)
    assert device.served_by_kernel
    assert device.ring_features == F_INDIRECT_DESC | F_VERSION_1 | F_RING_RESET
    for index in range(5):
        device.start(net.F_MQ, replace(QUEUE, index=index))
    assert [worker.kind for worker in workers.started] == [
        "kernel receive0",
        "kernel transmit0",
        "kernel receive1",
        "kernel transmit1",
        "control",
    ]
    assert not card().served_by_kernel
    assert card().ring_features == RING_FEATURES


def test_card_that_the_kernel_refuses_is_served_here_which_is_said_once() -> None:
    workers, said = FakeWorkers(kernel_features=GIVEN), list[str]()
    device = VirtioNet(FakeCable(), workers, MAC, report=said.append)
    workers.nics[0].kernel_refuses = True
    for index in range(2):
        device.start(0, replace(QUEUE, index=index))
    assert [worker.kind for worker in workers.started] == ["receive0", "transmit0"]
    assert len(said) == 1
    assert said[0].startswith("vhost-net: [Errno 77]")
    assert not device.served_by_kernel
