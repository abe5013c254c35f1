"""Durable keys on a simulated Kafka cluster: their states move with the partitions."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Durable,
    KafkaConfig,
    KafkaTopic,
    Reject,
    RetryPolicy,
    Socket,
    on,
)
from spa_dat.errors import ConfigurationError, NotHere, RemoteError
from spa_dat.harness.kafka_cluster import Right
from spa_dat.runtime.hosting._durable_lane import ALREADY_HANDLED
from spa_dat.runtime.hosting._durable_unit_lane import DurableUnitLane, WrongKey
from spa_dat.runtime.hosting._keyed_lane import KeyedLane
from spa_dat.testing import Faults, Harness
from spa_dat.transports.kafka._partitioner import hash_of
from spa_dat.transports.kafka.consuming import _units
from spa_dat.transports.kafka.consuming._changelog import restore
from spa_dat.transports.kafka.consuming._snapshot_file import SnapshotFile
from spa_dat.transports.kafka.consuming._snapshots import PartitionStates
from spa_dat.transports.kafka.producing._topic_creation import Topics
from spa_dat.transports.kafka.producing._transactions import (
    TransactionalProducer,
    TransactionFailed,
)
from support.kafka_states import cluster_of, in_snapshot, snapshots_in

TOPICS = {
    "work/{key}": KafkaTopic("work", key="key"),
    "done/{key}": KafkaTopic("done", key="key"),
    "ask/{key}": KafkaTopic("work.asked", key="key"),
    "look/{key}": KafkaTopic("look", key="key"),
}
FAULTS = replace(Faults.all(), duplicate=0.0, most=30)
NUMBERS, KEYS = 60, 7


@dataclass
class Count:
    n: int = 0
    text: str = ""


def application(instance: int = 0, name: str | None = "app") -> DistributedApplication:
    config = KafkaConfig("cluster", partitions=3, topics=TOPICS)
    return DistributedApplication(config, name=name, instance=str(instance))


def counting(
    instance: int = 0,
    *,
    once: bool = True,
    retry: RetryPolicy | None = None,
    hot: int | None = None,
) -> DistributedApplication:
    """Return an application that numbers the messages of each key."""
    app = application(instance)

    @app.application(
        "work/{key}",
        per="key",
        state=Count,
        durable=True,
        hot=hot,
        exactly_once=once,
        retry=retry or RetryPolicy(attempts=100, first=0.01),
    )
    async def work(number: int, key: str, state: Count, socket: Socket, context: Context) -> None:
        state.n += 1
        await socket.publish(f"done/{key}", [number, state.n])
        if number == -1:
            raise Reject("no")
        if number == -2:
            context.delete()
        if number == -3:
            state.text = "x" * 1_000_000

    return app


def counts(harness: Harness, key: str = "a") -> list[int]:
    return [number for _, number in harness.published(f"done/{key}")]


@pytest.mark.parametrize("once", [True, False])
def test_states_come_back_after_a_restart_and_after_a_crash(once: bool) -> None:
    app = counting(once=once)
    with Harness(app) as harness:
        for key in ("a", "b", "a"):
            harness.publish(f"work/{key}", 1)
        harness.settle()
        harness.restart()
        harness.publish("work/a", 1)
        harness.settle()
        harness.crash()
        harness.restart()
        harness.publish("work/a", 1)
        harness.publish("work/b", 1)
        harness.settle()
        assert counts(harness, "a") == [1, 2, 3, 4]
        assert counts(harness, "b") == [1, 2]
        assert harness.state("work", key="b") == Count(2)


@pytest.mark.parametrize("once", [True, False])
def test_no_message_is_to_blame_if_states_may_not_be_written(once: bool) -> None:
    app = counting(once=once)
    with Harness(app) as harness:
        harness.publish("work/a", 1)
        harness.settle()
        log = "_spa.state.app.work"
        cluster_of(harness).deny(Right.WRITE_TOPIC, log)
        harness.publish("work/a", 2)
        harness.advance(30)
        assert app.stats["dead_letters.stored"] == 0
        assert f"refused the publish to '{log}': not authorised" in app.problems["work"]
        cluster_of(harness).allow(Right.WRITE_TOPIC, log)
        harness.advance(30)
        assert app.healthy
        assert sorted({*counts(harness)}) == [1, 2]
        assert harness.state("work", key="a") == Count(2)


def test_a_state_that_went_is_loaded_again() -> None:
    with Harness(counting()) as harness:
        harness.publish("work/a", 1)
        harness.settle()
        harness.passivate("work")
        harness.settle()
        assert harness.keys("work") == []
        harness.publish("work/a", 1)
        harness.settle()
        assert counts(harness) == [1, 2]


def looked_at(app: DistributedApplication) -> list[object]:
    """Have the application look at the keys that it is asked for; return what it has seen."""
    seen: list[object] = []

    @app.application("look/{key}")
    async def look(payload: bytes, key: str) -> None:
        try:
            seen.append(await app.peek("work", key))
        except NotHere:
            seen.append("not here")

    return seen


def test_what_was_committed_can_be_looked_at_where_the_partition_is() -> None:
    app = counting()
    seen = looked_at(app)

    with Harness(app) as harness:
        harness.publish("work/a", 1)
        harness.settle()
        harness.restart()
        for key in ("a", "b"):
            harness.publish(f"look/{key}", b"")
        harness.settle()
        assert sorted(map(str, seen)) == sorted((str(Count(1)), "not here"))


def test_the_changelog_has_the_partitions_of_the_topic_and_is_compacted() -> None:
    with Harness(counting()) as harness:
        for number in range(10):
            harness.publish(f"work/k{number % 5}", number)
        harness.settle()
        topics = cluster_of(harness).topics
        log = topics["_spa.state.app.work"]
        assert len(log.partitions) == len(topics["work"].partitions) == 3
        harness.compact()
        harness.settle()
        harness.restart()
        for number in range(5):
            harness.publish(f"work/k{number}", number)
        harness.settle()
        assert all(counts(harness, f"k{number}") == [1, 2, 3] for number in range(5))


def test_states_move_with_the_partitions() -> None:
    first, second = counting(0), counting(1)
    with Harness(first, second) as harness:
        harness.stop(second)
        for number in range(NUMBERS):
            harness.publish(f"work/k{number % KEYS}", number)
        harness.settle()
        harness.restart(second)
        for number in range(NUMBERS):
            harness.publish(f"work/k{number % KEYS}", number)
        harness.settle()
        harness.stop(first)
        for number in range(NUMBERS):
            harness.publish(f"work/k{number % KEYS}", number)
        harness.settle()
        for key in range(KEYS):
            assert counts(harness, f"k{key}") == [*range(1, 3 * len(range(key, NUMBERS, KEYS)) + 1)]


def test_a_failed_attempt_leaves_state_and_bus_as_they_were() -> None:
    with Harness(counting()) as harness:
        harness.expect_failure(Reject)
        for number in (1, -1, 2):
            harness.publish("work/a", number)
        harness.settle()
        assert harness.published("done/a") == [[1, 1], [2, 2]]
        (letter,) = harness.dead_letters()
        assert letter.payload == b"-1"


def test_the_attempt_after_a_failed_one_has_the_state_of_before() -> None:
    app, failures = application(), [ValueError("a bad day")]

    @app.application(
        "work/{key}",
        per="key",
        state=Count,
        durable=True,
        exactly_once=True,
        retry=RetryPolicy(attempts=2, first=0.01),
    )
    async def work(number: int, key: str, state: Count, socket: Socket) -> None:
        state.n += 1
        if number == 2 and failures:
            raise failures.pop()
        await socket.publish(f"done/{key}", [number, state.n])

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        for number in (1, 2, 3):
            harness.publish("work/a", number)
        harness.settle()
        assert harness.published("done/a") == [[1, 1], [2, 2], [3, 3]]
        assert harness.dead_letters() == []


def test_a_deleted_state_stays_deleted() -> None:
    with Harness(counting()) as harness:
        for number in (1, 2, -2):
            harness.publish("work/a", number)
        harness.settle()
        harness.restart()
        harness.publish("work/a", 3)
        harness.settle()
        assert counts(harness) == [1, 2, 3, 1]


def test_a_state_that_is_too_large_makes_its_message_a_dead_letter() -> None:
    with Harness(counting()) as harness:
        harness.expect_failure(Reject)
        for number in (1, -3, 2):
            harness.publish("work/a", number)
        harness.settle()
        assert counts(harness) == [1, 2]
        assert len(harness.dead_letters()) == 1


def test_a_record_with_another_key_than_its_address_is_a_dead_letter() -> None:
    app = counting()

    @app.application("in/{key}")
    async def wrong(number: int, key: str, socket: Socket) -> None:
        await socket.publish(f"work/{key}", number, key="other")

    with Harness(app) as harness:
        harness.expect_failure(WrongKey)
        harness.publish("in/a", 1)
        harness.settle()
        assert counts(harness) == []
        (letter,) = harness.dead_letters()
        assert letter.error == "WrongKey"
        assert "'other'" in letter.text


def test_a_topic_with_other_partitions_than_its_changelog_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    will_have = Topics.will_have
    # As if it had been created when the topic had fewer.
    monkeypatch.setattr(Topics, "will_have", lambda self, name, _: will_have(self, name, 2))
    with (
        pytest.raises(ConfigurationError, match=r"has 3 partitions, and .* has 2"),
        Harness(counting()),
    ):
        """It does not start."""


def test_classes_have_their_states_kept_as_well() -> None:
    app = application()

    class Work(Actor):
        per, state, durable, exactly_once = "key", Count, True, True

        @on("work/{key}")
        async def work(self, number: int, key: str, socket: Socket) -> None:
            self.state.n += 1
            await socket.publish(f"done/{key}", [number, self.state.n])

    app.add(Work)
    with Harness(app) as harness:
        harness.publish("work/a", 1)
        harness.settle()
        harness.restart()
        harness.publish("work/a", 2)
        harness.settle()
        assert counts(harness) == [1, 2]


def test_requests_are_answered_after_the_commit_and_not_to_the_own_partition() -> None:
    app = application()
    refused: list[str] = []

    @app.application("ask/{key}", per="key", state=Count, durable=True, exactly_once=True)
    async def ask(number: int, key: str, state: Count, socket: Socket) -> int:
        state.n += number
        if number == 5:
            try:
                await socket.request(f"ask/{key}", 1, reply=int)
            except RemoteError as error:
                refused.append(error.code)
        return state.n

    with Harness(app) as harness:
        assert harness.request("ask/a", 4) == b"4"
        assert app.stats["kafka.transactions"] == 1
        assert harness.request("ask/a", 5) == b"9"
        assert refused == ["deadlock"]
        harness.restart()
        assert harness.request("ask/a", 1) == b"10"


# States that are in a snapshot.


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let applications have snapshots, which they have not in tests; return their folder."""

    snapshots_in(tmp_path, monkeypatch)
    return tmp_path


