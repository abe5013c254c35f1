"""Copying the states of keys into a changelog with another number of partitions."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from spa_dat.errors import ConfigurationError, TransportError, UnknownTopic
from spa_dat.testing import Kafka
from spa_dat.transports.kafka._aiokafka_private import group_offsets
from spa_dat.transports.kafka._partitioner import hash_of
from spa_dat.transports.kafka._records import Record
from spa_dat.transports.kafka._topic_names import Names
from spa_dat.transports.kafka.consuming import _state_copies
from spa_dat.transports.kafka.producing._topic_creation import Topics
from spa_dat.transports.kafka.producing._transactions import (
    Placed,
    TransactionalProducer,
    TransactionFailed,
)
from support.kafka_bus import create, new_prefix, read, settings
from support.left_states import AFTER, BEFORE, HEADERS, KEYS, LeftStates

pytestmark = pytest.mark.kafka


@pytest.fixture
def cluster(kafka: Kafka) -> LeftStates:
    cluster = LeftStates(kafka.server, new_prefix())
    asyncio.run(cluster.fill())
    return cluster


async def states(cluster: LeftStates) -> dict[bytes, tuple[int, bytes]]:
    """Return where the copied states are, and what they are; no key has several records."""
    found: dict[bytes, tuple[int, bytes]] = {}
    places = [TopicPartition(cluster.new, number) for number in range(AFTER)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.server,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    async with consumer, asyncio.timeout(60):
        consumer.assign(places)
        for place, end in (await consumer.end_offsets(places)).items():
            # Behind the last record there is a marker.
            while await consumer.position(place) < end:
                for record in (await consumer.getmany(place, timeout_ms=100)).get(place, ()):
                    assert record.key not in found
                    assert record.headers == tuple(HEADERS)
                    found[record.key] = place.partition, record.value
    return found


async def test_each_state_is_where_the_messages_of_its_key_go_now(cluster: LeftStates) -> None:
    await cluster.grow()
    done = await cluster.copy()
    assert done == (len(KEYS), len(KEYS), cluster.old, cluster.new, BEFORE, AFTER)
    partitions, options = await settings(cluster.server, cluster.new)
    assert (partitions, options["cleanup.policy"]) == (AFTER, "compact")
    assert await states(cluster) == {key: (hash_of(key) % AFTER, b"{}\n%b" % key) for key in KEYS}
    # Whoever is called twice has done it already.
    assert (await cluster.copy()).written == 0
    assert len(await states(cluster)) == len(KEYS)


async def test_the_new_actor_goes_on_where_the_old_one_has_ended(cluster: LeftStates) -> None:
    await cluster.grow()
    await cluster.copy()
    cluster.group = f"{cluster.prefix}app.new"
    places = [TopicPartition(cluster.topic, number) for number in range(AFTER)]
    async with cluster.member() as consumer:
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        assert {place: await consumer.committed(place) for place in places} == ends
    assert "has handled messages already" not in str(await cluster.copy())
    await cluster.send(cluster.topic, {KEYS[0]: b"2"}, AFTER)
    await cluster.commit(range(AFTER))
    cluster.group = f"{cluster.prefix}app.old"
    assert "app.new' has handled messages already" in await cluster.refused()


async def test_another_topic_is_read_from_its_start(cluster: LeftStates) -> None:
    await create(cluster.server, f"{cluster.topic}.more", AFTER)
    assert (await cluster.copy(f"{cluster.topic}.more")).after == AFTER
    cluster.group = f"{cluster.prefix}app.new"
    place = TopicPartition(f"{cluster.topic}.more", 0)
    async with cluster.member() as consumer:
        consumer.assign([place])
        assert await consumer.committed(place) is None


async def test_the_new_actor_goes_on_in_all_topics_that_the_old_one_has_read(
    cluster: LeftStates,
) -> None:
    other = f"{cluster.topic}.more"
    await create(cluster.server, other, BEFORE)
    await cluster.send(other, dict.fromkeys(KEYS, b"1"), BEFORE)
    topics = [cluster.topic, other]
    for cluster.topic in topics:
        await cluster.commit(range(BEFORE))
    await cluster.grow()
    refusal = await cluster.refused(*topics)
    assert f"{topics[0]!r} has {BEFORE}, {other!r} has {AFTER}" in refusal
    cluster.topic = topics[0]
    await cluster.grow()
    # What it does not read any more has to be handled, and what it reads goes on.
    await cluster.send(other, {KEYS[0]: b"2"}, AFTER)
    assert "is not handled yet" in await cluster.refused(topics[0])
    assert (await cluster.copy(*topics)).after == AFTER
    cluster.group = f"{cluster.prefix}app.new"
    async with cluster.member() as consumer:
        for topic in topics:
            places = [TopicPartition(topic, number) for number in range(AFTER)]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            if topic == other:
                ends[TopicPartition(other, hash_of(KEYS[0]) % AFTER)] -= 1
            assert {place: await consumer.committed(place) for place in places} == ends


async def test_a_copy_that_has_failed_is_begun_again(
    cluster: LeftStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grow()
    monkeypatch.setattr(_state_copies, "_MOST_RECORDS", 8)
    commit, commits = TransactionalProducer.commit, 0

    async def fail(self: TransactionalProducer, *given: Any, **options: Any) -> Any:
        nonlocal commits
        commits += 1
        if commits == 3:
            raise TransactionFailed(ConnectionError("the cable is cut"))
        return await commit(self, *given, **options)

    monkeypatch.setattr(TransactionalProducer, "commit", fail)
    with pytest.raises(TransportError, match=r"call it again.*the cable is cut"):
        await cluster.copy()
    assert (await cluster.copy()).written == len(KEYS) - 16
    assert len(await states(cluster)) == len(KEYS)


async def test_a_group_with_members_is_refused(cluster: LeftStates) -> None:
    await cluster.grow()
    for group in (cluster.group, f"{cluster.prefix}app.new"):
        # One that commits by itself would do so when it ends, and the group would have begun.
        consumer = AIOKafkaConsumer(
            cluster.topic,
            bootstrap_servers=cluster.server,
            group_id=group,
            enable_auto_commit=False,
        )
        async with consumer:
            assert f"group {group!r} has members" in await cluster.refused()
    await cluster.copy()


async def test_an_open_transaction_is_refused(cluster: LeftStates) -> None:
    await cluster.grow()
    identifier = f"{cluster.group}.0"
    async with AIOKafkaProducer(
        bootstrap_servers=cluster.server, transactional_id=identifier
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(cluster.old, b"not committed", key=KEYS[0], partition=0)
        assert "a transaction is open in partition 0" in await cluster.refused()
        await producer.abort_transaction()
    await cluster.copy()


async def test_whoever_comes_back_from_a_suspension_commits_nothing_any_more(
    cluster: LeftStates,
) -> None:
    await cluster.grow()
    topics = Topics(cluster.config, Names(cluster.config), "test")
    one = TransactionalProducer(
        cluster.config, "test", f"{cluster.group}.0", cluster.group, topics, random.Random()
    )
    await one.start()
    try:
        await cluster.copy()
        with pytest.raises(TransactionFailed) as raised:
            await one.commit([Placed(Record(cluster.old, KEYS[0], b"late", [], None), 0)], {})
    finally:
        await one.close()
    assert raised.value.fenced


async def test_a_target_with_something_else_is_refused(cluster: LeftStates) -> None:
    await cluster.grow()
    await create(cluster.server, cluster.new, AFTER, cleanup_policy="compact")
    await cluster.send(cluster.new, {b"7": b"another"}, AFTER)
    refusal = await cluster.refused()
    assert "is not empty: it has another state of key '7'" in refusal
    assert len(await read(cluster.server, cluster.new, 1)) == 1


async def test_a_target_with_other_partitions_is_refused(cluster: LeftStates) -> None:
    await cluster.grow()
    await create(cluster.server, cluster.new, AFTER + 1, cleanup_policy="compact")
    assert f"has {AFTER + 1} partitions, and " in await cluster.refused()


async def test_what_is_not_handled_and_would_be_without_its_state_is_refused(
    cluster: LeftStates,
) -> None:
    moved = next(key for key in KEYS if hash_of(key) % BEFORE != hash_of(key) % AFTER)
    await cluster.send(cluster.topic, {moved: b"2"}, BEFORE)
    await cluster.grow()
    refusal = await cluster.refused()
    assert "is not handled yet, and its key belongs in another of 5 partitions" in refusal
    await cluster.commit(range(BEFORE))
    # This is in the right partition already.
    await cluster.send(cluster.topic, dict.fromkeys(KEYS, b"3"), AFTER)
    await cluster.copy()


async def test_nothing_may_be_left_in_a_topic_that_is_not_read_any_more(
    cluster: LeftStates,
) -> None:
    await create(cluster.server, f"{cluster.topic}.more", AFTER)
    await cluster.send(cluster.topic, {KEYS[0]: b"2"}, BEFORE)
    refusal = await cluster.refused(f"{cluster.topic}.more")
    assert "is not handled yet: stop all senders" in refusal


async def test_nothing_is_left_in_a_topic_that_is_gone(
    cluster: LeftStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grow()
    old = cluster.group

    async def not_forgotten_yet(client: Any, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
        # The cluster deletes what was committed in a topic some time after the topic itself.
        gone = {TopicPartition(f"{cluster.prefix}gone", 0): OffsetAndMetadata(7, "")}
        return await group_offsets(client, group) | (gone if group == old else {})

    monkeypatch.setattr(_state_copies, "group_offsets", not_forgotten_yet)
    assert (await cluster.copy()).written == len(KEYS)
    # Nothing was committed there for the new actor, which would have made this another group.
    assert (await cluster.copy()).written == 0


async def test_a_record_without_a_key_is_no_state(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first polls end before anything can have come.
    monkeypatch.setattr(_state_copies, "_POLL_MS", 1)
    cluster = LeftStates(kafka.server, new_prefix())
    # A compacted topic takes none, so this one is not compacted.
    await create(cluster.server, cluster.old, BEFORE)
    async with AIOKafkaProducer(bootstrap_servers=cluster.server) as producer:
        await producer.send_and_wait(cluster.old, b"no state", partition=0)
    await cluster.fill()
    await cluster.grow()
    assert (await cluster.copy()).states == len(KEYS)
    assert (await states(cluster)).keys() == set(KEYS)


async def test_a_state_that_is_not_where_its_key_belongs_is_refused(cluster: LeftStates) -> None:
    await cluster.send(cluster.old, dict.fromkeys(KEYS, b"elsewhere"), 1)
    await cluster.grow()
    assert "does not choose partitions as the Java client does" in await cluster.refused()


@pytest.mark.parametrize("running", [True, False])
async def test_what_changes_while_it_is_copied_is_not_taken_for_all(
    cluster: LeftStates, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    await cluster.grow()
    commit, member = TransactionalProducer.commit, cluster.member()

    async def change(self: TransactionalProducer, *given: Any, **options: Any) -> Any:
        if running:
            member.subscribe([cluster.topic])
            await member.start()
        else:
            await cluster.send(cluster.old, {KEYS[0]: b"changed"}, BEFORE)
        return await commit(self, *given, **options)

    monkeypatch.setattr(TransactionalProducer, "commit", change)
    try:
        with pytest.raises(TransportError, match=r"was changed while it was copied.*: delete"):
            await cluster.copy()
    finally:
        await member.stop()


@pytest.mark.parametrize(
    ("topics", "options", "problem"),
    [
        ([], {"actor": "other"}, "no topic '.*other' at .* check the names"),
        (["nothing"], {}, "no topic 'nothing' at .* by their names on the cluster"),
    ],
)
async def test_what_is_not_there_is_named(
    cluster: LeftStates, topics: list[str], options: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        await cluster.copy(*topics, **options)
    assert await settings(cluster.server, cluster.new) == (0, {})


async def test_a_name_that_no_topic_can_have_is_refused(cluster: LeftStates) -> None:
    with pytest.raises(UnknownTopic, match="topic 'plant/1': not a valid topic name"):
        await cluster.copy("plant/1")
    assert await settings(cluster.server, cluster.new) == (0, {})


async def test_an_actor_that_has_handled_nothing_is_refused(kafka: Kafka) -> None:
    cluster = LeftStates(kafka.server, new_prefix())
    await create(cluster.server, cluster.topic, AFTER)
    await create(cluster.server, cluster.old, BEFORE)
    assert "app.old' has committed nothing" in await cluster.refused()
