"""Records: the codec between envelopes and Kafka records, and the texts that a record may have."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

import msgspec

from ..._texts import LONGEST_REMEMBERED
from ...errors import ConfigurationError
from .._envelope import CORRELATION_ID, REPLY_HEADER, Envelope, check_encodable
from .._topics import RESERVED
from ._topic_names import Names

__all__ = [
    "RESERVED_NAMES",
    "Record",
    "RecordCodec",
    "StoredRecord",
    "check_message",
    "size_of_headers",
]

_REPLY = f"{RESERVED}/reply/"
_NONE: Mapping[str, str] = MappingProxyType({})
_VERSION = ("ce_specversion", b"1.0")
# What a record takes besides its parts: lengths, offset and time as variable-length integers, and
# the names of the headers in `RESERVED_NAMES` with their lengths.
_OVERHEAD = 512
_OVERHEAD_OF_A_HEADER = 10
# The memory that one takes besides its characters.
_KEPT_WITH_A_HEADER = 256
RESERVED_NAMES = frozenset(
    {
        "content-type",
        "correlation_id",
        "reply_to",
        "ttl_ms",
        "ce_causationid",
        "ce_correlationid",
        "ce_id",
        "ce_source",
        "ce_specversion",
        "ce_subject",
        "ce_time",
        "ce_type",
        "spa_reply_subject",
    }
)
"""Names of headers that represent fields of the envelope."""
# Attributes of CloudEvents that are headers, which have a prefix on Kafka only.
_ATTRIBUTES = {
    name: f"ce_{name}"
    for name in ("causationid", CORRELATION_ID, "dataschema", "partitionkey", "subject")
}
# Where records tell their addresses in `ce_subject`, a header of that name is one like any other.
_ATTRIBUTES_OF_BOUND = {name: ce for name, ce in _ATTRIBUTES.items() if name != "subject"}
_WITHOUT_PREFIX = {attribute: name for name, attribute in _ATTRIBUTES.items()}
_RARE = frozenset({"ce_subject", "ce_time", "spa_reply_subject"})
_MOST_REMEMBERED = 4_096


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record to be appended to a partition.

    Attributes:
        name: the name of its topic.
        key: decides the partition; None for any.
        value: the payload; None for a tombstone.
        headers: in order.
        timestamp: milliseconds since 1970 (UTC); None for the time of sending.
        is_reply: whether a requester has chosen the topic, which is then not created for it.
        size: the most bytes that it takes, before compression.
    """

    name: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    timestamp: int | None
    is_reply: bool = False
    size: int = 0


class StoredRecord(Protocol):
    """A record as returned by the client library."""

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
    def headers(self) -> tuple[tuple[str, bytes | None], ...]: ...


