"""Which accelerator a guest gets: the user's wishes in order, or the faster one by measurement.

`kvm` is taken where `/dev/kvm` can be used and runs kernel mode as a processor does. Where it only
emulates it, the software CPU is many times faster. The measurement is made once a boot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ostler.config import AcceleratorChoice
from ostler.errors import HostError

KVM, SOFT = "kvm", "soft"
# Million instructions a second: emulators reach a few, hardware more than a thousand.
EMULATED_MIPS = 100
# Kernels and compilers keep a processor at about this many instructions a cycle.
TYPICAL_IPC = 2


class Cache(Protocol):
    """Million instructions a second by accelerator, kept from one start to the next."""

    def read(self) -> dict[str, float]:
        """What is known."""

    def write(self, mips: dict[str, float]) -> None:
        """Replace what is known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The accelerator's name, and where it is not the one that was hoped for, why: one line."""

    name: str
    note: str | None = None


class Chooser:
    """Decides for one host.

    `why_not(name)` is why an accelerator cannot be used, or `None`; `measure(name)` its speed in
    million kernel-mode instructions a second; `cpu_mhz()` the host's clock, where it is known.
    """

    def __init__(
        self,
        why_not: Callable[[str], str | None],
        measure: Callable[[str], float],
        cache: Cache,
        cpu_mhz: Callable[[], float | None],
    ) -> None:
        self._why_not, self._measure, self._cache = why_not, measure, cache
        self._cpu_mhz = cpu_mhz
        self._known: dict[str, float] | None = None

    def choose(self, choice: AcceleratorChoice) -> Decision:
        """The first candidate that works; `HostError`, one line with each reason, if none does.

        With `auto`, a `kvm` that works but only emulates does not count; who asks for it by name
        gets it, and is told.
        """
        reasons: list[str] = []
        for name in choice.candidates or (KVM, SOFT):
            reason = self._reason(name, choice.is_auto)
            if reason is None:
                if name == KVM and not choice.is_auto:
                    reasons += filter(None, (self._too_slow(),))
                return Decision(name, self._note(name, reasons))
            reasons.append(reason)
        wanted = ",".join(choice.candidates) or "auto"
        raise HostError(f"--accel {wanted}: {'; '.join(reasons)}")

    def _reason(self, name: str, is_auto: bool) -> str | None:
        if not is_auto or name != KVM:
            return self._why_not(name)
        # What is known to be slow need not be tried.
        if self._speeds().get(KVM, EMULATED_MIPS) < EMULATED_MIPS:
            return self._too_slow()
        return self._why_not(KVM) or self._too_slow()

    def _too_slow(self) -> str | None:
        mips = self._speed(KVM)
        if mips >= EMULATED_MIPS:
            return None
        return f"/dev/kvm only emulates kernel mode here ({mips:.1f} million instructions/s)"

    def _note(self, name: str, reasons: list[str]) -> str | None:
        """What is said to whom would rather have had another."""
        if not reasons:
            return None
        why = "; ".join(reasons)
        if name != SOFT:
            return f"running on {name}: {why}; --accel soft is faster"
        mips = self._speed(SOFT)
        cost = f"{mips:,.0f}" if mips >= 10 else f"{mips:.1f}"
        cost += " million instructions/s"
        mhz = self._cpu_mhz()
        if mhz:
            cost += f", about 1/{max(mhz * TYPICAL_IPC / mips, 1):.0f} of this CPU's own speed"
        silence = "" if "--accel soft" in why else "; --accel soft silences this"
        return f"running on the software CPU ({cost}): {why}{silence}"

    def _speed(self, name: str) -> float:
        speeds = self._speeds()
        if name not in speeds:
            speeds[name] = self._measure(name)
            self._cache.write(speeds)
        return speeds[name]

    def _speeds(self) -> dict[str, float]:
        if self._known is None:
            self._known = self._cache.read()
        return self._known
