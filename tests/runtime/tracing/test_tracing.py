"""OpenTelemetry spans of what is handled and published."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import re
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context as TraceContext
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from spa_dat import (
    Context,
    DistributedApplication,
    Message,
    Reject,
    RemoteError,
    RetryPolicy,
    Socket,
    SyncSocket,
    Topic,
)
from spa_dat.errors import ConfigurationError, DecodeError
from spa_dat.testing import Harness, Kafka, Mosquitto
from spa_dat.tracing import Tracing
from support.processes import collect, make
from support.waiting import eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
TWICE = RetryPolicy(attempts=2, first=0.1)
BROKER = {
    "messaging.system": "mqtt",
    "server.address": "broker.example",
    "server.port": 1883,
}


class Spans:
    """The spans of a test."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        """Those that have ended, in the order of their beginnings."""
        return tuple(
            sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        )

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        found = self.named(name)
        assert len(found) == 1, (name, [span.name for span in self.all])
        return found[0]


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def plain(spans: Spans, **options: Any) -> DistributedApplication:
    app = DistributedApplication("mqtt://broker.example", name="app")
    app.use(Tracing(spans.provider, **options))
    return app


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and span.parent.span_id == parent.context.span_id
        and span.context.trace_id == parent.context.trace_id
    )


def events(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


def test_a_message_is_followed_from_actor_to_actor(spans: Spans) -> None:
    app = plain(spans, topics=["far/{place}"])

    @app.application("rooms/{room}/set")
    async def first(payload: int, socket: Socket) -> None:
        await socket.publish("between", payload, headers={"correlationid": "flow"})

    @app.application("between")
    async def second(payload: int, socket: Socket) -> None:
        socket.post("far/away", payload)
        socket.post("nobody/knows", payload)

    with Harness(app) as harness:
        state = {"traceparent": PARENT, "tracestate": "vendor=1"}
        harness.publish("rooms/north/set", 1, headers=state)
        harness.settle()
        (far,) = harness.messages("far/away")
    assert [span.name for span in spans.all] == [
        "process rooms/{room}/set",
        "publish between",
        "process between",
        "publish far/{place}",
        "publish",
    ]
    first_span, between, second_span, far_span, nobody = spans.all
    assert first_span.parent is not None
    assert first_span.parent.span_id == 0xB7AD6B7169203331
    assert {span.context.trace_id for span in spans.all} == {int(TRACE, 16)}
    assert is_child(between, first_span)
    assert is_child(second_span, between)
    assert is_child(far_span, second_span)
    assert is_child(nobody, second_span)
    kinds = [SpanKind.CONSUMER, SpanKind.PRODUCER] * 2 + [SpanKind.PRODUCER]
    assert [span.kind for span in spans.all] == kinds
    assert far.headers["traceparent"] == f"00-{TRACE}-{far_span.context.span_id:016x}-01"
    assert far.headers["tracestate"] == "vendor=1"
    assert all(span.status.status_code is StatusCode.UNSET for span in spans.all)
    attributes = dict(first_span.attributes or {})
    assert attributes.pop("messaging.message.id")
    assert attributes == {
        **BROKER,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "rooms/north/set",
        "messaging.destination.template": "rooms/{room}/set",
        "code.function.name": "first",
        "spa_dat.actor": "first",
        "spa_dat.attempt": 1,
    }
    assert between.attributes == {
        **BROKER,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "between",
        "messaging.destination.template": "between",
        "messaging.message.conversation_id": "flow",
        "spa_dat.actor": "first",
    }
    assert second_span.attributes is not None
    assert second_span.attributes["messaging.message.conversation_id"] == "flow"


def test_retries_are_events_and_failures_have_a_status(spans: Spans) -> None:
    app = plain(spans)

    @app.application("in", retry=TWICE)
    async def work(payload: int) -> None:
        raise ValueError("not " + "so " * 1000)

    @app.application("never")
    def refuse(payload: int) -> None:
        raise Reject("no")

    with Harness(app) as harness:
        harness.expect_failure(ValueError, Reject)
        harness.publish("in", 1, headers={"traceparent": PARENT})
        harness.publish("never", 1)
        harness.settle()
        (letter,) = [one for one in harness.dead_letters() if one.topic == "in"]
    first, second = spans.named("process in")
    for span in (first, second):
        assert span.attributes is not None
        assert span.attributes["error.type"] == "ValueError"
        assert span.status.status_code is StatusCode.ERROR
        assert str(span.status.description).startswith("not so so")
        assert len(str(span.status.description)) == 256
        assert span.context.trace_id == int(TRACE, 16)
    ((name, details),) = events(first)
    assert (name, details.pop("spa_dat.attempt")) == ("spa_dat.retry", 1)
    assert details.pop("spa_dat.wait") > 0
    assert events(second) == [("spa_dat.dead-letter", {"spa_dat.attempt": 2})]
    refused = spans.one("process never")
    assert (refused.attributes or {})["error.type"] == "Reject"
    assert events(refused) == [("spa_dat.dead-letter", {"spa_dat.attempt": 1})]
    assert letter.attempts == 2
    assert letter.headers["traceparent"] == PARENT


def test_what_cannot_be_decoded_is_in_the_trace(spans: Spans) -> None:
    app = plain(spans)

    @app.application("in/{name}")
    async def work(payload: int) -> None: ...

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("in/it", "nonsense", headers={"traceparent": PARENT})
        harness.settle()
    span = spans.one("process in/{name}")
    assert span.context.trace_id == int(TRACE, 16)
    assert (span.attributes or {})["error.type"] == "DecodeError"
    assert span.status.status_code is StatusCode.ERROR
    assert events(span) == [("spa_dat.dead-letter", {"spa_dat.attempt": 1})]


@pytest.mark.parametrize("batch", [None, (1, 0.1)])
def test_what_expires_while_it_waits_is_in_the_trace(
    batch: tuple[int, float] | None, spans: Spans
) -> None:
    app = plain(spans)

    async def work(payload: int) -> None:
        await asyncio.sleep(10)

    async def work_together(payload: list[int]) -> None:
        await asyncio.sleep(10)

    app.application("in/{name}", batch=batch)(work_together if batch else work)

    with Harness(app) as harness:
        harness.publish("in/first", 1)
        harness.publish("in/it", 2, expiry=5.0, headers={"traceparent": PARENT})
        harness.settle()
        assert harness.stats["messages.expired"] == 1
    _, span = spans.named("process in/{name}")
    if batch is None:
        assert span.context.trace_id == int(TRACE, 16)
        assert (span.attributes or {})["messaging.destination.name"] == "in/it"
    assert "error.type" not in (span.attributes or {})
    assert span.status.status_code is StatusCode.UNSET
    assert events(span) == [("spa_dat.expired", {"spa_dat.attempt": 1})]


def test_what_expires_between_two_attempts_is_in_the_trace_as_a_dead_letter(spans: Spans) -> None:
    app = plain(spans)

    @app.application(
        "in", batch=(1, 0.1), retry=RetryPolicy(attempts=3, first=10.0, hold=100.0, jitter=0.0)
    )
    async def work(payload: list[int]) -> None:
        raise ValueError("no")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("in", 1, expiry=5.0)
        harness.settle()
        assert len(harness.dead_letters()) == 1
    first, last = spans.named("process in")
    assert events(first)[0][0] == "spa_dat.retry"
    assert events(last) == [
        ("spa_dat.expired", {"spa_dat.attempt": 2}),
        ("spa_dat.dead-letter", {"spa_dat.attempt": 2}),
    ]
    assert last.status.status_code is StatusCode.ERROR


def test_a_request_lasts_until_its_reply(spans: Spans) -> None:
    app = plain(spans)

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        assert await socket.request(Topic[int, int]("ask/{who}").at(who="me"), 1) == 2
        with pytest.raises(RemoteError):
            await socket.request("refuse", 1)

    @app.application("ask/me")
    async def answer(payload: int, socket: Socket) -> int:
        await socket.publish("told", payload)
        return payload + 1

    @app.application("refuse")
    async def refuse(payload: int) -> int:
        raise RemoteError("no", "never")

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
    work_span, request = spans.one("process in"), spans.one("request ask/{who}")
    answering, reply = spans.one("process ask/me"), spans.one("reply")
    assert is_child(request, work_span)
    assert is_child(answering, request)
    assert is_child(spans.one("publish"), answering)
    assert is_child(reply, answering)
    assert request.end_time is not None
    assert request.end_time > (answering.start_time or 0)
    assert request.kind is reply.kind is SpanKind.PRODUCER
    assert reply.attributes is not None
    assert reply.attributes["messaging.destination.temporary"] is True
    assert "messaging.destination.name" not in reply.attributes
    refused = spans.one("request refuse")
    assert refused.status.description == "no: never"
    assert (refused.attributes or {})["error.type"] == "RemoteError"
    assert events(spans.one("process refuse")) == [("spa_dat.answer", {"spa_dat.attempt": 1})]


def test_a_publish_lasts_until_it_is_confirmed(spans: Spans) -> None:
    app = plain(spans)

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        await asyncio.sleep(5)
        socket.post("out", 1)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.advance(1)
        harness.outage(60)
        harness.advance(30)
        assert [span.name for span in spans.all] == ["process in"]
        harness.settle()
    assert is_child(spans.one("publish"), spans.one("process in"))


def test_a_batch_is_linked_to_its_messages(spans: Spans) -> None:
    app = plain(spans)

    @app.application("in/{number}", batch=(4, 0.5), retry=TWICE)
    async def work(payload: list[int], socket: Socket, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError(payload)
        await socket.publish("out", sum(payload))

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        for number in range(3):
            headers = {"traceparent": f"00-{TRACE}-{number // 2 + 1:016x}-01"}
            harness.publish("in/it", number, headers=headers)
        harness.publish("in/it", 3, headers={"traceparent": "nonsense"})
        harness.settle()
    first, second = spans.named("process in/{number}")
    for span in (first, second):
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [1, 2]
        assert span.attributes is not None
        assert span.attributes["messaging.batch.message_count"] == 4
        assert span.attributes["messaging.destination.name"] == "in/it"
    assert [name for name, _ in events(first)] == ["spa_dat.retry"]
    assert is_child(spans.one("publish"), second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"00-{TRACE}-0000000000000000-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331-01-more",
        PARENT + "x" * 60_000,
        "cc" + PARENT[2:] + "-" + "x" * 60_000,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_trace_context_begins_a_new_trace(
    spans: Spans, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = plain(spans)

    @app.application("in/#")
    async def work(payload: int, socket: Socket) -> None:
        await socket.publish("out", 1)

    with Harness(app) as harness:
        long = "i" * 1_000
        headers = {"traceparent": text, "tracestate": "v=" + "1" * 600, "correlationid": long}
        harness.publish(f"in/{'t' * 1_000}", 1, headers=headers)
        harness.settle()
        (out,) = harness.messages("out")
    span, publish = spans.one("process in/#"), spans.one("publish")
    assert span.parent is None
    assert span.context.trace_id != int(TRACE, 16)
    assert is_child(publish, span)
    assert out.headers["traceparent"].split("-")[1] == f"{span.context.trace_id:032x}"
    assert "tracestate" not in out.headers
    for value in (span.attributes or {}).values():
        assert len(str(value)) <= 256
    assert caplog.text == ""


@pytest.mark.parametrize("key", ["1a", "a@@b", "a@b@c", "a@1"])
def test_what_only_newer_traces_may_have_is_left_out_silently(
    spans: Spans, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    # OpenTelemetry warns of each, and anybody can send a million of them.
    app = plain(spans)

    @app.application("in")
    async def work(payload: int) -> None: ...

    with Harness(app) as harness:
        headers = {"traceparent": PARENT, "tracestate": f"v=1, {key}=2"}
        harness.publish("in", 1, headers=headers)
        headers["tracestate"] = "v=1, 9a@b=2"
        harness.publish("in", 1, headers=headers)
        harness.settle()
    found = spans.named("process in")
    assert [f"{span.context.trace_id:032x}" for span in found] == [TRACE, TRACE]
    assert [dict(span.context.trace_state) for span in found] == [{}, {"v": "1", "9a@b": "2"}]
    assert caplog.text == ""


class Broken(SpanProcessor):
    """Fails whenever something is asked of it, such as for an attribute that is not there."""

    def on_start(self, span: Span, parent_context: TraceContext | None = None) -> None:
        raise KeyError("tenant")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        raise OSError("the collector is away")


async def test_messages_go_on_without_spans(caplog: pytest.LogCaptureFixture) -> None:
    def provider() -> TracerProvider:
        made = TracerProvider(shutdown_on_exit=False)
        made.add_span_processor(Broken())
        return made

    app = make()
    app.use(Tracing(provider))

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        await socket.publish("out", payload)

    got = collect(app, "out")
    async with app:
        await app.socket().publish("in", 1, headers={"traceparent": PARENT})
        await eventually(lambda: got == [1])
    assert app.stats["messages.failed"] == 0
    assert "Tracing: there is no span process in" in caplog.text
    assert "the last spans are not exported: OSError: the collector is away" in caplog.text


async def test_an_exporter_that_waits_for_its_collector_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spa_dat.runtime.tracing._tracing._LONGEST_FLUSH", 0.05)
    collector, asked = threading.Event(), threading.Event()

    class Waiting(SpanProcessor):
        # As that of batches, which does not look at the limit.
        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            asked.set()
            return collector.wait(120)

    def provider() -> TracerProvider:
        made = TracerProvider(shutdown_on_exit=False)
        made.add_span_processor(Waiting())
        return made

    app = make()
    app.use(Tracing(provider))
    collect(app, "in")
    try:
        async with app:
            pass
        # Nothing of the loop's waits for it either.
        await asyncio.get_running_loop().shutdown_default_executor()
        assert asked.wait(60)
        assert not collector.is_set()
        assert "the exporter has not taken the last spans within 0.05 s" in caplog.text
    finally:
        collector.set()


def test_the_span_is_current_wherever_the_handler_runs(spans: Spans) -> None:
    app = plain(spans)
    seen: dict[str, trace.SpanContext] = {}
    tracer = trace.get_tracer("test", tracer_provider=spans.provider)

    def note(where: str) -> None:
        seen[where] = trace.get_current_span().get_span_context()

    @app.application("thread")
    def in_thread(payload: int, socket: SyncSocket) -> None:
        note("thread")
        with tracer.start_as_current_span("inner"):
            socket.publish("out", 1)

    @app.application("deadline", deadline=60)
    async def with_deadline(payload: int) -> None:
        note("deadline")

    @app.application("tasks")
    async def tasks(payload: int, socket: Socket, context: Context) -> None:
        async def task() -> None:
            note("tasks")
            await socket.publish("from/task", 1)

        await asyncio.gather(task())

    with Harness(app) as harness:
        for topic in ("thread", "deadline", "tasks"):
            harness.publish(topic, 1)
        harness.settle()
    for topic, context in seen.items():
        assert context == spans.one(f"process {topic}").context
    assert is_child(spans.one("inner"), spans.one("process thread"))
    in_thread_publish, from_task = spans.named("publish")
    if is_child(from_task, spans.one("inner")):
        in_thread_publish, from_task = from_task, in_thread_publish
    assert is_child(in_thread_publish, spans.one("inner"))
    assert is_child(from_task, spans.one("process tasks"))


def test_what_is_scheduled_stays_in_the_trace(spans: Spans) -> None:
    app = plain(spans)

    @app.application("in")
    async def work(payload: int, socket: Socket, context: Context) -> None:
        async def later() -> None:
            await socket.publish("out", 1)

        context.later(60, later)

    with Harness(app) as harness:
        harness.publish("in", 1, headers={"traceparent": PARENT})
        harness.settle()
        harness.advance(61)
    assert spans.one("publish").context.trace_id == int(TRACE, 16)


def test_a_copied_header_is_replaced(spans: Spans) -> None:
    app = plain(spans)
    tracer = trace.get_tracer("test", tracer_provider=spans.provider)

    @app.application("in")
    async def copy(message: Message[int], socket: Socket) -> None:
        await socket.publish("out", 1, headers=message.headers)

    @app.application("other")
    async def other(message: Message[int], socket: Socket) -> None:
        with tracer.start_as_current_span(
            "other", context=trace.set_span_in_context(trace.INVALID_SPAN)
        ):
            await socket.publish("out", 1, headers=message.headers)

    with Harness(app) as harness:
        harness.publish("in", 1, headers={"traceparent": PARENT, "tracestate": "vendor=1"})
        harness.publish("other", 1, headers={"traceparent": PARENT, "tracestate": "vendor=1"})
        harness.settle()
        copied, linked = harness.messages("out")
    first, second = spans.named("publish")
    assert is_child(first, spans.one("process in"))
    assert (copied.headers["tracestate"], first.links) == ("vendor=1", ())
    assert is_child(second, spans.one("other"))
    assert "tracestate" not in linked.headers
    assert [link.context.trace_id for link in second.links] == [int(TRACE, 16)]


async def test_outside_of_handlers_the_context_is_that_of_the_caller(spans: Spans) -> None:
    app = make()
    app.use(Tracing(spans.provider))
    got = collect(app, "in")
    tracer = trace.get_tracer("test", tracer_provider=spans.provider)
    with tracer.start_as_current_span("start"):
        # The actors are started in this context, which must not become that of their messages.
        await app.__aenter__()
    try:
        with tracer.start_as_current_span("outer"):
            await app.socket().publish("in", 1)
        await app.socket().publish("in", 2, headers={"traceparent": PARENT})
        await eventually(lambda: len(spans.named("process in")) == 2)
    finally:
        await app.__aexit__(None, None, None)
    first, second = spans.named("publish in")
    assert is_child(first, spans.one("outer"))
    assert second.context.trace_id == int(TRACE, 16)
    for sent, handled in zip((first, second), spans.named("process in"), strict=True):
        assert is_child(handled, sent)
        assert handled.attributes is not None
        assert handled.attributes["messaging.system"] == "memory"
        assert "server.address" not in handled.attributes
    assert got == [1, 2]


@pytest.mark.parametrize("sampled", [False, True])
def test_without_spans_the_context_is_passed_on(sampled: bool) -> None:
    app = DistributedApplication("mqtt://broker.example", name="app")
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False) if sampled else None
    app.use(Tracing(provider))

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        await socket.publish("out", 1)

    with Harness(app) as harness:
        harness.publish("in", 1, headers={"traceparent": PARENT})
        harness.settle()
        (out,) = harness.messages("out")
    if sampled:
        assert out.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert out.headers["traceparent"].endswith("-00")
    else:
        # As the global provider is none of the SDK.
        assert out.headers["traceparent"] == PARENT


class Written(SpanExporter):
    """Writes names and trace ids into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self.path.open("a") as file:
            for span in spans:
                file.write(f"{span.name} {span.context.trace_id:032x}\n")
        return SpanExportResult.SUCCESS


