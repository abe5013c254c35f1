"""Actors on a simulated Kafka cluster that commit in transactions and read several topics."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    KafkaConfig,
    KafkaTopic,
    Reject,
    RetryPolicy,
    Socket,
    on,
)
from spa_dat.errors import ConfigurationError
from spa_dat.testing import Faults, Harness, Kafka
from spa_dat.transports.kafka.consuming import _group_member
from support.kafka_bus import create, new_prefix
from support.kafka_states import cluster_of, in_changelog

TOPICS = {
    "km/{truck}": KafkaTopic("km", key="truck"),
    "fuel/{truck}": KafkaTopic("fuel", key="truck"),
    "stop/{truck}": KafkaTopic("stop", key="truck"),
    "total/{truck}": KafkaTopic("total", key="truck"),
}
FAULTS = replace(Faults.all(), duplicate=0.0, most=30)
PATIENT = RetryPolicy(attempts=100, first=0.01)
NUMBERS, TRUCKS = 60, 7


@dataclass
class Truck:
    n: int = 0
    km: int = 0
    fuel: int = 0


def application(instance: int = 0, name: str | None = "app", **more: Any) -> DistributedApplication:
    options = {"partitions": 3, "start_timeout": 120, **more}
    config = KafkaConfig("cluster", topics=TOPICS, **options)
    return DistributedApplication(config, name=name, instance=str(instance))


def fleet(instance: int = 0) -> DistributedApplication:
    """Return an application that numbers the messages of each truck, of whichever topic."""
    app = application(instance)

    class Fleet(Actor):
        per, state, durable, exactly_once, retry = "truck", Truck, True, True, PATIENT

        @on("km/{truck}")
        async def drive(self, km: int, truck: str, socket: Socket) -> None:
            self.state.km += km
            await self._count(truck, socket, km)

        @on("fuel/{truck}")
        async def fill(self, fuel: int, truck: str, socket: Socket) -> None:
            self.state.fuel += fuel
            await self._count(truck, socket, -fuel)

        async def _count(self, truck: str, socket: Socket, change: int) -> None:
            self.state.n += 1
            await socket.publish(f"total/{truck}", [self.state.n, change])
            if change == 13:
                raise Reject("no")

    app.add(Fleet)
    return app


def send(harness: Harness, numbers: range) -> None:
    for number in numbers:
        topic = "km" if number % 3 else "fuel"
        harness.publish(f"{topic}/t{number % TRUCKS}", 1)


def check(harness: Harness, numbers: int) -> None:
    """Fail unless each message counts once, and the order of each topic is kept."""
    for truck in range(TRUCKS):
        mine = [*range(truck, numbers, TRUCKS)]
        found = harness.published(f"total/t{truck}")
        assert [n for n, _ in found] == [*range(1, len(mine) + 1)]
        kinds = Counter(change for _, change in found)
        assert kinds == Counter(1 if number % 3 else -1 for number in mine)


def test_the_state_of_a_key_is_one_whichever_topic_its_messages_come_from() -> None:
    app = fleet()
    with Harness(app) as harness:
        send(harness, range(NUMBERS))
        harness.settle()
        harness.restart()
        send(harness, range(NUMBERS, 2 * NUMBERS))
        harness.settle()
        harness.crash()
        harness.restart()
        send(harness, range(2 * NUMBERS, 3 * NUMBERS))
        harness.settle()
        check(harness, 3 * NUMBERS)
        assert len(cluster_of(harness).topics["_spa.state.app.Fleet"].partitions) == 3
        assert in_changelog(harness, "Fleet") == [f"t{truck}" for truck in range(TRUCKS)]
        # One producer for each number, named as for one topic.
        assert {*cluster_of(harness).transactions} == {f"app.Fleet.{n}" for n in range(3)}


def test_partitions_with_one_number_move_together() -> None:
    first, second, third = (fleet(number) for number in range(3))
    with Harness(first, second, third) as harness:
        for number, app in enumerate((third, second)):
            harness.stop(app)
            send(harness, range(number * NUMBERS, (number + 1) * NUMBERS))
            harness.settle()
        harness.restart(third)
        harness.stop(first)
        send(harness, range(2 * NUMBERS, 3 * NUMBERS))
        harness.settle()
        harness.restart(second)
        harness.restart(first)
        send(harness, range(3 * NUMBERS, 4 * NUMBERS))
        harness.settle()
        check(harness, 4 * NUMBERS)


def test_each_message_counts_once_whatever_fails() -> None:
    for seed in range(8):
        apps = [fleet(number) for number in range(2)]
        with Harness(*apps, seed=seed, faults=FAULTS) as harness:
            for number in range(NUMBERS):
                send(harness, range(number, number + 1))
                harness.advance(0.05)
                if number % 20 == 7:
                    harness.crash(apps[number % 2])
                    harness.restart(apps[number % 2])
            harness.settle()
            check(harness, NUMBERS)


def waits(app: DistributedApplication, once: bool = True) -> list[str]:
    """Have a state changed by two topics, of which one may have to wait; return the calls."""
    calls: list[str] = []

    class Fleet(Actor):
        per, state, durable, exactly_once = "truck", Truck, True, once
        retry = RetryPolicy(attempts=5, first=5.0, factor=1.0, hold=100.0)

        @on("km/{truck}")
        async def drive(self, km: int, truck: str, socket: Socket) -> None:
            calls.append(truck)
            if truck == "stuck" and len(calls) < 4:
                raise ValueError("not yet")
            self.state.n += 1
            await socket.publish(f"total/{truck}", self.state.n)

        @on("fuel/{truck}")
        async def fill(self, fuel: int, truck: str, socket: Socket) -> None:
            calls.append(f"fuel {truck}")
            self.state.n += 1
            await socket.publish(f"total/{truck}", self.state.n)

    app.add(Fleet)
    return calls


def test_no_state_is_committed_without_what_it_was_made_of_in_another_topic() -> None:
    app = DistributedApplication(KafkaConfig("cluster", partitions=1, topics=TOPICS), name="app")
    calls = waits(app)
    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("km/stuck", 1)
        harness.publish("km/a", 1)
        harness.advance(1.0)
        harness.publish("fuel/a", 1)
        harness.advance(1.0)
        # The state of "a" knows of the message behind the one that waits.
        assert calls == ["stuck", "a", "fuel a"]
        assert harness.published("total/a") == []
        harness.crash()
        harness.restart()
        harness.settle()
        assert harness.published("total/a") == [1, 2]
        assert harness.published("total/stuck") == [1]


def test_reminders_and_deletions_belong_to_the_key_and_not_to_a_topic() -> None:
    app = application()

    @app.application(
        ["km/{truck}", "fuel/{truck}"], per="truck", state=Truck, durable=True, exactly_once=True
    )
    async def drive(km: int, state: Truck, context: Context) -> None:
        state.n += km
        if km == 1:
            context.remind("look", b"", after=10.0)
        if km == 9:
            context.delete()

    @app.on_reminder("drive", "look")
    async def look(payload: bytes, truck: str, state: Truck, socket: Socket) -> None:
        await socket.publish(f"total/{truck}", state.n)

    with Harness(app) as harness:
        harness.publish("km/a", 1)
        harness.publish("km/b", 1)
        harness.settle()
        harness.publish("fuel/a", 5)
        harness.publish("fuel/b", 9)
        harness.settle()
        harness.restart()
        harness.advance(11.0)
        harness.settle()
        assert harness.published("total/a") == [6]
        assert harness.published("total/b") == []
        assert in_changelog(harness, "drive") == ["a"]


def driving(instance: int, *topics: str) -> DistributedApplication:
    """Return an application with an actor of these topics."""
    app = application(instance)

    @app.application(
        topics, name="drive", per="truck", state=Truck, durable=True, exactly_once=True
    )
    async def drive(km: int, truck: str, state: Truck, socket: Socket) -> None:
        state.n += 1
        await socket.publish(f"total/{truck}", state.n)

    return app


def test_an_actor_may_get_another_topic_while_others_run_that_do_not_know_it() -> None:
    old, new = driving(0, "km/{truck}"), driving(1, "km/{truck}", "fuel/{truck}")
    with Harness(old, new) as harness:
        harness.stop(new)
        for truck in range(TRUCKS):
            harness.publish(f"km/t{truck}", 1)
        harness.settle()
        harness.restart(new)
        for truck in range(TRUCKS):
            harness.publish(f"km/t{truck}", 1)
            harness.publish(f"fuel/t{truck}", 1)
        harness.settle()
        harness.stop(old)
        for truck in range(TRUCKS):
            harness.publish(f"fuel/t{truck}", 1)
        harness.settle()
        for truck in range(TRUCKS):
            assert harness.published(f"total/t{truck}") == [1, 2, 3, 4]


def test_an_assignment_that_keeps_partitions_with_one_number_apart_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if the one that assigns were another program.
    monkeypatch.setattr(_group_member, "NumberAssignor", RoundRobinPartitionAssignor)
    first, second = fleet(0), fleet(1)
    with (
        pytest.raises(ConfigurationError, match=r"has assigned partition .* to this") as refused,
        Harness(first, second),
    ):
        """They do not start."""
    assert "and not that of" in str(refused.value)
    assert "stop it, or give the application" in str(refused.value)


def test_topics_with_different_numbers_of_partitions_are_refused() -> None:
    app = fleet()
    with Harness(app) as harness:
        send(harness, range(NUMBERS))
        harness.settle()
        harness.stop(app)
        cluster_of(harness).topics["fuel"].grow(5)
        with pytest.raises(ConfigurationError, match=r"'km' has 3, 'fuel' has 5") as refused:
            harness.restart(app)
        assert "give all of them as many" in str(refused.value)


def test_a_topic_that_gets_more_partitions_stops_the_actor_and_keeps_its_messages() -> None:
    app = fleet()
    with Harness(app) as harness:
        send(harness, range(NUMBERS))
        harness.settle()
        topics = cluster_of(harness).topics
        topics["fuel"].grow(5)
        harness.advance(30.0)
        assert "'km' has 3, 'fuel' has 5" in app.problems["Fleet"]
        send(harness, range(NUMBERS, NUMBERS + 1))
        harness.advance(5.0)
        topics["km"].grow(5)
        harness.advance(60.0)
        assert "topic 'km' and topic 'fuel' has 5 partitions, and " in app.problems["Fleet"]
        assert "spa-dat states copy" in app.problems["Fleet"]
        # With other partitions nothing is handled, as keys are not where their states are.
        check(harness, NUMBERS)
        # It would never come to rest.
        harness.crash()


def test_without_states_topics_may_have_different_numbers_of_partitions() -> None:
    apps = [application(number) for number in range(2)]
    for app in apps:

        @app.application(["km/{truck}", "fuel/{truck}"], exactly_once=True)
        async def forward(n: int, truck: str, socket: Socket) -> None:
            await socket.publish(f"total/{truck}", n)

    with Harness(*apps) as harness:
        harness.stop(apps[1])
        cluster_of(harness).topics["fuel"].grow(5)
        harness.restart(apps[1])
        for number in range(NUMBERS):
            harness.publish(f"{'km' if number % 2 else 'fuel'}/t{number % TRUCKS}", number)
        harness.settle()
        found = [n for truck in range(TRUCKS) for n in harness.published(f"total/t{truck}")]
        assert sorted(found) == [*range(NUMBERS)]


@pytest.mark.kafka
async def test_another_process_goes_on_with_an_empty_folder(kafka: Kafka, tmp_path: Path) -> None:
    prefix = new_prefix()
    for topic in ("km", "fuel"):
        await create(kafka.server, f"{prefix}{topic}", 4)
    config = KafkaConfig(
        kafka.server, prefix=prefix, topics=TOPICS, session_timeout=2, heartbeat_interval=0.3
    )
    for life in range(3):
        app = DistributedApplication(
            config, name="fleet", instance=str(life), state_folder=tmp_path / str(life)
        )

        class Fleet(Actor):
            per, state, durable, exactly_once = "truck", Truck, True, True

            @on("km/{truck}")
            async def drive(self, km: int) -> list[int]:
                self.state.km += km
                return [self.state.km, self.state.fuel]

            @on("fuel/{truck}")
            async def fill(self, fuel: int) -> list[int]:
                self.state.fuel += fuel
                return [self.state.km, self.state.fuel]

        app.add(Fleet)
        async with app:
            for topic, fuel in (("km", life), ("fuel", life + 1)):
                requests = (
                    app.socket().request(f"{topic}/t{truck}", 1, reply=list[int], timeout=60)
                    for truck in range(TRUCKS)
                )
                assert await asyncio.gather(*requests) == [[life + 1, fuel]] * TRUCKS


@pytest.mark.kafka
async def test_topics_that_do_not_fit_are_refused_by_a_real_cluster(
    kafka: Kafka, tmp_path: Path
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}km", 2)
    await create(kafka.server, f"{prefix}fuel", 3)
    config = KafkaConfig(kafka.server, prefix=prefix, topics=TOPICS)
    app = DistributedApplication(config, name="fleet", state_folder=tmp_path)

    @app.application(["km/{truck}", "fuel/{truck}"], per="truck", state=Truck, durable=True)
    async def drive(km: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"km' has 2, '.*fuel' has 3"):
        await app.start()
