"""A SQLite file that one process writes, and that survives the process."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from .._logs import get_logger
from .._texts import quoted
from ..errors import ConfigurationError

__all__ = ["SqliteFile", "file_name", "remove_database"]

_log = get_logger(__name__)

T = TypeVar("T")

_PAGE = 4_096
# Pages of the log from which on they are copied into the file. Whoever writes waits meanwhile.
_CHECKPOINT_AT = 512
# Bytes of a file whose check may take seconds.
_LARGE = 200_000_000
# Seconds for a transaction that is being written when the file is closed.
_PATIENCE = 1.0
_WHY_IT_IS_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class SqliteFile:
    """A SQLite database of our own in a file that this process alone may use.

    What a transaction has written survives the end of the process from its return on, and that of
    the computer from the next `sync` on, so that many transactions can share one. The methods may
    be called in any thread; transactions wait for each other.

    Args:
        path: where it is, or a link to it; a missing folder is created for this user alone, as is
            the file.
        kind: 32 bits that tell such files from other databases (``application_id``).
        version: of the tables; files of other ones are refused.
        schema: SQL statements that create the tables.
        what: what the file is, for errors.
        replace: whether a new one takes the place of a file that cannot be read, because all of it
            is elsewhere, too.

    Attributes:
        name: what it is and where, for errors.
        replaced: why a new one has taken the place of another; None if none has.

    Raises:
        ConfigurationError: the file cannot be created or read, is no such file, is damaged, was
            written by another version, or is in use. It is left as it is.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: int,
        version: int,
        schema: Sequence[str],
        what: str,
        replace: bool = False,
    ) -> None:
        # SQLite puts the log beside the file itself, not beside a link to it.
        self.path = Path(os.path.realpath(path))
        self.name = file_name(what, path)
        self._lock = threading.Lock()
        self._log = -1
        self.replaced: str | None = None
        try:
            self._open(kind, version, schema)
        except _Unreadable as error:
            if not replace:
                raise ConfigurationError(f"{self.name} {error}") from error.__cause__
            self.replaced = error.why
            try:
                remove_database(self.path)
            except OSError as failed:
                raise ConfigurationError(f"{self.name}: {_reason(failed)}") from failed
            self._open(kind, version, schema)

    def _open(self, kind: int, version: int, schema: Sequence[str]) -> None:
        self._create()
        try:
            self._database = sqlite3.connect(
                self.path, timeout=0.0, isolation_level=None, check_same_thread=False
            )
            _in_use.add(self)
            try:
                self._prepare(kind, version, schema)
                self._identity = self._found()
            except BaseException:
                self._database.close()
                raise
        except (sqlite3.Error, OSError) as error:
            if _code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise _Unreadable(
                    f"damaged, or no database ({error})",
                    "restore it, or move it away and do without what it contains",
                ) from error
            raise ConfigurationError(f"{self.name}: {_reason(error)}") from error

    def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what the function returns, and keep all that it writes, or nothing if it raises.

        Raises:
            sqlite3.Error: it could not be written; see `is_full`.
        """
        with self._lock:
            database = self._database
            database.execute("BEGIN IMMEDIATE")
            try:
                result = work(database)
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    # Some errors have rolled it back already.
                    database.execute("ROLLBACK")
                raise
            return result

    def sync(self) -> None:
        """Wait until everything that was written so far would survive a loss of power.

        Raises:
            OSError, sqlite3.Error: the disk has failed, or somebody has removed the file.
        """
        os.fsync(self._log)
        log = os.fstat(self._log)
        if not log.st_nlink or self._found() != self._identity:
            raise OSError(
                errno.ENOENT,
                "somebody has removed or replaced it; start the application again",
                str(self.path),
            )
        self._tidy(log.st_size)

    def tidy(self) -> None:
        """Keep the log short, for those who have no need of `sync`.

        Raises:
            OSError: the disk has failed.
        """
        self._tidy(os.fstat(self._log).st_size)

    def _tidy(self, size: int) -> None:
        if size >= _CHECKPOINT_AT * _PAGE:
            # If the disk is full the log grows on; the next one tries again.
            with self._lock, contextlib.suppress(sqlite3.OperationalError):
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Release the file. Never raises; every use after that raises sqlite3.ProgrammingError."""
        if not self._lock.acquire(timeout=_PATIENCE):
            # The disk hangs: the end of the process releases it.
            return
        try:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            if self._log >= 0:
                os.close(self._log)
                self._log = -1
        finally:
            self._lock.release()

    def leave_to_parent(self) -> None:
        """Never use nor close it in this process, which is a fork of the one that has it open.

        To close it would remove the log into which the other process goes on writing.
        """
        # Not at the top: hardly any process needs it. What is never let go of is never closed.
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
        self._database = sqlite3.connect(":memory:")
        self._database.close()
        self._log = -1
        # A thread of the other process may have had it.
        self._lock = threading.Lock()

    @staticmethod
    def is_full(error: BaseException) -> bool:
        """Return whether a write has failed as the disk, or a limit of the system, has no room."""
        return isinstance(error, OSError) or _code(error) in _WHY_IT_IS_FULL

    def _found(self) -> tuple[int, int] | None:
        """Return what tells the file at the path from others; None if there is none."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _create(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise ConfigurationError(
                f"{self.name} cannot be created: {error.strerror}; give another folder, or make"
                " this one writable for the user of the program"
            ) from error

    def _prepare(self, kind: int, version: int, schema: Sequence[str]) -> None:
        database = self._database
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        # Takes the lock, and reads the header.
        database.execute("BEGIN EXCLUSIVE")
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (found,) = database.execute("PRAGMA application_id").fetchone()
        (written,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("COMMIT")
        if tables and found != kind:
            raise ConfigurationError(
                f"{self.name} is another kind of database, and is left as it is: give another"
                " folder, or move the file away"
            )
        if written > version:
            raise _Unreadable(
                f"written by a newer version of this package (format {written}, and {version} is"
                " the newest that is known here)",
                "use that version, or move the file away",
            )
        if tables and written < version:
            raise _Unreadable(
                f"written by an older version of this package (format {written}, and {version} is"
                " that of this one)",
                "use that version, or move the file away",
            )
        size = os.path.getsize(self.path)
        if size >= _LARGE:
            # Nothing else is done meanwhile, and a start should not look as if it hung.
            _log.info("reading %s to check it, which has %d MB", self.name, size // 1_000_000)
        (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise _Unreadable(
                f"damaged ({quoted(state, 200)})",
                "restore it, or move it away and do without what it contains",
            )
        database.execute("PRAGMA journal_mode=WAL")
        # Synchronised by sync(), which many transactions share.
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.execute("BEGIN IMMEDIATE")
        if not tables:
            for statement in schema:
                database.execute(statement)
        # Written each time, so that there is a log.
        database.execute(f"PRAGMA application_id={kind}")
        database.execute(f"PRAGMA user_version={version}")
        database.execute("COMMIT")
        self._log = os.open(f"{self.path}-wal", os.O_RDWR)
        os.fsync(self._log)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_in_use: weakref.WeakSet[SqliteFile] = weakref.WeakSet()


def _forked() -> None:
    for file in tuple(_in_use):
        file.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def file_name(what: str, path: Path) -> str:
    """Return what a file is and where, for errors and log lines."""
    return f"{what} {quoted(str(path), 1_000)}"


class _Unreadable(Exception):
    """A file is ours, or may be, and cannot be read.

    Args:
        why: what it is.
        advice: what to do.
    """

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(f"is {why}, and is left as it is: {advice}")
        self.why = why


def remove_database(path: Path) -> None:
    """Remove a file that nobody has open, with what SQLite has put beside it; raises OSError."""
    for beside in ("-wal", "-shm", ""):
        Path(f"{path}{beside}").unlink(missing_ok=True)


def _code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _reason(error: sqlite3.Error | OSError) -> str:
    """Return why a file cannot be used, and what to do."""
    if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            "it is in use by another process: give each copy of the application another"
            " instance=, or stop the other one"
        )
    return f"it cannot be used: {error}; check the disk and the rights of the file"
