"""A switch that connects the machines of one process: `--net switch=NAME`.

It is there from the first machine that names it to the last.
"""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from ostler.net.backend import Backend, Links, Switch


class NamedSwitch:
    """A switch, kept by those who are connected to it."""

    def __init__(self, links: Links) -> None:
        self.switch: Switch = links.switch()


_switches: WeakValueDictionary[str, NamedSwitch] = WeakValueDictionary()
_lock = threading.Lock()


class SwitchPort(Backend):
    """A port of the switch called `name`."""

    def __init__(self, links: Links, name: str, *, mtu: int = 0) -> None:
        with _lock:
            found = _switches.get(name)
            self._switch = _switches[name] = found or NamedSwitch(links)
        self.mtu = mtu
        self.link = self._switch.switch.port()
