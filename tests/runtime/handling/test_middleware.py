"""Middleware: around every call of a handler, and on everything that is published."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spa_dat import (
    Actor,
    CallOutcome,
    Context,
    DistributedApplication,
    HandlerCall,
    Message,
    MessageBuilder,
    Middleware,
    Outgoing,
    Reject,
    RetryPolicy,
    Socket,
    SyncSocket,
    Topic,
    on,
)
from spa_dat._limited_log import LimitedLog
from spa_dat._logs import get_logger
from spa_dat.errors import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    MessageTooLarge,
    RemoteError,
)
from spa_dat.runtime.handling._delivery_processor import DeliveryProcessor
from spa_dat.runtime.messaging import _middleware
from spa_dat.runtime.messaging._bus_connection import BusConnection
from spa_dat.testing import Harness, Kafka, Mosquitto
from support.processes import add_worker, collect, make
from support.type_checking import check_types, errors
from support.waiting import eventually

Next = Callable[[], Awaitable[Any]]
TWICE = RetryPolicy(attempts=2, first=0.1)
WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Notes(Middleware):
    """Notes what it sees, under a name."""

    def __init__(self, notes: list[Any], name: str = "it") -> None:
        self.notes = notes
        self.name = name

    async def handle(self, call: HandlerCall, next: Next) -> Any:
        self.notes.append((self.name, "before", call.actor, call.attempt))
        try:
            return await next()
        finally:
            self.notes.append((self.name, "after"))


class Calls(Middleware):
    """Keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[HandlerCall] = []

    async def handle(self, call: HandlerCall, next: Next) -> Any:
        self.calls.append(call)
        return await next()


class Tenant(Middleware):
    """Takes a header from what comes to what goes, through a variable."""

    async def handle(self, call: HandlerCall, next: Next) -> Any:
        if call.message is not None:
            WHO.set(call.message.headers.get("tenant", "nobody"))
        return await next()

    def publish(self, outgoing: Outgoing) -> None:
        outgoing.headers["tenant"] = WHO.get()


def plain(**options: Any) -> DistributedApplication:
    return DistributedApplication("mqtt://broker.example", name="app", **options)


def doing(handle: Callable[[HandlerCall, Next], Awaitable[Any]]) -> Middleware:
    """Return middleware that handles calls like this."""

    class Doing(Middleware):
        async def handle(self, call: HandlerCall, next: Next) -> Any:
            return await handle(call, next)

    return Doing()


# Around handlers.


def test_the_first_is_outermost_at_each_attempt() -> None:
    app = plain()
    notes: list[Any] = []
    app.use(Notes(notes, "a"))
    app.use(Notes(notes, "b"))

    @app.application("in", retry=TWICE)
    async def work(payload: int, context: Context) -> None:
        notes.append(payload)
        if context.attempt == 1:
            raise ValueError(payload)

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("in", 7)
        harness.settle()
    once = [
        ("a", "before", "work", 1),
        ("b", "before", "work", 1),
        7,
        ("b", "after"),
        ("a", "after"),
    ]
    again = [("a", "before", "work", 2), ("b", "before", "work", 2), *once[2:]]
    assert notes == once + again


def test_it_sees_what_kind_of_call_it_is() -> None:
    app, seen = plain(), Calls()
    app.use(seen)

    @app.application("batch", batch=(2, 0.5))
    async def together(payload: list[int]) -> None: ...

    @app.application("thread/{name}")
    def blocking(payload: int) -> None: ...

    class Thing(Actor):
        @on("class")
        async def take(self, payload: int) -> None: ...

    app.add(Thing)

    @app.producer()
    async def source(socket: Socket) -> None: ...

    with Harness(app) as harness:
        harness.publish("batch", 1)
        harness.publish("batch", 2, headers={"a": "b"})
        harness.publish("thread/x", 3, key="k")
        harness.publish("class", 4)
        harness.settle()
    calls = {call.actor: call for call in seen.calls}
    assert sorted(calls) == ["Thing", "blocking", "source", "together"]
    assert calls["source"].messages == ()
    assert calls["source"].topic_filter is None
    assert calls["source"].message is None
    assert calls["together"].is_batch
    assert calls["together"].message is None
    assert [one.payload for one in calls["together"].messages] == [b"1", b"2"]
    assert calls["together"].messages[1].headers == {"a": "b"}
    message = calls["blocking"].message
    assert message is not None
    assert (message.topic, message.payload, message.key) == ("thread/x", b"3", "k")
    assert calls["blocking"].topic_filter == "thread/{name}"
    assert {call.handler for call in seen.calls} == {"together", "blocking", "Thing.take", "source"}
    assert repr(calls["blocking"]) == "<HandlerCall 'blocking' of 'blocking' attempt 1>"


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_it_raises_is_a_failure_of_the_handler(error: BaseException, when: str) -> None:
    app = plain()
    handled: list[Any] = []

    async def handle(call: HandlerCall, next: Next) -> Any:
        assert call.message is not None
        if when == "before" and call.message.payload == b"1":
            raise error
        result = await next()
        if call.message.payload == b"1":
            raise error
        return result

    app.use(doing(handle))

    @app.application("in", retry=TWICE)
    async def work(payload: int) -> None:
        handled.append(payload)

    with Harness(app) as harness:
        harness.expect_failure(BaseException)
        harness.publish("in", 1)
        harness.publish("in", 2)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert (letter.payload, letter.attempts) == (b"1", 2)
    assert handled == ([2] if when == "before" else [1, 1, 2])


