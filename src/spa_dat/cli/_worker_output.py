"""The output of the workers in one log: each line is whole, and has a worker's name."""

from __future__ import annotations

import json
import os
import selectors
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import IO

from .._json_formatter import json_line
from ._child_link import Child

__all__ = ["Lines", "Outputs"]

_STDERR = 2
_LONGEST_LINE = 65_536
_CHUNK = 65_536
# More waits in the pipes, so that a worker waits for whoever reads the log, as any program does.
_MOST_WAITING = 262_144
# So much a pipe takes at once when it takes anything, on every system.
_AT_ONCE = 512
_AT_ONCE_ON_LINUX = 4_096
_LAST_WORDS = 1.0
_MOST_DRAINED = 1_048_576


class Lines:
    """Gathers a worker's output into whole lines, and names the worker in each.

    A line of more than 64 KiB becomes several.

    Args:
        name: what each begins with; as JSON the value of ``worker``.
        stream: the number of the one it is written to.
        as_json: whether each is to be JSON. What is not, such as what the program prints, becomes
            the message of one whose logger is ``stdout`` or ``stderr``.
    """

    def __init__(self, name: str, stream: int = 1, *, as_json: bool = False) -> None:
        self._name = name
        self._stream = stream
        self._as_json = as_json
        self._prefix = f"{name} | ".encode()
        self._begun = b""

    def feed(self, data: bytes) -> bytes:
        """Take what was written; returns whole lines."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) >= _LONGEST_LINE:
            lines.append(self._begun)
            self._begun = b""
        return b"".join(map(self._named, lines))

    def end(self) -> bytes:
        """Return the line that was begun, as a whole one."""
        begun, self._begun = self._begun, b""
        return self._named(begun) if begun else b""

    def _named(self, line: bytes) -> bytes:
        if not self._as_json:
            return self._prefix + line + b"\n"
        text = line.decode(errors="backslashreplace")
        return f"{_with_worker(text, self._name) or self._stray(text)}\n".encode()

    def _stray(self, text: str) -> str:
        level, logger = ("WARNING", "stderr") if self._stream == _STDERR else ("INFO", "stdout")
        return json_line(level, logger, text.rstrip("\r"), worker=self._name)


def _with_worker(text: str, name: str) -> str | None:
    """Return a line of JSON with the worker's name in it; None if it is no JSON object."""
    if not text.startswith("{"):
        return None
    try:
        values = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if not values or "worker" in values:
        return json.dumps({**values, "worker": name})
    # As it is, which takes less time than to make it again.
    return f'{{"worker": {json.dumps(name)}, {text[1:]}'


def _no_number(name: str) -> object:
    raise ValueError(name)