async def test_processes_make_spans_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "spans"

    def provider() -> TracerProvider:
        made = TracerProvider(shutdown_on_exit=False)
        # What it has gathered must not be lost with the process, which ends long before it exports.
        made.add_span_processor(BatchSpanProcessor(Written(path), schedule_delay_millis=600_000.0))
        return made

    app = make()
    app.use(Tracing(provider, topics=["out"]))

    @app.application("in", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        current = trace.get_current_span().get_span_context()
        await socket.publish("out", f"{current.trace_id:032x}")

    got = collect(app, "out")
    async with app:
        await app.socket().publish("in", 1, headers={"traceparent": PARENT})
        await eventually(lambda: got == [TRACE])
    written = [line.split(" 0")[0] for line in path.read_text().splitlines()]
    assert sorted(written) == ["process in", "process out", "publish in", "publish out"]
    assert path.read_text().count(TRACE) == 4


def test_a_provider_stays_in_its_process(spans: Spans) -> None:
    tracing = Tracing(spans.provider, topics=["a/{b}"])
    provider, topics = tracing.__getstate__()
    assert (provider, topics) == (None, ("a/{b}",))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"tracer_provider": "otlp"}, r"Tracing\('otlp'\): give a TracerProvider"),
        ({"tracer_provider": lambda: 1}, "it returned 1: return a TracerProvider"),
        ({"topics": "a/b"}, "give a list of filters"),
        ({"topics": ["a/#/b"]}, "a/#/b"),
    ],
)
def test_what_cannot_be_used_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Tracing(**given)