def test_it_may_refuse_a_message_for_good() -> None:
    app = plain()

    async def handle(call: HandlerCall, next: Next) -> Any:
        raise Reject("not for us")

    app.use(doing(handle))

    @app.application("in")
    async def work(payload: int) -> int:
        return payload

    with Harness(app) as harness:
        harness.expect_failure(Reject)
        harness.publish("in", 1)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert letter.attempts == 1
        with pytest.raises(RemoteError, match="not for us"):
            harness.request("in", 1)


def test_it_may_answer_in_place_of_the_handler() -> None:
    app = plain()
    handled: list[Any] = []

    async def handle(call: HandlerCall, next: Next) -> Any:
        assert call.message is not None
        return -1 if call.message.payload == b"0" else 2 * await next()

    app.use(doing(handle))

    @app.application("in")
    async def work(payload: int) -> int:
        handled.append(payload)
        return payload

    with Harness(app) as harness:
        assert harness.request("in", 0, reply=int) == -1
        assert harness.request("in", 5, reply=int) == 10
        harness.publish("in", 0)
        harness.settle()
        assert harness.dead_letters() == []
    assert handled == [5]


async def twice(call: HandlerCall, next: Next) -> Any:
    await next()
    return await next()


async def unawaited(call: HandlerCall, next: Next) -> Any:
    return next()


async def dropped(call: HandlerCall, next: Next) -> Any:
    next()


async def half(call: HandlerCall, next: Next) -> Any:
    next().__await__().send(None)


async def in_a_task(call: HandlerCall, next: Next) -> Any:
    return await asyncio.gather(next())


async def returns_a_coroutine(call: HandlerCall, next: Next) -> Any:
    await next()
    return asyncio.sleep(0)


@pytest.mark.parametrize(
    ("handle", "text", "calls"),
    [
        (twice, "called next() twice", 1),
        (unawaited, "did not await it to its end", 0),
        (dropped, "did not await it to its end", 0),
        (half, "did not await it to its end", 1),
        (in_a_task, "let next() run in another task", 0),
        (returns_a_coroutine, "returned a coroutine", 1),
    ],
)
@pytest.mark.parametrize("kind", ["message", "batch"])
def test_mistakes_with_next_are_failures(
    handle: Callable[[HandlerCall, Next], Awaitable[Any]], text: str, calls: int, kind: str
) -> None:
    app = plain()
    handled: list[Any] = []
    app.use(doing(handle))

    async def work(payload: Any) -> None:
        handled.append(payload)
        await asyncio.sleep(1)

    options: dict[str, Any] = {"batch": (1, 0.5)} if kind == "batch" else {}
    if kind == "batch":
        work.__annotations__["payload"] = list[int]
    app.application("in", retry=RetryPolicy(attempts=1), **options)(work)
    with Harness(app) as harness:
        harness.expect_failure(Exception)
        harness.publish("in", 1)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert text in letter.text
    assert len(handled) == calls


def test_next_cannot_be_called_later() -> None:
    app = plain()
    kept: list[Next] = []
    errors: list[str] = []

    async def handle(call: HandlerCall, next: Next) -> Any:
        for one in kept:
            try:
                await one()
            except RuntimeError as error:
                errors.append(str(error))
        kept.append(next)

    app.use(doing(handle))

    @app.application("in")
    async def work(payload: int) -> None:
        raise AssertionError

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.publish("in", 2)
        harness.settle()
    assert errors == ["next() was called after Doing.handle had ended"]


def test_swallowed_cancellation_is_cut_off_like_that_of_a_handler() -> None:
    app = plain(stop_timeout=5)
    notes: list[Any] = []

    async def handle(call: HandlerCall, next: Next) -> Any:
        try:
            await next()
        except asyncio.CancelledError:
            notes.append("swallowed")

    app.use(doing(handle))

    @app.application("in", deadline=2)
    async def work(payload: int) -> None:
        notes.append(payload)
        if payload == 1:
            await asyncio.sleep(1000)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.publish("in", 2)
        harness.settle()
        assert harness.dead_letters() == []
    assert notes == [1, "swallowed", 2]


