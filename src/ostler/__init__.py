"""Ostler: a hypervisor you can import.

    import ostler

    with ostler.VM(kernel="vmlinuz", initrd="initrd.gz", append="console=ttyS0") as vm:
        print(vm.serial.wait_for("login:"))

`ostler.engine` is the layer below: memory, CPUs and exits, as `/dev/kvm` has them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ostler import errors, host
    from ostler.block.image import create_image, open_image
    from ostler.control.console import SerialConsole
    from ostler.control.outcome import Ending, Outcome
    from ostler.control.vm import VM

__version__ = "0.1.0"

__all__ = [
    "VM",
    "Ending",
    "Outcome",
    "SerialConsole",
    "__version__",
    "create_image",
    "errors",
    "host",
    "open_image",
]

# Looked up when first used, so that `import ostler` and `ostler --help` load next to nothing.
_HOMES = {
    "VM": "ostler.control.vm",
    "SerialConsole": "ostler.control.console",
    "Ending": "ostler.control.outcome",
    "Outcome": "ostler.control.outcome",
    "create_image": "ostler.block.image",
    "open_image": "ostler.block.image",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "host"):
        return import_module(f"ostler.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ostler' has no attribute {name!r}")
