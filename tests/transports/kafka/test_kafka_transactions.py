"""Transactions, on the simulated cluster and on a real broker: all of it, once, or nothing."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from typing import Any

import aiokafka.errors as kafka
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.structs import OffsetAndMetadata

from spa_dat import DistributedApplication
from spa_dat.errors import ConfigurationError, NotAuthorised, PublishRefused, UnknownTopic
from spa_dat.harness.kafka_cluster import Right
from spa_dat.testing import Kafka
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka._aiokafka_private import guard_transactions
from spa_dat.transports.kafka._records import Record
from spa_dat.transports.kafka._topic_names import Names
from spa_dat.transports.kafka.producing import _transactions
from spa_dat.transports.kafka.producing._topic_creation import Topics
from spa_dat.transports.kafka.producing._transactions import (
    Placed,
    TransactionalProducer,
    TransactionFailed,
)
from support.kafka_bus import create, new_prefix
from support.transactions import Bench, RealBench, real_bench, simulated_bench

Program = Callable[["Desk"], Awaitable[None]]
PROGRAMS: dict[str, Program] = {}


def program(one: Program) -> Program:
    """Run it on both clusters."""
    PROGRAMS[one.__name__] = one
    return one


class Desk:
    """Makes producers on a bench, and looks at what they leave there."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        options: dict[str, Any] = {}
        if isinstance(bench, RealBench):
            options = {"username": "ann", "password": "secret", "allow_plain_password": True}
        self.config = KafkaConfig(bench.server, request_timeout=2.0, **options)
        self._made: list[TransactionalProducer] = []

    def make(self, name: str = "p", group: str = "g", **options: Any) -> TransactionalProducer:
        topics = Topics(self.config, Names(self.config), "test")
        group = group if group.startswith("not-") else self.bench.name(group)
        name = name if name.startswith("not-") else self.bench.name(name)
        producer = TransactionalProducer(self.config, "test", name, group, topics, random.Random(0))
        self._made.append(producer)
        return producer

    async def start(self, name: str = "p", group: str = "g") -> TransactionalProducer:
        producer = self.make(name, group)
        async with asyncio.timeout(60):
            await producer.start()
        return producer

    async def close(self) -> None:
        for producer in self._made:
            await producer.close()


@pytest.mark.virtual
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_the_simulated_cluster(name: str) -> None:
    async with simulated_bench() as bench:
        await run(name, bench)


@pytest.mark.kafka
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_a_real_broker(name: str, kafka: Kafka) -> None:
    async with real_bench(kafka, f"{name}-") as bench:
        await run(name, bench)


async def run(name: str, bench: Bench) -> None:
    desk = Desk(bench)
    try:
        await PROGRAMS[name](desk)
    finally:
        await desk.close()


def record(topic: str, value: bytes, key: bytes | None = None) -> Placed:
    return Placed(Record(topic, key, value, [], None))


def at(topic: str, offset: int) -> dict[TopicPartition, OffsetAndMetadata]:
    return {TopicPartition(topic, 0): OffsetAndMetadata(offset, "")}


def values(found: list[Any]) -> list[bytes]:
    return [value for records, _ in found for value in records.values()]


async def failure(step: Awaitable[object]) -> TransactionFailed:
    with pytest.raises(TransactionFailed) as caught:
        async with asyncio.timeout(60):
            await step
    return caught.value


@program
async def records_and_offsets_are_committed_together(desk: Desk) -> None:
    topic, other = await desk.bench.topic("t"), await desk.bench.topic("u", 3)
    producer = await desk.start()
    await producer.commit([record(topic, b"a"), record(topic, b"b")], at(other, 7))
    await producer.commit([record(topic, b"c")], at(other, 8))
    await desk.bench.until_ends(topic, 5)
    assert values(await desk.bench.read(topic)) == [b"a", b"b", b"c"]
    await desk.start()
    assert await desk.bench.committed("g", other) == 8


@program
async def keys_decide_on_partitions_and_without_one_records_stay_together(desk: Desk) -> None:
    topic = await desk.bench.topic("t", 3)
    producer = await desk.start()
    keyed = [record(topic, b"%d" % n, b"k%d" % n) for n in range(6)]
    await producer.commit(keyed, {})
    plain = await desk.bench.producer(None)
    places = {
        n: (await plain.send_and_wait(topic, b"x", key=b"k%d" % n)).partition for n in range(6)
    }
    found = await read_all(desk, topic, 12)
    for number, (records, _) in enumerate(found):
        assert sorted(v for v in records.values() if v != b"x") == [
            b"%d" % n for n in range(6) if places[n] == number
        ]
    await producer.commit([record(topic, b"together") for _ in range(5)], {})
    found = await read_all(desk, topic, 17)
    together = [sum(v == b"together" for v in records.values()) for records, _ in found]
    assert sorted(together) == [0, 0, 5]


