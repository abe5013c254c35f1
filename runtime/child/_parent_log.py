"""The log of a child process: its records go to the parent's loggers."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

from ..._json_formatter import extra_of
from ..._logs import LEFT_OUT, OWN, set_levels
from ..._texts import encodable
from ..processes._channel import Channel
from ..processes._frames import Logged

__all__ = ["ParentLog"]

_MOST_PENDING = 1_048_576
_LONGEST = 32_768
_MOST_FROM_THREADS = 1_000


class ParentLog(logging.Handler):
    """Sends what is logged to the parent; what is too much is left out and counted.

    In a process that the child forks off it writes to standard error: the pipe is the child's.

    Args:
        channel: the way to the parent.
        levels: of the parent's loggers that have one of their own, by name; "" is the root.
    """

    def __init__(self, channel: Channel, levels: dict[str, int]) -> None:
        super().__init__()
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._from_threads = 0
        self._left_out = 0
        self._formatter = logging.Formatter()
        self._process = os.getpid()
        self._of_forks = logging.StreamHandler()
        set_levels(levels)
        logging.root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; called in any thread."""
        # What the runtime says of its start and end concerns the parent's only.
        if record.name == "spa_dat" and record.levelno <= logging.INFO:
            return
        if os.getpid() != self._process:
            self._of_forks.handle(record)
            return
        try:
            frame = self._frame(record)
        except Exception:  # noqa: BLE001 (as other handlers do)
            self.handleError(record)
            return
        if threading.get_ident() == self._thread:
            self._send(frame)
        elif self._from_threads >= _MOST_FROM_THREADS:
            self._left_out += 1
        else:
            self._from_threads += 1
            try:
                self._loop.call_soon_threadsafe(self._send_for_thread, frame)
            except RuntimeError:  # it is closed
                return

    def _frame(self, record: logging.LogRecord) -> Logged:
        traceback = record.exc_text
        if traceback is None and record.exc_info:
            traceback = self._formatter.formatException(record.exc_info)
        return Logged(
            encodable(record.name),
            record.levelno,
            encodable(record.getMessage()[:_LONGEST]),
            traceback and encodable(traceback[-_LONGEST:]),
            {encodable(name): _encodable(value) for name, value in extra_of(record).items()},
            hasattr(record, OWN),
            record.created,
        )

    def _send_for_thread(self, frame: Logged) -> None:
        self._from_threads -= 1
        self._send(frame)

    def _send(self, frame: Logged) -> None:
        if self._channel.pending > _MOST_PENDING:
            self._left_out += 1
            return
        if self._left_out:
            text = f"{self._left_out} records were left out: the log could not keep up"
            fields = {LEFT_OUT: self._left_out}
            self._left_out = 0
            self._channel.send(
                Logged("spa_dat", logging.WARNING, text, None, fields, True, frame.created)
            )
        self._channel.send(frame)
        if frame.level >= logging.WARNING:
            # What comes next may be the end.
            self._channel.flush()


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(name): _encodable(one) for name, one in value.items()}
    return [_encodable(one) for one in value] if isinstance(value, list) else value
