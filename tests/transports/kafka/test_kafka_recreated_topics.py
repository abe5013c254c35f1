"""Topics that are deleted and recreated under the same name."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import aiokafka.errors as kafka_errors
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import NewTopic
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from spa_dat.testing import Kafka
from spa_dat.transports.kafka._offset_notes import (
    is_of_deleted_topic,
    is_ours,
    offset_note,
    rewound_to,
)
from spa_dat.transports.kafka._topic_facts import (
    SharedTopicFacts,
    TopicFacts,
    recreated,
    topic_facts,
)
from support.kafka_bus import BusClient, admin, bus_client, create, new_prefix, read
from support.kafka_consuming import committed, taker
from support.waiting import eventually


async def make_anew(kafka: Kafka, name: str) -> None:
    async with admin(kafka.server) as client:
        await client.delete_topics([name])

        async def made() -> bool:
            # It is deleted in the background.
            with contextlib.suppress(kafka_errors.TopicAlreadyExistsError):
                answer = await client.create_topics([NewTopic(name, 1, 1)])
                return bool(answer.topic_errors[0][1] == 0)
            return False

        await eventually(made)


async def fill(client: BusClient, numbers: range) -> None:
    for number in numbers:
        await client.publish("a", b"%d" % number)


async def filled(kafka: Kafka, prefix: str, numbers: range) -> None:
    # A producer that knew the old topic has to notice first.
    async with bus_client(kafka.server, prefix=prefix) as client:
        await fill(client, numbers)


@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["durable", "transactional", "without a group"])
async def test_all_of_it_is_handled_though_the_old_one_had_as_many(kafka: Kafka, kind: str) -> None:
    durable = kind != "without a group"
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    fields = {"window": 1, "durable": durable, "transactional": kind == "transactional"}
    async with taker(kafka.server, "a", prefix=prefix, settle=False, subscription=fields) as inbox:
        await filled(kafka, prefix, range(20))
        for number in range(5):
            deliveries = await inbox.get(number + 1)
            deliveries[number].settle()
        # It is busy with what it has of the old one, so that no fetch tells.
        busy = (await inbox.get(6))[5]
        inbox.on_delivery = lambda delivery: delivery.settle()
        await make_anew(kafka, f"{prefix}a")
        await filled(kafka, prefix, range(100, 150))
        busy.settle()

        # From the last time that it was read from its start, they are all there and in order.
        def complete() -> bool:
            starts = [i for i, number in enumerate(inbox.numbers) if number == 100]
            return bool(starts) and inbox.numbers[starts[-1] :] == list(range(100, 150))

        await eventually(complete)
        assert inbox.client.fatal == []
    if durable:
        assert await committed(kafka.server, prefix) == {"a/0": 50}


@pytest.mark.kafka
async def test_one_with_fewer_partitions_is_read_by_who_comes_back(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", partitions=3)
    async with taker(kafka.server, "a", prefix=prefix) as before:
        await filled(kafka, prefix, range(1))
        await before.get(1)
    await make_anew(kafka, f"{prefix}a")
    await filled(kafka, prefix, range(1, 2))
    async with taker(kafka.server, "a", prefix=prefix) as after:
        await after.get(1)
        assert (after.numbers, after.partitions) == ([1], [0])


@pytest.mark.kafka
async def test_it_is_noticed_while_reading_on(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with taker(
        kafka.server,
        "a",
        prefix=prefix,
        settle=False,
        topic_refresh=600,
        subscription={"window": 1},
    ) as inbox:
        await filled(kafka, prefix, range(20))
        (busy,) = await inbox.get(1)
        inbox.on_delivery = lambda delivery: delivery.settle()
        # As long as it is busy it fetches nothing.
        await eventually(lambda: not inbox.library._fetcher._in_flight)
        member: Any = inbox.consumer._sessions  # type: ignore[attr-defined]
        await make_anew(kafka, f"{prefix}a")
        # From here on nothing but its id tells.
        member._next_look = 0.0
        await eventually(lambda: inbox.stats["kafka.topics_made_anew"])
        busy.settle()
        await filled(kafka, prefix, range(100, 130))
        await eventually(lambda: set(range(100, 130)) <= set(inbox.numbers))
        assert inbox.numbers[-30:] == list(range(100, 130))
        # Also said when the partitions are assigned, and what is committed is compared.
        assert caplog.text.count(f"topic '{prefix}a' was deleted and recreated") == 1
        assert inbox.stats["kafka.topics_made_anew"] == 1


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("known", "reset"), [(True, "earliest"), (True, "latest"), (False, "earliest")]
)
async def test_a_place_in_the_old_one_is_none_in_the_new_one_after_a_restart(
    kafka: Kafka, known: bool, reset: str
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    # The first one never looks.
    async with taker(
        kafka.server,
        "a",
        prefix=prefix,
        settle=False,
        topic_refresh=600,
        subscription={"window": 5},
    ) as inbox:
        await filled(kafka, prefix, range(5))
        deliveries = await inbox.get(5)
        await eventually(lambda: not inbox.library._fetcher._in_flight)
        await make_anew(kafka, f"{prefix}a")
        await filled(kafka, prefix, range(100, 110))
        if not known:
            # As a version that notes no id, or a tool for offsets, commits.
            inbox.consumer._sessions.assignment.ids.clear()  # type: ignore[attr-defined]
        for delivery in deliveries:
            delivery.settle()
        await eventually(lambda: inbox.stats["kafka.commits"])
    assert await committed(kafka.server, prefix) == {"a/0": 5}
    async with taker(kafka.server, "a", prefix=prefix, offset_reset=reset) as inbox:
        first = 100 if known else 105
        await inbox.get(110 - first)
        assert inbox.numbers == list(range(first, 110))
    assert await committed(kafka.server, prefix) == {"a/0": 10}


@pytest.mark.kafka
async def test_an_offset_that_somebody_sets_by_hand_counts(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    await filled(kafka, prefix, range(10))
    async with taker(kafka.server, "a", prefix=prefix) as inbox:
        await inbox.get(10)
    name = f"{prefix}app.actor"
    place = TopicPartition(f"{prefix}a", 0)

    async def reset() -> bool:
        # Or it would commit its own place at its end.
        consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.server, group_id=name, enable_auto_commit=False
        )
        await consumer.start()
        consumer.assign([place])
        try:
            await consumer.commit({place: OffsetAndMetadata(7, "")})
        except kafka_errors.KafkaError:
            # The group is not empty before the session of its member is over.
            return False
        finally:
            await consumer.stop()
        return True

    await eventually(reset)
    async with taker(kafka.server, "a", prefix=prefix) as inbox:
        await inbox.get(3)
        assert inbox.numbers == [7, 8, 9]


@pytest.mark.kafka
async def test_replies_in_a_topic_that_was_recreated_arrive(kafka: Kafka) -> None:
    async with bus_client(kafka.server, topic_refresh=0.2) as client:
        name = f"{client.config.prefix}_spa.reply.app"
        for number in range(5):
            await client.publish(client.bus.reply_address(f"{number}"))
        await eventually(lambda: len(client.replies) == 5)
        await make_anew(kafka, name)
        async with bus_client(kafka.server, prefix=client.config.prefix, name="other") as other:
            for number in range(5, 10):
                await other.publish(client.bus.reply_address(f"{number}"))
        # Some may come twice; nobody waits for them any more.
        wanted = {str(number) for number in range(10)}
        await eventually(lambda: {correlation for correlation, _ in client.replies} == wanted)


@pytest.mark.kafka
async def test_one_with_fewer_partitions_takes_what_is_published(kafka: Kafka) -> None:
    # So that nothing else notices within the time of the test.
    async with bus_client(kafka.server, request_timeout=300.0) as client:
        name = f"{client.config.prefix}a"
        await create(kafka.server, name, 4)
        keys = [str(number) for number in range(20)]
        for key in keys:
            await client.publish("a", key=key)
        await make_anew(kafka, name)
        await asyncio.gather(*(client.publish("a", b"new", key=key) for key in keys))
        assert {record.key.decode() for record in await read(kafka.server, name, 20)} == {*keys}


@pytest.mark.kafka
async def test_a_topic_is_told_from_the_next_of_its_name(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 3)
    async with admin(kafka.server) as client:
        names = [f"{prefix}a", f"{prefix}missing"]
        facts = await topic_facts(client._client, names)
        assert facts is not None
        assert set(facts) == {f"{prefix}a"}
        assert facts[f"{prefix}a"].readable
        known = {name: topic.id for name, topic in facts.items()}
        assert recreated(known, facts) == []
        await make_anew(kafka, f"{prefix}a")

        async def anew() -> list[str]:
            return recreated(known, await topic_facts(client._client, names) or {})

        assert await eventually(anew) == [f"{prefix}a"]


@pytest.mark.parametrize(
    ("rights", "readable"), [(1 << 8 | 1 << 3, True), (1 << 8, False), (-(1 << 31), True)]
)
async def test_who_tells_nothing_of_rights_refuses_nothing(rights: int, readable: bool) -> None:
    class Told:
        def get_random_node(self) -> int:
            return 1

        async def send(self, node: int, request: Any) -> Any:
            return SimpleNamespace(topics=[(0, "a", b"x" * 16, False, [], rights, {})])

    facts = await topic_facts(Told(), ["a"])
    assert facts is not None
    assert facts["a"].readable is readable


async def test_brokers_that_know_no_ids_are_not_asked_again_and_again() -> None:
    class Old:
        def get_random_node(self) -> int:
            return 1

        async def send(self, node: int, request: Any) -> Any:
            raise NotImplementedError

    assert await topic_facts(Old(), ["a"]) is None
    assert await topic_facts(Old(), []) == {}


def test_a_note_says_of_which_topic_an_offset_is() -> None:
    assert not is_of_deleted_topic("", "x")
    assert not is_of_deleted_topic("whatever a tool writes", "x")
    assert not is_of_deleted_topic(offset_note("x"), "x")
    assert not is_of_deleted_topic(offset_note("x", 5), "x")
    assert is_of_deleted_topic(offset_note("y"), "x")
    assert is_of_deleted_topic(offset_note("y", 5), "x")
    assert offset_note(None) == offset_note("") == ""


def test_the_last_time_to_which_a_partition_was_rewound_is_noted_with_its_offset() -> None:
    for note in (offset_note("x", 1_700_000_000_000), offset_note(None, 1_700_000_000_000)):
        assert rewound_to(note) == 1_700_000_000_000
        assert is_ours(note)
    for note in ("", "rewound-to=", "rewound-to=x", "rewound-to=-1", f"rewound-to={'9' * 4000}"):
        assert rewound_to(note) is None
    assert rewound_to(offset_note("x")) is None
    assert is_ours(offset_note("x"))
    assert not is_ours("")
    assert not is_ours("whatever a tool writes")
    assert recreated({"a": "1", "b": "2", "c": ""}, {"a": TopicFacts("1", True, {0: 1}, {})}) == []
    assert recreated({"a": "1", "c": ""}, {"c": TopicFacts("1", True, {0: 1}, {})}) == ["c"]


class Shared:
    """Stands for a client of the library that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.error: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()

    def get_random_node(self) -> int:
        return 1

    async def send(self, node: int, request: Any) -> Any:
        names = [*request._names]
        self.asked.append(names)
        await self.free.wait()
        if self.error is not None:
            raise self.error
        partitions = [(0, index, 1, 0) for index in range(3)]
        return SimpleNamespace(
            topics=[(0, name, name.encode() * 16, False, partitions, 0, {}) for name in names]
        )


