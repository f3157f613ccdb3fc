"""A virtual machine as an object: start it, talk to it, see how it ends.

with VM(kernel="vmlinuz", initrd="initrd.gz", append="console=ttyS0") as vm:
    vm.serial.wait_for("login:")
    vm.serial.write("root\\n")
    vm.power_button()
    print(vm.wait())
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ostler.block.live import LiveImage
from ostler.config import (
    AcceleratorChoice,
    CpuConfig,
    DeviceConfig,
    DiskConfig,
    MachineConfig,
    MemoryConfig,
    NetConfig,
    PortConfig,
    PublishConfig,
    SoftJit,
    VirtioShareConfig,
    format_size,
    parse_device,
    parse_nets,
)
from ostler.config.several import several
from ostler.control.accelerator import choose
from ostler.control.balloon import Balloon
from ostler.control.console import SerialConsole
from ostler.control.hotplug import Hotplug
from ostler.control.network import NetworkCard
from ostler.control.outcome import Ending, Outcome, of_vcpu_exit
from ostler.control.parameters import told_as_made, told_by_parameters
from ostler.control.ports import Consoles, Ends, open_ends
from ostler.control.records import Records
from ostler.control.reports import Reports, log
from ostler.control.requests import (
    DebugExit,
    HostRequest,
    HostReset,
    HostShutdown,
    HostStop,
    Mailbox,
    Panic,
    PowerOff,
    Request,
    Reset,
    SessionRequests,
    VcpuExit,
)
from ostler.control.session import Outside, Session
from ostler.control.stats import VmStats
from ostler.control.threads import NamedThread
from ostler.control.vsock import Vsock, open_vsock
from ostler.devices.device import GuestMemory
from ostler.engine import NetLinks
from ostler.errors import ConfigError, OstlerError, WaitTimeout
from ostler.host.accelerator import Decision
from ostler.host.admission import admit_memory
from ostler.host.view import HostView
from ostler.machine.boot import doubt_initrd
from ostler.machine.disks import GuestDisk, open_disks
from ostler.machine.networks import Network, open_networks
from ostler.machine.plug import Plug
from ostler.machine.virt import NetDevice
from ostler.waiting import wait_in_slices

if TYPE_CHECKING:
    from ostler.control.profile import VmProfile

NOT_STARTED = "this VM has not been started; call start or use it in a with"
Disk = str | PathLike[str] | DiskConfig


class VM:
    """One virtual machine; it runs from `start`, or the `with` statement, until it has ended.

    `kernel` is a bzImage, ELF or multiboot image. `disks`, `devices`, `shares`, `consoles`, `net`
    and `publish` take one or several, as texts of `ostler run` (`"disk.img,readonly=on"`) or as
    models of `ostler.config`; `disks` takes paths, too; `net="none"` is no network, by default
    there is a user mode one where the host has passt; `consoles="agent"` is `vm.console["agent"]`.
    `memory` is `512M`, `4G` or bytes; `cpu` a model with features on and off, `x86-64-v3,-avx2`.
    With `profile`, `vm.profile()` tells where time goes, with names from `symbols` (a System.map).
    `accelerator` is what follows `--accel`: `kvm,kernel-irqchip=split`. With `reboot` false, a
    reset ends the machine. Each of `plug` is called with the board at every boot, to add devices of
    your own to it. `ConfigError` and `HostError` come from `start`, or from here where a value
    alone is wrong.

    `serial` is the first serial port, `hvc` the console of a `virtio-console` device, `console` has
    its named ports, `balloon` is the memory balloon of a `virtio-balloon`, `hotplug` the room of a
    `virtio-mem`, `vsock` the sockets of a `virtio-vsock`, `net` the network cards, `disks` the
    disks. Nothing is printed: `accelerator.note` says where the guest does not run on what was
    hoped for, and `on_report` is called with such lines.
    """

    @told_by_parameters
    def __init__(
        self,
        kernel: str | PathLike[str],
        *,
        initrd: str | PathLike[str] | None = None,
        append: str = "",
        disks: Disk | Iterable[Disk] = (),
        devices: str | DeviceConfig | Iterable[str | DeviceConfig] = (),
        shares: str | VirtioShareConfig | Iterable[str | VirtioShareConfig] = (),
        consoles: str | PortConfig | Iterable[str | PortConfig] = (),
        net: str | NetConfig | Iterable[str | NetConfig] | None = None,
        publish: str | PublishConfig | Iterable[str | PublishConfig] = (),
        memory: str | int = "512M",
        cpus: str | int = 1,
        cpu: str = "host",
        accelerator: str = "auto",
        soft_jit: str = "on",
        reboot: bool = True,
        profile: bool = False,
        symbols: str | PathLike[str] | None = None,
        name: str = "guest",
        plug: Plug | Iterable[Plug] = (),
    ) -> None:
        config = MachineConfig(
            kernel=Path(kernel),
            initrd=None if initrd is None else Path(initrd),
            append=append,
            name=name,
            cpu=CpuConfig.parse(cpus, SoftJit.parse(soft_jit), cpu),
            memory=MemoryConfig.parse(memory),
            disks=several(disks, DiskConfig.of, DiskConfig, "disks", texts=(str, PathLike)),
            devices=(
                *several(devices, parse_device, DeviceConfig, "devices"),
                *several(shares, VirtioShareConfig.parse, VirtioShareConfig, "shares"),
            ),
            consoles=several(consoles, PortConfig.parse, PortConfig, "consoles"),
            nets=None if net is None else parse_nets(net),
            publish=several(publish, PublishConfig.parse, PublishConfig, "publish"),
            accelerator=AcceleratorChoice.parse(accelerator),
            reboot=reboot,
            profile=profile,
            symbols=None if symbols is None else Path(symbols),
        )
        self._begin(config, plug)
        self.in_python = True

    @classmethod
    def from_config(cls, config: MachineConfig, plug: Plug | Iterable[Plug] = ()) -> Self:
        """A machine as `config` says, with devices that each of `plug` adds to its board."""
        vm = cls.__new__(cls)
        vm._begin(config, plug)
        return vm

    def _begin(self, config: MachineConfig, plug: Plug | Iterable[Plug]) -> None:
        self.config = config
        self._plugs = (plug,) if callable(plug) else tuple(plug)
        self.serial = SerialConsole(NOT_STARTED)
        self.hvc = SerialConsole(NOT_STARTED)
        self.console = Consoles(config.consoles, NOT_STARTED)
        self._ends = Ends((), self.console)
        self._console_size: tuple[int, int] | None = None
        self.balloon = Balloon(self)
        self.hotplug = Hotplug(self)
        self.vsock = Vsock()
        self._mailbox: Mailbox = Mailbox()
        self._open = ExitStack()
        self._images: list[GuestDisk] = []
        self._accelerator: Decision | None = None
        self._networks: list[Network] = []
        self.on_report: Callable[[str], None] = log
        """Called with a line when the machine runs other than hoped for, or something on the host's
        side goes wrong; from any thread. By default it goes to the logger `ostler`."""
        self._reports = Reports()
        self._session: Session | None = None
        self._records = Records(config)
        self._boot = 0
        self._lock = threading.Lock()  # guards the session; held while one is replaced
        self._done = threading.Event()
        self._outcome: Outcome | None = None
        self._stop_at: float | None = None
        self._control = NamedThread(target=self._run, name="control", daemon=True)

    # -- life -------------------------------------------------------------------------------

    @told_as_made
    def start(self) -> None:
        """Build the machine and let it run. May be called once."""
        if self._control.ident is not None:
            raise ConfigError("this VM has been started already; make another one")
        warnings = admit_memory(self.config.memory, HostView()), doubt_initrd(self.config)
        try:
            self._accelerator = choose(self.config.accelerator, self.config.cpu.count)
            self._records.prepare(self._accelerator.name)
            # First: what it starts gets ready while the machine is built.
            name = self._accelerator.name
            networks = open_networks(self.config, NetLinks(), self._reports.add, name)
            self._networks = self._open.enter_context(networks)
            self._images = self._open.enter_context(open_disks(self.config))
            ends = open_ends(self.config.consoles, self.console)
            self._ends = self._open.enter_context(ends)
            self.vsock.end = self._open.enter_context(open_vsock(self.config))
            self._session = self._new_session()
            for console in (self.serial, self.hvc, self.console):
                console.begin()
            self._control.start()
        except BaseException:
            self._open.close()
            raise
        for said in filter(None, (*warnings, self._accelerator.note)):
            self.on_report(said)
        self._reports.release(lambda text: self.on_report(text))

    @property
    def disks(self) -> tuple[LiveImage, ...]:
        """In the order of the configuration; `ConfigError` while the machine does not run."""
        disks = tuple(disk.live for disk in self._images)
        if not self.running or len(disks) < len(self.config.disks):
            raise ConfigError("this VM does not run, so its disks are closed; ask while it does")
        return disks

    def pause(self) -> None:
        """Stop the guest's CPUs and clock; returns when none of them runs."""
        with self._lock:
            if self._session:
                self._session.pause()

    def resume(self) -> None:
        """Let a paused guest go on."""
        with self._lock:
            if self._session:
                self._session.resume()

    def power_button(self) -> None:
        """Press the power button, which asks the guest to shut down."""
        with self._lock:
            if self._session:
                self._session.board.pm.press_power_button()

    def send_break(self) -> None:
        """Send a break over the serial line; Linux takes it as the magic SysRq key."""
        with self._lock:
            if self._session:
                self._session.board.serial.send_break()

    def resize_console(self, columns: int, rows: int) -> None:
        """Tell the guest the size of the terminal `hvc` is shown in; safe in a signal handler."""
        self._console_size = (columns, rows)
        if (session := self._session) is not None:
            session.resize_console(self._console_size)

    def renew_generation(self) -> None:
        """Tell the guest that it is a copy, so that it draws new random numbers and identities."""
        with self._lock:
            if self._session:
                self._session.board.vmgenid.renew()

    def reset(self) -> None:
        """Reset the machine, as the button of that name does."""
        self._mailbox.put((self._boot, HostReset()))

    def shutdown(self, grace: float = 30) -> Outcome:
        """Press the power button, wait up to `grace` seconds for the guest, then end the machine.

        At once where the guest does not listen to the button.
        """
        self.ask_to_end(grace)
        return self.wait()

    def stop(self) -> Outcome:
        """End the machine at once, as pulling the plug does; returns how it ended."""
        self.ask_to_end(0)
        return self.wait()

    def ask_to_end(self, grace: float = 0) -> None:
        """Start what `shutdown` does, or `stop` without `grace`; safe in a signal handler.

        Asked for a second time, it ends the machine at once.
        """
        self._mailbox.put((self._boot, HostShutdown(grace) if grace else HostStop()))

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the machine has ended; `WaitTimeout` when it has not after `timeout` s."""
        if self._control.ident is None:
            raise ConfigError(NOT_STARTED)
        if not wait_in_slices(self._done.wait, timeout):
            raise WaitTimeout(f"the guest still runs after {timeout} s; stop it or wait longer")
        self._control.join()
        assert self._outcome is not None
        return self._outcome

    @property
    def memory(self) -> GuestMemory:
        """The guest's physical memory; `ConfigError` before `start` and after the end."""
        with self._lock:
            if self._session is None:
                raise ConfigError("this VM has no memory now; read it while the guest runs")
            return self._session.vm.memory

    def device(self, name: str) -> Any:
        """The device of that name on the board; `ConfigError` without one, or when none runs."""
        with self._lock:
            if self._session is None:
                raise ConfigError("this VM does not run; ask for its devices while it does")
            devices = self._session.board.devices
            if name not in devices:
                there_is = ", ".join(devices) or "none"
                raise ConfigError(f"this VM has no device {name!r}; there is: {there_is}")
            return devices[name]

    @property
    def accelerator(self) -> Decision:
        """What runs the guest, and where it is not what was hoped for, why (`note`).

        `ConfigError` before `start`.
        """
        if self._accelerator is None:
            raise ConfigError("this VM has no accelerator yet; start it")
        return self._accelerator

    def stats(self) -> VmStats:
        """Time in guest, kernel and user mode by vCPU, and exits, of all boots, over or not."""
        with self._lock:
            return self._records.stats(self._session)

    def profile(self) -> VmProfile:
        """Wall time by vCPU, activity and block of guest code, of all boots, with `profile`."""
        with self._lock:
            return self._records.profile(self._session)

    @property
    def net(self) -> list[NetworkCard]:
        """The network cards; `ConfigError` while the machine does not run."""
        if not self.running:
            raise ConfigError("this VM does not run; ask its network cards while it does")
        return [
            NetworkCard(network, partial(self._card, number))
            for number, network in enumerate(self._networks)
        ]

    def _card(self, number: int) -> NetDevice:
        with self._lock:
            if self._session is None:
                raise ConfigError("this VM does not run; ask its network cards while it does")
            return self._session.board.nets[number]

    @property
    def running(self) -> bool:
        """Whether the machine has been started and has not ended."""
        return self._control.ident is not None and not self._done.is_set()

    @property
    def listens_to_power_button(self) -> bool:
        """Whether the guest has taken charge of its power button."""
        with self._lock:
            return self._session is not None and self._session.board.pm.power_button_enabled

    def __repr__(self) -> str:
        state = "running" if self.running else f"ended: {self._outcome}"
        if self._control.ident is None:
            state = "not started"
        size = format_size(self.config.memory.size_bytes)
        return f"<VM {self.config.name!r}, cpus={self.config.cpu.count}, memory={size}, {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.running:
            self.stop()

    # -- the control thread -----------------------------------------------------------------

    def _new_session(self) -> Session:
        self._boot += 1
        requests = SessionRequests(self._mailbox, self._boot)
        end = self.vsock.end
        outside = Outside(self._images, self.serial, self.hvc, self._ends, end, self._plugs)
        session = Session(self.config, self.accelerator.name, outside, requests, self._networks)
        session.resize_console(self._console_size)
        session.start(requests.on_exit)
        return session

    def _run(self) -> None:
        outcome = Outcome(Ending.FAILURE, "the control thread met a defect")
        try:
            outcome = self._serve()
        except OstlerError as error:
            outcome = Outcome(Ending.FAILURE, str(error))
        finally:
            self._finish(outcome)

    def _serve(self) -> Outcome:
        outcome = None
        while outcome is None:
            try:
                boot, request = self._mailbox.get(timeout=self._patience())
            except queue.Empty:
                return Outcome(Ending.STOPPED, "the guest did not shut down in time")
            # What a boot that is over still asked for is void; what the owner asks for is not.
            if boot == self._boot or isinstance(request, HostRequest):
                outcome = self._act(request)
        return outcome

    def _patience(self) -> float | None:
        """Seconds until a shutdown that was asked for has taken too long."""
        return None if self._stop_at is None else max(self._stop_at - time.monotonic(), 0)

    def _shut_down(self, grace_s: float) -> Outcome | None:
        if self._stop_at is not None:
            return Outcome(Ending.STOPPED)
        if not self.listens_to_power_button:
            return Outcome(Ending.STOPPED, "the guest does not listen to its power button")
        self._stop_at = time.monotonic() + grace_s
        self.power_button()
        return None

    def _act(self, request: Request) -> Outcome | None:
        match request:
            case PowerOff():
                return Outcome(Ending.POWER_OFF)
            case Panic():
                return Outcome(Ending.PANIC, self._panic() or "")
            case DebugExit(code):
                return Outcome(Ending.DEBUG_EXIT, f"code {code}", code)
            case HostStop():
                return Outcome(Ending.STOPPED)
            case HostShutdown(grace_s):
                return self._shut_down(grace_s)
            case HostReset():
                self._reboot()
            case Reset(source):
                return self._guest_reset(source)
            case VcpuExit(number, exit):
                return of_vcpu_exit(number, exit, self._panic())
        return None

    def _guest_reset(self, source: str) -> Outcome | None:
        panic = self._panic()
        if panic is not None:
            return Outcome(Ending.PANIC, panic)
        if not self.config.reboot:
            return Outcome(Ending.RESET, f"by the {source}")
        self._reboot()
        return None

    def _panic(self) -> str | None:
        return self.serial.find_panic(self._session.printed_before) if self._session else None

    def _reboot(self) -> None:
        with self._lock:
            self._close_session()
            self._session = self._new_session()

    def _close_session(self) -> None:
        session, self._session = self._session, None
        if session:
            self._records.add(session)
            session.close()
            # Devices and their timers refer to each other, and by interrupt lines and disks to host
            # threads and locked files: those have to go now, not at some later collection.
            del session
            gc.collect()

    def _finish(self, outcome: Outcome) -> None:
        try:
            with self._lock:
                self._close_session()
            self._networks = []
            self._open.close()
        except OstlerError as error:
            outcome = outcome.with_disk_lost(error)
        finally:
            if outcome.ending is Ending.DISK_LOST:
                # What was raised refers to the file, which nobody is to find in use.
                gc.collect()
            self._outcome = outcome
            self.serial.end(f"the guest has ended ({outcome})")
            self.hvc.end(f"the guest has ended ({outcome})")
            self.console.end(f"the guest has ended ({outcome})")
            self._done.set()
