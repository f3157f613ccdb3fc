"""Timing kernel-mode guest code, and what is remembered of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from host_tree import FakeHost, make_tree

from ostler.engine import VirtualMachine
from ostler.errors import ConfigError
from ostler.host import speed
from ostler.host.cache import BOOT_ID, SpeedCache, directory

BOOT = "0e6ba96c-1b2c-4d9e-9e8f-9a1b6f2f7d11"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(make_tree(tmp_path / "host", {BOOT_ID.lstrip("/"): BOOT}))


def test_measured_guest_does_what_its_source_says() -> None:
    vm = VirtualMachine()
    vcpu = speed._kernel(vm, speed.LOOP)
    before = vcpu.instructions
    spent_ns, done = speed._run(vcpu, 1000)
    assert (done, vcpu.regs.rcx) == (1000, 0)
    assert spent_ns > 0
    total = int.from_bytes(vm.memory.read(speed.DATA, 8), "little")
    assert total == sum(range(1001)), "each round adds its number to a word in memory"
    after = vcpu.instructions
    assert before is not None
    assert after is not None
    assert after - before == 1000 * speed.LOOP_INSTRUCTIONS + 1
    vm.close()


def test_measured_guest_leaves_once_a_round_for_a_port() -> None:
    vm = VirtualMachine()
    vcpu = speed._kernel(vm, speed.EXITS)
    assert speed._run(vcpu, 77)[1] == 77
    assert vcpu.counters["io_in"] == 77
    vm.close()


def test_software_cpu_is_no_emulation_of_a_few_million_instructions() -> None:
    measured = speed.measure("soft")
    assert measured.mips > 10
    assert measured.exit_ns > 0


def test_measurement_that_takes_too_long_counts_what_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "LIMIT_S", 0.01)
    vm = VirtualMachine()
    vcpu = speed._kernel(vm, speed.LOOP)
    _, done = speed._run(vcpu, 1 << 40)
    assert 0 < done < 1 << 40
    vm.close()


def test_accelerator_that_is_not_there_is_no_measurement() -> None:
    with pytest.raises(ConfigError):
        speed.measure("warp")


def test_cache_written_is_read_in_the_same_boot_only(host: FakeHost, tmp_path: Path) -> None:
    cache = SpeedCache(host, tmp_path / "run")
    assert cache.read() == {}
    cache.write({"soft": 140.5})
    assert SpeedCache(host, tmp_path / "run").read() == {"soft": 140.5}
    make_tree(host.root, {BOOT_ID.lstrip("/"): "another"})
    assert SpeedCache(host, tmp_path / "run").read() == {}


def test_cache_of_another_version_of_ostler_is_not_believed(host: FakeHost, tmp_path: Path) -> None:
    SpeedCache(host, tmp_path, "1.0").write({"kvm": 5000.0})
    assert SpeedCache(host, tmp_path, "1.1").read() == {}
    assert SpeedCache(host, tmp_path, "1.0").read() == {"kvm": 5000.0}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"boot":1}',
        b'{"boot":"%s","version":"1","method":1,"mips":{"kvm":"fast"}}' % BOOT.encode(),
        b'{"boot":"%s","version":"1","method":1,"mips":{"kvm":-1}}' % BOOT.encode(),
        b'{"boot":"%s","method":1,"mips":{"kvm":5000}}' % BOOT.encode(),
        b'{"boot":"%s","version":"1","method":0,"mips":{"kvm":5000}}' % BOOT.encode(),
        b'{"boot":"%s","version":"1","method":1,"mips":{"kvm":5000},"more":1}' % BOOT.encode(),
        b'{"boot":"%s","version":"1","method":1,"mips":{"kvm":5000}}' % BOOT.encode()
        + b" " * 100_000,
    ],
)  # fmt: skip
def test_cache_that_is_damaged_is_empty_and_can_be_written(
    host: FakeHost, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "speed.json").write_bytes(content)
    cache = SpeedCache(host, tmp_path, "1")
    assert cache.read() == {}
    cache.write({"soft": 1.0})
    assert cache.read() == {"soft": 1.0}


def test_cache_in_a_place_that_cannot_be_written_is_silent(host: FakeHost, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", Path("/proc/nowhere"), None):
        cache = SpeedCache(host, place)
        cache.write({"soft": 1.0})
        assert cache.read() == {}


def test_cache_written_by_many_at_once_is_always_whole(host: FakeHost, tmp_path: Path) -> None:
    speeds = [{"soft": float(number), "kvm": float(number)} for number in range(1, 9)]
    seen: list[dict[str, float]] = []

    def start(mine: dict[str, float]) -> None:
        cache = SpeedCache(host, tmp_path)
        for _ in range(50):
            cache.write(mine)
            seen.append(cache.read())

    threads = [threading.Thread(target=start, args=(mine,)) for mine in speeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 400
    assert all(found in speeds for found in seen)
    assert sorted(os.listdir(tmp_path)) == ["host", "speed.json"], "nothing is left behind"


def test_cache_goes_where_the_user_may_write(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert directory({"XDG_RUNTIME_DIR": place, "HOME": "/"}) == tmp_path / "ostler"
    assert directory({"XDG_RUNTIME_DIR": "/nowhere", "HOME": place}) == tmp_path / ".cache/ostler"
    assert directory({"XDG_CACHE_HOME": "relative", "HOME": place}) == tmp_path / ".cache/ostler"
    assert directory({"HOME": "/nowhere"}) is None
    assert directory({}) is None