async def read_all(desk: Desk, topic: str, count: int) -> list[Any]:
    async with asyncio.timeout(60):
        while len(values(found := await desk.bench.read(topic))) < count:
            await asyncio.sleep(0.01)
    return found


@program
async def offsets_alone_are_committed(desk: Desk) -> None:
    topic = await desk.bench.topic("t")
    producer = await desk.start()
    await producer.commit([], at(topic, 3))
    # Once this has returned they can be read.
    await desk.start()
    assert await desk.bench.committed("g", topic) == 3


@program
async def the_next_producer_ends_what_the_last_one_has_left_open(desk: Desk) -> None:
    topic = await desk.bench.topic("t")
    earlier = await desk.bench.producer("p")
    await earlier.begin_transaction()
    await earlier.send_and_wait(topic, b"lost")
    producer = await desk.start()
    # The marker is there already.
    assert await desk.bench.ends(topic) == [2]
    await producer.commit([record(topic, b"kept")], {})
    await desk.bench.until_ends(topic, 4)
    assert values(await desk.bench.read(topic)) == [b"kept"]


@program
async def one_that_has_a_successor_commits_nothing(desk: Desk) -> None:
    topic = await desk.bench.topic("t")
    zombie = await desk.start()
    await zombie.commit([record(topic, b"a")], at(topic, 1))
    successor = await desk.start()
    error = await failure(zombie.commit([record(topic, b"b")], at(topic, 2)))
    assert isinstance(error.__cause__, kafka.ProducerFenced | kafka.InvalidProducerEpoch)
    assert error.refusals is None
    await successor.commit([record(topic, b"c")], at(topic, 3))
    await desk.bench.until_ends(topic, 4)
    assert values(await desk.bench.read(topic)) == [b"a", b"c"]
    third = await desk.start()
    assert await desk.bench.committed("g", topic) == 3
    await failure(successor.commit([], at(topic, 4)))
    await third.commit([], at(topic, 5))


@program
async def after_a_refusal_nothing_of_it_is_ever_committed(desk: Desk) -> None:
    """The library's own abort would not tell the broker, and the next commit would publish it."""
    topic = await desk.bench.topic("t")
    group = desk.bench.forbidden(Right.READ_GROUP, "g")
    producer = await desk.start(group=group)
    error = await failure(producer.commit([record(topic, b"lost")], at(topic, 1)))
    assert isinstance(error.__cause__, kafka.GroupAuthorizationFailedError)
    again = await failure(producer.commit([record(topic, b"lost, too")], {}))
    assert again.refusals is None
    await producer.close()
    successor = await desk.start()
    await successor.commit([record(topic, b"kept")], {})
    await desk.bench.until_ends(topic, 4)
    assert values(await desk.bench.read(topic)) == [b"kept"]


@program
async def nothing_is_committed_if_a_record_is_refused(desk: Desk) -> None:
    """The library's own commit would succeed without the record."""
    topic = await desk.bench.topic("t", max_message_bytes="1000")
    producer = await desk.start()
    records = [record(topic, b"a"), record(topic, bytes(2000)), record(topic, b"b")]
    error = await failure(producer.commit(records, at(topic, 3)))
    assert error.refusals is not None
    assert (list(error.refusals.errors), error.refusals.certain) == ([0, 1, 2], False)
    await producer.close()
    producer = await desk.start()
    error = await failure(producer.commit(records, at(topic, 3), apart=True))
    assert error.refusals is not None
    assert (list(error.refusals.errors), error.refusals.certain) == ([1], True)
    await producer.close()
    producer = await desk.start()
    more = [*records, record(topic, bytes(3000)), record(topic, bytes(1001))]
    error = await failure(producer.commit(more, at(topic, 3), apart=True))
    assert error.refusals is not None
    assert list(error.refusals.errors) == [1, 3, 4]
    await producer.close()
    assert await desk.bench.committed("g", topic) is None
    producer = await desk.start()
    await producer.commit([records[0], records[2]], at(topic, 3))
    assert values(await read_all(desk, topic, 2)) == [b"a", b"b"]


@program
async def a_topic_that_may_not_be_written_is_named(desk: Desk) -> None:
    topic = await desk.bench.topic("t")
    other = await desk.bench.topic(desk.bench.forbidden(Right.WRITE_TOPIC, "u"))
    producer = await desk.start()
    records = [record(topic, b"a"), record(other, b"b"), record(other, b"c")]
    error = await failure(producer.commit(records, at(topic, 1)))
    assert error.refusals is not None
    assert (list(error.refusals.errors), error.refusals.certain) == ([1, 2], True)
    assert isinstance(error.refusals.errors[1], NotAuthorised)


