"""CloudEvents in structured mode in handlers: the event is the message, and a bad one fails."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from spa_dat import DistributedApplication, Message, MessageBuilder, Reject, RetryPolicy, Socket
from spa_dat.errors import DecodeError, RemoteError
from spa_dat.testing import Harness

STRUCTURED = "application/cloudevents+json"
BUSES = pytest.mark.parametrize("bus", ["memory://", "mqtt://broker", "kafka://broker"])


@dataclass
class Reading:
    celsius: float


def event(**members: Any) -> bytes:
    attributes = {"specversion": "1.0", "id": "A1", "source": "https://example.com/s", "type": "t"}
    return json.dumps(attributes | members).encode()


BROKEN = b'{"specversion":"1.0","id":"A1","source":"s","data":{"celsius":1}}'


@BUSES
def test_a_handler_gets_the_event(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    got: list[Any] = []

    @app.application("r", name="typed")
    async def typed(reading: Reading, message: Message[Reading], headers: dict[str, str]) -> None:
        got.append((reading, message.id, message.source, message.type, message.content_type))
        got.append((message.raw, headers["customer"]))

    @app.application("r", name="fast")
    async def fast(payload: bytes) -> None:
        got.append(payload)

    with Harness(app) as harness:
        harness.publish("r", event(data={"celsius": 21.5}, customer="c"), content_type=STRUCTURED)
        harness.settle()
    raw = b'{"celsius": 21.5}'
    expected = ("A1", "https://example.com/s", "t", "application/json")
    assert sorted(got, key=repr) == sorted([(Reading(21.5), *expected), (raw, "c"), raw], key=repr)


@BUSES
def test_a_bad_document_is_stored_as_it_came_and_reaches_no_handler(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    called: list[object] = []

    @app.application("a", name="raw")
    async def raw(payload: bytes) -> None:
        called.append(payload)

    @app.application("a", name="nothing")
    async def nothing() -> None:
        called.append(None)

    @app.application("a", name="anything", batch=(5, 1.0))
    async def anything(payload: list[dict[str, Any]]) -> None:
        called.extend(payload)

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("a", BROKEN, content_type=STRUCTURED)
        harness.settle()
        letters = harness.dead_letters()
    assert called == []
    assert len(letters) == 3
    for letter in letters:
        assert letter.payload == BROKEN
        assert letter.error == "DecodeError"
        assert "no 'type'" in letter.text
    assert harness.stats["messages.undecodable"] == 3


@BUSES
def test_a_dead_letter_of_an_event_is_the_document(bus: str) -> None:
    app = DistributedApplication(bus, name="app")

    @app.application("a")
    async def handle(number: int) -> None:
        raise Reject

    document = event(data="no number", customer="c")
    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("a", document, content_type=STRUCTURED, headers={"x": "y"})
        harness.settle()
        (letter,) = harness.dead_letters()
        (stored,) = harness.messages("_spa/dead-letter/#", type=bytes)
    assert letter.payload == document
    assert stored.content_type == STRUCTURED
    assert stored.headers["spa_dead_id"] == "A1"
    assert stored.headers["x"] == "y"
    assert "customer" not in stored.headers


@BUSES
def test_requests_and_replies_may_be_events(bus: str) -> None:
    app = DistributedApplication(bus, name="app")

    @app.application("double")
    async def double(
        message: Message[int], socket: Socket, message_builder: MessageBuilder
    ) -> None:
        data = {"data": 2 * message.payload}
        text = event(**data) if message.payload < 100 else BROKEN
        await socket.publish(message_builder(message.response_topic, text, content_type=STRUCTURED))

    got: list[object] = []

    @app.application("go", retry=RetryPolicy(attempts=1))
    async def go(socket: Socket, message_builder: MessageBuilder) -> None:
        for document in (event(data=21), BROKEN, event(data=100)):
            request = message_builder("double", document, content_type=STRUCTURED)
            try:
                got.append(await socket.request(request, reply=int))
            except (RemoteError, DecodeError) as error:
                got.append(error)

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("go")
        harness.settle()
    answer, refused, unreadable = got
    assert answer == 42
    assert isinstance(refused, RemoteError)
    assert refused.code == "bad-request"
    assert "no 'type'" in refused.text
    assert isinstance(unreadable, DecodeError)
    assert "app/0/double" in str(unreadable)


def test_ids_of_what_is_published_come_from_the_event() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("a", retry=RetryPolicy(attempts=2, first=0))
    async def handle(number: int, socket: Socket, message: Message[int]) -> None:
        await socket.publish("out", number)
        if message.attempt == 1:
            raise ValueError

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        # No id of the bus: whoever sends events in this way gives none.
        harness.publish("a", event(data=1), content_type=STRUCTURED, id="one")
        harness.publish("a", event(data=1), content_type=STRUCTURED, id="two")
        harness.settle()
        ids = [message.id for message in harness.messages("out")]
    assert len(ids) == 4
    assert len(set(ids)) == 1