def test_a_deadline_covers_what_is_around_an_async_handler() -> None:
    app = plain()

    async def handle(call: HandlerCall, next: Next) -> Any:
        await next()
        await asyncio.sleep(1000)

    app.use(doing(handle))

    @app.application("in", deadline=2, retry=RetryPolicy(attempts=1))
    async def work(payload: int) -> None: ...

    with Harness(app) as harness:
        harness.expect_failure(TimeoutError)
        harness.publish("in", 1)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert "its deadline of 2 s" in letter.text


async def test_a_blocking_one_is_named_like_a_blocking_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make(blocked_after=0.05)

    async def handle(call: HandlerCall, next: Next) -> Any:
        while not app.stats["loop.blocked"]:
            time.sleep(0.01)
        return await next()

    app.use(doing(handle))
    got = collect(app, "in")
    async with app:
        await app.socket().publish("in", 1)
        await eventually(lambda: got)
    assert "has blocked the event loop" in caplog.text
    assert "test_middleware.py" in caplog.text


def test_a_process_exit_ends_the_application_as_from_a_handler() -> None:
    app = DistributedApplication("memory://", name="app")

    async def handle(call: HandlerCall, next: Next) -> Any:
        raise SystemExit(3)

    app.use(doing(handle))

    @app.producer()
    async def source(socket: Socket) -> None:
        raise AssertionError

    with pytest.raises(SystemExit) as raised:
        app.run()
    assert raised.value.code == 3


def test_variables_reach_the_handler_and_stay_within_the_attempt() -> None:
    app = plain()
    seen: list[Any] = []
    app.use(Tenant())

    @app.application("async")
    async def on_loop(payload: int) -> None:
        seen.append((payload, WHO.get()))

    @app.application("thread")
    def in_thread(payload: int) -> None:
        seen.append((payload, WHO.get()))

    with Harness(app) as harness:
        for topic in ("async", "thread"):
            harness.publish(topic, 1, headers={"tenant": "north"})
            harness.publish(topic, 2)
        harness.settle()
    assert sorted(seen) == [(1, "north"), (1, "north"), (2, "nobody"), (2, "nobody")]


# On what is published.


def test_headers_reach_everything_that_is_published() -> None:
    app = plain()
    app.use(Tenant())

    @app.application("in")
    async def asynchronous(message: Message[int], socket: Socket) -> None:
        await socket.publish("out/publish", 1, headers={"own": "x"})
        socket.post("out/post", 1)
        await socket.request("prices", 1, reply=int)

    @app.application("in", name="blocking")
    def blocking(payload: int, socket: SyncSocket) -> None:
        socket.post("out/thread", 1)

    @app.application("prices")
    async def price(message: Message[int]) -> int:
        assert message.headers["tenant"] == "north"
        return 7

    @app.application("asked", replies=True)
    async def asked(message: Message[int]) -> None:
        await message.reply("yes", headers={"own": "y"})

    with Harness(app) as harness:
        harness.publish("in", 1, headers={"tenant": "north"})
        harness.settle()
        sent = harness.messages("out/#")
        assert {one.topic for one in sent} == {"out/publish", "out/post", "out/thread"}
        assert {one.headers["tenant"] for one in sent} == {"north"}
        assert [one.headers.get("own") for one in sent if one.topic == "out/publish"] == ["x"]
        replies = [
            harness.request(topic, 1, headers={"tenant": "north"}, reply=Message[Any])
            for topic in ("prices", "asked")
        ]
        assert [one.headers["tenant"] for one in replies] == ["north", "north"]
        assert [one.payload for one in replies] == [7, "yes"]
        assert replies[1].headers["own"] == "y"


def test_the_reply_is_seen_with_the_variables_of_the_handler() -> None:
    app = plain()

    class Signed(Middleware):
        def publish(self, outgoing: Outgoing) -> None:
            outgoing.headers["who"] = WHO.get()

    app.use(Signed())

    @app.application("async")
    async def on_loop(payload: int) -> int:
        WHO.set("the handler")
        return payload

    @app.application("cut", deadline=5)
    async def with_deadline(payload: int) -> int:
        WHO.set("the handler")
        return payload

    with Harness(app) as harness:
        for topic in ("async", "cut"):
            reply = harness.request(topic, 1, reply=Message[int])
            assert (reply.payload, reply.headers["who"]) == (1, "the handler")


