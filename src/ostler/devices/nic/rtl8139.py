"""Realtek's RTL8139 fast Ethernet cards, which about every system has a driver for.

RTL8139C(L)+ data sheet. The chip itself, and what of it is not modelled, is in the engine
(`crates/ostler-nic`). Linux drives the C+ by `8139cp` and the plain chip by `8139too`.
"""

from __future__ import annotations

from ostler.devices.nic.card import EmulatedNic
from ostler.devices.pci.config_space import Bar, Identity

REGISTER_BYTES = 256
PLAIN_REVISION, PLUS_REVISION = 0x10, 0x20


class Rtl8139(EmulatedNic):
    """The RTL8139C+, with descriptor rings; a driver may use it as the plain one, too."""

    name = "rtl8139"
    model = "rtl8139"
    identity = Identity(0x10EC, 0x8139, 0x020000, PLUS_REVISION, 0x10EC, 0x8139, interrupt_pin=1)
    bars = (Bar(0, REGISTER_BYTES, "io"), Bar(1, REGISTER_BYTES))


class PlainRtl8139(Rtl8139):
    """The RTL8139 as it was before: four buffers to send from and one to receive into."""

    name = "rtl8139-plain"
    model = "rtl8139-plain"
    identity = Identity(0x10EC, 0x8139, 0x020000, PLAIN_REVISION, 0x10EC, 0x8139, interrupt_pin=1)
