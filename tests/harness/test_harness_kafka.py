"""The harness as a Kafka cluster: partitions, groups, commits, and what users notice of them."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import time
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any
from urllib.parse import quote

import aiokafka.client
import pytest

import support.forwarding
from spa_dat import (
    Actor,
    DistributedApplication,
    KafkaConfig,
    KafkaTopic,
    Message,
    RetryPolicy,
    Socket,
    SocketProviderFactory,
)
from spa_dat.errors import ConfigurationError, UnknownTopic
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.registration._specs import Spec
from spa_dat.testing import Faults, Harness, explore
from support.hash_seeds import output_with_hash_seed
from support.machine import examples

NUMBERS = range(5)
_ODD = r"\n\d+\.\d{3}(?!000)\d{3} "
"""What happens at a time that is no whole millisecond."""
# Compacting takes topics of its own, see the tests of transactions.
_ELSEWHERE = ("most", "compact", "crash_in_commit")
KINDS = [field.name for field in fields(Faults) if field.name not in _ELSEWHERE]


def collecting(
    name: str = "app", instance: str = "0", address: str = "kafka://broker:9092?partitions=3"
) -> tuple[DistributedApplication, list[tuple[str, int]]]:
    """Make an application that keeps what it receives, with keys."""
    app = DistributedApplication(address, name=name, instance=instance)
    seen: list[tuple[str, int]] = []

    @app.application("in")
    async def collect(message: Message[int]) -> None:
        seen.append((message.key or "", message.payload))

    return app, seen


def forwarding(kind: str = "async") -> DistributedApplication:
    return support.forwarding.forwarding("kafka://broker:9092?partitions=2", kind)


def run(app: DistributedApplication, seed: int, faults: Faults) -> str:
    with Harness(app, seed=seed, faults=faults) as harness:
        for number in NUMBERS:
            harness.publish(f"in/{number % 2}", number, key=str(number))
        harness.settle()
        assert set(harness.published("out")) == set(NUMBERS)
        assert harness.dead_letters() == []
        return harness.trace


class Counting(Actor):
    topics = ("in",)

    def __init__(self) -> None:
        self.count = 0

    async def on_message(self, payload: int, socket: Socket) -> None:
        self.count += 1
        await socket.publish("out", self.count)


def counting(address: str = "kafka://broker:9092") -> DistributedApplication:
    app = DistributedApplication(address, name="app")
    app.add(Counting)
    return app


# What users notice.


def test_messages_go_in_and_come_out() -> None:
    app, seen = collecting()

    @app.application("back")
    async def back(payload: str, socket: Socket) -> None:
        await socket.publish("out", payload, key="k", headers={"a": "b"})

    with Harness(app) as harness:
        harness.publish("in", 1, key="a")
        harness.publish("back", "text")
        harness.settle()
        assert seen == [("a", 1)]
        assert harness.published() == ["text"]
        (message,) = harness.messages("out")
        assert (message.topic, message.key, message.headers["a"]) == ("out", "k", "b")
        assert message.source == "app/0/back"
        assert harness.stats["messages.handled"] == 2


def test_requests_are_answered() -> None:
    app = DistributedApplication("kafka://broker:9092", name="app")

    @app.application("double")
    async def double(payload: int) -> int:
        return 2 * payload

    @app.application("in")
    async def ask(payload: int, socket: Socket) -> None:
        await socket.publish("out", await socket.request("double", payload, reply=int))

    with Harness(app) as harness:
        assert harness.request("double", 4, reply=int) == 8
        harness.publish("in", 5)
        harness.settle()
        assert harness.published("out") == [10]


def test_one_key_stays_in_order_and_keys_overtake_each_other() -> None:
    app, seen = collecting()
    sent = [(key, number) for number in range(6) for key in "abcdef"]
    with Harness(app) as harness:
        for key, number in sent:
            harness.publish("in", number, key=key)
        harness.settle()
    assert sorted(seen) == sorted(sent)
    assert seen != sent
    for key in "abcdef":
        assert [number for one, number in seen if one == key] == list(range(6))


def test_one_partition_keeps_everything_in_order() -> None:
    app, seen = collecting(address="kafka://broker:9092")
    with Harness(app) as harness:
        for number in range(20):
            harness.publish("in", number)
        harness.settle()
    assert [number for _, number in seen] == list(range(20))


@pytest.mark.parametrize("batch", [None, (2, 0.01)])
def test_what_another_instance_publishes_again_has_the_same_id(
    batch: tuple[int, float] | None,
) -> None:
    apps = []
    began: list[str] = []

    def add(instance: str) -> None:
        app = DistributedApplication("kafka://broker:9092", name="app", instance=instance)

        async def work(key: str | None, socket: Socket) -> None:
            began.append(instance)
            await socket.publish("out", instance, key=key)
            if len(began) == 1:
                await asyncio.Event().wait()

        if batch is None:

            @app.application("in", name="actor")
            async def handle(message: Message[bytes], socket: Socket) -> None:
                await work(message.key, socket)

        else:

            @app.application("in", name="actor", batch=batch)
            async def handle_all(messages: list[Message[bytes]], socket: Socket) -> None:
                await work(messages[0].key, socket)

        apps.append(app)

    for instance in "01":
        add(instance)
    with Harness(*apps) as harness:
        harness.publish("in", b"x", key="k")
        harness.advance(1)
        first = began[0]
        harness.crash(apps[int(first)])
        harness.settle()
        assert began[1:] == ["1" if first == "0" else "0"]
        one, other = harness.messages("out")
        assert one.id == other.id
        assert one.source != other.source


def test_what_every_instance_gets_makes_something_of_its_own_in_each() -> None:
    apps = []
    for instance in "01":
        app = DistributedApplication("kafka://broker:9092", name="app", instance=instance)

        @app.application("in", name="actor", deliver="all")
        async def handle(payload: bytes, socket: Socket) -> None:
            await socket.publish("out", payload)

        apps.append(app)
    with Harness(*apps) as harness:
        harness.publish("in", b"x")
        harness.settle()
        one, other = harness.messages("out")
        assert one.id != other.id


def test_two_instances_share_the_partitions() -> None:
    one, seen = collecting(instance="0")
    other, also_seen = collecting(instance="1")
    keys = [str(number) for number in range(30)]
    with Harness(one, other) as harness:
        for key in keys:
            harness.publish("in", 0, key=key)
        harness.settle()
        assert sorted(key for key, _ in seen + also_seen) == sorted(keys)
        assert seen
        assert also_seen
        harness.crash(other)
        before = len(seen)
        for key in keys:
            harness.publish("in", 1, key=key)
        harness.settle()
        assert sorted(key for key, number in seen[before:]) == sorted(keys)
        # Nobody says goodbye for it: the others have to find out.
        assert harness.time > 10.0


def test_a_restart_goes_on_at_the_commit() -> None:
    with Harness(counting()) as harness:
        harness.publish("in", 1)
        harness.settle()
        harness.crash()
        harness.publish("in", 2)
        harness.settle()
        assert harness.published("out") == [1]
        harness.restart()
        harness.settle()
        assert harness.published("out") == [1, 1]


def test_what_was_handled_and_not_committed_comes_again() -> None:
    app = DistributedApplication("kafka://broker:9092?commit_interval=60", name="app")
    app.add(Counting)
    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.advance(10.0)
        assert harness.published("out") == [1]
        harness.crash()
        harness.restart()
        harness.settle()
        assert harness.published("out") == [1, 1]


def test_a_retained_message_is_an_ordinary_one() -> None:
    app, seen = collecting()
    other, also_seen = collecting("late")
    with Harness(app, other) as harness:
        harness.stop(other)
        harness.publish("in", 1, retain=True)
        harness.settle()
        assert seen == [("", 1)]
        harness.restart(app)
        harness.settle()
        assert seen == [("", 1)]
        harness.restart(other)
        harness.settle()
        assert also_seen == [("", 1)]


def test_wildcards_find_topics_that_appear_later() -> None:
    with Harness(forwarding()) as harness:
        harness.publish("in/new", 1)
        harness.settle()
        harness.publish("in/newer", 2)
        harness.settle()
        assert harness.published("out") == [1, 2]


def test_runtime_subscriptions_read_from_now_on() -> None:
    app = DistributedApplication("kafka://broker:9092", name="app")
    seen: list[str] = []

    @app.application("in")
    async def read(message: Message[str], socket: Socket) -> None:
        seen.append(message.payload)
        if message.topic == "in":
            await socket.subscribe("news")

    with Harness(app) as harness:
        harness.publish("news", "old")
        harness.publish("in", "begin")
        harness.settle()
        harness.publish("news", "new")
        harness.settle()
        assert seen == ["begin", "new"]


def test_an_application_without_a_name_reads_from_now_on() -> None:
    app = DistributedApplication("kafka://broker:9092")
    app.add(Counting)
    other, _ = collecting(address="kafka://broker:9092")
    with Harness(other, app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]
        harness.stop(app)
        harness.publish("in", 2)
        harness.settle()
        harness.restart(app)
        harness.publish("in", 3)
        harness.settle()
        assert harness.published("out") == [1, 1]


def test_a_group_that_started_at_the_end_misses_nothing_afterwards() -> None:
    app = counting("kafka://broker:9092?offset_reset=latest")
    other, _ = collecting("other", address="kafka://broker:9092?offset_reset=latest")
    with Harness(other, app) as harness:
        harness.stop(app)
        harness.publish("in", 1)
        harness.settle()
        harness.restart(app)
        harness.settle()
        assert harness.published("out") == [1]


def nulls(placement: Any = None) -> DistributedApplication:
    app = DistributedApplication("kafka://broker:9092", name="app")

    @app.application("in", placement=placement)
    async def send(payload: int, socket: Socket) -> None:
        await socket.publish("out", payload, headers={"none": None, "empty": "", "some": "x"})

    return app


@pytest.mark.parametrize("placement", [None, "process"])
def test_headers_without_a_value_are_sent_received_and_kept_in_dead_letters(placement: Any) -> None:
    app = nulls(placement)
    got: list[Message[int]] = []

    @app.application("out", retry=RetryPolicy(attempts=1))
    async def fail(message: Message[int]) -> None:
        got.append(message)
        raise ValueError("no")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("in", 1)
        harness.settle()
        (message,) = got
        sent = {"none": None, "empty": b"", "some": b"x"}
        assert {name: v for name, v in message.raw_headers if name in sent} == sent
        own = {name: message.headers[name] for name in sent}
        assert own == {"none": "", "empty": "", "some": "x"}
        (bus,) = harness._core.world.buses.values()
        (letter,) = bus.letters()
        assert {name: v for name, v in letter.raw_headers if name in sent} == sent
        # From outside, as another program would.
        harness.publish("out", 2, headers={"none": None})
        harness.settle()
        assert ("none", None) in got[1].raw_headers


def test_headers_need_a_value_elsewhere() -> None:
    app = DistributedApplication("mqtt://broker", name="app")

    @app.application("in")
    async def send(payload: int, socket: Socket) -> None:
        with pytest.raises(ConfigurationError, match="header 'none': None: this bus has no"):
            await socket.publish("out", payload, headers={"none": None})

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        with pytest.raises(ConfigurationError, match="header 'none': None: this bus has no"):
            harness.publish("in", 1, headers={"none": None})


@pytest.mark.parametrize("reset", ["30s", "2023-11-14T22:31:00Z", "2023-11-14T23:31:00+01:00"])
def test_a_new_group_starts_with_a_time(reset: str) -> None:
    app, seen = collecting(address=f"kafka://broker:9092?partitions=3&offset_reset={quote(reset)}")
    (spec,) = runs_of(app).specs
    # It starts at half past ten.
    with Harness(app) as harness:
        for key in "abcdef":
            harness.publish("in", 1, key=key)
        harness.advance(120)
        for key in "abcdef":
            harness.publish("in", 2, key=key)
        harness.settle()
        harness.stop(app)
        seen.clear()
        app.configure(spec, name="later")
        harness.restart(app)
        harness.settle()
        assert sorted(seen) == [(key, 2) for key in "abcdef"]
        # Its place is kept, also where there was nothing for it.
        harness.advance(120)
        harness.restart(app)
        harness.publish("in", 3, key="a")
        harness.settle()
        assert sorted(seen) == [("a", 2), ("a", 3), *((key, 2) for key in "bcdef")]


def two_times(app: DistributedApplication, harness: Harness) -> Spec[Any]:
    """Let it handle messages of half past ten, and of two minutes later; then it has stopped."""
    (spec,) = runs_of(app).specs
    for number in (1, 2):
        for key in "abcdef":
            harness.publish("in", number, key=key)
        harness.settle()
        harness.advance(120)
    harness.stop(app)
    return spec


def test_a_group_goes_back_to_a_time_once() -> None:
    app, seen = collecting()
    with Harness(app) as harness:
        spec = two_times(app, harness)
        seen.clear()
        app.configure(spec, rewind_to="2023-11-14T22:31:00Z")
        harness.restart(app)
        harness.settle()
        assert sorted(seen) == [(key, 2) for key in "abcdef"]
        assert harness.stats["kafka.partitions_rewound"] == 3
        seen.clear()
        harness.crash(app)
        harness.restart(app)
        harness.rebalance()
        harness.publish("in", 3, key="a")
        harness.settle()
        assert seen == [("a", 3)]


def test_a_time_in_the_future_is_none_to_go_back_to() -> None:
    app, _ = collecting()
    with Harness(app) as harness:
        spec = two_times(app, harness)
        app.configure(spec, rewind_to="2023-11-15T03:00:00+01:00")
        with pytest.raises(ConfigurationError, match=r"rewind_to='2023.* is in the future"):
            harness.restart(app)


@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
def test_what_keeps_nothing_has_no_time_to_go_back_to(profile: Any) -> None:
    app, _ = collecting(address="mqtt://broker")
    (spec,) = runs_of(app).specs
    app.configure(spec, rewind_to="2023-11-14T22:31:00Z")
    with (
        pytest.raises(ConfigurationError, match=r"mqtt://broker.* keeps no messages"),
        Harness(app, profile=profile),
    ):
        pass


def test_actors_that_share_a_subscription_go_back_together() -> None:
    app = DistributedApplication("kafka://broker:9092", name="app")
    for name, to in (("one", "2023-11-14T21:00:00Z"), ("two", None)):

        @app.application("in", name=name, subscription="both", rewind_to=to)
        async def handle(payload: int) -> None: ...

    with pytest.raises(ConfigurationError, match="differ in rewind_to"), Harness(app):
        pass


def test_two_clusters_are_bridged() -> None:
    app = DistributedApplication("kafka://north:9092", name="bridge")
    south = SocketProviderFactory.from_url("kafka://south:9092")

    @app.application("in")
    async def forward(payload: int, socket: Socket) -> None:
        await socket.publish("out", payload)

    @app.application("in", socket_provider=south)
    async def backward(payload: int, socket: Socket) -> None:
        await socket.publish("out", -payload)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.publish("in", 2, bus="kafka://south:9092")
        harness.settle()
        assert sorted(harness.published("out")) == [-2, 1]


async def test_async_tests_await_what_takes_time() -> None:
    async with Harness(counting()) as harness:
        harness.publish("in", 1)
        await harness.settle()
        assert harness.published("out") == [1]


def test_an_application_that_does_not_start_leaves_nothing_behind() -> None:
    app = counting()

    @app.application("else", ressources={"missing": missing})
    async def nothing(payload: int, missing: object) -> None:
        """Never called."""

    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no such thing"), Harness(app):
            pass
        gc.collect()


def missing() -> AbstractContextManager[object]:
    raise LookupError("no such thing")


def test_dead_letters_are_stored() -> None:
    app = DistributedApplication("kafka://broker:9092", name="frail")

    @app.application("in", retry=RetryPolicy(attempts=1))
    async def fail(payload: int) -> None:
        raise ValueError("no such thing")

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("in", 1)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert (letter.topic, letter.payload, letter.error) == ("in", b"1", "ValueError")
        assert harness.published() == []


def test_bound_topics_have_their_keys() -> None:
    config = KafkaConfig(
        "broker:9092",
        partitions=4,
        topics={"fleet/{truck}/position": KafkaTopic("fleet.position", key="truck")},
    )
    app = DistributedApplication(SocketProviderFactory.from_config(config), name="app")
    seen: list[tuple[str, int]] = []

    @app.application("fleet/{truck}/position")
    async def follow(truck: str, payload: int) -> None:
        seen.append((truck, payload))

    with Harness(app) as harness:
        for number in range(4):
            for truck in "abcd":
                harness.publish(f"fleet/{truck}/position", number)
        harness.settle()
    for truck in "abcd":
        assert [number for one, number in seen if one == truck] == list(range(4))


# The address and the options.


def test_security_and_servers_do_not_matter() -> None:
    config = KafkaConfig(
        "a:1,b:2", username="me", password="secret", tls=True, prefix="test-", create_topics="never"
    )
    app = DistributedApplication(SocketProviderFactory.from_config(config), name="app")
    app.add(Counting)
    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]


@pytest.mark.parametrize("address", ["memory://", "mqtts://me:secret@broker?window=20"])
def test_any_application_can_be_tried_on_kafka(address: str) -> None:
    app, seen = collecting(address=address)
    with Harness(app, profile="kafka") as harness:
        for number in range(30):
            harness.publish("in", number, key=str(number))
        harness.settle()
        assert sorted(number for _, number in seen) == list(range(30))
        assert [number for _, number in seen] != list(range(30))


def test_what_kafka_can_not_carry_is_refused_when_it_is_tried_there() -> None:
    app = DistributedApplication("mqtt://broker", name="app")

    @app.application("in")
    async def forward(payload: int, socket: Socket) -> None:
        await socket.publish("temperature in °C", payload)

    with Harness(app, profile="kafka", allow_failures=ConfigurationError) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert [letter.error for letter in harness.dead_letters()] == ["ConfigurationError"]


# Time.


def test_settling_takes_no_longer_than_a_commit() -> None:
    with Harness(counting()) as harness:
        before = harness.time
        harness.publish("in", 1)
        harness.settle()
        assert harness.time - before < 2.0
        between = harness.time
        harness.settle()
        assert harness.time == between


def test_a_long_time_can_go_by() -> None:
    with Harness(counting()) as harness:
        harness.advance(600.0)
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]
        assert harness.stats["kafka.rebalances"] == 0


def test_clients_that_were_idle_for_long_are_there_at_once() -> None:
    app = counting("kafka://broker:9092?commit_interval=0.1")

    @app.application("news/of/today")
    async def listen(message: Message[str], socket: Socket) -> None:
        if message.topic == "news/of/today":
            await socket.subscribe("else")
        await socket.publish("heard", message.payload)

    with Harness(app) as harness:
        harness.advance(17.7)
        harness.publish("in", 1)
        harness.advance(0.0)
        assert harness.published("out") == [1]
        harness.advance(17.7)
        before = harness.time
        harness.publish("news/of/today", "a")
        harness.settle()
        harness.publish("else", "b")
        harness.settle()
        assert harness.published("heard") == ["a", "b"]
        assert harness.time - before < 1.0


def test_what_never_pauses_for_a_commit_comes_to_rest() -> None:
    app = DistributedApplication("kafka://broker:9092?commit_interval=5", name="app")

    @app.producer(every=0.5)
    async def tick(socket: Socket) -> None:
        await socket.publish("tick", 1)

    @app.application("tick")
    async def count(payload: int) -> None:
        await asyncio.sleep(0.3)

    @app.application("in")
    async def begin(payload: int, socket: Socket) -> None:
        await asyncio.sleep(1.1)
        await socket.publish("middle", payload)

    @app.application("middle")
    async def finish(payload: int, socket: Socket) -> None:
        await asyncio.sleep(1.1)
        await socket.publish("out", payload)

    with Harness(app) as harness:
        harness.settle()
        for number in range(3):
            harness.publish("in", number)
            harness.settle()
            assert harness.published("out") == list(range(number + 1))
            # What was put in and what came of it is committed: nothing comes again.
            harness.crash()
            harness.restart()
        harness.settle()
        assert harness.published("middle") == harness.published("out") == [0, 1, 2]


def test_what_is_bridged_is_committed_on_both_sides() -> None:
    app = DistributedApplication("kafka://north:9092", name="bridge")
    south = SocketProviderFactory.from_url("kafka://south:9092")

    @app.application("in", socket_provider=south)
    async def forward(payload: int) -> None:
        await asyncio.sleep(2.0)
        await app.socket().publish("between", payload)

    @app.application("between")
    async def finish(payload: int, socket: Socket) -> None:
        await socket.publish("out", payload)

    @app.producer(every=0.25)
    async def tick(socket: Socket) -> None:
        await socket.publish("tick", 1)

    @app.application("tick")
    async def ignore(payload: int) -> None:
        """Only makes that something is always not committed."""

    with Harness(app) as harness:
        harness.publish("in", 1, bus="kafka://south:9092")
        harness.settle()
        harness.crash()
        harness.restart()
        harness.settle()
        assert harness.published("between") == harness.published("out") == [1]


# By hand.


def test_a_cut_connection_comes_back() -> None:
    with Harness(counting()) as harness:
        harness.cut("Counting")
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]
        harness.cut()
        harness.publish("in", 2)
        harness.settle()
        assert harness.published("out") == [1, 2]
        with pytest.raises(ConfigurationError, match="nobody"):
            harness.cut("nobody")
        harness.outage(5)
        harness.cut()  # nobody has a connection now
        harness.publish("in", 3)
        harness.settle()
        assert harness.published("out") == [1, 2, 3]


def test_a_member_that_lost_its_session_joins_anew_and_loses_nothing() -> None:
    with Harness(counting()) as harness:
        harness.lose_session("Counting")
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]
        assert "session-lost" in harness.trace


def test_partitions_are_handed_out_anew() -> None:
    app = DistributedApplication("kafka://broker:9092?partitions=2", name="app")
    begun: list[int] = []

    @app.application("in")
    async def slow(payload: int, socket: Socket) -> None:
        begun.append(payload)
        await asyncio.sleep(5.0)
        await socket.publish("out", payload)

    with Harness(app) as harness:
        for number in range(4):
            harness.publish("in", number, key=str(number))
        harness.advance(1.0)
        assert len(begun) == 1
        harness.rebalance()
        harness.settle()
        assert harness.stats["kafka.rebalances"] == 1
        # What ran was waited for, and what had not begun came again.
        assert sorted(begun) == sorted(harness.published("out")) == [0, 1, 2, 3]


# Faults.


@pytest.mark.parametrize("kind", ["async", "posting", "thread", "batch", "lanes"])
def test_every_message_is_handled_at_least_once_under_all_faults(kind: str) -> None:
    explore(lambda seed: run(forwarding(kind), seed, Faults.all()), seeds=examples(8))


@pytest.mark.deadline(300)
def test_what_is_read_again_is_complete_under_all_faults() -> None:
    def scenario(seed: int) -> None:
        app, seen = collecting()
        other, also_seen = collecting(instance="1")
        with Harness(app, other, seed=seed, faults=Faults.all()) as harness:
            for number in (1, 2):
                for key in "abcdef":
                    harness.publish("in", number, key=key)
                harness.settle()
                harness.advance(120)
            for application in (app, other):
                harness.stop(application)
                (spec,) = runs_of(application).specs
                application.configure(spec, rewind_to="2023-11-14T22:31:00Z")
            seen.clear()
            also_seen.clear()
            for application in (app, other):
                harness.restart(application)
            harness.publish("in", 3, key="a")
            harness.settle()
            again = {*seen, *also_seen}
            assert again >= {("a", 3), *((key, 2) for key in "abcdef")}
            assert not again & {(key, 1) for key in "abcdef"}

    explore(scenario, seeds=4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_strikes_and_no_message_is_lost(kind: str) -> None:
    trace = ""

    def scenario(seed: int) -> None:
        nonlocal trace
        trace += run(forwarding(), seed, Faults(**{kind: 0.1}))  # type: ignore[arg-type]

    seeds = examples(5)
    explore(scenario, seeds=seeds)
    marks = {
        "drop": " drop\n",
        "duplicate": " duplicate ",
        "delay": _ODD,
        "reorder": _ODD,
        "cut": " lost\n",
        "rebalance": " generation ",
        "crash_actor": " restart\n",
        "crash": " crash\n",
    }
    quiet = "".join(run(forwarding(), seed, Faults()) for seed in range(seeds))
    count = [len(re.findall(marks[kind], text)) for text in (trace, quiet)]
    assert count[0] > count[1]


def test_a_confirmation_that_gets_lost_makes_no_duplicate() -> None:
    trace = ""

    def scenario(seed: int) -> None:
        nonlocal trace
        app = DistributedApplication("kafka://broker:9092", name="app")

        @app.producer()
        async def send(socket: Socket) -> None:
            for number in NUMBERS:
                await socket.publish("out", number)

        with Harness(app, seed=seed, faults=Faults(drop=0.1)) as harness:
            harness.settle()
            assert harness.published("out") == list(NUMBERS)
            trace += harness.trace

    explore(scenario, seeds=examples(8))
    assert trace.count(" drop\n") > 20
    assert trace.count(" recognise ") > 0


# Repeating.


def test_the_client_library_draws_lots_as_always_elsewhere() -> None:
    assert aiokafka.client.random is random
    with Harness(counting()) as harness:
        harness.publish("in", 1)
        lots: Any = aiokafka.client.random
        assert lots is not random
        items = list(range(20))
        orders = []
        for _ in range(20):
            lots.shuffle(items)
            orders.append(tuple(items))
        assert len(set(orders)) > 1
        assert sorted(items) == list(range(20))
        assert {lots.choice("ab") for _ in range(100)} == {"a", "b"}
        assert lots.random() != lots.random()
    assert aiokafka.client.random is random


def test_a_client_library_that_draws_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiokafka.client, "random", None)
    with pytest.raises(ConfigurationError, match="client cannot"), Harness(counting()):
        """Not reached."""
    assert aiokafka.client.time is time


_SCRIPT = """
from test_harness_kafka import Faults, forwarding, run
print(run(forwarding("async"), 3, Faults.all()))
print(run(forwarding("thread"), 4, Faults.all()))
print(run(forwarding("lanes"), 5, Faults.all()))
"""


def test_the_same_seed_gives_the_same_trace_in_any_process() -> None:
    first = output_with_hash_seed("1", _SCRIPT)
    assert first.count(b"\n") > 100
    assert output_with_hash_seed("2", _SCRIPT) == first


def test_topics_that_a_cluster_takes_for_the_same_are_refused() -> None:
    app = DistributedApplication("kafka://broker:9092", name="app")
    refused: list[str] = []

    @app.application("plant/boiler_1")
    async def publish(message: Message[int], socket: Socket) -> None:
        try:
            await socket.publish("plant/boiler/1", 1)
        except UnknownTopic as error:
            refused.append(str(error))

    with Harness(app) as plant:
        with pytest.raises(UnknownTopic, match=r"plant\.boiler\.1.* beside 'plant\.boiler_1'"):
            plant.publish("plant/boiler/1", 1)
        plant.publish("plant/boiler_1", 1)
        plant.settle()
    assert len(refused) == 1
    assert "collides with existing topic: plant.boiler_1" in refused[0]


def test_what_others_have_chosen_makes_no_lines_of_the_trace() -> None:
    app = DistributedApplication("kafka://broker", name="app")

    @app.application("n", name="actor")
    async def handle(number: int) -> None: ...

    with Harness(app, profile="kafka") as harness:
        harness.publish("n", 1, id="a\n0.000000 forged\x85\u2028b")
        harness.settle()
        trace = harness.trace
    assert "a\\n0.000000 forged\\x85\\u2028b" in trace
    assert trace.splitlines() == trace.removesuffix("\n").split("\n")
