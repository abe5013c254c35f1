"""Rate-limited logging: of log lines of one kind only the first are written in full."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any

from ._logs import LEFT_OUT, OwnLog

__all__ = ["LimitedLog"]

_IN_FULL = 10
_SECONDS = 60.0
_MOST_KINDS = 1_000


class _Kind:
    """The log lines of one kind within a minute."""

    __slots__ = ("began", "last", "left_out", "timer", "written")

    def __init__(self, began: float) -> None:
        self.began = began
        self.written = 0
        self.left_out = 0
        self.last: tuple[object, tuple[object, ...]] = ("", ())
        self.timer: asyncio.TimerHandle | None = None


class LimitedLog(OwnLog):
    """Writes the first lines of each kind within 60 s, and then how many more there were.

    So lines that strangers can trigger do not bury everything else. Lines are of one kind if their
    level, their template and what is given as ``kind=`` (for example the class of an error) are the
    same. Lines below WARNING, and those written where no event loop is running, are not limited.

    Args:
        log: where the lines go.
        extra: as for `logging.LoggerAdapter`.
        prefix: the beginning of every line.
        first: how many lines of a kind are written.
    """

    def __init__(
        self,
        log: OwnLog,
        extra: Mapping[str, object] | None = None,
        prefix: str = "",
        first: int = _IN_FULL,
    ) -> None:
        super().__init__(log.logger, extra)
        # In a template a percent sign introduces an argument.
        self._prefix = prefix.replace("%", "%%")
        self._first = first
        self._kinds: dict[Hashable, _Kind] = {}

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        """See `logging.LoggerAdapter.process`."""
        return super().process(f"{self._prefix}{msg}", kwargs)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a line, or only count it if there are too many of its kind.

        Args:
            level: as for `logging.Logger.log`.
            msg: as for `logging.Logger.log`.
            args: as for `logging.Logger.log`.
            kwargs: as for `OwnLog.log`; ``kind`` tells lines of one template apart.
        """
        kind = kwargs.pop("kind", None)
        if not self.isEnabledFor(level):
            return
        if level < logging.WARNING or self._is_written((level, msg, kind), msg, args):
            # The record has to name the caller's line, not this one.
            super().log(level, msg, *args, **{"stacklevel": 2, **kwargs})

    def flush(self) -> None:
        """Report now how many lines were left out so far."""
        for key in list(self._kinds):
            self._sum_up(key)

    def _is_written(
        self, key: tuple[int, object, Hashable], msg: object, args: tuple[object, ...]
    ) -> bool:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return True
        now = loop.time()
        kind = self._kinds.get(key)
        if kind is not None and now >= kind.began + _SECONDS:
            self._sum_up(key)
            kind = None
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._sum_up(next(iter(self._kinds)))
            kind = self._kinds[key] = _Kind(now)
        if kind.written < self._first:
            kind.written += 1
            return True
        kind.left_out += 1
        kind.last = (msg, args)
        if kind.timer is None:
            kind.timer = loop.call_at(kind.began + _SECONDS, self._sum_up, key)
        return False

    def _sum_up(self, key: Hashable) -> None:
        kind = self._kinds.pop(key, None)
        if kind is None or kind.timer is None:
            return
        kind.timer.cancel()
        assert isinstance(key, tuple)
        msg, args = kind.last
        super().log(
            key[0],
            f"{kind.left_out} more lines within {_SECONDS:g} s are left out; the last one: {msg}",
            *args,
            extra={LEFT_OUT: kind.left_out},
        )
