"""Crashes at the steps of transactions, in which a Kafka cluster commits what messages come to."""

from __future__ import annotations

import gc
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic, RetryPolicy, Socket
from spa_dat.errors import ConfigurationError, RequestTimeout
from spa_dat.harness.kafka_cluster._transactions import Coordinator, Transaction
from spa_dat.runtime.hosting._durable_lane import DurableLane
from spa_dat.testing import Faults, HandlerFailed, Harness, explore
from support.exploring import found_by_explore
from support.kafka_states import in_snapshot, snapshots_in
from support.machine import examples

KEYS, MESSAGES = 4, 5
STEPS = ("handled", "sent", "offsets", "committed")
COMMITS = Faults(crash_in_commit=0.1, most=30)


@dataclass
class Count:
    n: int = 0


def config() -> KafkaConfig:
    names = ("work", "done")
    topics = {f"{name}/{{key}}": KafkaTopic(name, key="key") for name in names}
    return KafkaConfig("cluster", partitions=2, topics=topics)


def counting(
    calls: list[int], fails: Callable[[], bool] = lambda: False, instance: int = 0
) -> DistributedApplication:
    """Return an application that numbers the messages of each key."""
    app = DistributedApplication(config(), name="app", instance=str(instance))
    retry = RetryPolicy(attempts=100, first=0.5, factor=1)

    @app.application(
        "work/{key}", per="key", state=Count, durable=True, exactly_once=True, retry=retry
    )
    async def work(number: int, key: str, state: Count, socket: Socket) -> int:
        calls.append(number)
        state.n += 1
        await socket.publish(f"done/{key}", state.n)
        if fails():
            raise ValueError("a bad day")
        return state.n

    return app


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_a_step_of_a_transaction_loses_and_repeats_nothing(step: Any) -> None:
    calls: list[int] = []
    with Harness(counting(calls)) as harness:
        harness.publish("work/a", 6)
        harness.settle()
        harness.crash(at=step)
        harness.publish("work/a", 7)
        harness.settle()
        assert harness.published("done/a") == ([1, 2] if step == "committed" else [1])
        assert f" app/0 reached {step}\n" in harness.trace
        harness.restart()
        harness.settle()
        assert harness.published("done/a") == [1, 2]
        assert calls == ([6, 7] if step == "committed" else [6, 7, 7])
        harness.publish("work/a", 8)
        harness.settle()
        assert harness.published("done/a") == [1, 2, 3]
        assert harness.state("work", key="a") == Count(3)


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_while_it_stops_leaves_no_producer_that_warns(step: Any) -> None:
    calls: list[int] = []
    with Harness(counting(calls)) as harness:
        harness.publish("work/a", 6)
        harness.settle()
        harness.publish("work/a", 7)
        while len(calls) < 2:
            harness.advance(0.001)
        # It is committed as the partition is given back.
        harness.crash(at=step)
        harness.stop()
        assert f" app/0 reached {step}\n" in harness.trace
        harness.restart()
        harness.settle()
        assert harness.published("done/a") == [1, 2]
    # A warning fails the test.
    gc.collect()


@pytest.mark.parametrize("step", STEPS)
def test_actors_without_states_have_these_steps_too(step: Any) -> None:
    app = DistributedApplication(config(), name="app")
    calls: list[int] = []

    @app.application("work/+", exactly_once=True)
    async def work(number: int, socket: Socket) -> None:
        calls.append(number)
        await socket.publish("done/a", number)

    with Harness(app) as harness:
        harness.crash(at=step)
        harness.publish("work/a", 7)
        harness.settle()
        harness.restart()
        harness.settle()
        assert harness.published("done/a") == [7]
        assert calls == ([7] if step == "committed" else [7, 7])