def test_it_sees_what_it_is_and_may_replace_the_payload() -> None:
    app = plain()
    seen: list[Any] = []

    class Doubling(Middleware):
        def publish(self, outgoing: Outgoing) -> None:
            seen.append((outgoing.kind, outgoing.source, outgoing.topic, outgoing.key))
            assert isinstance(outgoing.payload, int)
            outgoing.payload *= 2

    app.use(Doubling())

    @app.application("in")
    async def work(payload: int, socket: Socket) -> int:
        socket.post("out", payload, key="k")
        return int(await socket.request("more", payload, reply=int))

    @app.application("more")
    async def more(payload: int) -> int:
        return payload + 1

    with Harness(app) as harness:
        assert harness.request("in", 3, reply=int) == (3 * 2 + 1) * 2 * 2
        assert harness.published("out") == [6]
    inbox = seen[-1][2]
    assert seen == [
        ("publish", "app/0/work", "out", "k"),
        ("request", "app/0/work", "more", None),
        ("reply", "app/0/more", seen[2][2], None),
        ("reply", "app/0/work", inbox, None),
    ]


class Refusing(Middleware):
    """Lets nothing out to one topic."""

    def publish(self, outgoing: Outgoing) -> None:
        if outgoing.topic == "secret" or outgoing.payload == "secret":
            raise PermissionError(f"not to {outgoing.topic}")


def test_what_it_raises_is_raised_where_something_is_published() -> None:
    app = plain()
    caught: list[Any] = []
    app.use(Refusing())

    @app.application("careful")
    async def careful(payload: int, socket: Socket) -> None:
        for send in (socket.publish, socket.request):
            try:
                await send("secret", 1)
            except PermissionError as error:
                caught.append(str(error))

    @app.application("careless", retry=TWICE)
    async def careless(payload: int, socket: Socket) -> None:
        socket.post("secret", 1)

    @app.application("answer")
    async def answer(payload: int) -> str:
        return "secret"

    with Harness(app) as harness:
        harness.expect_failure(PermissionError)
        harness.publish("careful", 1)
        harness.publish("careless", 1)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert (letter.actor, letter.attempts) == ("app/0/careless", 2)
        with pytest.raises(RemoteError, match="PermissionError: not to"):
            harness.request("answer", 1)
        assert harness.published("secret") == []
    assert caught == ["not to secret"] * 2


