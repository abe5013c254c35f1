"""Carried headers: what goes from a message to everything that is published while it is handled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from ..._texts import unfit_character
from ...transports import CORRELATION_ID, REPLY_HEADER, RESERVED, Envelope

__all__ = [
    "carried_by",
    "carried_by_all",
    "carried_headers",
    "correlation_id_of",
    "trace_of",
    "with_carried",
]

_TRACE, _STATE = "traceparent", "tracestate"
_CAUSE = "causationid"
_PREFIX_OF_ATTRIBUTES = "ce_"
_REPLY_TOPICS = f"{RESERVED}/reply/"
_TRACEPARENT = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]{0,200})?"
)
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_MOST_MEMBERS = 32
_LONGEST_STATE = 512
# Strangers choose them, and they go on with each message.
_LONGEST_ID = 1_024
_FLOWS_OF_HTTP = (CORRELATION_ID, "x-correlation-id", "x-request-id")


class _HttpHeaders(Protocol):
    """The headers of a request, as every web framework has them."""

    def get(self, name: str, /) -> str | None: ...


def carried_headers(headers: _HttpHeaders) -> dict[str, str]:
    """Return the headers that messages should carry on from an HTTP request.

    These are its trace context (``traceparent`` and ``tracestate``), and as the correlation id the
    first valid one of ``correlationid``, ``X-Correlation-ID`` and ``X-Request-ID``. Invalid
    values, and what some bus cannot carry, are left out: anybody can send them.

    Args:
        headers: those of the request: any mapping that takes names in lower case.
    """
    carried = _valid_trace(headers.get(_TRACE), headers.get(_STATE))
    for name in _FLOWS_OF_HTTP:
        flow = headers.get(name)
        if flow is not None and _is_fit(flow):
            carried[CORRELATION_ID] = flow
            break
    return carried


def carried_by(envelope: Envelope) -> dict[str, str]:
    """Return the headers that go from a received message to what is published because of it.

    These are its trace context (W3C), its correlation id, and its own id as the cause. What is not
    valid, or what some bus cannot carry, is left out.
    """
    headers = envelope.headers
    cause = envelope.identity
    if not headers and envelope.correlation is None:
        # Most messages, in as few steps as possible.
        return {_CAUSE: cause} if cause is not None and _is_fit(cause) else {}
    carried = trace_of(headers) if headers else {}
    correlation = correlation_id_of(envelope)
    if correlation is not None and _is_fit(correlation):
        carried[CORRELATION_ID] = correlation
    if cause is not None and _is_fit(cause):
        carried[_CAUSE] = cause
    return carried


def carried_by_all(envelopes: Iterable[Envelope]) -> dict[str, str]:
    """Return the headers that all messages of a batch would have what is published carry."""
    together: dict[str, str] | None = None
    for envelope in envelopes:
        carried = carried_by(envelope)
        if together is None:
            together = carried
            continue
        # The state of a trace belongs to the trace.
        if together.get(_TRACE) != carried.get(_TRACE):
            carried.pop(_STATE, None)
        together = {name: text for name, text in together.items() if carried.get(name) == text}
        if not together:
            break
    return together or {}


def with_carried(headers: dict[str, str], carried: MappingProxyType[str, str]) -> Mapping[str, str]:
    """Return the headers of a message with those that it carries; those that it has count.

    The result may be either of them, and must not be changed.
    """
    if not headers:
        return carried
    if _TRACE in headers:
        # The state of a trace belongs to the trace.
        return {name: text for name, text in carried.items() if name != _STATE} | headers
    # With ** it takes three times as long.
    return carried | headers


def correlation_id_of(envelope: Envelope) -> str | None:
    """Return what a message names as the id of its flow; None if it names none.

    That is the attribute ``correlationid``. Without it, it is the correlation data, which some
    frameworks use in this way for all of their messages; but not that of our own requests and
    replies, which is random, and a secret between the two.
    """
    text = envelope.headers.get(CORRELATION_ID)
    if text:
        return text
    data = envelope.correlation
    if not data or REPLY_HEADER in envelope.headers:
        return None
    topic = envelope.response_topic
    if topic is not None and topic.startswith(_REPLY_TOPICS):
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def trace_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the trace context in the headers of a received message, as far as it is valid."""
    trace = _attribute(headers, _TRACE)
    return {} if trace is None else _valid_trace(trace, _attribute(headers, _STATE))


def _valid_trace(trace: str | None, state: str | None) -> dict[str, str]:
    if trace is None or not _is_traceparent(trace):
        return {}
    if state is None or not _is_tracestate(state):
        return {_TRACE: trace}
    return {_TRACE: trace, _STATE: state}


def _attribute(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header, or else the CloudEvents attribute of that name on Kafka."""
    text = headers.get(name)
    return headers.get(_PREFIX_OF_ATTRIBUTES + name) if text is None else text


def _is_traceparent(text: str) -> bool:
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return False
    version, trace, parent, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return False
    return bool(trace.strip("0") and parent.strip("0"))


def _is_tracestate(text: str) -> bool:
    # Members may be separated by tabs, which MQTT cannot carry: then it ends here.
    if not text or len(text) > _LONGEST_STATE or "\t" in text:
        return False
    members = [member.strip(" ") for member in text.split(",")]
    return len(members) <= _MOST_MEMBERS and all(
        not member or _MEMBER.fullmatch(member) for member in members
    )


def _is_fit(text: str) -> bool:
    if not 0 < len(text) <= _LONGEST_ID:
        return False
    return text.isprintable() or unfit_character(text) is None
