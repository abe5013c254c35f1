"""Writing the file of a recording, in a thread."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Literal, TypeAlias

from ..._logs import get_logger
from ..._texts import reason_of
from ...errors import ConfigurationError
from ...transports import Envelope
from ._recording_format import Receipt

if sys.platform != "win32":
    import fcntl

__all__ = ["RecordingWriter"]

log = get_logger("spa_dat")

_MOST_WAITING = 100_000
_MOST_BYTES_WAITING = 64_000_000
_LONGEST_END = 10.0
_LOOK_BACK = 65_536
_PRIVATE = 0o600

_Entry: TypeAlias = tuple[Envelope, Callable[[Envelope], Receipt]]


class RecordingWriter:
    """Writes receipts to a file, in a thread of its own, in the order in which they came.

    Args:
        file: its name.
        limit: see `Recorder`.
        max_bytes: see `Recorder`.
        redact: see `Recorder`.
        existing: see `Recorder`.

    Attributes:
        recorded: receipts written so far.
        problem: why nothing more can be written; None as long as it can.
    """

    def __init__(
        self,
        file: str | PathLike[str],
        *,
        limit: int | None,
        max_bytes: int | None,
        redact: Callable[[Envelope], Envelope | None] | None,
        existing: Literal["append", "replace", "refuse"],
    ) -> None:
        for name, value in (("limit", limit), ("max_bytes", max_bytes)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name}={value!r}: give a whole number, 1 or more")
        if existing not in ("append", "replace", "refuse"):
            raise ConfigurationError(f"existing={existing!r}: give 'append', 'replace' or 'refuse'")
        self._name = str(file)
        # The program may change its working directory before the file is renamed.
        self._path = Path(file).absolute()
        self._limit = limit
        self._max_bytes = max_bytes
        self._redact = redact
        self._existing = existing
        self._entries: SimpleQueue[_Entry | None] = SimpleQueue()
        self._file: BinaryIO | None = None
        self._thread: threading.Thread | None = None
        self._is_open = self._is_new = self._is_regular = False
        self._told = False
        self._size = 0
        # Each is changed by one thread only.
        self._bytes_in = self._bytes_out = 0
        self._crowded_out = 0
        self._failed = 0
        self.recorded = 0
        self.problem: str | None = None

    @property
    def skipped(self) -> int:
        """Messages that should have been written and were not."""
        return self._crowded_out + self._failed

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be written that more might be left out."""
        return self.problem is None and (
            self._entries.qsize() >= _MOST_WAITING // 2
            or self._bytes_in - self._bytes_out >= _MOST_BYTES_WAITING // 2
        )

    @property
    def _is_full(self) -> bool:
        return self._limit is not None and self.recorded >= self._limit

    # For the event loop.

    def open(self) -> None:
        """Open the file and start the thread.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        if self._thread is not None:
            raise ConfigurationError("a Recorder can be used only once; make a new one")
        was_there = self._path.exists()
        try:
            self._file = self._open(self._existing)
        except FileExistsError as error:
            raise ConfigurationError(
                f"{self._name!r} already exists; name another file, or remove it"
            ) from error
        except BlockingIOError as error:
            raise ConfigurationError(
                f"{self._name!r} is being written by another recorder; name another file, or stop"
                " that one"
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"{self._name!r} cannot be written: {error.strerror or error}"
            ) from error
        self._is_open = True
        self._is_new = not was_there
        self._thread = threading.Thread(target=self._work, name="spa_dat recorder", daemon=True)
        self._thread.start()

    def write(self, envelope: Envelope, receipt: Callable[[Envelope], Receipt]) -> None:
        """Queue a message to be written; returns at once.

        Args:
            envelope: the message.
            receipt: makes its receipt; called in the thread, with what ``redact`` has returned.
        """
        if not self._is_open or self.problem is not None or self._is_full:
            return
        if (
            self._entries.qsize() >= _MOST_WAITING
            or self._bytes_in - self._bytes_out >= _MOST_BYTES_WAITING
        ):
            self._crowded_out += 1
            self._tell("messages arrive faster than they can be written")
            return
        self._bytes_in += len(envelope.payload)
        self._entries.put((envelope, receipt))

    def close(self) -> None:
        """Write what is left, and close the file, within a limited time."""
        self._is_open = False
        if self._thread is None:
            return
        self._entries.put(None)
        self._thread.join(_LONGEST_END)
        if self._thread.is_alive():
            self.problem = f"writing did not end within {_LONGEST_END:g} s"
            log.error("recording %s: %s", self._name, self.problem)
        if self.skipped:
            log.warning("recording %s: %d messages are missing", self._name, self.skipped)

    def discard_if_new_and_empty(self) -> None:
        """Remove the file again if it was not there before and nothing was recorded."""
        if self._is_new and not self.recorded and self.problem is None:
            self._path.unlink(missing_ok=True)

    # In the thread.

    def _work(self) -> None:
        while (entry := self._entries.get()) is not None:
            self._bytes_out += len(entry[0].payload)
            if self._is_full:
                continue
            if self.problem is not None:
                self._failed += 1
                continue
            try:
                self._write(*entry)
            except OSError as error:
                self._failed += 1
                self._ended_by(error)
        self._let_go()

    def _write(self, envelope: Envelope, receipt: Callable[[Envelope], Receipt]) -> None:
        if envelope.left_out is not None:
            # Without its payload it would be a different message.
            self._failed += 1
            size = envelope.left_out.size
            self._tell(f"its payload of {size} bytes was too large to be accepted")
            return
        try:
            left = envelope if self._redact is None else self._redact(envelope)
            if left is None:
                return
            line = receipt(left).line()
        except BaseException as error:  # noqa: BLE001 (the user's; nothing is written unredacted)
            self._failed += 1
            self._tell(reason_of(error))
            return
        assert self._file is not None
        self._file.write(line)
        self.recorded += 1
        self._size += len(line)
        # A killed process loses what it has not passed on to the operating system.
        if self._entries.empty():
            self._file.flush()
        if self._is_regular and self._max_bytes is not None and self._size > self._max_bytes:
            self._file.close()
            os.replace(self._path, f"{self._path}.1")
            self._file = self._open("refuse")

    def _let_go(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            # What was written last may reach the disk only now.
            if self.problem is None:
                self._ended_by(error)

    def _ended_by(self, error: OSError) -> None:
        self.problem = str(error.strerror or error)
        log.error("recording %s ends here: %s", self._name, self.problem)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.warning("recording %s: a message is left out: %s", self._name, why)

    def _open(self, existing: str) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        if existing == "refuse":
            flags |= os.O_EXCL
        descriptor = os.open(self._path, flags, _PRIVATE)
        file = os.fdopen(descriptor, "ab")
        try:
            self._prepare(descriptor, existing)
        except BaseException:
            file.close()
            raise
        return file

    def _prepare(self, descriptor: int, existing: str) -> None:
        self._size = 0
        status = os.fstat(descriptor)
        self._is_regular = stat.S_ISREG(status.st_mode)
        if not self._is_regular:
            return
        _lock(descriptor)
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(descriptor, _PRIVATE)
        if existing == "replace":
            os.ftruncate(descriptor, 0)
        else:
            self._size = _end_last_line(descriptor, status.st_size)


def _lock(descriptor: int) -> None:
    """Lock the file until it is closed; raises BlockingIOError if another recorder has it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            # Not every file system supports locks.
            log.debug("a recording cannot be locked", exc_info=True)


def _end_last_line(descriptor: int, size: int) -> int:
    """Cut off an incomplete last line, left by a killed process; return the size after that."""
    end = size
    while end:
        start = max(0, end - _LOOK_BACK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end
