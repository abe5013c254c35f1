"""The consumer on Kafka."""

from __future__ import annotations

from collections.abc import Sequence

from .._contract import Consumer, Receiver, Subscription
from .._delivery import Tracker
from ._bus_context import BusContext
from .consuming._consumer_sessions import ConsumerSessions
from .consuming._group_member import GroupMember
from .consuming._groupless_reader import Reader

__all__ = ["KafkaConsumer"]


class KafkaConsumer(Consumer):
    """Receives one subscription's messages.

    A durable subscription of a named application is a member of a consumer group:
    ``{application}.{subscription}`` with ``share``, ``{application}.{instance}.{subscription}``
    without. Any other reads all partitions by itself, from now on.

    Args:
        context: that of the bus.
        subscription: what to receive.
        receiver: gets the deliveries.
    """

    def __init__(self, context: BusContext, subscription: Subscription, receiver: Receiver) -> None:
        surroundings = context.surroundings
        lasting = subscription.durable and not surroundings.identity.ephemeral
        kind: type[GroupMember] | type[Reader] = GroupMember if lasting else Reader
        self._stats = surroundings.stats
        self._sessions: ConsumerSessions = kind(context, subscription, receiver)

    @property
    def trouble(self) -> str | None:
        return self._sessions.trouble

    @property
    def trackers(self) -> Sequence[Tracker]:
        return self._sessions.trackers

    @property
    def lag(self) -> int | None:
        return self._sessions.lag

    async def start(self) -> None:
        await self._sessions.start()

    async def add_filter(self, pattern: str) -> None:
        await self._sessions.change(pattern, None)

    async def remove_filter(self, pattern: str) -> None:
        await self._sessions.change(None, pattern)

    def discard_stale(self, topic: str) -> None:
        # The cluster keeps no filters: what arrived was in flight.
        self._stats["messages.stale"] += 1

    def stop_intake(self) -> None:
        self._sessions.stop()

    async def close(self) -> None:
        await self._sessions.close()

    async def close_within(self, seconds: float) -> None:
        await self._sessions.close(seconds)
