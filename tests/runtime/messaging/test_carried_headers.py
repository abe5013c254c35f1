"""Trace, correlation and cause: what of a message travels with all that is published over it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Message,
    MessageBuilder,
    RetryPolicy,
    Socket,
    SyncSocket,
    carried_headers,
    on,
)
from spa_dat.errors import RemoteError
from spa_dat.runtime.messaging._carried_headers import (
    carried_by,
    carried_by_all,
    correlation_id_of,
    with_carried,
)
from spa_dat.testing import Harness
from spa_dat.transports import Envelope

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
STATE = "vendor=t61rcWkgMzE,rojo@x=1"
HEADERS = {"traceparent": TRACE, "tracestate": STATE, "correlationid": "txn-7"}
BUSES = pytest.mark.parametrize("bus", ["memory://", "mqtt://broker", "kafka://broker"])


def of(headers: Mapping[str, str], **fields: Any) -> dict[str, str]:
    return carried_by(Envelope(topic="a", headers=headers, **fields))


# What is valid.


def test_trace_correlation_and_cause_are_carried() -> None:
    assert of({**HEADERS, "other": "x"}, id="1") == {**HEADERS, "causationid": "1"}
    assert of({}) == {}
    # On buses that number their messages, a message without an id is named by its number.
    assert of({}, partition=3, offset=7) == {"causationid": "a/3/7"}


@pytest.mark.parametrize(
    "trace",
    [
        TRACE,
        TRACE.replace("-01", "-ff"),
        # Later versions begin in the same way.
        TRACE.replace("00-", "01-", 1),
        TRACE.replace("00-", "cc-", 1) + "-what-comes",
    ],
)
def test_a_valid_traceparent_is_carried(trace: str) -> None:
    assert of({"traceparent": trace, "tracestate": STATE}) == {
        "traceparent": trace,
        "tracestate": STATE,
    }


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "x",
        TRACE.upper(),
        TRACE[:-1],
        TRACE + "\n",
        TRACE + "-more",
        TRACE.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        TRACE.replace("00-", "01-", 1) + "x",
        TRACE.replace("00-", "01-", 1) + "-\x00",
        TRACE.replace("00-", "01-", 1) + "-" + "x" * 1_000_000,
        "00-" + "a" * 10_000_000,
    ],
    ids=str.__len__,
)
def test_an_invalid_traceparent_is_dropped_with_its_state(trace: str) -> None:
    assert of({"traceparent": trace, "tracestate": STATE, "correlationid": "c"}) == {
        "correlationid": "c"
    }


@pytest.mark.parametrize(
    "state",
    [
        "",
        "no member",
        "A=upper",
        "a=\x00",
        "a=ä",
        "a=1,\tb=2",
        "a=1," * 200,
        ",".join(f"a{number}=1" for number in range(33)),
        "a=" + "x" * 1_000,
    ],
    ids=str.__len__,
)
def test_an_invalid_tracestate_is_dropped_alone(state: str) -> None:
    assert of({"traceparent": TRACE, "tracestate": state}) == {"traceparent": TRACE}


def test_a_state_without_a_trace_is_dropped() -> None:
    assert of({"tracestate": STATE}) == {}


@pytest.mark.parametrize("text", ["", "a\nb", "a\x00", "\ufdd0", "\ud800", "x" * 1_025])
def test_ids_that_some_bus_cannot_carry_are_dropped(text: str) -> None:
    assert of({"correlationid": text}, id=text) == {}


def test_extension_attributes_of_kafka_count_where_there_is_no_header() -> None:
    attributes = {"ce_traceparent": TRACE, "ce_tracestate": STATE}
    assert of(attributes) == {"traceparent": TRACE, "tracestate": STATE}
    assert of({**attributes, "traceparent": OTHER})["traceparent"] == OTHER


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"correlation": b"txn-1"}, "txn-1"),
        ({"correlation": b"txn-1", "headers": {"correlationid": "txn-2"}}, "txn-2"),
        ({"correlation": b"txn-1", "response_topic": "clients/7"}, "txn-1"),
        ({"correlation": b"\xff"}, None),
        ({"correlation": b""}, None),
        # Whoever knows these could forge a reply.
        ({"correlation": b"secret", "response_topic": "_spa/reply/a/b/secret"}, None),
        ({"correlation": b"secret", "headers": {"spa_reply": "1"}}, None),
    ],
)
def test_the_correlation_id_of_a_message(fields: dict[str, Any], expected: str | None) -> None:
    envelope = Envelope(topic="a", **fields)
    assert correlation_id_of(envelope) == expected
    assert Message.of(envelope, None).correlation_id == expected


def test_headers_that_are_given_stay() -> None:
    given = {"traceparent": OTHER, "correlationid": "own"}
    headers = with_carried(given, MappingProxyType({**HEADERS, "causationid": "1"}))
    # The state of a trace belongs to that trace.
    assert headers == {"traceparent": OTHER, "correlationid": "own", "causationid": "1"}


def test_a_batch_carries_what_its_messages_have_in_common() -> None:
    def message(number: int, **headers: str) -> Envelope:
        return Envelope(topic="a", id=str(number), headers=headers)

    same = [message(number, **HEADERS) for number in range(3)]
    assert carried_by_all(same) == HEADERS
    assert carried_by_all(same[:1]) == {**HEADERS, "causationid": "0"}
    # Its state is no state of the other trace.
    other = {**HEADERS, "traceparent": OTHER}
    assert carried_by_all([*same, message(4, **other)]) == {"correlationid": "txn-7"}
    assert carried_by_all([*same, message(4)]) == {}
    assert carried_by_all([]) == {}


# Through an application.


def carried(message: Message[Any]) -> dict[str, str]:
    names = (*HEADERS, "causationid")
    return {name: message.headers[name] for name in names if name in message.headers}


EXPECTED = {**HEADERS, "causationid": "in-1"}


@BUSES
def test_everything_published_while_a_message_is_handled_carries_it(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    seen: list[tuple[str | None, Mapping[str, str]]] = []

    @app.application("in")
    async def handle(
        message: Message[int], socket: Socket, build: MessageBuilder | None = None
    ) -> None:
        seen.append((message.correlation_id, message.headers))
        await socket.publish("out/publish", 1)
        socket.post("out/post", 1, headers={"own": "x"})
        await socket.publish(MessageBuilder()("out/built", 1))
        await socket.publish("out/own", 1, headers={"traceparent": OTHER, "correlationid": "own"})

    @app.application("in", name="thread")
    def thread(message: Message[int], socket: SyncSocket) -> None:
        socket.publish("out/thread", 1)

    @app.application("out/publish")
    async def next_one(message: Message[int], socket: Socket) -> None:
        await socket.publish("out/second", message.correlation_id)

    with Harness(app) as harness:
        harness.publish("in", 1, id="in-1", headers={**HEADERS, "secret": "x"})
        harness.settle()
        out = {message.topic: message for message in harness.messages("out/+")}
    assert seen[0][0] == "txn-7"
    assert seen[0][1]["traceparent"] == TRACE
    for topic in ("publish", "post", "built", "thread"):
        assert carried(out[f"out/{topic}"]) == EXPECTED, topic
    assert out["out/post"].headers["own"] == "x"
    assert "secret" not in out["out/publish"].headers
    assert carried(out["out/own"]) == {
        "traceparent": OTHER,
        "correlationid": "own",
        "causationid": "in-1",
    }
    second = carried(out["out/second"])
    assert second == {**HEADERS, "causationid": out["out/publish"].id}
    assert out["out/second"].payload == "txn-7"


@BUSES
def test_requests_and_replies_carry_it(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    requests: list[Message[Any]] = []
    replies: list[Any] = []

    @app.application("double")
    async def double(message: Message[int]) -> int:
        requests.append(message)
        if message.payload < 0:
            raise RemoteError("negative", "no")
        return 2 * message.payload

    @app.application("in")
    async def handle(message: Message[int], socket: Socket) -> None:
        replies.append(await socket.request("double", message.payload, reply=Message[int]))
        replies.extend(await socket.request_many("double", 2, reply=Message[int], count=1))
        with pytest.raises(RemoteError):
            await socket.request("double", -1)

    with Harness(app) as harness:
        harness.publish("in", 1, id="in-1", headers=HEADERS)
        harness.settle()
    assert [carried(message) for message in requests] == [EXPECTED] * 3
    assert [message.correlation_id for message in requests] == ["txn-7"] * 3
    for request, reply in zip(requests, replies, strict=False):
        assert carried(reply) == {**HEADERS, "causationid": request.id}
        assert reply.correlation_id == "txn-7"


def test_every_attempt_carries_the_same() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("in", retry=RetryPolicy(attempts=3, first=0))
    async def handle(message: Message[int], socket: Socket) -> None:
        await socket.publish("out", 1)
        if message.attempt < 3:
            raise ValueError

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("in", 1, id="in-1", headers=HEADERS)
        harness.settle()
        out = harness.messages("out")
    assert [carried(message) for message in out] == [EXPECTED] * 3


@BUSES
def test_scheduled_calls_carry_what_has_scheduled_them(bus: str) -> None:
    app = DistributedApplication(bus, name="app")

    class Later(Actor):
        @on("in")
        async def handle(self, message: Message[int], context: Context) -> None:
            context.later(5, self.call, context, message.payload)

        async def call(self, context: Context, left: int) -> None:
            assert self.socket is not None
            await self.socket.publish("out", left)
            if left:
                context.later(5, self.call, context, left - 1)

        async def on_start(self, socket: Socket) -> None:
            self.socket = socket

    app.add(Later)
    with Harness(app) as harness:
        harness.publish("in", 1, id="in-1", headers=HEADERS)
        harness.publish("in", 0, id="in-2")
        harness.advance(20)
        harness.settle()
        out = harness.messages("out")
    by_cause = sorted((carried(message) for message in out), key=lambda it: it["causationid"])
    assert by_cause == [EXPECTED, EXPECTED, {"causationid": "in-2"}]


def test_calls_scheduled_in_a_thread_carry_it_too() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("in")
    def handle(message: Message[int], socket: SyncSocket, context: Context) -> None:
        context.later(5, socket.publish, "out", 1)

    with Harness(app) as harness:
        harness.publish("in", 1, id="in-1", headers=HEADERS)
        harness.advance(20)
        harness.settle()
        (out,) = harness.messages("out")
    assert carried(out) == EXPECTED


def test_actors_that_a_handler_asks_carry_nothing() -> None:
    app = DistributedApplication("memory://", name="app")

    class Asked(Actor):
        async def on_start(self, socket: Socket) -> None:
            self.socket = socket

        @on("unused")
        async def unused(self) -> None: ...

        async def on_receive(self, message: object) -> int:
            await self.socket.publish("out", 1)
            return 1

    asked = app.add(Asked)

    @app.application("in")
    async def handle(message: Message[int]) -> None:
        assert await asked.ref.ask("go") == 1

    with Harness(app) as harness:
        harness.publish("in", 1, id="in-1", headers=HEADERS)
        harness.settle()
        (out,) = harness.messages("out")
    assert carried(out) == {}


def test_tasks_that_outlive_their_message_carry_nothing() -> None:
    app = DistributedApplication("memory://", name="app")
    tasks: list[asyncio.Task[None]] = []

    @app.application("in")
    async def handle(message: Message[int], socket: Socket) -> None:
        async def publish() -> None:
            await asyncio.sleep(1)
            await socket.publish("out", 1)

        tasks.append(asyncio.create_task(publish()))

    with Harness(app) as harness:
        harness.publish("in", 1, id="in-1", headers=HEADERS)
        harness.advance(2)
        harness.settle()
        (out,) = harness.messages("out")
    assert carried(out) == {}


def test_what_is_not_due_to_a_message_carries_nothing() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.producer()
    async def produce(socket: Socket) -> None:
        await socket.publish("out/producer", 1)
        await socket.publish("out/own", 1, headers=HEADERS)

    with Harness(app) as harness:
        harness.settle()
        out = {message.topic: carried(message) for message in harness.messages("out/+")}
    assert out == {"out/producer": {}, "out/own": HEADERS}


@BUSES
def test_batches_carry_what_is_common(bus: str) -> None:
    app = DistributedApplication(bus, name="app")

    @app.application("in", batch=(3, 5.0))
    async def handle(numbers: list[int], socket: Socket) -> None:
        await socket.publish("out", len(numbers))

    with Harness(app) as harness:
        for number in range(3):
            harness.publish("in", number, headers=HEADERS)
        harness.settle()
        harness.publish("in", 3, id="in-1", headers=HEADERS)
        harness.advance(20)
        harness.settle()
        out = harness.messages("out")
    assert [carried(message) for message in out] == [HEADERS, EXPECTED]


@BUSES
def test_a_stranger_s_invalid_trace_can_be_read_and_goes_no_further(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    seen: list[Mapping[str, str]] = []

    @app.application("in")
    async def handle(headers: dict[str, str], socket: Socket) -> None:
        seen.append(headers)
        await socket.publish("out", 1)

    with Harness(app) as harness:
        harness.publish("in", 1, id="in-1", headers={**HEADERS, "traceparent": "00-x-y-01"})
        harness.settle()
        (out,) = harness.messages("out")
    assert seen[0]["traceparent"] == "00-x-y-01"
    assert carried(out) == {"correlationid": "txn-7", "causationid": "in-1"}


# What came over HTTP.


def test_headers_of_http_are_carried_by_messages() -> None:
    http = {"traceparent": TRACE, "tracestate": STATE, "x-request-id": "txn-7", "cookie": "secret"}
    assert carried_headers(http) == HEADERS
    assert carried_headers({}) == {}
    flows = {"x-request-id": "3", "x-correlation-id": "2", "correlationid": "1"}
    for number in "123":
        assert carried_headers(flows) == {"correlationid": number}
        flows.popitem()


@pytest.mark.parametrize(
    "http",
    [
        {"traceparent": "00-1-2-01", "tracestate": STATE},
        {"traceparent": f"{TRACE}\tx"},
        {"tracestate": STATE},
        {"x-request-id": ""},
        {"x-request-id": "a\x00b"},
        {"x-request-id": "x" * 1025},
    ],
)
def test_headers_of_http_that_are_not_valid_are_left_out(http: dict[str, str]) -> None:
    assert carried_headers(http) == {}
