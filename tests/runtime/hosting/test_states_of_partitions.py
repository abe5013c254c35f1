"""The states of keys whose partitions go to another instance, and come back."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from spa_dat import Actor, Context, DistributedApplication, KafkaConfig, KafkaTopic, on
from spa_dat.testing import Faults, Harness, explore
from support.machine import examples

KEYS = [str(key) for key in range(6)]
CONFIG = KafkaConfig("broker", partitions=4, topics={"job/{k}": KafkaTopic("jobs", key="k")})


class Handled:
    """What each instance has in the state of each key after its messages."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, list[int]]]] = {}

    def application(self, instance: int, share: str | None = None) -> DistributedApplication:
        app = DistributedApplication(CONFIG, name="app", instance=str(instance))
        options: dict[str, Any] = {"per": "k", "state": list, "subscription": share}

        @app.application("job/{k}", **options)
        async def work(number: int, k: str, state: list[int]) -> None:
            state.append(number)
            self.seen.setdefault(k, []).append((instance, list(state)))

        if share is not None:

            @app.application("job/{k}", name="beside", subscription=share)
            async def beside(number: int) -> None: ...

        return app


def publish(harness: Harness, number: int) -> None:
    for key in KEYS:
        harness.publish(f"job/{key}", number)
    harness.settle()


@pytest.mark.parametrize("share", [None, "both"])
def test_a_key_that_comes_back_begins_anew_if_others_had_it(share: str | None) -> None:
    handled = Handled()
    first, second = handled.application(0, share), handled.application(1, share)
    with Harness(first, second) as harness:
        harness.stop(second)
        harness.advance(60)
        publish(harness, 1)
        assert handled.seen == {key: [(0, [1])] for key in KEYS}
        harness.restart(second)
        harness.settle()
        publish(harness, 2)
        moved = {key for key in KEYS if handled.seen[key][-1] == (1, [2])}
        assert moved
        # What stayed goes on.
        assert {key for key in KEYS if handled.seen[key][-1] == (0, [1, 2])} == {*KEYS} - moved
        assert moved != {*KEYS}
        harness.stop(second)
        harness.advance(60)
        publish(harness, 3)
        for key in KEYS:
            assert handled.seen[key][-1] == (0, [3] if key in moved else [1, 2, 3])


def test_a_key_stays_where_it_comes_back_and_nobody_else_had_it() -> None:
    handled = Handled()
    with Harness(handled.application(0)) as harness:
        publish(harness, 1)
        harness.rebalance()
        publish(harness, 2)
        harness.lose_session("work")
        publish(harness, 3)
        harness.outage(100)
        harness.advance(120)
        publish(harness, 4)
        assert {key: seen[-1] for key, seen in handled.seen.items()} == {
            key: (0, [1, 2, 3, 4]) for key in KEYS
        }


def growing() -> DistributedApplication:
    """An application that has the topic get as many partitions as it is told."""
    app = DistributedApplication("kafka://broker", name="growing")

    @app.application("grow")
    async def grow(partitions: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers="kafka-1.simulated:9092")
        await admin.start()
        await admin.create_partitions({"jobs": NewPartitions(partitions)})
        await admin.close()

    return app


def test_a_key_in_another_partition_begins_anew_if_others_had_that() -> None:
    handled = Handled()
    first, second = handled.application(0), handled.application(1)
    with Harness(first, second, growing()) as harness:
        publish(harness, 1)
        before = {key: seen[-1][0] for key, seen in handled.seen.items()}
        harness.publish("grow", 7)
        harness.settle()
        harness.advance(400)
        publish(harness, 2)
        between = {key: seen[-1][0] for key, seen in handled.seen.items()}
        went = [key for key in KEYS if (before[key], between[key]) == (0, 1)]
        assert went
        harness.stop(second)
        harness.advance(60)
        publish(harness, 3)
        for key in went:
            assert handled.seen[key][-1] == (0, [3])


def test_a_key_in_a_new_partition_stays_where_it_comes_to_the_same_instance() -> None:
    handled = Handled()
    app = handled.application(0)
    with Harness(app, growing()) as harness:
        publish(harness, 1)
        harness.restart(app)
        publish(harness, 2)
        harness.publish("grow", 7)
        harness.settle()
        harness.advance(400)
        for number in (3, 4):
            publish(harness, number)
        assert {key: seen[-1] for key, seen in handled.seen.items()} == {
            key: (0, [2, 3, 4]) for key in KEYS
        }


def test_a_key_is_passivated_and_calls_nothing_any_more_when_others_have_it() -> None:
    passivated: list[str] = []
    called: list[str] = []

    class Work(Actor):
        per = "k"

        async def on_passivate(self, k: str) -> None:
            passivated.append(k)

        @on("job/{k}")
        async def work(self, number: int, k: str, context: Context) -> None:
            context.later(500, called.append, k)

    def application(instance: int) -> DistributedApplication:
        app = DistributedApplication(CONFIG, name="app", instance=str(instance))
        app.add(Work)
        return app

    first, second = application(0), application(1)
    with Harness(first, second) as harness:
        harness.stop(second)
        harness.advance(60)
        publish(harness, 1)
        passivated.clear()
        harness.restart(second)
        harness.settle()
        moved = [*passivated]
        assert 0 < len(moved) < len(KEYS)
        assert sorted([*moved, *harness.keys("Work", application=first)]) == KEYS
        harness.advance(600)
        assert sorted([*moved, *called]) == KEYS


def test_no_state_lacks_a_message_whatever_happens() -> None:
    def scenario(seed: int) -> None:
        handled = Handled()
        faults = Faults(drop=0.02, delay=0.1, reorder=0.3, cut=0.03, rebalance=0.03)
        first, second = handled.application(0), handled.application(1)
        with Harness(first, second, seed=seed, faults=faults) as harness:
            for number in range(30):
                harness.publish(f"job/{number % 3}", number)
                if number % 6 == 5:
                    harness.advance(2)
                if number == 12:
                    harness.lose_session("work")
            harness.settle()
        for key, seen in handled.seen.items():
            numbers = [number for number in range(30) if str(number % 3) == key]
            for _, state in seen:
                # From where it began on, though some may have come twice.
                known = [*dict.fromkeys(state)]
                start = numbers.index(known[0])
                assert known == numbers[start : start + len(known)]

    explore(scenario, seeds=examples(12))
