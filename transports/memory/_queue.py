"""Queues of the memory broker: the messages kept for a session or a shared group."""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from .._envelope import Envelope
from .._outbox import size_of
from ._faults import BrokerFaults

__all__ = ["ENDLESS", "ClientLink", "InTransit", "Queue", "QueueLimits", "Wire"]


class QueueLimits(NamedTuple):
    """How much may wait in one queue before publishers have to.

    Attributes:
        messages: how many.
        bytes: how many of them.
    """

    messages: int
    bytes: int


ENDLESS = QueueLimits(sys.maxsize, sys.maxsize)


class Wire(Protocol):
    """What carries the packets of one connection, where they do not arrive directly.

    Each direction keeps its order. Packets in flight when the connection ends never arrive.
    """

    def up(self, function: Callable[..., None], *args: Any) -> None:
        """Call the function when, and if, the packet reaches the broker; possibly at once."""

    def acknowledge(self, token: int) -> None:
        """Tell the queue that a message is done, when the packet reaches the broker."""

    def down(self, function: Callable[..., None], *args: Any) -> None:
        """Call the function when, and if, the packet reaches the client; never at once."""


# It is part of no cycle, and what the garbage collector need not look at costs it nothing: neither
# does the dictionary of what is in flight, for each of thousands of connections.
class Stored(msgspec.Struct, eq=False, gc=False):
    """One message in one queue."""

    envelope: Envelope
    token: int
    deadline: float | None
    retained: bool
    redelivered: bool = False
    # As an outbox counts it, while it is waiting.
    size: int = 0

    def received(self, now: float) -> Envelope:
        """Return the envelope as a subscriber gets it."""
        sent = self.envelope
        if (
            self.deadline is None
            and not (self.redelivered or self.retained or sent.retain)
            and (self.token > 0) == (sent.qos > 0)
        ):
            return sent
        return msgspec.structs.replace(
            sent,
            qos=1 if self.token > 0 else 0,
            retain=self.retained,
            redelivered=self.redelivered,
            expiry=None if self.deadline is None else max(0.0, self.deadline - now),
        )


class InTransit:
    """What is on its way to clients on one event loop, in the order in which it was sent.

    All of it arrives in the next iteration of the loop, with one callback for all connections.
    """

    __slots__ = ("_on_the_way",)

    def __init__(self) -> None:
        self._on_the_way: list[tuple[ClientLink, Stored]] = []

    def add(self, link: ClientLink, stored: Stored) -> None:
        """Hand the message to the client in the next iteration, if it is still connected then."""
        if not self._on_the_way:
            link.loop.call_soon(self._arrive)
        self._on_the_way.append((link, stored))

    def _arrive(self) -> None:
        arriving, self._on_the_way = self._on_the_way, []
        now = asyncio.get_running_loop().time()
        left = iter(arriving)
        try:
            for link, stored in left:
                if link.open:
                    link.on_message(stored.received(now), stored.token)
        finally:
            # One client's error must not keep the others from their messages.
            for link, stored in left:
                self.add(link, stored)


class ClientLink:
    """The broker's side of one connection.

    Args:
        client_id: the client; it has at most one open connection.
        queue: its session or shared group.
        window: the most QoS 1 messages that may be sent and not acknowledged.
        window_bytes: the most bytes of them, except for a single larger message; None for no limit.
        on_message: called with an envelope and its token (-1: nothing to acknowledge), but never
            from within a call to the broker.
        on_lost: called when the broker ends the connection; the argument says whether the same
            client id connected again elsewhere.
        in_transit: what is on its way on the client's event loop.

    Attributes:
        on_message: as given.
        wire: carries its packets; None for the direct way.
    """

    # Slots here and below: with thousands of actors a message costs what it touches in memory.
    __slots__ = (
        "_in_transit",
        "client_id",
        "filters",
        "in_flight",
        "loop",
        "on_lost",
        "on_message",
        "open",
        "queue",
        "size",
        "window",
        "window_bytes",
        "wire",
    )

    def __init__(
        self,
        client_id: str,
        queue: Queue,
        *,
        window: int,
        window_bytes: int | None = None,
        on_message: Callable[[Envelope, int], None],
        on_lost: Callable[[bool], None],
        in_transit: InTransit,
    ) -> None:
        self.client_id: str = client_id
        self.queue: Queue = queue
        self.window: int = window
        self.window_bytes: int | None = window_bytes
        self.on_lost: Callable[[bool], None] = on_lost
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.filters: dict[str, None] = {}
        self.in_flight: dict[int, Stored] = {}
        self.size: int = 0
        self.open: bool = True
        self.wire: Wire | None = None
        self.on_message: Callable[[Envelope, int], None] = on_message
        self._in_transit = in_transit

    def send(self, stored: Stored) -> None:
        """Send the message; it arrives in a later iteration of the loop."""
        if self.wire is not None:
            self.wire.down(self._received, stored)
            return
        self._in_transit.add(self, stored)

    def acknowledge(self, token: int) -> None:
        """Tell the broker that the client is done with a message."""
        if self.wire is None:
            self.queue.acknowledge(self, token)
        else:
            self.wire.acknowledge(token)

    def shut(self) -> list[Stored]:
        """End the connection; return what was sent but not acknowledged, oldest first."""
        self.open = False
        left = sorted(self.in_flight.values(), key=_by_token)
        self.in_flight.clear()
        self.size = 0
        return left

    def has_room(self) -> bool:
        """Return whether one more message may be sent."""
        return len(self.in_flight) < self.window and (
            self.window_bytes is None or self.size < self.window_bytes
        )

    def _received(self, stored: Stored) -> None:
        self.on_message(stored.received(self.loop.time()), stored.token)


