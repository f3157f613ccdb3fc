"""The machine that guests run on: what it has, and what it can be asked for.

import ostler

for finding in ostler.host.check():
    print(finding)
"""

from __future__ import annotations

from ostler.host.report import Finding, Report, Status

__all__ = ["Finding", "Report", "Status", "check"]


def check() -> Report:
    """Look at everything a hypervisor asks of a host; takes a tenth of a second."""
    # Here, as whoever starts a guest needs other parts of this package, and soon.
    from ostler.host.checks import CHECKS
    from ostler.host.view import HostView

    host = HostView()
    return Report(tuple(finding for look in CHECKS for finding in look(host)))
