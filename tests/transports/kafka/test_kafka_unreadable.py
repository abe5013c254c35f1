"""Partitions that cannot be read: held and named, while all others go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import aiokafka.codec
import aiokafka.errors as kafka_errors
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from spa_dat import DistributedApplication, Message
from spa_dat.testing import Kafka
from spa_dat.transports.kafka._aiokafka_private import _FETCHES
from spa_dat.transports.kafka.consuming import (
    _partition_guard as _guard,
    _unreadable_reports as _reports,
)
from spa_dat.transports.kafka.consuming._unreadable_reports import Troubles, Unreadable
from support.kafka_bus import admin, bus_client, create, new_prefix
from support.kafka_consuming import committed, taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka


# The package for compression is there for producers, and not for the consumers under test.
sending: ContextVar[bool] = ContextVar("sending", default=False)


def hide(patch: pytest.MonkeyPatch, codec: str) -> None:
    patch.setattr(aiokafka.codec, f"has_{codec}", sending.get)


async def send(kafka: Kafka, name: str, values: range, partition: int = 0, **options: Any) -> None:
    """One batch."""
    token = sending.set(True)
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.server, linger_ms=200, acks="all", **options
    ) as producer:
        futures = [
            await producer.send(name, b"%d" % value, partition=partition) for value in values
        ]
        for future in futures:
            await future
    sending.reset(token)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guard, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(_guard, "_LONGEST_PAUSE", 0.1)


def numbers(inbox: Any, name: str, partition: int) -> list[int]:
    return [
        int(delivery.envelope.payload)
        for delivery in inbox.deliveries
        if (delivery.envelope.topic, delivery.envelope.partition) == (name, partition)
    ]


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.usefixtures("quick")
async def test_what_needs_a_package_that_is_missing_holds_up_its_partition_only(
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    durable: bool,
    codec: str,
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}packed", 2)
    await create(kafka.server, f"{prefix}plain")
    async with taker(
        kafka.server, "packed", "plain", prefix=prefix, subscription={"durable": durable}
    ) as inbox:
        with monkeypatch.context() as patch:
            hide(patch, codec)
            await send(kafka, f"{prefix}packed", range(3))
            await send(kafka, f"{prefix}packed", range(3, 6), compression_type=codec)
            await send(kafka, f"{prefix}packed", range(6, 9))
            consumer: Any = inbox.consumer
            await eventually(lambda: consumer.trouble)
            await send(kafka, f"{prefix}packed", range(10), partition=1)
            await send(kafka, f"{prefix}plain", range(10))
            await inbox.get(3 + 10 + 10)
            assert numbers(inbox, "packed", 0) == [0, 1, 2]
            assert inbox.stats["kafka.partitions_held"] == 1
            assert inbox.stats["kafka.reconnects"] == 0
            (line,) = [message for message in caplog.messages if "is held" in message]
            assert f"partition 0 of topic '{prefix}packed'" in line
            assert "from offset 3 on" in line
            assert codec in line
            assert "spa-dat[compression]" in line
            assert "packed" in consumer.trouble
        await inbox.get(3 + 10 + 10 + 6)
        assert numbers(inbox, "packed", 0) == list(range(9))
        await eventually(lambda: consumer.trouble is None)
    if durable:
        assert await committed(kafka.server, prefix) == {
            "packed/0": 9,
            "packed/1": 10,
            "plain/0": 10,
        }


class Damage:
    """Changes what is fetched of one partition."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, partition: int) -> None:
        self.place = name, partition
        self.change: Callable[[list[Any]], None] | None = None
        self.met = 0
        original = AIOKafkaClient.send

        async def send(client: Any, node: Any, request: Any, **options: Any) -> Any:
            answer = await original(client, node, request, **options)
            if isinstance(request, FetchRequest) and self.change is not None:
                answer.topics = [
                    (topic, [self._changed(topic, part) for part in parts])
                    for topic, parts in answer.topics
                ]
            return answer

        monkeypatch.setattr(AIOKafkaClient, "send", send)

    def _changed(self, topic: str, part: tuple[Any, ...]) -> tuple[Any, ...]:
        if (topic, part[0]) != self.place or self.change is None:
            return part
        changed = list(part)
        if changed[-1]:
            self.met += 1
            self.change(changed)
        return tuple(changed)


def flip_a_bit(part: list[Any]) -> None:
    raw = bytearray(part[-1])
    raw[-3] ^= 0x10
    part[-1] = bytes(raw)


def no_batch(part: list[Any]) -> None:
    raw = bytearray(part[-1])
    # The length of the first batch is too small for one.
    raw[8:12] = (3).to_bytes(4, "big")
    part[-1] = bytes(raw)


