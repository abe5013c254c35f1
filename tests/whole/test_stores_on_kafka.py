"""Durable keys on Kafka whose states are in a store of the application's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from spa_dat import (
    Context,
    DistributedApplication,
    Durable,
    KafkaConfig,
    KafkaTopic,
    RetryPolicy,
    Socket,
)
from spa_dat.errors import ConfigurationError
from spa_dat.harness.world._memory_states import MemoryStates
from spa_dat.runtime.application._application import runs_of
from spa_dat.states import StateStore
from spa_dat.testing import Faults, Harness, Kafka
from spa_dat.transports._sqlite_states import SqliteStates
from support.kafka_bus import create, new_prefix, read
from support.kafka_copies import Copies
from support.kafka_ledger import Numbers, Process, seeded
from support.kafka_states import cluster_of
from support.postgres import Postgres, postgres_states
from support.waiting import eventually

KILLS = int(os.environ.get("SPA_DAT_TEST_KILLS", "4"))
PARTITIONS, KEYS, SHARE = 4, 50, 1_000
TOPICS = {
    "work/{key}": KafkaTopic("work", key="key"),
    "done/{key}": KafkaTopic("done", key="key"),
}
FAULTS = replace(Faults.all(), duplicate=0.0, most=30)
NUMBERS, FEW = 60, 7


@dataclass
class Count:
    n: int = 0


def opened(name: str) -> Any:
    raise AssertionError("the harness keeps states in memory")


def counting(instance: int = 0) -> DistributedApplication:
    """Return an application that numbers the messages of each key, in a store."""
    config = KafkaConfig("cluster", start_timeout=120, partitions=3, topics=TOPICS)
    app = DistributedApplication(config, name="app", instance=str(instance))

    @app.application(
        "work/{key}",
        per="key",
        state=Count,
        durable=Durable(store=opened),
        retry=RetryPolicy(attempts=100, first=0.01),
    )
    async def work(number: int, key: str, state: Count, socket: Socket, context: Context) -> None:
        state.n += 1
        await socket.publish(f"done/{key}", [number, state.n])
        if number == -1:
            context.remind("late", state.n, after=5.0)

    @app.on_reminder("work", "late")
    async def late(before: int, key: str, state: Count, socket: Socket) -> None:
        await socket.publish(f"done/{key}", ["late", before, state.n])

    return app


def firsts(harness: Harness, key: str) -> list[Any]:
    """Return what was published for a key, without what came again."""
    seen: list[Any] = []
    for value in harness.published(f"done/{key}"):
        if value not in seen:
            seen.append(value)
    return seen


def test_each_message_counts_once_whatever_fails() -> None:
    for seed in range(8):
        app = counting()
        with Harness(app, seed=seed, faults=FAULTS) as harness:
            for number in range(NUMBERS):
                harness.publish(f"work/k{number % FEW}", number)
                harness.advance(0.05)
                if number % 20 == 7:
                    harness.crash()
                    harness.restart()
            harness.settle()
            for key in range(FEW):
                numbers = range(key, NUMBERS, FEW)
                expected = [[number, n] for n, number in enumerate(numbers, 1)]
                assert firsts(harness, f"k{key}") == expected
            # They are in the store and nowhere else.
            assert not any(name.startswith("_spa.state") for name in cluster_of(harness).topics)


@pytest.mark.parametrize("at", ["handled", "committed", "published", "acknowledged"])
def test_each_message_counts_once_wherever_the_process_ends(at: Any) -> None:
    app = counting()
    with Harness(app) as harness:
        for number in range(3):
            harness.publish("work/a", number)
        harness.settle()
        harness.crash(at=at)
        harness.publish("work/a", 3)
        harness.publish("work/a", 4)
        harness.advance(5.0)
        harness.restart()
        harness.settle()
        assert firsts(harness, "a") == [[number, number + 1] for number in range(5)]


def test_reminders_come_from_the_store() -> None:
    app = counting()
    with Harness(app) as harness:
        harness.publish("work/a", -1)
        harness.settle()
        harness.publish("work/a", 0)
        harness.settle()
        harness.restart()
        harness.advance(6.0)
        harness.settle()
        assert firsts(harness, "a") == [[-1, 1], [0, 2], ["late", 1, 2]]


def test_records_without_an_id_are_known_by_their_places() -> None:
    app = counting()
    with Harness(app) as harness:
        for _ in range(2):
            cluster_of(harness).append("work", key=b"a", value=b"5")
        harness.settle()
        # As if the offsets had not been committed.
        group = cluster_of(harness).groups["app.work"]
        harness.stop()
        group.offsets.clear()
        harness.restart()
        harness.settle()
        assert harness.published("done/a") == [[5, 1], [5, 2]]
        assert app.stats["messages.known"] == 2
        assert app.stats["messages.without_id"] == 0


def test_a_store_learns_which_messages_do_not_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: set[int] = set()
    commit = MemoryStates.commit

    def note(self: MemoryStates, changes: Any, sent: Any, acknowledged: Any = ()) -> Any:
        told.update(acknowledged)
        return commit(self, changes, sent, acknowledged)

    monkeypatch.setattr(MemoryStates, "commit", note)
    with Harness(counting()) as harness:
        for number in range(3):
            harness.publish("work/a", number)
        harness.settle()
        # An interval of commits later.
        harness.advance(2.0)
        harness.publish("work/a", 3)
        harness.settle()
        assert len(told) == 3


def test_only_one_instance_may_have_a_store() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"or leave out Durable\(store=...\)"),
        Harness(counting(1)),
    ):
        """It does not start."""


@pytest.mark.kafka
@pytest.mark.repository
async def test_states_are_in_a_database_beside_a_cluster(kafka: Kafka, postgres: Postgres) -> None:
    owner = uuid.uuid4().hex
    config = KafkaConfig(kafka.server, prefix=new_prefix(), topics=TOPICS, create_topics="all")

    def opens(name: str) -> StateStore:
        store: StateStore = postgres_states()(postgres.address, f"{owner} {name}")
        return store

    for n in (1, 2):
        app = DistributedApplication(config, name="app")

        @app.application("work/{key}", per="key", state=Count, durable=Durable(store=opens))
        async def work(payload: bytes, state: Count) -> int:
            state.n += 1
            return state.n

        async with app:
            assert await app.socket().request("work/a", b"", reply=int, timeout=60) == n
            assert await app.peek("work", "a") == Count(n)
    store = opens("app.0")
    (stored,) = store.load("work", ["a"]).values()
    store.close()
    assert stored.value.endswith(b'{"n":2}')


@pytest.mark.kafka
async def test_a_record_of_another_program_counts_once_when_its_dead_letter_is_replayed(
    kafka: Kafka, tmp_path: Path
) -> None:
    """It has no id and no type, and what it leads to cannot be published at first."""
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}work")
    config = KafkaConfig(kafka.server, prefix=prefix, topics=TOPICS)
    app = DistributedApplication(config, name="app")
    kept = Durable(store=lambda name: SqliteStates(tmp_path / name))

    @app.application(
        "work/{key}", per="key", state=Count, durable=kept, retry=RetryPolicy(attempts=1)
    )
    async def work(payload: bytes, key: str, state: Count, socket: Socket) -> None:
        state.n += 1
        await socket.publish(f"done/{key}", state.n)

    async with app:
        async with AIOKafkaProducer(bootstrap_servers=kafka.server) as stranger:
            await stranger.send_and_wait(f"{prefix}work", b"x", key=b"a")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        await create(kafka.server, f"{prefix}done")
        run = runs_of(app).current
        assert run is not None
        (letter,) = [letter async for _, letter in run.dead_letters.search.stored()]
        assert (await run.dead_letters.replay(letter.name)).outcome == "handled"
        assert await app.peek("work", "a") == Count(1)
        assert app.stats["messages.known"] == 1
    assert [record.value for record in await read(kafka.server, f"{prefix}done", 1)] == [b"1"]


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.deadline(240 + 20 * KILLS)
async def test_every_count_is_right_although_the_process_is_killed(
    kafka: Kafka, tmp_path: Path
) -> None:
    rng, prefix = seeded(), new_prefix()
    source, target = f"{prefix}numbers", f"{prefix}counts"
    for topic in (source, target):
        await create(kafka.server, topic, PARTITIONS)
    copies = Copies(kafka.server, target)
    reading = asyncio.create_task(copies.read())
    options = json.dumps({"store": str(tmp_path / "states")})
    place = [prefix, kafka.server, str(tmp_path / "ledger"), "0", options]
    member = Process("kafka_counter.py", place)
    try:
        async with Numbers(kafka.server, source, KEYS, rng) as numbers:
            member.launch()
            for _ in range(KILLS):
                before = copies.different
                await numbers.produce(SHARE)
                least = before + rng.randrange(1, SHARE)
                await eventually(lambda least=least: copies.different >= least)  # type: ignore[misc]
                assert await member.end(signal.SIGKILL) == -signal.SIGKILL
                member.launch()
            await eventually(lambda: copies.different >= numbers.count)
        assert await member.end(signal.SIGTERM) == 0
    finally:
        if member.running:
            await member.end(signal.SIGKILL)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    for key, count in numbers.sent.items():
        found = dict.fromkeys(tuple(json.loads(value or b"[]")) for value in copies.values[key])
        assert [*found] == [(key, number, number + 1) for number in range(count)]
