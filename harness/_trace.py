"""The trace of a harness: what happened, line by line."""

from __future__ import annotations

import asyncio

from .._texts import escaped

__all__ = ["Trace"]

_LONGEST = 200_000


class Trace:
    """The events of one harness: when, who, what, about which message.

    There is nothing in it that differs from one process to another, so the same program under the
    same seed gives the same text.

    Args:
        loop: whose clock counts.
        start: its time at the beginning.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, start: float) -> None:
        self._loop = loop
        self._start = start
        self._events: list[tuple[float, str, str, str, str | None]] = []

    def add(self, who: str, what: str, about: str = "", identifier: str | None = None) -> None:
        """Note an event.

        Args:
            who: an actor, a client of the broker, an application.
            what: one word for it.
            about: a topic, or what else there is to say.
            identifier: id of the message.
        """
        self._events.append((self._loop.time(), who, what, about, identifier))

    def __len__(self) -> int:
        return len(self._events)

    def lines(self) -> list[str]:
        """The events as text; what others have chosen makes no lines of its own."""
        return [
            escaped(
                " ".join(
                    filter(None, (f"{time - self._start:.6f}", who, what, about, identifier)),
                ),
                _LONGEST,
            )
            for time, who, what, about, identifier in self._events
        ]
