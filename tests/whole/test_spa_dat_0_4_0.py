"""Programs of spa-dat 0.4.0 and ours on the same broker: all four directions, on MQTT and Kafka."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from spa_dat import DistributedApplication, Message, Socket
from spa_dat.errors import NoResponder, RemoteError, RequestTimeout
from spa_dat.testing import Kafka
from support.kafka_bus import admin
from support.peers import BUSES, address_of_bus
from support.spa_dat_0_4_0 import OldProgram
from support.waiting import eventually

pytestmark = pytest.mark.slow

CONSUMES = """
@app.application(topic)
async def take(message, **kwargs):
    said(message)
"""
ANSWERS = """
@app.application(topic)
async def answer(message, socket, message_builder, **kwargs):
    await socket.publish(
        message_builder(topic=message.response_topic, payload=b"answer to " + message.payload)
    )
"""
PUBLISHES = """
@app.producer()
async def publish(socket, message_builder, **kwargs):
    for number in range(3):
        await socket.publish(message_builder(topic=topic, payload=f"Grüße {number}".encode()))
"""
# 0.4.0 may miss the first replies on Kafka: it asks before its consumer has a position.
ASKS = """
@app.producer()
async def ask(socket, message_builder, **kwargs):
    while True:
        try:
            request = socket.request(message_builder(topic=topic, payload=b"ask"))
            said(await asyncio.wait_for(request, 3))
            return
        except asyncio.TimeoutError:
            pass
