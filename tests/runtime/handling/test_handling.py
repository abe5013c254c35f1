"""What happens to a message between the broker and the handler, on virtual time."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from spa_dat import Actor, Context, Message, Overflow, RetryPolicy, Socket, on
from spa_dat.errors import (
    ActorStopped,
    ConfigurationError,
    ConnectionLost,
    OutboxFull,
    RemoteError,
)
from spa_dat.harness._eventually import Gate
from spa_dat.runtime.messaging._turn import Turn, current_turn
from spa_dat.transports import Delivery, Envelope
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual


# Order.


async def test_an_actor_handles_messages_one_at_a_time_and_in_order() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []
    inside = 0

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await asyncio.sleep(0.01 * (number % 3))
        seen.append(number)
        inside -= 1

    async with app:
        site.number("n", *range(50))
        await site.settled()
    assert seen == list(range(50))
    assert app.stats["messages.handled"] == 50


async def test_order_is_kept_while_a_message_is_retried() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[int, int]] = []

    @app.application("n", name="actor")
    async def handle(number: int, context: Context) -> None:
        seen.append((number, context.attempt))
        if number in (1, 3) and context.attempt < 3:
            raise ValueError(number)

    async with app:
        site.number("n", *range(5))
        await site.settled()
    assert seen == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3), (4, 1)]


async def test_one_actors_retries_hold_up_nobody_else() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    others: list[int] = []

    @app.application("n", name="actor")
    async def stuck(number: int) -> None:
        await gate.pass_()

    @app.application("n", name="other")
    async def handle(number: int) -> None:
        others.append(number)

    async with app:
        site.number("n", *range(300))
        await site.settled("app.0.other")
        assert others == list(range(300))
        assert site.unsettled() == 300
        gate.open()
        await site.settled()


async def test_a_slow_actor_drops_nothing_and_takes_no_more_than_its_window() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("n", name="actor", window=20, mailbox=5)
    async def handle(number: int) -> None:
        await gate.pass_()
        seen.append(number)

    async with app:
        site.number("n", *range(500))
        await gate.reached()
        (connection,) = site.broker.queues["app.0.actor"].members
        assert len(connection.in_flight) == 20
        gate.open()
        await site.settled()
    assert seen == list(range(500))
    assert app.stats["messages.dropped"] == 0


# What is acknowledged when.


async def test_a_message_is_acknowledged_only_after_its_handler() -> None:
    site = Site()
    app = site.app()
    gate = Gate()

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        await gate.pass_()

    async with app:
        site.number("n", 1)
        await gate.reached()
        assert site.unsettled() == 1
        gate.open()
        await site.settled()


async def test_handlers_with_a_full_mailbox_and_window_can_publish_and_request() -> None:
    site = Site()
    app = site.app()
    sums: list[int] = []

    @app.application("n", name="actor", window=3, mailbox=3)
    async def handle(number: int, socket: Socket) -> None:
        await socket.publish("out", number)
        sums.append(await socket.request("double", number, reply=int, timeout=5))

    @app.application("double", window=1, mailbox=1)
    async def double(number: int) -> int:
        return 2 * number

    out = site.watch("out")
    async with app:
        site.number("n", *range(50))
        await site.settled()
    assert sums == [2 * number for number in range(50)]
    assert out.payloads == [str(number) for number in range(50)]


async def test_an_actor_that_feeds_itself_does_not_wait_for_its_own_mailbox() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor", window=1, mailbox=1)
    async def handle(number: int, socket: Socket) -> None:
        seen.append(number)
        if number < 4:
            for child in (2 * number, 2 * number + 1):
                await socket.publish("n", child, timeout=5)

    async with app:
        site.number("n", 1)
        await eventually(lambda: len(seen) == 7)
        await site.settled()
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]


async def test_what_the_handler_awaited_being_cancelled_is_a_failure_of_the_handler() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            task = asyncio.ensure_future(asyncio.sleep(5))
            asyncio.get_running_loop().call_soon(task.cancel)
            await task

    async with app:
        site.number("n", 1)
        await site.settled()
    assert attempts == [1, 2]


async def test_a_deadline_counts_as_a_failed_attempt() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", deadline=2.0, retry=RetryPolicy(attempts=2))
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        await asyncio.Event().wait()

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert attempts == [1, 2]
    assert letter.headers["spa_dead_error"] == "TimeoutError"
    assert letter.headers["spa_dead_attempts"] == "2"


# What does not fit.


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (b"no number", None),
        (b'"3"', "application/json"),
        (b"\xff\xfe", None),
        (b"[" * 100_000, "application/json"),
        (b"", None),
    ],
    ids=["text", "string", "no utf-8", "deep", "empty"],
)
async def test_what_can_not_be_decoded_is_parked_at_once_and_the_rest_goes_on(
    payload: bytes, content_type: str | None
) -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        seen.append(number)

    async with app:
        start = asyncio.get_running_loop().time()
        site.number("n", 0)
        site.publish("n", payload, content_type=content_type, id="bad")
        site.number("n", 1)
        await site.settled()
        assert asyncio.get_running_loop().time() - start < 0.05
    assert seen == [0, 1]
    (letter,) = site.letters()
    assert letter.headers["spa_dead_error"] == "DecodeError"
    assert letter.headers["spa_dead_id"] == "bad"
    assert app.stats["messages.undecodable"] == 1
    assert app.stats["messages.failed"] == 0
    if payload:
        assert letter.payload == payload


async def test_a_capture_that_does_not_fit_is_parked_at_once() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("machine/{number}/state", name="actor")
    async def handle(payload: bytes, number: int) -> None:
        seen.append(number)

    async with app:
        site.publish("machine/x/state")
        site.publish("machine/7/state")
        await site.settled()
    assert seen == [7]
    (letter,) = site.letters()
    assert letter.headers["spa_dead_topic"] == "machine/x/state"


async def test_an_oversized_message_is_parked_as_its_size_and_digest() -> None:
    site = Site(max_payload=2000)
    app = site.app()
    seen: list[bytes] = []

    @app.application("n", name="actor")
    async def handle(payload: bytes) -> None:
        seen.append(payload)

    async with app:
        site.publish("n", b"x" * 2001, headers={"origin": "somewhere"})
        site.publish("n", b"y" * 2000)
        await site.settled()
    assert seen == [b"y" * 2000]
    (letter,) = site.letters()
    assert len(letter.payload) < 100
    assert letter.headers["spa_dead_size"] == "2001"
    assert len(letter.headers["spa_dead_sha256"]) == 64
    assert letter.headers["origin"] == "somewhere"


# What handlers send.


async def test_posts_are_confirmed_before_their_message_is_settled() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        for _ in range(3):
            socket.post("out", number)

    async with app:
        site.faults.drop_confirmations(3)
        site.number("n", 1)
        await eventually(lambda: app.stats["messages.handled"] == 1)
        await asyncio.sleep(5)
        assert site.unsettled() == 1
        site.cut("app.0")
        await site.settled()


async def test_the_actor_goes_on_while_posts_are_being_confirmed() -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        seen.append(number)
        socket.post("out", number)

    async with app:
        site.faults.drop_confirmations(1)
        site.number("n", *range(5))
        await eventually(lambda: len(seen) == 5)
        assert site.unsettled() == 5
        site.cut("app.0")
        await site.settled()


async def test_of_the_posts_of_one_message_the_confirmed_ones_are_not_kept() -> None:
    site = Site()
    app = site.app()
    kept: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        for place in range(10_000):
            if place % 100 == 0:
                await asyncio.sleep(0.01)
            socket.post("out", place)
        turn = current_turn.get()
        assert turn is not None
        kept.append(len(turn.posts))

    async with app:
        watcher = site.watch("out")
        site.number("n", 1)
        await watcher.get(10_000)
        await site.settled()
    assert kept[0] <= 1_000


async def test_posts_that_are_not_confirmed_yet_are_kept_however_many() -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        for place in range(3_000):
            socket.post("out", place)
        handled.append(number)

    async with app:
        site.faults.disconnect("app.0")
        site.faults.refuse_connections()
        site.number("n", 1)
        await eventually(lambda: handled == [1])
        await asyncio.sleep(1)
        assert site.unsettled() == 1
        site.faults.allow()
        await site.settled()


async def test_what_is_put_off_is_not_dropped_when_the_mailbox_overflows() -> None:
    site = Site()
    app = site.app()
    done: list[int | str] = []

    @app.application("n", name="actor", overflow=Overflow.DROP_OLDEST, mailbox=2)
    async def handle(number: int, context: Context) -> None:
        if number == 0:
            context.later(1, done.append, "put off")
            await asyncio.sleep(3)
        done.append(number)

    async with app:
        site.number("n", 0)
        await asyncio.sleep(2)
        site.number("n", *range(1, 10))
        await site.settled()
    assert done == [0, "put off", 9]


async def test_headers_are_each_attempts_and_each_actors_own() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[str, dict[str, str]]] = []

    @app.application("n", subscription="both", retry=RetryPolicy(attempts=2))
    async def spoils(message: Message[int]) -> None:
        seen.append(("spoils", dict(message.headers)))
        assert isinstance(message.headers, dict)
        message.headers.clear()
        raise ValueError

    @app.application("n", subscription="both")
    async def other(message: Message[int]) -> None:
        await asyncio.sleep(10)
        seen.append(("other", dict(message.headers)))

    async with app:
        site.number("n", 1, headers={"a": "b"})
        (letter,) = await site.parked()
        await site.settled("app.0.both")
    assert seen == [("spoils", {"a": "b"}), ("spoils", {"a": "b"}), ("other", {"a": "b"})]
    assert letter.headers["a"] == "b"


async def test_a_message_whose_post_is_refused_becomes_a_dead_letter() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        socket.post("fine", number)
        socket.post("refused", number)

    async with app:
        site.faults.refuse_publish("refused")
        site.number("n", 1)
        (letter,) = await site.parked()
        await site.settled()
    assert letter.headers["spa_dead_error"] == "PublishRefused"
    assert letter.headers["spa_dead_attempts"] == "1"
    assert letter.payload == b"1"


async def test_a_refused_post_of_a_failed_attempt_is_reported_and_hurts_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket, context: Context) -> None:
        socket.post("refused" if context.attempt == 1 else "fine", number)
        if context.attempt == 1:
            raise ValueError

    async with app:
        site.faults.refuse_publish("refused")
        site.number("n", 1)
        await site.settled()
    assert site.letters() == []
    assert "a posted message was lost" in caplog.text


async def test_a_refused_publish_is_an_error_of_the_handler() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        await socket.publish("refused", number)

    async with app:
        site.faults.refuse_publish("refused")
        site.number("n", 1)
        await site.parked()
    assert attempts == [1, 2]


async def test_an_outbox_that_is_full_while_there_is_a_connection_costs_an_attempt() -> None:
    site = Site(outbox=5)
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        for _ in range(6):
            socket.post("out", number)

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert attempts == [1, 2]
    assert letter.headers["spa_dead_error"] == "OutboxFull"


async def test_an_outbox_that_is_full_in_an_outage_costs_no_attempt() -> None:
    site = Site(outbox=5)
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            site.faults.refuse_connections()
            site.cut("app.0")
        elif len(attempts) == 4:
            site.faults.allow()
            await eventually(lambda: "app.0" in site.broker.links, 60.0)
            return
        for _ in range(6):
            socket.post("out", number)

    async with app:
        site.number("n", 1)
        await site.settled()
    assert attempts == [1] * 4
    assert app.stats["messages.failed"] == 0


@pytest.mark.parametrize("batch", [None, (10, 0.01)])
async def test_the_longer_an_outage_lasts_the_less_often_a_handler_is_called(
    batch: tuple[int, float] | None,
) -> None:
    site = Site()
    app = site.app()
    times: list[float] = []

    # The same message fails each time, as on a full disk.
    async def handle(payload: Any) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 12:
            full = OutboxFull("there is no room on the disk")
            full.outage = True
            raise full

    handle.__annotations__["payload"] = int if batch is None else list[int]
    app.application("n", name="actor", batch=batch)(handle)
    async with app:
        site.number("n", 1)
        await eventually(lambda: len(times) == 12, 120.0)
        await site.settled()
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    doubling = [0.1 * 2**times for times in range(7)]
    assert pauses == pytest.approx([*doubling, 10.0, 10.0, 10.0, 10.0], abs=0.05)
    assert app.stats["messages.failed"] == 0


async def in_an_outage(socket: Socket, site: Site) -> None:
    site.faults.refuse_connections()
    site.cut("app.0")
    await asyncio.sleep(0)


async def fails_in_a_group(socket: Socket, site: Site) -> None:
    await in_an_outage(socket, site)
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(socket.publish("out", number, timeout=1))


async def fails_in_a_group_of_groups(socket: Socket, site: Site) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails_in_a_group(socket, site))


async def fails_in_groups_that_nest_deeply_and_have_it_twice(socket: Socket, site: Site) -> None:
    error: Exception = ConnectionLost("the connection was lost")
    for _ in range(2_000):
        error = ExceptionGroup("both", [error, error])
    raise error


async def misses_its_deadline(socket: Socket, site: Site) -> None:
    await in_an_outage(socket, site)
    await socket.publish("out", timeout=60)


async def asks_while_the_connection_is_away_for_a_moment(socket: Socket, site: Site) -> None:
    asyncio.get_running_loop().call_later(1.0, site.cut, "app.0")
    await socket.request("asked", timeout=3)


async def asks_a_silent_broker(socket: Socket, site: Site) -> None:
    site.faults.drop_confirmations()
    await socket.request("asked", timeout=5)


@pytest.mark.parametrize(
    "fail",
    [
        fails_in_a_group,
        fails_in_a_group_of_groups,
        fails_in_groups_that_nest_deeply_and_have_it_twice,
        misses_its_deadline,
        asks_while_the_connection_is_away_for_a_moment,
        asks_a_silent_broker,
    ],
)
async def test_failing_over_an_outage_in_any_way_costs_no_attempt(
    fail: Callable[[Socket, Site], Awaitable[None]],
) -> None:
    site = Site()
    site.watch("asked")
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=1), deadline=10)
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            await fail(socket, site)

    async with app:
        site.number("n", 1)
        await eventually(lambda: len(attempts) == 2, 60.0)
        site.faults.allow()
        await site.settled()
    assert attempts == [1, 1]
    assert app.stats["messages.failed"] == 0


async def fails_by_itself_in_a_group(socket: Socket, site: Site) -> None:
    async def fail() -> None:
        await socket.publish("out", timeout=1)
        raise ValueError

    async with asyncio.TaskGroup() as group:
        group.create_task(fails_in_a_group(socket, site))
        group.create_task(fail())


async def asks_who_does_not_answer(socket: Socket, site: Site) -> None:
    await socket.request("asked", timeout=8)


@pytest.mark.parametrize("fail", [fails_by_itself_in_a_group, asks_who_does_not_answer])
async def test_failing_for_another_reason_as_well_costs_an_attempt(
    fail: Callable[[Socket, Site], Awaitable[None]],
) -> None:
    site = Site()
    site.watch("asked")
    app = site.app()

    @app.application("n", name="actor", retry=RetryPolicy(attempts=1))
    async def handle(number: int, socket: Socket) -> None:
        asyncio.get_running_loop().call_later(5.0, site.faults.allow)
        await fail(socket, site)

    async with app:
        site.number("n", 1)
        await site.parked()


async def test_posts_wait_for_room() -> None:
    site = Site(outbox=5)
    app = site.app()
    out = site.watch("out")

    @app.application("n", name="actor", retry=RetryPolicy(attempts=1))
    async def handle(number: int, socket: Socket) -> None:
        for index in range(100):
            await socket.drain()
            socket.post("out", index)

    async with app:
        site.number("n", 1)
        await site.settled()
    assert out.payloads == [str(index) for index in range(100)]
    assert site.letters() == []


@pytest.mark.parametrize("timeout", [0, 0.001])
async def test_a_timeout_that_is_always_too_short_costs_attempts(timeout: float) -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        site.faults.drop_confirmations(1)
        await socket.publish("out", number, timeout=timeout)

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert attempts == [1, 2]
    assert letter.headers["spa_dead_error"] in ("PublishUnknown", "PublishNotSent")


async def test_a_publish_without_confirmation_costs_no_attempt_where_the_broker_is_silent() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, socket: Socket, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) < 4:
            site.faults.drop_confirmations(1)
        await socket.publish("out", number, timeout=10)

    async with app:
        site.number("n", 1)
        await site.settled()
    assert attempts == [1] * 4


# Sockets that are used where they do not belong.


async def test_a_socket_of_an_ended_application_is_refused_at_once() -> None:
    site = Site()
    app = site.app()
    other = site.app("other")
    async with other:
        held = other.socket()
        held_sync = other.sync_socket()
    for call in (
        held.publish("out", 1),
        held.request("out", 1),
        held.request_many("out", 1),
        held.drain(),
    ):
        with pytest.raises(ActorStopped, match="'other' has ended"):
            await call
    with pytest.raises(ActorStopped, match="'other' has ended"):
        held.post("out", 1)
    with pytest.raises(ActorStopped, match="'other' has ended"):
        await asyncio.to_thread(held_sync.publish, "out", 1)
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        await held.publish("out", number)

    async with app:
        site.number("n", 1)
        (letter,) = await site.parked()
    assert attempts == [1, 2]
    assert letter.headers["spa_dead_error"] == "ActorStopped"


async def test_a_socket_of_another_application_is_refused_in_a_handler() -> None:
    site = Site()
    app = site.app()
    other = site.app("other")
    refusals: list[str] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        for call in (other.socket().publish("out", 1), other.socket().request("out", 1)):
            with pytest.raises(ConfigurationError) as caught:
                await call
            refusals.append(str(caught.value))
        with pytest.raises(ConfigurationError, match="another application, 'other'"):
            other.socket().post("out", 1)

    async with app, other:
        await other.socket().publish("n", 1)
        await site.settled()
    assert len(refusals) == 2
    assert all("'app/0/actor'" in text and "'other'" in text for text in refusals)
    assert site.letters() == []


# Ids.


async def test_ids_of_what_is_published_repeat_at_each_attempt_and_differ_otherwise() -> None:
    site = Site()
    app = site.app()
    out = site.watch("out/#")

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket, context: Context) -> None:
        await socket.publish("out/a", number)
        socket.post("out/a", number)
        await socket.publish("out/b", number)
        if context.attempt < 3:
            raise ValueError

    async with app:
        site.number("n", 1, 2)
        await site.settled()
        await out.get(2 * 9)
    ids = [envelope.id for envelope in out.envelopes]
    assert ids[:3] == ids[3:6] == ids[6:9]
    assert ids[9:12] == ids[12:15] == ids[15:18]
    assert len(set(ids)) == 6
    assert all(id_ is not None and uuid.UUID(id_).version == 5 for id_ in ids)


async def test_ids_are_random_for_messages_without_an_id() -> None:
    site = Site()
    app = site.app()
    out = site.watch("out")

    @app.application("n", name="actor")
    async def handle(payload: bytes, socket: Socket) -> None:
        await socket.publish("out", payload)

    async with app:
        site.publish("n", "1")
        site.publish("n", "1")
        await out.get(2)
    first, second = out.envelopes
    assert first.id != second.id
    assert uuid.UUID(first.id).version == 8


async def test_ids_differ_between_actors_and_instances() -> None:
    site = Site()
    apps = [site.app(), site.app(instance="1")]
    out = site.watch("out")

    for app in apps:
        for name in ("one", "two"):

            @app.application("n", name=name, deliver="all")
            async def handle(payload: bytes, socket: Socket) -> None:
                await socket.publish("out", payload)

    async with apps[0], apps[1]:
        site.number("n", 1)
        await out.get(4)
    assert len({envelope.id for envelope in out.envelopes}) == 4
    assert {envelope.source for envelope in out.envelopes} == {
        f"app/{instance}/{name}" for instance in (0, 1) for name in ("one", "two")
    }


def test_ids_for_messages_without_an_id_are_made_of_their_place_and_time() -> None:
    def made(time: float, actor: str = "app/0/a", *, shared: bool = False) -> str | None:
        envelope = Envelope(topic="t", partition=0, offset=5, time=time)
        return Turn(Delivery(envelope), actor, shared=shared).publish_id("out")

    assert made(1.0) == made(1.0)
    # The topic was made anew.
    assert made(1.0) != made(2.0)
    assert made(1.0) != made(1.0, "app/1/a")
    assert made(1.0, shared=True) == made(1.0, "app/1/a", shared=True)
    assert made(1.0, shared=True) != made(1.0, "app/1/b", shared=True)


def test_messages_of_several_senders_or_topics_with_one_id_share_no_other_ids() -> None:
    messages = [
        Envelope(topic=topic, source=source, id="1")
        for topic in ("t", "u")
        for source in ("a", "b", None)
    ]
    # One cannot be made to look like another.
    messages.append(Envelope(topic="t", source="a\0u", id="1"))
    made = [Turn(Delivery(message), "app/0/a").publish_id("out") for message in messages]
    assert len(set(made)) == len(messages)
    assert made == [Turn(Delivery(message), "app/0/a").publish_id("out") for message in messages]


async def test_tasks_that_a_handler_leaves_behind_spoil_neither_ids_nor_settlement() -> None:
    site = Site()
    app = site.app()
    out = site.watch("out/#")
    tasks: list[asyncio.Task[None]] = []
    gate = Gate()

    async def later(socket: Socket, number: int) -> None:
        await gate.pass_()
        socket.post("out/late", number)
        await socket.publish("out/late", number)

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        if number == 1:
            tasks.append(asyncio.ensure_future(later(socket, number)))
        else:
            gate.open()
            await tasks[0]
        await socket.publish("out/now", number)

    async with app:
        site.number("n", 1)
        await site.settled()
        site.number("n", 2)
        await site.settled()
        await out.get(4)
    by_topic: dict[str, list[Envelope]] = {}
    for envelope in out.envelopes:
        by_topic.setdefault(envelope.topic, []).append(envelope)
    assert [uuid.UUID(e.id).version for e in by_topic["out/now"]] == [5, 5]
    assert [uuid.UUID(e.id).version for e in by_topic["out/late"]] == [8, 8]


async def test_a_post_that_a_task_left_behind_makes_and_that_is_refused_is_only_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    tasks: list[asyncio.Task[None]] = []

    async def later(socket: Socket) -> None:
        await gate.pass_()
        socket.post("refused")

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        tasks.append(asyncio.ensure_future(later(socket)))

    async with app:
        site.faults.refuse_publish("refused")
        site.number("n", 1)
        await site.settled()
        gate.open()
        await eventually(lambda: "a posted message was lost" in caplog.text)
    assert site.letters() == []


# What a handler is told.


async def test_a_message_says_what_the_wire_said() -> None:
    site = Site()
    app = site.app()
    got: list[Message[int]] = []

    @app.application("n/#", name="actor")
    async def handle(message: Message[int]) -> None:
        got.append(message)

    async with app:
        site.publish(
            "n/1",
            "1",
            id="x",
            key="k",
            headers={"a": "b"},
            time=5.0,
            source="s",
            response_topic="back",
        )
        await site.settled()
    (message,) = got
    assert (message.payload, message.topic, message.id, message.key) == (1, "n/1", "x", "k")
    assert (message.headers, message.time, message.source) == ({"a": "b"}, 5.0, "s")
    assert (message.attempt, message.redelivered, message.retained) == (1, False, False)
    assert message.response_topic == "back"


async def test_one_actor_with_several_handlers_has_one_order() -> None:
    site = Site()
    app = site.app()
    seen: list[str] = []

    class Boiler(Actor):
        @on("a/+")
        async def one(self, message: Message[bytes]) -> None:
            await asyncio.sleep(0.1)
            seen.append(message.topic)

        @on("b/{x}")
        async def two(self, x: str) -> None:
            seen.append(f"b/{x}")

    app.add(Boiler)
    async with app:
        for topic in ("a/1", "b/2", "a/3", "b/4"):
            site.publish(topic)
        await site.settled("app.0.Boiler")
    assert seen == ["a/1", "b/2", "a/3", "b/4"]


@pytest.mark.parametrize(
    ("topic", "options", "named"),
    [
        ("_spa/x", {}, "_spa"),
        ("a/+", {}, "'+'"),
        ("$SYS/x", {}, "'$'"),
        ("", {}, "empty"),
        (["a"], {}, "list"),
        (None, {}, "NoneType"),
        ("a", {"headers": {"spa_reply": "1"}}, "spa_reply"),
        ("a", {"headers": {"id": "1"}}, "'id'"),
        ("a", {"headers": {"x": 1}}, "must be str"),
        ("a", {"headers": {"x": "a\0b"}}, "null character"),
        ("a", {"headers": {"x": "\ud800"}}, "surrogate"),
        ("a", {"qos": 2}, "qos=2"),
        ("a", {"expiry": 0}, "expiry=0"),
        ("a", {"expiry": float("nan")}, "expiry=nan"),
        ("a", {"key": 5}, "key=5"),
        ("a", {"content_type": b"x"}, "content_type"),
    ],
)
async def test_what_can_not_be_published_is_refused_with_what_is_wrong(
    topic: Any, options: dict[str, Any], named: str
) -> None:
    site = Site()
    app = site.app()
    errors: list[Exception] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        for send in (socket.publish, socket.post):
            try:
                result = send(topic, 1, **options)
                if result is not None:
                    await result
            except Exception as error:
                errors.append(error)

    async with app:
        site.number("n", 1)
        await site.settled()
    assert [type(error).__name__ for error in errors] == ["ConfigurationError"] * 2
    assert all(named in str(error) for error in errors), errors


# What the log says.


async def test_a_logged_traceback_begins_in_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor", retry=RetryPolicy(attempts=1))
    async def handle(number: int) -> None:
        raise KeyError(number)

    async with app:
        site.number("n", 1)
        await site.settled()
    assert "in handle" in caplog.text
    assert "runtime/handling/_delivery_processor.py" not in caplog.text


async def test_a_reply_that_can_not_be_written_is_logged_without_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int) -> object:
        return object()

    async with app:
        site.publish("n", "1", response_topic="answers", correlation=b"1")
        await site.settled()
    assert "EncodeError: a payload of type object" in caplog.text
    assert "Traceback" not in caplog.text


# Log lines.


async def test_lines_about_a_failure_begin_with_the_actor(caplog: pytest.LogCaptureFixture) -> None:
    app = Site().app()

    @app.application("n", name="tracker", retry=RetryPolicy(attempts=1))
    async def track(payload: int) -> None:
        raise ValueError(payload)

    @app.application("n", name="archive")
    async def archive(payload: list[int]) -> None: ...

    @app.application("n", name="fence", batch=(2, 0.1), retry=RetryPolicy(attempts=1))
    async def fence(numbers: list[int]) -> None:
        raise ValueError(numbers)

    async with app:
        await app.socket().publish("n", 1)
        await eventually(lambda: app.stats["dead_letters.stored"] == 3)
    lines = [r.getMessage() for r in caplog.records if r.name == "spa_dat.actor"]
    assert {line.partition(":")[0] for line in lines} == {
        "actor 'tracker'",
        "actor 'archive'",
        "actor 'fence'",
    }


async def test_an_error_of_somebody_it_asked_is_logged_as_any_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Site().app()

    @app.application("price/of")
    async def price(item: str) -> float:
        raise RemoteError("unknown-item", item)

    @app.application("orders", retry=RetryPolicy(attempts=2))
    async def order(item: str, socket: Socket) -> None:
        await socket.request("price/of", item, reply=float, timeout=1)

    async with app:
        await app.socket().publish("orders", "bolt")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
    levels = [
        (r.levelname, r.getMessage().partition(":")[0])
        for r in caplog.records
        if r.name == "spa_dat.actor" and r.levelname != "INFO"
    ]
    assert levels == [("WARNING", "actor 'order'"), ("ERROR", "actor 'order'")]
