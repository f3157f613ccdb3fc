"""MAC addresses, and the host's registry of them: no two cards of this host share one.

The first three bytes are 52:54:00, as everywhere with virtual machines, the rest is random. One
SQLite file says which machine has which address, while it runs or, where it has a name of its own,
for good: it gets the same address at its next start. What a process left behind that was killed is
reclaimed by its process number and start time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ostler.errors import ConfigError, HostError

PREFIX = bytes.fromhex("525400")
STATE_VARIABLE = "OSTLER_STATE_DIR"
SYSTEM_STATE = Path("/var/lib/ostler")
FILE_NAME = "macs.sqlite"
# How long a start waits for others that are starting.
PATIENCE_S = 10

SCHEMA = """
CREATE TABLE IF NOT EXISTS macs (
    mac TEXT PRIMARY KEY, vm TEXT NOT NULL, card INTEGER NOT NULL,
    keep INTEGER NOT NULL, pid INTEGER, started INTEGER
)
"""


def text(mac: bytes) -> str:
    """As people write it."""
    return mac.hex(":")


def random_mac() -> bytes:
    """A new address."""
    return PREFIX + os.urandom(3)


def registry_path() -> Path:
    """Where the registry is: one for root, one for each other user."""
    if chosen := os.environ.get(STATE_VARIABLE):
        return Path(chosen) / FILE_NAME
    if os.geteuid() == 0:
        return SYSTEM_STATE / FILE_NAME
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "ostler" / FILE_NAME


@dataclass(frozen=True, slots=True)
class Entry:
    """An address and whose it is; `pid` is the process in which that machine runs, if it does."""

    mac: str
    vm: str
    card: int
    keep: bool
    pid: int | None


class MacRegistry:
    """The file at `path`, which is made when it is needed first."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or registry_path()

    def claim(self, vm: str, card: int, *, wanted: bytes = b"", keep: bool = False) -> bytes:
        """An address for card number `card` of the machine `vm`, which runs in this process.

        With `keep`, the machine gets the same one again. `ConfigError` when the address `wanted`
        is another's, `HostError` when the registry cannot be used.
        """
        with self._transaction() as db:
            if wanted:
                _refuse_if_taken(db, vm, card, text(wanted), keep)
            mac = text(wanted) if wanted else _choose(db, vm, card, keep)
            if keep:
                db.execute(
                    "DELETE FROM macs WHERE vm = ? AND card = ? AND keep AND pid IS NULL",
                    (vm, card),
                )
            pid = os.getpid()
            row = (mac, vm, card, keep, pid, _start_time(pid))
            db.execute("INSERT OR REPLACE INTO macs VALUES (?, ?, ?, ?, ?, ?)", row)
        return bytes.fromhex(mac.replace(":", ""))

    def release(self, mac: bytes) -> None:
        """The machine has ended; a kept address stays its."""
        with self._transaction() as db:
            db.execute("UPDATE macs SET pid = NULL WHERE mac = ? AND keep", (text(mac),))
            db.execute("DELETE FROM macs WHERE mac = ? AND NOT keep", (text(mac),))

    def forget(self, vm: str) -> int:
        """Give up the addresses kept for `vm`, which does not run; how many there were."""
        with self._transaction() as db:
            done = db.execute("DELETE FROM macs WHERE vm = ? AND pid IS NULL", (vm,))
            return done.rowcount

    def entries(self) -> list[Entry]:
        """All addresses, by machine."""
        if not self.path.exists():
            return []
        with self._transaction() as db:
            rows = db.execute("SELECT mac, vm, card, keep, pid FROM macs ORDER BY vm, card, mac")
            return [Entry(mac, vm, card, bool(keep), pid) for mac, vm, card, keep, pid in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One change at a time, over all processes; what dead ones held is given back first."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(
                sqlite3.connect(self.path, timeout=PATIENCE_S, isolation_level=None)
            ) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("BEGIN IMMEDIATE")
                db.execute(SCHEMA)
                _reclaim(db)
                yield db
                db.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise HostError(
                f"the registry of MAC addresses {self.path}: {error};"
                f" name another directory in {STATE_VARIABLE}"
            ) from error


def _reclaim(db: sqlite3.Connection) -> None:
    rows = db.execute("SELECT mac, pid, started FROM macs WHERE pid IS NOT NULL").fetchall()
    for mac, pid, started in rows:
        if _start_time(pid) != started:
            db.execute("DELETE FROM macs WHERE mac = ? AND NOT keep", (mac,))
            db.execute("UPDATE macs SET pid = NULL WHERE mac = ?", (mac,))


def _refuse_if_taken(db: sqlite3.Connection, vm: str, card: int, mac: str, keep: bool) -> None:
    found = db.execute("SELECT vm, card, pid FROM macs WHERE mac = ?", (mac,)).fetchone()
    if found is None:
        return
    other, other_card, pid = found
    own = keep and (other, other_card) == (vm, card)
    if pid is None and own:
        return
    runs = f"runs as process {pid}" if pid is not None else "keeps it for its next start"
    cure = "leave mac= out" if pid is not None else f"or: ostler net mac forget {other}"
    raise ConfigError(
        f"--net mac={mac}: the machine {other} has it, and {runs}; give another {cure}"
    )


def _choose(db: sqlite3.Connection, vm: str, card: int, keep: bool) -> str:
    if keep:
        query = "SELECT mac FROM macs WHERE vm = ? AND card = ? AND keep AND pid IS NULL"
        found = db.execute(query, (vm, card)).fetchone()
        if found is not None:
            return str(found[0])
    while True:
        mac = text(random_mac())
        if db.execute("SELECT 1 FROM macs WHERE mac = ?", (mac,)).fetchone() is None:
            return mac


def _start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; `None` when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command, in parentheses, may hold anything; the start time is the 20th field after it.
    return int(stat.rpartition(")")[2].split()[19])