"""


class Place:
    """A broker for both kinds of programs."""

    def __init__(self, bus: str, host: str, port: int) -> None:
        self.bus = bus
        self.host = host
        self.port = port
        self.topic = f"old-{uuid.uuid4().hex[:8]}"

    def old(self, text: str) -> OldProgram:
        return OldProgram(self.bus, (self.host, self.port), self.topic, text)

    def app(self, **options: str) -> DistributedApplication:
        options = {"wire": "spa-dat"} | options
        if self.bus == "kafka":
            options["create_topics"] = "all"
        given = "&".join(f"{name}={value}" for name, value in options.items())
        url = f"{self.bus}://{self.host}:{self.port}?{given}"
        return DistributedApplication(url, name=f"new-{uuid.uuid4().hex[:8]}")


@pytest.fixture(params=BUSES)
def place(request: pytest.FixtureRequest) -> Place:
    return Place(*address_of_bus(request))


async def until(attempt: Callable[[], Awaitable[bool]]) -> None:
    """Repeat an attempt, because nothing tells when a program of 0.4.0 has subscribed."""
    async with asyncio.timeout(60):
        while not await attempt():
            pass


async def test_what_0_4_0_publishes_is_handled(place: Place) -> None:
    app = place.app()
    got: list[Message[str]] = []

    @app.application(place.topic)
    async def take(message: Message[str]) -> None:
        got.append(message)

    async with app:
        with place.old(PUBLISHES):
            await eventually(lambda: len(got) == 3, 60)
    assert [message.payload for message in got] == ["Grüße 0", "Grüße 1", "Grüße 2"]
    assert {(message.topic, message.response_topic) for message in got} == {(place.topic, None)}
    assert all(message.source for message in got)


async def test_what_we_publish_is_consumed_by_0_4_0(place: Place) -> None:
    app = place.app()
    with place.old(CONSUMES) as old:
        async with app:

            async def publish() -> bool:
                await app.socket().publish(place.topic, {"grüße": '"\n'})
                await asyncio.wait((asyncio.ensure_future(heard()),), timeout=1)
                return bool(old.lines)

            async def heard() -> None:
                await eventually(lambda: bool(old.lines), 60)

            await until(publish)
            heard_first = old.lines[0]
            # It has not become deaf.
            before = len(old.lines)
            await app.socket().publish(place.topic, "again")
            await eventually(lambda: len(old.lines) > before, 60)
    assert heard_first["payload"] == '{"grüße":"\\"\\n"}'
    assert heard_first["topic"] == place.topic
    assert heard_first["content_type"] == "application/json"
    assert heard_first["client_name"].startswith("new-")


async def test_what_0_4_0_asks_is_answered(place: Place) -> None:
    app = place.app()

    @app.application(place.topic)
    async def answer(payload: str) -> str:
        return f"answer to {payload}"

    async with app:
        with place.old(ASKS) as old:
            heard = await old.says()
    assert heard["payload"] == "answer to ask"
    assert heard["response_topic"] is None


async def test_what_we_ask_is_answered_by_0_4_0(place: Place) -> None:
    app = place.app()
    with place.old(ANSWERS):
        async with app:
            socket = app.socket()

            # One at a time: on Kafka those that get no reply take places from others.
            async def ask() -> bool:
                try:
                    await socket.request(place.topic, "first", reply=str, timeout=5)
                except (NoResponder, RequestTimeout):
                    return False
                return True

            await until(ask)
            replies = await asyncio.gather(
                *(
                    socket.request(place.topic, f"q{number}", reply=str, timeout=60)
                    for number in range(5)
                )
            )
    assert replies == [f"answer to q{number}" for number in range(5)]


# In an application whose bus has no option.


async def test_a_single_actor_handles_what_0_4_0_publishes(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    app = place.app(wire="cloudevents")
    got: list[str] = []

    @app.application(place.topic, wire="spa-dat")
    async def take(payload: str) -> None:
        got.append(payload)

    @app.application(place.topic)
    async def other(payload: bytes) -> None:
        raise AssertionError("it is no payload")

    with caplog.at_level(logging.WARNING):
        async with app:
            with place.old(PUBLISHES):
                await eventually(
                    lambda: len(got) == 3 and app.stats["dead_letters.stored"] == 3, 60
                )
    assert got == ["Grüße 0", "Grüße 1", "Grüße 2"]
    said = [record for record in caplog.records if "0.4.0 publishes on" in record.getMessage()]
    assert len(said) == 1


@pytest.mark.parametrize("whose", ["actor", "message"])
async def test_what_a_single_actor_or_call_publishes_is_consumed_by_0_4_0(
    place: Place, whose: str
) -> None:
    app = place.app(wire="cloudevents")

    @app.application(f"{place.topic}-go", wire="spa-dat" if whose == "actor" else None)
    async def forward(payload: str, socket: Socket) -> None:
        if whose == "actor":
            await socket.publish(place.topic, payload)
        else:
            await socket.publish(place.topic, payload, wire="spa-dat")

    with place.old(CONSUMES) as old:
        async with app:

            async def publish() -> bool:
                await app.socket().publish(f"{place.topic}-go", "Grüße")
                await asyncio.wait((asyncio.ensure_future(heard()),), timeout=1)
                return bool(old.lines)

            async def heard() -> None:
                await eventually(lambda: bool(old.lines), 60)

            await until(publish)
    assert old.lines[0]["payload"] == "Grüße"
    assert old.lines[0]["client_name"].startswith("new-")


async def test_what_0_4_0_asks_is_answered_by_a_single_actor(place: Place) -> None:
    app = place.app(wire="cloudevents")

    @app.application(place.topic, wire="spa-dat")
    async def answer(payload: str) -> str:
        return f"answer to {payload}"

    async with app:
        with place.old(ASKS) as old:
            heard = await old.says()
    assert heard["payload"] == "answer to ask"


@pytest.mark.parametrize("whose", ["actor", "message"])
async def test_what_a_single_actor_or_call_asks_is_answered_by_0_4_0(
    place: Place, whose: str
) -> None:
    app = place.app(wire="cloudevents")
    go = f"{place.topic}-go"

    @app.application(go, wire="spa-dat" if whose == "actor" else None)
    async def forward(payload: str, socket: Socket) -> str:
        if whose == "actor":
            return await socket.request(place.topic, payload, reply=str, timeout=5)
        return await socket.request(place.topic, payload, reply=str, timeout=5, wire="spa-dat")

    with place.old(ANSWERS):
        async with app:

            async def ask() -> bool:
                try:
                    reply = await app.socket().request(go, "q", reply=str)
                except RemoteError:
                    # Nobody has subscribed yet.
                    return False
                assert reply == "answer to q"
                return True

            await until(ask)


@pytest.mark.kafka
async def test_a_late_reply_of_0_4_0_is_not_taken_for_another(kafka: Kafka) -> None:
    place = Place("kafka", kafka.host, kafka.port or 9092)
    app = place.app()
    pause = "    await asyncio.sleep(3 * (message.payload == b'late'))\n    await"
    late = ANSWERS.replace("    await", pause)
    # Requests from before it has subscribed.
    lost = 0
    with place.old(late):
        async with app:
            socket = app.socket()

            async def ask() -> bool:
                try:
                    return await socket.request(place.topic, "first", reply=str, timeout=2) != ""
                except RequestTimeout:
                    nonlocal lost
                    lost += 1
                    return False

            await until(ask)
            with pytest.raises(RequestTimeout):
                await socket.request(place.topic, "late", timeout=1)
            replies = await asyncio.gather(
                *(socket.request(place.topic, f"q{n}", reply=str, timeout=30) for n in range(3))
            )
            assert replies == [f"answer to q{number}" for number in range(3)]
    async with admin(kafka.server) as client:

        async def only_lost_ones_are_left() -> bool:
            names = await client.list_topics()
            assert f"_spa.reply.{app.name}" in names
            left = [name for name in names if name.startswith(f"_spa.reply.{app.name}-")]
            return len(left) <= lost

        # A broker hears from its controller only after we do that a topic is deleted.
        await until(only_lost_ones_are_left)


async def test_what_0_4_0_publishes_is_recognised_without_the_option(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    app = place.app(wire="cloudevents")

    @app.application(place.topic)
    async def take(payload: bytes) -> None:
        raise AssertionError("it is no payload")

    with caplog.at_level(logging.WARNING):
        async with app:
            with place.old(PUBLISHES):
                await eventually(lambda: app.stats["dead_letters.stored"] == 3, 60)
    said = [record for record in caplog.records if "0.4.0 publishes on" in record.getMessage()]
    assert len(said) == 1
    assert repr(place.topic) in said[0].getMessage()


@pytest.mark.kafka
async def test_the_end_of_0_4_0_deletes_topics_and_ours_go_on(kafka: Kafka) -> None:
    place = Place("kafka", kafka.host, kafka.port or 9092)
    app = place.app()
    got: list[Any] = []

    @app.application(place.topic)
    async def take(message: Message[str], socket: Socket) -> None:
        got.append(message.payload)

    ends = """
@app.application(topic)
async def take(message, **kwargs):
    said(message)
    raise SystemExit
"""
    async with app:
        socket = app.socket()
        await socket.publish(place.topic, "before")
        await eventually(lambda: got == ["before"], 60)
        with place.old(ends) as old:

            async def publish() -> bool:
                await socket.publish(place.topic, "last")
                await asyncio.wait((asyncio.ensure_future(gone()),), timeout=1)
                return not old.alive

            async def gone() -> None:
                await eventually(lambda: not old.alive, 60)

            await until(publish)

        async def again() -> bool:
            await socket.publish(place.topic, "after")
            await asyncio.wait((asyncio.ensure_future(came()),), timeout=1)
            return "after" in got

        async def came() -> None:
            await eventually(lambda: "after" in got, 60)

        await until(again)