class _Output:
    """Standard output or standard error; both when they are the same file.

    Nothing here waits for whoever reads it, who may have stopped reading.

    Args:
        number: the file descriptor.
        selector: tells when there is room.
        room: called when there is room again.
    """

    def __init__(
        self, number: int, selector: selectors.BaseSelector, room: Callable[[], object]
    ) -> None:
        self._number = number
        self._selector = selector
        self._room = room
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._is_gone = False
        is_file = stat.S_ISREG(os.fstat(number).st_mode)
        self._at_once = (
            _CHUNK if is_file else _AT_ONCE_ON_LINUX if sys.platform == "linux" else _AT_ONCE
        )

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be taken for now."""
        return self._size >= _MOST_WAITING

    @property
    def is_empty(self) -> bool:
        """Whether all is written."""
        return not self._waiting

    def put(self, data: bytes) -> None:
        """Take what is to be written."""
        if not data or self._is_gone:
            return
        if not self._waiting:
            self._selector.register(self._number, selectors.EVENT_WRITE, self.write)
        self._waiting.append(memoryview(data))
        self._size += len(data)

    def write(self) -> None:
        """Write some of it; only when there is room."""
        first = self._waiting[0]
        was_full = self.is_full
        try:
            written = os.write(self._number, first[: self._at_once])
        except BlockingIOError:
            return
        except OSError:
            # Nobody reads any more, or the disk is full: the application is to go on.
            self._is_gone = True
            self._waiting.clear()
            self._size = 0
        else:
            self._size -= written
            self._waiting[0] = first[written:]
            if written == len(first):
                self._waiting.popleft()
        if not self._waiting:
            self._selector.unregister(self._number)
        if was_full and not self.is_full:
            self._room()


class _Source:
    """One stream of one worker.

    Args:
        stream: the pipe.
        lines: gathers what comes.
        output: where its lines go.
        selector: tells when there is something.
    """

    def __init__(
        self, stream: IO[bytes], lines: Lines, output: _Output, selector: selectors.BaseSelector
    ) -> None:
        self._stream = stream
        self._lines = lines
        self.output = output
        self._selector = selector
        self._is_read = False
        self.is_open = True
        os.set_blocking(stream.fileno(), False)

    def read(self) -> int:
        """Read some of it; returns how many bytes, 0 when there is nothing now."""
        try:
            data = os.read(self._stream.fileno(), _CHUNK)
        except BlockingIOError:
            return 0
        if data:
            self.output.put(self._lines.feed(data))
        else:
            self.output.put(self._lines.end())
            self.pause()
            self.is_open = False
            self._stream.close()
        return len(data)

    def resume(self) -> None:
        """Read whenever there is something."""
        if not self._is_read and self.is_open:
            self._is_read = True
            self._selector.register(self._stream, selectors.EVENT_READ, self._ready)

    def pause(self) -> None:
        """Leave what is written in the pipe."""
        if self._is_read:
            self._is_read = False
            self._selector.unregister(self._stream)

    def _ready(self) -> None:
        if self.output.is_full:
            self.pause()
        else:
            self.read()

    def finish(self) -> None:
        """Take what is left of a worker that has ended; what it has started may go on writing."""
        left = _MOST_DRAINED
        while self.is_open and left > 0 and (count := self.read()):
            left -= count
        if self.is_open:
            self.output.put(self._lines.end())


class Outputs:
    """Standard output and standard error, and the workers that write there.

    Args:
        selector: of the loop.
        as_json: whether all lines are JSON.
    """

    def __init__(self, selector: selectors.BaseSelector, *, as_json: bool = False) -> None:
        self._selector = selector
        self._as_json = as_json
        self._sources: dict[int, list[_Source]] = {}
        self._older: list[_Source] = []
        out = _Output(1, selector, self._resume)
        is_one = _identity(1) == _identity(2)
        self._of = {1: out, 2: out if is_one else _Output(2, selector, self._resume)}

    @property
    def is_full(self) -> bool:
        """Whether nobody reads, so that workers may have to wait until they can write."""
        return any(output.is_full for output in self._of.values())

    def take(self, child: Child, name: str) -> None:
        """Take the output of a worker."""
        sources = self._sources[child.pid] = []
        for number, stream in ((1, child.stdout), (2, child.stderr)):
            assert stream is not None
            lines = Lines(name, number, as_json=self._as_json)
            sources.append(_Source(stream, lines, self._of[number], self._selector))
            sources[-1].resume()

    def drain(self, child: Child) -> None:
        """Take what is left of a worker that has ended."""
        self._older = [source for source in self._older if source.is_open]
        for source in self._sources.pop(child.pid, ()):
            source.finish()
            if source.is_open:
                self._older.append(source)

    def say(self, text: str) -> None:
        """Write a line of the command's own to standard error."""
        line = json_line("WARNING", "spa_dat", text) if self._as_json else f"spa-dat: {text}"
        self._of[_STDERR].put(f"{line}\n".encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Write what waits, as far as somebody reads it within a second."""
        deadline = time.monotonic() + _LAST_WORDS
        while not all(output.is_empty for output in self._of.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            for key, mask in self._selector.select(left):
                if mask & selectors.EVENT_WRITE:
                    key.data()

    def _resume(self) -> None:
        for sources in (*self._sources.values(), self._older):
            for source in sources:
                source.resume()


def _identity(number: int) -> tuple[int, int]:
    """Return what tells whether two file descriptors are one file."""
    found = os.fstat(number)
    return found.st_dev, found.st_ino
