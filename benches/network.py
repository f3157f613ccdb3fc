"""`python -m benches.network`: a guest on a tap device, on ostler and on QEMU's TCG, in pairs.

The peer is in a network namespace behind a bridge. Both engines have a virtio card with the same
offloads; ostler's is measured once more with an emulated e1000. Takes root.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path

from benches import engines, report
from guests import native
from guests.fetch import Kernel, kernel
from guests.images import SOURCES, initrd
from guests.packages import BUILD, FetchError

RESULT = BUILD.parent / "bench-network.json"
PEER = "10.78.0.1/24"
APPEND = "console=ttyS0 quiet run=/bin/netbench"
BRIDGE, SPACE, VETH, TAP = (f"{name}{os.getpid()}" for name in ("obb", "obench", "obv", "obt"))
SERVERS = (("serve", "7"), ("sink", "5001"), ("source", "5002"))


def ip(*words: str) -> None:
    """Run `ip`; `BenchError` with what it says."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise engines.BenchError(f"ip {' '.join(words)}: {done.stderr.strip()}; run it as root")


def lay_cables(stack: ExitStack) -> None:
    """A bridge with a tap device for QEMU, and a namespace with servers on it."""
    ip("netns", "add", SPACE)
    stack.callback(ip, "netns", "del", SPACE)
    ip("link", "add", BRIDGE, "type", "bridge")
    stack.callback(ip, "link", "del", BRIDGE)
    ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr")
    stack.callback(ip, "link", "del", TAP)
    ip("link", "add", VETH, "type", "veth", "peer", "name", "eth0", "netns", SPACE)
    for port in (TAP, VETH):
        ip("link", "set", port, "master", BRIDGE, "up")
    ip("link", "set", BRIDGE, "up")
    ip("-n", SPACE, "addr", "add", PEER, "dev", "eth0")
    ip("-n", SPACE, "link", "set", "eth0", "up")
    for server in SERVERS:
        command = ["ip", "netns", "exec", SPACE, str(native.talk()), *server]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        stack.enter_context(process.stdout)
        stack.callback(process.wait)
        stack.callback(process.kill)
        process.stdout.readline()


def ostler(stock: Kernel, image: Path, model: str) -> engines.Sample:
    """One run on our software CPU."""
    program = Path(sysconfig.get_path("scripts"), "ostler")
    return engines.guest(
        [
            str(program), "run", "--kernel", str(stock.image), "--initrd", str(image), "--append",
            APPEND, "--memory", engines.MEMORY, "--accel", "soft",
            "--net", f"tap={BRIDGE},model={model}",
        ]
    )  # fmt: skip


def qemu(stock: Kernel, image: Path) -> engines.Sample:
    """One run on QEMU's TCG."""
    return engines.guest(
        [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", engines.MEMORY,
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", str(stock.image), "-initrd", str(image), "-append", APPEND,
            "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no",
            "-device", "virtio-net-pci,netdev=net,romfile=",
        ]
    )  # fmt: skip


def measure(pairs: int) -> None:
    """Measure, print, write `build/bench-network.json`."""
    stock = kernel("full")
    programs = {"/bin/talk": native.talk(), "/bin/netbench": SOURCES / "network/netbench"}
    image = initrd(stock, programs=programs, drivers=("e1000",))
    samples: dict[str, list[engines.Sample]] = {"qemu": [], "ostler": [], "e1000": []}
    with ExitStack() as stack:
        lay_cables(stack)
        for pair in range(pairs):
            print(f"pair {pair + 1} of {pairs}", file=sys.stderr)
            samples["qemu"].append(qemu(stock, image))
            samples["ostler"].append(ostler(stock, image, "virtio"))
            samples["e1000"].append(ostler(stock, image, "e1000"))
    found = report.rows(samples)
    report.show(found, f"Linux {stock.version} on a tap device, medians of {pairs}")
    report.write(found, RESULT, stock.version, pairs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benches.network", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    try:
        measure(parser.parse_args().pairs)
    except (engines.BenchError, FetchError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
