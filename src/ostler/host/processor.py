"""The rows of CPUID that make an accelerator's vCPU the processor a user asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ostler.config import CpuModelConfig
from ostler.config.cpu_features import FEATURES, WORDS, Word, listed, needs, with_needs, without
from ostler.config.cpu_models import HOST, MAX, MODELS, CpuModel, Identity
from ostler.errors import ConfigError
from ostler.registers import CpuidEntry

# What is the accelerator's own and no processor's: guests get it with every model.
_OF_THE_ACCELERATOR = frozenset(
    {"hypervisor", "x2apic", "tsc_deadline", "tsc_adjust", "arat", "ht", "cmp_legacy", "topoext"}
    | {name for name, (word, _) in FEATURES.items() if word.leaf == 0x4000_0001}
)
_XSAVE = 0xD
# Components of XCR0 that only these features use (Intel SDM 1, 13.1).
_COMPONENTS = {
    "avx": (2,),
    "mpx": (3, 4),
    "avx512f": (5, 6, 7),
    "pku": (9,),
    "amx_tile": (17, 18),
}
_LEGACY_AND_HEADER_BYTES = 576
SHOWN = 6
"""Features that a refusal names at most."""
# AMD repeats these bits of leaf 1, EDX in leaf 0x80000001, EDX (APM 3, E.4.2).
_AMD_MIRROR = 0x0183_F3FF


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor that an accelerator can be: its features, and who it says it is."""

    features: frozenset[str]
    identity: Identity | None
    keeps_unnamed: bool
    """Whether bits that have no name here stay as the accelerator has them."""

    def rows(self, rows: Iterable[CpuidEntry]) -> list[CpuidEntry]:
        """`rows`, the accelerator's for one vCPU, as this processor has them."""
        changed = [self._features(row) for row in rows]
        changed = [row for row in changed if row.function != _XSAVE] + self._xsave(changed)
        edx = next((row.edx for row in changed if row.function == 1), 0)
        changed = [_mirrored(row, edx) for row in changed]
        return changed if self.identity is None else [*map(self._identity, changed)]

    def _features(self, row: CpuidEntry) -> CpuidEntry:
        for word in WORDS:
            if _is(word, row):
                value = self._word(word, getattr(row, word.register))
                row = _with(row, word.register, value)
        return row

    def _word(self, word: Word, value: int) -> int:
        if not self.keeps_unnamed and word.leaf not in (6, 0x8000_0001):
            value = 0
        for name, (place, bit) in FEATURES.items():
            if place == word:
                value = value & ~(1 << bit) | (name in self.features) << bit
        return value

    def _xsave(self, rows: Sequence[CpuidEntry]) -> list[CpuidEntry]:
        """Leaf 0xd with the components whose features are there, and the size that makes."""
        if "xsave" not in self.features:
            return []
        rows = [row for row in rows if row.function == _XSAVE]
        gone = {
            component
            for name, components in _COMPONENTS.items()
            if name not in self.features
            for component in components
        }
        rows = [row for row in rows if row.index not in gone]
        there = (row for row in rows if row.index > 1 and not row.ecx & 1)
        size = max((row.eax + row.ebx for row in there), default=_LEGACY_AND_HEADER_BYTES)
        mask = ~sum(1 << component for component in gone)
        return [_sized(row, mask, size, "xsaves" in self.features) for row in rows]

    def _identity(self, row: CpuidEntry) -> CpuidEntry:
        assert self.identity is not None
        vendor, brand = self.identity.vendor.encode(), self.identity.brand.encode().ljust(48, b"\0")
        match row.function:
            case 0 | 0x8000_0000:
                ebx, edx, ecx = struct.unpack("<3I", vendor)
                return replace(row, ebx=ebx, ecx=ecx, edx=edx)
            case 1:
                return replace(row, eax=self.identity.signature)
            case 0x8000_0002 | 0x8000_0003 | 0x8000_0004 as leaf:
                words = struct.unpack_from("<4I", brand, 16 * (leaf - 0x8000_0002))
                return replace(row, **dict(zip(("eax", "ebx", "ecx", "edx"), words, strict=True)))
        return row


def _with(row: CpuidEntry, register: str, value: int) -> CpuidEntry:
    row = replace(row)
    setattr(row, register, value)
    return row


def _sized(row: CpuidEntry, mask: int, size: int, has_xsaves: bool) -> CpuidEntry:
    if row.index == 0:
        return replace(row, eax=row.eax & mask & 0xFFFF_FFFF, ebx=min(row.ebx, size), ecx=size)
    if row.index == 1 and not has_xsaves:
        return replace(row, ebx=0, ecx=0, edx=0)
    return row


