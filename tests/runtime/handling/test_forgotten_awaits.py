"""A call of the socket that nobody awaits has done nothing, which is an error."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from spa_dat import Actor, DistributedApplication, Message, RetryPolicy, Socket
from spa_dat.errors import RemoteError
from support.memory import Site

ONCE = RetryPolicy(attempts=1)
TOLD = "Socket.publish(...) was called without `await`, so it has done nothing: "


def forget(socket: Socket, call: str = "publish") -> None:
    getattr(socket, call)("elsewhere")


async def fast(app: DistributedApplication) -> None:
    @app.application("n", name="actor", retry=ONCE)
    async def handle(number: int, socket: Socket) -> None:
        forget(socket)


async def with_deadline(app: DistributedApplication) -> None:
    @app.application("n", name="actor", retry=ONCE, deadline=10)
    async def handle(number: int, socket: Socket) -> None:
        forget(socket)


async def batch(app: DistributedApplication) -> None:
    @app.application("n", name="actor", retry=ONCE, batch=(1, 1))
    async def handle(numbers: list[int], socket: Socket) -> None:
        forget(socket)


async def method(app: DistributedApplication) -> None:
    class Forgetful(Actor):
        name = "actor"
        topics = "n"
        retry = ONCE

        async def on_message(self, message: Message[int], socket: Socket) -> None:
            forget(socket)

    app.add(Forgetful)


@pytest.mark.parametrize("make", [fast, with_deadline, batch, method])
@pytest.mark.virtual
async def test_a_forgotten_await_fails_the_message_and_is_named(make: Any) -> None:
    site = Site()
    app = site.app()
    await make(app)
    async with app:
        site.number("n", 1)
        await site.settled()
    (letter,) = site.letters()
    assert letter.headers["spa_dead_error"] == "ConfigurationError"
    text = letter.headers["spa_dead_text"]
    assert text.startswith(TOLD + "forget at ")
    assert "test_forgotten_awaits.py:" in text


@pytest.mark.parametrize("call", ["publish", "request", "request_many", "subscribe"])
@pytest.mark.virtual
async def test_one_in_a_responder_is_the_answer(call: str) -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> int:
        forget(socket, call)
        return number

    async with app:
        with pytest.raises(RemoteError, match=rf"Socket\.{call}\(\.\.\.\) was called without"):
            await app.socket().request("n", 1, reply=int)


@pytest.mark.virtual
async def test_one_outside_of_a_message_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = Site().app()

    @app.producer()
    async def produce(socket: Socket) -> None:
        forget(socket)

    async with app:
        await app.wait()
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert line.startswith(TOLD + "forget at ")


def test_who_starts_an_application_as_with_0_4_0_is_told_how_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://")
    app.start()  # type: ignore[unused-coroutine]
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert "was called without `await`" in line
    assert line.endswith("write app.run()")


async def test_python_still_warns_of_others() -> None:
    async def other() -> None: ...

    with pytest.warns(RuntimeWarning) as told:
        other()  # type: ignore[unused-coroutine]
    (warning,) = told
    assert str(warning.message).endswith("other' was never awaited")
    assert warning.filename == __file__


@pytest.mark.virtual
async def test_one_that_is_freed_later_is_no_failure_of_the_next_message() -> None:
    site = Site()
    app = site.app()
    kept: list[Any] = []

    @app.application("n", name="actor", retry=ONCE)
    async def handle(number: int, socket: Socket) -> None:
        if number == 1:
            kept.append(socket.publish("elsewhere"))
        else:
            with pytest.warns(RuntimeWarning, match="never awaited"):
                kept.clear()

    async with app:
        site.number("n", 1, 2)
        await site.settled()
        assert app.stats["messages.handled"] == 2
