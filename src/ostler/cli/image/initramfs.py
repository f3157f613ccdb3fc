"""`ostler image initramfs`: make what a guest starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ostler.cli.declare import Option, echo
from ostler.errors import ConfigError
from ostler.image import COMPRESSIONS, Initramfs, ModuleTree


def initramfs(
    output: Annotated[Path, Option("-o", "--output", metavar="OUT", help="Where the image goes.")],
    directory: Annotated[
        list[Path] | None,
        Option("--dir", metavar="DIR", help="Add all that is under DIR. Repeatable."),
    ] = None,
    file: Annotated[
        list[str] | None,
        Option(
            "--file", metavar="SRC:DST", help="Add the file SRC as DST, /bin/tool say. Repeatable."
        ),
    ] = None,
    init: Annotated[
        Path | None,
        Option("--init", metavar="SCRIPT", help="Make SCRIPT the first program, /init."),
    ] = None,
    modules: Annotated[
        str | None,
        Option(
            "--modules",
            metavar="NAME,...",
            help="Add kernel modules and all they need; their order is listed in "
            "/etc/modules.order.",
        ),
    ] = None,
    kernel_modules: Annotated[
        Path | None,
        Option(
            "--kernel-modules",
            metavar="DIR",
            help="Where --modules are looked up, /lib/modules/VERSION say.",
        ),
    ] = None,
    compression: Annotated[
        str,
        Option("--compress", metavar="HOW", help=f"One of {', '.join(COMPRESSIONS)}."),
    ] = "gzip",
) -> None:
    """Write an initramfs (newc cpio) from files, directories and kernel modules.

    It needs no root, and the same input gives the same bytes.

    Example: ostler image initramfs --init init.sh --file /bin/busybox:/bin/busybox
    --modules virtio_pci,virtio_blk --kernel-modules /lib/modules/$(uname -r) -o initrd.gz
    """
    built = Initramfs()
    for root in directory or []:
        built.archive.add_tree(root)
    for pair in file or []:
        source, target = _split_pair(pair)
        built.archive.add_file(target, source)
    if init is not None:
        built.add_init(init)
    if modules is not None:
        built.add_modules(_tree(kernel_modules), filter(None, modules.split(",")))
    size = built.write(output, compression)
    echo(f"{output}: {size / 1024:.0f} KiB, {compression}")
    problem = built.problem()
    if problem is not None:
        echo(f"ostler: warning: {output}: {problem}", err=True)


def _split_pair(pair: str) -> tuple[Path, str]:
    source, colon, target = pair.rpartition(":")
    if not colon or not source or not target:
        raise ConfigError(f"--file {pair}: give SRC:DST, /bin/busybox:/bin/sh say")
    return Path(source), target


def _tree(directory: Path | None) -> ModuleTree:
    if directory is None:
        raise ConfigError("--modules: where from? Add --kernel-modules /lib/modules/VERSION")
    return ModuleTree(directory)