@program
async def a_topic_that_is_not_there_is_named(desk: Desk) -> None:
    topic = await desk.bench.topic("t")
    producer = await desk.start()
    records = [record(topic, b"a"), record(desk.bench.name("missing"), b"b")]
    error = await failure(producer.commit(records, at(topic, 1)))
    assert error.refusals is not None
    assert list(error.refusals.errors) == [1]
    assert isinstance(error.refusals.errors[1], UnknownTopic)


@program
async def a_record_that_cannot_be_encoded_is_named(desk: Desk) -> None:
    topic = await desk.bench.topic("t")
    producer = await desk.start()
    wrong = Placed(Record(topic, None, b"b", [], 2**70))
    error = await failure(producer.commit([record(topic, b"a"), wrong], {}))
    assert error.refusals is not None
    assert isinstance(error.refusals.errors[1], PublishRefused)


@program
async def offsets_of_a_topic_that_is_not_there_do_not_hang(desk: Desk) -> None:
    """The library asks again and again."""
    topic = await desk.bench.topic("t")
    producer = await desk.start()
    error = await failure(
        producer.commit([record(topic, b"lost")], at(desk.bench.name("missing"), 1))
    )
    assert isinstance(error.__cause__, TimeoutError)
    await producer.close()
    successor = await desk.start()
    await successor.commit([record(topic, b"kept")], {})
    assert values(await read_all(desk, topic, 1)) == [b"kept"]


@program
async def a_reset_while_it_looks_for_its_coordinator_is_noticed(desk: Desk) -> None:
    """The library's sender ends over it, for good, and nobody else would say so."""
    topic = await desk.bench.topic("t")
    producer = await desk.start()
    await producer.commit([record(topic, b"a")], at(topic, 1))
    client = producer._library.client
    send = client.send

    async def reset(node: int, request: Any, **more: Any) -> Any:
        if isinstance(request, FindCoordinatorRequest):
            raise kafka.KafkaConnectionError("reset")
        return await send(node, request, **more)

    client.send = reset
    producer._library._sender._coordinators.clear()
    error = await failure(producer.commit([record(topic, b"lost")], at(topic, 2)))
    assert not isinstance(error.__cause__, TimeoutError)
    await producer.close()
    successor = await desk.start()
    await successor.commit([record(topic, b"b")], at(topic, 2))
    assert values(await read_all(desk, topic, 2)) == [b"a", b"b"]


@program
async def an_id_that_may_not_be_used_is_named(desk: Desk) -> None:
    name = desk.bench.forbidden(Right.TRANSACT, "p")
    producer = desk.make(name)
    with pytest.raises(NotAuthorised, match="transactional id"):
        await producer.start()


@program
async def a_coordinator_that_cannot_be_reached_is_named(desk: Desk) -> None:
    producer = desk.make()
    client = producer._library.client
    ready = client.ready

    async def only_others(node: int, **more: Any) -> bool:
        return more.get("group") != ConnectionGroup.COORDINATION and bool(await ready(node, **more))

    client.ready = only_others
    with pytest.raises(ConnectionError, match=r"transactional id .*, broker \d+ at .*advertised"):
        async with asyncio.timeout(60):
            await producer.start()


@pytest.mark.virtual
async def test_nothing_is_said_of_offsets_that_nobody_waits_for_any_more() -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    library = AIOKafkaProducer(transactional_id="t")
    library._closed = True
    guard_transactions(library)
    manager = library._txn_manager
    manager.set_pid_and_epoch(1, 0)
    manager.begin_transaction()
    manager.add_offsets_to_txn(at("t", 1), "g")
    manager.fatal_error(kafka.KafkaError("over"))
    gc.collect()
    assert complaints == []


@pytest.mark.kafka
async def test_a_cluster_without_time_for_transactions_is_told_apart_from_an_outage(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transactions, "_TRANSACTION_TIMEOUT", 86_400.0)
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}t")
    config = KafkaConfig(kafka.server, prefix=prefix, start_timeout=600.0)
    app = DistributedApplication(config, name="app")

    @app.application("t", exactly_once=True)
    async def nothing(number: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"86400 s.*transaction\.max\.timeout\.ms"):
        await asyncio.wait_for(app.start(), 60)


@program
async def closing_does_not_wait_for_confirmations(desk: Desk) -> None:
    """The library's own way of stopping waits for what is never answered."""
    topic = await desk.bench.topic("t")
    producer = await desk.start()
    client = producer._library.client
    asked = asyncio.Event()

    async def silent(node: int, request: Any, **more: Any) -> Any:
        asked.set()
        await asyncio.get_running_loop().create_future()

    client.send = silent
    committing = asyncio.ensure_future(producer.commit([record(topic, b"lost")], {}))
    async with asyncio.timeout(60):
        await asked.wait()
        await producer.close()
        await failure(committing)
    successor = await desk.start()
    await successor.commit([record(topic, b"kept")], {})
    assert values(await read_all(desk, topic, 1)) == [b"kept"]
