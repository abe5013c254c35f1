"""Requests: who waits for which reply."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable

from .._texts import describe, error_name
from ..errors import RemoteError, RequestTimeout
from ..transports import Bus, Envelope
from ._retry import Reject

__all__ = [
    "CHAIN_HEADER",
    "ERROR_HEADER",
    "REPLY_HEADER",
    "Requests",
    "chain_of",
    "error_answer",
    "remote_error",
]

CHAIN_HEADER = "spa_chain"
"""On a request: the actors that wait for its reply, outermost first, separated by commas."""
ERROR_HEADER = "spa_error"
"""On a reply: the code of a `RemoteError`; the payload is its text."""
REPLY_HEADER = "spa_reply"
"""On a reply: marks it as one, so that it never gets a reply itself."""


# Sixteen names at the most, of printable characters: see `chain_names`.
_CHAIN = re.compile(r"[!-+\--~]+(?:,[!-+\--~]+){0,15}")
_LONGEST_CHAIN = 4096


def chain_of(envelope: Envelope) -> tuple[str, ...]:
    """The actors that wait for the reply to a request, outermost first.

    Empty where none are named, and where a stranger has written something else: it goes out again
    with each request that the handler makes.
    """
    text = envelope.headers.get(CHAIN_HEADER)
    if text is None or len(text) > _LONGEST_CHAIN or _CHAIN.fullmatch(text) is None:
        return ()
    return tuple(text.split(","))


def remote_error(envelope: Envelope) -> RemoteError | None:
    """The error that a reply carries, if it carries one."""
    code = envelope.headers.get(ERROR_HEADER)
    if code is None:
        return None
    return RemoteError(code, envelope.payload.decode("utf-8", "replace"))


def error_answer(error: BaseException) -> tuple[str, str]:
    """Code and text of the answer to a request whose handler has raised ``error``."""
    if isinstance(error, RemoteError):
        return error.code, error.text
    if isinstance(error, Reject):
        return "rejected", describe(error)
    return "failed", f"{error_name(error)}: {describe(error)}"


class _Waiting:
    """One request under way: hands on each reply, then is forgotten."""

    __slots__ = ("future", "replies", "seen", "wanted")

    def __init__(self, future: asyncio.Future[list[Envelope]], wanted: int | None) -> None:
        self.future = future
        self.wanted = wanted
        self.replies: list[Envelope] = []
        self.seen: set[tuple[str | None, str]] = set()

    def is_repeated(self, envelope: Envelope) -> bool:
        """Whether this very reply has come before: sent twice, or by a responder that ran twice."""
        if envelope.id is None:
            return False
        known = (envelope.source, envelope.id)
        if known in self.seen:
            return True
        self.seen.add(known)
        return False


class Requests:
    """The table of requests under way on one bus.

    Every request has a correlation of its own that can not be guessed. A reply for an unknown
    one (late, repeated, foreign) is dropped and counted as ``replies.dropped``.
    """

    def __init__(self, bus: Bus, token: Callable[[], str], stats: Counter[str]) -> None:
        self._bus = bus
        self._token = token
        self._stats = stats
        self._waiting: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def on_reply(self, correlation: str, envelope: Envelope) -> None:
        """A reply came in; called by the bus."""
        waiting = self._waiting.get(correlation)
        if waiting is None or waiting.future.done() or waiting.is_repeated(envelope):
            self._stats["replies.dropped"] += 1
            return
        waiting.replies.append(envelope)
        if waiting.wanted is not None and len(waiting.replies) >= waiting.wanted:
            del self._waiting[correlation]
            waiting.future.set_result(waiting.replies)

    async def request(
        self, make: Callable[[str, bytes], Envelope], *, timeout: float, wanted: int | None
    ) -> list[Envelope]:
        """Send a request and collect its replies.

        Args:
            make: builds the request from the response topic and the correlation.
            timeout: seconds.
            wanted: how many replies end the waiting; None waits for the whole timeout and
                returns what has come, be it nothing.

        Raises:
            RequestTimeout: fewer than ``wanted`` replies came in time.
            NoResponder: the bus says that nobody listens.
            TransportError: the request could not be sent.
        """
        correlation = self._token()
        envelope = make(self._bus.reply_address(correlation), correlation.encode("ascii"))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Envelope]] = loop.create_future()
        waiting = _Waiting(future, wanted)
        self._waiting[correlation] = waiting
        expiry = loop.call_later(timeout, self._expire, waiting, envelope.topic, timeout)
        try:
            posted = self._bus.post(envelope)
            posted.add_done_callback(lambda done: _fail_with(future, done))
            try:
                return await future
            finally:
                # Cancels only what was not written yet: a request nobody waits for is not sent.
                posted.cancel()
        finally:
            expiry.cancel()
            self._waiting.pop(correlation, None)

    def _expire(self, waiting: _Waiting, topic: str, timeout: float) -> None:
        if waiting.future.done():
            return
        if waiting.wanted is None:
            waiting.future.set_result(waiting.replies)
            return
        got = (
            f"{len(waiting.replies)} of {waiting.wanted} replies" if waiting.replies else "no reply"
        )
        hint = "" if self._bus.connected else "; there is no connection to the broker"
        error = RequestTimeout(f"request to {topic!r}: {got} within {timeout:g} s{hint}")
        error.outage = not self._bus.connected
        waiting.future.set_exception(error)


def _fail_with(future: asyncio.Future[list[Envelope]], posted: asyncio.Future[None]) -> None:
    if posted.cancelled():
        return
    error = posted.exception()
    if error is not None and not future.done():
        future.set_exception(error)