# Where it goes on.


async def follows(spans: Spans, near: str, far: str) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    app = DistributedApplication(near, name=name)
    app.use(Tracing(spans.provider))
    done: list[int] = []

    @app.application(f"{name}/first/{{room}}")
    async def first(payload: int, socket: Socket) -> None:
        await socket.publish(f"{name}/second", payload)

    @app.application(f"{name}/second")
    def second(payload: int, socket: SyncSocket) -> None:
        socket.publish(f"{name}/third", payload)

    @app.application(f"{name}/third")
    async def bridge(message: Message[int]) -> None:
        across = app.socket(socket_provider=far)
        across.post(f"{name}/far", message.payload, headers=message.headers)

    @app.application(f"{name}/far", socket_provider=far)
    async def arrived(payload: int) -> None:
        done.append(payload)

    async with app:
        await app.socket().publish(f"{name}/first/north", 7)
        await eventually(lambda: len(spans.all) == 8)
    assert done == [7]
    expected = [
        f"publish {name}/first/{{room}}",
        f"process {name}/first/{{room}}",
        f"publish {name}/second",
        f"process {name}/second",
        f"publish {name}/third",
        f"process {name}/third",
        f"publish {name}/far",
        f"process {name}/far",
    ]
    way = [spans.one(one) for one in expected]
    assert way[0].parent is None
    for parent, child in itertools.pairwise(way):
        assert is_child(child, parent)
    systems = [str((span.attributes or {})["messaging.system"]) for span in way]
    assert systems == ["mqtt"] * 6 + ["kafka"] * 2
    assert (way[-1].attributes or {})["messaging.kafka.offset"] == 0


