"""Forked processes: ending one that an actor's code has forked off and that comes back from it."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any, NoReturn

from .._logs import get_logger

__all__ = ["leave_from_executor", "leave_process"]

_log = get_logger("spa_dat.actors")
_EXECUTOR = "concurrent.futures.thread"


def leave_process(name: str, error: BaseException | None = None) -> NoReturn:
    """End this process, which code of the user's has forked off without ending it.

    It has everything twice that the other one has: connections that both would read from and write
    to, messages that both would handle. Its exit code is that of `sys.exit`, if that was called.

    Args:
        name: whose code it was.
        error: what it has raised; None for what is being handled.
    """
    error = error or sys.exc_info()[1]
    code = 1
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    else:
        traceback = None if error is None or error.__traceback__ is None else error
        _log.error(
            "a process that code of %s has forked has returned from that code, and is ended: call"
            " os._exit() in it, or use multiprocessing or subprocess",
            name,
            exc_info=traceback,
        )
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


class _LeavesProcess:
    """Takes the place of the future of a function that has come back in a forked process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def set_result(self, result: object) -> None:
        leave_process(self._name)

    def set_exception(self, error: BaseException) -> None:
        leave_process(self._name, error)


def leave_from_executor(name: str) -> None:
    """End this process, which was forked off in a thread of an executor, when it comes back there.

    That thread is its only one. It would go on with what the other process has put into the
    executor, and then wait forever for more.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        work: Any = frame.f_locals.get("self") if frame.f_code.co_name == "run" else None
        if type(work).__module__ == _EXECUTOR and hasattr(work, "future"):
            work.future = _LeavesProcess(name)
            return
        frame = frame.f_back
