"""Intel's 82540EM gigabit card, which systems from 2002 on have a driver for (`e1000`, `em`).

Intel 8254x Family of Gigabit Ethernet Controllers Software Developer's Manual. The chip itself, and
what of it is not modelled, is in the engine (`crates/ostler-nic`).
"""

from __future__ import annotations

from ostler.devices.nic.card import EmulatedNic
from ostler.devices.pci.config_space import Bar, Identity

REGISTER_BYTES = 0x2_0000
PORTS = 64


class E1000(EmulatedNic):
    """See the module."""

    name = "e1000"
    model = "e1000"
    identity = Identity(0x8086, 0x100E, 0x020000, 2, 0x8086, 0x001E, interrupt_pin=1)
    bars = (Bar(0, REGISTER_BYTES), Bar(1, PORTS, "io"))