def _mirrored(row: CpuidEntry, edx: int) -> CpuidEntry:
    if row.function != 0x8000_0001:
        return row
    return replace(row, edx=row.edx & (~_AMD_MIRROR | edx))


def _is(word: Word, row: CpuidEntry) -> bool:
    subleaf = row.index if row.significant_index else 0
    return (word.leaf, word.subleaf) == (row.function, subleaf)


def features_of(rows: Iterable[CpuidEntry]) -> frozenset[str]:
    """The named features that rows of CPUID say are there."""
    return frozenset(_named(list(rows)))


def _named(rows: Sequence[CpuidEntry]) -> Iterator[str]:
    words = {word: getattr(row, word.register) for row in rows for word in WORDS if _is(word, row)}
    for name, (word, bit) in FEATURES.items():
        if words.get(word, 0) >> bit & 1:
            yield name


@dataclass(frozen=True, slots=True)
class Offer:
    """What an accelerator has: its name, the rows a guest gets by default, and at most."""

    accelerator: str
    default: Sequence[CpuidEntry]
    everything: Sequence[CpuidEntry]

    def processor(self, wanted: CpuModelConfig) -> Processor:
        """The processor `wanted`; `ConfigError`, one line with the cure, where it cannot be had."""
        model = MODELS.get(wanted.name)
        if model is not None:
            self._check_vendor(wanted, model)
        base = self._base(wanted.name) if model is None else self._of(model)
        features = without(base | with_needs(wanted.plus), wanted.minus)
        if lacking := features - features_of(self.everything):
            raise ConfigError(self._refusal(wanted, lacking, model))
        identity = None if model is None else model.identity
        return Processor(frozenset(features), identity, keeps_unnamed=model is None)

    def lacks(self, model: CpuModel) -> set[str]:
        """The features of `model` that cannot be had."""
        return set(model.features - features_of(self.everything))

    def is_of_another_vendor(self, model: CpuModel) -> bool:
        """Whether `model` is a processor that this host's CPU cannot pass for.

        Instructions that enter the kernel differ between vendors (Intel SDM 2, SYSCALL; AMD APM 3,
        SYSENTER), and hardware runs its own.
        """
        identity = model.identity
        return self.accelerator == "kvm" and identity is not None and identity.vendor != self.vendor

    @property
    def vendor(self) -> str:
        """The twelve letters of leaf 0."""
        row = next(row for row in self.everything if row.function == 0)
        return struct.pack("<3I", row.ebx, row.edx, row.ecx).decode("ascii", "replace")

    def _base(self, name: str) -> frozenset[str]:
        assert name in (HOST, MAX)
        return features_of(self.everything if name == MAX else self.default)

    def _of(self, model: CpuModel) -> frozenset[str]:
        return model.features | features_of(self.default) & _OF_THE_ACCELERATOR

    def _check_vendor(self, wanted: CpuModelConfig, model: CpuModel) -> None:
        if self.is_of_another_vendor(model):
            raise ConfigError(
                f"--cpu {wanted}: {wanted.name} is not this host's vendor, {self.vendor};"
                f" take {self._level()}, or --accel soft"
            )

    def _level(self) -> str:
        """The highest level of the ABI that can be had."""
        levels = [name for name in MODELS if name.startswith("x86-64")]
        there = [name for name in levels if not self.lacks(MODELS[name])]
        return there[-1] if there else HOST

    def _refusal(self, wanted: CpuModelConfig, lacking: set[str], model: CpuModel | None) -> str:
        has_no = f"--cpu {wanted}: {self.accelerator} here has no"
        if model is None or lacking <= with_needs(wanted.plus) - model.features:
            asked = {name for name in wanted.plus if with_needs([name]) & lacking}
            return f"{has_no} {listed(asked)}; leave it out (--cpu help says what there is)"
        first = {name for name in lacking if not set(needs(name)) & lacking}
        if len(first) > SHOWN:
            return (
                f"--cpu {wanted}: {self.accelerator} here lacks {len(lacking)} of its features;"
                + (f" take {self._level()} (--cpu help says what each lacks)")
            )
        plus = tuple(name for name in wanted.plus if not with_needs([name]) & lacking)
        minus = (*wanted.minus, *sorted(first & model.features))
        return f"{has_no} {listed(first)}; write --cpu {CpuModelConfig(wanted.name, plus, minus)}"
