"""The Kafka transport."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import TopicAlreadyExistsError

from spa_dat.testing import Kafka
from spa_dat.testing.conformance import Inbox, TransportHarness
from spa_dat.transports import SocketProvider
from spa_dat.transports.kafka import KafkaConfig, KafkaProvider

__all__ = ["KafkaHarness", "RealKafkaHarness"]

_INTRUDERS = "conformance-intruders"
_ASSIGNORS = (RangePartitionAssignor, RoundRobinPartitionAssignor, StickyPartitionAssignor)


class KafkaHarness(TransportHarness):
    """What is the same on each Kafka."""

    any_topic = False
    has_qos_0 = False
    has_retained = False
    keeps_all = True
    keeps_filters = False
    knows_redelivery = False
    orders_topics = False
    stamps_time = True
    tells_no_responder = False
    tells_correlation = True
    quick = 3.0
    spread = MappingProxyType({"partitions": 4})
    prefix = ""
    short_times: Mapping[str, Any] = MappingProxyType(
        {
            "create_topics": "all",
            "topic_refresh": 0.2,
            "heartbeat_interval": 0.1,
            "session_timeout": 6.0,
            "rebalance_timeout": 1.0,
            "commit_interval": 0.05,
            "backoff_min": 0.02,
            "backoff_max": 0.2,
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self._events_before: dict[Inbox, int] = {}

    def remember_events(self) -> None:
        """Before a cut: joining, and new topics, have rebalanced groups before."""
        for inbox in self.inboxes:
            self._events_before.setdefault(inbox, len(inbox.events))

    def is_held(self, inbox: Inbox) -> bool:
        """Who is in no group has nothing to hand over."""
        return self.group(inbox) is not None

    async def lost(self, inbox: Inbox) -> None:
        """Do not wait: a member of a group keeps its partitions, since it has longer sessions."""

    async def back(self, inbox: Inbox, times: int = 1) -> None:
        if self.is_held(inbox) and inbox in self._events_before:
            await inbox.back(times, self._events_before[inbox])

    def group(self, inbox: Inbox) -> str | None:
        """Return the group that the inbox is a member of."""
        subscription, identity = inbox.subscription, inbox.identity
        if not subscription.durable or identity.ephemeral:
            return None
        instance = "" if subscription.share else f"{identity.instance}."
        return f"{self.prefix}{identity.application}.{instance}{subscription.name}"


class RealKafkaHarness(KafkaHarness):
    """A Kafka that all tests share, behind a proxy of each test's own.

    Tests keep out of each other's way by a prefix of all topics and groups. A cut takes all
    connections, and it rebalances the groups: a member of another kind joins each with every
    second cut, and leaves it with the next.

    Args:
        broker: a running one.
    """

    def __init__(self, broker: Kafka) -> None:
        super().__init__()
        self.prefix = f"test-{uuid.uuid4().hex[:12]}."
        self._broker = broker
        self._intruders: dict[str, AIOKafkaConsumer] = {}

    async def start_broker(self) -> None:
        """Only the proxy: the broker runs."""
        self._proxy = self._broker.proxy()
        await self._proxy.start()

    async def stop_broker(self) -> None:
        """Remove what the test has left on it."""
        await self._proxy.close()
        for intruder in self._intruders.values():
            await intruder.stop()
        async with self._admin() as admin:
            topics = [name for name in await admin.list_topics() if name.startswith(self.prefix)]
            await admin.delete_topics(topics)

    def provider(self, **options: Any) -> SocketProvider:
        servers = f"{self._proxy.host}:{self._proxy.port}"
        return KafkaProvider(
            KafkaConfig(servers, prefix=self.prefix, **{**self.short_times, **options})
        )

    async def cut(self) -> None:
        self.remember_events()
        groups = dict.fromkeys(filter(None, map(self.group, self.inboxes)))
        self._proxy.cut()
        await asyncio.gather(*map(self._rebalance, groups))

    async def go_away(self) -> None:
        await self._proxy.refuse()
        self._proxy.cut()

    async def come_back(self) -> None:
        await self._proxy.allow()

    async def _rebalance(self, group: str) -> None:
        intruder = self._intruders.pop(group, None)
        if intruder is not None:
            await intruder.stop()
            return
        await self._create_topic(_INTRUDERS)
        intruder = AIOKafkaConsumer(
            _INTRUDERS,
            bootstrap_servers=self._broker.server,
            group_id=group,
            partition_assignment_strategy=_ASSIGNORS,
            heartbeat_interval_ms=100,
            session_timeout_ms=6000,
            rebalance_timeout_ms=1000,
            enable_auto_commit=False,
        )
        self._intruders[group] = intruder
        await intruder.start()

    async def _create_topic(self, name: str) -> None:
        async with self._admin() as admin:
            with contextlib.suppress(TopicAlreadyExistsError):
                await admin.create_topics([NewTopic(name, 1, 1)])

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._broker.server)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()
