"""Requests that would wait for themselves, on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spa_dat import Actor, Message, RetryPolicy, Socket, SyncSocket, on
from spa_dat.errors import RemoteError, RequestTimeout
from spa_dat.runtime.messaging._limited_posts import MOST_POSTS
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual


class Outcomes:
    """What requests led to, and how long that took."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.took: list[float] = []

    async def ask(self, socket: Socket, topic: str, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            return await socket.request(topic, **options)
        except Exception as error:
            self.errors.append(error)
            raise
        finally:
            self.took.append(loop.time() - start)

    @property
    def innermost(self) -> RemoteError:
        error = self.errors[0]
        assert isinstance(error, RemoteError)
        assert error.code == "deadlock"
        assert self.took[0] < 0.1
        return error


async def test_a_request_to_oneself_is_answered_at_once_with_the_cycle() -> None:
    site = Site()
    app = site.app()
    outcomes = Outcomes()

    @app.application("a")
    async def a(payload: bytes, socket: Socket) -> bytes:
        return await outcomes.ask(socket, "a") or b""

    back = site.watch("back")
    async with app:
        site.publish("a", response_topic="back")
        await site.settled("app.0.a")
    assert "app/0/a -> app/0/a" in outcomes.innermost.text
    assert back.envelopes[0].headers["spa_error"] == "deadlock"
    assert app.stats["requests.deadlocked"] == 1


@pytest.mark.parametrize("length", [2, 3, 5])
async def test_cycles_through_several_applications_are_answered_at_once(length: int) -> None:
    site = Site()
    outcomes = Outcomes()
    apps = []
    for number in range(length):
        app = site.app(f"app{number}")
        following = f"actor{(number + 1) % length}"

        @app.application(f"actor{number}", name=f"actor{number}")
        async def handle(payload: bytes, socket: Socket, _next: str = following) -> bytes:
            return await outcomes.ask(socket, _next) or b""

        apps.append(app)
    back = site.watch("back")
    for app in apps:
        await app.__aenter__()
    site.publish("actor0", response_topic="back")
    await back.get()
    for app in apps:
        await app.aclose()
    cycle = [f"app{number}/0/actor{number}" for number in (*range(length), 0)]
    assert " -> ".join(cycle) in outcomes.innermost.text
    assert len(outcomes.errors) == length


async def test_a_cycle_through_a_thread_is_noticed() -> None:
    site = Site()
    app = site.app()
    errors: list[Exception] = []

    @app.application("a", retry=RetryPolicy(attempts=1))
    def a(payload: bytes, socket: SyncSocket) -> bytes:
        try:
            return socket.request("b", timeout=50)
        except RemoteError as error:
            errors.append(error)
            raise

    @app.application("b")
    async def b(payload: bytes, socket: Socket) -> bytes:
        return await socket.request("a", timeout=50)

    async with app:
        site.publish("a")
        await site.settled("app.0.a", timeout=300)
    assert errors
    assert "app/0/a -> app/0/b -> app/0/a" in str(errors[0])


async def test_a_cycle_through_a_local_ask_is_noticed() -> None:
    site = Site()
    app = site.app()
    outcomes = Outcomes()

    class Asked(Actor):
        socket: Socket

        @on("asked")
        async def handle(self, socket: Socket) -> bytes:
            self.socket = socket
            return b""

        async def on_receive(self, message: str) -> Any:
            return await outcomes.ask(self.socket, message)

    asked = app.add(Asked)

    @app.application("a")
    async def a(payload: bytes) -> bytes:
        return await asked.ref.ask("a", timeout=20) or b""

    async with app:
        site.publish("asked")
        await site.settled("app.0.Asked")
        site.publish("a")
        await site.settled("app.0.a", timeout=300)
    assert "app/0/a -> app/0/Asked -> app/0/a" in outcomes.innermost.text


async def test_one_that_only_listens_to_its_own_request_is_no_cycle() -> None:
    site = Site()
    app = site.app()
    heard: list[str] = []
    got: list[int] = []

    class Meter(Actor):
        @on("start")
        async def start(self, socket: Socket) -> None:
            got.append(await socket.request("double", 21, reply=int, timeout=5))

        @on("#")
        async def listen(self, message: Message[bytes]) -> None:
            heard.append(message.topic)

    app.add(Meter)

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    async with app:
        site.publish("start")
        await eventually(lambda: heard)
    assert got == [42]
    assert heard == ["double"]
    assert app.stats["requests.deadlocked"] == 0


async def test_others_answer_a_request_that_also_reaches_the_one_who_asks() -> None:
    site = Site()
    app = site.app()
    replies: list[Any] = []

    for name in ("one", "two"):

        @app.application(["who", f"start/{name}"], name=name)
        async def handle(message: Message[bytes], socket: Socket) -> str:
            if message.topic != "who":
                replies.extend(await socket.request_many("who", reply=str, timeout=1))
            return "here"

    async with app:
        site.publish("start/one")
        await eventually(lambda: replies)
    assert sorted(type(reply).__name__ for reply in replies) == ["RemoteError", "str"]


async def test_a_task_that_a_handler_left_behind_may_ask_its_own_actor() -> None:
    site = Site()
    app = site.app()
    got: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def later(socket: Socket) -> None:
        got.append(await socket.request("double", 21, reply=int, timeout=5))

    class Meter(Actor):
        @on("start")
        async def start(self, socket: Socket) -> None:
            tasks.append(asyncio.ensure_future(later(socket)))

        @on("double")
        async def double(self, number: int) -> int:
            return 2 * number

    app.add(Meter)
    async with app:
        site.publish("start")
        await eventually(lambda: got == [42])


async def test_diamonds_are_no_cycles() -> None:
    site = Site()
    app = site.app()

    @app.application("top")
    async def top(payload: bytes, socket: Socket) -> int:
        left, right = await asyncio.gather(
            socket.request("left", reply=int, timeout=5),
            socket.request("right", reply=int, timeout=5),
        )
        return left + right

    for name in ("left", "right"):

        @app.application(name, name=name)
        async def handle(payload: bytes, socket: Socket) -> int:
            return await socket.request("bottom", reply=int, timeout=5)

    @app.application("bottom")
    async def bottom() -> int:
        return 21

    back = site.watch("back")
    async with app:
        site.publish("top", response_topic="back")
        await back.get()
    assert back.payloads == ["42"]


async def test_a_chain_longer_than_is_told_still_ends() -> None:
    site = Site()
    app = site.app()
    count = 20

    for number in range(count):

        @app.application(f"n/{number}", name=f"n{number}")
        async def handle(payload: bytes, socket: Socket, _next: int = number + 1) -> int:
            if _next == count:
                return 0
            return 1 + await socket.request(f"n/{_next}", reply=int, timeout=5)

    back = site.watch("back")
    async with app:
        site.publish("n/0", response_topic="back")
        await back.get()
    assert back.payloads == [str(count - 1)]


@pytest.mark.parametrize(
    "chain", ["", ",,,", "x" * 100_000, ",".join(["a/0/b"] * 10_000), "app/0/q", "\u2028"]
)
async def test_a_hostile_chain_does_no_harm(chain: str) -> None:
    site = Site()
    app = site.app()
    got: list[Any] = []

    @app.application("q")
    async def q(number: int, socket: Socket) -> int:
        return await socket.request("next", number, reply=int, timeout=5)

    @app.application("next", name="next")
    async def following(number: int) -> int:
        return number

    back = site.watch("back")
    async with app:
        site.publish("q", "1", response_topic="back", headers={"spa_chain": chain})
        await back.get()
        site.publish("q", "2", response_topic="q/own", headers={"spa_chain": chain})
        await site.settled("app.0.q")
    got.extend(back.payloads)
    assert len(got) == 1
    assert got == ["1"] or back.envelopes[0].headers["spa_error"] == "deadlock"


async def test_a_request_to_oneself_that_nobody_marks_times_out() -> None:
    """What is asked through somebody who does not pass the chain on cannot be noticed."""
    site = Site()
    app = site.app()
    errors: list[Exception] = []

    @app.application("a")
    async def a(payload: bytes, socket: Socket) -> None:
        try:
            await socket.request("foreign", timeout=2)
        except RequestTimeout as error:
            errors.append(error)

    foreign = site.watch("foreign")
    async with app:
        site.publish("a")
        request = (await foreign.get())[0]
        site.publish("a", response_topic=request.response_topic)
        await site.settled("app.0.a")
    assert errors


async def test_requests_that_claim_to_be_circles_do_not_fill_the_outbox() -> None:
    """Whoever writes the chain may send more of them than the broker confirms."""
    count = 1_000
    site = Site(outbox=2 * MOST_POSTS)
    app = site.app()

    @app.application("q")
    async def q(number: int) -> int:
        return number

    back = site.watch("back")
    async with app:
        site.faults.refuse_connections()
        site.cut("app.0")
        for number in range(count):
            site.publish("q", str(number), response_topic="back", headers={"spa_chain": "app/0/q"})
        await eventually(lambda: app.stats["requests.deadlocked"] == MOST_POSTS)
        app.socket().post("out", 1)
        site.faults.allow()
        await back.get(count)
        await site.settled("app.0.q")
    refused = [envelope for envelope in back.envelopes if "spa_error" in envelope.headers]
    assert len(refused) >= MOST_POSTS
    assert len(back.envelopes) == count
    assert app.stats["replies.refused"] == 0
