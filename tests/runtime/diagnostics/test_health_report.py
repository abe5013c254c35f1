"""What `DistributedApplication.health` tells about an application."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Sequence

import pytest

from spa_dat import (
    Actor,
    ActorHealth,
    DistributedApplication,
    Health,
    RetryPolicy,
    on,
)
from spa_dat.runtime.diagnostics._unsettled_ages import UnsettledAges
from spa_dat.testing import Kafka, Mosquitto
from spa_dat.transports import Delivery, Envelope, Tracker
from support.kafka_bus import new_prefix
from support.waiting import eventually


def actor_of(app: DistributedApplication, name: str) -> ActorHealth:
    return next(actor for actor in app.health().actors if actor.name == name)


@pytest.mark.virtual
async def test_the_state_is_that_of_the_run() -> None:
    app = DistributedApplication("memory://", name="plant", instance="0")
    seen: list[Health] = []

    class Boiler(Actor):
        async def on_start(self) -> None:
            seen.append(app.health())

        @on("a")
        async def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            seen.append(app.health())

    app.add(Boiler)
    before = app.health()
    assert (before.application, before.instance, before.state) == ("plant", "0", "ended")
    assert before.problems == {"plant": "it is not running"}
    async with app:
        health = app.health()
        assert health.state == "ready"
        assert health.ready
        assert health.problems == {}
        assert [actor.receiving for actor in health.actors] == [True]
    assert [health.state for health in seen] == ["starting", "stopping"]
    assert [health.actors[0].receiving for health in seen] == [False, False]
    assert app.health().state == "ended"


@pytest.mark.virtual
async def test_a_failure_is_the_state_until_the_next_start() -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.producer()
    async def feed() -> None:
        raise ValueError("no feed")

    async with app:
        with pytest.raises(ValueError, match="no feed"):
            await app.wait()
        assert app.health().state == "failed"
    health = app.health()
    assert health.state == "failed"
    assert "no feed" in health.problems["plant"]
    assert not health.ready


@pytest.mark.virtual
async def test_messages_are_counted_where_they_are() -> None:
    app = DistributedApplication("memory://counted", name="plant")
    go_on = asyncio.Event()

    @app.application("a")
    async def boiler(payload: bytes) -> None:
        await go_on.wait()

    @app.application("b")
    async def idle(payload: bytes) -> None: ...

    @app.producer(every=1)
    async def feed() -> None: ...

    async with app:
        for size in (1, 20, 300):
            await app.socket().publish("a", b"x" * size)
        await eventually(lambda: actor_of(app, "boiler").mailbox == 2)
        await asyncio.sleep(5)
        assert actor_of(app, "boiler") == ActorHealth(
            name="boiler",
            bus="memory://counted",
            receiving=True,
            stopped=False,
            mailbox=2,
            mailbox_bytes=320,
            in_work=1,
            attempts=1,
            oldest_unsettled=5.0,
            stalled=(),
            dead_letters=0,
            dead_letter_limit=1_000,
            lag=None,
        )
        idle_now = actor_of(app, "idle")
        assert (idle_now.mailbox, idle_now.in_work, idle_now.attempts) == (0, 0, 0)
        assert idle_now.oldest_unsettled is None
        assert actor_of(app, "feed").receiving is None
        (connection,) = app.health().connections
        assert (connection.bus, connection.connected) == ("memory://counted", True)
        assert connection.outbox == 0
        assert connection.connected_for is not None
        assert connection.connected_for >= 5
        go_on.set()
        await eventually(lambda: actor_of(app, "boiler").in_work == 0)
        assert actor_of(app, "boiler").oldest_unsettled is None


@pytest.mark.virtual
async def test_a_message_between_two_attempts_is_in_work_but_no_attempt() -> None:
    app = DistributedApplication("memory://", name="plant")
    tried = asyncio.Event()

    @app.application("a", retry=RetryPolicy(attempts=2, first=60))
    async def boiler(payload: str) -> None:
        tried.set()
        raise ValueError("cold")

    async with app:
        await app.socket().publish("a", "1")
        await tried.wait()
        await eventually(lambda: app.stats["messages.failed"] == 1)
        now = actor_of(app, "boiler")
        assert (now.in_work, now.attempts, now.dead_letters) == (1, 0, 0)
        await eventually(lambda: actor_of(app, "boiler").dead_letters == 1)
        assert actor_of(app, "boiler").in_work == 0


async def test_a_handler_that_runs_for_too_long_is_told_with_its_place() -> None:
    app = DistributedApplication("memory://", name="plant", slow_after=0.1, blocked_after=None)
    go_on = asyncio.Event()

    @app.application("a", concurrency=2)
    async def boiler(payload: str) -> None:
        await go_on.wait()

    async with app:
        await app.socket().publish("a", "1")
        await eventually(lambda: actor_of(app, "boiler").stalled)
        health = app.health()
        (stalled,) = health.actors[0].stalled
        assert stalled.where.startswith("boiler at ")
        assert stalled.seconds >= 0.1
        assert health.state == "degraded"
        assert health.loop_lag is None
        go_on.set()
        await eventually(lambda: not actor_of(app, "boiler").stalled)


async def test_another_thread_sees_how_long_the_loop_does_not_respond() -> None:
    app = DistributedApplication("memory://", name="plant", blocked_after=0.5)
    seen: list[Health] = []

    @app.application("a")
    async def boiler(payload: str) -> None:
        thread = threading.Thread(target=watch)
        thread.start()
        thread.join(60)  # which blocks the loop

    def watch() -> None:
        done = threading.Event()
        while True:
            health = app.health()
            if health.loop_lag is not None and health.loop_lag > 0.2:
                seen.append(health)
                return
            done.wait(0.02)

    async with app:
        await app.socket().publish("a", "1")
        await eventually(lambda: app.stats["messages.handled"] == 1)
    assert seen[0].actors[0].in_work == 1


@pytest.mark.virtual
async def test_it_is_an_object_that_does_not_change_and_becomes_json() -> None:
    app = DistributedApplication("memory://plain", name="plant", slow_after=None)

    @app.application("a")
    async def boiler(payload: str) -> None: ...

    async with app:
        health = app.health()
        with pytest.raises(dataclasses.FrozenInstanceError):
            health.state = "ended"  # type: ignore[misc]
        with pytest.raises(TypeError):
            health.problems["plant"] = "none"  # type: ignore[index]
        plain = health.as_dict()
        assert json.loads(json.dumps(plain)) == plain
        assert plain["state"] == "ready"
        assert plain["actors"][0]["name"] == "boiler"
        assert plain["connections"][0]["bus"] == "memory://plain"


@pytest.mark.mosquitto
async def test_messages_and_connections_of_mosquitto_are_seen(mosquitto: Mosquitto) -> None:
    await _seen_on(mosquitto.url, "health-report/a")


@pytest.mark.kafka
async def test_messages_and_connections_of_kafka_are_seen(kafka: Kafka) -> None:
    prefix = new_prefix()
    await _seen_on(f"{kafka.url}?create_topics=all&prefix={prefix}", "a", lags=[3, 0])


async def _seen_on(url: str, topic: str, lags: Sequence[int | None] = (None, None)) -> None:
    app = DistributedApplication(url, name="health-report")
    go_on = asyncio.Event()

    @app.application(topic)
    async def boiler(payload: str) -> None:
        await go_on.wait()

    async with app:
        for _ in range(3):
            await app.socket().publish(topic, "1")
        await eventually(lambda: actor_of(app, "boiler").in_work == 1)
        await eventually(lambda: actor_of(app, "boiler").lag == lags[0])
        now = actor_of(app, "boiler")
        assert now.receiving is True
        assert now.attempts == 1
        assert now.oldest_unsettled is not None
        (connection,) = app.health().connections
        assert connection.connected
        assert connection.connected_for is not None
        go_on.set()
        await eventually(lambda: actor_of(app, "boiler").oldest_unsettled is None)
        await eventually(lambda: actor_of(app, "boiler").lag == lags[1])


# The age of the oldest unsettled message.


def tracker_of(*tokens: int) -> tuple[Tracker, list[Delivery]]:
    tracker = Tracker(lambda free: None)
    return tracker, [tracker.register(Envelope(topic="a", payload=b""), t) for t in tokens]


def test_the_age_of_the_oldest_is_known_to_the_time_between_two_looks() -> None:
    tracker, (first, second) = tracker_of(1, 2)
    ages = UnsettledAges()
    assert ages.age(tracker, 0.0) == 0.0
    ages.look([tracker], 0.0)
    third = tracker.register(Envelope(topic="a", payload=b""), 3)
    ages.look([tracker], 2.0)
    assert ages.age(tracker, 10.0) == 10.0
    second.settle()  # not the oldest
    ages.look([tracker], 10.0)
    assert ages.age(tracker, 10.0) == 10.0
    first.settle()
    assert ages.age(tracker, 10.0) == 8.0
    ages.look([tracker], 11.0)
    assert ages.age(tracker, 11.0) == 9.0
    third.settle()
    assert ages.age(tracker, 11.0) is None


def test_a_new_connection_begins_with_new_ages() -> None:
    tracker, _ = tracker_of(1)
    ages = UnsettledAges()
    ages.look([tracker], 0.0)
    tracker.begin()
    tracker.register(Envelope(topic="a", payload=b""), 1)
    ages.look([tracker], 5.0)
    assert ages.age(tracker, 6.0) == 1.0


def test_few_marks_are_kept_of_a_tracker_that_stands_still() -> None:
    tracker, _ = tracker_of(0)
    ages = UnsettledAges()
    for moment in range(500):
        tracker.register(Envelope(topic="a", payload=b""), moment + 1)
        ages.look([tracker], float(moment))
    assert ages.age(tracker, 500.0) == 500.0
    assert sum(map(len, ages._marks.values())) <= 32
    ages.look([], 500.0)
    assert not ages._marks
