"""The options of publishing: the same for all calls that take them, and known to type checkers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spa_dat import DistributedApplication, MessageBuilder, Socket, SyncSocket
from spa_dat.errors import ConfigurationError
from spa_dat.runtime import PublishOptions
from spa_dat.testing import Harness
from support.type_checking import check_types, errors

WRAPPER = """
from typing import Unpack

from spa_dat import MessageBuilder, Socket, SyncSocket
from spa_dat.runtime import PublishOptions
from spa_dat.testing import Harness

async def everywhere(socket: Socket, sync: SyncSocket, build: MessageBuilder, test: Harness,
                     **options: Unpack[PublishOptions]) -> None:
    await socket.publish("a", 1, timeout=5, **options)
    socket.post("a", 1, **options)
    sync.publish("a", 1, timeout=5, **options)
    sync.post("a", 1, **options)
    test.publish("a", 1, id="i", bus="memory://", **options)
    await socket.publish(build("a", 1, response_topic="b", **options))

async def plain(socket: Socket) -> None:
    await socket.publish("a", key="k", headers={"a": "b"}, content_type="text/plain", type="t",
                         retain=True, qos=0, expiry=2.5)
"""
MISTAKES = """
from spa_dat import MessageBuilder, Socket, SyncSocket
from spa_dat.testing import Harness

async def use(socket: Socket, sync: SyncSocket, build: MessageBuilder, test: Harness) -> None:
    await socket.publish("a", kye="k")
    socket.post("a", qos="1")
    sync.publish("a", retain=1)
    sync.post("a", timeout=5)
    build("a", headers={"a": 1})
    test.publish("a", expiry="soon")
"""
OPTIONS: PublishOptions = {
    "key": "k",
    "headers": {"a": "b"},
    "content_type": "text/x-note",
    "type": "com.example.noted",
    "retain": True,
    "qos": 0,
    "expiry": 2.5,
}


@pytest.mark.slow
def test_a_function_may_hand_the_options_on_and_wrong_ones_are_found(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    good, bad = check_types(tmp_path, WRAPPER, MISTAKES)
    assert errors(good) == [], good
    assert errors(bad) == [6, 7, 8, 9, 10, 11], bad


def sending(call: str, topic: Any, payload: object = None, **options: Any) -> list[Any]:
    """Return what is published, or raised, by one call with these options."""
    app = DistributedApplication("memory://", name="app")
    raised: list[Any] = []

    @app.application("go", name="asynchronous")
    async def asynchronous(_: None, socket: Socket) -> None:
        calls: dict[str, Callable[..., Any]] = {
            "Socket.publish": socket.publish,
            "Socket.post": socket.post,
            "MessageBuilder": lambda *given, **named: socket.post(
                MessageBuilder()(*given, **named)
            ),
        }
        if call in calls:
            try:
                waiting = calls[call](topic, payload, **options)
                if waiting is not None:
                    await waiting
            except Exception as error:
                raised.append(error)

    @app.application("go", name="threaded")
    def threaded(_: None, socket: SyncSocket) -> None:
        calls: dict[str, Callable[..., Any]] = {
            "SyncSocket.publish": socket.publish,
            "SyncSocket.post": socket.post,
        }
        if call in calls:
            try:
                calls[call](topic, payload, **options)
            except Exception as error:
                raised.append(error)

    with Harness(app) as harness:
        harness.publish("go")
        if call == "Harness.publish":
            try:
                harness.publish(topic, payload, **options)
            except Exception as error:
                raised.append(error)
        harness.settle()
        return raised or harness.messages("out")


CALLS = (
    "Socket.publish",
    "Socket.post",
    "SyncSocket.publish",
    "SyncSocket.post",
    "MessageBuilder",
)


@pytest.mark.parametrize("call", CALLS)
def test_every_call_takes_all_options(call: str) -> None:
    (message,) = sending(call, "out", "text", **OPTIONS)
    assert (message.key, message.headers["a"]) == ("k", "b")
    assert (message.payload, message.content_type) == ("text", "text/x-note")
    assert message.type == "com.example.noted"
    (message,) = sending(call, "out", "text", headers=None, key=None, qos=None, expiry=None)
    assert (message.key, message.headers.keys()) == (None, {"causationid"})
    assert (message.content_type, message.type) == ("text/plain", "spa-dat.message")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *((call, "kye") for call in (*CALLS, "Harness.publish")),
        # Only a message that is built has one.
        *((call, "response_topic") for call in (*CALLS[:4], "Harness.publish")),
    ],
)
def test_an_option_that_there_is_not_is_a_type_error(call: str, name: str) -> None:
    (error,) = sending(call, "out", "text", **{name: "k"})
    assert type(error) is TypeError
    assert f"got an unexpected keyword argument {name!r}" in str(error)
    if name == "kye":
        assert str(error).endswith("; did you mean 'key'?")


def test_an_option_of_a_request_that_there_is_not_is_a_type_error() -> None:
    app = DistributedApplication("memory://", name="app")
    with app:
        sync = app.sync_socket()
        calls: list[Callable[..., Any]] = [sync.request, sync.request_many]
        for call in calls:
            with pytest.raises(TypeError, match=rf"{call.__name__}\(\) .*did you mean 'timeout'"):
                call("in", "text", timout=1)


@pytest.mark.parametrize("call", ["Socket.publish", "Socket.post", "SyncSocket.publish"])
@pytest.mark.parametrize("name", ["key", "headers", "content_type", "type", "retain", "qos"])
def test_a_whole_message_takes_no_options_besides(call: str, name: str) -> None:
    built = MessageBuilder()("out", "text")
    (error,) = sending(call, built, **{name: dict(OPTIONS)[name]})
    assert isinstance(error, ConfigurationError)
    assert "already has its payload and options" in str(error)
    (message,) = sending(call, built, expiry=5.0, retain=False, key=None)
    assert message.payload == "text"
