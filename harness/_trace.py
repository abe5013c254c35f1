"""The trace of a harness: what happened, line by line."""

from __future__ import annotations

import asyncio

from .._texts import escaped

__all__ = ["Trace"]

_LONGEST = 200_000


class Trace:
    """The events of one harness: when, who, what, about which message.

    It contains nothing that differs from one process to another, so the same program with the same
    seed gives the same text.

    Args:
        loop: the loop whose clock it uses.
        start: the time on that clock at the beginning.
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
            about: a topic, or other details.
            identifier: the id of the message.
        """
        self._events.append((self._loop.time(), who, what, about, identifier))

    def __len__(self) -> int:
        return len(self._events)

    def lines(self) -> list[str]:
        """Return the events as text, one line each; line breaks in names are escaped."""
        return [
            escaped(
                " ".join(
                    filter(None, (f"{time - self._start:.6f}", who, what, about, identifier)),
                ),
                _LONGEST,
            )
            for time, who, what, about, identifier in self._events
        ]