@pytest.mark.virtual
async def test_consumers_look_their_topics_up_together() -> None:
    facts, client = SharedTopicFacts(3.0, 5.0), Shared()

    async def consumer(number: int) -> None:
        await asyncio.sleep(number / 100)
        for _ in range(10):
            (topic,) = ((await facts.look_up(client, [f"t{number}"])) or {}).items()
            assert topic[0] == f"t{number}"
            assert len(topic[1].leaders) == 3
            await asyncio.sleep(3)

    await asyncio.gather(*map(consumer, range(20)))
    # Each says once what it wants.
    assert len(client.asked) <= 20 + 10
    assert len(client.asked[-1]) == 20


@pytest.mark.virtual
async def test_topics_that_nobody_wants_any_more_are_forgotten() -> None:
    facts, client = SharedTopicFacts(3.0, 5.0), Shared()
    await facts.look_up(client, ["old"])
    await asyncio.sleep(60)
    await facts.look_up(client, ["new"])
    assert client.asked == [["old"], ["new"]]


@pytest.mark.virtual
async def test_a_consumer_that_ends_or_gets_no_answer_keeps_none_from_the_others() -> None:
    facts, ends, other = SharedTopicFacts(3.0, 5.0), Shared(), Shared()
    ends.free.clear()
    first = asyncio.ensure_future(facts.look_up(ends, ["a"]))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(facts.look_up(other, ["a"]))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    assert not waiting.done()
    ends.free.set()
    assert [*(await waiting or {})] == ["a"]
    assert other.asked == []

    await asyncio.sleep(3)
    ends.error = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        await facts.look_up(ends, ["a"])
    assert [*(await facts.look_up(other, ["a"]) or {})] == ["a"]


@pytest.mark.virtual
async def test_a_request_that_is_never_answered_ends() -> None:
    facts, silent, other = SharedTopicFacts(3.0, 5.0), Shared(), Shared()
    silent.free.clear()
    with pytest.raises(TimeoutError):
        await facts.look_up(silent, ["a"])
    assert [*(await facts.look_up(other, ["a"]) or {})] == ["a"]
