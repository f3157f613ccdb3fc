"""`ostler image info`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt

if TYPE_CHECKING:
    from ostler.block.image import Image, Snapshot


def info(
    filename: Annotated[str, Argument(metavar="FILE", help="The image.")],
    format: opt.Format = None,
    output: opt.Output = "human",
    chain: Annotated[
        bool, Option("--backing-chain", help="Also show the images behind it.")
    ] = False,
    shared: opt.Shared = False,
    key_file: opt.KeyFile = None,
) -> int:
    """Show what an image is: format, sizes, backing file, snapshots.

    Example: ostler image info --output json disk.qcow2
    """
    from ostler.block.chain import layers
    from ostler.block.image import Opening, open_with

    as_json = opt.is_json(output)
    how = Opening(
        readonly=True,
        backing=chain,
        lock=not shared,
        secret=opt.secret_of(key_file),
        keyless=True,
    )
    with open_with(filename, format, how) as image:
        facts = [describe(layer) for layer in layers(image)]
    if as_json:
        opt.print_json(facts if chain else facts[0])
    else:
        echo("\n\n".join(_human(each) for each in facts))
    return 0


def describe(image: Image) -> dict[str, Any]:
    """The facts of an image by the names of QEMU's `ImageInfo`."""
    from ostler.block.chain import resolve
    from ostler.block.image import Inspectable, Layered, Snapshotting

    facts: dict[str, Any] = {}
    if isinstance(image, Snapshotting) and image.snapshots:
        facts["snapshots"] = [snapshot_facts(snapshot) for snapshot in image.snapshots]
    facts |= {"virtual-size": image.size_bytes, "filename": image.name, "format": image.format}
    if os.path.exists(image.name):
        facts["actual-size"] = os.stat(image.name).st_blocks * 512
    header: Any = getattr(image, "header", None)
    if hasattr(header, "cluster_bytes"):
        facts["cluster-size"] = header.cluster_bytes
    if isinstance(image, Inspectable):
        facts["format-specific"] = {"type": image.format, "data": image.format_specific()}
    if isinstance(image, Layered) and image.backing_reference is not None:
        reference = image.backing_reference
        facts["backing-filename"] = reference.filename
        facts["full-backing-filename"] = resolve(reference.filename, image.name)
        if reference.format is not None:
            facts["backing-filename-format"] = reference.format
    if image.format == "luks" or getattr(header, "crypt_method", None):
        facts["encrypted"] = True
    facts["dirty-flag"] = bool(int(getattr(header, "incompatible", 0)) & 1)
    return facts


def snapshot_facts(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot by the names of QEMU's `SnapshotInfo`."""
    facts = {
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_bytes,
        "date-sec": snapshot.date_ns // 10**9,
        "date-nsec": snapshot.date_ns % 10**9,
        "vm-clock-sec": snapshot.vm_clock_ns // 10**9,
        "vm-clock-nsec": snapshot.vm_clock_ns % 10**9,
    }
    return facts if snapshot.icount is None else facts | {"icount": snapshot.icount}


def snapshot_table(snapshots: list[dict[str, Any]]) -> str:
    """The snapshots as qemu-img lists them."""
    lines = [f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"]
    for each in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["date-sec"]))
        seconds, milliseconds = each["vm-clock-sec"], each["vm-clock-nsec"] // 10**6
        hours, rest = divmod(seconds, 3600)
        clock = f"{hours:02}:{rest // 60:02}:{rest % 60:02}.{milliseconds:03}"
        size = opt.human_size(each["vm-state-size"])
        icount = each.get("icount", "")
        lines.append(
            f"{each['id']:<9} {each['name']:<16} {size:>8} {date:>19} {clock:>12} {icount:>10}"
        )
    return "\n".join(line.rstrip() for line in lines)


def _human(facts: dict[str, Any]) -> str:
    size = facts["virtual-size"]
    lines = [
        f"image: {facts['filename']}",
        f"file format: {facts['format']}",
        f"virtual size: {opt.human_size(size)} ({size} bytes)",
    ]
    if "actual-size" in facts:
        lines.append(f"disk size: {opt.human_size(facts['actual-size'])}")
    if facts.get("encrypted"):
        lines.append("encrypted: yes")
    if "cluster-size" in facts:
        lines.append(f"cluster_size: {facts['cluster-size']}")
    lines += _human_backing(facts)
    if "snapshots" in facts:
        lines += ["Snapshot list:", snapshot_table(facts["snapshots"])]
    if "format-specific" in facts:
        lines.append("Format specific information:")
        lines += _human_data(facts["format-specific"]["data"], 4)
    return "\n".join(lines)


def _human_backing(facts: dict[str, Any]) -> list[str]:
    if "backing-filename" not in facts:
        return []
    line = f"backing file: {facts['backing-filename']}"
    if facts["full-backing-filename"] != facts["backing-filename"]:
        line += f" (actual path: {facts['full-backing-filename']})"
    format = facts.get("backing-filename-format")
    return [line] if format is None else [line, f"backing file format: {format}"]


def _human_data(data: Any, indent: int) -> list[str]:
    lines = []
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        name = " " * indent + (f"[{key}]" if isinstance(key, int) else key.replace("-", " ")) + ":"
        if isinstance(value, dict | list):
            lines += [name, *_human_data(value, indent + 4)]
        else:
            shown = str(value).lower() if isinstance(value, bool) else value
            lines.append(f"{name} {shown}")
    return lines
