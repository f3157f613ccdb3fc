"""vhost: the kernel serves a guest's network and sockets."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.checks.device import NOT_THERE
from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

DEVICES = {"/dev/vhost-net": "vhost_net", "/dev/vhost-vsock": "vhost_vsock"}


def check(host: HostView) -> Iterator[Finding]:
    """Each of its devices."""
    for path, module in DEVICES.items():
        yield character_device(host, path, module)


def character_device(host: HostView, path: str, module: str) -> Finding:
    """A device that a module makes: whether it can be opened."""
    error = host.open_error(path)
    if error is None:
        return passed(path, "this user may open it")
    if error.errno in NOT_THERE:
        return warned(path, "it is not there", f"modprobe {module}")
    return warned(path, f"{error.strerror}", f"setfacl -m u:USER:rw {path}")
