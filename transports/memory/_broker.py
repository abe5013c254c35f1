"""The memory broker."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from ...errors import ConfigurationError, NoResponder
from .._envelope import Envelope
from .._topics import TopicTrie
from ._faults import BrokerFaults
from ._queue import ENDLESS, ClientLink, InTransit, Queue, QueueLimits, Wire

__all__ = ["Broker"]


class Broker:
    """Sessions, shared groups, retained messages and expiry, as in a network broker.

    Everything happens on the event loop of the clients, and nothing is stored outside memory.

    Args:
        address: its name in log and error messages.
        limits: how much may wait in one queue; publishers have to respect it, see `full_queues`.

    Attributes:
        faults: failures on demand, for tests.
        links: open connections by client id, in the order in which they were opened.
        full: the queues in which as much waits as may, or which publishers wait for.
    """

    def __init__(self, address: str = "memory://", limits: QueueLimits = ENDLESS) -> None:
        self.address = address
        self._limits = limits
        self.full: dict[Queue, None] = {}
        self.faults: BrokerFaults = BrokerFaults(self)
        self.links: dict[str, ClientLink] = {}
        self._queues: dict[str, Queue] = {}
        self._trie: TopicTrie[Queue] = TopicTrie()
        self._retained: dict[str, tuple[Envelope, float | None]] = {}
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._in_transit = InTransit()

    @property
    def retained(self) -> Mapping[str, Envelope]:
        """The retained messages that have not expired, by topic, oldest first."""
        now = asyncio.get_running_loop().time()
        return MappingProxyType(
            {
                topic: envelope
                for topic, (envelope, deadline) in self._retained.items()
                if deadline is None or deadline > now
            }
        )

    @property
    def queues(self) -> Mapping[str, Queue]:
        """Sessions by client id, and shared groups by ``$share/`` and their name."""
        return MappingProxyType(self._queues)

    def connect(
        self,
        client_id: str,
        *,
        durable: bool,
        window: int,
        window_bytes: int | None = None,
        on_message: Callable[[Envelope, int], None],
        on_lost: Callable[[bool], None],
        group: str | None = None,
        qos: int = 1,
    ) -> ClientLink:
        """Open a connection and find or create its session; messages may arrive from now on.

        An open connection with the same client id is ended first.

        Args:
            client_id: the client that connects.
            durable: keep the session while nobody is connected; otherwise it starts empty.
            window: as in `ClientLink`.
            window_bytes: as in `ClientLink`.
            on_message: as in `ClientLink`.
            on_lost: as in `ClientLink`.
            group: share the session under this name; None for a session of its own.
            qos: the highest quality of service requested.

        Raises:
            ConnectFailed: a test asked for it.
            ConfigurationError: the broker is in use on another event loop.
        """
        self._bind(asyncio.get_running_loop())
        self.faults.check_connection()
        if (older := self.links.get(client_id)) is not None:
            self.drop(older, taken_over=True)
        own = self._queues.get(client_id)
        if own is not None and (group is not None or not durable):
            self._end(own)
        name = client_id if group is None else f"$share/{group}"
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(
                name,
                self.faults,
                shared=group is not None,
                limits=self._limits,
                full=self.full,
            )
        queue.durable = durable
        queue.qos = qos
        link = ClientLink(
            client_id,
            queue,
            window=window,
            window_bytes=window_bytes,
            on_message=on_message,
            on_lost=on_lost,
            in_transit=self._in_transit,
        )
        link.wire = self.make_wire(link)
        self.links[client_id] = link
        queue.join(link)
        return link

    def make_wire(self, link: ClientLink) -> Wire | None:
        """Return the wire for the packets of a new connection; None for the direct way."""
        return None

    def subscribe(
        self,
        link: ClientLink,
        patterns: Iterable[str],
        retained: Literal["new", "always", "never"] = "new",
    ) -> None:
        """Put plain filters into force; retained messages are sent for those that are new.

        Or for all of them, or none, if ``retained`` says so. A shared group gets none.
        """
        queue = link.queue
        wanted = dict.fromkeys(patterns)
        link.filters.update(wanted)
        new = [pattern for pattern in wanted if pattern not in queue.filters]
        for pattern in new:
            queue.filters[pattern] = None
            self._trie.add(pattern, queue)
        told = {"new": new, "always": [*wanted], "never": []}[retained]
        if told and self._retained and not queue.shared:
            self._send_retained(queue, told)

    def _send_retained(self, queue: Queue, patterns: list[str]) -> None:
        (first, *others) = patterns
        topics: Iterable[str] = (first,) if first in self._retained else ()
        if others or "+" in first or "#" in first:
            # Not each topic with each filter: there may be thousands of both.
            index: TopicTrie[None] = TopicTrie()
            for pattern in patterns:
                index.add(pattern, None)
            topics = [topic for topic in self._retained if index.match(topic)]
        now = asyncio.get_running_loop().time()
        for topic in topics:
            envelope, deadline = self._retained[topic]
            if deadline is None or deadline > now:
                queue.put(envelope, deadline, retained=True)

    def unsubscribe(self, link: ClientLink, pattern: str) -> None:
        """Undo `subscribe`; in a shared group only once no open connection wants the filter."""
        queue = link.queue
        link.filters.pop(pattern, None)
        if not any(pattern in member.filters for member in queue.members):
            queue.filters.pop(pattern, None)
            self._trie.discard(pattern, queue)

    def publish(self, envelope: Envelope) -> None:
        """Queue the message for all subscribers, and retain it if it says so.

        Raises:
            NoResponder: it is a request, and nobody is subscribed.
            PublishRefused: a test asked for it (or for another error).
        """
        self.faults.check_publish(envelope.topic)
        queues = self._trie.match(envelope.topic)
        if not queues and envelope.response_topic is not None and not envelope.retain:
            raise NoResponder(
                f"nobody is subscribed to {envelope.topic!r}; is the responder running,"
                " and is the topic right?"
            )
        envelope = _as_received(envelope)
        deadline = None
        if envelope.expiry is not None:
            deadline = asyncio.get_running_loop().time() + envelope.expiry
        if envelope.retain:
            self._retained.pop(envelope.topic, None)
            if envelope.payload:
                self._retained[envelope.topic] = (envelope, deadline)
        for queue in queues:
            queue.put(envelope, deadline)

    def full_queues(self, topic: str) -> list[Queue]:
        """Return the full ones among the queues that a message on the topic goes to."""
        return [queue for queue in self._trie.match(topic) if queue in self.full]

    def drop(
        self, link: ClientLink, *, taken_over: bool = False, lose_session: bool = False
    ) -> None:
        """End a connection from the broker's side, and notify its owner."""
        self.close(link, lose_session=lose_session)
        link.on_lost(taken_over)

    def close(self, link: ClientLink, *, lose_session: bool = False) -> None:
        """End a connection; what was not acknowledged on it is sent again."""
        if self.links.get(link.client_id) is not link:
            return
        del self.links[link.client_id]
        queue = link.queue
        queue.leave(link)
        if not queue.members and (lose_session or not queue.durable):
            self._end(queue)

    def _end(self, queue: Queue) -> None:
        del self._queues[queue.name]
        queue.release()
        for pattern in queue.filters:
            self._trie.discard(pattern, queue)

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None and self._loop() is loop:
            return
        for link in list(self.links.values()):
            if not link.loop.is_closed():
                raise ConfigurationError(
                    f"{self.address} is in use on another event loop; create a provider for each"
                )
            # Its loop ended without closing it: there is nobody to notify.
            self.close(link)
        for queue in self._queues.values():
            queue.forget_waiters()
        self._loop = weakref.ref(loop)
        # What was on its way on the earlier loop never arrives.
        self._in_transit = InTransit()


def _as_received(envelope: Envelope) -> Envelope:
    """Return a copy without the fields of the receiving side, and with immutable headers."""
    headers = envelope.headers
    if (
        (not headers or isinstance(headers, MappingProxyType))
        and not envelope.redelivered
        and envelope.partition is None
    ):
        return envelope
    return msgspec.structs.replace(
        envelope,
        headers=MappingProxyType(dict(headers)),
        redelivered=False,
        partition=None,
        offset=None,
    )
