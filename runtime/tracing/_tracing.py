"""`Tracing`: middleware that makes OpenTelemetry spans of what is handled and published."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from opentelemetry.context import Context, attach
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from ..._busy_threads import busy_thread
from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, error_name, escaped, reason_of
from ...errors import ConfigurationError
from ...transports import TopicFilter, TopicTrie
from ..messaging._carried_headers import trace_of
from ..messaging._message import Message
from ..messaging._middleware import CallOutcome, HandlerCall, Middleware, Outgoing
from ..messaging._turn import carried_now
from ..messaging._typed_topic import Topic, filter_meant
from ..metrics._conventions import SCHEMA
from ._attributes import (
    LONGEST_TEXT,
    attributes_of_batch,
    attributes_of_bus,
    attributes_of_message,
    attributes_of_outgoing,
)

__all__ = ["Tracing"]

log = LimitedLog(get_logger("spa_dat"))

# As many as the SDK keeps by default; of more it would drop the first ones.
_MOST_LINKS = 128
# Not those that are configured for the process: what messages carry is W3C Trace Context.
_PROPAGATOR = TraceContextTextMapPropagator()
_LONGEST_FLUSH = 4
"""Seconds, fewer than the runtime waits for."""
_OF_TRACES = ("traceparent", "tracestate")
# Level 2 of Trace Context allows more. OpenTelemetry does not, and warns with each message.
_KEY_OF_LEVEL_1 = re.compile(
    r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
)


class Tracing(Middleware):
    """Makes spans of what the application handles, publishes, requests and replies.

    ``app.use(Tracing())``, before other middleware. Spans continue the trace of the message that is
    handled, and messages carry it on, in ``traceparent`` and ``tracestate``. Names, kinds and
    attributes are those of OpenTelemetry's semantic conventions for messaging.

    Args:
        tracer_provider: makes the spans: a provider of OpenTelemetry's SDK, or a function that
            returns one, which is called once in each process, also in those of actors with
            ``placement="process"``; None for the global one.
        topics: filters for the topics published to, for the names of spans. Only needed for topics
            that no actor of this application receives and that are not a `Topic`.

    Raises:
        ConfigurationError: the provider is not a provider, or a filter is not valid.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | Callable[[], TracerProvider] | None = None,
        *,
        topics: Iterable[str | Topic[Any, Any]] = (),
    ) -> None:
        if not (tracer_provider is None or callable(tracer_provider)) and not isinstance(
            tracer_provider, TracerProvider
        ):
            raise ConfigurationError(
                f"Tracing({tracer_provider!r:.200}): give a TracerProvider of"
                " opentelemetry.sdk.trace, a function that returns one, or nothing, for the global"
                " one"
            )
        if isinstance(topics, str):
            raise ConfigurationError(f"Tracing(topics={topics!r}): give a list of filters")
        self._provider = tracer_provider
        self._filters = tuple(TopicFilter.parse(filter_meant(topic)) for topic in topics)
        self._tracer: Tracer | None = None
        self._own: TracerProvider | None = None
        self._prepare()
        # A function that fails does so here, and not with each message.
        self._tracer = self._made()

    def _prepare(self) -> None:
        self._buses: dict[str, Mapping[str, AttributeValue]] = {}
        self._topics: TopicTrie[str] = TopicTrie()
        for filter_ in self._filters:
            self._topics.add(filter_.pattern, filter_.text)

    # What goes to a child process: a provider has threads and connections, a function has not.

    def __getstate__(self) -> tuple[Any, tuple[str, ...]]:
        is_made_there = not isinstance(self._provider, TracerProvider)
        provider = self._provider if is_made_there else None
        return provider, tuple(filter_.text for filter_ in self._filters)

    def __setstate__(self, state: tuple[Any, tuple[str, ...]]) -> None:
        self._provider, texts = state
        self._tracer = self._own = None
        self._filters = tuple(TopicFilter.parse(text) for text in texts)
        self._prepare()

    def _start(self, name: str, kind: SpanKind, **options: Any) -> Span:
        try:
            if self._tracer is None:
                self._tracer = self._made()
            return self._tracer.start_span(name, kind=kind, **options)
        except Exception as error:
            # Samplers, processors, and the function in another process are the user's code, too.
            # Messages go on without a span.
            log.error("Tracing: there is no span %s", name, exc_info=error)
            return INVALID_SPAN

    def _made(self) -> Tracer:
        provider = self._provider
        if provider is not None and not isinstance(provider, TracerProvider):
            made = provider()
            if not isinstance(made, TracerProvider):
                raise ConfigurationError(
                    f"Tracing({provider!r:.200}): it returned {made!r:.200}: return a"
                    " TracerProvider of opentelemetry.sdk.trace"
                )
            provider = made
            self._own = made
        return get_tracer("spa_dat", None, provider, SCHEMA)

    def _of_bus(self, address: str) -> Mapping[str, AttributeValue]:
        known = self._buses.get(address)
        if known is None:
            known = self._buses[address] = attributes_of_bus(address)
        return known

    async def handle(self, call: HandlerCall, next: Callable[[], Awaitable[Any]]) -> Any:
        """Make a span of each attempt at a message or batch, as long as its outcome is open."""
        if call.topic_filter is None:
            # The call of a producer, which may publish for ever: each publish is a trace.
            return await next()
        span = self._attempt(call, call.topic_filter)
        call.on_outcome(partial(_end_attempt, span, call.attempt))
        # It stays so: the reply is sent after this has returned, in the context that is left here,
        # and tasks of the handler may go on.
        attach(set_span_in_context(span))
        return await next()

    def undecodable(self, call: HandlerCall, outcome: CallOutcome) -> None:
        """Make a span of a message that no handler gets, so that its trace does not just end."""
        if call.topic_filter is not None:
            _end_attempt(self._attempt(call, call.topic_filter), call.attempt, outcome)

    def expired(self, call: HandlerCall, outcome: CallOutcome) -> None:
        """Make a span of a message that has expired, so that its trace does not just end."""
        if call.topic_filter is not None:
            span = self._attempt(call, call.topic_filter)
            span.add_event("spa_dat.expired", {"spa_dat.attempt": call.attempt})
            _end_attempt(span, call.attempt, outcome)

    def _attempt(self, call: HandlerCall, topic_filter: str) -> Span:
        attributes: dict[str, AttributeValue] = {
            **self._of_bus(call.bus),
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.template": topic_filter,
            "code.function.name": call.handler,
            "spa_dat.actor": call.actor,
            "spa_dat.attempt": call.attempt,
        }
        # Never in the context around it, which is that of the application's start.
        parent, links = Context(), list[Link]()
        message = call.message
        if message is not None:
            attributes |= attributes_of_message(message)
            parent = _context_in(message.headers)
        else:
            attributes |= attributes_of_batch(call.messages)
            links = _links(call.messages)
        return self._start(
            f"process {topic_filter}",
            SpanKind.CONSUMER,
            context=parent,
            attributes=attributes,
            links=links,
        )

    def publish(self, outgoing: Outgoing) -> None:
        """Make a span of what is published, until the broker has confirmed or answered it."""
        kind, template = outgoing.kind, self._template(outgoing)
        attributes: dict[str, AttributeValue] = {
            **self._of_bus(outgoing.bus),
            "messaging.operation.name": kind,
            "messaging.operation.type": "send",
            **attributes_of_outgoing(outgoing),
        }
        if template is not None:
            attributes["messaging.destination.template"] = template
        given = get_current_span(_context_in(_texts_of(outgoing.headers))).get_span_context()
        parent, links = _parent(given)
        span = self._start(
            kind if template is None else f"{kind} {template}",
            SpanKind.PRODUCER,
            context=parent,
            attributes=attributes,
            links=links,
        )
        if span.get_span_context().is_valid:
            for name in _OF_TRACES:
                outgoing.headers.pop(name, None)
            _PROPAGATOR.inject(outgoing.headers, set_span_in_context(span, Context()))
        outgoing.on_outcome(partial(_end_publish, span))

    async def stopped(self) -> None:
        """Have what a provider of its own has gathered exported: a process just ends."""
        flush = getattr(self._own, "force_flush", None)
        if flush is None:
            return
        # In a thread that nobody has to wait for: an exporter waits for its collector as long as it
        # likes, as the SDK's processor of batches does not look at the limit.
        flushed = Future[None]()
        work = busy_thread("the last spans")

        def run() -> None:
            with work:
                try:
                    flush(_LONGEST_FLUSH * 1_000)
                except BaseException as error:  # noqa: BLE001  (the user's code)
                    flushed.set_exception(error)
                else:
                    flushed.set_result(None)

        threading.Thread(target=run, name="spa_dat spans", daemon=True).start()
        done, _ = await asyncio.wait([asyncio.wrap_future(flushed)], timeout=_LONGEST_FLUSH)
        if not done:
            log.warning(
                "Tracing: the exporter has not taken the last spans within %s s; it is not waited"
                " for any longer",
                _LONGEST_FLUSH,
            )
        for one in done:
            error = one.exception()
            if error is not None:
                log.warning("Tracing: the last spans are not exported: %s", reason_of(error))

    def _template(self, outgoing: Outgoing) -> str | None:
        if outgoing.kind == "reply":
            return None
        given = self._topics.match(outgoing.topic)
        return given[0] if given else outgoing.topic_filter