class RecordCodec:
    """Encodes and decodes the records of one bus.

    The names of headers follow CloudEvents 1.0 (Kafka protocol binding, binary mode); the time is
    the record's own. ``reply_to`` and ``correlation_id`` are the names used by other frameworks.

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
        # Of topics that requesters name.
        self._reply_topics: dict[bytes, str] = {}

    def encode(self, envelope: Envelope) -> Record:
        """Return the record for a message.

        Raises:
            ConfigurationError: Kafka cannot carry its topic, response topic or headers, or it is
                a tombstone without a key.
        """
        try:
            return self._encode(envelope)
        except UnicodeEncodeError:
            # This names the field.
            check_message(envelope)
            raise

    def _encode(self, envelope: Envelope) -> Record:
        destination = self._names.destination(envelope.topic)
        identifier, source, kind = envelope.id, envelope.source, envelope.type
        before, after, size = _attributes(
            envelope.content_type, source, kind, identifier=bool(identifier)
        )
        headers = [*before]
        if identifier is not None:
            value = identifier.encode()
            headers.append(("ce_id", value))
            size += len(value)
        headers += after
        if destination.subject is not None:
            value = destination.subject.encode()
            headers.append(("ce_subject", value))
            size += len(value)
        usual = len(headers)
        if envelope.response_topic is not None:
            self._add_reply_address(envelope, headers)
        elif destination.correlation is not None:
            headers.append(("correlation_id", destination.correlation.encode()))
        elif envelope.correlation is not None:
            headers.append(("correlation_id", envelope.correlation))
        elif CORRELATION_ID in envelope.headers:
            headers.append(("correlation_id", envelope.headers[CORRELATION_ID].encode()))
        if envelope.expiry is not None:
            headers.append(("ttl_ms", b"%d" % max(1, round(envelope.expiry * 1000))))
        size += _OVERHEAD + len(envelope.payload)
        if len(headers) > usual:
            size += sum(len(text or b"") for _, text in headers[usual:])
        if envelope.headers or envelope.raw_headers:
            bound = destination.subject is not None
            size += _add_headers(envelope, headers, _ATTRIBUTES_OF_BOUND if bound else _ATTRIBUTES)
        key = destination.key if envelope.key is None else envelope.key
        raw_key = envelope.raw_key
        if raw_key is None and key is not None:
            raw_key = key.encode()
        if raw_key is not None:
            size += len(raw_key)
        elif envelope.tombstone:
            raise ConfigurationError(
                f"a tombstone for {envelope.topic!r} without a key: give the key to delete"
            )
        time = envelope.time
        if time is None and envelope.expiry is not None:
            # The expiry counts from the record's time, which must not be that of the writing.
            time = self._now()
        return Record(
            destination.name,
            raw_key,
            None if envelope.tombstone else envelope.payload,
            # Thousands may wait, and the garbage collector leaves tuples alone.
            tuple(headers),
            None if time is None else round(time * 1000),
            destination.correlation is not None
            or (envelope.correlation is not None and envelope.response_topic is None)
            or (REPLY_HEADER in envelope.headers and not self._names.is_own(destination.name)),
            size,
        )

    def _add_reply_address(
        self, envelope: Envelope, headers: list[tuple[str, bytes | None]]
    ) -> None:
        assert envelope.response_topic is not None
        reply = self._names.destination(envelope.response_topic)
        headers.append(("reply_to", reply.name.encode()))
        if reply.correlation is not None:
            headers.append(("correlation_id", reply.correlation.encode()))
        elif envelope.correlation is not None:
            headers.append(("correlation_id", envelope.correlation))
        if reply.subject is not None:
            headers.append(("spa_reply_subject", reply.subject.encode()))

    def decode(self, record: StoredRecord, redelivered: bool = False) -> Envelope | None:
        """Return the message of a record; None if it has expired.

        Args:
            record: as it was fetched, undecoded.
            redelivered: whether it is known to have been handed out before.
        """
        # _plain_topic(), without the cost of a call
        try:
            topic = self._plain[record.topic]
        except KeyError:
            topic = self._plain_topic(record.topic)
        key = record.key
        value = record.value
        if not record.headers:
            text = None if key is None else key.decode("utf-8", "backslashreplace")
            if topic is None:
                topic = self._names.topic(record.topic, text, "", record.offset)
            return Envelope(
                topic=topic,
                payload=b"" if value is None else value,
                key=text,
                time=record.timestamp / 1000,
                redelivered=redelivered,
                partition=record.partition,
                offset=record.offset,
                tombstone=value is None,
                raw_key=key,
            )
        return self._decode_closely(record, topic, redelivered)

    def decode_reply(self, record: StoredRecord, prefix: bytes) -> Envelope | None:
        """Return the reply in a record, expired or not; None if it is for somebody else.

        Args:
            record: as it was fetched, undecoded.
            prefix: with which the correlations of our requests begin; it is left out.
        """
        topic = self._plain_topic(record.topic)
        return self._decode_closely(record, topic, redelivered=False, prefix=prefix)

    def _plain_topic(self, name: str) -> str | None:
        """Return the address that a topic's name stands for; None if its records tell theirs."""
        if name not in self._plain:
            is_plain = self._names.is_plain(name)
            self._plain[name] = self._names.plain_topic(name) if is_plain else None
        return self._plain[name]

    def _decode_closely(
        self,
        record: StoredRecord,
        topic: str | None,
        redelivered: bool,
        prefix: bytes | None = None,
    ) -> Envelope | None:
        # The last value of a repeated header counts.
        raw = dict(record.headers)
        take = raw.pop
        content_type, identifier = take("content-type", None), take("ce_id", None)
        source, kind = take("ce_source", None), take("ce_type", None)
        reply_to, correlation = take("reply_to", None), take("correlation_id", None)
        ttl = take("ttl_ms", None)
        take("ce_specversion", None)
        subject = time = reply_subject = None
        if not _RARE.isdisjoint(raw):
            time = take("ce_time", None)
            if topic is None:
                subject = take("ce_subject", None)
            reply_subject = take("spa_reply_subject", None)
        value, timestamp = record.value, record.timestamp
        expiry = None
        if ttl is not None:
            expiry = self._left(ttl, timestamp)
            if expiry is not None and expiry <= 0 and prefix is None:
                return None
        raw_key = record.key
        key = None if raw_key is None else raw_key.decode("utf-8", "backslashreplace")
        response_topic = None
        if reply_to is not None:
            response_topic, correlation = self._reply_address(reply_to, reply_subject, correlation)
        if prefix is not None:
            if correlation is None or not correlation.startswith(prefix):
                return None
            correlation = correlation[len(prefix) :]
        if topic is None:
            topic = self._names.topic(record.topic, key, _text(subject) or "", record.offset)
        headers: dict[str, str] = {}
        for name, text in raw.items():
            name = _WITHOUT_PREFIX.get(name, name)
            headers[name] = text.decode("utf-8", "replace") if text else ""
        # With more than 15 keywords Python makes a dict of them, which takes longer than the rest.
        envelope = Envelope(
            topic=topic,
            payload=b"" if value is None else value,
            content_type=_text(content_type),
            id=_text(identifier),
            source=_text(source),
            type=_text(kind),
            time=timestamp / 1000 if time is None else self._time(time, timestamp / 1000),
            headers=headers or _NONE,
            response_topic=response_topic,
            correlation=correlation,
            expiry=expiry,
            partition=record.partition,
            offset=record.offset,
            raw_headers=tuple(record.headers),
        )
        if raw_key is None and value is not None and not redelivered:
            return envelope
        return msgspec.structs.replace(
            envelope,
            # A tombstone contains nothing that could be of that type.
            content_type=None if value is None else envelope.content_type,
            key=key,
            redelivered=redelivered,
            tombstone=value is None,
            raw_key=raw_key,
        )

    def _time(self, text: bytes, stamp: float) -> float:
        try:
            return datetime.fromisoformat(text.decode()).timestamp()
        except (ValueError, OverflowError, OSError):
            self._stats["messages.malformed"] += 1
        return stamp

    def _left(self, ttl: bytes, timestamp: int) -> float | None:
        if not (ttl.isdigit() and len(ttl) < 16):
            self._stats["messages.malformed"] += 1
            return None
        return (timestamp + int(ttl)) / 1000 - self._now()

    def _reply_address(
        self, reply_to: bytes, subject: bytes | None, correlation: bytes | None
    ) -> tuple[str, bytes | None]:
        address = self._reply_topics.get(reply_to)
        if address is None:
            address = self._names.reply_topic(reply_to.decode("utf-8", "replace"))
            if len(self._reply_topics) >= _MOST_REMEMBERED:
                self._reply_topics.clear()
            if len(reply_to) <= LONGEST_REMEMBERED:
                self._reply_topics[reply_to] = address
        if correlation is not None and address.startswith(_REPLY):
            text = correlation.decode("utf-8", "replace")
            return f"{address}/{text}", text.rpartition("/")[2].encode()
        return _text(subject) or address, correlation