def unfinished(part: list[Any]) -> None:
    raw = bytearray(part[-1])
    raw[8:12] = (1 << 30).to_bytes(4, "big")
    part[-1] = bytes(raw)


def refused(code: int) -> Callable[[list[Any]], None]:
    def change(part: list[Any]) -> None:
        part[1], part[-1] = code, b""

    return change


@pytest.mark.parametrize(
    "change",
    [flip_a_bit, no_batch, unfinished, refused(2), refused(-1), refused(76), refused(29)],
    ids=["checksum", "length", "too long", "corrupt", "unknown", "codec", "forbidden"],
)
@pytest.mark.usefixtures("quick")
async def test_a_damaged_batch_is_held_and_nothing_is_lost(
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[list[Any]], None],
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 2)
    damage = Damage(monkeypatch, f"{prefix}a", 0)
    async with taker(kafka.server, "a", prefix=prefix) as inbox:
        await send(kafka, f"{prefix}a", range(5))
        await inbox.get(5)
        damage.change = change
        await send(kafka, f"{prefix}a", range(5, 10))
        consumer: Any = inbox.consumer
        await eventually(lambda: consumer.trouble)
        await send(kafka, f"{prefix}a", range(10), partition=1)
        await inbox.get(15)
        assert numbers(inbox, "a", 0) == list(range(5))
        await eventually(lambda: damage.met > 2)
        # It is not asked for again and again.
        assert damage.met < 100
        assert inbox.stats["kafka.reconnects"] == 0
        assert sum(f"topic '{prefix}a' cannot be read" in m for m in caplog.messages) == 1
        damage.change = None
        await inbox.get(20)
        assert numbers(inbox, "a", 0) == list(range(10))
        assert numbers(inbox, "a", 1) == list(range(10))
        await eventually(lambda: consumer.trouble is None)
    assert await committed(kafka.server, prefix) == {"a/0": 10, "a/1": 10}


