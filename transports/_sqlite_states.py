"""The states of keys in a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import StateLost, StateNotWritten
from ._envelope import Envelope
from ._sqlite_file import SqliteFile
from ._state_store import (
    MOST_HANDLED,
    SECONDS_HANDLED,
    Change,
    Handled,
    MessageIdentity,
    StateStore,
    StoredKey,
)
from ._stored_envelopes import envelopes_from_bytes, envelopes_to_bytes

__all__ = ["SqliteStates"]

T = TypeVar("T")
_KIND = 0x53505354
_VERSION = 1
_SCHEMA = (
    """CREATE TABLE state (
        actor TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL,
        wake REAL, PRIMARY KEY (actor, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX state_wake ON state (actor, wake) WHERE wake IS NOT NULL",
    """CREATE TABLE handled (
        n INTEGER PRIMARY KEY AUTOINCREMENT, actor TEXT NOT NULL, name BLOB, digest BLOB,
        at REAL NOT NULL, stage INTEGER NOT NULL, outputs BLOB
    )""",
    """CREATE UNIQUE INDEX handled_message ON handled (name, digest)
        WHERE name IS NOT NULL""",
    "CREATE INDEX handled_unsent ON handled (n) WHERE stage = 0",
)
# The stages of a message that was handled: its outputs may have to be sent; it may come again.
_UNSENT, _SENT, _ACKNOWLEDGED = 0, 1, 2


class SqliteStates(StateStore):
    """Keeps states in a SQLite file that this process alone may use.

    Args:
        path: the file.

    Raises:
        ConfigurationError: as for `SqliteFile`.
    """

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(
            path, kind=_KIND, version=_VERSION, schema=_SCHEMA, what="the file of states"
        )
        # Of those up to this one nothing is left that may be forgotten because there are too many.
        self._surplus: int = self._file.transaction(_first_acknowledged) - 1

    def load(self, actor: str, keys: Iterable[str]) -> Mapping[str, StoredKey]:
        """See `StateStore.load`."""

        def select(database: sqlite3.Connection) -> dict[str, StoredKey]:
            found: dict[str, StoredKey] = {}
            for key in keys:
                row = database.execute(
                    "SELECT value, revision FROM state WHERE actor = ? AND key = ?",
                    (actor, _bytes(key)),
                ).fetchone()
                if row is not None:
                    found[key] = StoredKey(*row)
            return found

        return self._read(select)

    def find(self, message: MessageIdentity) -> Handled | bool:
        """See `StateStore.find`."""

        def select(database: sqlite3.Connection) -> tuple[Any, bool]:
            row = database.execute(
                "SELECT n, actor, at, outputs FROM handled WHERE name = ? AND digest = ?",
                (message.name, message.digest),
            ).fetchone()
            if row is not None:
                return row, False
            # There may be very many of them.
            other = database.execute(
                "SELECT 1 FROM handled WHERE name = ? LIMIT 1", (message.name,)
            ).fetchone()
            return None, other is not None

        row, reused = self._read(select)
        if row is None:
            return reused
        number, actor, at, outputs = row
        return Handled(number, actor, at, self._decoded(outputs))

    def commit(
        self, changes: Sequence[Change], sent: Sequence[int], acknowledged: Sequence[int] = ()
    ) -> Sequence[int | None]:
        """See `StateStore.commit`."""

        def write(database: sqlite3.Connection) -> list[int | None]:
            numbers = _write(database, changes)
            _advance(database, sent, _SENT)
            _advance(database, acknowledged, _ACKNOWLEDGED)
            self._forget_some(database, numbers)
            return numbers

        try:
            numbers = self._file.transaction(write)
        except sqlite3.Error as error:
            raise self._not_written(error) from error
        try:
            self._file.sync()
        except (sqlite3.Error, OSError) as error:
            # What was written can be read here, and may not be there after a loss of power.
            raise StateLost(
                f"{self._file.name} cannot be synchronised with its disk ({error}), so it is"
                " unknown what of it would survive: check the disk, and start again"
            ) from error
        return numbers

    def _forget_some(self, database: sqlite3.Connection, numbers: Sequence[int | None]) -> None:
        """Forget more of the oldest messages than come, if there are too many.

        `trim` would do so, too, but an hour may bring many millions, and nobody else has a turn
        while these are removed.
        """
        last = max((number for number in numbers if number is not None), default=0)
        upto = min(self._surplus + 2 * len(numbers), last - MOST_HANDLED)
        if upto > self._surplus:
            database.execute(
                "DELETE FROM handled WHERE n > ? AND n <= ? AND stage = ?",
                (self._surplus, upto, _ACKNOWLEDGED),
            )
            self._surplus = upto

    def first_due(self, actor: str, most: int) -> Sequence[tuple[str, float]]:
        """See `StateStore.first_due`."""

        def select(database: sqlite3.Connection) -> list[Any]:
            return database.execute(
                "SELECT key, wake FROM state WHERE actor = ? AND wake IS NOT NULL"
                " ORDER BY wake LIMIT ?",
                (actor, most),
            ).fetchall()

        return [(key.decode("utf-8", "surrogatepass"), wake) for key, wake in self._read(select)]

    def unsent(self) -> Sequence[Handled]:
        """See `StateStore.unsent`."""

        def select(database: sqlite3.Connection) -> list[Any]:
            return database.execute(
                "SELECT n, actor, at, outputs FROM handled WHERE stage = 0 ORDER BY n"
            ).fetchall()

        return [
            Handled(number, actor, at, self._decoded(outputs))
            for number, actor, at, outputs in self._read(select)
        ]

    def trim(self, now: float) -> None:
        """See `StateStore.trim`."""

        def delete(database: sqlite3.Connection) -> None:
            database.execute(
                "DELETE FROM handled WHERE stage = ? AND ("
                " at < min(?, (SELECT at FROM handled ORDER BY n DESC LIMIT 1)) - ?"
                " OR n <= (SELECT max(n) FROM handled) - ?)",
                (_ACKNOWLEDGED, now, SECONDS_HANDLED, MOST_HANDLED),
            )

        try:
            self._file.transaction(delete)
        except sqlite3.Error as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """See `StateStore.close`."""
        self._file.close()

    def _read(self, select: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._file.transaction(select)
        except sqlite3.Error as error:
            raise self._not_written(error) from error

    def _not_written(self, error: sqlite3.Error) -> StateNotWritten:
        if SqliteFile.is_full(error):
            text = f"there is no room on the disk for {self._file.name} ({error}): make room"
        else:
            text = f"{self._file.name} cannot be used: {error}; check the disk"
        return StateNotWritten(text)

    def _decoded(self, outputs: bytes | None) -> tuple[Envelope, ...]:
        if outputs is None:
            return ()
        return envelopes_from_bytes(outputs, self._file.name)


def _write(database: sqlite3.Connection, changes: Sequence[Change]) -> list[int | None]:
    numbers: list[int | None] = []
    for change in changes:
        where = change.actor, _bytes(change.key)
        # This process alone writes the file, so only what is written over is compared.
        if change.value is not None and _revision(database, where) != change.revision:
            numbers.append(None)
            continue
        name, digest = (
            (None, None) if change.message is None else (change.message.name, change.message.digest)
        )
        outputs = envelopes_to_bytes(change.outputs) if change.outputs else None
        cursor = database.execute(
            "INSERT INTO handled (actor, name, digest, at, stage, outputs)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (change.actor, name, digest, change.at, _UNSENT if outputs else _SENT, outputs),
        )
        if not cursor.rowcount:
            numbers.append(None)
            continue
        number = cursor.lastrowid
        assert number is not None
        numbers.append(number)
        if change.value:
            database.execute(
                "INSERT INTO state VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " value = excluded.value, revision = excluded.revision, wake = excluded.wake",
                (*where, change.value, number, change.wake),
            )
        elif change.value is not None:
            database.execute("DELETE FROM state WHERE actor = ? AND key = ?", where)
    return numbers


def _advance(database: sqlite3.Connection, numbers: Sequence[int], stage: int) -> None:
    if numbers:
        database.executemany(
            "UPDATE handled SET stage = ?, outputs = NULL WHERE n = ?",
            [(stage, n) for n in numbers],
        )
        # Without a name it is never looked for.
        database.executemany(
            "DELETE FROM handled WHERE n = ? AND name IS NULL", [(n,) for n in numbers]
        )


def _revision(database: sqlite3.Connection, where: tuple[str, bytes]) -> int:
    row = database.execute(
        "SELECT revision FROM state WHERE actor = ? AND key = ?", where
    ).fetchone()
    return 0 if row is None else int(row[0])


def _first_acknowledged(database: sqlite3.Connection) -> int:
    """Return the first number that is acknowledged; the next one if none is."""
    row = database.execute(
        "SELECT n FROM handled WHERE stage = ? ORDER BY n LIMIT 1", (_ACKNOWLEDGED,)
    ).fetchone()
    if row is None:
        row = database.execute("SELECT coalesce(max(n), 0) + 1 FROM handled").fetchone()
    return int(row[0])


def _bytes(key: str) -> bytes:
    # A key may have what no text in SQLite can have.
    return key.encode("utf-8", "surrogatepass")
