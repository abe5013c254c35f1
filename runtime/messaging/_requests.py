"""Requests: sending them, and matching the replies that arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import TypedDict

from ...errors import RemoteError, RequestTimeout
from ...transports import Bus, Envelope, OutboxEntry, on_failure
from ...transports._wire_formats import WireName, with_wire

__all__ = [
    "ERROR_HEADER",
    "LENGTH_OF_PREFIX",
    "LONGEST_CODE",
    "LONGEST_TEXT",
    "MOST_REPLIES",
    "ManyOptions",
    "RequestOptions",
    "Requests",
    "remote_error",
]

ERROR_HEADER = "spa_error"
"""On a reply: the code of a `RemoteError`; the payload is its text."""
MOST_REPLIES = 1_000
"""How many replies to one request are kept by default."""


class RequestOptions(TypedDict, total=False):
    """The options of `Socket.request`, which explains them."""

    timeout: float
    key: str | None
    headers: Mapping[str, str | None] | None
    wire: WireName | None


class ManyOptions(RequestOptions, total=False):
    """The options of `Socket.request_many`, which explains them."""

    count: int | None
    limit: int


_MOST_BYTES = 16_777_216
_MOST_BYTES_TOGETHER = 67_108_864
LENGTH_OF_PREFIX = 8
"""Characters that the correlations of one child process have in common."""
LONGEST_CODE = 100
"""The most characters in the code of an error reply, sent or received."""
LONGEST_TEXT = 1_000
"""The most characters in its text."""
# Bytes of memory that a message and a header take besides their characters.
_OVERHEAD = 512
_OVERHEAD_OF_A_HEADER = 256


def remote_error(envelope: Envelope) -> RemoteError | None:
    """Return the error that a reply carries, or that its size amounts to; None for a good one."""
    code = envelope.headers.get(ERROR_HEADER)
    left_out = envelope.left_out
    if code is None:
        if left_out is None:
            return None
        text = (
            f"the reply has {left_out.size} bytes, which is more than may be received: make the"
            " responder send less, or raise the option 'max_received' of the bus"
        )
        return RemoteError("reply-too-large", text)
    if left_out is not None:
        text = f"(a text of {left_out.size} bytes)"
    else:
        # A character has at most four bytes.
        text = envelope.payload[: 4 * LONGEST_TEXT].decode("utf-8", "replace")
        if len(envelope.payload) > 4 * LONGEST_TEXT or len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]}... ({len(envelope.payload)} bytes)"
    return RemoteError(code[:LONGEST_CODE], text)


def _size(envelope: Envelope) -> int:
    texts = (envelope.id, envelope.source, envelope.type, envelope.key, envelope.content_type)
    size = _OVERHEAD + len(envelope.payload) + sum(len(text) for text in texts if text)
    for name, value in envelope.headers.items():
        size += _OVERHEAD_OF_A_HEADER + len(name) + len(value)
    return size


class _PendingRequest:
    """One pending request, which collects its replies."""

    __slots__ = ("future", "limit", "posted", "replies", "seen", "size", "topic", "wanted")

    def __init__(
        self,
        topic: str,
        future: asyncio.Future[list[Envelope]],
        wanted: int | None,
        limit: int,
    ) -> None:
        self.topic = topic
        self.future = future
        self.wanted = wanted
        self.limit = limit
        self.size = 0
        self.posted: asyncio.Future[None] | None = None
        self.replies: list[Envelope] = []
        self.seen: set[tuple[str | None, str]] | None = None

    def fail(self, posted: asyncio.Future[None]) -> None:
        """End it if it could not be sent."""
        if posted.cancelled():
            return
        error = posted.exception()
        if error is not None and not self.future.done():
            self.future.set_exception(error)

    def is_repeated(self, envelope: Envelope) -> bool:
        """Return whether the same reply has come before: sent twice, or by two runs."""
        if envelope.id is None:
            return False
        known = (envelope.source, envelope.id)
        if self.seen is None:
            self.seen = {known}
            return False
        if known in self.seen:
            return True
        self.seen.add(known)
        return False


class _Expiries:
    """Pending requests with the same timeout, oldest first, which share one timer.

    With a timer for each the loop would have to make room in its heap for every request, and to
    clear it of those that have their replies.

    Args:
        loop: the event loop.
        timeout: seconds.
        expire: called with each request whose time is over, and the timeout.
    """

    __slots__ = ("_expire", "_loop", "_pending", "_timeout", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        expire: Callable[[_PendingRequest, float], None],
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._expire = expire
        # With the loop times at which they expire.
        self._pending: dict[_PendingRequest, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, pending: _PendingRequest) -> None:
        """Add a request, whose time starts now."""
        end = self._pending[pending] = self._loop.time() + self._timeout
        if self._timer is None:
            self._start(end)

    def remove(self, pending: _PendingRequest) -> int:
        """Remove a request; return how many are left."""
        self._pending.pop(pending, None)
        if not self._pending and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return len(self._pending)

    def _end(self) -> None:
        assert self._timer is not None
        # The loop calls a little early where its clock is coarse.
        now = max(self._loop.time(), self._timer.when())
        self._timer = None
        expired: list[_PendingRequest] = []
        for pending, end in self._pending.items():
            if end > now:
                self._start(end)
                break
            expired.append(pending)
        for pending in expired:
            del self._pending[pending]
            self._expire(pending, self._timeout)

    def _start(self, end: float) -> None:
        # In an empty context: that of one request would be kept alive by those after it.
        self._timer = self._loop.call_at(end, self._end, context=Context())


class Requests:
    """The pending requests on one bus.

    Every request has correlation data of its own that cannot be guessed. A reply with unknown
    correlation data (late, repeated, foreign) is dropped and counted as ``replies.dropped``, and so
    is one beyond the limits of what is kept.
    """

    def __init__(self, bus: Bus, token: Callable[[], str], stats: Counter[str]) -> None:
        self._bus = bus
        self._token = token
        self._stats = stats
        self._pending: dict[str, _PendingRequest] = {}
        # Of those in other processes, by how their correlations begin.
        self._relays: dict[str, Callable[[str, Envelope], None]] = {}
        # By their timeouts.
        self._expiries: dict[float, _Expiries] = {}
        # Bytes kept for all requests that collect several replies.
        self._size = 0

    def __len__(self) -> int:
        return len(self._pending)

    def close(self, error: Exception) -> None:
        """Fail all pending requests with the error: no reply can come any more."""
        for pending in [*self._pending.values()]:
            if not pending.future.done():
                pending.future.set_exception(error)

    def relay(self, prefix: str, on_reply: Callable[[str, Envelope], None] | None) -> None:
        """Hand replies to correlations with this prefix on, without it; None ends that.

        Args:
            prefix: of `LENGTH_OF_PREFIX` characters.
            on_reply: called with the rest of the correlation and the reply.
        """
        if on_reply is None:
            self._relays.pop(prefix, None)
        else:
            self._relays[prefix] = on_reply

    def on_reply(self, correlation: str, envelope: Envelope) -> None:
        """Take a reply; called by the bus."""
        pending = self._pending.get(correlation)
        if pending is None and self._relays:
            relay = self._relays.get(correlation[:LENGTH_OF_PREFIX])
            if relay is not None:
                relay(correlation[LENGTH_OF_PREFIX:], envelope)
                return
        if pending is None or pending.future.done():
            self._stats["replies.dropped"] += 1
            return
        if pending.wanted == 1:
            pending.replies.append(envelope)
            del self._pending[correlation]
            pending.future.set_result(pending.replies)
            return
        if pending.is_repeated(envelope):
            self._stats["replies.dropped"] += 1
            return
        if not self._keeps(pending, envelope):
            self._stats["replies.dropped"] += 1
            del self._pending[correlation]
            pending.future.set_result(pending.replies)
            return
        pending.replies.append(envelope)
        if pending.wanted is not None and len(pending.replies) >= pending.wanted:
            del self._pending[correlation]
            pending.future.set_result(pending.replies)

    def _keeps(self, pending: _PendingRequest, envelope: Envelope) -> bool:
        """Return whether there is room for one more reply; if not, add one that says so."""
        size = _size(envelope)
        if pending.wanted is None and len(pending.replies) >= pending.limit:
            problem = f"more than {pending.limit} replies arrived: raise limit= to get them"
        elif pending.size + size > _MOST_BYTES or self._size + size > _MOST_BYTES_TOGETHER:
            problem = (
                f"after {len(pending.replies)} replies of {pending.size} bytes there was no room"
                f" for more: one request may get {_MOST_BYTES} bytes of replies, and all requests"
                f" together {_MOST_BYTES_TOGETHER}"
            )
        else:
            pending.size += size
            self._size += size
            return True
        headers = {ERROR_HEADER: "too-many-replies"}
        end = Envelope(topic=envelope.topic, payload=problem.encode(), headers=headers)
        pending.replies.append(end)
        return False

    async def request(
        self,
        make: Callable[[str, bytes], Envelope],
        *,
        timeout: float,
        wanted: int | None,
        limit: int = MOST_REPLIES,
        wire: str | None = None,
    ) -> list[Envelope]:
        """Send a request and collect its replies.

        Args:
            make: builds the request from the response topic and the correlation.
            timeout: seconds.
            wanted: how many replies to wait for; None waits for the whole timeout and returns
                whatever has come, possibly nothing.
            limit: how many replies are kept if ``wanted`` is None.
            wire: the format that the request names; None for that of the bus.

        Raises:
            RequestTimeout: fewer than ``wanted`` replies came in time.
            NoResponder: the bus says that nobody listens.
            TransportError: the request could not be sent.
        """
        correlation = with_wire(self._token(), wire)
        envelope = make(self._bus.reply_address(correlation), correlation.encode("ascii"))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Envelope]] = loop.create_future()
        pending = _PendingRequest(envelope.topic, future, wanted, limit)
        self._pending[correlation] = pending
        expiries = self._expiries.get(timeout)
        if expiries is None:
            expiries = self._expiries[timeout] = _Expiries(loop, timeout, self._expire)
        expiries.add(pending)
        try:
            posted = pending.posted = self._bus.post(envelope)
            on_failure(posted, pending.fail)
            try:
                return await future
            finally:
                # Has an effect only before it is sent: a request nobody waits for is not sent.
                if not posted.done():
                    posted.cancel()
                del posted
                pending.posted = None
        finally:
            if not expiries.remove(pending) and self._expiries.get(timeout) is expiries:
                del self._expiries[timeout]
            self._pending.pop(correlation, None)
            self._size -= pending.size
            # Their errors have this frame, and those of the user's code around it, in tracebacks.
            del future, pending

    def _expire(self, pending: _PendingRequest, timeout: float) -> None:
        if pending.future.done():
            return
        if pending.wanted is None:
            pending.future.set_result(pending.replies)
            return
        got = (
            f"{len(pending.replies)} of {pending.wanted} replies" if pending.replies else "no reply"
        )
        hint = "" if self._bus.connected else "; there is no connection to the broker"
        error = RequestTimeout(f"request to {pending.topic!r}: {got} within {timeout:g} s{hint}")
        posted = pending.posted
        error.outage = not self._bus.connected or (
            isinstance(posted, OutboxEntry) and posted.met_outage(timeout)
        )
        pending.future.set_exception(error)
