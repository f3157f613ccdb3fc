"""`ostler image`: disk images and what guests start from, one file per verb.

The verbs for disks take the flags of `qemu-img`, print what it prints and end with its exit codes.
What they do is in `ostler.block`, which each loads when it runs.
"""

from __future__ import annotations

import typer

from ostler.cli.image.amend import amend
from ostler.cli.image.bench import bench
from ostler.cli.image.bitmap import bitmap
from ostler.cli.image.check import check
from ostler.cli.image.commit import commit
from ostler.cli.image.compare import compare
from ostler.cli.image.convert import convert
from ostler.cli.image.create import create
from ostler.cli.image.dd import dd
from ostler.cli.image.info import info
from ostler.cli.image.initramfs import initramfs
from ostler.cli.image.map import map_image
from ostler.cli.image.measure import measure
from ostler.cli.image.options import SignedCommand
from ostler.cli.image.rebase import rebase
from ostler.cli.image.resize import resize
from ostler.cli.image.serve import serve
from ostler.cli.image.snapshot import snapshot

app = typer.Typer(help="Make, inspect and change disk images.", no_args_is_help=True)


@app.callback()
def image() -> None:
    """Make, inspect and change disk images; the flags are those of qemu-img."""


app.command(cls=SignedCommand)(create)
app.command()(info)
app.command()(check)
app.command()(convert)
app.command()(compare)
app.command("map")(map_image)
app.command()(measure)
app.command()(bench)
app.command()(dd)
app.command(cls=SignedCommand)(resize)
app.command()(snapshot)
app.command()(rebase)
app.command()(commit)
app.command()(amend)
app.command()(bitmap)
app.command()(serve)
app.command()(initramfs)
