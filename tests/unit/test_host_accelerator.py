"""Which accelerator is chosen, what is said of it, and how often anything is measured."""

from __future__ import annotations

import pytest

from ostler.config import AcceleratorChoice
from ostler.errors import HostError
from ostler.host.accelerator import Chooser, Decision

NO_KVM = "/dev/kvm: there is no KVM here; load kvm_amd or kvm_intel, or use --accel soft"
AUTO = AcceleratorChoice()


class MemoryCache:
    """Speeds that are kept as long as the test runs."""

    def __init__(self, mips: dict[str, float] | None = None) -> None:
        self.mips = mips or {}

    def read(self) -> dict[str, float]:
        return dict(self.mips)

    def write(self, mips: dict[str, float]) -> None:
        self.mips = dict(mips)


class Host:
    """A host with these accelerators and speeds; it remembers what was asked of it."""

    def __init__(self, kvm: float | str, soft: float = 400, mhz: float | None = 2600) -> None:
        self.speeds = {"kvm": kvm, "soft": soft}
        self.mhz = mhz
        self.cache = MemoryCache()
        self.measured: list[str] = []
        self.tried: list[str] = []

    def why_not(self, name: str) -> str | None:
        self.tried.append(name)
        speed = self.speeds[name]
        return speed if isinstance(speed, str) else None

    def measure(self, name: str) -> float:
        self.measured.append(name)
        return float(self.speeds[name])

    def choose(self, wanted: str = "auto") -> Decision:
        chooser = Chooser(self.why_not, self.measure, self.cache, lambda: self.mhz)
        return chooser.choose(AcceleratorChoice.parse(wanted))


def test_auto_takes_a_kvm_that_runs_at_the_speed_of_a_processor_in_silence() -> None:
    assert Host(kvm=5000).choose() == Decision("kvm")


def test_auto_finds_out_a_kvm_that_only_emulates_and_says_what_it_costs() -> None:
    assert Host(kvm=1.6).choose() == Decision(
        "soft",
        "running on the software CPU (400 million instructions/s, about 1/13 of this CPU's own"
        " speed): /dev/kvm only emulates kernel mode here (1.6 million instructions/s);"
        " --accel soft silences this",
    )


def test_auto_without_kvm_gives_the_reason_and_its_cure() -> None:
    decision = Host(kvm=NO_KVM, mhz=None).choose()
    said = f"running on the software CPU (400 million instructions/s): {NO_KVM}"
    assert decision == Decision("soft", said)


def test_auto_measures_once_a_boot() -> None:
    host = Host(kvm=1.6)
    first = host.choose()
    assert (host.measured, host.tried) == (["kvm", "soft"], ["kvm", "soft"])
    host.tried.clear()
    assert host.choose() == first
    assert host.measured == ["kvm", "soft"], "nothing is measured again"
    assert host.tried == ["soft"], "what is known to be slow is not tried"


def test_auto_that_has_kvm_measures_only_that() -> None:
    host = Host(kvm=5000)
    assert [host.choose().name for _ in range(3)] == ["kvm"] * 3
    assert host.measured == ["kvm"]


def test_auto_does_not_remember_a_refusal() -> None:
    host = Host(kvm=NO_KVM)
    assert host.choose().name == "soft"
    host.speeds["kvm"] = 5000
    assert host.choose() == Decision("kvm")


@pytest.mark.parametrize("wanted", ["soft", "soft,kvm"])
def test_wish_for_the_software_cpu_is_neither_measured_nor_commented(wanted: str) -> None:
    host = Host(kvm=1.6)
    assert host.choose(wanted) == Decision("soft")
    assert host.measured == []


@pytest.mark.parametrize("wanted", ["kvm", "kvm,soft"])
def test_wish_for_a_kvm_that_only_emulates_is_fulfilled_with_a_warning(wanted: str) -> None:
    host = Host(kvm=1.6)
    said = (
        "running on kvm: /dev/kvm only emulates kernel mode here (1.6 million instructions/s);"
        " --accel soft is faster"
    )
    assert [host.choose(wanted) for _ in range(2)] == [Decision("kvm", said)] * 2
    assert host.measured == ["kvm"], "once a boot"


def test_wish_for_a_kvm_at_the_speed_of_a_processor_is_fulfilled_in_silence() -> None:
    assert Host(kvm=5000).choose("kvm") == Decision("kvm")


def test_list_falls_back_with_the_reason() -> None:
    decision = Host(kvm="no permission").choose("kvm,soft")
    assert decision.name == "soft"
    assert decision.note is not None
    assert decision.note.endswith("speed): no permission; --accel soft silences this")


def test_list_of_none_that_works_gives_each_reason_in_one_line() -> None:
    with pytest.raises(HostError, match=r"^--accel kvm: no permission$"):
        Host(kvm="no permission").choose("kvm")


def test_damaged_speed_in_the_cache_is_measured_again() -> None:
    host = Host(kvm=5000)
    host.cache = MemoryCache({"soft": 100})
    assert host.choose() == Decision("kvm")
    assert host.cache.mips == {"soft": 100, "kvm": 5000}


def test_software_cpu_faster_than_a_processor_of_that_clock_is_called_its_equal() -> None:
    decision = Host(kvm=NO_KVM, soft=9000).choose()
    assert decision.note is not None
    assert "9,000 million instructions/s, about 1/1 of this CPU's" in decision.note
