"""Messages whose expiry runs out while they wait in the application; on virtual time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from spa_dat import Actor, Context, DistributedApplication, RetryPolicy, Socket, on
from spa_dat.errors import ConnectionLost, OutboxFull, PublishNotSent
from spa_dat.harness._eventually import Gate
from spa_dat.runtime.handling._handler_calls import HandlerCaller
from spa_dat.testing import Harness
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual

BUSES = ["memory://", "mqtt://broker", "kafka://broker"]
STEADY = RetryPolicy(attempts=5, first=1.0, factor=1.0, jitter=0)


class Slow:
    """An actor whose first message takes ten seconds, while others wait.

    Attributes:
        seen: the numbers that it was called with.
    """

    def __init__(self, app: DistributedApplication, topic: str = "n", **options: Any) -> None:
        self.seen: list[int] = []

        @app.application(topic, **options)
        async def slow(number: int) -> None:
            self.seen.append(number)
            if number == 0:
                await asyncio.sleep(10)


def publish_all(harness: Harness, *expiries: float | None) -> None:
    """Publish a number for each of these, in order, from 0 on."""
    for number, expiry in enumerate(expiries):
        harness.publish("n", number, expiry=expiry)


# While it waits.


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("path", ["short", "long"])
def test_what_expires_in_the_mailbox_is_settled_and_not_handled(
    bus: str, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if path == "long":
        monkeypatch.setattr(HandlerCaller, "direct", lambda self, instance: [None])
    app = DistributedApplication(bus, name="app")
    slow = Slow(app)
    with Harness(app) as harness, caplog.at_level(logging.WARNING):
        publish_all(harness, None, 5.0, 15.0, None)
    assert slow.seen == [0, 2, 3]
    assert harness.stats["messages.expired"] == 1
    assert harness.stats["messages.handled"] == 3
    assert harness.dead_letters() == []
    assert caplog.text.count("message on 'n' has expired while it waited here") == 1


def test_its_log_lines_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication("memory://", name="app")
    Slow(app)
    with Harness(app) as harness, caplog.at_level(logging.WARNING):
        publish_all(harness, None, *[5.0] * 100)
    assert harness.stats["messages.expired"] == 100
    assert caplog.text.count("has expired while it waited here") == 11
    assert "90 more lines" in caplog.text


@pytest.mark.parametrize("bus", BUSES)
def test_an_actor_may_handle_it_all_the_same(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    slow = Slow(app, handle_expired=True)
    with Harness(app) as harness:
        publish_all(harness, None, 5.0, 15.0)
    assert slow.seen == [0, 1, 2]
    assert harness.stats["messages.expired"] == 0


def test_a_class_says_it_as_an_attribute() -> None:
    app = DistributedApplication("memory://", name="app")
    seen: list[int] = []

    class Keeper(Actor):
        handle_expired = True

        @on("n")
        async def keep(self, number: int) -> None:
            seen.append(number)
            if number == 0:
                await asyncio.sleep(10)

    app.add(Keeper)
    with Harness(app) as harness:
        publish_all(harness, None, 5.0)
    assert seen == [0, 1]


async def test_a_request_is_never_handled_once_it_has_expired() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor", handle_expired=True)
    async def answer(number: int) -> int:
        seen.append(number)
        await asyncio.sleep(10)
        return number

    async with app:
        for number in range(2):
            site.publish("n", str(number), response_topic="back", expiry=5.0)
        await site.settled()
    assert seen == [0]
    assert app.stats["requests.expired"] == 1
    assert app.stats["messages.expired"] == 0


def test_each_of_several_actors_leaves_it_out_by_itself() -> None:
    app = DistributedApplication("memory://", name="app")
    slow = Slow(app, name="slow", subscription="all")
    quick: list[int] = []

    @app.application("n", subscription="all")
    async def take(number: int) -> None:
        quick.append(number)

    with Harness(app) as harness:
        publish_all(harness, None, 5.0, None)
    assert slow.seen == [0, 2]
    assert quick == [0, 1, 2]
    assert harness.stats["messages.expired"] == 1


def test_lanes_leave_it_out() -> None:
    app = DistributedApplication("memory://", name="app")
    slow = Slow(app, topic="n", concurrency=2)
    with Harness(app) as harness:
        for number, expiry in enumerate([None, 5.0, None]):
            harness.publish("n", number, key="same", expiry=expiry)
    assert slow.seen == [0, 2]


async def test_last_copies_expire_in_an_outage() -> None:
    site = Site()
    app = site.app()
    slow = Slow(app, name="actor")
    async with app:
        site.publish("n", "0")
        site.publish("n", "1", expiry=15.0)
        site.publish("n", "2")
        await eventually(lambda: slow.seen)
        site.faults.refuse_connections()
        site.cut(lose_session=True)
        await asyncio.sleep(20)
        site.faults.allow()
        await site.reconnected()
        await eventually(lambda: 2 in slow.seen)
    assert slow.seen == [0, 2]
    assert app.stats["messages.expired"] == 1


# Batches.


def test_a_batch_is_called_without_what_has_expired_meanwhile() -> None:
    app = DistributedApplication("memory://", name="app")
    batches: list[list[int]] = []

    @app.application("n", batch=(10, 5.0))
    async def take(numbers: list[int]) -> None:
        batches.append(numbers)

    with Harness(app) as harness:
        publish_all(harness, None, 2.0, 8.0)
    assert batches == [[0, 2]]
    assert harness.stats["messages.expired"] == 1


def test_a_failed_batch_is_tried_again_without_what_has_expired() -> None:
    app = DistributedApplication("memory://", name="app")
    batches: list[list[int]] = []

    @app.application("n", batch=(3, 1.0), retry=STEADY)
    async def take(numbers: list[int]) -> None:
        batches.append(numbers)
        if len(batches) < 4:
            raise ValueError("not yet")

    with Harness(app, allow_failures=ValueError) as harness:
        publish_all(harness, None, 1.5, None)
    assert batches == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2]]
    (letter,) = harness.dead_letters()
    assert (letter.payload, letter.attempts, letter.error) == (b"1", 2, "ValueError")
    assert harness.stats["messages.expired"] == 0


# Between attempts.


@pytest.mark.parametrize("bus", BUSES)
def test_no_attempt_begins_after_the_expiry_and_the_failure_is_stored_at_once(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    times: list[float] = []

    @app.application("n", retry=STEADY)
    async def fail(number: int) -> None:
        times.append(asyncio.get_running_loop().time())
        raise ValueError("always")

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1, expiry=2.5)
        harness.settle()
    assert [round(time - times[0]) for time in times] == [0, 1, 2]
    (letter,) = harness.dead_letters()
    assert (letter.attempts, letter.error) == (3, "ValueError")
    assert harness.stats["messages.expired"] == 0


def test_an_actor_that_handles_what_has_expired_tries_it_again_as_well() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []

    @app.application("n", retry=STEADY, handle_expired=True)
    async def fail(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError("always")

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1, expiry=2.5)
    assert attempts == [1, 2, 3, 4, 5]
    assert len(harness.dead_letters()) == 1


def test_a_running_attempt_is_not_cut_off() -> None:
    app = DistributedApplication("memory://", name="app")
    done: list[int] = []

    @app.application("n")
    async def take(number: int) -> None:
        await asyncio.sleep(10)
        done.append(number)

    with Harness(app) as harness:
        harness.publish("n", 1, expiry=2.5)
    assert done == [1]


async def test_what_only_an_outage_has_kept_from_being_handled_is_dropped() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ConnectionLost("of something else")

    async with app:
        site.publish("n", "1", expiry=1.0)
        await site.settled()
    assert len(attempts) > 2
    assert set(attempts) == {1}
    assert site.letters() == []
    assert app.stats["messages.expired"] == 1


async def test_a_last_copy_that_has_failed_before_is_stored_when_it_expires_in_an_outage() -> None:
    site = Site()
    app = site.app()
    gate = Gate()

    @app.application("n", name="actor", retry=STEADY)
    async def handle(number: int) -> None:
        await gate.pass_()
        raise ValueError(number)

    async with app:
        site.publish("n", "1", expiry=3.0, id="one")
        await gate.reached()
        gate.open()
        await asyncio.sleep(0.5)
        site.faults.refuse_connections()
        site.cut(lose_session=True)
        await asyncio.sleep(5)
        site.faults.allow()
        (letter,) = await site.parked()
    assert letter.headers["spa_dead_error"] == "TimeoutError"
    assert letter.headers["spa_dead_attempts"] == "1"
    assert "expired before it could be tried again" in letter.headers["spa_dead_text"]


# On the way out.


async def test_a_post_that_expires_while_the_broker_is_away_is_dropped_and_its_cause_is_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    gate = Gate()

    @app.application("n", name="actor")
    async def pass_on(number: int, socket: Socket) -> None:
        await gate.pass_()
        socket.post("out", "short", expiry=5.0)
        socket.post("out", "long", expiry=100.0)
        socket.post("out", "endless")

    out = site.watch("out")
    async with app:
        site.publish("n", "1")
        await gate.reached()
        site.faults.refuse_connections()
        site.cut("app.0")
        gate.open()
        await asyncio.sleep(20)
        site.faults.allow()
        await site.settled()
        await out.get(2)
    assert out.payloads == ["long", "endless"]
    long, endless = out.envelopes
    assert long.expiry is not None
    assert 60 < long.expiry <= 80, "what is left"
    assert endless.expiry is None
    assert site.letters() == []
    assert app.stats["publishes.expired"] == 1
    assert "the message to 'out' has expired while it waited for the broker" in caplog.text


async def test_who_awaits_a_publish_is_told_that_it_expired() -> None:
    site = Site()
    app = site.app()
    out = site.watch("out")
    async with app:
        site.faults.refuse_connections()
        site.cut("app.0")
        publishing = asyncio.ensure_future(app.socket().publish("out", 1, expiry=5.0, timeout=60.0))
        await asyncio.sleep(10)
        site.faults.allow()
        with pytest.raises(PublishNotSent, match=r"'out' was not sent: it has expired") as caught:
            await publishing
    assert caught.value.outage
    assert out.payloads == []
    assert app.stats["publishes.expired"] == 1


async def test_what_expires_leaves_its_place_in_a_full_outbox_to_others() -> None:
    site = Site(outbox=3)
    app = site.app()
    out = site.watch("out")
    async with app:
        socket = app.socket()
        site.faults.refuse_connections()
        site.cut("app.0")
        # What never expires is in front of it.
        socket.post("out", 0)
        socket.post("out", 1, expiry=5.0)
        socket.post("out", 2, expiry=5.0)
        with pytest.raises(OutboxFull):
            socket.post("out", 3)
        await asyncio.sleep(10)
        await socket.drain()
        socket.post("out", 4)
        socket.post("out", 5)
        with pytest.raises(OutboxFull):
            socket.post("out", 6)
        site.faults.allow()
        await out.get(3)
    assert out.payloads == ["0", "4", "5"]
    assert app.stats["publishes.expired"] == 2
