"""Mutates what the peers of an NBD connection say: `python -m fuzz.nbd --executions 100000`.

A sound conversation is recorded once. Then one side hears a damaged copy of what the other said: it
has to go on, or to end with an error of ours in one line, in time.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from fuzz.images import FINDINGS, FINDINGS_MAX, HURTFUL, SECONDS_MAX
from ostler.block import create_image, open_image
from ostler.block.image import Image
from ostler.block.nbd import client
from ostler.block.nbd.export import Export, bitmap_of
from ostler.block.nbd.negotiation import Negotiation
from ostler.block.nbd.protocol import Command
from ostler.block.nbd.session import Session
from ostler.block.nbd.uri import parse_url
from ostler.block.nbd.wire import Wire
from ostler.errors import OstlerError

DISK_BYTES = 1 << 20
URL = "nbd+unix:///?socket=/nobody"


class Ear:
    """A socket on which there is what it was made with, and then the end."""

    family = socket.AF_UNIX

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def recv_into(self, target: memoryview) -> int:
        """What is left of the content."""
        piece = self.content[self.at : self.at + len(target)]
        target[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)

    def sendall(self, *_: object) -> None:
        """Nobody listens."""

    def sendmsg(self, parts: list[memoryview]) -> int:
        """Nobody listens."""
        return sum(map(len, parts))

    def settimeout(self, *_: object) -> None:
        """It never waits."""

    setsockopt = shutdown = settimeout

    def close(self) -> None:
        """Nothing is held."""


class Tap:
    """A socket that keeps what came over it."""

    family = socket.AF_UNIX

    def __init__(self, real: socket.socket) -> None:
        self.real, self.heard = real, bytearray()

    def recv_into(self, target: memoryview) -> int:
        """As the socket does it."""
        count = self.real.recv_into(target)
        self.heard += target[:count]
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def exports(image: Image) -> dict[str, Export]:
    """The image, with a bitmap."""
    return {"": Export("", image, bitmaps={"map": bitmap_of(image, "map")})}


def serve(connection: Any, image: Image) -> None:
    """What the server's thread of a client does."""
    wire = Wire(cast(socket.socket, connection), 1.0)
    agreement = Negotiation(wire, exports(image)).run()
    if agreement.export is not None:
        Session(wire, agreement).run()


def use(connection: Any) -> None:
    """What the client does with a server."""
    with patch.object(client, "_connect", lambda address: connection):
        peer = client.Connection(parse_url(URL))
    length = min(4096, peer.terms.size_bytes)
    peer.read(0, memoryview(bytearray(length)))
    peer.write(0, memoryview(b"x" * 512))
    peer.states(0, max(length, 1))
    peer.command(Command.FLUSH, 0, 0)
    peer.read(0, memoryview(bytearray(length)))


def recorded(image: Image) -> tuple[bytes, bytes]:
    """What the client and what the server say."""
    ends = [Tap(end) for end in socket.socketpair()]
    thread = threading.Thread(target=lambda: serve(ends[0], image))
    thread.start()
    use(ends[1])
    ends[1].real.shutdown(socket.SHUT_RDWR)
    thread.join()
    for end in ends:
        end.real.close()
    return bytes(ends[0].heard), bytes(ends[1].heard)


def mutant(dice: random.Random, said: bytes) -> bytes:
    """A damaged copy."""
    damaged = bytearray(said)
    for _ in range(dice.choice((1, 1, 2, 4))):
        # Most of it is the data of a write or a read: what is small comes first.
        at = dice.randrange(min(len(damaged), dice.choice((64, 300, 1 << 20))))
        width, kind = dice.choice((1, 2, 4, 8)), dice.random()
        if kind < 0.3:
            damaged[at] ^= 1 << dice.randrange(8)
        elif kind < 0.7:
            value = (dice.choice(HURTFUL) + dice.choice((0, 0, 1, -1))) % (1 << 8 * width)
            damaged[at : at + width] = value.to_bytes(width)
        elif kind < 0.85:
            damaged[at:at] = damaged[at : at + dice.choice((4, 16, 28))]
        else:
            del damaged[at : at + dice.choice((1, 4, 16, 1 << 20))]
            damaged = damaged or bytearray(1)
    return bytes(damaged)


def run(side: str, executions: int, seed: int) -> Iterator[tuple[bytes, str]]:
    """Let one side, `client` or `server`, hear mutants; each finding with what is wrong."""
    dice = random.Random(f"{side} {seed}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "disk")
        create_image(path, DISK_BYTES)
        with open_image(path, unsafe=True) as image:
            image.record().add("map")  # type: ignore[attr-defined]  # it is qcow2
            heard = recorded(image)[side == "client"]
            act: Callable[[Any], None] = use
            if side == "server":
                act = lambda ear: serve(ear, image)  # noqa: E731 - the image is this one
            for _ in range(executions):
                damaged = mutant(dice, heard)
                if (what := _execute(act, damaged)) is not None:
                    yield damaged, what


def _execute(act: Callable[[Any], None], heard: bytes) -> str | None:
    began = time.thread_time()
    try:
        act(Ear(heard))
    except OstlerError as error:
        if "\n" in str(error):
            return f"more than one line: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    took = time.thread_time() - began
    return f"took {took:.1f} s" if took > SECONDS_MAX else None


def main() -> int:
    """Fuzz, print, keep findings."""
    parser = argparse.ArgumentParser(prog="fuzz.nbd", description=__doc__)
    parser.add_argument("--executions", type=int, default=20_000, help="for each side")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = 0
    for side in ("server", "client"):
        began = time.monotonic()
        for heard, what in islice(run(side, options.executions, options.seed), FINDINGS_MAX):
            found += 1
            FINDINGS.mkdir(parents=True, exist_ok=True)
            path = FINDINGS / f"nbd-{side}-{found}"
            path.write_bytes(heard)
            print(f"{path}: {what}")
        print(f"{side}: {options.executions} executions in {time.monotonic() - began:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