@pytest.mark.mosquitto
@pytest.mark.kafka
async def test_from_mqtt_over_a_bridge_to_kafka(
    mosquitto: Mosquitto, kafka: Kafka, spans: Spans
) -> None:
    await follows(spans, mosquitto.url, f"{kafka.url}?create_topics=all")


# Who does not want it has nothing of it.


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.delitem(sys.modules, "spa_dat.tracing")
    with pytest.raises(ImportError, match=r"pip install 'spa-dat\[traces\]'"):
        importlib.import_module("spa_dat.tracing")


@pytest.mark.repository
def test_nothing_else_imports_it() -> None:
    root = Path(__file__).parents[3]
    paths = [*(root / "src" / "spa_dat").glob("*.py")]
    for folder in ("actors", "harness", "runtime", "transports", "src/spa_dat/cli"):
        paths += (root / folder).rglob("*.py")
    found = re.compile(r"^\s*(from|import) (opentelemetry|\S*tracing\b)", re.MULTILINE)
    users = [
        path.relative_to(root).as_posix()
        for path in paths
        if found.search(path.read_text(encoding="utf-8"))
    ]
    # Metrics import it when they are asked for.
    others = [
        path for path in users if not path.startswith(("runtime/tracing/", "runtime/metrics/"))
    ]
    assert others == ["src/spa_dat/tracing.py"]
