"""Where the time of a guest's CPUs goes, by what they do and by block of guest code.

The software CPU says in two words of memory what it is doing and which block of guest code it is
in, and a thread looks at them a thousand times a second: each look counts the time since the last
one. So all of a vCPU's activities add up to the wall time, time in which the host had no processor
for its thread included, and what took less than a few looks is left to chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ostler.control.symbols import Symbols
from ostler.engine import Profiler
from ostler.errors import ConfigError

Key = TypeVar("Key", int, str)

NS_PER_S = 1_000_000_000
HOTTEST = 20
# Activities with the titles of their columns.
ACTIVITIES = {
    "translated": "translated",
    "interpreter": "interpreter",
    "translation": "translation",
    "tlb_miss": "TLB miss",
    "device": "device",
    "idle": "idle",
    "paused": "paused",
}
# What is not the guest's code at work.
RESTING = ("idle", "paused")


@dataclass(frozen=True, slots=True)
class VcpuProfile:
    """One vCPU since its machine was started: seconds of wall time by activity.

    `translated` is guest code as host code, `interpreter` all else that runs guest code,
    `translation` making host code, `tlb_miss` finding pages that the TLB does not know, `device`
    waiting for a device's answer, `idle` sleep in HLT or MWAIT, `paused` when the machine stood
    still.
    """

    id: int
    seconds: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: VcpuProfile) -> VcpuProfile:
        """Of two boots, or of two vCPUs; the number is the first one's."""
        return VcpuProfile(self.id, _sum(self.seconds, other.seconds))

    @property
    def wall_s(self) -> float:
        """How long it was looked at."""
        return sum(self.seconds.values())

    @property
    def busy_s(self) -> float:
        """How long it was neither idle nor paused."""
        return self.wall_s - sum(self.seconds.get(name, 0) for name in RESTING)


@dataclass(frozen=True, slots=True)
class HotBlock:
    """A run of guest instructions without a jump: its linear address, its symbol, its seconds."""

    address: int
    symbol: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class VmProfile:
    """A machine since it was started: its vCPUs in order, and its blocks of guest code.

    `blocks` are the seconds of all vCPUs by linear address, whichever address space it was in;
    `elsewhere_s` those of blocks past the 65,536 that are told apart.
    """

    vcpus: tuple[VcpuProfile, ...] = ()
    blocks: dict[int, float] = field(default_factory=dict)
    elsewhere_s: float = 0
    symbols: Symbols = field(default_factory=Symbols, repr=False, compare=False)

    @property
    def total(self) -> VcpuProfile:
        """All vCPUs taken together."""
        return sum(self.vcpus, VcpuProfile(-1))

    def hottest(self, count: int = HOTTEST) -> list[HotBlock]:
        """The blocks that took most of the time, the hottest first."""
        return [
            HotBlock(address, self.symbols.name(address), seconds)
            for address, seconds in Counter(self.blocks).most_common(count)
        ]

    def __add__(self, other: VmProfile) -> VmProfile:
        """Of one boot and the next, which has as many vCPUs."""
        if not self.vcpus:
            return other
        pairs = zip(self.vcpus, other.vcpus, strict=True)
        return VmProfile(
            tuple(before + now for before, now in pairs),
            _sum(self.blocks, other.blocks),
            self.elsewhere_s + other.elsewhere_s,
            other.symbols,
        )


def _sum(one: dict[Key, float], other: dict[Key, float]) -> dict[Key, float]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def check_accelerator(name: str) -> None:
    """Refuse to make a profile of guests on `name` where it cannot be made: cause and cure."""
    if name != "soft":
        raise ConfigError(
            f"--profile: under {name} the host's kernel runs the guest, where this process cannot"
            " look on; add --accel soft, or use --stats and `perf kvm`"
        )


def collect(profiler: Profiler, symbols: Symbols) -> VmProfile:
    """What `profiler` has seen up to now."""
    vcpus, blocks, elsewhere_ns = profiler.read()
    return VmProfile(
        tuple(VcpuProfile(number, _seconds(ns)) for number, ns in vcpus.items()),
        _seconds(blocks),
        elsewhere_ns / NS_PER_S,
        symbols,
    )


def _seconds(counted: dict[Key, int]) -> dict[Key, float]:
    return {key: ns / NS_PER_S for key, ns in counted.items()}


def format_profile(profile: VmProfile) -> str:
    """A table of the vCPUs, then the hottest blocks; several lines."""
    vcpus = [(f"vcpu{vcpu.id}", vcpu) for vcpu in profile.vcpus]
    if len(vcpus) > 1:
        vcpus.append(("all", profile.total))
    lines = ["profile; seconds of wall time"]
    lines.append(" " * 8 + "".join(f"{title:>12}" for title in ACTIVITIES.values()))
    lines += [_row(name, vcpu) for name, vcpu in vcpus]
    return "\n".join([*lines, *_blocks(profile)])


def _row(name: str, vcpu: VcpuProfile) -> str:
    return f"{name:<8}" + "".join(f"{vcpu.seconds.get(key, 0):>12.2f}" for key in ACTIVITIES)


def _blocks(profile: VmProfile) -> Iterable[str]:
    busy_s = profile.total.busy_s
    hottest = profile.hottest()
    if hottest and busy_s:
        yield "hottest blocks of guest code; share of the time that was not idle"
    for block in hottest:
        share = block.seconds / busy_s if busy_s else 0
        yield f"{share:>8.1%}  {block.address:016x}  {block.symbol or '-'}"
