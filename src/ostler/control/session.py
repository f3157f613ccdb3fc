"""One boot: a board on an accelerator, its vCPUs and their threads, from power-up to its end.

A guest's reset ends one session and begins another, with everything made anew but the disks and the
console: no device, interrupt controller or page of memory can carry something over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ostler.config import CpuConfig, MachineConfig, VirtioConsoleConfig
from ostler.control.accelerator import new_machine
from ostler.control.console import SerialConsole
from ostler.control.pipes import ConsolePipes
from ostler.control.ports import Ends, PortEnds
from ostler.control.stats import VmStats, collect
from ostler.control.timers import TimerThread
from ostler.devices.requests import MachineRequests
from ostler.devices.virtio.console import VirtioConsole
from ostler.devices.virtio.transport import VirtioPci
from ostler.engine import Exit, Profiler, Vcpu, VirtioWorkers, VirtualMachine
from ostler.firmware.plan import BootPlan
from ostler.host.processor import Offer
from ostler.machine.board import Host
from ostler.machine.boot import acpi_tables, plan_boot, write_boot
from ostler.machine.disks import GuestDisk
from ostler.machine.networks import Network
from ostler.machine.plug import Plug, plug_in
from ostler.machine.virt import VirtBoard

# What the ids of an xAPIC tell apart, all ones being everybody.
XAPIC_CPUS = 255
X2APIC_ENABLED = 0xC00  # EXTD and EN of IA32_APIC_BASE


class HostTime:
    """The host's time of day."""

    def utc_ns(self) -> int:
        return time.time_ns()


@dataclass(frozen=True, slots=True)
class Outside:
    """What the owner has of a machine and every boot of it shares."""

    images: Sequence[GuestDisk]
    serial: SerialConsole
    hvc: SerialConsole
    ends: Ends
    vsock: tuple[int, str] | None = None
    plugs: Sequence[Plug] = ()


class Session:
    """A machine that is built and stands still until `start`; `close` takes it apart."""

    def __init__(
        self,
        config: MachineConfig,
        accelerator: str,
        outside: Outside,
        requests: MachineRequests,
        networks: Sequence[Network] = (),
    ) -> None:
        self.config, self.console = config, outside.serial
        self.printed_before = self.console.position()
        plan = plan_boot(config)
        kvm = config.accelerator.kvm.for_cpus(config.cpu.count)
        self.vm = new_machine(accelerator, kvm, config.cpu.soft_jit.value)
        self.timers = TimerThread(self.vm.clock)
        workers = VirtioWorkers(self.vm.memory)
        wants_hvc = any(isinstance(device, VirtioConsoleConfig) for device in config.devices)
        self._hvc = ConsolePipes(outside.hvc) if wants_hvc else None
        self._ports = PortEnds(outside.ends)
        fds = self._hvc.fds if self._hvc else None
        host = Host(
            serial=self.console,
            timers=self.timers,
            wall=HostTime(),
            requests=requests,
            workers=workers,
            images=outside.images,
            console_fds=fds,
            vsock=outside.vsock,
            cables=networks,
            ports=self._ports.ports,
        )
        self._networks = networks
        try:
            self.board = VirtBoard(config, self.vm, host)
            plug_in(outside.plugs, self.board)
            write_boot(plan, acpi_tables(config), self.vm.memory)
            self._vcpus = create_vcpus(self.vm, config.cpu)
            enter(self._vcpus[0], plan)
            self.profiler = Profiler(self._vcpus) if config.profile else None
        except BaseException:
            self.vm.close()
            if self._hvc:
                self._hvc.close()
            self._ports.close()
            raise

    def start(self, on_exit: Callable[[int, Exit], object]) -> None:
        """Let the guest run. `on_exit` is called on a vCPU's thread when that one cannot go on."""
        self.threads = self.vm.start(self._vcpus, on_exit, paused=True)
        self.console.connect(self.board.serial.input_ready)
        if self._hvc:
            self._hvc.start()
        self._ports.start()
        self.timers.start()
        for network, card in zip(self._networks, self.board.nets, strict=True):
            network.on_change = card.link_changed
        self.threads.resume()

    def resize_console(self, size: tuple[int, int] | None) -> None:
        """Tell the guest how many columns and rows its virtio console has, if that is known."""
        transport = self.board.devices.get("console")
        console = transport.device if isinstance(transport, VirtioPci) else None
        if size is not None and isinstance(console, VirtioConsole):
            console.resize(*size)

    def pause(self) -> None:
        """Stop the guest's CPUs and its clock."""
        self.threads.pause()
        self.timers.pause()

    def resume(self) -> None:
        """Let them go on."""
        self.timers.resume()
        self.threads.resume()

    def stats(self) -> VmStats:
        """What the vCPUs have done since `start`."""
        return collect(self.vm, self._vcpus)

    def close(self) -> None:
        """End the threads and give everything back."""
        self.console.disconnect()
        for network in self._networks:
            network.on_change = None
        self.threads.stop()
        if self.profiler:
            self.profiler.stop()
        self.timers.close()
        self.board.close()
        if self._hvc:
            self._hvc.close()
        self._ports.close()
        self.vm.close()


def offer_of(vm: VirtualMachine) -> Offer:
    """What the accelerator of `vm` has of CPUID."""
    return Offer(vm.accelerator, vm.supported_cpuid(), vm.supported_cpuid(everything=True))


def check_processor(accelerator: str, config: CpuConfig) -> None:
    """Refuse a processor that `accelerator` has not, as `create_vcpus` does."""
    if config.model.is_default:
        return
    vm = VirtualMachine(accelerator)
    try:
        offer_of(vm).processor(config.model)
    finally:
        vm.close()


def create_vcpus(vm: VirtualMachine, config: CpuConfig) -> list[Vcpu]:
    """The processors that `config` asks for; `ConfigError` where a feature is lacking."""
    processor = None if config.model.is_default else offer_of(vm).processor(config.model)
    vcpus = [vm.create_vcpu(number) for number in range(config.count)]
    for vcpu in vcpus:
        if processor is not None:
            vcpu.cpuid = processor.rows(vcpu.cpuid)
        if config.count > XAPIC_CPUS:
            # As firmware leaves them: Linux ignores ids past 254 that it finds in xAPIC mode.
            vcpu.set_sregs(apic_base=vcpu.sregs.apic_base | X2APIC_ENABLED)
    return vcpus


def enter(vcpu: Vcpu, plan: BootPlan) -> None:
    """Set the first CPU to where the plan says the kernel begins."""
    vcpu.regs = plan.regs
    vcpu.sregs = replace(plan.sregs, apic_base=vcpu.sregs.apic_base)