def _texts_of(headers: Mapping[str, str | None]) -> dict[str, str]:
    found = {name: headers.get(name) for name in _OF_TRACES}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _context_in(headers: Mapping[str, str]) -> Context:
    """Return the context that headers carry; an empty one if there is none, or it is not valid."""
    found = trace_of(headers) if headers else None
    if not found:
        return Context()
    if "tracestate" in found and not _is_of_level_1(found["tracestate"]):
        del found["tracestate"]
    return _PROPAGATOR.extract(found, Context())


def _is_of_level_1(state: str) -> bool:
    members = (member.strip(" ") for member in state.split(","))
    return all(_KEY_OF_LEVEL_1.fullmatch(member.partition("=")[0]) for member in members if member)


def _parent(given: SpanContext) -> tuple[Context | None, list[Link]]:
    """Return what a publish is part of, and what it is linked to.

    Args:
        given: what its headers carry, which the caller may have copied from another message.
    """
    current = get_current_span().get_span_context()
    if current.is_valid:
        is_other = given.is_valid and given.trace_id != current.trace_id
        return None, [Link(given)] if is_other else []
    if given.is_valid:
        return set_span_in_context(NonRecordingSpan(given), Context()), []
    return _context_in(carried_now() or {}), []


def _links(messages: Iterable[Message[bytes]]) -> list[Link]:
    seen: dict[tuple[int, int], Link] = {}
    for message in messages:
        if len(seen) == _MOST_LINKS:
            break
        context = get_current_span(_context_in(message.headers)).get_span_context()
        if context.is_valid:
            seen.setdefault((context.trace_id, context.span_id), Link(context))
    return list(seen.values())


def _end_attempt(span: Span, attempt: int, outcome: CallOutcome) -> None:
    if outcome.error is not None:
        _set_error(span, outcome.error)
        details: dict[str, AttributeValue] = {"spa_dat.attempt": attempt}
        if outcome.wait is not None:
            details["spa_dat.wait"] = outcome.wait
        if outcome.then != "none":
            span.add_event(f"spa_dat.{outcome.then}", details)
    span.end()


def _end_publish(span: Span, error: BaseException | None) -> None:
    if error is not None:
        _set_error(span, error)
    span.end()


def _set_error(span: Span, error: BaseException) -> None:
    span.set_attribute("error.type", error_name(error))
    span.set_status(Status(StatusCode.ERROR, escaped(describe(error), LONGEST_TEXT)))
