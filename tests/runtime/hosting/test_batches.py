"""Handlers that get several messages in one call."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Message,
    MessageBuilder,
    Overflow,
    Reject,
    Retry,
    RetryPolicy,
    Socket,
    SyncSocket,
    on,
)
from spa_dat.errors import ConfigurationError, ConnectionLost, DecodeError
from spa_dat.harness._eventually import Gate
from spa_dat.runtime.handling._batch_processor import BatchProcessor
from spa_dat.testing import Harness
from support.machine import examples
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual

F = TypeVar("F", bound=Callable[..., Any])

QUICK = RetryPolicy(attempts=3, first=1, factor=1, jitter=0)


@dataclass
class Reading:
    """A payload."""

    celsius: float


def publish(harness: Harness, topic: str, *payloads: object) -> None:
    for payload in payloads:
        harness.publish(topic, payload)


# When a handler is called, and with what.


def test_a_full_batch_is_handled_at_once_and_the_rest_in_time() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[tuple[float, list[int]]] = []

    @app.application("n", batch=(4, 2.0))
    async def handle(numbers: list[int]) -> None:
        calls.append((harness.time, numbers))

    with Harness(app) as harness:
        publish(harness, "n", *range(10))
        harness.advance(1.0)
        assert harness.trace.count(" acknowledge ") == 8
    assert calls == [(0.0, [0, 1, 2, 3]), (0.0, [4, 5, 6, 7]), (2.0, [8, 9])]


def test_the_time_counts_from_the_first_message() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[tuple[float, list[int]]] = []

    @app.application("n", batch=(100, 2.0))
    async def handle(numbers: list[int]) -> None:
        calls.append((harness.time, numbers))

    with Harness(app) as harness:
        for number in range(5):
            harness.publish("n", number)
            harness.advance(0.75)
    assert calls == [(2.0, [0, 1, 2]), (4.25, [3, 4])]


def test_what_comes_while_the_handler_runs_goes_into_the_next_batch() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(4, 0))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        await asyncio.sleep(10.0)

    with Harness(app) as harness:
        harness.publish("n", 0)
        harness.advance(1.0)
        publish(harness, "n", *range(1, 7))
    assert calls == [[0], [1, 2, 3, 4], [5, 6]]


def test_payloads_and_whole_messages_come_as_lists() -> None:
    app = DistributedApplication("memory://", name="app")
    got: dict[str, Any] = {}
    readings = [Reading(1.5), Reading(2.5)]

    def takes(name: str) -> Callable[[F], F]:
        return app.application("r/{sensor}", name=name, batch=(2, 1))

    @takes("payloads")
    async def payloads(readings: list[Reading]) -> None:
        got["payloads"] = readings

    @takes("sequence")
    async def sequence(payload: Sequence[Reading], context: Context) -> None:
        got["sequence"] = (payload, context.attempt)

    @takes("messages")
    async def messages(readings: list[Message[Reading]]) -> None:
        got["messages"] = [(one.topic, one.payload, one.id, one.attempt) for one in readings]

    @takes("both")
    async def both(readings: list[Reading], messages: list[Message[Reading]]) -> None:
        got["both"] = (readings, [one.payload for one in messages])

    @takes("raw")
    async def raw(readings: list[Reading], messages: list[Message[bytes]]) -> None:
        got["raw"] = (readings, [one.payload for one in messages])

    @takes("all")
    async def everything(**given: Any) -> None:
        got["all"] = given

    with Harness(app) as harness:
        harness.publish("r/a", readings[0], id="id-a")
        harness.publish("r/b", readings[1], id="id-b")
    data = [b'{"celsius":1.5}', b'{"celsius":2.5}']
    assert len(got) == 6
    assert got["payloads"] == readings
    assert got["sequence"] == (readings, 1)
    assert got["messages"] == [
        ("r/a", readings[0], "id-a", 1),
        ("r/b", readings[1], "id-b", 1),
    ]
    assert got["both"] == (readings, readings)
    assert got["raw"] == (readings, data)
    assert got["all"]["payload"] == data
    assert [message.topic for message in got["all"]["message"]] == ["r/a", "r/b"]
    assert "sensor" not in got["all"]


def test_without_batch_a_list_is_one_payload() -> None:
    app = DistributedApplication("memory://", name="app")
    got: list[list[int]] = []

    @app.application("n")
    async def handle(numbers: list[int]) -> None:
        got.append(numbers)

    with Harness(app) as harness:
        harness.publish("n", [1, 2])
    assert got == [[1, 2]]


def test_state_resources_and_the_socket_are_there() -> None:
    app = DistributedApplication("memory://", name="app")
    threads: list[int] = []

    @app.application("n", batch=(3, 1), state=Counter)
    def handle(numbers: list[int], state: Counter[str], socket: SyncSocket) -> None:
        state["sum"] += sum(numbers)
        threads.append(threading.get_ident())
        socket.publish("out", state["sum"])

    with Harness(app) as harness:
        publish(harness, "n", 1, 2, 3, 4)
    assert harness.published("out") == [6, 10]
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_a_batch_ends_where_the_next_message_is_for_another_handler() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[tuple[str, list[int]]] = []

    class Two(Actor):
        batch = (3, 5.0)

        @on("a")
        async def first(self, numbers: list[int]) -> None:
            calls.append(("a", numbers))

        @on("b")
        async def second(self, numbers: list[int]) -> None:
            calls.append(("b", numbers))

    app.add(Two)
    with Harness(app) as harness:
        for topic, number in zip("aabaabbbb", range(9), strict=True):
            harness.publish(topic, number)
        harness.advance(1.0)
        assert len(calls) == 4
    assert calls == [
        ("a", [0, 1]),
        ("b", [2]),
        ("a", [3, 4]),
        ("b", [5, 6, 7]),
        ("b", [8]),
    ]


async def test_local_messages_do_not_wait_for_a_batch() -> None:
    site = Site()
    app = site.app()
    calls: list[list[int]] = []
    ticks: list[int] = []

    class Patient(Actor):
        name = "actor"
        batch = (3, 1000.0)
        topics = "n"

        async def on_message(self, numbers: list[int], context: Context) -> None:
            calls.append(numbers)
            context.later(1, ticks.append, 1)

        async def on_receive(self, message: Any) -> str:
            return f"{message}: {len(calls)}"

    spec = app.add(Patient)
    async with app:
        site.number("n", *range(4))
        await eventually(lambda: calls == [[0, 1, 2]])
        assert await spec.ref.ask("calls") == "calls: 1"
        await eventually(lambda: ticks == [1])
        assert site.unsettled() == 1


def test_filters_added_at_run_time_have_batches_of_their_own() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[tuple[str, int]]] = []

    @app.application("n", batch=(3, 5.0))
    async def handle(messages: list[Message[int]], socket: Socket) -> None:
        await socket.subscribe("more")
        calls.append([(message.topic, message.payload) for message in messages])

    with Harness(app) as harness:
        publish(harness, "n", *range(3))
        harness.settle()
        harness.publish("more", 3)
        harness.publish("n", 4)
    # Two subscriptions: there is no order between them.
    assert sorted(calls[1:]) == [[("more", 3)], [("n", 4)]]


def test_each_lane_collects_its_own_batches() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[tuple[set[str], int]] = []

    @app.application("n/{key}", batch=(10, 1.0), concurrency=4, key="key")
    async def handle(messages: list[Message[int]]) -> None:
        await asyncio.sleep(0.01)
        calls.append(({message.topic for message in messages}, len(messages)))

    with Harness(app) as harness:
        for number in range(10):
            for key in range(20):
                harness.publish(f"n/{key}", number)
    topics = [topic for of_call, _ in calls for topic in of_call]
    lanes: list[set[str]] = []
    for of_call, _ in calls:
        together = [lane for lane in lanes if lane & of_call]
        lanes = [lane for lane in lanes if lane not in together] + [of_call.union(*together)]
    assert len(lanes) == 4
    assert set(topics) == {f"n/{key}" for key in range(20)}
    assert sum(size for _, size in calls) == 200
    assert all(size <= 10 for _, size in calls)
    assert sum(size == 10 for _, size in calls) >= 16


# Settling.


async def test_a_batch_is_settled_together_when_its_posts_are_confirmed() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor", batch=(3, 1))
    async def handle(numbers: list[int], socket: Socket) -> None:
        socket.post("out", numbers)

    async with app:
        site.faults.drop_confirmations(1)
        site.number("n", *range(3))
        await eventually(lambda: app.stats["messages.handled"] == 3)
        await asyncio.sleep(5)
        assert site.unsettled() == 3
        site.cut("app.0")
        await site.settled()


async def test_a_refused_post_makes_dead_letters_of_the_batch() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor", batch=(3, 1))
    async def handle(numbers: list[int], socket: Socket) -> None:
        socket.post("out", numbers)

    async with app:
        site.faults.refuse_publish("out")
        site.number("n", *range(3))
        letters = await site.parked(3)
        await site.settled()
    assert [letter.payload for letter in letters] == [b"0", b"1", b"2"]


def test_what_a_batch_publishes_has_the_same_ids_at_every_attempt() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n", batch=(3, 1), retry=QUICK)
    async def handle(numbers: list[int], socket: Socket, context: Context) -> None:
        for _ in numbers:
            await socket.publish("out", numbers)
        if context.attempt < 3 and numbers[0] == 0:
            raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        publish(harness, "n", *range(6))
        harness.settle()
        harness.publish("n", 9, id="id-9")
        harness.publish("n", 9)
    ids = [message.id for message in harness.messages("out")]
    assert ids[0:3] == ids[3:6] == ids[6:9]
    assert len(set(ids[:3])) == 3
    assert len(ids[9:]) == 5
    assert not {*ids[:9]} & {*ids[9:]}


# Failures.


def test_what_can_not_be_read_is_parked_and_the_rest_goes_on() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(4, 1))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)

    with Harness(app, allow_failures=DecodeError) as harness:
        publish(harness, "n", 0, "one", 2, 3)
        harness.settle()
        (letter,) = harness.dead_letters()
        publish(harness, "n", *["nothing"] * 4)
    assert len(harness.dead_letters()) == 5
    assert calls == [[0, 2, 3]]
    assert (letter.payload, letter.attempts) == (b"one", 1)
    assert harness.stats["messages.undecodable"] == 5


async def test_what_is_too_large_is_parked_and_the_rest_goes_on() -> None:
    site = Site(max_payload=100)
    app = site.app()
    calls: list[list[str]] = []

    @app.application("n", name="actor", batch=(2, 1))
    async def handle(texts: list[str]) -> None:
        calls.append(texts)

    async with app:
        site.publish("n", "x" * 101)
        site.publish("n", "small")
        await site.parked()
        await site.settled()
    assert calls == [["small"]]


def test_a_batch_is_retried_as_a_whole_then_each_message_once_alone() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[tuple[int, list[int], list[int]]] = []

    @app.application("n", batch=(4, 1), retry=QUICK)
    async def handle(messages: list[Message[int]], context: Context) -> None:
        numbers = [message.payload for message in messages]
        calls.append((context.attempt, numbers, [message.attempt for message in messages]))
        if 1 in numbers or 2 in numbers:
            raise ValueError(f"bad {numbers}")

    with Harness(app, allow_failures=ValueError) as harness:
        publish(harness, "n", *range(5))
    together = [0, 1, 2, 3]
    assert calls == [
        *((attempt, together, [attempt] * 4) for attempt in (1, 2, 3)),
        *((4, [number], [4]) for number in together),
        (1, [4], [1]),
    ]
    letters = harness.dead_letters()
    assert [letter.payload for letter in letters] == [b"1", b"2"]
    assert (letters[0].attempts, letters[0].text) == (4, "bad [1]")
    assert harness.stats["messages.handled"] == 3


@pytest.mark.parametrize("error", [Reject("no"), Retry("later", after=1000.0)])
def test_a_batch_that_is_not_to_be_retried_is_tried_alone_at_once(error: Exception) -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(3, 1), retry=QUICK)
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if 1 in numbers:
            raise error

    with Harness(app) as harness:
        publish(harness, "n", *range(3))
        harness.settle()
        assert harness.time == 0.0
    assert calls == [[0, 1, 2], [0], [1], [2]]
    assert [letter.payload for letter in harness.dead_letters()] == [b"1"]


def test_a_batch_of_one_is_not_tried_once_more() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(3, 1), retry=QUICK)
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("n", 0)
    assert calls == [[0]] * 3
    assert len(harness.dead_letters()) == 1


def test_an_outage_under_the_handler_does_not_count() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[tuple[int, list[int]]] = []

    @app.application("n", batch=(3, 1), retry=QUICK)
    async def handle(numbers: list[int], context: Context) -> None:
        calls.append((context.attempt, numbers))
        if len(calls) < 10:
            raise ConnectionLost("somewhere else")

    with Harness(app) as harness:
        publish(harness, "n", *range(3))
    assert calls == [(1, [0, 1, 2])] * 10


def test_a_handler_that_takes_too_long_is_cut_off() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(3, 1), retry=QUICK, deadline=1.0)
    async def handle(numbers: list[int]) -> None:
        calls.append(list(numbers))
        numbers.clear()
        if len(calls) == 1:
            await asyncio.sleep(100)

    with Harness(app) as harness:
        harness.expect_failure(TimeoutError)
        publish(harness, "n", *range(3))
    assert calls == [[0, 1, 2]] * 2


# Overflow.


def test_overflow_goes_by_what_waits_for_a_batch() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n/{key}", batch=(4, 2), key="key", overflow=Overflow.LATEST_BY_KEY)
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)

    with Harness(app) as harness:
        for number, key in enumerate("abacbd"):
            harness.publish(f"n/{key}", number)
    assert calls == [[2, 4, 3, 5]]
    assert harness.stats["messages.dropped"] == 2


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.REFUSE])
def test_at_most_once_messages_are_dropped_when_too_many_wait(overflow: Overflow) -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(2, 1), mailbox=3, qos=0, overflow=overflow)
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        await asyncio.sleep(10.0)

    with Harness(app) as harness:
        publish(harness, "n", 0, 1)
        harness.advance(1.0)
        publish(harness, "n", *range(2, 8))
        harness.advance(1.0)
        assert harness.stats["messages.dropped"] == 3
    rest = [[5, 6], [7]] if overflow is Overflow.DROP_OLDEST else [[2, 3], [4]]
    assert calls == [[0, 1], *rest]


# Interruptions.


async def test_a_cut_takes_back_what_waits_for_a_batch() -> None:
    site = Site()
    app = site.app()
    calls: list[list[int]] = []

    @app.application("n", name="actor", batch=(10, 5.0))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)

    async with app:
        site.number("n", *range(3))
        await asyncio.sleep(1)
        site.faults.refuse_connections()
        site.cut()
        await asyncio.sleep(20)
        assert calls == []
        site.faults.allow()
        await site.reconnected()
        site.number("n", 3)
        await site.settled()
    assert calls == [[0, 1, 2, 3]]


def test_a_batch_under_way_in_a_cut_is_not_handled_twice() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", name="actor", batch=(3, 1))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        await asyncio.sleep(10.0)

    with Harness(app) as harness:
        publish(harness, "n", *range(5))
        harness.advance(1.0)
        harness.cut("actor")
    assert harness.trace.count(" redeliver ") == 5
    assert calls == [[0, 1, 2], [3, 4]]


def test_a_cut_between_two_attempts_gives_the_batch_back_in_order() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[tuple[int, int]]] = []
    policy = RetryPolicy(attempts=5, first=600, hold=10_000)

    @app.application("n", name="actor", batch=(3, 1), retry=policy)
    async def handle(messages: list[Message[int]]) -> None:
        calls.append([(message.payload, message.attempt) for message in messages])
        if len(calls) == 1:
            raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        publish(harness, "n", *range(4))
        harness.advance(2.0)
        assert harness.stats["messages.failed"] == 3
        harness.cut("actor")
        harness.settle()
        assert harness.time < 60.0
    assert calls == [[(0, 1), (1, 1), (2, 1)], [(0, 2), (1, 2), (2, 2)], [(3, 1)]]


def test_a_lost_session_gives_the_last_copies_back_in_order() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []
    policy = RetryPolicy(attempts=5, first=600, hold=10_000)

    @app.application("n", name="actor", batch=(3, 1), retry=policy)
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if len(calls) == 1:
            raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        publish(harness, "n", *range(5))
        harness.advance(2.0)
        assert harness.stats["messages.failed"] == 3
        harness.lose_session("actor")
        harness.settle()
        assert harness.time < 60.0
    assert calls == [[0, 1, 2], [0, 1, 2], [3, 4]]


async def test_a_cut_among_messages_that_are_tried_alone_gives_the_rest_back() -> None:
    site = Site()
    app = site.app()
    calls: list[list[int]] = []
    gate = Gate()

    @app.application("n", name="actor", batch=(4, 1), retry=QUICK)
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if numbers == [1]:
            await gate.pass_()
        if len(numbers) > 1 and len(calls) == 1:
            raise Reject

    async with app:
        site.number("n", *range(4))
        await gate.reached()
        site.faults.refuse_connections()
        site.cut()
        gate.open()
        await asyncio.sleep(1)
        assert calls == [[0, 1, 2, 3], [0], [1]]
        site.faults.allow()
        await site.settled()
    assert calls == [[0, 1, 2, 3], [0], [1], [2, 3]]


def test_a_stop_finishes_the_batch_and_leaves_the_rest_to_the_bus() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(3, 100.0))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        await asyncio.sleep(2.0)

    with Harness(app) as harness:
        publish(harness, "n", *range(5))
        harness.advance(1.0)
        harness.stop()
        assert calls == [[0, 1, 2]]
        assert harness.time == 2.0
        assert harness.trace.count(" acknowledge ") == 3
        harness.restart()
        harness.publish("n", 5)
    assert calls == [[0, 1, 2], [3, 4, 5]]


def test_a_stop_does_not_wait_for_a_batch_to_fill() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(3, 1000.0))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)

    with Harness(app) as harness:
        publish(harness, "n", *range(2))
        harness.advance(1.0)
        harness.stop()
        assert harness.time < 2.0
    assert calls == []
    assert " acknowledge " not in harness.trace


def test_a_stop_works_the_last_copies_off() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", name="actor", batch=(2, 1000.0))
    async def handle(numbers: list[int]) -> None:
        await asyncio.sleep(2.5)
        calls.append(numbers)

    with Harness(app) as harness:
        publish(harness, "n", *range(7))
        harness.advance(0.1)
        harness.lose_session("actor")
        harness.advance(2.0)
        assert calls == []
        harness.stop()
    assert calls == [[0, 1], [2, 3], [4, 5], [6]]


def test_a_stop_between_two_attempts_tries_each_last_copy_alone() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []
    policy = RetryPolicy(attempts=5, first=600, hold=10_000)

    @app.application("n", name="actor", batch=(3, 1), retry=policy)
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if 1 in numbers:
            raise ValueError(numbers)

    with Harness(app, allow_failures=ValueError) as harness:
        publish(harness, "n", *range(3))
        harness.advance(2.0)
        assert harness.stats["messages.failed"] == 3
        harness.lose_session("actor")
        harness.advance(5.0)
        assert harness.stats["messages.failed"] == 6
        harness.stop()
    assert calls == [[0, 1, 2], [0, 1, 2], [0], [1], [2]]
    assert [letter.payload for letter in harness.dead_letters()] == [b"1"]


def test_an_actor_that_stops_itself_hands_back_what_waits() -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[list[int]] = []

    @app.application("n", batch=(3, 100.0))
    async def handle(numbers: list[int], context: Context) -> None:
        calls.append(numbers)
        context.stop()

    with Harness(app) as harness:
        publish(harness, "n", *range(5))
        harness.advance(30.0)
        assert not app.healthy
    assert calls == [[0, 1, 2]]
    assert harness.trace.count(" acknowledge ") == 3


# What is refused.


def refusal(function: Any, topics: Any = "plant/{machine}", **options: Any) -> str:
    """Why the function cannot be registered."""
    app = DistributedApplication("memory://", name="app")
    with pytest.raises(ConfigurationError) as caught:
        app.application(topics, **{"batch": (10, 1), **options})(function)
    return str(caught.value)


async def plain(reading: Reading) -> None: ...
async def bare(readings: list) -> None: ...  # type: ignore[type-arg]
async def one_message(message: Message[Reading]) -> None: ...
async def unannotated(message, readings: list[int]) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001
async def payload_only(payload) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001
async def nothing() -> None: ...
async def captured(readings: list[int], machine: str) -> None: ...
async def answers(readings: list[int]) -> int: ...  # type: ignore[empty-body]
async def builds(readings: list[int], message_builder: MessageBuilder) -> None: ...
async def differs(readings: list[int], messages: list[Message[str]]) -> None: ...
async def fine(readings: list[int]) -> None: ...


@pytest.mark.parametrize(
    ("function", "texts"),
    [
        (plain, ["'reading' is Reading", "list[...]"]),
        (bare, ["'readings' is list", "list[...]"]),
        (one_message, ["'message'", "list[Message[...]]"]),
        (unannotated, ["'message'", "list[Message[...]]"]),
        (payload_only, ["'payload' has no annotation", "list[...]"]),
        (nothing, ["annotated list[...] or list[Message[...]]"]),
        (captured, ["capture 'machine'", "list[Message[...]]"]),
        (answers, ["answers requests"]),
        (builds, ["answers requests"]),
        (differs, ["str", "int"]),
    ],
)
def test_a_handler_that_takes_no_batch_is_refused(function: Any, texts: list[str]) -> None:
    text = refusal(function)
    for part in (function.__name__, *texts):
        assert part in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": 10}, "batch=10"),
        ({"batch": (10,)}, "batch=(10,)"),
        ({"batch": [10, 1]}, "batch=[10, 1]"),
        ({"batch": (0, 1)}, "1 to 65535"),
        ({"batch": (65_536, 1)}, "1 to 65535"),
        ({"batch": (True, 1)}, "batch=(True, 1)"),
        ({"batch": (10, -1)}, "batch seconds=-1"),
        ({"batch": (10, float("inf"))}, "batch seconds=inf"),
        ({"window": 9}, "window=9"),
        ({"replies": True}, "answers requests"),
    ],
)
def test_a_batch_that_can_not_be_is_refused(options: dict[str, Any], text: str) -> None:
    assert text in refusal(fine, **options)


def test_a_near_miss_is_told_what_a_batch_can_have() -> None:
    async def misspelt(readings: list[int], sokcet: Any) -> None: ...

    text = refusal(misspelt)
    assert "list[Message[...]]" in text
    assert "captures" not in text


# Anything, at any time.


class World:
    """One application with batches under trouble, and what it did."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.site = Site()
        self.published = 0
        self.begun: list[int] = []
        self.done: list[int] = []
        self.trouble = 0.3
        self.app = self.site.app(stop_timeout=60.0)
        policy = RetryPolicy(attempts=3, first=0.05, factor=2.0)

        @self.app.application("n", name="actor", window=12, retry=policy, batch=(5, 0.2))
        async def handle(numbers: list[int], socket: Socket) -> None:
            chance = self.chance
            self.begun += numbers
            if chance.random() < 0.5:
                await asyncio.sleep(chance.choice([0.0, 0.003, 0.05, 0.5]))
            if chance.random() < 0.3:
                socket.post("out", numbers)
            if chance.random() < self.trouble:
                raise chance.choice([ValueError("no"), Reject(), ConnectionLost("somewhere")])
            self.done += numbers

    async def step(self, action: str) -> None:
        site, chance = self.site, self.chance
        if action == "publish":
            count = chance.randrange(1, 15)
            site.number("n", *range(self.published, self.published + count))
            self.published += count
        elif action == "bad":
            site.publish("n", f"x{self.published}", id=f"id-{self.published}")
            self.published += 1
        elif action == "wait":
            await asyncio.sleep(chance.choice([0.0, 0.001, 0.02, 0.5]))
        elif action == "cut" and "app.0.actor" in site.broker.links:
            site.cut()
        elif action == "away":
            site.faults.refuse_connections(chance.randrange(1, 4))
        elif action == "no parking":
            site.faults.refuse_publish("_spa/dead-letter/#")
        elif action == "parking":
            site.faults.allow()
        elif action == "restart":
            site.faults.refuse_connections(0)
            await self.app.aclose()
            await self.app.__aenter__()

    async def run(self, actions: list[str]) -> None:
        async with self.app:
            for action in actions:
                await self.step(action)
            self.trouble = 0.0
            self.site.faults.allow()
            await self.site.reconnected()
            await self.site.settled(timeout=600.0)

    def parked(self) -> set[int]:
        return {int(letter.payload.removeprefix(b"x")) for letter in self.site.letters()}


@settings(
    max_examples=examples(30),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(
    actions=st.lists(
        st.sampled_from(
            ["publish", "publish", "bad", "wait", "cut", "away", "no parking", "parking", "restart"]
        ),
        min_size=5,
        max_size=40,
    ),
    seed=st.integers(0, 2**32),
)
async def test_every_message_is_handled_or_parked_in_order(actions: list[str], seed: int) -> None:
    world = World(seed)
    await world.run(actions)
    assert set(range(world.published)) == set(world.done) | world.parked()
    first = list(dict.fromkeys(world.begun))
    assert first == sorted(first)


async def test_a_mistake_of_the_runtime_parks_the_batch_and_the_next_one_is_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor", batch=(2, 1.0), retry=RetryPolicy(attempts=1))
    async def handle(numbers: list[int]) -> None:
        if 1 in numbers:
            raise ValueError
        handled.extend(numbers)

    def mistaken(*arguments: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(BatchProcessor, "_log_batch", mistaken)
    async with app:
        site.number("n", 1, 2, 3, 4)
        await site.settled()
        assert handled == [3, 4]
        assert [letter.payload for letter in site.letters()] == [b"1", b"2"]
        assert app.healthy
