"""A disk that fails for a moment to keep what is written to it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from spa_dat.transports import _durable_outbox
from spa_dat.transports._sqlite_file import SqliteFile

__all__ = ["fail_to_synchronise"]


def fail_to_synchronise(monkeypatch: pytest.MonkeyPatch, times: int) -> Callable[[], bool]:
    """Let files fail so often to be synchronised with their disk; an outbox tries again soon.

    Returns:
        Whether one has been synchronised since.
    """
    monkeypatch.setattr(_durable_outbox, "_AGAIN", 0.01)
    failures, done, sync = times, False, SqliteFile.sync

    def failing(file: SqliteFile) -> None:
        nonlocal failures, done
        if failures:
            failures -= 1
            raise OSError(errno.EIO, "the disk is away for a moment")
        sync(file)
        done = True

    monkeypatch.setattr(SqliteFile, "sync", failing)
    return lambda: done
