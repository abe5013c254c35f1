"""Requests and replies, on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest

from spa_dat import (
    Context,
    DistributedApplication,
    Message,
    MessageBuilder,
    Reject,
    RetryPolicy,
    Socket,
    SyncSocket,
)
from spa_dat.errors import (
    ConfigurationError,
    ConnectionLost,
    DecodeError,
    MessageTooLarge,
    NoResponder,
    PublishRefused,
    RemoteError,
    RequestTimeout,
)
from spa_dat.harness._eventually import Gate
from spa_dat.transports import Envelope
from support.memory import Site, Watcher
from support.simulated import SERVER, world
from support.waiting import eventually

pytestmark = pytest.mark.virtual


def clock() -> float:
    return asyncio.get_running_loop().time()


async def with_socket(
    app: DistributedApplication, use: Callable[[Socket], Awaitable[Any]]
) -> list[Any]:
    """Run the application until the function has ended; what it returned or raised."""
    outcome: list[Any] = []

    @app.producer(name="asker")
    async def ask(socket: Socket) -> None:
        try:
            outcome.append(await use(socket))
        except Exception as error:
            outcome.append(error)

    async with app:
        await eventually(lambda: outcome, 120.0)
    return outcome


# The ways to answer.


async def test_what_a_responder_returns_is_the_reply() -> None:
    app = Site().app()

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    assert await with_socket(app, lambda s: s.request("double", 21, reply=int)) == [42]
    assert app.stats["messages.handled"] == 1


@pytest.mark.parametrize("reply", [Annotated[int, {"unit": "m"}], [], {}, ["a"]], ids=str)
async def test_a_type_of_a_reply_need_not_have_a_hash(reply: Any) -> None:
    app = Site().app()

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    (outcome,) = await with_socket(app, lambda socket: socket.request("double", 4, reply=reply))
    if isinstance(reply, list | dict):
        assert isinstance(outcome, ConfigurationError)
    else:
        assert outcome == 8


@pytest.mark.parametrize("timeout", [10**400, 10**5_000], ids=["digits", "more digits"])
async def test_a_timeout_larger_than_any_time_is_refused(timeout: int) -> None:
    app = Site().app()

    async def ask(socket: Socket) -> None:
        with pytest.raises(ConfigurationError, match="give seconds"):
            await socket.publish("a", timeout=timeout)
        with pytest.raises(ConfigurationError, match="give seconds"):
            await socket.request("a", timeout=timeout)

    assert await with_socket(app, ask) == [None]


@pytest.mark.parametrize("way", ["reply", "publish"])
async def test_a_handler_that_answers_although_it_is_no_responder_is_told_how_to_be_one(
    way: str,
) -> None:
    app = Site().app()
    errors: list[ConfigurationError] = []

    @app.application("double")
    async def double(message: Message[int], socket: Socket) -> None:
        try:
            if way == "reply":
                await message.reply(2)
            else:
                await socket.publish(str(message.response_topic), 2)
        except ConfigurationError as error:
            errors.append(error)

    await with_socket(app, lambda socket: socket.request("double", 1, timeout=1))
    assert "replies=True" in str(errors[0])


async def test_a_message_is_answered_with_reply() -> None:
    app = Site().app()

    @app.application("double", replies=True)
    async def double(message: Message[int]) -> None:
        await message.reply(2 * message.payload, headers={"by": "me"})

    (reply,) = await with_socket(app, lambda s: s.request("double", 21, reply=Message[int]))
    assert reply.payload == 42
    assert reply.headers["by"] == "me"
    assert app.stats["replies.dropped"] == 0


async def test_a_reply_can_be_built_and_published() -> None:
    app = Site().app()

    @app.application("double")
    async def double(
        message: Message[int], socket: Socket, message_builder: MessageBuilder
    ) -> None:
        await socket.publish(
            message_builder(topic=message.response_topic, payload=2 * message.payload)
        )

    assert await with_socket(app, lambda s: s.request("double", 21, reply=int)) == [42]


async def test_a_thread_answers_too() -> None:
    app = Site().app()

    @app.application("double")
    def double(number: int, socket: SyncSocket) -> int:
        return socket.request("add", [number, number], reply=int, timeout=5)

    @app.application("add")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    assert await with_socket(app, lambda s: s.request("double", 21, reply=int)) == [42]


async def test_none_is_a_reply_where_replies_are_asked_for() -> None:
    app = Site().app()
    handled: list[bytes] = []

    @app.application("note", replies=True)
    async def note(payload: bytes) -> None:
        handled.append(payload)

    assert await with_socket(app, lambda s: s.request("note", b"x", reply=type(None))) == [None]
    assert handled == [b"x"]


async def test_only_responders_answer_be_it_with_values_or_errors() -> None:
    site = Site()
    app = site.app()

    @app.application("note", name="actor", retry=RetryPolicy(attempts=1))
    async def note(text: str) -> None:
        if text == "bad":
            raise ValueError

    back = site.watch("back")
    async with app:
        site.publish("note", "good", response_topic="back")
        site.publish("note", "bad", response_topic="back")
        await site.settled()
        await asyncio.sleep(1)
    assert back.envelopes == []
    assert len(site.letters()) == 1


async def test_a_request_can_be_answered_while_another_message_is_handled() -> None:
    app = Site().app()
    waiting: list[Message[str]] = []

    @app.application("question", name="oracle", subscription="oracle")
    async def question(message: Message[str], message_builder: MessageBuilder) -> None:
        waiting.append(message)
        while len(waiting) > 1:
            first = waiting.pop(0)
            await first.reply(f"{first.payload} before {message.payload}")

    async def ask(socket: Socket) -> str:
        first = asyncio.ensure_future(socket.request("question", "one", reply=str, timeout=5))
        await asyncio.sleep(1)
        second = asyncio.ensure_future(socket.request("question", "two", reply=str, timeout=5))
        answer = await first
        second.cancel()
        return answer

    assert await with_socket(app, ask) == ["one before two"]


async def test_a_handler_that_has_replied_does_not_reply_twice() -> None:
    site = Site()
    app = site.app()
    back = site.watch("back")

    @app.application("q", name="actor", replies=True)
    async def handle(message: Message[str]) -> str | None:
        await message.reply("first")
        return "second"

    async with app:
        site.publish("q", response_topic="back", correlation=b"c")
        await site.settled()
    (reply,) = back.envelopes
    assert (reply.payload, reply.correlation) == (b"first", b"c")


async def test_a_message_that_is_no_request_has_no_reply() -> None:
    site = Site()
    app = site.app()
    errors: list[Exception] = []

    @app.application("q", name="actor", replies=True)
    async def handle(message: Message[str]) -> None:
        try:
            await message.reply("x")
        except ConfigurationError as error:
            errors.append(error)

    async with app:
        site.publish("q")
        await site.settled()
    assert "not a request" in str(errors[0])


async def test_a_reply_carries_correlation_source_and_expiry() -> None:
    site = Site()
    app = site.app()
    back = site.watch("back")

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        return number

    async with app:
        site.publish("q", "1", response_topic="back", correlation=b"\x00\xff", expiry=5.0)
        await site.settled()
    (reply,) = back.envelopes
    assert reply.correlation == b"\x00\xff"
    assert reply.source == "app/0/actor"
    assert reply.content_type == "application/json"
    assert reply.expiry is not None
    assert reply.headers["spa_reply"] == "1"
    assert reply.response_topic is None


# Errors.


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("so not"), "failed", "ValueError: so not"),
        (RemoteError("too-hot", "90 is the limit"), "too-hot", "90 is the limit"),
        (Reject("out of range"), "rejected", "out of range"),
        (RemoteError("c" * 500, "t" * 5000), "c" * 100, "t" * 1000),
        (RemoteError("a\0b", "half \ud800"), "a\\0b", "half ?"),
        (RemoteError(7, 8), "7", "8"),  # type: ignore[arg-type]
    ],
)
async def test_an_error_of_the_responder_is_the_answer(
    error: Exception, code: str, text: str
) -> None:
    site = Site()
    app = site.app()
    calls: list[int] = []

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        calls.append(number)
        raise error

    (got,) = await with_socket(app, lambda s: s.request("q", 1))
    assert isinstance(got, RemoteError)
    assert (got.code, got.text) == (code, text)
    assert calls == [1]
    assert site.letters() == []
    assert app.stats["requests.failed"] == 1
    assert "Traceback" not in got.text


async def test_an_error_whose_text_can_not_be_had_is_answered_too() -> None:
    app = Site().app()

    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        raise Broken

    (got,) = await with_socket(app, lambda s: s.request("q", 1))
    assert isinstance(got, RemoteError)
    assert got.code == "failed"
    assert "Broken" in got.text


async def test_a_request_that_does_not_fit_is_answered_bad_request() -> None:
    site = Site(max_payload=5000)
    app = site.app()

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        return number

    (got,) = await with_socket(app, lambda s: s.request("q", "no number"))
    assert isinstance(got, RemoteError)
    assert got.code == "bad-request"
    assert "no number" not in got.text
    assert site.letters() == []
    back = site.watch("back")
    async with app:
        site.publish("q", b"1" * 5001, response_topic="back")
        await site.settled()
    assert back.envelopes[0].headers["spa_error"] == "bad-request"


@pytest.mark.parametrize("value", [float("nan"), object(), {"a": {1, object()}}])
async def test_a_reply_that_can_not_be_written_is_an_error_of_the_responder(value: object) -> None:
    app = Site().app()

    @app.application("q", name="actor")
    async def handle(number: int) -> Any:
        return value

    (got,) = await with_socket(app, lambda s: s.request("q", 1))
    assert isinstance(got, RemoteError)
    assert (got.code, got.text.split(":")[0]) == ("failed", "EncodeError")


@pytest.mark.parametrize("way", ["return", "reply"])
async def test_a_reply_that_is_too_large_is_an_error_of_the_responder(way: str) -> None:
    site = Site(max_payload=1000)
    app = site.app()

    @app.application("q", name="actor", replies=True)
    async def handle(message: Message[bytes]) -> bytes:
        if way == "reply":
            await message.reply(b"x" * 1001)
        return b"x" * 1001

    (got,) = await with_socket(app, lambda s: s.request("q"))
    assert isinstance(got, RemoteError)
    assert (got.code, got.text.split(":")[0]) == ("failed", MessageTooLarge.__name__)


@pytest.mark.virtual
@pytest.mark.parametrize("way", ["return", "reply"])
async def test_a_reply_that_is_too_large_for_its_topic_is_answered_with_that_error(
    way: str,
) -> None:
    with world() as here:
        here.cluster.create_topic("_spa.reply.plant", max_batch=2000)
        app = DistributedApplication(f"kafka://{SERVER}?create_topics=all", name="plant")
        calls: list[int] = []

        @app.application("q", name="actor", replies=True)
        async def handle(message: Message[bytes]) -> bytes:
            calls.append(1)
            if way == "reply":
                await message.reply(random.Random(1).randbytes(9000))
            return random.Random(1).randbytes(9000)

        async with app:
            with pytest.raises(RemoteError, match="MessageTooLarge") as raised:
                await app.socket().request("q", b"", reply=bytes, timeout=20)
            assert raised.value.code == "failed"
            assert "max.message.bytes" in raised.value.text
        assert calls == [1]
        assert app.stats["requests.failed"] == 1


async def test_an_error_that_is_too_large_is_cut() -> None:
    site = Site(max_payload=20)
    app = site.app()

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        raise ValueError("ü" * 100)

    (got,) = await with_socket(app, lambda s: s.request("q", 1, timeout=5))
    assert isinstance(got, RemoteError)
    assert got.text.startswith("ValueError: üü")


async def test_a_refused_reply_is_final() -> None:
    site = Site()
    app = site.app()
    calls: list[str] = []

    @app.application("q", name="actor", replies=True)
    async def handle(message: Message[str]) -> str:
        calls.append(message.payload)
        if message.payload == "by hand":
            await message.reply("x")
        return "x"

    async with app:
        site.faults.refuse_publish("back", PublishRefused("no"))
        site.publish("q", "returned", response_topic="back")
        site.publish("q", "by hand", response_topic="back")
        await site.settled()
    assert calls == ["returned", "by hand"]
    assert site.letters() == []
    assert app.stats["replies.refused"] >= 1


async def test_the_reply_is_confirmed_before_the_request_is_acknowledged() -> None:
    site = Site()
    app = site.app()

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        return number

    async with app:
        site.faults.drop_confirmations(1)
        site.publish("q", "1", response_topic="back")
        await eventually(lambda: app.stats["messages.handled"] == 1)
        await asyncio.sleep(5)
        assert site.unsettled() == 1
        site.cut("app.0")
        await site.settled()


# Retrying.


async def test_requests_are_retried_where_asked_for() -> None:
    app = Site().app()
    attempts: list[int] = []

    @app.application("q", name="actor", retry_requests=True)
    async def handle(number: int, context: Context) -> int:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise ValueError
        return number

    assert await with_socket(app, lambda s: s.request("q", 1, reply=int)) == [1]
    assert attempts == [1, 2, 3]


async def test_retries_of_a_request_end_with_its_expiry() -> None:
    app = Site().app()
    times: list[float] = []

    @app.application("q", name="actor", retry_requests=True, retry=RetryPolicy(jitter=0))
    async def handle(number: int) -> int:
        times.append(clock())
        raise ValueError("always")

    start = clock()
    (got,) = await with_socket(app, lambda s: s.request("q", 1, timeout=1.0))
    assert isinstance(got, RemoteError)
    assert [round(time - start, 1) for time in times] == [0.0, 0.1, 0.5]


async def test_an_answered_request_is_not_retried() -> None:
    app = Site().app()
    attempts: list[int] = []

    @app.application("q", name="actor", replies=True, retry_requests=True)
    async def handle(message: Message[int], context: Context) -> None:
        attempts.append(context.attempt)
        await message.reply(1)
        raise ValueError

    assert await with_socket(app, lambda s: s.request("q", 1, reply=int)) == [1]
    assert attempts == [1]


async def test_a_request_is_not_retried_for_ever_while_something_is_away() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("q", name="actor")
    async def handle(number: int, context: Context) -> int:
        attempts.append(context.attempt)
        raise ConnectionLost("of something else")

    async with app:
        site.publish("q", "1", response_topic="back", expiry=1.0)
        await site.settled()
    assert 2 < len(attempts) < 20
    assert app.stats["requests.expired"] == 1


async def test_an_expired_request_is_settled_unrun() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[int] = []

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        seen.append(number)
        await gate.pass_()
        return number

    back = site.watch("back")
    async with app:
        for number in range(3):
            site.publish("q", str(number), response_topic="back", expiry=[9.0, 1.0, 9.0][number])
        await gate.reached()
        await asyncio.sleep(2)
        gate.open()
        await site.settled()
    assert seen == [0, 2]
    assert back.payloads == ["0", "2"]
    assert app.stats["requests.expired"] == 1


# The one who asks.


async def test_a_request_that_nobody_listens_for_fails_at_once() -> None:
    app = Site().app()
    start = clock()
    (error,) = await with_socket(app, lambda s: s.request("nowhere", 1))
    assert isinstance(error, NoResponder)
    assert "nowhere" in str(error)
    assert clock() - start < 1


async def test_a_request_without_a_reply_times_out_and_leaves_nothing() -> None:
    site = Site()
    site.watch("silence")
    app = site.app()
    start = clock()
    (error,) = await with_socket(app, lambda s: s.request("silence", 1, timeout=3))
    assert isinstance(error, RequestTimeout)
    assert isinstance(error, TimeoutError)
    assert "'silence'" in str(error)
    assert "3 s" in str(error)
    assert clock() - start == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
async def test_a_timeout_that_can_not_be_is_refused(timeout: float) -> None:
    app = Site().app()
    (error,) = await with_socket(app, lambda s: s.request("q", timeout=timeout))
    assert isinstance(error, ConfigurationError)


async def test_a_reply_of_the_wrong_type_is_a_decode_error() -> None:
    app = Site().app()

    @app.application("q")
    async def handle() -> str:
        return "text"

    (error,) = await with_socket(app, lambda s: s.request("q", reply=int))
    assert isinstance(error, DecodeError)


class Responder:
    """A foreign responder that answers as told."""

    def __init__(self, site: Site, topic: str) -> None:
        self.site = site
        self.watcher = Watcher(site.broker, "foreign", topic)

    async def request(self, number: int = 1) -> Envelope:
        return (await self.watcher.get(number))[number - 1]

    def answer(self, request: Envelope, payload: str, **fields: Any) -> None:
        assert request.response_topic is not None
        self.site.publish(request.response_topic, payload, **fields)


async def test_late_repeated_and_foreign_replies_are_dropped_and_counted() -> None:
    site = Site()
    responder = Responder(site, "q")
    app = site.app()

    async def ask(socket: Socket) -> list[Any]:
        replies: list[Any] = []
        with pytest.raises(RequestTimeout):
            await socket.request("q", timeout=1)
        late = await responder.request(1)
        asking = asyncio.ensure_future(socket.request("q", reply=str, timeout=5))
        second = await responder.request(2)
        responder.answer(late, "late")
        assert second.response_topic is not None
        prefix, _, correlation = second.response_topic.rpartition("/")
        site.publish(f"{prefix}/{correlation[:-1]}", "shorter")
        site.publish(f"{prefix}/{correlation[::-1]}", "reversed")
        await asyncio.sleep(0.5)
        responder.answer(second, "right")
        responder.answer(second, "once more")
        replies.append(await asking)
        await asyncio.sleep(0.5)
        return replies

    assert await with_socket(app, ask) == [["right"]]
    assert app.stats["replies.dropped"] == 4


async def test_a_responder_that_only_knows_the_response_topic_is_enough() -> None:
    site = Site()
    responder = Responder(site, "q")
    app = site.app()

    async def ask(socket: Socket) -> str:
        asking = asyncio.ensure_future(socket.request("q", reply=str, timeout=5))
        responder.answer(await responder.request(), "bare")
        return await asking

    assert await with_socket(app, ask) == ["bare"]


async def test_five_thousand_requests_at_once_never_mix_up() -> None:
    site = Site(window=20_000, outbox=20_000)
    app = site.app()
    order = random.Random(3)

    @app.application("echo/{number}", window=10_000, concurrency=500)
    async def echo(payload: bytes, number: int, socket: Socket) -> bytes:
        # They are answered in another order than they have come in.
        await asyncio.sleep(0.1 * order.random())
        return b"%d:%s" % (number, payload)

    async def one(socket: Socket, number: int) -> None:
        await asyncio.sleep(order.random())
        reply = await socket.request(f"echo/{number}", f"<{number}>")
        assert reply == b"%d:<%d>" % (number, number)

    async def ask(socket: Socket) -> int:
        await asyncio.gather(*(one(socket, number) for number in range(5000)))
        return 5000

    assert await with_socket(app, ask) == [5000]
    assert app.stats["replies.dropped"] == 0


async def test_replies_out_of_order_find_their_requests() -> None:
    site = Site()
    responder = Responder(site, "q")
    app = site.app()

    async def ask(socket: Socket) -> list[str]:
        asking = [
            asyncio.ensure_future(socket.request("q", str(number), reply=str, timeout=30))
            for number in range(500)
        ]
        await responder.request(500)
        requests = list(responder.watcher.envelopes)
        random.Random(5).shuffle(requests)
        for request in requests:
            responder.answer(request, f"re: {request.payload.decode()}")
        return await asyncio.gather(*asking)

    assert await with_socket(app, ask) == [[f"re: {number}" for number in range(500)]]


async def test_a_request_under_way_survives_a_lost_connection() -> None:
    site = Site()
    app = site.app()
    gate = Gate()

    @app.application("q", name="actor")
    async def handle(number: int) -> int:
        await gate.pass_()
        return number

    async def ask(socket: Socket) -> int:
        asking = asyncio.ensure_future(socket.request("q", 1, reply=int, timeout=30))
        await gate.reached()
        site.cut("app.0")
        await site.reconnected("app.0")
        gate.open()
        return await asking

    assert await with_socket(app, ask) == [1]


# Several replies.


async def test_request_many_collects_all_until_its_time_is_up() -> None:
    site = Site()
    app = site.app()

    for number in range(4):

        @app.application("who", name=f"actor-{number}")
        async def handle(context: Context) -> str:
            if context.actor == "actor-2":
                raise RemoteError("asleep", "zzz")
            return context.actor

    async def ask(socket: Socket) -> tuple[list[Any], float]:
        start = clock()
        return await socket.request_many("who", reply=str, timeout=2), clock() - start

    ((replies, took),) = await with_socket(app, ask)
    assert took == pytest.approx(2, abs=0.1)
    assert sorted(map(str, replies)) == ["actor-0", "actor-1", "actor-3", "asleep: zzz"]


@pytest.mark.parametrize("count", [1, 3])
async def test_request_many_returns_with_the_replies_it_wants(count: int) -> None:
    site = Site()
    app = site.app()
    for number in range(4):

        @app.application("who", name=f"actor-{number}")
        async def handle(context: Context) -> str:
            return context.actor

    async def ask(socket: Socket) -> tuple[int, float]:
        start = clock()
        replies = await socket.request_many("who", reply=str, count=count, timeout=9)
        await asyncio.sleep(0.5)
        return len(replies), clock() - start

    ((got, took),) = await with_socket(app, ask)
    assert got == count
    assert took < 1
    assert app.stats["replies.dropped"] == 4 - count


async def test_request_many_says_how_many_were_missing() -> None:
    app = Site().app()

    @app.application("who")
    async def handle() -> int:
        return 1

    (error,) = await with_socket(
        app, lambda s: s.request_many("who", reply=int, count=2, timeout=1)
    )
    assert isinstance(error, RequestTimeout)
    assert "1 of 2" in str(error)


async def test_request_many_returns_nothing_when_nothing_came() -> None:
    site = Site()
    site.watch("silence")
    got = await with_socket(site.app(), lambda s: s.request_many("silence", reply=int, timeout=1))
    assert got == [[]]


async def test_request_many_counts_a_reply_that_comes_twice_once() -> None:
    site = Site()
    app = site.app()
    calls: list[int] = []

    @app.application("who", name="actor")
    async def handle(number: int) -> int:
        calls.append(number)
        return number

    async def ask(socket: Socket) -> list[Any]:
        site.faults.duplicate_next(1, "who")
        return await socket.request_many("who", 1, reply=int, timeout=1)

    assert await with_socket(app, ask) == [[1]]
    assert calls == [1, 1]
    assert app.stats["replies.dropped"] == 1


@pytest.mark.parametrize("count", [0, -1])
async def test_request_many_refuses_a_count_that_can_not_be(count: int) -> None:
    (error,) = await with_socket(
        Site().app(), lambda s: s.request_many("q", reply=int, count=count)
    )
    assert isinstance(error, ConfigurationError)


# Reply addresses are hostile input.


@pytest.mark.parametrize("way", ["return", "reply", "build"])
@pytest.mark.parametrize(
    "address",
    [
        "",
        "a/+",
        "#",
        "$SYS/x",
        "$share/g/x",
        "x" * 1025,
        "a\0b",
        "q/other",
        "_spa/dead-letter/app/x",
        "_spa/direct/app/actor",
        "_spa/reply/app/command/0",
        "_spa",
    ],
)
async def test_a_hostile_reply_address_is_refused_and_counted(
    address: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    app = site.app()
    seen: list[str | None] = []

    @app.application("q/#", name="actor", replies=True, retry=RetryPolicy(attempts=1))
    async def handle(message: Message[str], socket: Socket, message_builder: MessageBuilder) -> str:
        seen.append(message.response_topic)
        if way == "reply" and message.response_topic is not None:
            await message.reply("x")
        if way == "build" and message.response_topic is not None:
            await socket.publish(message_builder(topic=message.response_topic, payload="x"))
        return "x"

    everything = site.watch("#", "_spa/dead-letter/#", "_spa/direct/#", "_spa")
    async with app:
        site.publish("q/1", "hello", response_topic=address)
        await site.settled()
        await asyncio.sleep(1)
    assert seen == [None]
    assert app.stats["replies.refused"] == 1
    assert "annotate the reply's type" not in caplog.text
    assert [envelope.topic for envelope in everything.envelopes] == ["q/1"]
    assert site.letters() == []


async def test_an_address_that_a_runtime_subscription_gets_is_refused_too() -> None:
    site = Site()
    app = site.app()

    @app.application("q", name="actor", replies=True)
    async def handle(message: Message[str], socket: Socket) -> str:
        if message.payload == "subscribe":
            await socket.subscribe("back/#")
        return "x"

    async with app:
        site.publish("q", "subscribe")
        await site.settled()
        site.publish("q", "hello", response_topic="back/1")
        await site.settled()
    assert app.stats["replies.refused"] == 1
    assert app.stats["messages.handled"] == 2


async def test_a_reply_that_asks_for_a_reply_gets_none() -> None:
    site = Site()
    app = site.app()
    back = site.watch("back")

    @app.application("q", name="actor")
    async def handle(payload: bytes) -> bytes:
        return payload

    async with app:
        site.publish("q", "x", response_topic="back", headers={"spa_reply": "1"})
        await site.settled()
        await asyncio.sleep(1)
    assert back.envelopes == []
    assert app.stats["replies.refused"] == 1


async def test_two_responders_can_not_be_made_to_answer_each_other() -> None:
    site = Site()
    app = site.app()
    calls: list[str] = []

    for name in ("ping", "pong"):

        @app.application(name, name=name)
        async def handle(payload: bytes, context: Context) -> bytes:
            calls.append(context.actor)
            return payload

    async with app:
        site.publish("ping", "x", response_topic="pong")
        await site.settled("app.0.ping")
        await asyncio.sleep(10)
    assert calls == ["ping"]
    assert app.stats["replies.refused"] == 1


# Where replies may go.


@pytest.mark.parametrize("runtime", [False, True], ids=["declared", "at run time"])
@pytest.mark.parametrize("way", ["return", "reply", "build", "hand on"])
async def test_no_actor_of_the_application_gets_a_reply_that_a_stranger_asked_for(
    way: str, runtime: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    app = site.app()
    moved: list[str] = []
    seen: list[str | None] = []

    async def move(text: str, socket: Socket) -> None:
        if text == "subscribe":
            await socket.subscribe("internal/valve")
        else:
            moved.append(text)

    app.application("own/valve" if runtime else "internal/valve", name="valve")(move)
    if way == "return":

        @app.application("echo", name="actor")
        async def echo(text: str) -> str:
            return text
    else:

        @app.application("echo", name="actor")
        async def handle(message: Message[str], socket: Socket) -> None:
            seen.append(message.response_topic)
            address = message.response_topic
            if address is not None and way == "reply":
                await message.reply(message.payload)
            elif address is not None and way == "build":
                await socket.publish(address, message.payload)
            elif way == "hand on":
                forwarded = MessageBuilder()("other", "text", response_topic=address)
                await socket.publish(forwarded)

    @app.application("other")
    async def other(text: str) -> str:
        return text

    async with app:
        if runtime:
            site.publish("own/valve", "subscribe")
            await site.settled("app.0.valve")
        site.publish("echo", "open", response_topic="internal/valve")
        await site.settled()
        await site.settled("app.0.other")
        await asyncio.sleep(10)
    assert moved == []
    assert seen == ([] if way == "return" else [None])
    if way == "return":
        assert app.stats["replies.refused"] == 1
        assert "an actor of this application would get the reply" in caplog.text


async def test_a_batch_and_a_requester_do_not_see_an_address_that_leads_to_an_actor() -> None:
    site = Site()
    app = site.app()
    seen: list[str | None] = []

    @app.application("log", batch=(3, 1.0))
    async def log(messages: list[Message[bytes]]) -> None:
        seen.extend(message.response_topic for message in messages)

    @app.application("internal/valve")
    async def valve(text: str) -> None: ...

    responder = Responder(site, "q")
    async with app:
        for address in ("internal/valve", "back", "_spa/x"):
            site.publish("log", "text", response_topic=address)
        await site.settled("app.0.log")
        asking = asyncio.ensure_future(
            app.socket().request_many("q", reply=Message[bytes], count=2, timeout=5)
        )
        request = await responder.request()
        for address in ("internal/valve", "back"):
            responder.answer(request, "text", response_topic=address)
        replies: list[Any] = await asking
    assert seen == [None, "back", None]
    assert [reply.response_topic for reply in replies] == [None, "back"]


@pytest.mark.parametrize("place", ["actor", "application"])
async def test_reply_topics_narrows_where_replies_go(place: str) -> None:
    site = Site()
    at_application = {"reply_topics": "back/+"} if place == "application" else {}
    at_actor: Any = {"reply_topics": ("back/+",)} if place == "actor" else {}
    app = site.app(**at_application)
    everything = site.watch("#")

    @app.application("q", name="actor", **at_actor)
    async def handle(payload: bytes) -> bytes:
        return payload

    async with app:
        for address in ("back/1", "elsewhere", "back/1/2"):
            site.publish("q", address, response_topic=address)
        await site.settled()
        await asyncio.sleep(1)
        # The inboxes of programs of this package are always allowed.
        assert await app.socket().request("q", b"x", timeout=5) == b"x"
    assert [e.topic for e in everything.envelopes if e.topic != "q"] == ["back/1"]
    assert app.stats["replies.refused"] == 2


async def test_an_actor_may_be_given_other_reply_topics_than_the_application() -> None:
    site = Site()
    app = site.app(reply_topics=())
    back = site.watch("back")

    @app.application("q", name="actor", reply_topics="back")
    async def handle(payload: bytes) -> bytes:
        return payload

    @app.application("p", name="strict")
    async def strict(payload: bytes) -> bytes:
        return payload

    async with app:
        for topic in ("q", "p"):
            site.publish(topic, topic, response_topic="back")
        await site.settled()
        await site.settled("app.0.strict")
        await asyncio.sleep(1)
    assert back.payloads == ["q"]


async def test_replies_wait_for_room_and_leave_some_to_others() -> None:
    site = Site(outbox_bytes=10_000)
    app = site.app()
    back, out = site.watch("back", name="back"), site.watch("out", name="out")

    @app.application("q", name="actor")
    async def handle() -> bytes:
        return b"r" * 900

    @app.application("order")
    async def order(payload: bytes, socket: Socket) -> None:
        socket.post("out", 4 * payload)

    async with app:
        site.faults.refuse_connections()
        site.cut("app.0")
        for number in range(50):
            site.publish("q", id=str(number), response_topic="back")
        await asyncio.sleep(5)
        site.publish("order", b"o" * 900)
        await asyncio.sleep(5)
        assert back.envelopes == []
        site.faults.allow()
        await back.get(50)
        await out.get(1)
    assert all(len(envelope.payload) == 900 for envelope in back.envelopes)
    assert out.payloads == ["o" * 3600]
    assert app.stats["messages.failed"] == app.stats["requests.failed"] == 0


def test_reply_topics_must_be_filters() -> None:
    with pytest.raises(ConfigurationError, match="'#' must be the last level"):
        Site().app(reply_topics="a/#/b")
    app = Site().app()
    with pytest.raises(ConfigurationError, match=r"actor.*reply_topics"):

        @app.application("q", reply_topics=("a", "a"))
        async def handle(payload: bytes) -> bytes:
            return payload


async def test_correlation_data_of_any_length_is_not_sent_back() -> None:
    site = Site()
    app = site.app()
    back = site.watch("back")

    @app.application("q", name="actor")
    async def handle(payload: bytes) -> bytes:
        return payload

    async with app:
        for size in (1024, 1025, 60_000):
            site.publish("q", str(size), response_topic="back", correlation=b"c" * size)
        await site.settled()
        await back.get()
        await asyncio.sleep(1)
    assert back.payloads == ["1024"]
    assert app.stats["replies.refused"] == 2


async def test_nobody_is_answered_with_the_correlation_data_of_a_command() -> None:
    site = Site()
    app = site.app()
    back = site.watch("_spa/reply/#")

    @app.application("q", name="actor")
    async def handle(payload: bytes) -> bytes:
        return payload

    async with app:
        for correlation in (b"command/0", b"1"):
            site.publish("q", "x", response_topic="_spa/reply/other", correlation=correlation)
        await site.settled()
        await back.get()
        await asyncio.sleep(1)
    assert [envelope.correlation for envelope in back.envelopes] == [b"1"]
    assert app.stats["replies.refused"] == 1


@pytest.mark.parametrize(
    "chain", ["", ",", "a b", "x\n", "é", ",".join(["app/0/a"] * 17), "a" * 5000, "a,,b"]
)
async def test_a_chain_that_a_stranger_made_up_goes_no_further(chain: str) -> None:
    site = Site()
    app = site.app()
    inner = site.watch("inner")

    @app.application("outer", name="actor")
    async def outer(payload: bytes, socket: Socket) -> None:
        await socket.request("inner", b"x", timeout=0.1)

    async with app:
        site.publish("outer", "x", headers={"spa_chain": chain})
        await inner.get()
    assert inner.envelopes[0].headers["spa_chain"] == "app/0/actor"


@pytest.mark.parametrize("address", ["", "a/+", "a\0b", "$SYS/x", 7])
async def test_a_response_topic_of_ones_own_must_be_a_topic(address: Any) -> None:
    app = Site().app()

    async def send(socket: Socket) -> None:
        await socket.publish(MessageBuilder()(topic="q", response_topic=address))

    (error,) = await with_socket(app, send)
    assert isinstance(error, ConfigurationError)


async def test_a_request_can_be_handed_on_to_somebody_else() -> None:
    app = Site().app()

    @app.application("front")
    async def front(message: Message[int], socket: Socket) -> None:
        await socket.publish(
            MessageBuilder()(
                topic="back", payload=message.payload, response_topic=message.response_topic
            )
        )

    @app.application("back")
    async def back(number: int) -> int:
        return number + 1

    assert await with_socket(app, lambda s: s.request("front", 1, reply=int)) == [2]


async def test_a_reply_that_nobody_gets_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    app = Site().app()

    @app.application("double")
    async def double(number: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return 2 * number

    async def ask(socket: Socket) -> None:
        for number in (1, 2):
            with pytest.raises(RequestTimeout):
                await socket.request("double", number, reply=int, timeout=1)

    assert await with_socket(app, ask) == [None]
    assert caplog.text.count("annotate the reply's type") == 1


@pytest.mark.parametrize("timeout", ["2", None, True])
async def test_a_timeout_that_is_no_time_is_refused(timeout: Any) -> None:
    async def ask(socket: Socket) -> None:
        for call in (socket.request, socket.publish):
            with pytest.raises(ConfigurationError, match="timeout="):
                await call("topic", 1, timeout=timeout)
        wrong: Any = "2"
        with pytest.raises(ConfigurationError, match="count='2'"):
            await socket.request_many("topic", 1, reply=int, count=wrong)

    assert await with_socket(Site().app(), ask) == [None]


@pytest.mark.parametrize(
    "option", [{"retain": "yes"}, {"expiry": "3"}, {"headers": "a=b"}, {"headers": [1]}]
)
async def test_options_of_the_wrong_type_are_refused(option: dict[str, Any]) -> None:
    async def publish(socket: Socket) -> None:
        (name,) = option
        with pytest.raises(ConfigurationError, match=f"{name}="):
            await socket.publish("topic", 1, **option)

    assert await with_socket(Site().app(), publish) == [None]


async def test_a_producer_can_not_subscribe() -> None:
    async def subscribe(socket: Socket) -> None:
        with pytest.raises(ConfigurationError, match="it is a producer"):
            await socket.subscribe("topic")

    assert await with_socket(Site().app(), subscribe) == [None]


# Replies that do not fit.


async def test_a_responder_that_returns_nothing_is_named() -> None:
    app = Site().app()

    @app.application("double")
    async def double(number: int) -> int:
        return None  # type: ignore[return-value]

    (outcome,) = await with_socket(
        app, lambda socket: socket.request("double", 1, reply=int, timeout=5)
    )
    assert isinstance(outcome, DecodeError)
    text = str(outcome)
    assert text.startswith("the reply of 'app/0/double' cannot be used: ")
    assert "it is empty" in text
    assert "returned None" in text


async def test_a_reply_of_another_type_is_called_a_reply() -> None:
    app = Site().app()

    @app.application("double")
    async def double(number: int) -> str:
        return "five"

    (outcome,) = await with_socket(
        app, lambda socket: socket.request("double", 1, reply=int, timeout=5)
    )
    assert isinstance(outcome, DecodeError)
    assert str(outcome).startswith(
        "the reply of 'app/0/double' cannot be used: the payload (4 bytes"
    )


async def test_a_plain_handler_that_calls_reply_is_told_to_return_it() -> None:
    site = Site()
    app = site.app()

    @app.application("q", replies=True)
    def answer(message: Message[int]) -> None:
        message.reply(1)  # type: ignore[unused-coroutine]

    async with app:
        with pytest.raises(RemoteError, match="return the reply from the handler"):
            await app.socket().request("q", 1)
