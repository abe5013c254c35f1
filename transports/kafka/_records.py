"""Envelopes as records of a Kafka topic, and back."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from ...errors import ConfigurationError
from .._envelope import Envelope
from .._topics import RESERVED
from ._names import Names

__all__ = ["Codec", "Record", "StoredRecord"]

_WIRE_NAMES = frozenset(
    {
        "content-type",
        "correlation_id",
        "reply_to",
        "ttl_ms",
        "ce_id",
        "ce_source",
        "ce_specversion",
        "ce_subject",
        "ce_time",
        "ce_type",
        "spa_reply_subject",
    }
)
_VERSION = ("ce_specversion", b"1.0")
# What a record takes beside its parts: lengths, offset and time as variable-length integers.
_OVERHEAD = 64
_OVERHEAD_OF_A_HEADER = 10


class Record(msgspec.Struct, frozen=True, gc=False):
    """What is appended to a partition.

    Attributes:
        name: of the topic.
        key: decides the partition; None for any.
        value: the payload; None for a tombstone.
        headers: in order.
        timestamp: milliseconds since 1970 (UTC); None for the time of sending.
    """

    name: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp: int | None

    @property
    def size(self) -> int:
        """Bytes that it takes at the most, before compression."""
        size = _OVERHEAD + len(self.key or b"") + len(self.value or b"")
        for name, value in self.headers:
            # A character is at most four bytes of UTF-8.
            size += 4 * len(name) + len(value) + _OVERHEAD_OF_A_HEADER
        return size


class StoredRecord(Protocol):
    """A record as the client library gives it."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Codec:
    """Writes and reads the records of one bus.

    The names of headers follow CloudEvents 1.0 (Kafka protocol binding, binary mode); the time is
    the record's own. ``reply_to`` and ``correlation_id`` are what other frameworks use.

    Args:
        names: translates topics.
        stats: counts ``messages.malformed``.
        now: wall time in seconds since 1970, for expiry.
    """

    def __init__(self, names: Names, stats: Counter[str], now: Callable[[], float]) -> None:
        self._names = names
        self._stats = stats
        self._now = now
        self._plain: dict[str, str | None] = {}

    def encode(self, envelope: Envelope) -> Record:
        """The record for a message.

        Raises:
            ConfigurationError: Kafka can not carry its topic, response topic or headers, or it is
                a tombstone without a key.
        """
        address = self._names.address(envelope.topic)
        headers: list[tuple[str, bytes]] = []
        if envelope.content_type is not None:
            headers.append(_header("content-type", envelope.content_type))
        if envelope.id is not None:
            headers.append(_VERSION)
            headers.append(("ce_id", envelope.id.encode()))
        if envelope.source is not None:
            headers.append(_header("ce_source", envelope.source))
        if envelope.type is not None:
            headers.append(_header("ce_type", envelope.type))
        if address.subject is not None:
            headers.append(("ce_subject", address.subject.encode()))
        if envelope.response_topic is not None:
            self._add_reply_address(envelope, headers)
        elif address.correlation is not None:
            headers.append(("correlation_id", address.correlation.encode()))
        elif envelope.correlation is not None:
            headers.append(("correlation_id", envelope.correlation))
        if envelope.expiry is not None:
            headers.append(("ttl_ms", b"%d" % max(1, round(envelope.expiry * 1000))))
        for name, value in envelope.headers.items() if envelope.headers else ():
            if name in _WIRE_NAMES:
                raise ConfigurationError(
                    f"header {name!r} belongs to the runtime on Kafka; choose another name"
                )
            headers.append((name, value.encode()))
        key = address.key if envelope.key is None else envelope.key
        if envelope.tombstone and key is None:
            raise ConfigurationError(
                f"a tombstone for {envelope.topic!r} without a key: give the key that it deletes"
            )
        return Record(
            address.name,
            None if key is None else key.encode(),
            None if envelope.tombstone else envelope.payload,
            headers,
            None if envelope.time is None else int(envelope.time * 1000),
        )

    def _add_reply_address(self, envelope: Envelope, headers: list[tuple[str, bytes]]) -> None:
        assert envelope.response_topic is not None
        reply = self._names.address(envelope.response_topic)
        headers.append(("reply_to", reply.name.encode()))
        if reply.correlation is not None:
            headers.append(("correlation_id", reply.correlation.encode()))
        elif envelope.correlation is not None:
            headers.append(("correlation_id", envelope.correlation))
        if reply.subject is not None:
            headers.append(("spa_reply_subject", reply.subject.encode()))

    def decode(self, record: StoredRecord, redelivered: bool = False) -> Envelope | None:
        """The message of a record; None when it has expired.

        Args:
            record: as it was fetched, nothing of it decoded.
            redelivered: whether it is known to have been handed out before.
        """
        name = record.topic
        try:
            topic = self._plain[name]
        except KeyError:
            topic = self._names.plain_topic(name) if self._names.is_plain(name) else None
            self._plain[name] = topic
        key = record.key
        value = record.value
        if topic is not None and not record.headers:
            return Envelope(
                topic=topic,
                payload=b"" if value is None else value,
                key=None if key is None else key.decode("utf-8", "backslashreplace"),
                time=record.timestamp / 1000,
                redelivered=redelivered,
                partition=record.partition,
                offset=record.offset,
                tombstone=value is None,
            )
        return self._decode_closely(record, topic, redelivered)

    def _decode_closely(
        self, record: StoredRecord, topic: str | None, redelivered: bool
    ) -> Envelope | None:
        raw = dict(record.headers)
        headers = {
            name: "" if text is None else text.decode("utf-8", "replace")
            for name, text in raw.items()
        }
        key = None if record.key is None else record.key.decode("utf-8", "backslashreplace")
        fields: dict[str, Any] = {}
        if topic is None:
            topic = self._names.topic(record.topic, key, headers, record.offset)
        time = self._time(headers, record.timestamp / 1000)
        ttl = headers.pop("ttl_ms", None)
        if ttl is not None:
            left = self._left(ttl, record.timestamp)
            if left is not None:
                if left <= 0:
                    return None
                fields["expiry"] = left
        correlation = raw.get("correlation_id")
        headers.pop("correlation_id", None)
        if "reply_to" in headers:
            fields["response_topic"], correlation = self._reply_address(headers, correlation)
        for header, field in _TEXTS:
            text = headers.pop(header, None)
            if text:
                fields[field] = text
        headers.pop("ce_specversion", None)
        headers.pop("ce_subject", None)
        if headers:
            fields["headers"] = headers
        value = record.value
        if value is None:
            # There is nothing that could be of that type.
            fields.pop("content_type", None)
        return Envelope(
            topic=topic,
            payload=b"" if value is None else value,
            key=key,
            time=time,
            correlation=correlation,
            redelivered=redelivered,
            partition=record.partition,
            offset=record.offset,
            tombstone=value is None,
            **fields,
        )

    def _time(self, headers: dict[str, str], stamp: float) -> float:
        text = headers.pop("ce_time", None)
        if text is not None:
            try:
                return datetime.fromisoformat(text).timestamp()
            except (ValueError, OverflowError, OSError):
                self._stats["messages.malformed"] += 1
        return stamp

    def _left(self, ttl: str, timestamp: int) -> float | None:
        if not (ttl.isascii() and ttl.isdigit() and len(ttl) < 16):
            self._stats["messages.malformed"] += 1
            return None
        return (timestamp + int(ttl)) / 1000 - self._now()

    def _reply_address(
        self, headers: dict[str, str], correlation: bytes | None
    ) -> tuple[str, bytes | None]:
        address = self._names.plain_topic(headers.pop("reply_to"))
        subject = headers.pop("spa_reply_subject", None)
        if address.startswith(f"{RESERVED}/reply/") and correlation is not None:
            text = correlation.decode("utf-8", "replace")
            return f"{address}/{text}", text.rpartition("/")[2].encode()
        return subject or address, correlation


_TEXTS = (
    ("content-type", "content_type"),
    ("ce_id", "id"),
    ("ce_source", "source"),
    ("ce_type", "type"),
)


@functools.lru_cache(256)
def _header(name: str, text: str) -> tuple[str, bytes]:
    """A header that hardly changes from one message to the next."""
    return name, text.encode()