_Headers = tuple[tuple[str, bytes | None], ...]


@functools.lru_cache(256)
def _attributes(
    content_type: str | None, source: str | None, kind: str | None, *, identifier: bool
) -> tuple[_Headers, _Headers, int]:
    """Return the headers that hardly change from one message to the next, and their bytes.

    They are those for what CloudEvents has attributes for, other than topic and key: those before
    the id, and those after it.

    Args:
        content_type: of the message.
        source: likewise.
        kind: its type.
        identifier: whether it has an id.
    """
    before: list[tuple[str, bytes | None]] = []
    after: list[tuple[str, bytes | None]] = []
    if content_type is not None:
        before.append(("content-type", content_type.encode()))
    if identifier and source and kind:
        before.append(_VERSION)
    if source is not None:
        after.append(("ce_source", source.encode()))
    if kind is not None:
        after.append(("ce_type", kind.encode()))
    size = sum(len(value or b"") for _, value in (*before, *after))
    return tuple(before), tuple(after), size


def _add_headers(
    envelope: Envelope, headers: list[tuple[str, bytes | None]], attributes: Mapping[str, str]
) -> int:
    """Append what the sender has attached; return the bytes that it takes at most."""
    raw = envelope.raw_headers
    names = {name for name, _ in raw} if raw else ()
    size = 0
    for name, value in envelope.headers.items():
        if name in RESERVED_NAMES:
            check_message(envelope)
        if not name.isascii():
            # The library does that later, which would be too late.
            name.encode()
        name = attributes.get(name, name)
        if name not in names:
            text = value.encode()
            headers.append((name, text))
            # A character takes at most four bytes in UTF-8.
            size += 4 * len(name) + _OVERHEAD_OF_A_HEADER + len(text)
    if not raw:
        return size
    attribute_names = attributes.values()
    for pair in raw:
        if pair[0] not in RESERVED_NAMES or pair[0] in attribute_names:
            headers.append(pair)
            size += 4 * len(pair[0]) + _OVERHEAD_OF_A_HEADER + len(pair[1] or b"")
    return size


def size_of_headers(envelope: Envelope) -> int:
    """Return roughly how many bytes they take in memory: as received, and as texts."""
    size = 2 * _KEPT_WITH_A_HEADER * len(envelope.raw_headers)
    for name, value in envelope.raw_headers:
        size += len(name) + 2 * len(value or b"")
    return size


def _text(value: bytes | None) -> str | None:
    """Return the value of a header; None if it is empty."""
    return value.decode("utf-8", "replace") if value else None


def check_message(envelope: Envelope) -> None:
    """Raise ConfigurationError if no record can carry a text of the message other than its topics.

    A record allows any bytes as its key and as the value of a header, and so every text that UTF-8
    can encode. The error names the field, shows its value, and says what to do.
    """
    for name in envelope.headers or ():
        if name in RESERVED_NAMES:
            raise ConfigurationError(
                f"header {name!r} belongs to the runtime on Kafka; choose another name"
            )
    check_encodable(envelope)
