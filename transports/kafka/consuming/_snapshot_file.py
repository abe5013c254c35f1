"""The file of a snapshot: states of keys as a changelog had them up to an offset."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..._sqlite_file import SqliteFile, remove_database

__all__ = ["Place", "SnapshotFile"]

_KIND = 0x5350534E
_VERSION = 3
_SCHEMA = (
    """CREATE TABLE place (
        partition INTEGER PRIMARY KEY, topic TEXT NOT NULL, partitions INTEGER NOT NULL,
        position INTEGER NOT NULL, at REAL NOT NULL, epoch INTEGER NOT NULL
    )""",
    """CREATE TABLE state (
        partition INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, wake REAL,
        PRIMARY KEY (partition, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX state_wake ON state (partition, wake) WHERE wake IS NOT NULL",
)


class Place(NamedTuple):
    """Up to where the states of a partition are in a file.

    Attributes:
        position: the offset in the changelog.
        at: when that was written, in seconds since 1970.
        epoch: that of the leader which has appended the last of it, or of a former one; -1 if none
            is known.
    """

    position: int
    at: float
    epoch: int


class SnapshotFile:
    """Keeps states of one actor's keys in a SQLite file that this process alone may use.

    All of it is in the changelog, too, so a file that cannot be read is replaced by a new one. What
    was written may be lost with the power of the computer, but only the last of it, and as a whole.

    Args:
        path: the file.

    Attributes:
        name: what it is and where, for log lines.
        replaced: what was found in its place and could not be used; None if nothing was.

    Raises:
        ConfigurationError: as for `SqliteFile`, except for what is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._topic, self._partitions = "", 0
        self._file = SqliteFile(
            path,
            kind=_KIND,
            version=_VERSION,
            schema=_SCHEMA,
            what="the snapshot",
            replace=True,
        )
        self.name = self._file.name
        self.replaced = self._file.replaced

    def fit(self, topic: str, partitions: int) -> str | None:
        """Remove what is of another changelog; return what it is of, or None.

        Args:
            topic: the id of the changelog, by which another one of the same name is told.
            partitions: how many it has.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        self._topic, self._partitions = topic, partitions

        def delete(database: sqlite3.Connection) -> tuple[str, int] | None:
            found: tuple[str, int] | None = database.execute(
                "SELECT topic, partitions FROM place WHERE topic <> ? OR partitions <> ? LIMIT 1",
                (topic, partitions),
            ).fetchone()
            if found is not None:
                database.execute("DELETE FROM place")
                database.execute("DELETE FROM state")
            return found

        found = self._file.transaction(delete)
        if found is None:
            return None
        if found[0] != topic:
            return (
                "of a changelog with another id: that was deleted and created again, or is in"
                " another cluster"
            )
        return f"of a changelog with {found[1]} partitions, which has {partitions} now"

    def place(self, partition: int) -> Place | None:
        """Return up to where a partition is in the file, or None; raises sqlite3.Error."""

        def select(database: sqlite3.Connection) -> Place | None:
            row = database.execute(
                "SELECT position, at, epoch FROM place WHERE partition = ?", (partition,)
            ).fetchone()
            return None if row is None else Place(*row)

        return self._file.transaction(select)

    def load(self, keys: Collection[tuple[int, bytes]]) -> dict[tuple[int, bytes], bytes]:
        """Return what there is of keys in their partitions; raises sqlite3.Error."""

        def select(database: sqlite3.Connection) -> dict[tuple[int, bytes], bytes]:
            found = {}
            for wanted in keys:
                row = database.execute(
                    "SELECT value FROM state WHERE partition = ? AND key = ?", wanted
                ).fetchone()
                if row is not None:
                    found[wanted] = row[0]
            return found

        return self._file.transaction(select)

    def first_due(
        self, partition: int, most: int, without: Collection[bytes]
    ) -> Sequence[tuple[bytes, float]]:
        """Return the keys in which something is to be done first, and when; raises sqlite3.Error.

        Args:
            partition: its number.
            most: how many at the most.
            without: keys that are left out.
        """

        def select(database: sqlite3.Connection) -> list[tuple[bytes, float]]:
            found: list[tuple[bytes, float]] = []
            for row in database.execute(
                "SELECT key, wake FROM state WHERE partition = ? AND wake IS NOT NULL"
                " ORDER BY wake",
                (partition,),
            ):
                if row[0] not in without:
                    found.append(row)
                    if len(found) >= most:
                        break
            return found

        return self._file.transaction(select)

    def write(
        self,
        partition: int,
        values: Mapping[bytes, bytes | None],
        wakes: Mapping[bytes, float],
        place: Place,
    ) -> None:
        """Write what has changed up to a place.

        Args:
            partition: its number.
            values: by key; None for what is deleted.
            wakes: when something is to be done with some of these keys, in seconds since 1970.
            place: where they are known up to.

        Raises:
            sqlite3.Error, OSError: it could not be written.
        """
        deleted = [(partition, key) for key, value in values.items() if value is None]
        wake = wakes.get
        changed = [
            (partition, key, value, wake(key)) for key, value in values.items() if value is not None
        ]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", changed)
            if deleted:
                database.executemany("DELETE FROM state WHERE partition = ? AND key = ?", deleted)
            database.execute(
                "INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?, ?, ?)",
                (partition, self._topic, self._partitions, *place),
            )

        self._file.transaction(write)
        self._file.tidy()

    def forget(self, partition: int) -> None:
        """Remove what there is of a partition; raises sqlite3.Error."""

        def delete(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM place WHERE partition = ?", (partition,))
            database.execute("DELETE FROM state WHERE partition = ?", (partition,))

        self._file.transaction(delete)

    def close(self) -> None:
        """Release the file. Never raises."""
        self._file.close()

    def remove(self) -> None:
        """Release the file, and remove it; raises OSError."""
        self._file.close()
        remove_database(self._file.path)
