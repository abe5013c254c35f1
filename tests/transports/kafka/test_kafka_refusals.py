"""Groups that do not let a member in, and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiokafka.errors as kafka_errors
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.client import ConnectionGroup
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from spa_dat.errors import ConfigurationError, ConnectFailed
from spa_dat.testing import Kafka
from spa_dat.transports import KafkaConfig
from spa_dat.transports.kafka import _aiokafka_private
from spa_dat.transports.kafka._errors import GroupRefused, connect_problem
from spa_dat.transports.kafka.consuming import _commits, _group_member as _member
from spa_dat.transports.kafka.consuming._group_requests import join_refusal
from support.kafka_bus import bus_client, create, new_prefix
from support.kafka_consuming import Taker, taker
from support.waiting import eventually


@contextlib.asynccontextmanager
async def foreigner(kafka: Kafka, prefix: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A member of another client that shares out in another way."""
    consumer = AIOKafkaConsumer(
        f"{prefix}a",
        bootstrap_servers=kafka.server,
        group_id=f"{prefix}app.actor",
        partition_assignment_strategy=[RangePartitionAssignor],
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


@pytest.mark.kafka
async def test_a_member_of_another_client_is_named_as_what_it_is(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with (
        foreigner(kafka, prefix),
        taker(kafka.server, "a", prefix=prefix, start=False, start_timeout=2.0) as inbox,
    ):
        with pytest.raises(ConfigurationError, match=rf"{prefix}app\.actor.*another client"):
            await asyncio.wait_for(inbox.consumer.start(), 60)


@pytest.mark.kafka
async def test_where_another_client_leaves_in_time_the_start_goes_on(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix, start=False, start_timeout=30.0) as inbox,
    ):
        async with foreigner(kafka, prefix):
            starting = asyncio.ensure_future(inbox.consumer.start())
            refused, _ = await asyncio.wait((starting,), timeout=1.0)
            assert not refused
        await asyncio.wait_for(starting, 60)
        await client.publish("a")
        await inbox.get(1)


@pytest.mark.kafka
async def test_a_session_timeout_that_the_cluster_does_not_take_is_an_error_at_once(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with taker(
        kafka.server, "a", prefix=prefix, start=False, session_timeout=80_000, start_timeout=600
    ) as inbox:
        with pytest.raises(ConfigurationError, match=r"session_timeout=80000.*limits"):
            await asyncio.wait_for(inbox.consumer.start(), 60)


def test_each_refusal_says_what_to_do() -> None:
    config = KafkaConfig()

    def said(error: Exception, code: int = 0) -> str | None:
        refusal = join_refusal(error, code, "g", config)
        if refusal is None:
            return None
        assert isinstance(refusal, GroupRefused)
        problem = connect_problem(refusal, "kafka://h", None)
        assert problem.final is not refusal.may_pass
        assert "'g'" in str(problem.error)
        return str(refusal)

    assert "another client" in (said(kafka_errors.InconsistentGroupProtocolError()) or "")
    assert "session_timeout" in (said(kafka_errors.InvalidSessionTimeoutError()) or "")
    # The library has no name for it.
    assert "group.max.size" in (said(kafka_errors.KafkaError("UnknownError()"), 81) or "")
    assert said(kafka_errors.KafkaError("something else")) is None
    assert said(OSError("gone"), 23) is None
    assert "offsets.topic.replication.factor" in (said(TimeoutError(), 15) or "")
    garbled = "KafkaError: ValueError(\"... value: b'\\xff' to struct format: ...\")"
    assert "does not act as a consumer" in (said(kafka_errors.KafkaError(garbled)) or "")


async def start(server: str) -> None:
    """Start a member with little patience for a coordinator, and much for a rebalance."""
    prefix = new_prefix()
    await create(server, f"{prefix}a")
    async with taker(
        server, "a", prefix=prefix, start=False, start_timeout=2.0, rebalance_timeout=600.0
    ) as inbox:
        await asyncio.wait_for(inbox.consumer.start(), 20)


@contextlib.asynccontextmanager
async def impatient(server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Taker]:
    """Have a member that soon says that its group has no coordinator."""
    monkeypatch.setattr(_member, "_MOST_LOOKS_IN_VAIN", 2)
    prefix = new_prefix()
    await create(server, f"{prefix}a")
    async with taker(server, "a", prefix=prefix) as inbox:
        yield inbox


@pytest.mark.kafka
async def test_a_cluster_that_cannot_look_after_groups_says_why(
    own_kafka: Callable[..., Kafka],
) -> None:
    # What a default broker does that is alone.
    broker = own_kafka(properties={"offsets.topic.replication.factor": "3"})
    with pytest.raises(ConfigurationError, match=r"no coordinator for group.*too few"):
        await start(broker.server)


@pytest.mark.kafka
async def test_who_loses_the_coordinator_for_long_is_not_healthy(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient(kafka.server, monkeypatch) as inbox:
        consumer: Any = inbox.consumer
        assert consumer.trouble is None
        consumer._sessions._guard.join_code = 15
        await eventually(lambda: "no coordinator" in (consumer.trouble or ""))
        consumer._sessions._guard.join_code = 0
        await eventually(lambda: consumer.trouble is None)


@pytest.mark.kafka
async def test_who_cannot_reach_the_coordinator_for_long_is_not_healthy(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient(kafka.server, monkeypatch) as inbox:
        client = inbox.library._client
        connect = client._get_conn

        async def connect_to_others(node: Any, **options: Any) -> Any:
            return None if is_for_group(options) else await connect(node, **options)

        client._get_conn = connect_to_others
        for (_, group), connection in [*client._conns.items()]:
            if group == ConnectionGroup.COORDINATION:
                connection.close()
        await eventually(lambda: inbox.consumer.trouble)
        group = f"{inbox.client.config.prefix}app.actor"
        assert (
            f"the coordinator of group '{group}', broker 1 at {kafka.server}, cannot be reached"
            in (inbox.consumer.trouble or "")
        )
        client._get_conn = connect
        await eventually(lambda: inbox.consumer.trouble is None)


@pytest.mark.kafka
async def test_a_start_names_a_coordinator_that_cannot_be_reached(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = _aiokafka_private._Connections._get

    async def connect_to_others(self: Any, node: Any, **options: Any) -> Any:
        return None if is_for_group(options) else await connect(self, node, **options)

    monkeypatch.setattr(_aiokafka_private._Connections, "_get", connect_to_others)
    with pytest.raises(ConnectFailed, match=r"coordinator of group.*advertised\.listeners"):
        await start(kafka.server)


def is_for_group(options: Any) -> bool:
    return bool(options.get("group") == ConnectionGroup.COORDINATION)


@pytest.mark.kafka
async def test_who_cannot_commit_for_long_is_not_healthy(
    own_kafka: Callable[..., Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_commits, "_SERIOUS_AFTER", 0.2)
    # Less than what is committed along with an offset.
    broker = own_kafka(properties={"offset.metadata.max.bytes": "10"})
    prefix = new_prefix()
    await create(broker.server, f"{prefix}a")
    async with (
        bus_client(broker.server, prefix=prefix) as client,
        taker(broker.server, "a", prefix=prefix, commit_interval=0.1) as inbox,
    ):
        await client.publish("a")
        await eventually(lambda: "cannot be committed" in (inbox.consumer.trouble or ""))


@pytest.mark.kafka
async def test_an_address_that_leads_nowhere_is_named(kafka: Kafka) -> None:
    # The broker sends who comes here to the address of a proxy that is not there.
    behind = f"{kafka.host}:{kafka._behind}"
    async with bus_client(behind, start=False, start_timeout=1.0) as client:
        with pytest.raises(ConnectFailed, match=f"{kafka.host}:{kafka.proxy_port}.*advertised"):
            await asyncio.wait_for(client.start(), 20)