class Bad(Middleware):
    """Does something that cannot be sent."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def publish(self, outgoing: Outgoing) -> Any:
        if self.kind == "reserved":
            outgoing.headers["spa_actor"] = "x"
        elif self.kind == "type":
            outgoing.headers["a"] = 1  # type: ignore[assignment]
        elif self.kind == "none":
            outgoing.headers["a"] = None
        elif self.kind == "no dict":
            outgoing.headers = None  # type: ignore[assignment]
        elif self.kind == "topic":
            outgoing.topic = "elsewhere"  # type: ignore[misc]
        elif self.kind == "payload":
            outgoing.payload = object()
        return asyncio.sleep(0) if self.kind == "coroutine" else None


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("reserved", "'spa_actor' belongs to the runtime"),
        ("type", "names and values must be str"),
        ("none", "None"),
        ("no dict", "Bad.publish has set headers to None: give a dict"),
        ("topic", "topic"),
        ("payload", "object"),
        ("coroutine", "Bad.publish returned a coroutine"),
    ],
)
@pytest.mark.parametrize("topic", ["posts", "answers"])
def test_what_cannot_be_sent_is_refused(kind: str, text: str, topic: str) -> None:
    app = plain()
    app.use(Bad(kind))

    @app.application("posts", replies=True)
    async def posts(payload: int, socket: Socket) -> None:
        socket.post("out", 1)

    @app.application("answers")
    async def answers(payload: int) -> int:
        return 1

    with Harness(app) as harness:
        harness.expect_failure(Exception)
        with pytest.raises(RemoteError, match=text):
            harness.request(topic, 1)


def test_what_it_publishes_itself_it_does_not_see() -> None:
    app = plain()
    seen: list[Any] = []

    class Audit(Middleware):
        def publish(self, outgoing: Outgoing) -> None:
            seen.append(outgoing.topic)
            app.socket().post("audit", outgoing.topic)

    app.use(Audit())

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        socket.post("out", payload)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.publish("in", 2)
        harness.settle()
        assert harness.published("audit") == ["out", "out"]
    assert seen == ["out", "out"]


# What becomes of calls.


class Fates(Middleware):
    """Notes what becomes of each call."""

    def __init__(self) -> None:
        self.known: list[tuple[str, str, str, bool]] = []

    async def handle(self, call: HandlerCall, next: Next) -> Any:
        call.on_outcome(partial(self.note, f"{call.actor} {call.attempt}"))
        return await next()

    def note(self, who: str, outcome: CallOutcome) -> None:
        name = "" if outcome.error is None else type(outcome.error).__name__
        self.known.append((who, name, outcome.then, outcome.wait is not None))


def test_the_outcome_of_a_call_is_what_becomes_of_its_messages() -> None:
    app, fates = plain(), Fates()
    app.use(fates)

    @app.application("bad", retry=TWICE)
    async def bad(payload: int) -> None:
        raise ValueError(payload)

    @app.application("rejected")
    def rejected(payload: int) -> None:
        raise Reject("never")

    @app.application("batch", batch=(2, 0.5), retry=TWICE)
    async def batch(payload: list[int]) -> None:
        raise ValueError(payload)

    @app.application("answers")
    async def answers(payload: int) -> object:
        if payload:
            raise RemoteError("no", "never")
        return object()

    @app.application("late", deadline=5, retry=RetryPolicy(attempts=1))
    async def late(payload: int) -> None:
        await asyncio.sleep(60)

    @app.producer()
    async def source(socket: Socket) -> None:
        await socket.publish("late", 1)

    with Harness(app) as harness:
        harness.expect_failure(Exception)
        harness.settle()
        for topic in ("bad", "rejected", "batch", "batch"):
            harness.publish(topic, 1)
        harness.settle()
        for payload in (0, 1):
            with pytest.raises(RemoteError):
                harness.request("answers", payload)
    expected = {
        "source": [("source 1", "", "handled", False)],
        "late": [("late 1", "TimeoutError", "dead-letter", False)],
        "bad": [
            ("bad 1", "ValueError", "retry", True),
            ("bad 2", "ValueError", "dead-letter", False),
        ],
        "rejected": [("rejected 1", "Reject", "dead-letter", False)],
        "batch": [
            ("batch 1", "ValueError", "retry", True),
            ("batch 2", "ValueError", "apart", False),
            *[("batch 3", "ValueError", "dead-letter", False)] * 2,
        ],
        "answers": [
            ("answers 1", "EncodeError", "answer", False),
            ("answers 1", "RemoteError", "answer", False),
        ],
    }
    for actor, fate in expected.items():
        assert [known for known in fates.known if known[0].startswith(actor)] == fate


class Undecodable(Fates):
    """Notes what no handler gets."""

    def undecodable(self, call: HandlerCall, outcome: CallOutcome) -> None:
        self.note(f"{call.handler} {call.attempt}", outcome)
        assert [message.payload for message in call.messages] == [b"nonsense"]
        raise ValueError("broken")


def test_it_learns_of_what_no_handler_gets(caplog: pytest.LogCaptureFixture) -> None:
    app, fates = plain(), Undecodable()
    app.use(fates)

    @app.application("in")
    async def work(payload: int) -> None: ...

    @app.application("batch", batch=(2, 0.5))
    def batch(payload: list[int]) -> None: ...

    @app.application("answers")
    async def answers(payload: int, message: Message[int]) -> int:
        return payload

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        for topic in ("in", "batch"):
            harness.publish(topic, b"nonsense", content_type="application/json")
        harness.settle()
        assert len(harness.dead_letters()) == 2
        with pytest.raises(RemoteError, match="bad-request"):
            harness.request("answers", b"nonsense")
    assert sorted(fates.known) == [
        ("answers 1", "DecodeError", "answer", False),
        ("batch 1", "DecodeError", "dead-letter", False),
        ("work 1", "DecodeError", "dead-letter", False),
    ]
    assert "Undecodable.undecodable has failed" in caplog.text


class Expired(Fates):
    """Notes what has expired."""

    def expired(self, call: HandlerCall, outcome: CallOutcome) -> None:
        self.note(f"{call.handler} {call.attempt}", outcome)
        raise ValueError("broken")


def test_it_learns_of_what_has_expired(caplog: pytest.LogCaptureFixture) -> None:
    app, fates = plain(), Expired()
    app.use(fates)

    @app.application("in")
    async def work(payload: int) -> None:
        await asyncio.sleep(10)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.publish("in", 2, expiry=5.0)
        harness.publish("in", 3)
        harness.settle()
        assert harness.stats["messages.expired"] == 1
        assert harness.stats["messages.handled"] == 2
    told = [(about, then) for about, _, then, _ in fates.known if then == "none"]
    assert told == [("work 1", "none")]
    assert "Expired.expired has failed" in caplog.text


async def test_the_outcome_of_a_call_is_told_when_the_actor_ends() -> None:
    app, fates, begun = make(stop_timeout=0), Fates(), asyncio.Event()
    app.use(fates)

    @app.application("in")
    async def work(payload: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with app:
        app.socket().post("in", 1)
        await begun.wait()
        assert fates.known == []
    assert fates.known == [("work 1", "CancelledError", "none", False)]


# What becomes of what is published.


class Outcomes(Middleware):
    """Notes what becomes of each message."""

    def __init__(self) -> None:
        self.known: list[tuple[str, str, str]] = []

    def publish(self, outgoing: Outgoing) -> None:
        kind, topic = outgoing.kind, "" if outgoing.kind == "reply" else outgoing.topic

        def note(error: BaseException | None) -> None:
            self.known.append((kind, topic, "" if error is None else type(error).__name__))

        outgoing.on_outcome(note)


def test_the_outcome_is_the_confirmation() -> None:
    app, outcomes = plain(), Outcomes()
    app.use(outcomes)
    notes: list[Any] = []

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        await asyncio.sleep(5)
        socket.post("posted", 1)
        notes.append("posted")
        await socket.publish("published", 1, timeout=300)
        notes.append([*outcomes.known])

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.advance(1)
        harness.outage(60)
        harness.advance(30)
        assert (notes, outcomes.known) == (["posted"], [])
        harness.settle()
    posted, published = ("publish", "posted", ""), ("publish", "published", "")
    assert sorted(outcomes.known) == [posted, published]
    assert published in notes[1]


def test_the_outcome_of_a_request_is_its_reply_or_the_error() -> None:
    app, outcomes = plain(), Outcomes()
    app.use(outcomes)

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        assert await socket.request("good", 1, reply=int) == 1
        for topic in ("bad", "silent"):
            with pytest.raises((RemoteError, TimeoutError)):
                await socket.request(topic, 1, timeout=5)
        assert await socket.request_many("good", 1, timeout=5, reply=int) == [1]

    @app.application("good")
    async def good(payload: int) -> int:
        return payload

    @app.application("bad")
    async def bad(payload: int) -> int:
        raise RemoteError("no", "never")

    @app.application("silent")
    async def silent(payload: int) -> None: ...

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
    requests = [known for known in outcomes.known if known[0] == "request"]
    assert requests == [
        ("request", "good", ""),
        ("request", "bad", "RemoteError"),
        ("request", "silent", "RequestTimeout"),
        ("request", "good", ""),
    ]
    assert [known for known in outcomes.known if known[0] == "reply"] == [("reply", "", "")] * 2


def test_the_outcome_is_told_of_what_cannot_be_sent() -> None:
    app = DistributedApplication("memory://small?max_payload=1000", name="app")
    outcomes = Outcomes()
    app.use(outcomes)
    app.use(Refusing())

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        for send in (socket.publish, socket.request):
            for unfit in (object(), b"x" * 2_000, "secret"):
                with pytest.raises((EncodeError, MessageTooLarge, PermissionError)):
                    await send("out", unfit)

    @app.application("answer")
    async def answer(payload: int) -> object:
        return object()

    with Harness(app) as harness:
        harness.expect_failure(EncodeError)
        harness.publish("in", 1)
        harness.settle()
        with pytest.raises(RemoteError):
            harness.request("answer", 1)
    errors = ["EncodeError", "MessageTooLarge", "PermissionError"]
    expected = [("publish", "out", error) for error in errors]
    expected += [("request", "out", error) for error in errors]
    assert outcomes.known == [*expected, ("reply", "", "EncodeError")]


ASKS = Topic[int, int]("ask/{room}")
READINGS = Topic[int]("rooms/{room}/reading")


def test_it_sees_what_the_topic_is_one_of_many_of() -> None:
    app, seen = plain(), list[Any]()

    class Look(Middleware):
        async def handle(self, call: HandlerCall, next: Next) -> Any:
            seen.append(("call", call.bus, call.topic_filter))
            return await next()

        def publish(self, outgoing: Outgoing) -> None:
            seen.append((outgoing.kind, outgoing.bus, outgoing.topic_filter))

    app.use(Look())

    @app.application("#")
    async def everything(payload: Any) -> None: ...

    @app.application("in/{name}")
    async def work(payload: int, socket: Socket, message_builder: MessageBuilder) -> None:
        if payload:
            await socket.publish("in/it", payload - 1)
            await socket.publish(READINGS.at(room="north"), 1)
            socket.post(READINGS.at(room="north"), 1, key="k")
            await socket.publish(message_builder(READINGS.at(room="south"), 1))
            assert await socket.request(ASKS.at(room="north"), 1) == 1

    @app.application("ask/{room}")
    async def ask(payload: int) -> int:
        return payload

    with Harness(app) as harness:
        harness.publish("in/it", 1)
        harness.settle()
    bus = "mqtt://broker.example:1883"
    assert {one[1] for one in seen} == {bus}
    assert [one[2] for one in seen if one[0] == "publish"] == ["in/{name}"] + [READINGS.filter] * 3
    assert [one[2] for one in seen if one[0] in ("request", "reply")] == ["ask/{room}", None]
    assert ("call", bus, "in/{name}") in seen


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, SystemExit, GeneratorExit])
def test_what_asks_for_the_outcome_harms_nobody(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # One of its own, as of each kind only so many lines are written.
    monkeypatch.setattr(_middleware, "log", LimitedLog(get_logger("spa_dat")))
    app, seen = plain(), list[Outgoing]()

    async def later(error: BaseException | None) -> None: ...

    class Broken(Middleware):
        def publish(self, outgoing: Outgoing) -> None:
            with pytest.raises(ConfigurationError, match="give a 'def' function"):
                outgoing.on_outcome(later)
            outgoing.on_outcome(self.fail)
            outgoing.on_outcome(lambda error: seen.append(outgoing))

        async def handle(self, call: HandlerCall, next: Next) -> Any:
            call.on_outcome(self.fail)
            call.on_outcome(partial(self.return_unrun, 1))
            return await next()

        def undecodable(self, call: HandlerCall, outcome: CallOutcome) -> None:
            raise kind

        def fail(self, outcome: object) -> None:
            raise kind

        def return_unrun(self, one: int, outcome: object) -> object:
            return later(None)

    app.use(Broken())

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        if payload == 1:
            socket.post("out", payload)
        else:
            await socket.publish("out", payload)

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("in", 1)
        harness.publish("in", "no number")
        harness.publish("in", 2)
        # Each message is settled, once: a failure, or a message left behind, would be seen here.
        harness.settle()
        assert harness.published("out") == [1, 2]
        assert harness.stats["messages.failed"] == 0
        assert len(harness.dead_letters()) == 1
    assert [outgoing.topic for outgoing in seen] == ["out", "out"]
    assert "Broken.fail, given to on_outcome, has failed" in caplog.text
    assert "Broken.return_unrun, given to on_outcome, has failed" in caplog.text
    assert "it returned a coroutine" in caplog.text
    assert "Broken.undecodable has failed" in caplog.text
    with pytest.raises(RuntimeError, match="call it within it"):
        seen[0].on_outcome(print)


# Elsewhere.


class Marking(Middleware):
    """Says in which thread and process handlers run, and marks what leaves them."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.calls = 0

    async def handle(self, call: HandlerCall, next: Next) -> Any:
        self.calls += 1
        WHO.set(f"{self.mark} {self.calls}")
        return await next()

    def publish(self, outgoing: Outgoing) -> None:
        outgoing.headers["mark"] = self.mark


