"""The file of a durable outbox: publishes that survive the process, until they are sent."""

from __future__ import annotations

import contextlib
import enum
import sqlite3
from asyncio import Future
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from ._envelope import Envelope
from ._outbox import size_of
from ._sqlite_file import SqliteFile
from ._stored_envelopes import UNREADABLE, stored_fields

__all__ = [
    "OUTBOX_FILE",
    "Row",
    "RowStatus",
    "Rows",
    "Unreadable",
    "is_wanted",
    "messages_in",
    "row_of",
]

OUTBOX_FILE = "the outbox file"

_KIND = 0x53504F42
_VERSION = 1
_DECODER = msgspec.msgpack.Decoder(Envelope)
_SCHEMA = (
    "CREATE TABLE outbox (n INTEGER PRIMARY KEY, expires REAL, size INTEGER NOT NULL,"
    " message BLOB NOT NULL)"
)


class RowStatus(enum.Enum):
    """What is known of a message that was given to a durable outbox."""

    UNWRITTEN = enum.auto()
    """It is on its way to the file."""
    WRITTEN = enum.auto()
    """It is in the file, and survives the process."""
    FAILED = enum.auto()
    """It could not be written, as its sender was told."""


class Row:
    """One message of a durable outbox.

    Attributes:
        n: its place in the order.
        envelope: the message.
        expires: when it expires, in seconds since 1970; None for never.
        size: as the outbox counts it.
        status: see `RowStatus`.
        recorded: done when it would survive a loss of power; None for messages from the file.
        awaited: whether somebody waits for that, and can be told what is wrong.
    """

    __slots__ = ("awaited", "envelope", "expires", "n", "recorded", "size", "status")

    def __init__(
        self,
        n: int,
        envelope: Envelope,
        expires: float | None,
        size: int,
        recorded: Future[None] | None = None,
    ) -> None:
        self.n = n
        self.envelope = envelope
        self.expires = expires
        self.size = size
        self.status = RowStatus.UNWRITTEN if recorded is not None else RowStatus.WRITTEN
        self.recorded = recorded
        self.awaited = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One message in the file that cannot be read.

    Attributes:
        n: its place in the order.
        size: as the outbox counts it; 0 if that cannot be read, either.
        why: in words.
    """

    n: int
    size: int
    why: str


class Rows:
    """The messages in the file of a durable outbox. For any thread.

    Args:
        path: the file.

    Attributes:
        last: the highest place that a message in the file had when it was opened.
        count: how many messages there were then.
        size: bytes of them.

    Raises:
        ConfigurationError: as for `SqliteFile`.
    """

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(
            path, kind=_KIND, version=_VERSION, schema=(_SCHEMA,), what=OUTBOX_FILE
        )
        self.last, self.count, self.size = self._file.transaction(
            lambda database: database.execute(
                "SELECT coalesce(max(n), 0), count(*), coalesce(sum(size), 0) FROM outbox"
            ).fetchone()
        )

    def add(self, rows: Sequence[Row]) -> None:
        """Write messages, so that they survive the process; raises sqlite3.Error."""
        values = [
            (row.n, row.expires, row.size, msgspec.msgpack.encode(stored_fields(row.envelope)))
            for row in rows
        ]

        def insert(database: sqlite3.Connection) -> None:
            database.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?)", values)

        self._file.transaction(insert)

    def remove(self, places: Sequence[int]) -> None:
        """Forget messages; raises sqlite3.Error."""

        def delete(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM outbox WHERE n = ?", [(n,) for n in places])

        self._file.transaction(delete)

    def sync(self) -> None:
        """Wait until all of it would survive a loss of power; raises OSError, sqlite3.Error."""
        self._file.sync()

    def tidy(self) -> None:
        """Keep the log of the file short, without `sync`; raises OSError."""
        self._file.tidy()

    def read(self, after: int, upto: int, most: int, most_bytes: int) -> list[Row | Unreadable]:
        """Return the messages at the next places, in order: so many, or so many bytes.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        found: list[tuple[int, Any, Any, Any]] = []

        def select(database: sqlite3.Connection) -> None:
            size = 0
            for row in database.execute(
                "SELECT n, expires, size, message FROM outbox WHERE n > ? AND n <= ?"
                " ORDER BY n LIMIT ?",
                (after, upto, most),
            ):
                found.append(row)
                # What is in a damaged file may be of any type.
                size += len(row[3]) if isinstance(row[3], bytes | str) else 0
                if size >= most_bytes:
                    break

        self._file.transaction(select)
        return [_read(*row) for row in found]

    def close(self) -> None:
        """Release the file. Never raises."""
        self._file.close()


def messages_in(path: Path) -> int | None:
    """Return how many messages an outbox file has; None if it is in use, or cannot be read."""
    try:
        with contextlib.closing(
            # Nothing is created if it has gone meanwhile.
            sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=0.0)
        ) as database:
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            (kind,) = database.execute("PRAGMA application_id").fetchone()
            if kind != _KIND:
                return None
            (count,) = database.execute("SELECT count(*) FROM outbox").fetchone()
    except sqlite3.Error:
        return None
    return int(count)


def _read(n: int, expires: Any, size: Any, message: Any) -> Row | Unreadable:
    counted = size if isinstance(size, int) else 0
    try:
        envelope = _DECODER.decode(message)
        if not isinstance(size, int) or not isinstance(expires, float | None):
            raise TypeError("its size or its expiry is not a number")
    except (*UNREADABLE, TypeError) as error:
        return Unreadable(n, counted, str(error))
    return Row(n, envelope, expires, size)


def is_wanted(row: Row) -> bool:
    """Return whether somebody is still to learn what becomes of a message."""
    return row.recorded is not None and not row.recorded.done()


def row_of(n: int, envelope: Envelope, now: float, recorded: Future[None]) -> Row:
    """Return a message that is to be written, in seconds since 1970."""
    expires = None if envelope.expiry is None else now + envelope.expiry
    return Row(n, envelope, expires, size_of(envelope), recorded)
