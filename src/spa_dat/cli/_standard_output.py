"""Standard output: whoever reads it may stop reading, or not read at all for a while.

Also standard error, which nobody may be there to read either.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO, TypeVar

from ..errors import ConfigurationError
from ._terminal import BAD, HEADING, styled

__all__ = [
    "BackgroundOutput",
    "check_open",
    "printing",
    "resolve",
    "stop_printing",
    "write_notice",
    "write_text",
]

T = TypeVar("T")

_Text = tuple[bytes, "asyncio.Future[None]"]


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Let the block write to standard output, and flush that; end quietly if nobody reads it.

    Raises:
        ConfigurationError: it cannot be written.
    """
    check_open()
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        stop_printing(error)


def stop_printing(error: OSError) -> None:
    """Write nothing more to standard output; return if that is because nobody reads it.

    Args:
        error: what came of writing to it.

    Raises:
        ConfigurationError: it cannot be written.
    """
    _abandon(sys.stdout)
    # Whoever reads may have seen enough.
    if not isinstance(error, BrokenPipeError):
        raise _unwritable(error) from error


def check_open() -> None:
    """Check that there is a standard output: a program may be started without one.

    Raises:
        ConfigurationError: there is none.
    """
    if sys.stdout is None:
        raise ConfigurationError("standard output is closed: send it to /dev/null to discard it")


def write_text(text: str) -> None:
    """Write a text, with escapes for what the encoding of standard output does not have."""
    sys.stdout.write(_encoded(text).decode(sys.stdout.encoding))


def write_notice(text: str, *, failed: bool = False) -> None:
    """Write a line to standard error; if that is closed or full, go on without it.

    Args:
        text: without a line end.
        failed: whether it says why a command has failed.
    """
    if sys.stderr is None:
        return
    try:
        sender = styled("spa-dat:", BAD if failed else HEADING, sys.stderr)
        sys.stderr.write(f"{sender} {text}\n")
        sys.stderr.flush()
    except OSError:
        _abandon(sys.stderr)


def _abandon(stream: TextIO) -> None:
    """Drop what is still in the buffer: it would fail once more at the end of the program."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _encoded(text: str) -> bytes:
    return text.encode(sys.stdout.encoding, "backslashreplace")


def _unwritable(error: OSError) -> ConfigurationError:
    return ConfigurationError(f"standard output cannot be written: {error.strerror or error}")


class BackgroundOutput:
    """Writes to standard output in a thread, so that the event loop does not wait for its reader.

    To be made in the event loop. The thread ends with the process, even while it waits for a reader
    that has stopped: so it uses nothing that Python wants to flush or lock at its end.

    Args:
        unread: called once when it is a pipe that nobody can read any more, even if nothing is
            written.
    """

    def __init__(self, unread: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._number = sys.stdout.fileno()
        self._unread = unread
        if stat.S_ISFIFO(os.fstat(self._number).st_mode):
            # There is never anything to read at this end, but errors are told all the same.
            self._loop.add_reader(self._number, self._note_unread)
        self._texts: queue.SimpleQueue[_Text] = queue.SimpleQueue()
        threading.Thread(target=self._write_all, name="spa_dat output", daemon=True).start()

    async def write(self, text: str) -> bool:
        """Write a text; returns whether somebody reads it.

        Raises:
            ConfigurationError: it cannot be written.
        """
        written: asyncio.Future[None] = self._loop.create_future()
        self._texts.put((_encoded(text), written))
        try:
            await written
        except BrokenPipeError:
            return False
        except OSError as error:
            raise _unwritable(error) from error
        return True

    def close(self) -> None:
        """Watch for readers no longer."""
        self._loop.remove_reader(self._number)

    def _note_unread(self) -> None:
        self.close()
        self._unread()

    def _write_all(self) -> None:
        while True:
            data, written = self._texts.get()
            failure: OSError | None = None
            try:
                _write(self._number, data)
            except OSError as error:
                failure = error
            # The loop may have been closed meanwhile.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(resolve, written, None, failure)


def _write(number: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(number, left) :]
        except BlockingIOError:
            # Somebody else who has the same file does not want to wait.
            select.select((), (number,), ())


def resolve(future: asyncio.Future[T], result: T, failure: OSError | None) -> None:
    """Give a future what a thread has come to, unless nobody waits for it any more.

    Args:
        future: of the loop that this is called in.
        result: what counts if there is no failure.
        failure: why there is no result; None if there is one.
    """
    if future.cancelled():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