class Counting(Marking):
    def publish(self, outgoing: Outgoing) -> None:
        outgoing.headers["mark"] = f"{self.mark} {self.calls}"


class Ending(Marking):
    """Tells when it is over, or takes its time for it."""

    def __init__(self, told: list[str], path: Path) -> None:
        super().__init__("ending")
        self.told = told
        self.path = path

    async def stopped(self) -> None:
        self.told.append("stopped")
        with self.path.open("a") as file:
            file.write(f"{self.calls} calls\n")
        raise ValueError("broken")


async def test_it_is_told_of_the_end_in_each_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app, told, path = make(), list[str](), tmp_path / "calls"
    app.use(Ending(told, path))
    numbers = add_worker(app)
    async with app:
        app.socket().post("in", 1)
        await eventually(lambda: len(numbers) == 1)
        assert told == []
    assert told == ["stopped"]
    # Each has counted its own.
    assert path.read_text() == "1 calls\n" * 2
    assert "while stopping: broken" in caplog.text


@pytest.mark.virtual
async def test_the_stop_does_not_wait_for_it_for_ever() -> None:
    app = make()

    class Endless(Calls):
        async def stopped(self) -> None:
            await asyncio.Event().wait()

    app.use(Endless())
    loop = asyncio.get_running_loop()
    await app.__aenter__()
    before = loop.time()
    await app.__aexit__(None, None, None)
    assert loop.time() - before == pytest.approx(5, abs=1)


