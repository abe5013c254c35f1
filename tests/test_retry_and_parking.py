"""What becomes of messages whose handler fails, on virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from spa_dat import Context, Reject, Retry, RetryPolicy, Socket, SyncSocket
from spa_dat.errors import ConfigurationError, ConnectionLost, DecodeError
from support.memory import Gate, Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual

STEADY = RetryPolicy(jitter=0)


def clock() -> float:
    return asyncio.get_running_loop().time()


# How often, and when.


@pytest.mark.parametrize(("failures", "parked"), [(4, 0), (5, 1), (1000, 1)])
async def test_a_message_is_tried_five_times_with_growing_waits(failures: int, parked: int) -> None:
    site = Site()
    app = site.app()
    times: list[float] = []

    @app.application("n", name="actor", retry=STEADY)
    async def handle(number: int, context: Context) -> None:
        times.append(clock())
        assert context.attempt == len(times)
        if len(times) <= failures:
            raise ValueError(f"no. {len(times)}")

    async with app:
        site.number("n", 1)
        await site.settled()
        waits = [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]
        assert waits == [0.1, 0.4, 1.6, 6.4]
        assert len(site.letters()) == parked
    assert app.stats["messages.failed"] == min(failures, 5)
    assert app.stats["messages.handled"] == 1 - parked
    assert app.stats["dead_letters.stored"] == parked


async def test_waits_have_jitter_within_its_bounds() -> None:
    site = Site()
    app = site.app()
    times: list[float] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2, first=1.0, jitter=0.5))
    async def handle(number: int) -> None:
        times.append(clock())
        raise ValueError

    async with app:
        site.number("n", *range(20))
        await site.parked(20)
    waits = [times[index + 1] - times[index] for index in range(0, 40, 2)]
    assert len(set(waits)) == 20
    assert all(0.5 <= wait <= 1.5 for wait in waits)


async def test_a_message_is_held_for_no_longer_than_the_policy_says() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []
    policy = RetryPolicy(attempts=50, first=1.0, factor=1.0, jitter=0, hold=3.5)

    @app.application("n", name="actor", retry=policy)
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert attempts == [1, 2, 3, 4]
    assert letter.headers["spa_dead_attempts"] == "4"


async def test_a_policy_without_waits_tries_again_at_once() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=3, first=0.0))
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    async with app:
        start = clock()
        site.number("n", 1)
        await site.parked()
        assert clock() - start < 0.05
    assert attempts == [1, 2, 3]


async def test_reject_parks_at_once() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        raise Reject("out of range")

    async with app:
        start = clock()
        site.number("n", 1)
        (letter,) = await site.parked()
        assert clock() - start < 0.05
    assert letter.headers["spa_dead_error"] == "Reject"
    assert letter.headers["spa_dead_text"] == "out of range"
    assert letter.headers["spa_dead_attempts"] == "1"


async def test_retry_names_its_own_wait() -> None:
    site = Site()
    app = site.app()
    times: list[float] = []

    @app.application("n", name="actor", retry=STEADY)
    async def handle(number: int) -> None:
        times.append(clock())
        if len(times) == 1:
            raise Retry("not yet", after=7.0)
        if len(times) == 2:
            raise Retry

    async with app:
        site.number("n", 1)
        await site.settled()
    assert [round(b - a, 3) for a, b in itertools.pairwise(times)] == [7.0, 0.4]


async def test_retry_beyond_the_hold_parks() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        raise Retry("tomorrow", after=86_400.0)

    async with app:
        start = clock()
        site.number("n", 1)
        (letter,) = await site.parked()
        assert clock() - start < 0.05
    assert letter.headers["spa_dead_text"] == "tomorrow"


@pytest.mark.parametrize("after", [-1.0, float("inf"), float("nan")])
def test_retry_refuses_waits_that_can_not_be(after: float) -> None:
    with pytest.raises(ConfigurationError, match="after="):
        Retry(after=after)


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
    ],
)
def test_a_policy_refuses_what_can_not_be(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=name):
        RetryPolicy(**options)  # type: ignore[arg-type]


async def test_a_policy_with_many_attempts_does_not_overflow() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []
    policy = RetryPolicy(attempts=2000, first=0.0)

    @app.application("n", name="actor", retry=policy)
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    async with app:
        site.number("n", 1)
        await site.parked()
    assert len(attempts) == 2000
    growing = RetryPolicy(attempts=5000, first=1.0, factor=10.0, hold=1e308)
    assert growing.wait(4000, 0.0, random.Random(1), ValueError()) is None


async def test_handlers_in_threads_are_retried_and_parked_alike() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(first=0.01, factor=1.0))
    def handle(number: int, context: Context, socket: SyncSocket) -> None:
        attempts.append(context.attempt)
        raise ValueError("in a thread")

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert attempts == [1, 2, 3, 4, 5]
    assert letter.headers["spa_dead_text"] == "in a thread"


# Whose fault it is.


async def test_a_lost_connection_under_the_handler_costs_no_attempt() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) < 10:
            raise ConnectionLost("the broker went away")

    async with app:
        site.number("n", 1)
        await site.settled()
    assert attempts == [1] * 10
    assert site.letters() == []


async def test_a_decode_error_of_a_reply_is_the_handlers_to_retry() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        await socket.request("text", reply=int, timeout=1)

    @app.application("text")
    async def text() -> str:
        return "no number"

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert attempts == [1, 2]
    assert letter.headers["spa_dead_error"] == DecodeError.__name__


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


async def test_at_the_limit_of_dead_letters_the_actor_stops_taking_and_is_unhealthy() -> None:
    site = Site()
    app = site.app(dead_letter_limit=2)
    seen: list[int] = []
    others: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        seen.append(number)
        raise Reject

    @app.application("n", name="other")
    async def fine(number: int) -> None:
        others.append(number)

    async with app:
        assert app.healthy
        site.number("n", *range(10))
        await eventually(lambda: not app.healthy)
        await asyncio.sleep(60)
        assert seen == [0, 1, 2]
        assert others == list(range(10))
        assert site.unsettled() == 8
        assert len(site.letters()) == 2
        start = clock()
    assert clock() - start < 0.5
    assert len(site.letters()) == 2
    async with app:
        await eventually(lambda: not app.healthy)
        assert len(site.letters()) == 4
    assert seen == [0, 1, 2, 2, 3, 4]


# When the connection or the application ends meanwhile.


async def test_stop_ends_a_wait_at_once_and_the_message_comes_again() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(first=9.0, jitter=0))
    async def handle(number: int, context: Context) -> None:
        attempts.append(number)
        if len(attempts) == 1:
            raise ValueError

    async with app:
        site.number("n", 1, 2)
        await eventually(lambda: attempts == [1])
        start = clock()
    assert clock() - start < 0.5
    assert attempts == [1]
    assert site.unsettled() == 2
    async with app:
        await site.settled()
    assert attempts == [1, 1, 2]


async def test_a_handler_that_fails_while_the_application_stops_is_not_tried_again() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    attempts: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        attempts.append(number)
        await gate.pass_()
        if len(attempts) == 1:
            raise ValueError

    async with app:
        site.number("n", 1, 2)
        await gate.reached()
        asyncio.get_running_loop().call_later(1, gate.open)
    assert attempts == [1]
    assert site.letters() == []
    async with app:
        await site.settled()
    assert attempts == [1, 1, 2]


@pytest.mark.parametrize("lose_session", [False, True])
async def test_a_wait_ends_with_the_connection_and_attempts_are_carried_over(
    lose_session: bool,
) -> None:
    site = Site()
    app = site.app()
    attempts: list[tuple[int, int]] = []

    @app.application("n", name="actor", retry=RetryPolicy(first=5.0, factor=1.0, jitter=0))
    async def handle(number: int, context: Context) -> None:
        attempts.append((number, context.attempt))
        if context.attempt < 3:
            raise ValueError

    async with app:
        site.number("n", 1, 2)
        await eventually(lambda: attempts == [(1, 1)])
        start = clock()
        site.cut(lose_session=lose_session)
        await eventually(lambda: attempts == [(1, 1), (1, 2)])
        assert clock() - start < 2
        await eventually(lambda: (2, 3) in attempts, 60.0)
        await site.settled()
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


async def test_a_lost_connection_interrupts_no_wait_of_another_connection() -> None:
    site = Site()
    app = site.app()
    attempts: list[str] = []

    @app.application("n", name="actor", retry=RetryPolicy(first=5.0, jitter=0))
    async def handle(text: str, socket: Socket, context: Context) -> None:
        attempts.append(text)
        if text == "subscribe":
            await socket.subscribe("more")
        elif text == "bad" and context.attempt == 1:
            raise ValueError

    async with app:
        site.publish("n", "subscribe")
        await site.settled()
        # Once connected again, what is given back counts as coming again.
        site.cut("app.0.actor")
        await site.reconnected("app.0.actor")
        site.publish("n", "bad")
        await eventually(lambda: "bad" in attempts)
        site.cut("app.0.actor.now")
        await site.reconnected("app.0.actor.now")
        await site.settled()
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
