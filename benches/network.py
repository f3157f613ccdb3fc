"""`python -m benches.network`: guests' networks, on ostler and on QEMU's TCG, in pairs.

On a tap device the peer is in a network namespace behind a bridge; by user mode it is this host,
behind a passt for each guest. Both engines have a virtio card with the same offloads; ostler's tap
device is measured once more with an emulated e1000. Takes root.

What is lost of datagrams at full speed is lost at the peer's socket, which the host's kernel counts
(RcvbufErrors in /proc/net/snmp): it says how the host schedules, and differs from run to run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
SERVERS = (("serve", 7), ("sink", 5001), ("source", 5002))
# This host's ports may be taken by others; these are rarely.
HOST_PORTS = 20_000
USER_APPEND = (
    f"{APPEND} guest=10.0.2.15 peer=10.0.2.2 echo={HOST_PORTS + 7} sink={HOST_PORTS + 5001}"
    f" source={HOST_PORTS + 5002}"
)
PASST = ("-f", "-1", "-a", "10.0.2.15", "-n", "255.255.255.0", "-g", "10.0.2.2", "-m", "65520")
TCG = ("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", engines.MEMORY,
       "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
       "-device", "virtio-net-pci,netdev=net,romfile=")  # fmt: skip


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
    serve(stack, 0, "ip", "netns", "exec", SPACE)


def serve(stack: ExitStack, ports: int, *inside: str) -> None:
    """Start the servers at `ports` and above, and wait until they listen."""
    for kind, port in SERVERS:
        command = [*inside, str(native.talk()), kind, str(ports + port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        stack.enter_context(process.stdout)
        stack.callback(process.wait)
        stack.callback(process.kill)
        if not process.stdout.readline():
            raise engines.BenchError(f"{' '.join(command)} ended: is the port free?")


@contextmanager
def passt() -> Iterator[str]:
    """A passt for one QEMU; the option that leads to it."""
    with tempfile.TemporaryDirectory() as folder:
        # It gives up root before it listens.
        os.chmod(folder, 0o777)
        path = Path(folder, "passt")
        process = subprocess.Popen(
            ["passt", *PASST, "-s", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            assert process.stdout is not None
            while not path.exists():
                if process.poll() is not None:
                    said = process.stdout.read().decode(errors="replace").strip()
                    raise engines.BenchError(f"passt ended: {said}")
            yield f"stream,id=net,server=off,addr.type=unix,addr.path={path}"
        finally:
            process.kill()
            process.communicate()


def ostler(stock: Kernel, image: Path, append: str, net: str) -> engines.Sample:
    """One run on our software CPU."""
    program = Path(sysconfig.get_path("scripts"), "ostler")
    return engines.guest(
        [
            str(program), "run", "--kernel", str(stock.image), "--initrd", str(image), "--append",
            append, "--memory", engines.MEMORY, "--accel", "soft", "--net", net,
        ]
    )  # fmt: skip


def qemu(stock: Kernel, image: Path, append: str, netdev: str) -> engines.Sample:
    """One run on QEMU's TCG."""
    boot = ["-kernel", str(stock.image), "-initrd", str(image), "-append", append]
    return engines.guest([*TCG, *boot, "-netdev", netdev])


def tap_pair(stock: Kernel, image: Path) -> dict[str, engines.Sample]:
    """A run of each on the bridge."""
    netdev = f"tap,id=net,ifname={TAP},script=no,downscript=no"
    return {
        "qemu": qemu(stock, image, APPEND, netdev),
        "ostler": ostler(stock, image, APPEND, f"tap={BRIDGE}"),
        "e1000": ostler(stock, image, APPEND, f"tap={BRIDGE},model=e1000"),
    }


def user_pair(stock: Kernel, image: Path) -> dict[str, engines.Sample]:
    """A run of each on a passt."""
    with passt() as netdev:
        theirs = qemu(stock, image, USER_APPEND, netdev)
    return {"qemu": theirs, "ostler": ostler(stock, image, USER_APPEND, "user,host=on")}


PAIRS = {"tap": tap_pair, "user": user_pair}


def measure(pairs: int, networks: Sequence[str]) -> None:
    """Measure, print, write `build/bench-network.json`."""
    stock = kernel("full")
    programs = {"/bin/talk": native.talk(), "/bin/netbench": SOURCES / "network/netbench"}
    image = initrd(stock, programs=programs, drivers=("e1000",))
    samples: dict[str, dict[str, list[engines.Sample]]] = {name: {} for name in networks}
    with ExitStack() as stack:
        if "tap" in networks:
            lay_cables(stack)
        if "user" in networks:
            serve(stack, HOST_PORTS)
        for pair in range(pairs):
            for name in networks:
                print(f"{name}: pair {pair + 1} of {pairs}", file=sys.stderr)
                for engine, sample in PAIRS[name](stock, image).items():
                    samples[name].setdefault(engine, []).append(sample)
    every: list[dict[str, object]] = []
    for name, found in samples.items():
        rows = report.rows(found)
        report.show(rows, f"Linux {stock.version}, {name}, medians of {pairs}")
        every += [{"network": name, **row} for row in rows]
    report.write(every, RESULT, stock.version, pairs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benches.network", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--network", choices=PAIRS, action="append", help="one of them only")
    options = parser.parse_args()
    try:
        measure(options.pairs, options.network or list(PAIRS))
    except (engines.BenchError, FetchError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