async def test_processes_have_a_copy_of_their_own() -> None:
    # What the copy knows it keeps itself: the process may have this module under another name, with
    # another context variable.
    app, marking = make(), Counting("seen")
    app.use(marking)
    got: list[tuple[int, str]] = []

    @app.application("in", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        await socket.publish("out", payload)

    @app.application("out", name="collector")
    async def take(message: Message[int]) -> None:
        got.append((message.payload, message.headers["mark"]))

    async with app:
        await app.socket().publish("in", 1)
        await app.socket().publish("in", 2)
        await eventually(lambda: len(got) == 2)
    assert got == [(1, "seen 1"), (2, "seen 2")]
    assert marking.calls == 2  # those of the collector


async def test_what_cannot_go_to_a_process_is_named() -> None:
    app, marking = make(), Marking("")
    marking.mark = threading.Lock()  # type: ignore[assignment]
    app.use(marking)

    @app.application("in", placement="process")
    async def work(payload: int) -> None: ...

    with pytest.raises(ConfigurationError) as raised:
        await app.__aenter__()
    assert "middleware 'Marking' -> attribute 'mark'" in str(raised.value)
    assert "have the middleware make it when it first uses it" in str(raised.value)


async def goes_round(url: str, name: str) -> None:
    app, seen = make(url, name=name), Calls()
    app.use(Tenant())
    app.use(seen)
    got: list[tuple[str, str]] = []

    @app.application(f"{name}/in")
    async def work(message: Message[int], socket: Socket) -> None:
        WHO.set("north")
        price = await socket.request(f"{name}/price", message.payload, reply=int)
        socket.post(f"{name}/out", price)

    @app.application(f"{name}/price")
    async def price(message: Message[int]) -> int:
        got.append(("price", message.headers["tenant"]))
        return message.payload

    @app.application(f"{name}/out")
    async def out(message: Message[int]) -> None:
        got.append(("out", message.headers["tenant"]))

    async with app:
        await app.socket().publish(f"{name}/in", 1)
        await eventually(lambda: len(got) == 2)
    assert got == [("price", "north"), ("out", "north")]
    assert [call.actor for call in seen.calls] == ["work", "price", "out"]


@pytest.mark.mosquitto
async def test_it_works_on_mqtt(mosquitto: Mosquitto) -> None:
    await goes_round(mosquitto.url, "middleware")


@pytest.mark.kafka
async def test_it_works_on_kafka(kafka: Kafka) -> None:
    await goes_round(f"{kafka.url}?create_topics=all&prefix=middleware.", "middleware")


# Without any, nothing is different.


async def test_the_short_way_stays_without_middleware_around_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long: list[str] = []
    fully = DeliveryProcessor._handle_fully

    def handle_fully(self: DeliveryProcessor, instance: Any, delivery: Any, *rest: Any) -> Any:
        long.append(delivery.envelope.topic)
        return fully(self, instance, delivery, *rest)

    monkeypatch.setattr(DeliveryProcessor, "_handle_fully", handle_fully)
    expected: list[list[str]] = [[], [], ["in"]]
    for middleware, way in zip((None, Refusing(), Calls()), expected, strict=True):
        app = make()
        got = collect(app, "in")
        if middleware is not None:
            app.use(middleware)
        async with app:
            connection = app.socket()._connection
            assert (type(connection) is BusConnection) == (not isinstance(middleware, Refusing))
            await app.socket().publish("in", 1)
            await eventually(partial(len, got))
        assert long == way


# What is no middleware.


class BlockingHandle(Middleware):
    def handle(self, call: HandlerCall, next: Next) -> Any:
        """It is not async."""


class BlockingStopped(Calls):
    def stopped(self) -> None:  # type: ignore[override]
        """It is not async."""


class AsyncUndecodable(Calls):
    async def undecodable(self, *_: Any) -> None:  # type: ignore[override]
        """It is async."""


class AsyncPublish(Middleware):
    async def publish(self, outgoing: Outgoing) -> None:  # type: ignore[override]
        """It is async."""


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Calls, r"use\(Calls\): give an instance, Calls\(\)"),
        (print, "give an instance of a class derived from Middleware"),
        (None, r"use\(None\)"),
        (Middleware(), "has neither handle nor publish of its own"),
        (BlockingHandle(), "its method handle must be 'async def'"),
        (AsyncUndecodable(), "its method undecodable must be 'def'"),
        (BlockingStopped(), "its method stopped must be 'async def'"),
        (AsyncPublish(), "its method publish must be 'def'"),
    ],
)
def test_what_is_no_middleware_is_refused(given: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        plain().use(given)


async def test_it_is_registered_once_and_before_the_start() -> None:
    app, calls = make(), Calls()
    app.use(calls)
    app.use(Calls())
    with pytest.raises(ConfigurationError, match=r"use\(Calls\(\)\): it is registered already"):
        app.use(calls)
    collect(app, "in")
    async with app:
        with pytest.raises(ConfigurationError, match="cannot register middleware while"):
            app.use(Calls())


TYPED = """
from collections.abc import Awaitable, Callable
from typing import Any

from spa_dat import DistributedApplication, HandlerCall, Message, Middleware, Outgoing

class Mine(Middleware):
    async def handle(self, call: HandlerCall, next: Callable[[], Awaitable[Any]]) -> Any:
        message: Message[bytes] | None = call.message
        names: tuple[str, str, int] = (call.actor, call.handler, call.attempt)
        return await next()

    def publish(self, outgoing: Outgoing) -> None:
        outgoing.headers["a"] = "b"
        outgoing.payload = 1

DistributedApplication("memory://").use(Mine())
"""
MISTYPED = """
from spa_dat import DistributedApplication, HandlerCall, Middleware, Outgoing

class Mine(Middleware):
    async def publish(self, outgoing: Outgoing) -> None:
        outgoing.topic = "a"
        outgoing.headers["a"] = 1

DistributedApplication("memory://").use(Mine)
DistributedApplication("memory://").use(print)
"""


@pytest.mark.slow
def test_a_type_checker_knows_it(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    good, bad = check_types(tmp_path, TYPED, MISTYPED)
    assert errors(good) == [], good
    assert errors(bad) == [5, 6, 7, 9, 10], bad
