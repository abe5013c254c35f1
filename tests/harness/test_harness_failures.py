"""Which failures fail a test: those that nobody in it has seen, and nobody expected."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from spa_dat import DistributedApplication, RemoteError, RetryPolicy, Socket
from spa_dat.errors import RequestTimeout
from spa_dat.testing import HandlerFailed, Harness, HarnessFactory


def shop() -> DistributedApplication:
    """Knows no prices, and asks for them."""
    app = DistributedApplication("mqtt://broker", name="shop")

    @app.application("price/{item}")
    async def price(item: str) -> float:
        if item == "nut":
            return 1.0 / 0.0
        raise RemoteError("unknown-item", item)

    @app.application("buy", retry=RetryPolicy(attempts=1))
    async def buy(item: str, socket: Socket) -> None:
        await socket.request(f"price/{item}", reply=float)

    @app.application("look", retry=RetryPolicy(attempts=1))
    async def look(item: str, socket: Socket) -> None:
        try:
            await socket.request(f"price/{item}", reply=float)
        except RemoteError as error:
            await socket.publish("said", error.code)

    @app.application("relay")
    async def relay(item: str, socket: Socket) -> float:
        return await socket.request(f"price/{item}", reply=float)

    @app.application("number")
    async def number(payload: int) -> int:
        return payload

    return app


@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
@pytest.mark.parametrize(
    ("topic", "payload", "code", "cause"),
    [
        ("price/bolt", None, "unknown-item", RemoteError),
        ("price/nut", None, "failed", ZeroDivisionError),
        ("relay", "bolt", "unknown-item", RemoteError),
        ("number", "none", "bad-request", Exception),
    ],
)
def test_what_a_request_of_the_test_is_answered_with_is_seen(
    topic: str, payload: object, code: str, cause: type[Exception], profile: str
) -> None:
    with Harness(shop(), profile=profile) as harness:  # type: ignore[arg-type]
        with pytest.raises(RemoteError, match=code) as caught:
            harness.request(topic, payload)
        assert isinstance(caught.value.__cause__, cause)
        assert harness.failures


def test_a_request_of_the_test_with_the_fixture(harness: HarnessFactory) -> None:
    world = harness(shop())
    with pytest.raises(RemoteError, match="unknown-item"):
        world.request("price/bolt", reply=float)


async def test_a_request_of_an_async_test(harness: HarnessFactory) -> None:
    async with harness(shop()) as world:
        with pytest.raises(RemoteError, match="unknown-item"):
            await world.request("price/bolt", reply=float)


def test_an_answer_that_the_test_does_not_expect_fails_it() -> None:
    with pytest.raises(RemoteError, match="unknown-item"), Harness(shop()) as harness:
        harness.request("price/bolt", reply=float)


def test_an_actor_may_take_an_error_for_an_answer() -> None:
    with Harness(shop()) as harness:
        harness.publish("look", "bolt")
        harness.settle()
        assert harness.published("said") == ["unknown-item"]
        assert [failure.where for failure in harness.failures] == ["answer"]


def test_an_actor_that_does_not_expect_such_an_answer_fails_the_test() -> None:
    with Harness(shop()) as harness:
        harness.publish("buy", "bolt")
        with pytest.raises(HandlerFailed, match=r"handler of shop/0/buy(?!(.|\n)*price)"):
            harness.settle()


@pytest.mark.parametrize("topic", ["look", "buy"])
def test_a_mistake_of_a_responder_fails_the_test_whoever_gets_it(topic: str) -> None:
    with Harness(shop()) as harness:
        harness.publish(topic, "nut")
        with pytest.raises(HandlerFailed, match=r"handler of shop/0/price .*ZeroDivisionError"):
            harness.settle()


def test_what_failed_before_and_after_a_request_is_not_taken_for_its_answer() -> None:
    with Harness(shop()) as harness:
        for _ in range(2):
            harness.publish("buy", "bolt")
            with pytest.raises(RemoteError, match="unknown-item"):
                harness.request("price/bolt", reply=float)
            with pytest.raises(HandlerFailed, match="shop/0/buy"):
                harness.settle()


def test_what_a_request_that_has_timed_out_was_not_answered_with_is_not_seen() -> None:
    app = DistributedApplication("mqtt://broker", name="slow")

    @app.application("in")
    async def fail(payload: int) -> int:
        await asyncio.sleep(10.0)
        raise OSError("no route")

    with Harness(app) as harness:
        with pytest.raises(RequestTimeout):
            harness.request("in", 1, timeout=5.0)
        with pytest.raises(HandlerFailed, match="no route"):
            harness.settle()


def test_an_expected_failure_may_also_be_an_answer() -> None:
    with Harness(shop()) as harness:
        harness.expect_failure(ZeroDivisionError)
        with pytest.raises(RemoteError, match="failed"):
            harness.request("price/nut", reply=float)


def test_a_task_that_fails_and_is_kept_and_never_looked_at_fails_the_test() -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    tasks: list[asyncio.Task[None]] = []

    async def fail() -> None:
        raise ValueError("no such thing")

    @app.application("in")
    async def start(payload: int) -> None:
        tasks.append(asyncio.create_task(fail()))

    @app.application("look")
    async def look(payload: int) -> None:
        for task in tasks:
            with pytest.raises(ValueError, match="no such thing"):
                await task

    with pytest.raises(HandlerFailed, match=r"task of .*fail: ValueError"), Harness(app) as harness:
        harness.publish("in", 1)
    tasks.clear()
    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        harness.publish("look", 1)


def test_a_resource_that_fails_when_it_is_left_fails_the_test() -> None:
    app = DistributedApplication("mqtt://broker", name="app")

    @contextmanager
    def database() -> Iterator[str]:
        yield "open"
        raise ValueError("not closed")

    app.resource("db", database)

    @app.application("in")
    async def use(payload: int, db: object) -> None:
        """Nothing."""

    with pytest.raises(HandlerFailed, match="resource of app/0: ValueError"), Harness(app):
        pass


class Unspeakable(Exception):
    """Nothing can be made of it but what is raised."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
@pytest.mark.parametrize("kind", ["handler", "producer"])
def test_a_failure_without_a_text_is_told_like_any_other(profile: Any, kind: str) -> None:
    app = DistributedApplication(f"{profile}://broker.example", name="app")

    @app.application("n", retry=RetryPolicy(attempts=1))
    async def handle(number: int) -> None:
        if kind == "handler":
            raise Unspeakable

    if kind == "producer":

        @app.producer()
        async def produce() -> None:
            raise Unspeakable

    with (
        pytest.raises(HandlerFailed, match=f"{kind} of .*: Unspeakable: .its text"),
        Harness(app, profile=profile) as harness,
    ):
        harness.publish("n", 1)
