"""`full.py [FILE...]`: the stock guests' tests under `kvm` in the lab, a lab for each file.

By default all of `tests/guest`. It takes hours: a guest boots in half a minute to minutes. What
each lab printed goes to `build/lab/FILE.txt`; the exit code is 1 where a file did not pass.
"""

from __future__ import annotations

import sys
import time

import lab

from guests import fetch, native
from guests.fio import fio_disk
from guests.rootfs import debian

LIMITS = lab.Limits(seconds=3 * 3600, silence_s=1500, memory="3G")
LOUD = "-v --color=no -p no:cacheprovider -p no:hypothesispytest --durations=5"
PLACE = lab.ROOT / "build/lab"
# For the tests that make bridges, and for those of a SCSI device of the host.
DRIVERS = (
    "tun", "bridge", "veth", "macvtap", "dummy", "vhost_net", "sd_mod", "sg", "scsi_debug",
)  # fmt: skip
# passt takes after an interface with a way out, be it one that leads nowhere.
WAY_OUT = (
    "ip link set dummy0 up && ip addr add 192.0.2.2/24 dev dummy0"
    " && ip route add default via 192.0.2.1"
)


def main(names: list[str]) -> int:
    """Run them one after the other, and print a line for each."""
    PLACE.mkdir(parents=True, exist_ok=True)
    _prepare()
    found = names or [path.name for path in sorted(lab.ROOT.glob("tests/guest/test_*.py"))]
    return max([_run(name) for name in found], default=0)


def _prepare() -> None:
    """Make and fetch what the lab, which reaches no archive, would have to."""
    fetch.main([])
    debian()
    fio_disk()
    for program in (native.smp, native.system, native.talk, native.vsock):
        program()


def _run(name: str) -> int:
    begun = time.monotonic()
    command = f"OSTLER_TEST_ACCELERATOR=kvm {lab.PYTHON} -m pytest {LOUD} tests/guest/{name}"
    try:
        done = lab.run(WAY_OUT, command, limits=LIMITS, drivers=DRIVERS)
    except AssertionError as error:
        done = lab.Done(1, str(error))
    (PLACE / f"{name}.txt").write_text(done.output)
    counts = [
        line for line in done.output.splitlines() if line.startswith("===") and " in " in line
    ]
    summary = counts[-1].strip("= ") if counts else "no result"
    print(f"{name}: exit {done.code} after {time.monotonic() - begun:.0f} s: {summary}", flush=True)
    return int(done.code != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
