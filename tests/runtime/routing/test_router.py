"""From a subscription into the mailboxes, on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Message,
    Overflow,
    Reject,
    RetryPolicy,
    Socket,
    on,
)
from spa_dat.harness._eventually import Gate
from spa_dat.runtime.routing._routed_deliveries import Route
from spa_dat.runtime.routing._router import Router
from spa_dat.transports import Consumer, Envelope, TopicFilter
from support.memory import Site
from support.routing import Session, Worker
from support.waiting import eventually

pytestmark = pytest.mark.virtual


# Overlapping filters.


async def test_overlapping_filters_give_one_copy_to_the_one_declared_first() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[str, str]] = []

    class Boiler(Actor):
        @on("plant/boiler/temperature")
        async def exact(self, message: Message[bytes]) -> None:
            seen.append(("exact", message.topic))

        @on("plant/+/temperature", "plant/#")
        async def wide(self, message: Message[bytes]) -> None:
            seen.append(("wide", message.topic))

        @on("plant/boiler/limit")
        async def never(self, message: Message[bytes]) -> None:
            seen.append(("never", message.topic))

    app.add(Boiler)
    async with app:
        for topic in ("boiler/temperature", "pump/temperature", "boiler/limit", "boiler"):
            site.publish(f"plant/{topic}")
        await site.settled("app.0.Boiler")
    assert seen == [
        ("exact", "plant/boiler/temperature"),
        ("wide", "plant/pump/temperature"),
        ("wide", "plant/boiler/limit"),
        ("wide", "plant/boiler"),
    ]


async def test_captures_come_from_the_filter_that_matched_first() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[str, str]] = []

    @app.application(["a/{x}/c", "a/b/{y}"], name="actor")
    async def handle(x: str = "-", y: str = "-") -> None:
        seen.append((x, y))

    async with app:
        site.publish("a/b/c")
        site.publish("a/b/d")
        await site.settled()
    assert seen == [("b", "-"), ("-", "d")]


# Shared subscriptions.


async def test_a_shared_subscription_settles_when_all_are_done() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    fast: list[int] = []

    @app.application("n", name="fast", subscription="actor")
    async def quick(number: int) -> None:
        fast.append(number)

    @app.application(["n", "only/slow"], name="slow", subscription="actor")
    async def slow(number: int) -> None:
        await gate.pass_()

    async with app:
        assert [name for name in site.broker.queues if name.startswith("app.0.")] == ["app.0.actor"]
        site.number("n", 1, 2)
        site.number("only/slow", 3)
        await eventually(lambda: fast == [1, 2])
        await asyncio.sleep(1)
        assert site.unsettled() == 3
        gate.open()
        await site.settled()
    assert fast == [1, 2]


async def test_each_member_of_a_shared_subscription_retries_and_parks_for_itself() -> None:
    site = Site()
    app = site.app()
    calls: list[str] = []

    @app.application("n", name="fine", subscription="actor")
    async def fine(number: int) -> None:
        calls.append("fine")

    @app.application("n", name="failing", subscription="actor", retry=RetryPolicy(attempts=3))
    async def failing(number: int) -> None:
        calls.append("failing")
        raise ValueError

    async with app:
        site.number("n", 1)
        await site.settled()
    assert sorted(calls) == ["failing"] * 3 + ["fine"]
    (letter,) = site.letters()
    assert letter.headers["spa_dead_actor"] == "app/0/failing"
    assert letter.headers["spa_dead_attempts"] == "3"


@pytest.mark.parametrize("lose_session", [False, True])
async def test_a_lost_connection_makes_nobody_repeat_a_shared_message(lose_session: bool) -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[tuple[str, int]] = []

    for name in ("one", "two"):

        @app.application("n", name=name, subscription="actor")
        async def handle(number: int, context: Context) -> None:
            if context.actor == "two" and number == 1:
                await gate.pass_()
            seen.append((context.actor, number))

    async with app:
        site.number("n", 0, 1, 2)
        await gate.reached()
        await eventually(lambda: ("one", 2) in seen)
        site.cut(lose_session=lose_session)
        await site.reconnected()
        gate.open()
        await eventually(lambda: ("two", 2) in seen)
        site.number("n", 3)
        await eventually(lambda: ("two", 3) in seen)
        await site.settled()
    for name in ("one", "two"):
        assert [number for actor, number in seen if actor == name] == [0, 1, 2, 3]


async def test_a_member_that_stops_leaves_the_others_their_subscription() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[str, int]] = []

    for name in ("leaver", "stayer"):

        @app.application("n", name=name, subscription="actor", window=5)
        async def handle(number: int, context: Context) -> None:
            seen.append((context.actor, number))
            if context.actor == "leaver" and number == 2:
                context.stop()

    async with app:
        site.number("n", *range(3))
        await site.settled()
        site.number("n", *range(3, 30))
        await site.settled()
        assert app.healthy
    assert [number for actor, number in seen if actor == "stayer"] == list(range(30))
    assert [number for actor, number in seen if actor == "leaver"][:3] == [0, 1, 2]
    assert app.stats["actors.failed"] == 0


async def test_a_member_that_stops_parks_what_it_was_going_to_try_again() -> None:
    site = Site()
    app = site.app()
    stopped: list[Context] = []
    stayer: list[int] = []

    @app.application("n", name="leaver", subscription="actor", retry=RetryPolicy(first=5.0))
    async def leaver(number: int, context: Context) -> None:
        stopped.append(context)
        raise ValueError("half done")

    @app.application("n", name="stayer", subscription="actor")
    async def stay(number: int) -> None:
        stayer.append(number)

    async with app:
        site.number("n", 1)
        await eventually(lambda: stopped)
        stopped[0].stop()
        (letter,) = await site.parked()
        site.number("n", 2)
        await site.settled()
    assert letter.headers["spa_dead_text"] == "half done"
    assert len(stopped) == 1
    assert stayer == [1, 2]


# What nobody wants.


def older_and_newer(site: Site) -> tuple[DistributedApplication, DistributedApplication]:
    older, newer = site.app(), site.app()

    @older.application(["a/#", "b"], name="actor")
    async def everything(payload: bytes) -> None: ...

    @newer.application("b", name="actor")
    async def less(payload: bytes) -> None: ...

    return older, newer


async def test_messages_of_a_filter_of_an_earlier_version_are_acknowledged_and_the_filter_removed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    older, newer = older_and_newer(site)
    async with older:
        pass
    for _ in range(3):
        site.publish("a/1")
    site.publish("b")
    async with newer:
        await site.settled()
        assert newer.stats["messages.unwanted"] == 3
        assert newer.stats["messages.handled"] == 1
        assert caplog.text.count("matches none of its filters") == 1
        assert list(site.broker.queues["app.0.actor"].filters) == ["b"]
        site.publish("a/2")
        await asyncio.sleep(1)
        assert newer.stats["messages.unwanted"] == 3


async def test_reserved_topics_reach_no_wildcard() -> None:
    site = Site()
    app = site.app()
    seen: list[str] = []

    @app.application("#", name="actor")
    async def handle(message: Message[bytes]) -> None:
        seen.append(message.topic)
        if message.topic == "n":
            raise Reject

    async with app:
        site.publish("n")
        site.publish("_spa/x")
        site.publish("$SYS/x")
        await site.parked()
        await site.settled()
        await asyncio.sleep(1)
    assert seen == ["n"]


# Quality of service 0, and policies for full mailboxes.


async def test_quality_0_into_a_full_mailbox_is_dropped_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n", name="actor", mailbox=3)
    async def handle(number: int) -> None:
        await gate.pass_()
        seen.append(number)

    async with app:
        site.number("n", 0, qos=0)
        await gate.reached()
        site.number("n", *range(1, 10), qos=0)
        site.number("n", 10, 11)
        await eventually(lambda: app.stats["messages.dropped"] == 6)
        gate.open()
        await site.settled()
        await eventually(lambda: 11 in seen)
    assert seen == [0, 1, 2, 3, 10, 11]
    lines = [record.getMessage() for record in caplog.records]
    (first, *rest) = [line for line in lines if "one with QoS 0 on 'n' is dropped" in line]
    assert first.startswith("the mailbox of 'actor' is full with 3 messages: ")
    assert len(rest) == 5


async def test_quality_0_is_tried_again_and_parked_like_the_rest() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor", qos=0, retry=RetryPolicy(attempts=2))
    async def handle(number: int) -> None:
        raise ValueError

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert letter.headers["spa_dead_attempts"] == "2"


@pytest.mark.parametrize(
    ("overflow", "left"),
    [
        (Overflow.DROP_OLDEST, [0, 7, 8, 9]),
        (Overflow.DROP_NEWEST, [0, 1, 2, 3]),
        (Overflow.LATEST_BY_KEY, [0, 7, 8, 9]),
    ],
)
@pytest.mark.parametrize("qos", [0, 1])
async def test_other_policies_drop_settle_and_count(
    overflow: Overflow, left: list[int], qos: int
) -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n/+", name="actor", mailbox=3, overflow=overflow)
    async def handle(number: int) -> None:
        await gate.pass_()
        seen.append(number)

    async with app:
        site.publish("n/0", "0", qos=qos)
        await gate.reached()
        for number in range(1, 10):
            site.publish(f"n/{number}", str(number), qos=qos)
        await eventually(lambda: app.stats["messages.dropped"] == 6)
        gate.open()
        await eventually(lambda: len(seen) == 4)
        await site.settled()
    assert seen == left


async def test_the_latest_by_key_replaces_what_waits() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[str] = []

    @app.application("n", name="actor", overflow=Overflow.LATEST_BY_KEY)
    async def handle(text: str) -> None:
        await gate.pass_()
        seen.append(text)

    async with app:
        site.publish("n", "x")
        await gate.reached()
        for key in "abab":
            site.publish("n", f"{key}{len(seen)}", key=key)
        site.publish("n", "a-last", key="a")
        await eventually(lambda: app.stats["messages.dropped"] == 3)
        gate.open()
        await site.settled()
    assert seen == ["x", "a-last", "b0"]


async def test_what_is_dropped_while_the_connection_is_gone_blocks_nothing() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n", name="actor", mailbox=2, window=5, overflow=Overflow.DROP_OLDEST)
    async def handle(number: int) -> None:
        await gate.pass_()
        seen.append(number)

    async with app:
        site.number("n", *range(5))
        await gate.reached()
        site.cut()
        await site.reconnected()
        site.number("n", *range(5, 40))
        await asyncio.sleep(1)
        gate.open()
        await eventually(lambda: 39 in seen)
        await site.settled()
    assert seen == sorted(set(seen))


# When the connection is lost.


@pytest.mark.parametrize("lose_session", [False, True])
async def test_what_waits_or_runs_when_the_connection_is_lost_is_handled_once_and_in_order(
    lose_session: bool,
) -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        if number == 1:
            await gate.pass_()
        seen.append(number)

    async with app:
        site.number("n", *range(5))
        await gate.reached()
        site.cut(lose_session=lose_session)
        await site.reconnected()
        site.number("n", *range(5, 8))
        await asyncio.sleep(1)
        assert seen == [0]
        gate.open()
        await eventually(lambda: 7 in seen)
        await site.settled()
    assert seen == list(range(8))


async def test_nothing_new_starts_while_the_connection_is_gone() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        if number == 0:
            await gate.pass_()
        seen.append(number)

    async with app:
        site.number("n", *range(3))
        await gate.reached()
        site.faults.refuse_connections()
        site.cut()
        gate.open()
        await asyncio.sleep(30)
        assert seen == [0]
        site.faults.allow()
        await site.settled()
    assert seen == [0, 1, 2]


async def test_what_was_settled_while_the_connection_was_gone_is_not_handled_again() -> None:
    site = Site()
    app = site.app()
    gates = [Gate(), Gate()]
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        await gates[number].pass_()
        seen.append(number)

    async with app:
        site.number("n", 0)
        await gates[0].reached()
        site.faults.refuse_connections()
        site.cut()
        gates[0].open()
        await eventually(lambda: seen == [0])
        site.faults.allow()
        await site.reconnected()
        await site.settled()
        await asyncio.sleep(1)
    assert seen == [0]


@pytest.mark.parametrize("lose_session", [False, True])
async def test_a_message_that_waits_for_its_posts_survives_a_lost_connection(
    lose_session: bool,
) -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        seen.append(number)
        socket.post("out", number)

    out = site.watch("out")
    async with app:
        site.faults.drop_confirmations(3)
        site.number("n", 1, 2, 3)
        await eventually(lambda: seen == [1, 2, 3])
        site.cut(lose_session=lose_session)
        await site.reconnected()
        await asyncio.sleep(1)
        site.cut("app.0")
        await site.settled()
    assert seen == [1, 2, 3]
    assert sorted(set(out.payloads)) == ["1", "2", "3"]


async def test_messages_lost_on_the_way_come_again() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        seen.append(number)

    async with app:
        site.faults.drop_next(2, "n")
        site.number("n", *range(4))
        await eventually(lambda: seen == [2, 3])
        site.cut()
        await site.settled()
    assert sorted(seen) == [0, 1, 2, 3]


async def test_many_losses_in_a_row() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor", window=10)
    async def handle(number: int) -> None:
        await asyncio.sleep(0.02)
        seen.append(number)

    async with app:
        site.number("n", *range(300))
        for _ in range(20):
            await asyncio.sleep(0.3)
            await site.reconnected()
            site.cut()
        await site.settled()
    assert seen == list(range(300))


async def test_what_the_bus_has_forgotten_is_kept_when_the_connection_is_lost_again() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        await gate.pass_()
        seen.append(number)

    async with app:
        site.number("n", 0, 1, 2)
        await gate.reached()
        site.cut(lose_session=True)
        await site.reconnected()
        site.number("n", 3)
        await asyncio.sleep(1)
        site.cut()
        await site.reconnected()
        await asyncio.sleep(1)
        gate.open()
        await eventually(lambda: 3 in seen)
        await site.settled()
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("fails", [False, True])
async def test_stop_works_off_what_the_bus_has_forgotten(fails: bool) -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(first=5.0))
    async def handle(number: int) -> None:
        await gate.pass_()
        seen.append(number)
        if fails:
            raise ValueError

    async with app:
        site.number("n", 0, 1, 2)
        await gate.reached()
        site.cut(lose_session=True)
        await site.reconnected()
        site.number("n", 3)
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_later(1, gate.open)
    assert seen == [0, 1, 2]
    assert site.unsettled() == 1
    assert [letter.payload for letter in site.letters()] == ([b"0", b"1", b"2"] if fails else [])


# What comes back late, as from a process that was busy.


@pytest.mark.parametrize("when", ["before it comes again", "after it", "without a reason"])
async def test_what_is_given_back_late_is_handled_and_acknowledged_all_the_same(when: str) -> None:
    router, worker = Router("subscription", Counter()), Worker("a")
    broker = Session(router)
    router.consumer = cast(Consumer, broker)
    router.add(Route(router, worker, 0, TopicFilter.parse("a")))
    if when == "without a reason":
        # Another subscription of the actor has lost its connection; this one had before.
        broker.cut()
        broker.come_back(kept=True)
    broker.waiting.append(Envelope(topic="a", payload=b"1"))
    broker.send(1, together=False)
    begun = worker.start_next()
    assert begun is not None
    worker.running = None
    if when != "without a reason":
        broker.cut()
        broker.come_back(kept=True)
    if when == "after it":
        broker.send(1, together=False)
    assert router.give_back(begun)
    broker.send(1, together=False)
    assert worker.start_next() is not None
    worker.done()
    assert worker.finished == [1]
    assert broker.acknowledged == [1]
    assert len(broker.tracker) == 0
