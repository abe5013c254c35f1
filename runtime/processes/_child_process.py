"""A child process: started, watched, ended and reaped."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import FileIO
from typing import Any

from ..._texts import describe_exit
from ...errors import ConfigurationError
from ._channel import Channel
from ._delivery_progress import Progress
from ._frames import FromChild

__all__ = ["HUNG", "ChildProcess"]

HUNG = 79
"""Exit code of a child that has ended itself because a handler went on after its deadline."""

# A first line says where modules are: the package itself has to be found, too.
_BOOTSTRAP = """
import json, os, sys
with os.fdopen(os.dup(0), encoding="utf-8") as first:
    about = json.loads(first.readline())
sys.path[:] = about["path"]
sys.argv[:] = about["argv"]
del os.environ[about["marker"]]
from spa_dat.runtime.child._main import main
main(about["reading"], about["writing"], about["memory"])
"""
# In the environment of a child until it has begun: if it is still there, what was started is not a
# Python interpreter but the program again, which would start children without end.
_MARKER = "SPA_DAT_BOOTSTRAP"
_ROOM = 262_144
_CLOSING = 1.0
_LOOK = 0.02


class ChildProcess:
    """One child process of an actor, from its start to its end.

    Nothing listens anywhere: the child inherits its ends of two pipes, and memory that both can
    read.

    Args:
        name: of the actor, for errors.
        received: called with each frame of the child.
        ended: called once, when the process has ended and all it has sent was received, with
            what ended it, in words.

    Attributes:
        progress: how far the child has come with its deliveries.
        channel: the way to it.
        exit_code: as in `subprocess.Popen`; None while it runs.

    Raises:
        ConfigurationError: it cannot be started; what the operating system said is the cause.
    """

    def __init__(
        self, name: str, received: Callable[[Any], None], ended: Callable[[str], None]
    ) -> None:
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self.exit_code: int | None = None
        self._why: str | None = None
        self._pidfd: int | None = None
        self._look: asyncio.TimerHandle | None = None
        with contextlib.ExitStack() as undo:
            try:
                self.progress = Progress()
                undo.callback(self.progress.close)
                reading, its_writing = _open_pipe()
                undo.callback(reading.close)
                with its_writing:
                    its_reading, writing = _open_pipe()
                    undo.callback(writing.close)
                    with its_reading:
                        self._process = _launch(
                            name, its_reading, its_writing, self.progress.descriptor
                        )
            except OSError as error:
                raise ConfigurationError(
                    f"actor {name!r} has placement='process', and no process can be started:"
                    f" {error}"
                ) from error
            undo.pop_all()
        self.channel = Channel(
            reading,
            writing,
            FromChild,
            received,
            self._pipe_ended,
            self.progress.to_child,
            self.progress.from_child,
        )
        self._watch()

    @property
    def pid(self) -> int:
        """Its number in the operating system."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not been reaped yet."""
        return self.exit_code is None

    def kill(self, why: str | None = None) -> None:
        """End it at once, by SIGKILL.

        Args:
            why: what `ended` is to say; None for the signal.
        """
        if self.alive:
            self._why = self._why or why
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def abandon(self) -> None:
        """End it without anybody being told; also after its event loop was closed."""
        self._unwatch()
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self.exit_code = self._process.wait()
        self._close()

    def _watch(self) -> None:
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
                self._loop.add_reader(self._pidfd, self._look_at_it)
                return
        self._look = self._loop.call_later(_LOOK, self._look_again)

    def _look_again(self) -> None:
        self._look_at_it()
        if self.alive:
            self._look = self._loop.call_later(_LOOK, self._look_again)

    def _look_at_it(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        self.exit_code = code
        self._unwatch()
        # What it has sent before is still there.
        self.channel.read_rest()
        self._close()
        self._ended(self._why or describe_exit(code))

    def _pipe_ended(self, error: BaseException | None) -> None:
        # A process that forked, or closed what it does not know, has no other way back.
        if error is not None:
            self._why = self._why or f"has written to the pipe that belongs to the runtime: {error}"
        self._loop.call_later(
            _CLOSING, self.kill, "has closed the pipe that belongs to the runtime"
        )

    def _unwatch(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._pidfd is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _close(self) -> None:
        if not self._loop.is_closed():
            self.channel.close()


def _open_pipe() -> tuple[FileIO, FileIO]:
    reading, writing = os.pipe()
    # A payload that does not go by shared memory fits, where the operating system allows it.
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _ROOM)
    return FileIO(reading, "rb"), FileIO(writing, "wb")


def _launch(name: str, reading: FileIO, writing: FileIO, memory: int) -> subprocess.Popen[bytes]:
    executable = sys.executable
    if not executable or _MARKER in os.environ or getattr(sys, "frozen", False):
        raise ConfigurationError(
            f"actor {name!r} has placement='process', which needs a Python interpreter, and"
            f" sys.executable is {executable!r}: where Python is frozen or embedded, set it to the"
            " path of an interpreter that has the same packages, and delete sys.frozen"
        )
    first = {
        "path": [entry or os.getcwd() for entry in sys.path],
        "argv": sys.argv,
        "reading": reading.fileno(),
        "writing": writing.fileno(),
        "memory": memory,
        "marker": _MARKER,
    }
    # By standard input, which the child has no other use for. It fits: pipes hold 64 KiB.
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        line = json.dumps(first).encode() + b"\n"
        if os.write(writer, line) < len(line):
            raise ConfigurationError(f"actor {name!r}: sys.path and sys.argv are too long to send")
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        return subprocess.Popen(  # noqa: S603 (a command of ours)
            [executable, *flags, "-c", _BOOTSTRAP],
            pass_fds=(reading.fileno(), writing.fileno(), memory),
            env={**os.environ, _MARKER: "1"},
            stdin=reader,
        )
    finally:
        os.close(reader)
        os.close(writer)