def test_a_reply_is_sent_after_the_commit() -> None:
    calls: list[int] = []
    with Harness(counting(calls)) as harness:
        harness.crash(at="committed")
        with pytest.raises(RequestTimeout):
            harness.request("work/a", 7, timeout=5)
        harness.restart()
        harness.settle()
        assert calls == [7]
        assert harness.request("work/a", 8, reply=int) == 2


def test_what_is_not_in_the_snapshot_is_read_from_the_topic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots_in(tmp_path, monkeypatch)
    calls: list[int] = []
    with Harness(counting(calls)) as harness:
        harness.publish("work/a", 6)
        harness.settle()
        harness.stop()
        assert in_snapshot(tmp_path) == {b"a": 1}
        harness.restart()
        harness.settle()
        harness.crash(at="committed")
        harness.publish("work/a", 7)
        harness.settle()
        assert harness.published("done/a") == [1, 2]
        harness.restart()
        harness.publish("work/a", 8)
        harness.settle()
        assert harness.published("done/a") == [1, 2, 3]
        assert calls == [6, 7, 8]


def test_steps_that_a_bus_does_not_have_are_refused() -> None:
    with (
        Harness(counting([])) as harness,
        pytest.raises(
            ConfigurationError,
            match="only the steps 'handled', 'committed', 'sent', 'offsets' on this bus",
        ),
    ):
        harness.crash(at="published")
    on_mqtt = DistributedApplication("mqtt://broker", name="app")

    @on_mqtt.application("work/{key}", per="key", state=Count, durable=True)
    async def work(number: int) -> None: ...

    with Harness(on_mqtt) as harness, pytest.raises(ConfigurationError, match="'acknowledged' on"):
        harness.crash(at="offsets")


def test_a_step_of_a_transaction_that_is_not_reached_is_told() -> None:
    with (
        pytest.raises(HandlerFailed, match="was to crash at 'offsets', and no message"),
        Harness(counting([])) as harness,
    ):
        harness.crash(at="offsets")


def run(seed: int, faults: Faults, failures: float = 0.0) -> str:
    dice = random.Random(seed)
    apps = [counting([], lambda: dice.random() < failures, number) for number in range(2)]
    with Harness(*apps, seed=seed, faults=faults, allow_failures=ValueError) as harness:
        for number in range(MESSAGES):
            for key in range(KEYS):
                harness.publish(f"work/{key}", number)
            harness.advance(dice.choice((0.0, 0.1, 0.5)))
        harness.settle()
        numbers: dict[str, list[int]] = defaultdict(list)
        for message in harness.messages("done/+"):
            numbers[message.topic].append(message.payload)
        assert len(numbers) == KEYS
        for found in numbers.values():
            assert found == list(range(1, MESSAGES + 1))
        return harness.trace


def test_crashes_at_all_steps_of_transactions_lose_and_repeat_nothing() -> None:
    traces: list[str] = []
    explore(lambda seed: traces.append(run(seed, COMMITS)), seeds=examples(10))
    for step in STEPS:
        assert any(f" reached {step}\n" in trace for trace in traces)


def test_without_the_rollback_of_states_it_would_go_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DurableLane, "_undo", lambda self, cell: None)
    found_by_explore(lambda seed: run(seed, COMMITS, 0.2), 20)


def test_without_aborting_what_is_left_open_it_would_go_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(self: Coordinator, client: str, found: Transaction) -> None:
        found.epoch += 1
        # Its offsets are left out, as when the crash is between these and the records.
        found.groups.clear()
        self._prepare(client, found, commit=True)

    monkeypatch.setattr(Coordinator, "_fence", ended)
    found_by_explore(lambda seed: run(seed, COMMITS), 20)


def test_without_the_offsets_in_the_transaction_it_would_go_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def forgotten(self: AIOKafkaProducer, *arguments: Any) -> None: ...

    monkeypatch.setattr(AIOKafkaProducer, "send_offsets_to_transaction", forgotten)
    found_by_explore(lambda seed: run(seed, COMMITS), 20)
