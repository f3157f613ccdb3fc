"""`ostler run`: boot a kernel and be its serial console."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec.structs import replace

from ostler.cli.declare import Option, echo
from ostler.config import (
    AcceleratorChoice,
    CpuConfig,
    DiskConfig,
    MachineConfig,
    MemoryConfig,
    PortConfig,
    PortKind,
    PublishConfig,
    SerialConfig,
    SoftJit,
    VirtioShareConfig,
    VirtioVsockConfig,
    parse_device,
    parse_nets,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ostler.machine.plug import Plug


def cpu_help(text: str) -> str:
    """List the models and end for `--cpu help`, whatever else is given or missing."""
    if text == "help":
        import typer

        from ostler.control.cpu_models import describe

        echo(describe())
        raise typer.Exit
    return text


def run(
    kernel: Annotated[
        Path,
        Option(
            "--kernel",
            metavar="FILE",
            help="The kernel: a bzImage (vmlinuz), an ELF image or a multiboot image."
            " Example: --kernel /boot/vmlinuz",
        ),
    ],
    initrd: Annotated[
        Path | None,
        Option(
            "--initrd",
            metavar="FILE",
            help="What the kernel starts from; `ostler image initramfs` makes one."
            " Example: --initrd initrd.gz",
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        Option(
            "--disk",
            metavar="PATH[,OPTION=...]",
            help="A virtio disk, /dev/vda in Linux; repeat it for more. Options: readonly=on,"
            " overlay=on (throw away what is written), serial=TEXT, format=NAME (else guessed),"
            " discard=off, cache=writethrough, none, directsync or unsafe, queues=N, packed=off,"
            " bps=SIZE and iops=N (at most so much a second), key_file=PATH (LUKS), bus=scsi"
            " (/dev/sda; target=N, lun=N), media=cdrom (/dev/sr0)."
            " Example: --disk root.img --disk data.img,readonly=on",
        ),
    ] = None,
    append: Annotated[
        str,
        Option(
            "--append",
            metavar="TEXT",
            help="The kernel's command line; a panic of Linux ends the machine by panic=-1 or the"
            " pvpanic driver, else Linux stops there. Example: --append 'console=ttyS0 panic=-1'",
        ),
    ] = "",
    memory: Annotated[
        str,
        Option(
            "--memory",
            metavar="SIZE[,force=on]",
            help="The guest's RAM; K, M, G and T are binary. force=on allows more than Linux could"
            " start with on this host. Example: --memory 4G",
        ),
    ] = "512M",
    cpus: Annotated[
        str, Option("--cpus", metavar="N", help="How many CPUs the guest has. Example: --cpus 2")
    ] = "1",
    cpu: Annotated[
        str,
        Option(
            "--cpu",
            metavar="MODEL[,+FEATURE][,-FEATURE]",
            help="Which processor the guest sees: host (the default), max, x86-64-v1 to -v4, or a"
            " processor by name; `--cpu help` lists models and features, and what this host lacks."
            " Example: --cpu x86-64-v3,-avx2",
            callback=cpu_help,
            is_eager=True,
        ),
    ] = "host",
    device: Annotated[
        list[str] | None,
        Option(
            "--device",
            metavar="KIND[,OPTION=...]",
            help="Add a device; repeat it for more. Kinds: debug-exit (iobase=PORT; a write of V"
            " ends the VM with exit code V*2+1), virtio-rng (rate=BYTES/S), virtio-console,"
            " virtio-balloon, virtio-mem (size=BYTES), virtio-keyboard, virtio-tablet,"
            " virtio-vsock (cid=N, path=PATH; --vsock is short for it),"
            " virtio-9p (path=DIR, mount_tag=TAG, readonly=on; --share), scsi-generic"
            " (path=/dev/sgN: the guest's SCSI commands go to that device of this host)."
            " Example: --device debug-exit,iobase=0xf4",
        ),
    ] = None,
    balloon: Annotated[
        bool,
        Option(
            "--balloon",
            help="Give memory that the guest frees back to the host, with a virtio-balloon.",
        ),
    ] = False,
    share: Annotated[
        list[str] | None,
        Option(
            "--share",
            metavar="DIR:TAG[,readonly=on]",
            help="Share a directory; the guest does `mount -t 9p -o trans=virtio TAG /mnt`. Repeat"
            " it for more. Example: --share src:source",
        ),
    ] = None,
    vsock: Annotated[
        str | None,
        Option(
            "--vsock",
            metavar="CID[,path=PATH]",
            help="Sockets between the guest, of the context id CID, and the host: write"
            " 'CONNECT <port>' to the unix socket PATH (NAME.vsock) to reach the guest; its"
            " connections to port n arrive at PATH_n. Example: --vsock 3",
        ),
    ] = None,
    plug: Annotated[
        list[str] | None,
        Option(
            "--plug",
            metavar="FILE.py[:FUNCTION]",
            help="Add devices of your own: FUNCTION (or plug) is called with the board at each"
            " boot; repeat it for more. Example: --plug docs/examples/virtio_device.py",
        ),
    ] = None,
    console: Annotated[
        list[str] | None,
        Option(
            "--console",
            metavar="NAME[=WHERE]",
            help="A port of a virtio console, /dev/virtio-ports/NAME in Linux; repeat it for more."
            " WHERE it leads: unix:PATH, a socket for one client at a time (if left out, GUEST.NAME"
            " here), or file:PATH. Example: --console org.qemu.guest_agent.0=unix:agent.sock",
        ),
    ] = None,
    net: Annotated[
        list[str] | None,
        Option(
            "--net",
            metavar="KIND[=TARGET][,OPTION=...]",
            help="A network card; repeat it for more. Kinds: user (the default; needs passt, but"
            " no root rights), tap=BRIDGE, macvtap=CARD, switch=NAME (machines of one process),"
            " socket=PATH (two machines, or QEMU's stream), dgram=PATH and udp=HOST:PORT (both with"
            " local=), none."
            " Options: mac=ADDRESS, model=virtio|e1000|rtl8139, queues=N, mtu=BYTES, pcap=FILE,"
            " hash=on, packed=off; host=on with user: the guest reaches this host's 127.0.0.1 as"
            " its gateway; vhost=on|off with tap and macvtap under kvm: the host's kernel moves the"
            " frames (by default where it can)."
            " Example: --net tap=br0,queues=2 --net user,pcap=net.pcap",
        ),
    ] = None,
    publish: Annotated[
        list[str] | None,
        Option(
            "--publish",
            metavar="[ADDRESS:]PORT:GUEST_PORT[/udp]",
            help="Have a port of this host lead to one of the guest; repeat it for more. Without an"
            " address only this host reaches it. Example: --publish 2222:22",
        ),
    ] = None,
    serial: Annotated[
        str,
        Option(
            "--serial",
            metavar="WHERE",
            help="Where the guest's serial port leads: stdio, none or file:PATH."
            " Example: --serial file:boot.log",
        ),
    ] = "stdio",
    accel: Annotated[
        str,
        Option(
            "--accel",
            metavar="NAME[,OPTION=...]",
            help="What runs the guest's instructions: kvm (the host's CPU), soft (the software"
            " CPU), auto (kvm if it runs at the speed of a CPU, else soft), or a list of which the"
            " first that works is taken. Options for kvm: kernel-irqchip=split (PIC, IOAPIC and PIT"
            " in this process), dirty-ring-size=N. Example: --accel kvm,soft",
        ),
    ] = "auto",
    soft_jit: Annotated[
        str,
        Option(
            "--soft-jit",
            metavar="on|off",
            help="Whether the software CPU translates hot code to the host's, or interprets all of"
            " it. Example: --soft-jit off",
        ),
    ] = "on",
    name: Annotated[
        str, Option("--name", metavar="NAME", help="What to call the machine. Example: --name web1")
    ] = "guest",
    no_reboot: Annotated[
        bool, Option("--no-reboot", help="End when the guest resets, instead of rebooting.")
    ] = False,
    stats: Annotated[
        bool,
        Option(
            "--stats",
            help="Print at the end, on stderr: time in guest, kernel and user mode by vCPU, and"
            " exits by reason and by device.",
        ),
    ] = False,
    profile: Annotated[
        bool,
        Option(
            "--profile",
            help="Print at the end, on stderr, where the CPUs' time went: translated code,"
            " interpreter, translation, TLB misses, devices, idle; and the hottest guest code."
            " On the software CPU.",
        ),
    ] = False,
    symbols: Annotated[
        Path | None,
        Option(
            "--symbols",
            metavar="FILE",
            help="Names for --profile: a System.map, the guest's /proc/kallsyms or a vmlinux;"
            " by default the kernel's own. Example: --symbols System.map",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        Option(
            "--dry-run",
            help="Print the machine that would be built: accelerator, CPU, memory map, devices,"
            " interrupts.",
        ),
    ] = False,
) -> int:
    """Boot a kernel in a virtual machine, with this terminal as its serial console.

    Example: ostler run --kernel vmlinuz --initrd initrd.gz --append "console=ttyS0 panic=-1"

    On a terminal, Ctrl-A x quits and Ctrl-A h shows what else there is. Input may also be a pipe or
    a file. Exit code: 0 when the guest powers off, 2 for bad input, 3 for a kernel panic or triple
    fault, what a debug-exit device says, 128 + N when signal N ended the machine, 141 (SIGPIPE)
    where nobody reads its output any more. SIGTERM presses the power button and ends the machine
    after 30 s; a second one ends it at once.
    """
    also = ["virtio-balloon"] if balloon else []
    config = MachineConfig(
        kernel=kernel,
        initrd=initrd,
        append=append,
        name=name,
        cpu=CpuConfig.parse(cpus, SoftJit.parse(soft_jit), cpu),
        memory=MemoryConfig.parse(memory),
        disks=tuple(DiskConfig.parse(text) for text in disk or ()),
        serial=SerialConfig.parse(serial),
        devices=(
            *(parse_device(text) for text in [*(device or ()), *also]),
            *_vsock(vsock, name),
            *(VirtioShareConfig.parse(text) for text in share or ()),
        ),
        consoles=tuple(_console(text, name) for text in console or ()),
        nets=parse_nets(net) if net else None,
        publish=tuple(PublishConfig.parse(text) for text in publish or ()),
        accelerator=AcceleratorChoice.parse(accel),
        reboot=not no_reboot,
        profile=profile,
        symbols=symbols,
    )
    plugs = _load_plugs(plug or [])
    if dry_run:
        return show(config, plugs)
    # What it imports is the larger part of what there is, and of no use for --dry-run or --help.
    from ostler.cli.foreground import start

    return start(config, plugs, print_stats=stats)


def _vsock(text: str | None, name: str) -> list[VirtioVsockConfig]:
    """The device for `--vsock`, its socket in the working directory unless told otherwise."""
    if text is None:
        return []
    config = VirtioVsockConfig.parse(text)
    return [replace(config, path=config.path or f"{name}.vsock")]


def _console(text: str, name: str) -> PortConfig:
    """The port for `--console`, its socket in the working directory unless told otherwise."""
    config = PortConfig.parse(text)
    if config.path is not None:
        return config
    return PortConfig(config.name, PortKind.UNIX, Path(f"{name}.{config.name}"))


def _load_plugs(texts: list[str]) -> list[Plug]:
    if not texts:
        return []
    from ostler.machine.plug import load_plug

    return [load_plug(text) for text in texts]


def show(config: MachineConfig, plugs: Sequence[Plug]) -> int:
    """Print the machine on paper, unless this host could not run it."""
    from ostler.control.accelerator import choose
    from ostler.control.session import check_processor
    from ostler.machine.describe import describe

    accelerator = choose(config.accelerator, config.cpu.count).name
    check_processor(accelerator, config.cpu)
    echo(describe(config, accelerator, plugs))
    return 0
