"""The machine that would be built, as text: built on paper by the code that builds the real one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ostler.config import MachineConfig, NetConfig, VirtioShareConfig, format_size
from ostler.devices.serial import Unplugged
from ostler.devices.virtio.console import Port
from ostler.firmware.plan import E820_RAM, BootPlan
from ostler.machine import memory_map as at
from ostler.machine.board import Host
from ostler.machine.boot import plan_boot, unpack_streams
from ostler.machine.disks import GuestDisk, open_disks
from ostler.machine.networks import first_user, nets_of
from ostler.machine.paper import (
    PaperCable,
    PaperHardware,
    PaperMemory,
    PaperRequests,
    PaperTime,
    PaperWorkers,
)
from ostler.machine.plug import Plug, plug_in
from ostler.machine.virt import VirtBoard

NO_FD = -1


def describe(config: MachineConfig, accelerator: str, plugs: Sequence[Plug] = ()) -> str:
    """Memory map, I/O ports, interrupts and what is loaded where; several lines.

    Raises what building the machine would raise, without memory for a guest; whether `accelerator`
    can be had is not looked at.
    """
    plan = plan_boot(config)
    unpack_streams(plan, PaperMemory())
    with open_disks(config) as images:
        board = draw(config, images)
        try:
            plug_in(plugs, board)
            return "\n".join(_lines(config, accelerator, board, plan))
        finally:
            board.close()


def draw(config: MachineConfig, images: Sequence[GuestDisk] = ()) -> VirtBoard:
    """The board on paper."""
    time = PaperTime()
    fds = (NO_FD, NO_FD)
    host = Host(
        serial=Unplugged(),
        timers=time,
        wall=time,
        requests=PaperRequests(),
        workers=PaperWorkers(),
        images=images,
        console_fds=fds,
        vsock=(NO_FD, ""),
        cables=[PaperCable(net) for net in nets_of(config)],
        ports=[Port(port.name, *fds) for port in config.consoles],
    )
    return VirtBoard(config, PaperHardware(), host)


def _lines(
    config: MachineConfig, accelerator: str, board: VirtBoard, plan: BootPlan
) -> Iterator[str]:
    memory = format_size(config.memory.size_bytes)
    yield f"machine   virt: {config.cpu.count} CPU, {memory} of memory"
    yield f"accel     {accelerator}"
    yield f"cpu       {config.cpu.model}"
    yield f"kernel    {config.kernel} ({plan.protocol}), entry {plan.regs.rip:#x}"
    if config.append:
        yield f"append    {config.append}"
    yield from _section("guest memory", _memory_rows(config))
    yield from _section("loaded into it", _load_rows(plan))
    yield from _section("memory-mapped I/O", _range_rows(board, "mmio"))
    yield from _section("I/O ports", _range_rows(board, "pio"))
    yield from _section("interrupts", _interrupt_rows(board))
    yield from _section("PCI", _pci_rows(config, board))
    if nets := nets_of(config):
        yield from _section("network", _network_rows(config, nets))
    if shares := [device for device in config.devices if isinstance(device, VirtioShareConfig)]:
        yield from _section("shared directories", map(_share_row, shares))


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield ""
    yield title
    for place, what in rows:
        yield f"  {place:<24} {what}"


def _span(base: int, size: int, digits: int) -> str:
    return f"{base:#0{digits + 2}x}-{base + size - 1:#0{digits + 2}x}"


def _memory_rows(config: MachineConfig) -> Iterator[tuple[str, str]]:
    for row in at.e820(config.memory.size_bytes):
        kind = "RAM" if row.kind == E820_RAM else "reserved"
        yield _span(row.base, row.size, 9), f"{kind} {format_size(row.size)}"


def _load_rows(plan: BootPlan) -> Iterator[tuple[str, str]]:
    for load in plan.loads:
        yield _span(load.gpa, load.end - load.gpa, 9), load.what


def _range_rows(board: VirtBoard, space: str) -> Iterator[tuple[str, str]]:
    digits = 4 if space == "pio" else 9
    for taken in board.bus.ranges:
        if taken.space == space:
            yield _span(taken.base, taken.size, digits), taken.name


def _interrupt_rows(board: VirtBoard) -> Iterator[tuple[str, str]]:
    for gsi, users in sorted(board.lines.users.items()):
        yield f"IRQ {gsi}", ", ".join(users)


def _network_rows(config: MachineConfig, nets: Sequence[NetConfig]) -> Iterator[tuple[str, str]]:
    for number, net in enumerate(nets):
        mac = net.mac or "an address of the registry"
        yield f"net{number}", f"{str(net).removeprefix('--net ')}, {mac}"
    for port in config.publish:
        target = f"port {port.guest_port} of the guest, by net{first_user(nets)}"
        yield f"{port.address}:{port.port}/{port.protocol}", target


def _share_row(share: VirtioShareConfig) -> tuple[str, str]:
    return share.mount_tag, f"{share.path}{' (readonly)' if share.readonly else ''}"


def _pci_rows(config: MachineConfig, board: VirtBoard) -> Iterator[tuple[str, str]]:
    names = {id(device): name for name, device in board.devices.items()}
    for slot, device in sorted(board.pci.slots.items()):
        name = names.get(id(device), device.name)
        number = name.removeprefix("disk")
        what = f"disk {config.disks[int(number)].path}" if number.isdigit() else name
        yield f"00:{slot:02x}.0", what
