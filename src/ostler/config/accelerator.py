"""What may run a guest's instructions: `kvm`, `soft`, `auto`, or a list such as `kvm,soft`."""

from __future__ import annotations

import msgspec

from ostler.errors import ConfigError

AUTO = "auto"
KVM = "kvm"
ACCELERATORS = (KVM, "soft")
# By the names that QEMU's -accel has for them.
IRQCHIP, DIRTY_RING = "kernel-irqchip", "dirty-ring-size"
IRQCHIPS = ("on", "split")
_VALUES = {
    IRQCHIP: f"{IRQCHIP} is on (all in the kernel) or split",
    DIRTY_RING: f"{DIRTY_RING} is a number of entries, 4096 say",
}
# Entries of a vCPU's ring, as KVM takes them.
RING_LEAST, RING_MOST = 1 << 10, 1 << 16
# The destinations of the kernel's IOAPIC have 8 bits, of which all ones are everybody.
KERNEL_IOAPIC_CPUS = 255


class KvmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `kvm` makes its machine; `soft` has no use for it.

    With `split_irqchip`, only the local APICs are in the kernel: PIC, IOAPIC and PIT are in this
    process; `None` is so where the guest has too many CPUs for the kernel's IOAPIC. With
    `dirty_ring`, writes are logged in a ring of so many entries for each vCPU.
    """

    split_irqchip: bool | None = None
    dirty_ring: int | None = None

    def for_cpus(self, count: int) -> KvmOptions:
        """With the place of the chips decided, for a guest of so many CPUs."""
        if self.split_irqchip is not None:
            return self
        return KvmOptions(count > KERNEL_IOAPIC_CPUS, self.dirty_ring)

    def __post_init__(self) -> None:
        size = self.dirty_ring
        if size is None:
            return
        if size.bit_count() != 1 or not RING_LEAST <= size <= RING_MOST:
            raise ConfigError(
                f"--accel {DIRTY_RING}={size}: give a power of two from {RING_LEAST} to {RING_MOST}"
            )


class AcceleratorChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accelerators in the order in which they are wanted; none given: the best there is."""

    candidates: tuple[str, ...] = ()
    kvm: KvmOptions = KvmOptions()

    @property
    def is_auto(self) -> bool:
        """Whether the choice is ours."""
        return not self.candidates

    def __post_init__(self) -> None:
        if self.kvm != KvmOptions() and not self.is_auto and KVM not in self.candidates:
            names = ",".join(self.candidates)
            raise ConfigError(f"--accel {names}: {IRQCHIP} and {DIRTY_RING} are for kvm; add it")

    @classmethod
    def parse(cls, text: str) -> AcceleratorChoice:
        """From what follows `--accel`: names, then `OPTION=VALUE` for `kvm`."""
        parts = text.split(",")
        options = [part for part in parts if "=" in part]
        names = tuple(part for part in parts if "=" not in part)
        kvm = _kvm_options(options, f"--accel {text!r}")
        if names == (AUTO,):
            return cls((), kvm)
        for name in names:
            if name in (IRQCHIP, DIRTY_RING):
                raise ConfigError(f"--accel {text!r}: {name} has no value; {_VALUES[name]}")
            if name not in ACCELERATORS:
                known = ", ".join((AUTO, *ACCELERATORS))
                raise ConfigError(
                    f"--accel {text!r}: there is: {known}, or a list such as kvm,soft"
                )
        if not names:
            raise ConfigError(f"--accel {text!r} names no accelerator; begin with kvm")
        if len(set(names)) < len(names):
            raise ConfigError(f"--accel {text!r} names one twice; give each once")
        return cls(names, kvm)


def _kvm_options(options: list[str], context: str) -> KvmOptions:
    values = dict[str, str]()
    for option in options:
        key, _, value = option.partition("=")
        if key not in (IRQCHIP, DIRTY_RING):
            raise ConfigError(f"{context}: {key!r} is none of {IRQCHIP} and {DIRTY_RING}")
        if key in values:
            raise ConfigError(f"{context} says {key} twice; give it once")
        values[key] = value
    irqchip = values.get(IRQCHIP)
    if irqchip not in (None, *IRQCHIPS):
        raise ConfigError(f"{context}: {_VALUES[IRQCHIP]}")
    ring = values.get(DIRTY_RING)
    if ring is not None and not (ring.isascii() and ring.isdecimal()):
        raise ConfigError(f"{context}: {_VALUES[DIRTY_RING]}")
    split = None if irqchip is None else irqchip == "split"
    return KvmOptions(split, None if ring is None else int(ring))
