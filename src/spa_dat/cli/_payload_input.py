"""Payloads that the command line is given: as an argument, in a file, or on standard input."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, BinaryIO

from .._texts import quoted
from ..errors import ConfigurationError, DecodeError
from ..runtime.payloads._codec import BINARY, JSON, TEXT, Decoder
from ._standard_output import resolve

__all__ = ["ReadLines", "content_type_of", "opened_lines", "read_payload"]

ReadLines = Callable[[], AsyncIterator[tuple[int, bytes]]]

_CHUNK = 65_536
_STANDARD_INPUT = "standard input"
_JSON = Decoder.of(Any)


def content_type_of(payload: bytes) -> str | None:
    """Return the content type of a payload that is given without one."""
    if not payload:
        return None
    try:
        payload.decode()
    except UnicodeDecodeError:
        return BINARY
    try:
        _JSON.decode(payload, JSON)
    except DecodeError:
        return TEXT
    return JSON


def read_payload(given: str | None, most: int) -> bytes:
    """Return the payload that an argument stands for.

    Args:
        given: the payload itself, ``@`` and the name of a file, or ``-`` for standard input, which
            None also stands for.
        most: the most bytes that it may have.

    Raises:
        ConfigurationError: there is none, it cannot be read, or it is larger.
    """
    if given is not None and given != "-" and not given.startswith("@"):
        payload, where = os.fsencode(given), "the payload"
    else:
        with _opened(given) as (file, where):
            try:
                payload = file.read(most + 1)
            except OSError as error:
                raise _unreadable(where, error) from error
    if len(payload) > most:
        raise _too_large(where, most)
    return payload


@contextlib.contextmanager
def opened_lines(given: str | None, most: int) -> Iterator[ReadLines]:
    """Open what has messages in lines; yields what reads them.

    That yields each line that is not empty as soon as it can be read, with its number from 1. It
    raises ConfigurationError if a line cannot be read or is longer.

    Args:
        given: as for `read_payload`, but not the payload itself.
        most: the most bytes that a line may have.

    Raises:
        ConfigurationError: there is nothing to read, or it cannot be opened.
    """
    if given is not None and given != "-" and not given.startswith("@"):
        raise ConfigurationError(
            f"--lines reads messages from a file or from standard input, not from"
            f" {quoted(given, 40)}: give @FILE, or - or nothing for standard input"
        )
    with _opened(given) as (file, where):
        yield lambda: _read_lines(file.fileno(), where, most)


async def _read_lines(file: int, where: str, most: int) -> AsyncIterator[tuple[int, bytes]]:
    lines = _Lines(file, where, most)
    number = 0
    while (some := await lines.some()) is not None:
        for line in some:
            number += 1
            if len(line) > most:
                raise _too_large(f"line {number} of {where}", most)
            if line:
                yield number, line


class _Lines:
    """Reads lines in a thread of its own: whoever writes them may take their time.

    The thread ends with the process, even while it waits. It reads no more than is asked for.

    Args:
        number: of the open file.
        where: what it is, for errors.
        most: the most bytes of a line; what is longer is cut off after one more.
    """

    def __init__(self, number: int, where: str, most: int) -> None:
        self._number = number
        self._where = where
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Semaphore(0)
        self._answer: asyncio.Future[list[bytes] | None] = self._loop.create_future()
        threading.Thread(target=self._read_all, name="spa_dat input", daemon=True).start()

    async def some(self) -> list[bytes] | None:
        """Return the next lines, at least one; None at the end."""
        self._answer = self._loop.create_future()
        self._wanted.release()
        try:
            return await self._answer
        except OSError as error:
            raise _unreadable(self._where, error) from error

    def _read_all(self) -> None:
        unfinished = bytearray()
        while True:
            self._wanted.acquire()
            lines: list[bytes] | None = []
            failure: OSError | None = None
            while not lines:
                # Not by the file object, which Python would want to close at its end.
                try:
                    data = os.read(self._number, _CHUNK)
                except OSError as error:
                    failure = error
                    break
                if not data:
                    lines = [_without_end(unfinished)] if unfinished else None
                    unfinished = bytearray()
                    break
                first, *others = data.split(b"\n")
                unfinished += first
                if others:
                    lines = [_without_end(unfinished), *map(_without_end, others[:-1])]
                    unfinished = bytearray(others[-1])
                elif len(unfinished) > self._most + 1:
                    lines = [bytes(unfinished)]
            # The loop may have been closed meanwhile.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(resolve, self._answer, lines, failure)


def _without_end(line: bytes | bytearray) -> bytes:
    return bytes(line).removesuffix(b"\r")


@contextlib.contextmanager
def _opened(given: str | None) -> Iterator[tuple[BinaryIO, str]]:
    """Open what is to be read; yields it, and what it is in words."""
    if given is None or given == "-":
        if sys.stdin is None:
            raise ConfigurationError("there is no payload, and standard input is closed")
        if given is None and sys.stdin.isatty():
            raise ConfigurationError(
                "there is no payload: give it, '' for an empty one, @FILE, or - to type it"
            )
        yield sys.stdin.buffer, _STANDARD_INPUT
        return
    name = given.removeprefix("@")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(name, "rb"))
        except (OSError, ValueError) as error:
            raise _unreadable(quoted(name), error) from error
        yield file, f"the file {quoted(name)}"


def _unreadable(where: str, error: OSError | ValueError) -> ConfigurationError:
    reason = getattr(error, "strerror", None) or error
    return ConfigurationError(f"{where} cannot be read: {reason}")


def _too_large(where: str, most: int) -> ConfigurationError:
    return ConfigurationError(
        f"{where} has more than {most} bytes: send less, or raise the option 'max_payload' of the"
        " bus if the broker allows it"
    )