class Queue:
    """The messages of one session, or of a group that shares them, until they are acknowledged.

    It takes whatever it is given: publishers look first whether it is full, and wait for room.

    Args:
        name: the client id, or the name of the group.
        faults: the broker's.
        shared: whether each message goes to one of several connections.
        limits: when it is full.
        full: the full queues, where it enters itself.

    Attributes:
        name: the client id, or the name of the group.
        durable: whether it is kept while nobody is connected.
        shared: whether each message goes to one of several connections; otherwise there is at most
            one connection.
        filters: what it receives, in the order of subscribing.
        qos: the highest quality of service of its subscriptions.
        members: open connections.
        size: the bytes of the waiting messages, as an outbox counts them.
    """

    __slots__ = (
        "_faults",
        "_full",
        "_limits",
        "_pending",
        "_tokens",
        "_turn",
        "_waiters",
        "durable",
        "filters",
        "members",
        "name",
        "qos",
        "shared",
        "size",
    )

    def __init__(
        self,
        name: str,
        faults: BrokerFaults,
        *,
        shared: bool,
        limits: QueueLimits = ENDLESS,
        full: dict[Queue, None] | None = None,
    ) -> None:
        self.name: str = name
        self.durable: bool = True
        self.shared: bool = shared
        self.qos: int = 1
        self.filters: dict[str, None] = {}
        self.members: list[ClientLink] = []
        self._faults = faults
        self._limits = limits
        self._full = {} if full is None else full
        self._pending: deque[Stored] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.size: int = 0
        self._tokens = 0
        self._turn = 0

    def __len__(self) -> int:
        """Return the number of waiting messages, which are on no connection."""
        return len(self._pending)

    async def room(self, waiter: asyncio.Future[None]) -> None:
        """Wait until it is not full, behind all who wait for that already.

        Args:
            waiter: a new future; whoever gives it a result ends the wait early.
        """
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._look_for_room()

    def release(self) -> None:
        """Let everybody go on who waits for room, as the queue has ended."""
        waiters = list(self._waiters)
        self._waiters.clear()
        self._full.pop(self, None)
        for waiter in waiters:
            if not (waiter.done() or waiter.get_loop().is_closed()):
                waiter.set_result(None)

    def forget_waiters(self) -> None:
        """Forget who waited for room on an event loop that has ended."""
        self._waiters.clear()
        self._look_for_room()

    def _look_for_room(self) -> None:
        """Note whether it is full; if it is not, let the first go on who waits for that."""
        exceeds = len(self._pending) >= self._limits.messages or self.size >= self._limits.bytes
        # Who comes later must not overtake those who wait.
        if exceeds or self._waiters:
            self._full[self] = None
        else:
            self._full.pop(self, None)
        if not exceeds and self._waiters and not self._waiters[0].done():
            self._waiters[0].set_result(None)

    def put(
        self, envelope: Envelope, deadline: float | None = None, *, retained: bool = False
    ) -> None:
        """Queue a message; with QoS 0 only if it can be sent now."""
        if min(envelope.qos, self.qos) == 0:
            if self.members and not self._faults.drops(envelope.topic):
                self._turn += 1
                link = self.members[self._turn % len(self.members)]
                link.send(Stored(envelope, -1, deadline, retained=retained))
            return
        faults = self._faults
        copies = 2 if faults.duplicates(envelope.topic) else 1
        if not self._pending and copies == 1 and deadline is None and len(self.members) == 1:
            # As below, without what only queued messages need.
            link = self.members[0]
            if link.has_room():
                self._tokens += 1
                stored = Stored(envelope, self._tokens, None, retained=retained)
                link.in_flight[stored.token] = stored
                link.size += len(envelope.payload)
                if not faults.drops(envelope.topic):
                    link.send(stored)
                return
        size = size_of(envelope)
        for _ in range(copies):
            self._tokens += 1
            stored = Stored(envelope, self._tokens, deadline, retained, size=size)
            self._pending.append(stored)
            self.size += size
        self._pump()

    def join(self, link: ClientLink) -> None:
        """Send the queued messages to this connection too."""
        self.members.append(link)
        self._pump()

    def leave(self, link: ClientLink) -> None:
        """Take back what this connection has not acknowledged, to be sent again first."""
        self.members.remove(link)
        returned = link.shut()
        for stored in returned:
            stored.redelivered = True
            stored.size = size_of(stored.envelope)
            self.size += stored.size
        self._pending = deque(heapq.merge(returned, self._pending, key=_by_token))
        self._pump()

    def acknowledge(self, link: ClientLink, token: int) -> None:
        """Drop a message that is done; unknown tokens are ignored."""
        stored = link.in_flight.pop(token, None)
        if stored is not None:
            link.size -= len(stored.envelope.payload)
            if self._pending:
                self._pump()

    def _pump(self) -> None:
        while self._pending and (link := self._next_member()) is not None:
            stored = self._pending.popleft()
            self.size -= stored.size
            if stored.deadline is not None and stored.deadline <= link.loop.time():
                continue
            link.in_flight[stored.token] = stored
            link.size += len(stored.envelope.payload)
            if not self._faults.drops(stored.envelope.topic):
                link.send(stored)
        if (
            self._full
            or self.size >= self._limits.bytes
            or len(self._pending) >= self._limits.messages
        ):
            self._look_for_room()

    def _next_member(self) -> ClientLink | None:
        count = len(self.members)
        for step in range(1, count + 1):
            index = (self._turn + step) % count
            link = self.members[index]
            if link.has_room():
                self._turn = index
                return link
        return None


def _by_token(stored: Stored) -> int:
    return stored.token