@pytest.mark.usefixtures("quick")
async def test_a_held_partition_stays_known_over_sessions(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    damage = Damage(monkeypatch, f"{prefix}a", 0)
    async with taker(kafka.server, "a", prefix=prefix) as inbox:
        damage.change = flip_a_bit
        await send(kafka, f"{prefix}a", range(3))
        consumer: Any = inbox.consumer
        await eventually(lambda: consumer.trouble)
        library = inbox.library
        library._fetcher._fetch_task.cancel()
        await eventually(lambda: inbox.library not in (library, None))
        assert consumer.trouble
        damage.change = None
        await inbox.get(3)
        await eventually(lambda: consumer.trouble is None)


async def test_the_reply_inbox_goes_on_behind_what_can_not_be_read(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with bus_client(kafka.server) as client:
        name = f"{client.config.prefix}_spa.reply.app"
        with monkeypatch.context() as patch:
            hide(patch, "zstd")
            await send(kafka, name, range(3), compression_type="zstd")
            await eventually(lambda: "are skipped" in caplog.text)
            await client.publish(client.bus.reply_address("7"), b"reply")
            await eventually(lambda: client.replies)
        assert [reply.payload for _, reply in client.replies] == [b"reply"]
        assert client.stats["kafka.inboxes_lost"] == 0


@pytest.mark.usefixtures("quick")
async def test_an_application_that_does_not_get_all_is_not_healthy(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    damage = Damage(monkeypatch, f"{prefix}a", 0)
    app = DistributedApplication(f"{kafka.url}?prefix={prefix}", name="app")
    got: list[bytes] = []

    @app.application("a")
    async def handle(message: Message[bytes]) -> None:
        got.append(message.payload)

    async with app:
        assert app.healthy
        damage.change = flip_a_bit
        await send(kafka, f"{prefix}a", range(1))
        await eventually(lambda: not app.healthy)
        damage.change = None
        await eventually(lambda: got)
        await eventually(lambda: app.healthy)


def test_a_topic_that_only_a_wildcard_matches_may_be_for_others() -> None:
    troubles = Troubles("consumer 'x'", Counter())
    forbidden = Unreadable(kafka_errors.TopicAuthorizationFailedError("t"), 0)
    troubles.add(TopicPartition("t", 0), forbidden)
    assert troubles.serious(["other"]) is None
    assert "'t'" in (troubles.serious(["t"]) or "")
    troubles.add(
        TopicPartition("u", 1), msgspec.structs.replace(forbidden, error=ValueError("x\n"))
    )
    assert troubles.serious([]) == "partition 1 of topic 'u' cannot be read: ValueError: x "
    troubles.keep([TopicPartition("t", 0)])
    assert troubles.serious([]) is None


@pytest.mark.virtual
async def test_a_partition_without_a_leader_is_named_when_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    places = [TopicPartition("t", 0), TopicPartition("t", 1)]
    leaders = dict.fromkeys(places, 1)
    library: Any = SimpleNamespace(
        assignment=lambda: set(places),
        _subscription=SimpleNamespace(subscription=None),
        _client=SimpleNamespace(
            send=None, cluster=SimpleNamespace(leader_for_partition=leaders.__getitem__)
        ),
    )
    troubles = Troubles("consumer 'x'", Counter())
    guard = _guard.PartitionGuard(library, troubles)

    async def look(seconds: int) -> None:
        for _ in range(seconds):
            await asyncio.sleep(1)
            guard.look_for_leaders()

    leaders[places[1]] = -1
    await look(5)
    leaders[places[1]] = 1
    await look(1)
    leaders[places[1]] = -1
    await look(9)
    # An election takes a moment.
    assert troubles.serious([]) is None
    await look(30)
    assert "partition 1 of topic 't'" in (troubles.serious([]) or "")
    assert caplog.text.count("it has no leader") == 1
    leaders[places[1]] = 2
    await look(1)
    assert troubles.serious([]) is None
    assert "can be read again" in caplog.text


@pytest.mark.virtual
async def test_an_error_that_a_broker_keeps_answering_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[Any] = []

    async def send(node: int, request: Any) -> Any:
        return SimpleNamespace(topics=[("t", [answers.pop(0)])])

    client = SimpleNamespace(send=send)
    library: Any = SimpleNamespace(_subscription=SimpleNamespace(subscription=None), _client=client)
    troubles = Troubles("consumer 'x'", Counter())
    guard = _guard.PartitionGuard(library, troubles)
    fetch = FetchRequest(0, 0, 0, 0, [], rack_id="")

    async def answer(code: int, seconds: int) -> str | None:
        for _ in range(seconds):
            await asyncio.sleep(1)
            answers.append((0, code, -1, -1, [], b""))
            await client.send(1, fetch)
            guard.look_for_refusals()
        return troubles.serious([])

    not_the_leader, unheard_of = 6, 12_345
    assert await answer(not_the_leader, 8) is None
    assert await answer(0, 1) is None
    assert await answer(not_the_leader, 9) is None
    # While it is paused nobody asks.
    await asyncio.sleep(60)
    guard.look_for_refusals()
    assert troubles.serious([]) is None
    assert await answer(not_the_leader, 1) is None
    assert await answer(0, 1) is None
    assert "its broker answers [Error 6] NotLeader" in (await answer(not_the_leader, 30) or "")
    assert await answer(0, 1) is None
    assert "can be read again" in caplog.text
    assert "12345" in (await answer(unheard_of, 30) or "")
    guard.reassigned([TopicPartition("t", 0)])
    assert await answer(0, 1) is None


async def test_a_leader_that_cannot_be_reached_while_others_answer_is_named(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_guard, "_WITHOUT_LEADER", 0.5)
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with taker(kafka.server, "a", prefix=prefix) as inbox:
        await send(kafka, f"{prefix}a", range(1))
        await inbox.get(1)
        client = inbox.library._client
        connect = client._get_conn

        async def connect_to_others(node: Any, **options: Any) -> Any:
            return None if options.get("group") == _FETCHES else await connect(node, **options)

        client._get_conn = connect_to_others
        for (_, group), connection in [*client._conns.items()]:
            if group == _FETCHES:
                connection.close()
        await eventually(lambda: inbox.consumer.trouble)
        assert f"at {kafka.server}, its leader, answers no fetch" in (inbox.consumer.trouble or "")
        client._get_conn = connect
        await send(kafka, f"{prefix}a", range(1, 2))
        await inbox.get(2)
        await eventually(lambda: inbox.consumer.trouble is None)
    assert caplog.text.count("advertised.listeners") == 1


@pytest.mark.virtual
async def test_a_leader_that_nobody_asks_is_not_said_to_be_silent() -> None:
    async def send(node: int, request: Any) -> Any:
        if node in silent:
            raise kafka_errors.NodeNotReadyError
        return SimpleNamespace(topics=[])

    async def ask(node: int) -> None:
        with contextlib.suppress(kafka_errors.NodeNotReadyError):
            await client.send(node, FetchRequest(0, 0, 0, 0, [], rack_id=""))

    async def look() -> str | None:
        await asyncio.sleep(20)
        guard.look_for_silent_leaders()
        return troubles.serious([])

    place, other = TopicPartition("t", 0), TopicPartition("t", 1)
    silent, paused, leaders = {1}, set[TopicPartition](), {place: 1, other: 3}
    cluster = SimpleNamespace(
        leader_for_partition=lambda place: leaders[place], broker_metadata=lambda node: None
    )
    client = SimpleNamespace(send=send, cluster=cluster)
    library: Any = SimpleNamespace(
        _subscription=SimpleNamespace(subscription=None),
        _client=client,
        assignment=lambda: set(leaders),
        paused=lambda: paused,
    )
    troubles = Troubles("consumer 'x'", Counter())
    guard = _guard.PartitionGuard(library, troubles)
    await ask(1)
    assert "broker 1, its leader, answers no fetch" in (await look() or "")
    # Its answer may be there by now, but there is no room for what it would send.
    paused.add(place)
    assert await look() is None
    paused.clear()
    assert await look() is None
    await ask(1)
    assert await look()
    # Another one leads, until it is back.
    leaders[place] = 2
    assert await look() is None
    leaders[place] = 1
    assert await look() is None


@pytest.mark.virtual
async def test_a_leader_that_answers_no_fetch_is_named_when_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = True

    async def send(node: int, request: Any) -> Any:
        if not answers:
            raise kafka_errors.NodeNotReadyError
        return SimpleNamespace(topics=[])

    cluster = SimpleNamespace(
        leader_for_partition=lambda place: 1,
        broker_metadata=lambda node: SimpleNamespace(host="k1", port=9092),
    )
    client = SimpleNamespace(send=send, cluster=cluster)
    library: Any = SimpleNamespace(
        assignment=lambda: {TopicPartition("t", 0)},
        paused=set,
        _subscription=SimpleNamespace(subscription=None),
        _client=client,
    )
    troubles = Troubles("consumer 'x'", Counter())
    guard = _guard.PartitionGuard(library, troubles)
    fetch = FetchRequest(0, 0, 0, 0, [], rack_id="")

    async def trouble_after(seconds: int) -> str | None:
        for _ in range(seconds):
            await asyncio.sleep(1)
            with contextlib.suppress(kafka_errors.NodeNotReadyError):
                await client.send(1, fetch)
            guard.look_for_silent_leaders()
        return troubles.serious([])

    answers = False
    assert await trouble_after(9) is None
    answers = True
    assert await trouble_after(1) is None
    answers = False
    assert await trouble_after(9) is None
    # Nothing else could be reached either.
    guard.forget_silent_leaders()
    assert await trouble_after(9) is None
    assert "broker 1 at k1:9092, its leader, answers no fetch" in (await trouble_after(30) or "")
    assert caplog.text.count("answers no fetch") == 1
    answers = True
    assert await trouble_after(1) is None
    assert "can be read again" in caplog.text


async def test_a_start_does_not_wait_for_a_partition_without_a_leader(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", partitions=2)
    await send(kafka, f"{prefix}a", range(1), partition=0)
    await send(kafka, f"{prefix}a", range(1), partition=1)
    leader_of = ClusterMetadata.leader_for_partition
    away = TopicPartition(f"{prefix}a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            ClusterMetadata,
            "leader_for_partition",
            lambda self, place: -1 if place == away else leader_of(self, place),
        )
        async with taker(kafka.server, "a", prefix=prefix) as inbox:
            await inbox.get(1)
            assert numbers(inbox, "a", 0) == [0]
            patch.undo()
            await eventually(lambda: numbers(inbox, "a", 1) == [0])


async def test_a_start_does_not_wait_for_a_partition_whose_leader_cannot_be_reached(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", partitions=2)
    await send(kafka, f"{prefix}a", range(1), partition=0)
    await send(kafka, f"{prefix}a", range(1), partition=1)
    leader_of = ClusterMetadata.leader_for_partition
    away = TopicPartition(f"{prefix}a", 1)
    monkeypatch.setattr(_guard, "_WITHOUT_LEADER", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(
            ClusterMetadata,
            "leader_for_partition",
            lambda self, place: 99 if place == away else leader_of(self, place),
        )
        async with taker(kafka.server, "a", prefix=prefix) as inbox:
            await inbox.get(1)
            assert numbers(inbox, "a", 0) == [0]
            await eventually(lambda: inbox.consumer.trouble)
            assert "broker 99, its leader, answers no fetch" in (inbox.consumer.trouble or "")
            patch.undo()
            await eventually(lambda: numbers(inbox, "a", 1) == [0])
            await eventually(lambda: inbox.consumer.trouble is None)


async def test_a_package_for_every_compression_is_an_extra() -> None:
    needs = metadata.requires("spa-dat") or []
    assert any(need.startswith("cramjam") and "compression" in need for need in needs)


@pytest.mark.parametrize("durable", [True, False])
async def test_a_topic_that_is_deleted_is_named_and_holds_up_no_other(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, durable: bool
) -> None:
    monkeypatch.setattr(_reports, "_ABSENT_AFTER", 0.1)
    prefix = new_prefix()
    for name in ("gone", "there"):
        await create(kafka.server, f"{prefix}{name}")
    async with taker(
        kafka.server, "gone", "there", prefix=prefix, subscription={"durable": durable}
    ) as inbox:
        consumer: Any = inbox.consumer
        async with admin(kafka.server) as operator:
            await operator.delete_topics([f"{prefix}gone"])
        trouble = await eventually(lambda: consumer.trouble)
        assert trouble == (
            f"nothing is received from topic '{prefix}gone': it no longer exists; create it"
        )
        await send(kafka, f"{prefix}there", range(3))
        await inbox.get(3)
        await create(kafka.server, f"{prefix}gone")
        await eventually(lambda: consumer.trouble is None)
        await send(kafka, f"{prefix}gone", range(3))
        await inbox.get(6)
    assert caplog.text.count("while the others go on: it no longer exists") == 1
    assert caplog.text.count(f"topic '{prefix}gone' is available again") == 1


async def test_a_transaction_that_stays_open_is_named(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_guard, "_IN_TRANSACTION", 0.1)
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 2)
    async with (
        taker(kafka.server, "a", prefix=prefix) as inbox,
        AIOKafkaProducer(bootstrap_servers=kafka.server, transactional_id=prefix) as producer,
    ):
        consumer: Any = inbox.consumer
        await producer.begin_transaction()
        await producer.send_and_wait(f"{prefix}a", b"0", partition=1)
        await send(kafka, f"{prefix}a", range(1, 3), partition=1)
        await send(kafka, f"{prefix}a", range(5))
        line = f"partition 1 of topic '{prefix}a' cannot be read from offset 0 on: a transaction"
        await eventually(lambda: line in caplog.text)
        await inbox.get(5)
        # Transactions may be long where everything is as it should be.
        assert consumer.trouble is None
        await producer.commit_transaction()
        await inbox.get(8)
        assert numbers(inbox, "a", 1) == [0, 1, 2]
    assert caplog.text.count(line) == 1
    # A copy of this application that was killed may have left it.
    assert "of this application or another program; the cluster ends it" in caplog.text


async def test_a_topic_that_is_not_to_be_seen_any_more_is_named(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reports, "_ABSENT_AFTER", 0.0)
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with taker(kafka.server, "a", prefix=prefix) as inbox:
        consumer: Any = inbox.consumer
        # As the library notes it when the right to describe is gone.
        hidden = SimpleNamespace(
            partitions_for_topic=lambda name: None, unauthorized_topics={f"{prefix}a"}
        )
        consumer._sessions._look_for_topics(hidden)
        assert "not authorised; allow Describe and Read" in consumer.trouble


@pytest.mark.parametrize("durable", [True, False])
async def test_what_was_removed_before_it_was_read_is_counted(
    kafka: Kafka, caplog: pytest.LogCaptureFixture, durable: bool
) -> None:
    prefix = new_prefix()
    name = f"{prefix}a"
    await create(kafka.server, name)
    async with taker(
        kafka.server,
        "a",
        prefix=prefix,
        settle=False,
        subscription={"durable": durable, "window": 1},
    ) as inbox:
        for value in range(5):
            await send(kafka, name, range(value, value + 1))
        (first,) = await inbox.get(1)
        async with admin(kafka.server) as operator:
            await operator.delete_records({TopicPartition(name, 0): RecordsToDelete(4)})
        first.settle()
        (last,) = (await inbox.get(2))[1:]
        assert last.envelope.payload == b"4"
        assert inbox.stats["kafka.records_removed"] == 3
    line = f"offset 1 of partition 0 of topic '{name}' no longer exists, and it is read from"
    assert caplog.text.count(line) == 1


def test_a_gap_that_is_met_twice_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    stats: Counter[str] = Counter()
    troubles = Troubles("consumer", stats)
    place = TopicPartition("a", 0)
    for goes_on in (10, 10, 3):
        troubles.removed(place, 5, goes_on)
    assert stats["kafka.records_removed"] == 5
    assert ["has removed" in text for text in caplog.messages] == [True, False]
    assert "has lost its end" in caplog.messages[1]
