"""A child process of the command line, and the link between it and its parent.

The link is a pair of sockets. The child reports on it, a word a line; and each end tells by its
end that the other process is gone, however that has happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from .._service_manager import without_service_manager
from ..errors import ConfigurationError

__all__ = ["Child", "Parent"]

_VARIABLE = "_SPA_DAT_CHILD"
_MOST_UNREAD = 65_536


class Child:
    """The command in a process of its own: a fresh interpreter that runs the application.

    It is in a process group of its own, else Ctrl-C in a terminal would reach it twice.

    Args:
        arguments: of the command.
        number: of a worker, from 0; None for none.
        count: how many workers there are; None for none.
        again: it takes the place of one that has ended.
        piped: whether its output comes here.

    Attributes:
        pid: of the process.
        link: where its reports arrive.
        stdout: what it writes; None unless ``piped``.
        stderr: likewise.

    Raises:
        OSError: the machine cannot start it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        number: int | None = None,
        count: int | None = None,
        again: bool = False,
        piped: bool = False,
    ) -> None:
        self.link, theirs = socket.socketpair()
        try:
            told = json.dumps([theirs.fileno(), number, count, again])
            where = subprocess.PIPE if piped else None
            # Of several workers, who looks after them tells the service manager.
            inherited = os.environ if number is None else without_service_manager(os.environ)
            self._process = subprocess.Popen(  # noqa: S603 (the command itself)
                [sys.executable, *_flags(), "-m", "spa_dat", *arguments],
                env={**inherited, _VARIABLE: told},
                stdin=subprocess.DEVNULL,
                stdout=where,
                stderr=where,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        except BaseException:
            self.link.close()
            raise
        finally:
            theirs.close()
        self.link.setblocking(False)
        self.pid = self._process.pid
        self.stdout = self._process.stdout
        self.stderr = self._process.stderr
        self._unread = b""

    def reports(self) -> list[str] | None:
        """Return what it has reported since the last time; None when no more will come."""
        try:
            data = self.link.recv(_MOST_UNREAD)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        if not data:
            return None
        self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        # Whatever else writes there by mistake must not fill the memory.
        self._unread = self._unread[:_MOST_UNREAD]
        return [line.decode(errors="replace") for line in lines]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; only before it is `ended`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self, status: int) -> int:
        """Take note of its end, which others have waited for.

        Args:
            status: as `os.waitpid` gives it.

        Returns:
            The exit code; negative the signal that has killed it.
        """
        code = os.waitstatus_to_exitcode(status)
        self._process.returncode = code
        self.link.close()
        return code


def _flags() -> list[str]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if Path(__file__).resolve().parents[2] != Path.cwd():
        # A module of the user's in the current folder must not stand in for one of Python's here.
        flags.append("-P")
    return flags


class Parent:
    """The process that looks after this one, seen from here.

    Args:
        link: where it hears of this one.
        number: of this worker, from 0; None for none.
        count: how many workers there are; None for none.
        again: this process takes the place of one that has ended.
    """

    def __init__(
        self, link: socket.socket, number: int | None, count: int | None, again: bool
    ) -> None:
        self._link = link
        self.number = number
        self.count = count
        self.again = again

    @classmethod
    def of_this_process(cls) -> Parent | None:
        """Return the parent that has started this process to run the application, if one has.

        Only once: what this process starts is none of its parent's.
        """
        told = os.environ.pop(_VARIABLE, None)
        if told is None:
            return None
        try:
            descriptor, number, count, again = json.loads(told)
            link = socket.socket(fileno=descriptor)
        except (ValueError, TypeError, OSError) as error:
            raise ConfigurationError(
                f"the environment variable {_VARIABLE} is for the command's own use: remove it"
            ) from error
        os.set_inheritable(link.fileno(), False)
        return cls(link, number, count, again)

    def watch(self) -> None:
        """Stop this process in good order when the parent is gone, from now on."""
        threading.Thread(target=self._watch, name="spa_dat parent", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while self._link.recv(64):
                pass
        # What read the output is gone as well, and a print() must not fail handlers now.
        if self.count is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        os.kill(os.getpid(), signal.SIGTERM)

    def tell(self, report: str) -> None:
        """Report; dropped when the parent does not read."""
        with contextlib.suppress(OSError):
            self._link.send(f"{report}\n".encode(), socket.MSG_DONTWAIT)
