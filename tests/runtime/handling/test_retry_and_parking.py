"""What becomes of messages whose handler fails."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from spa_dat import Context, DistributedApplication, Reject, Retry, RetryPolicy, Socket, SyncSocket
from spa_dat.errors import ConfigurationError, ConnectionLost, DecodeError
from spa_dat.harness._eventually import Gate
from spa_dat.testing import Harness
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual

STEADY = RetryPolicy(jitter=0)


def clock() -> float:
    return asyncio.get_running_loop().time()


# How often, and when.


@pytest.mark.parametrize(("failures", "parked"), [(4, 0), (5, 1), (1000, 1)])
def test_a_message_is_tried_five_times_with_growing_waits(failures: int, parked: int) -> None:
    app = DistributedApplication("memory://", name="app")
    times: list[float] = []

    @app.application("n", retry=STEADY)
    async def handle(number: int, context: Context) -> None:
        times.append(clock())
        assert context.attempt == len(times)
        if len(times) <= failures:
            raise ValueError(f"no. {len(times)}")

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1)
        harness.advance(8.0)
        assert " acknowledge " not in harness.trace
    waits = [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]
    assert waits == [0.1, 0.4, 1.6, 6.4]
    assert len(harness.dead_letters()) == parked
    assert harness.stats["messages.failed"] == min(failures, 5)
    assert harness.stats["messages.handled"] == 1 - parked
    assert harness.stats["dead_letters.stored"] == parked


def test_waits_have_jitter_within_its_bounds() -> None:
    app = DistributedApplication("memory://", name="app")
    times: list[float] = []

    @app.application("n", retry=RetryPolicy(attempts=2, first=1.0, jitter=0.5))
    async def handle(number: int) -> None:
        times.append(clock())
        raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        for number in range(20):
            harness.publish("n", number)
    waits = [times[index + 1] - times[index] for index in range(0, 40, 2)]
    assert len(set(waits)) == 20
    assert all(0.5 <= wait <= 1.5 for wait in waits)
    assert len(harness.dead_letters()) == 20


def test_a_message_is_held_for_no_longer_than_the_policy_says() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []
    policy = RetryPolicy(attempts=50, first=1.0, factor=1.0, jitter=0, hold=3.5)

    @app.application("n", retry=policy)
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1)
    assert attempts == [1, 2, 3, 4]
    (letter,) = harness.dead_letters()
    assert letter.attempts == 4


def test_a_policy_without_waits_tries_again_at_once() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []

    @app.application("n", retry=RetryPolicy(attempts=3, first=0.0))
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1)
        harness.settle()
        assert harness.time == 0.0
        assert len(harness.dead_letters()) == 1
    assert attempts == [1, 2, 3]


def test_reject_parks_at_once() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n")
    async def handle(number: int) -> None:
        raise Reject("out of range")

    with Harness(app) as harness:
        harness.publish("n", 1)
        harness.settle()
        assert harness.time == 0.0
    (letter,) = harness.dead_letters()
    assert (letter.error, letter.text, letter.attempts) == ("Reject", "out of range", 1)


def test_retry_names_its_own_wait() -> None:
    app = DistributedApplication("memory://", name="app")
    times: list[float] = []

    @app.application("n", retry=STEADY)
    async def handle(number: int) -> None:
        times.append(clock())
        if len(times) == 1:
            raise Retry("not yet", after=7.0)
        if len(times) == 2:
            raise Retry

    with Harness(app) as harness:
        harness.publish("n", 1)
        harness.advance(7.2)
        assert " acknowledge " not in harness.trace
    assert [round(b - a, 3) for a, b in itertools.pairwise(times)] == [7.0, 0.4]
    assert harness.dead_letters() == []


def test_retry_beyond_the_hold_parks() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n")
    async def handle(number: int) -> None:
        raise Retry("tomorrow", after=86_400.0)

    with Harness(app) as harness:
        harness.publish("n", 1)
        harness.settle()
        assert harness.time == 0.0
        assert [letter.text for letter in harness.dead_letters()] == ["tomorrow"]


@pytest.mark.parametrize("after", [-1.0, float("inf"), float("nan"), "1", True, [1.0]])
def test_retry_refuses_waits_that_can_not_be(after: Any) -> None:
    with pytest.raises(ConfigurationError, match="after="):
        Retry(after=after)


@pytest.mark.parametrize("delay", [-1.0, float("inf"), float("nan"), "1", None, True])
def test_later_refuses_waits_that_can_not_be(delay: Any) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n", retry=RetryPolicy(attempts=1))
    async def put_off(payload: int, context: Context) -> None:
        context.later(delay, print)

    with Harness(app) as harness:
        harness.expect_failure(ConfigurationError)
        harness.publish("n", 1)
        harness.settle()


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"first": -0.1},
        {"factor": -1.0},
        {"hold": -1.0},
        {"jitter": 1.0},
        {"jitter": -0.1},
        {"first": float("nan")},
        {"hold": float("nan")},
        {"factor": float("inf")},
        {"attempts": "3"},
        {"attempts": 2.5},
        {"attempts": float("nan")},
        {"attempts": True},
        {"first": "0.1"},
        {"factor": None},
        {"hold": [10.0]},
        {"jitter": "no"},
    ],
)
def test_a_policy_refuses_what_can_not_be(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=name):
        RetryPolicy(**options)


def test_a_policy_with_many_attempts_does_not_overflow() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []
    policy = RetryPolicy(attempts=2000, first=0.0)

    @app.application("n", retry=policy)
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1)
    assert len(harness.dead_letters()) == 1
    assert len(attempts) == 2000
    growing = RetryPolicy(attempts=5000, first=1.0, factor=10.0, hold=1e308)
    assert growing.wait(4000, 0.0, random.Random(1), ValueError()) is None


def test_handlers_in_threads_are_retried_and_parked_alike() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []

    @app.application("n", retry=RetryPolicy(first=0.01, factor=1.0))
    def handle(number: int, context: Context, socket: SyncSocket) -> None:
        attempts.append(context.attempt)
        raise ValueError("in a thread")

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1)
    assert attempts == [1, 2, 3, 4, 5]
    assert [letter.text for letter in harness.dead_letters()] == ["in a thread"]


# Whose fault it is.


def test_a_lost_connection_under_the_handler_costs_no_attempt() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []

    @app.application("n", retry=RetryPolicy(attempts=2))
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) < 10:
            raise ConnectionLost("the broker went away")

    with Harness(app) as harness:
        harness.publish("n", 1)
        harness.advance(0.5)
        assert " acknowledge " not in harness.trace
    assert attempts == [1] * 10
    assert harness.dead_letters() == []


def test_a_decode_error_of_a_reply_is_the_handlers_to_retry() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []

    @app.application("n", retry=RetryPolicy(attempts=2))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        await socket.request("text", reply=int, timeout=1)

    @app.application("text")
    async def text() -> str:
        return "no number"

    with Harness(app, allow_failures=DecodeError) as harness:
        harness.publish("n", 1)
    assert attempts == [1, 2]
    assert [letter.error for letter in harness.dead_letters()] == [DecodeError.__name__]


async def test_a_request_that_times_out_while_there_is_no_connection_costs_no_attempt() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=1))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            site.faults.refuse_connections()
            site.cut("app.0")
            asyncio.get_running_loop().call_later(5, site.faults.allow)
        assert await socket.request("echo", number, reply=int, timeout=1) == number

    @app.application("echo")
    async def echo(number: int) -> int:
        return number

    async with app:
        site.number("n", 1)
        await site.settled()
    assert set(attempts) == {1}
    assert len(attempts) > 1
    assert site.letters() == []


# When parking fails.


async def test_what_can_not_be_parked_is_not_acknowledged_and_is_parked_later() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        seen.append(number)
        if number == 1:
            raise Reject

    async with app:
        site.faults.refuse_publish("_spa/dead-letter/#")
        site.number("n", *range(4))
        await eventually(lambda: app.stats["dead_letters.refused"] >= 3)
        assert seen == [0, 1]
        assert site.unsettled() == 3
        assert not app.healthy
        site.faults.allow()
        await site.settled()
        assert seen == [0, 1, 2, 3]
        assert app.healthy
    (letter,) = site.letters()
    assert letter.payload == b"1"
    assert app.stats["dead_letters.stored"] == 1


async def test_stop_ends_the_attempts_to_park_and_the_message_comes_again() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        seen.append(number)
        raise Reject

    async with app:
        site.faults.refuse_publish("_spa/dead-letter/#")
        site.number("n", 1)
        await eventually(lambda: app.stats["dead_letters.refused"] >= 5)
        start = clock()
    assert clock() - start < 0.5
    site.faults.allow()
    async with app:
        await site.settled()
    assert seen == [1, 1]
    assert len(site.letters()) == 1


async def test_a_lost_confirmation_of_a_dead_letter_leaves_one_letter() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        raise Reject

    async with app:
        site.faults.drop_confirmations(1)
        site.number("n", 1)
        await site.parked()
        await asyncio.sleep(1)
        assert site.unsettled() == 1
        site.cut("app.0")
        await site.settled()
    assert len(site.letters()) == 1


def test_at_the_limit_of_dead_letters_the_actor_stops_taking_and_is_unhealthy() -> None:
    app = DistributedApplication("memory://", name="app", dead_letter_limit=2)
    seen: list[int] = []
    others: list[int] = []

    @app.application("n")
    async def handle(number: int) -> None:
        seen.append(number)
        raise Reject

    @app.application("n")
    async def other(number: int) -> None:
        others.append(number)

    with Harness(app) as harness:
        assert app.healthy
        for number in range(10):
            harness.publish("n", number)
        harness.advance(60.0)
        assert not app.healthy
        assert seen == [0, 1, 2]
        assert others == list(range(10))
        assert len(harness.dead_letters()) == 2
        harness.stop()
        assert harness.time < 60.5
        assert len(harness.dead_letters()) == 2
        harness.restart()
        harness.advance(1.0)
        assert not app.healthy
        assert len(harness.dead_letters()) == 4
        harness.stop()
    assert seen == [0, 1, 2, 2, 3, 4]
    assert others == list(range(10))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_each_actor_has_a_limit_of_dead_letters_of_its_own_and_one_line_tells(
    concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = DistributedApplication("memory://", name="app", dead_letter_limit=5)
    handled: list[int] = []

    @app.application("public", retry=RetryPolicy(attempts=1), concurrency=concurrency)
    async def public(number: int) -> None: ...

    @app.application("internal", retry=RetryPolicy(attempts=1))
    async def internal(number: int) -> None:
        handled.append(number)

    with Harness(app, allow_failures=DecodeError) as harness:
        for number in range(4):
            harness.publish("public", "bad", key=f"{number}")
        harness.settle()
        assert app.healthy
        harness.publish("public", "bad")
        harness.settle()
        # The last one that may be, and not only the one after it, is seen.
        assert not app.healthy
        for number in range(20):
            harness.publish("public", "bad", key=f"{number}")
        harness.advance(60.0)
        for number in range(3):
            harness.publish("internal", number)
            harness.publish("internal", "bad")
        harness.advance(60.0)
        assert handled == [0, 1, 2]
        letters = [letter.topic for letter in harness.dead_letters()]
        assert letters == ["public"] * 5 + ["internal"] * 3
        assert not app.healthy
        lines = [one for one in caplog.messages if "the most that it may" in one]
        assert len(lines) == 1
        assert "'public'" in lines[0]
        assert "5 dead letters" in lines[0]
        harness.stop()


# When the connection or the application ends meanwhile.


def test_stop_ends_a_wait_at_once_and_the_message_comes_again() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []

    @app.application("n", retry=RetryPolicy(first=9.0, jitter=0))
    async def handle(number: int, context: Context) -> None:
        attempts.append(number)
        if len(attempts) == 1:
            raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1)
        harness.publish("n", 2)
        harness.advance(1.0)
        assert attempts == [1]
        harness.stop()
        assert harness.time < 1.5
        assert attempts == [1]
        harness.restart()
    assert attempts == [1, 1, 2]


def test_a_handler_that_fails_while_the_application_stops_is_not_tried_again() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[int] = []

    @app.application("n")
    async def handle(number: int) -> None:
        attempts.append(number)
        await asyncio.sleep(1.0)
        if len(attempts) == 1:
            raise ValueError

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("n", 1)
        harness.publish("n", 2)
        harness.advance(0.5)
        harness.stop()
        assert attempts == [1]
        assert harness.dead_letters() == []
        harness.restart()
    assert attempts == [1, 1, 2]


@pytest.mark.parametrize("lose_session", [False, True])
def test_a_wait_ends_with_the_connection_and_attempts_are_carried_over(
    lose_session: bool,
) -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[tuple[int, int]] = []

    @app.application("n", name="actor", retry=RetryPolicy(first=5.0, factor=1.0, jitter=0))
    async def handle(number: int, context: Context) -> None:
        attempts.append((number, context.attempt))
        if context.attempt < 3:
            raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 1)
        harness.publish("n", 2)
        harness.advance(1.0)
        assert attempts == [(1, 1)]
        harness.cut("actor", lose_session=lose_session)
        harness.advance(2.0)
        assert attempts == [(1, 1), (1, 2)]
    assert attempts == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]


async def test_nothing_is_tried_while_the_connection_is_gone() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    times: list[float] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        times.append(clock())
        if len(times) == 1:
            await gate.pass_()
            raise ValueError

    async with app:
        site.number("n", 1)
        await gate.reached()
        site.faults.refuse_connections()
        site.cut()
        gate.open()
        await asyncio.sleep(20)
        assert len(times) == 1
        back = clock()
        site.faults.allow()
        await site.settled()
    assert len(times) == 2
    assert times[1] >= back


@pytest.mark.parametrize("lose_session", [False, True])
async def test_parking_goes_on_when_the_connection_is_lost(lose_session: bool) -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        seen.append(number)
        if number == 1:
            raise Reject

    async with app:
        site.faults.refuse_publish("_spa/dead-letter/#")
        site.number("n", 1, 2)
        await eventually(lambda: app.stats["dead_letters.refused"] >= 2)
        site.cut(lose_session=lose_session)
        await site.reconnected()
        await asyncio.sleep(1)
        site.faults.allow()
        await site.parked()
        await eventually(lambda: seen == [1, 2])
        await site.settled()
    assert len(site.letters()) == 1


def test_a_lost_connection_interrupts_no_wait_of_another_connection() -> None:
    app = DistributedApplication("memory://", name="app")
    attempts: list[str] = []

    @app.application("n", name="actor", retry=RetryPolicy(first=5.0, jitter=0))
    async def handle(text: str, socket: Socket, context: Context) -> None:
        attempts.append(text)
        if text == "subscribe":
            await socket.subscribe("more")
        elif text == "bad" and context.attempt == 1:
            raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", "subscribe")
        harness.settle()
        # Once connected again, what is given back counts as coming again.
        harness.cut("actor")
        harness.settle()
        harness.publish("n", "bad")
        harness.advance(1.0)
        harness.cut("actor.now")
        harness.advance(2.0)
        assert attempts == ["subscribe", "bad"]
        assert harness.trace.count(" acknowledge ") == 1
    assert attempts == ["subscribe", "bad", "bad"]


async def test_with_several_buses_each_has_its_own_dead_letters() -> None:
    one, two = Site(), Site()
    app = one.app()

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        raise Reject

    @app.application("n", name="other", socket_provider=two.provider)
    async def also(number: int) -> None:
        raise Reject

    async with app:
        one.number("n", 1)
        two.number("n", 2)
        (first,) = await one.parked()
        (second,) = await two.parked()
    assert (first.payload, second.payload) == (b"1", b"2")


async def test_stop_tries_once_more_to_park_what_the_bus_has_forgotten() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        raise Reject

    async with app:
        site.faults.refuse_publish("_spa/dead-letter/#")
        site.number("n", 1)
        await eventually(lambda: app.stats["dead_letters.refused"] >= 5)
        site.cut(lose_session=True)
        await site.reconnected()
        site.faults.allow()
        assert site.letters() == []
    assert len(site.letters()) == 1
