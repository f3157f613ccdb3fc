"""The registry of MAC addresses: no two cards share one, named machines keep theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ostler.errors import ConfigError, HostError
from ostler.net.mac import PREFIX, MacRegistry

WANTED = bytes.fromhex("525400123456")

CLAIM_AND_DIE = """
import os, sys
from pathlib import Path
from ostler.net.mac import MacRegistry
registry = MacRegistry(Path(sys.argv[1]))
for card in range(int(sys.argv[2])):
    print(registry.claim(sys.argv[3], card, keep=len(sys.argv) > 4).hex())
sys.stdout.flush()
if os.environ.get("WAIT"):
    sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def registry(tmp_path: Path) -> MacRegistry:
    return MacRegistry(tmp_path / "state" / "macs.sqlite")


def claim_elsewhere(registry: MacRegistry, count: int, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLAIM_AND_DIE, str(registry.path), str(count), *words]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_mac_claimed_has_the_prefix_and_is_listed(registry: MacRegistry) -> None:
    mac = registry.claim("guest", 0)
    assert mac[:3] == PREFIX
    (entry,) = registry.entries()
    assert (entry.mac, entry.vm, entry.pid) == (mac.hex(":"), "guest", os.getpid())


def test_mac_of_a_running_machine_is_refused_by_its_name(registry: MacRegistry) -> None:
    registry.claim("web1", 0, wanted=WANTED)
    with pytest.raises(ConfigError, match="the machine web1 has it, and runs as process"):
        registry.claim("web2", 0, wanted=WANTED)
    registry.release(WANTED)
    assert registry.claim("web2", 0, wanted=WANTED) == WANTED


def test_mac_of_a_named_machine_stays_its_own(registry: MacRegistry) -> None:
    mac = registry.claim("web1", 0, keep=True)
    second = registry.claim("web1", 1, keep=True)
    registry.release(mac)
    registry.release(second)
    with pytest.raises(ConfigError, match="web1 has it, and keeps it"):
        registry.claim("web2", 0, wanted=mac, keep=True)
    assert registry.claim("web1", 0, keep=True) == mac
    assert registry.claim("web1", 1, keep=True) == second


def test_mac_of_a_machine_without_a_name_is_given_back(registry: MacRegistry) -> None:
    registry.release(registry.claim("guest", 0))
    assert registry.entries() == []


def test_mac_forgotten_is_free_unless_its_machine_runs(registry: MacRegistry) -> None:
    mac = registry.claim("web1", 0, keep=True)
    assert registry.forget("web1") == 0
    registry.release(mac)
    assert registry.forget("web1") == 1
    assert registry.claim("web2", 0, wanted=mac) == mac


def test_mac_of_a_dead_process_is_reclaimed(registry: MacRegistry) -> None:
    with claim_elsewhere(registry, 1, "gone") as dead:
        out, _ = dead.communicate(timeout=60)
    with claim_elsewhere(registry, 1, "kept", "keep") as dead:
        kept, _ = dead.communicate(timeout=60)
    assert registry.claim("here", 0, wanted=bytes.fromhex(out)) == bytes.fromhex(out)
    assert registry.claim("kept", 0, keep=True) == bytes.fromhex(kept)


def test_macs_claimed_by_many_processes_at_once_all_differ(registry: MacRegistry) -> None:
    os.environ["WAIT"] = "1"
    try:
        claiming = [claim_elsewhere(registry, 10, f"vm{number}") for number in range(4)]
    finally:
        del os.environ["WAIT"]
    macs = []
    for process in claiming:
        assert process.stdout is not None
        macs += [process.stdout.readline() for _ in range(10)]
    assert len(set(macs)) == 40
    assert len(registry.entries()) == 40
    for process in claiming:
        process.communicate(timeout=60)


def test_registry_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="OSTLER_STATE_DIR"):
        MacRegistry(tmp_path / "file" / "macs.sqlite").claim("guest", 0)
    damaged = tmp_path / "macs.sqlite"
    damaged.write_bytes(b"not a database" * 100)
    with pytest.raises(HostError, match="not a database"):
        MacRegistry(damaged).claim("guest", 0)
