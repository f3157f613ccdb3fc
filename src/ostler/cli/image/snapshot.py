"""`ostler image snapshot`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import ConfigError, DiskError

Name = str | None


def snapshot(
    filename: Annotated[str, Argument(metavar="FILE", help="The image.")],
    show: Annotated[
        bool, Option("-l", "--list", help="List them; what happens by default.")
    ] = False,
    create: Annotated[
        Name, Option("-c", metavar="NAME", help="Keep the disk as it is now.")
    ] = None,
    apply: Annotated[Name, Option("-a", metavar="NAME", help="Go back to a snapshot.")] = None,
    delete: Annotated[Name, Option("-d", metavar="NAME", help="Forget a snapshot.")] = None,
    format: opt.Format = None,
    quiet: opt.Quiet = False,
    shared: opt.Shared = False,
    key_file: opt.KeyFile = None,
) -> int:
    """List, make, apply or delete the internal snapshots of an image.

    Example: ostler image snapshot -c before-upgrade disk.qcow2
    """
    from ostler.block.image import Snapshotting, open_image
    from ostler.cli.image.info import snapshot_facts, snapshot_table

    given = [name for name in (create, apply, delete) if name is not None]
    if len(given) + show > 1:
        raise ConfigError("snapshot: give one of -l, -c, -a and -d")
    readonly, secret = not given, opt.secret_of(key_file)
    with open_image(
        filename,
        format=format,
        readonly=readonly,
        backing=not readonly,
        lock=not shared,
        secret=secret,
    ) as image:
        if not isinstance(image, Snapshotting):
            raise DiskError(
                f"{filename}: images of format {image.format} keep no snapshots; convert it"
            )
        if create is not None:
            # As qemu-img has it, names may be given twice: there are ids.
            image.snapshot(create, again=True)
        elif apply is not None:
            image.apply_snapshot(apply)
        elif delete is not None:
            image.delete_snapshot(delete)
        elif image.snapshots:
            facts = [snapshot_facts(each) for each in image.snapshots]
            echo(f"Snapshot list:\n{snapshot_table(facts)}")
    return 0
