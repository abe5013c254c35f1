"""Consumers of Kafka subscriptions for a test, and what their groups have committed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import TopicPartition

from spa_dat.testing.conformance import Inbox
from spa_dat.transports import Subscription
from support.kafka_bus import BusClient, admin, bus_client
from support.waiting import eventually

__all__ = ["QUICK", "Taker", "committed", "taker"]

QUICK: dict[str, Any] = {
    "topic_refresh": 0.2,
    "heartbeat_interval": 0.1,
    "session_timeout": 6.0,
    "rebalance_timeout": 2.0,
    "commit_interval": 0.05,
}


class Taker(Inbox):
    """One subscription of an application of its own.

    Attributes:
        client: the application.
        library: the client library's consumer at work.
    """

    client: BusClient

    @property
    def stats(self) -> Counter[str]:
        """The application's counters."""
        return self.client.stats

    @property
    def library(self) -> Any:
        """The client library's consumer at work; None between two."""
        consumer: Any = self.consumer
        return consumer._sessions._consumer

    @property
    def partitions(self) -> list[int]:
        """What is assigned now."""
        library = self.library
        return [] if library is None else sorted(tp.partition for tp in library.assignment())

    @property
    def numbers(self) -> list[int]:
        """Payloads that are numbers, in the order of arrival."""
        return [int(payload) for payload in self.payloads]


@contextlib.asynccontextmanager
async def taker(
    server: str,
    *filters: str,
    prefix: str,
    instance: str = "0",
    settle: bool = True,
    start: bool = True,
    ephemeral: bool = False,
    subscription: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Taker]:
    """Make a consumer, started unless told otherwise; it is closed at the end.

    Args:
        server: ``host:port``.
        filters: of the subscription, which is shared and called ``actor`` unless told otherwise.
        prefix: of topics and groups.
        instance: of the application ``app``.
        settle: as for `Inbox`.
        start: whether to start it.
        ephemeral: the application has no name.
        subscription: more fields of the `Subscription`.
        options: of `KafkaConfig`.
    """
    inbox = Taker(settle=settle)
    async with bus_client(
        server,
        instance=instance,
        ephemeral=ephemeral,
        start=False,
        **{"prefix": prefix, **QUICK, **options},
    ) as client:
        inbox.client = client
        fields: dict[str, Any] = {"name": "actor", "share": True, **(subscription or {})}
        inbox.consumer = client.bus.consumer(Subscription(filters=filters, **fields), inbox)
        try:
            if start:
                await inbox.consumer.start()
            yield inbox
        finally:
            await inbox.consumer.close()


async def committed(server: str, prefix: str, group: str = "app.actor") -> dict[str, int]:
    """Return the committed offsets of a group by ``topic/partition``, both without prefix."""
    async with admin(server) as client:

        async def ask() -> tuple[Any, ...]:
            # A broker that never had a group has no coordinator at first.
            with contextlib.suppress(GroupCoordinatorNotAvailableError):
                return (await client.list_consumer_group_offsets(f"{prefix}{group}"),)
            return ()

        (offsets,) = await eventually(ask)
        return {_place(tp, prefix): meta.offset for tp, meta in offsets.items() if meta.offset >= 0}


def _place(tp: TopicPartition, prefix: str) -> str:
    return f"{tp.topic.removeprefix(prefix)}/{tp.partition}"
