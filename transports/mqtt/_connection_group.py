"""The connections of an application to one broker, and what they know of one another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .protocol._client import MqttClient

__all__ = ["CLOSE_TIMEOUT", "ConnectionGroup"]

CLOSE_TIMEOUT = 2.0
"""Seconds for which a broker is waited for when a connection is closed."""
_SHORT_CLOSE_TIMEOUT = 0.2
_REMEMBERED = 10.0
_LATELY = 60.0
_ASKED_AGAIN = 10.0


class ConnectionGroup:
    """The connections of an application to one broker, each with a client identifier of its own.

    They are closed one after another. If a broker has not answered one of them, it is frozen or
    cannot be reached, and those that follow hardly wait.

    Args:
        fatal: ends the application with an error.
    """

    def __init__(self, fatal: Callable[[BaseException], None]) -> None:
        self._fatal = fatal
        self._has_failed = False
        # By identifier: what the broker uses instead, and when it was lost last.
        self._assigned: dict[str, str] = {}
        self._connected: dict[str, None] = {}
        self._lost: dict[str, float] = {}
        self._silent_until = 0.0
        self._ask_from = 0.0

    def opened(self, identifier: str) -> None:
        """Note that a connection is in use."""
        self._connected[identifier] = None

    def lost(self, identifier: str) -> None:
        """Note that a connection has ended without being told to."""
        self._connected.pop(identifier, None)
        self._lost[identifier] = asyncio.get_running_loop().time()

    def may_displace_each_other(self, *, at_last: bool) -> bool:
        """Return whether to ask the broker if they do: more than one was lost within a minute.

        Asking takes two connections more, and a broker that is in trouble closes many. So it is
        asked each 10 seconds at most.

        Args:
            at_last: whether there is no other time to ask.
        """
        now = asyncio.get_running_loop().time()
        if sum(lost >= now - _LATELY for lost in self._lost.values()) < 2:
            return False
        if now < self._ask_from and not at_last:
            return False
        self._ask_from = now + _ASKED_AGAIN
        return True

    @property
    def connected(self) -> int:
        """How many of them are in use."""
        return len(self._connected)

    def shares(self, identifier: str, assigned: str) -> bool:
        """Note what the broker calls a connection, and return whether it calls another one so.

        Args:
            identifier: what was asked for.
            assigned: what the broker says that it uses instead; empty if it says nothing.
        """
        self._assigned[identifier] = assigned
        return assigned != "" and [*self._assigned.values()].count(assigned) > 1

    def fail(self, error: BaseException) -> None:
        """End the application, unless another connection has done so."""
        if not self._has_failed:
            self._has_failed = True
            self._fatal(error)

    async def disconnect(self, identifier: str, client: MqttClient | None) -> None:
        """Forget a connection and close it, waiting only briefly for a broker that was silent."""
        self._assigned.pop(identifier, None)
        self._connected.pop(identifier, None)
        self._lost.pop(identifier, None)
        if client is None:
            return
        loop = asyncio.get_running_loop()
        is_silent = loop.time() < self._silent_until
        answered = await client.disconnect(_SHORT_CLOSE_TIMEOUT if is_silent else CLOSE_TIMEOUT)
        self._silent_until = 0.0 if answered else loop.time() + _REMEMBERED