def test_states_that_went_are_in_the_snapshot_and_not_in_memory(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[PartitionStates] = []
    written = PartitionStates.written

    def remember(self: PartitionStates, values: Any) -> None:
        written(self, values)
        known.append(self)

    monkeypatch.setattr(PartitionStates, "written", remember)
    with Harness(counting(hot=2)) as harness:
        for number in range(60):
            harness.publish(f"work/k{number % 20}", 1)
        harness.settle()
        harness.advance(5)
        assert len(harness.keys("work")) == 2
        assert {place.partition for place in known} == {0, 1, 2}
        assert not any(place.values for place in known)
        for number in range(20):
            harness.publish(f"work/k{number}", 1)
        harness.settle()
        assert all(counts(harness, f"k{number}") == [1, 2, 3, 4] for number in range(20))
    assert in_snapshot(snapshots) == {b"k%d" % number: 4 for number in range(20)}


def test_a_restart_reads_the_snapshot_and_not_the_changelog(snapshots: Path) -> None:
    app = counting()
    with Harness(app) as harness:
        for key in ("a", "b", "a"):
            harness.publish(f"work/{key}", 1)
        harness.publish("work/gone", 1)
        harness.publish("work/gone", -2)
        harness.settle()
        harness.stop()
        assert in_snapshot(snapshots) == {b"a": 2, b"b": 1}
        file = sqlite3.connect(snapshots / "app.0.work.snapshot")
        with contextlib.closing(file), file:
            file.execute("UPDATE state SET value = replace(value, '\"n\":2', '\"n\":7')")
            file.execute("UPDATE state SET value = CAST(value AS BLOB)")
        harness.restart()
        for key in ("a", "b", "gone"):
            harness.publish(f"work/{key}", 1)
        harness.settle()
        assert counts(harness, "a")[-1] == 8
        assert counts(harness, "b")[-1] == 2
        assert counts(harness, "gone")[-1] == 1


def test_an_application_that_was_killed_leaves_its_snapshot_to_the_next_one(
    snapshots: Path,
) -> None:
    with Harness(counting()) as harness:
        for key in ("a", "b", "a"):
            harness.publish(f"work/{key}", 1)
        harness.settle()
        harness.advance(5)
        harness.crash()
        harness.advance(0)
        # Nobody has it open any more.
        assert in_snapshot(snapshots) == {b"a": 2, b"b": 1}
        harness.restart()
        harness.publish("work/a", 1)
        harness.publish("work/c", 1)
        harness.settle()
        assert counts(harness, "a") == [1, 2, 3]
        harness.advance(5)
        harness.crash()
        harness.advance(0)
        assert in_snapshot(snapshots) == {b"a": 3, b"b": 1, b"c": 1}


@pytest.mark.parametrize("seed", range(3))
def test_what_was_not_committed_never_gets_into_the_snapshot(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    commit, right = TransactionalProducer.commit, [len(numbers) for numbers in RIGHT]
    failures = fail_often(monkeypatch, seed)
    with Harness(counting(hot=1)) as harness:
        assert numbered(harness) == RIGHT
        harness.stop()
        # The last answer may have been lost.
        found = in_snapshot(snapshots)
        assert all(found.get(b"k%d" % key, 0) <= right[key] for key in range(KEYS))
        monkeypatch.setattr(TransactionalProducer, "commit", commit)
        harness.restart()
        harness.settle()
    assert min(failures["before"], failures["after"]) > 0
    assert in_snapshot(snapshots) == {b"k%d" % key: right[key] for key in range(KEYS)}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_faults_strike_snapshots_are_right(snapshots: Path, seed: int) -> None:
    apps = counting(0, hot=1), counting(1, hot=1)
    with Harness(*apps, seed=seed, faults=FAULTS) as harness:
        assert numbered(harness) == RIGHT


def test_a_snapshot_that_fails_is_thrown_away_and_the_changelog_is_read(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = SnapshotFile.load

    def fail(self: SnapshotFile, keys: Any) -> Any:
        if (1, b"k0") in keys or (0, b"k0") in keys or (2, b"k0") in keys:
            raise sqlite3.DatabaseError("database disk image is malformed")
        return load(self, keys)

    with Harness(counting(hot=1)) as harness:
        for number in range(20):
            harness.publish(f"work/k{number % 10}", number)
        harness.settle()
        harness.advance(5)
        monkeypatch.setattr(SnapshotFile, "load", fail)
        for number in range(20):
            harness.publish(f"work/k{number % 10}", number)
        harness.settle()
        assert all(counts(harness, f"k{number}") == [1, 2, 3, 4] for number in range(10))
    lines = [one for one in caplog.messages if "is thrown away" in one]
    assert len(lines) == 1
    assert "malformed" in lines[0]
    assert not (snapshots / "app.0.work.snapshot").exists()


def test_a_snapshot_that_fails_while_states_are_restored_is_thrown_away_and_nothing_is_missing(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: SnapshotFile, partition: int) -> Any:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with Harness(counting(hot=1)) as harness:
        for number in range(10):
            harness.publish(f"work/k{number}", number)
        harness.settle()
        harness.stop()
        monkeypatch.setattr(SnapshotFile, "place", fail)
        harness.restart()
        for number in range(10):
            harness.publish(f"work/k{number}", number)
        harness.settle()
        assert all(counts(harness, f"k{number}") == [1, 2] for number in range(10))
    (line,) = [one for one in caplog.messages if "is thrown away" in one]
    assert "malformed" in line


# States that take long to be read.


def read_slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the states of one partition of three take so long."""
    read = restore

    async def slowly(*arguments: Any) -> None:
        config, client, topic, states, *more = arguments
        await read(config, client, topic, {n: it for n, it in states.items() if n != 1}, *more)
        if 1 in states:
            await asyncio.sleep(seconds)
            await read(config, client, topic, {1: states[1]}, *more)

    monkeypatch.setattr(_units, "restore", slowly)


def keys_by_partition() -> dict[int, list[str]]:
    found: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for number in range(30):
        found[hash_of(b"k%d" % number) % 3].append(f"k{number}")
    return found


def every(keys: dict[int, list[str]]) -> list[str]:
    return [key for some in keys.values() for key in some]


def test_a_partition_waits_for_its_states_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, keys = counting(), keys_by_partition()
    seen = looked_at(app)

    with Harness(app) as harness:
        for key in every(keys):
            harness.publish(f"work/{key}", 1)
        harness.settle()
        harness.stop()
        # Longer than a group waits for its members.
        read_slowly(monkeypatch, 200.0)
        harness.restart()
        for key in every(keys):
            harness.publish(f"work/{key}", 2)
        harness.advance(100)
        harness.publish(f"look/{keys[0][0]}", b"")
        harness.publish(f"look/{keys[1][0]}", b"")
        harness.advance(1)
        assert sorted(map(str, seen)) == sorted((str(Count(2)), "not here"))
        assert all(counts(harness, key) == [1, 2] for key in keys[0] + keys[2])
        assert all(counts(harness, key) == [1] for key in keys[1])
        problem = app.problems["work"]
        assert "restoring the states of keys in 1 of 3 partitions" in problem
        harness.advance(120)
        harness.settle()
        assert all(counts(harness, key) == [1, 2] for key in keys[1])
        assert "work" not in app.problems


def test_a_member_that_restores_takes_part_in_rebalances(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, keys = counting(0), counting(1), keys_by_partition()
    with Harness(first, second) as harness:
        harness.stop(second)
        for key in every(keys):
            harness.publish(f"work/{key}", 1)
        harness.settle()
        harness.stop(first)
        read_slowly(monkeypatch, 200.0)
        harness.restart(first)
        harness.advance(10)
        before = first.stats["kafka.rebalances"]
        harness.restart(second)
        harness.advance(100)
        # Both have partitions, long before the states of one are there.
        assert first.stats["kafka.rebalances"] == before + 1
        for key in every(keys):
            harness.publish(f"work/{key}", 2)
        harness.advance(450)
        harness.settle()
        assert all(counts(harness, key) == [1, 2] for key in every(keys))


def test_states_that_cannot_be_read_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    app, read, failures = counting(), restore, [OSError("no answer")] * 3
    with Harness(app) as harness:
        harness.publish("work/a", 1)
        harness.settle()
        harness.stop()

        async def fail(*arguments: Any) -> None:
            if failures:
                raise failures.pop()
            await read(*arguments)

        monkeypatch.setattr(_units, "restore", fail)
        harness.restart()
        harness.publish("work/a", 2)
        harness.settle()
        assert not failures
        assert counts(harness) == [1, 2]


# Whatever goes wrong.


def numbered(harness: Harness) -> list[list[list[int]]]:
    """Publish numbers to all keys while time passes; return what comes of each key."""
    for number in range(NUMBERS):
        harness.publish(f"work/k{number % KEYS}", number)
        if number % 9 == 0:
            harness.advance(0.3)
    harness.settle()
    return [harness.published(f"done/k{key}") for key in range(KEYS)]


RIGHT = [
    [[number, place + 1] for place, number in enumerate(range(key, NUMBERS, KEYS))]
    for key in range(KEYS)
]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_faults_strike_each_key_is_numbered_without_gaps(seed: int) -> None:
    with Harness(counting(0), counting(1), seed=seed, faults=FAULTS) as harness:
        assert numbered(harness) == RIGHT


@pytest.mark.parametrize("seed", range(4))
def test_whatever_faults_strike_outputs_that_come_twice_are_the_same(seed: int) -> None:
    apps = counting(0, once=False), counting(1, once=False)
    with Harness(*apps, seed=seed, faults=FAULTS) as harness:
        found = numbered(harness)
    assert [sorted(map(list, {tuple(one) for one in key})) for key in found] == RIGHT


def fail_often(monkeypatch: pytest.MonkeyPatch, seed: int) -> Counter[str]:
    """Let transactions fail before and after they are committed; count both."""
    commit, dice, failures = TransactionalProducer.commit, random.Random(seed), Counter[str]()

    async def unsure(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        if dice.random() < 0.3:
            failures["before"] += 1
            raise TransactionFailed(OSError("never sent"))
        ends = await commit(self, *arguments, **more)
        if dice.random() < 0.3:
            failures["after"] += 1
            raise TransactionFailed(OSError("no answer"))
        return ends

    monkeypatch.setattr(TransactionalProducer, "commit", unsure)
    return failures


@pytest.mark.parametrize("seed", range(3))
def test_a_transaction_that_has_failed_takes_the_states_with_it(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    failures = fail_often(monkeypatch, seed)
    with Harness(counting()) as harness:
        assert numbered(harness) == RIGHT
    assert min(failures["before"], failures["after"]) > 0


def test_without_forgetting_what_was_not_committed_counts_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DurableUnitLane, "instance_for", KeyedLane.instance_for)
    fail_often(monkeypatch, 0)
    with Harness(counting()) as harness:
        assert numbered(harness) != RIGHT


def test_without_reading_the_changelog_to_its_end_counts_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def skip(*arguments: Any) -> None:
        """Take what is known here for all there is."""
        for states in arguments[3].values():
            states.restored = True
            arguments[6](states)

    monkeypatch.setattr(_units, "restore", skip)
    failures = fail_often(monkeypatch, 0)
    with Harness(counting()) as harness:
        assert numbered(harness) != RIGHT
    assert failures["after"] > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"deliver": "all"}, "deliver='all'"),
        ({"rewind_to": "2026-01-01T00:00Z"}, "rewind_to="),
        ({"subscription": "both"}, "subscription='both'"),
        ({"qos": 0}, "qos=0"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], problem: str) -> None:
    app = application()
    with pytest.raises(ConfigurationError, match=problem):

        @app.application("work/{key}", **{"per": "key", "state": Count, "durable": True, **options})
        async def work(number: int, state: Count) -> None: ...


def test_an_application_without_a_name_is_refused() -> None:
    app = application(name=None)

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work(number: int, state: Count) -> None: ...

    with pytest.raises(ConfigurationError, match="needs a named application"), Harness(app):
        """It does not start."""


def test_a_key_that_fails_holds_up_what_others_publish_no_longer_than_it_may() -> None:
    app = application()
    policy = RetryPolicy(attempts=1_000, first=1, factor=1, jitter=0, hold=5)

    @app.application(
        "work/{key}", per="key", state=Count, durable=True, exactly_once=True, retry=policy
    )
    async def work(number: int, key: str, state: Count, socket: Socket) -> None:
        await socket.publish(f"done/{key}", number)
        if not number:
            raise ValueError("always")

    bad, good, *_ = keys_by_partition()[0]
    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish(f"work/{bad}", 0)
        harness.publish(f"work/{good}", 1)
        harness.advance(4)
        assert harness.published() == []
        assert app.stats["messages.handled"] == 1
        harness.advance(3)
        assert harness.published(f"done/{good}") == [1]
        assert len(harness.dead_letters()) == 1


# What senders publish twice.


def knowing(instance: int = 0, dedupe: int | None = 3) -> DistributedApplication:
    """Return an application that numbers the messages of each key, and knows some of them again."""
    app = application(instance)

    @app.application(
        "work/{key}", per="key", state=Count, durable=Durable(dedupe=dedupe), exactly_once=True
    )
    async def work(number: int, key: str, state: Count, socket: Socket, context: Context) -> int:
        state.n += 1
        await socket.publish(f"done/{key}", [number, state.n])
        if number == -1:
            raise Reject("no")
        if number == -2:
            context.delete()
        return state.n

    return app


def test_what_a_sender_has_published_twice_is_handled_once() -> None:
    app = knowing()
    with Harness(app) as harness:
        for _ in range(3):
            harness.publish("work/a", 1, id="1")
            harness.publish("work/b", 1, id="1")
        harness.settle()
        harness.restart()
        harness.passivate("work")
        harness.publish("work/a", 1, id="1")
        harness.settle()
        assert counts(harness, "a") == counts(harness, "b") == [1]
        assert app.stats["messages.known"] == 5
        # Another message of the same id, and those without one.
        harness.publish("work/a", 2, id="1")
        harness.settle()
        assert counts(harness, "a") == [1, 2]


def test_only_the_last_messages_are_known_again() -> None:
    with Harness(knowing()) as harness:
        for number in (1, 2, 3, 4, 2, 3, 4, 1):
            harness.publish("work/a", number, id=str(number))
            harness.settle()
        assert counts(harness) == [1, 2, 3, 4, 5]


def test_what_was_handled_stays_known_when_the_state_is_deleted() -> None:
    with Harness(knowing()) as harness:
        for number in (1, -2, -2, 1, 3):
            harness.publish("work/a", number, id=str(number))
            harness.settle()
        assert harness.published("done/a") == [[1, 1], [-2, 2], [3, 1]]


def test_a_message_that_was_not_handled_is_not_known() -> None:
    app = knowing()
    with Harness(app) as harness:
        for _ in range(2):
            harness.publish("work/a", -1, id="1")
            harness.settle()
        assert app.stats["messages.failed"] == 2
        assert app.stats["messages.known"] == 0


def test_a_request_that_was_handled_before_is_answered_with_that() -> None:
    app = knowing()
    with Harness(app, faults=Faults(duplicate=1.0)) as harness:
        # The answer to the second one comes after the reply to the first.
        assert harness.request("work/a", 1, reply=int) == 1
        harness.settle()
        assert app.stats["messages.known"] == 1
        assert harness.published("_spa/reply/#") == [1, ALREADY_HANDLED[1]]


def test_without_the_option_nothing_is_known_and_nothing_is_kept_for_it() -> None:
    with Harness(knowing(dedupe=None)) as harness:
        harness.publish("work/a", 1, id="1")
        harness.publish("work/a", 1, id="1")
        harness.settle()
        assert counts(harness) == [1, 2]


@pytest.mark.parametrize(("dedupe", "right"), [(20, True), (None, False)])
def test_whatever_faults_strike_what_comes_twice_counts_once(
    dedupe: int | None, right: bool
) -> None:
    faults = replace(FAULTS, duplicate=0.3)
    with Harness(knowing(0, dedupe), knowing(1, dedupe), seed=1, faults=faults) as harness:
        assert (numbered(harness) == RIGHT) is right


@pytest.mark.parametrize("dedupe", [0, 1_001, True])
def test_how_many_messages_are_known_again_is_limited(dedupe: int) -> None:
    with pytest.raises(ConfigurationError, match=r"Durable\(dedupe\)"):
        knowing(dedupe=dedupe)
