"""The MQTT 5 packets that carry messages: PUBLISH and its acknowledgements, of any size."""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from ...._texts import LONGEST_REMEMBERED
from ....errors import EncodeError
from ..._envelope import CORRELATION_ID, DEFAULT_TYPE, Envelope, LeftOut, without_payload
from ..._topics import RESERVED
from ..._wire_formats import CLOUDEVENTS, WireFormat
from .._message_checks import RESERVED_NAMES

__all__ = [
    "LARGEST_HEAD",
    "PINGREQ",
    "QOS2",
    "Dropped",
    "LargePublish",
    "MalformedPacket",
    "PacketSink",
    "PublishDecoder",
    "PublishPacket",
    "TopicAliases",
    "add_password",
    "as_taken",
    "encode_acknowledgements",
    "encode_completion",
    "read_text",
    "read_variable",
    "variable_integer",
]

PINGREQ = b"\xc0\x00"
QOS2 = 0x10000
"""Added to the packet id of a message with QoS 2 (from a subscription made by another program)."""

_head_and_id = struct.Struct(">HH").pack
_LONGEST = 65_535
_MOST_SECONDS = 4_294_967_295
_LEAST_EXPIRY = 1
_NO_TOPIC = b"\0\0"
# A topic of so many bytes, with its length, is not worth an alias; one of the runtime is used once.
_SHORTEST_ALIASED = 12
_OF_THE_RUNTIME = f"{RESERVED}/".encode()
LARGEST_ALIAS = 7
"""The most bytes by which a topic alias makes a packet larger that says what it stands for."""
# What hardly changes from one publish to the next is encoded once: that takes half of the time.
_ID = b"\x26\x00\x02id"
_TIME = b"\x26\x00\x04time"
_VERSION = b"\x26\x00\x0bspecversion\x00\x031.0"
# The first user properties of nearly all messages of this package, decoded at once.
_COMMON = (
    b"\x26\x00\x04type"
    + len(DEFAULT_TYPE).to_bytes(2, "big")
    + DEFAULT_TYPE.encode("ascii")
    + _VERSION
)
_LENGTH_OF_COMMON = len(_COMMON)
# A content type without a charset does not say it. What is said must be true: brokers may check.
_TEXT = "text/plain"
_SAYS_UTF8 = b"\x01\x01"
LARGEST_HEAD = 131_072
"""The most bytes that a PUBLISH may have before its payload."""
_LONGEST_OF_THREE_BYTES = 2_097_151


class MalformedPacket(Exception):
    """What the broker sent is not valid MQTT 5."""


def variable_integer(value: int) -> bytes:
    """Encode a variable byte integer of MQTT, at most 268,435,455."""
    if value < 128:
        return bytes((value,))
    if value < 16_384:
        return bytes((value & 127 | 128, value >> 7))
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _length_of_variable(value: int) -> int:
    if value < 128:
        return 1
    if value < 16_384:
        return 2
    return 3 if value <= _LONGEST_OF_THREE_BYTES else 4


_FLAGS_OF_CONNECT = 7
_HAS_PASSWORD = 0x40


def add_password(packet: bytes, password: bytes) -> bytes:
    """Add a password, which is always the last field, to a CONNECT packet that has none."""
    _, start = read_variable(packet, 1)
    body = bytearray(packet[start:])
    body[_FLAGS_OF_CONNECT] |= _HAS_PASSWORD
    body += _sized(password, "the password")
    return packet[:1] + variable_integer(len(body)) + bytes(body)


def encode_acknowledgements(tokens: list[int]) -> bytes:
    """Encode a PUBACK for each packet id, in this order (a PUBREC for those with `QOS2`)."""
    return b"".join(
        [
            _head_and_id(0x4002, token) if token < QOS2 else _head_and_id(0x5002, token & 0xFFFF)
            for token in tokens
        ]
    )


def encode_completion(packet: bytes) -> bytes:
    """Encode the PUBCOMP that answers a PUBREL, given the PUBREL without its fixed header."""
    return b"\x70\x02" + packet[:2]


class PublishPacket:
    """A PUBLISH, encoded except for its packet id.

    Attributes:
        qos: quality of service, 0 or 1.
        retain: whether the broker should retain it.
        topic: encoded, after its length.
        size: the size of the whole packet in bytes, without a topic alias.

    Args:
        envelope: the message; its topic has been checked.

    Raises:
        EncodeError: a text cannot be encoded, or a header has a name reserved by the wire format.
    """

    __slots__ = ("_first", "_properties", "payload", "qos", "retain", "size", "topic")

    def __init__(self, envelope: Envelope) -> None:
        self.qos = envelope.qos
        self.retain = envelope.retain
        self.payload = envelope.payload
        self._properties = properties = _encode_properties(envelope)
        self.topic = topic = _text(envelope.topic, "topic")
        self._first = bytes((0x30 | self.qos << 1 | self.retain,))
        remaining = len(topic) + len(properties) + len(self.payload) + (2 if self.qos else 0)
        remaining += _length_of_variable(len(properties))
        self.size = 1 + _length_of_variable(remaining) + remaining

    def expires_in(self, seconds: float) -> None:
        """Send this as the expiry of a message that has one: it has waited."""
        self._properties = b"".join((b"\x02", _seconds(seconds), self._properties[5:]))

    def encode(self, packet_id: int, alias: bytes = b"", *, known: bool = False) -> bytes:
        """Return the bytes to write; without packet id for QoS 0.

        Args:
            packet_id: the packet id.
            alias: the property of a topic alias; see `TopicAliases`.
            known: whether the alias stands for the topic on this connection already, so that the
                topic is left out; otherwise this packet says what it stands for.
        """
        topic = _NO_TOPIC if known else self.topic
        properties = self._properties
        length = len(alias) + len(properties)
        size = variable_integer(length)
        length += len(topic) + len(size) + len(self.payload)
        if not self.qos:
            return b"".join(
                (self._first, variable_integer(length), topic, size, alias, properties,
                 self.payload)
            )  # fmt: skip
        return b"".join(
            (self._first, variable_integer(length + 2), topic, packet_id.to_bytes(2, "big"), size,
             alias, properties, self.payload)
        )  # fmt: skip


class TopicAliases:
    """The topic aliases of one connection: which topics the broker knows by a number.

    If there are more topics than aliases, the one that was not used for longest gives up its alias.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # By topic, the one used last at the end.
        self._aliases: OrderedDict[bytes, bytes] = OrderedDict()

    def encode(self, packet: PublishPacket, packet_id: int) -> bytes:
        """Return the bytes to write, which have to be written next on the connection."""
        topic = packet.topic
        alias = self._aliases.get(topic)
        if alias is not None:
            self._aliases.move_to_end(topic)
            return packet.encode(packet_id, alias, known=True)
        if len(topic) < _SHORTEST_ALIASED or topic.startswith(_OF_THE_RUNTIME, 2):
            return packet.encode(packet_id)
        if len(self._aliases) < self._most:
            alias = b"\x23" + (len(self._aliases) + 1).to_bytes(2, "big")
        else:
            _, alias = self._aliases.popitem(last=False)
        self._aliases[topic] = alias
        return packet.encode(packet_id, alias, known=False)


def _seconds(expiry: float) -> bytes:
    return min(max(math.ceil(expiry), 0), _MOST_SECONDS).to_bytes(4, "big")


def _encode_properties(envelope: Envelope) -> bytes:
    parts: list[bytes] = []
    if envelope.expiry is not None:
        # First, where `PublishPacket.expires_in` finds it.
        parts.append(b"\x02" + _seconds(envelope.expiry))
    if envelope.content_type is not None:
        if envelope.content_type == _TEXT and _is_utf8(envelope.payload):
            parts.append(_SAYS_UTF8)
        parts.append(b"\x03" + _text(envelope.content_type, "content type"))
    if envelope.response_topic is not None:
        parts.append(b"\x08" + _text(envelope.response_topic, "response topic"))
    headers = envelope.headers
    if envelope.correlation is not None:
        parts.append(b"\x09" + _sized(envelope.correlation, "correlation"))
    elif headers and CORRELATION_ID in headers:
        parts.append(b"\x09" + _text(headers[CORRELATION_ID], "correlation"))
    source, kind = envelope.source, envelope.type
    if source and kind and envelope.id:
        parts.append(_event(source, kind))
    else:
        if kind is not None:
            parts.append(_pair("type", kind))
        if source is not None:
            parts.append(_pair("source", source))
    if envelope.id is not None:
        parts.append(_ID + _text(envelope.id, "id"))
    if envelope.time is not None:
        parts.append(_TIME + _timestamp(envelope.time))
    if envelope.key is not None:
        parts.append(_pair("key", envelope.key))
    if headers:
        _add_headers(envelope, parts)
    return b"".join(parts)


def _add_headers(envelope: Envelope, parts: list[bytes]) -> None:
    for name, value in envelope.headers.items():
        if name in RESERVED_NAMES:
            raise EncodeError(
                f"header {name!r} of the message to {envelope.topic!r} has a name that the wire"
                " format uses itself; choose another name, or use the field of that name"
            )
        try:
            data = value.encode()
        except UnicodeEncodeError:
            data = b"\0"
        if len(data) > _LONGEST or b"\0" in data or len(name) > LONGEST_REMEMBERED:
            # This names what is wrong, if anything is.
            parts.append(_pair(name, value))
        else:
            parts.append(_name(name) + len(data).to_bytes(2, "big") + data)


def _is_utf8(payload: bytes) -> bool:
    try:
        return payload.isascii() or payload.decode() is not None
    except UnicodeDecodeError:
        return False


def _pair(name: str, value: str) -> bytes:
    return b"\x26" + _text(name, "header name") + _text(value, f"header {name!r}")


def _text(text: str, what: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"{what} {text!r} cannot be encoded as UTF-8: {error.reason}") from None
    if b"\0" in data:
        raise EncodeError(f"{what} {text!r} contains a null character, which MQTT does not allow")
    return _sized(data, what)


def _sized(data: bytes, what: str) -> bytes:
    if len(data) > _LONGEST:
        raise EncodeError(f"{what} has {len(data)} bytes; MQTT allows {_LONGEST}")
    return len(data).to_bytes(2, "big") + data


@functools.lru_cache(256)
def _name(name: str) -> bytes:
    return b"\x26" + _text(name, "header name")


@functools.lru_cache(256)
def _event(source: str, kind: str) -> bytes:
    """Return what says that it is a CloudEvent, and of whom and of which type; begins `_COMMON`."""
    return _pair("type", kind) + _VERSION + _pair("source", source)


@functools.lru_cache(4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")


def _timestamp(seconds: float) -> bytes:
    try:
        whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
        text = f"{_second(whole)}.{micros:06d}Z"
    except (ValueError, OverflowError, OSError) as error:
        raise EncodeError(f"time {seconds!r} is not between the years 1 and 9999") from error
    return b"\x00\x1b" + text.encode("ascii")


class PublishDecoder:
    """Creates envelopes from PUBLISH packets.

    Args:
        stats: counts fields that were ignored because of an invalid value, under
            ``messages.malformed``.
    """

    def __init__(self, stats: Counter[str]) -> None:
        self._stats = stats

    def decode(
        self, first: int, data: bytes, start: int, stop: int
    ) -> tuple[Envelope, int, tuple[int, ...]]:
        """Return the message, its token and the identifiers of the subscriptions that it matched.

        The token is the packet id; -1 for QoS 0, and `QOS2` is added for QoS 2.

        Args:
            first: the first byte of the packet.
            data: a buffer with the packet.
            start: where in ``data`` the packet's variable header begins.
            stop: where the packet ends.

        Raises:
            MalformedPacket: its inner lengths are inconsistent, or it has no topic.
        """
        try:
            position = start + 2 + (data[start] << 8 | data[start + 1])
            topic = data[start + 2 : position].decode("utf-8", "replace")
            if not topic:
                raise MalformedPacket("a PUBLISH packet has no topic, and no alias was offered")
            qos = first >> 1 & 3
            if qos:
                token = data[position] << 8 | data[position + 1]
                position += 2
                if qos == 3:
                    raise MalformedPacket("a PUBLISH packet has QoS 3")
                if qos == 2:
                    token |= QOS2
            else:
                token = -1
            length = data[position]
            position += 1
            if length > 127:
                length, position = read_variable(data, position - 1)
            if length:
                return self._with_properties(first, topic, token, data, position, length, stop)
        except (IndexError, struct.error):
            raise MalformedPacket("a PUBLISH packet ends too early") from None
        if position > stop:
            raise MalformedPacket("a PUBLISH packet ends too early")
        envelope = Envelope(
            topic=topic,
            payload=data[position:stop],
            qos=1 if qos else 0,
            retain=first & 1 == 1,
            redelivered=first & 8 == 8,
        )
        return envelope, token, ()

    def _with_properties(
        self,
        first: int,
        topic: str,
        token: int,
        data: bytes,
        position: int,
        length: int,
        stop: int,
    ) -> tuple[Envelope, int, tuple[int, ...]]:
        end = position + length
        if end > stop:
            raise MalformedPacket("the properties of a PUBLISH packet are longer than it is")
        fields: dict[str, Any] = {}
        identifiers: tuple[int, ...] = ()
        headers: dict[str, str] = {}
        while position < end:
            kind = data[position]
            position += 1
            if kind == 0x26:
                if not headers and data.startswith(_COMMON, position - 1):
                    fields["type"] = DEFAULT_TYPE
                    position += _LENGTH_OF_COMMON - 1
                    continue
                # As read_text(), without the cost of two calls for each property. A text that is
                # longer than the packet makes the position a wrong one.
                begin = position + 2
                position = begin + (data[position] << 8 | data[position + 1])
                name = data[begin:position].decode("utf-8", "replace")
                begin = position + 2
                position = begin + (data[position] << 8 | data[position + 1])
                headers[name] = data[begin:position].decode("utf-8", "replace")
            elif kind == 0x0B:
                identifier, position = read_variable(data, position)
                identifiers += (identifier,)
            elif kind == 0x09:
                size = data[position] << 8 | data[position + 1]
                position += 2 + size
                fields["correlation"] = data[position - size : position]
            elif kind == 0x08:
                value, position = read_text(data, position)
                fields["response_topic"] = value or None
            elif kind == 0x03:
                value, position = read_text(data, position)
                fields["content_type"] = value or None
            elif kind == 0x02:
                # Brokers count whole seconds, and send 0 for a rest of less than one.
                fields["expiry"] = float(
                    int.from_bytes(data[position : position + 4], "big") or _LEAST_EXPIRY
                )
                position += 4
            elif kind == 0x01:
                position += 1
            elif kind == 0x23:
                raise MalformedPacket("a PUBLISH packet has a topic alias, and none was offered")
            else:
                raise MalformedPacket(f"a PUBLISH packet has the unknown property {kind:#04x}")
        if position != end:
            raise MalformedPacket("the properties of a PUBLISH packet have a wrong length")
        if headers:
            self._take_fields(headers, fields)
        qos = first >> 1 & 3
        envelope = Envelope(
            topic=topic,
            payload=data[end:stop],
            qos=1 if qos else 0,
            retain=first & 1 == 1,
            redelivered=first & 8 == 8,
            **fields,
        )
        return envelope, token, identifiers

    def _take_fields(self, headers: dict[str, str], fields: dict[str, Any]) -> None:
        for name in ("id", "source", "type", "key"):
            if name in headers:
                value = headers.pop(name)
                # An empty key is a key: messages with it belong together.
                if value or name == "key":
                    fields[name] = value
                else:
                    self._stats["messages.malformed"] += 1
        headers.pop("specversion", None)
        if "time" in headers:
            try:
                fields["time"] = datetime.fromisoformat(headers.pop("time")).timestamp()
            except (ValueError, OverflowError, OSError):
                self._stats["messages.malformed"] += 1
        if headers:
            fields["headers"] = headers


def read_text(data: bytes, position: int) -> tuple[str, int]:
    """Return a length-prefixed text and the position of its end.

    Raises:
        MalformedPacket: it is longer than the data.
        IndexError: its length is not complete.
    """
    size = data[position] << 8 | data[position + 1]
    end = position + 2 + size
    if end > len(data):
        raise MalformedPacket("a text in a packet is longer than the packet")
    return data[position + 2 : end].decode("utf-8", "replace"), end


def read_variable(data: bytes, position: int) -> tuple[int, int]:
    """Return a variable byte integer and the position of its end.

    Raises:
        MalformedPacket: it has more than four bytes.
        IndexError: it is not complete.
    """
    value = shift = 0
    while shift < 28:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise MalformedPacket("a variable byte integer has more than four bytes")


class PacketSink(Protocol):
    """Takes one packet as it arrives.

    Attributes:
        left: bytes that have yet to arrive.
    """

    left: int

    def feed(self, data: bytes, /) -> int:
        """Take the bytes that belong to the packet, and return how many they are."""


class LargePublish:
    """Takes one PUBLISH: keeps its topic, packet id and properties, and a digest of its payload.

    Properties that are too large themselves are left out as well.

    Args:
        first: the first byte of the packet.
        length: bytes of the packet after its fixed header.
        on_end: called when all of it has arrived.

    Attributes:
        first: as given.
        left: bytes that have yet to arrive.
        head: the packet's variable header as far as it is kept; complete at the end.
    """

    def __init__(self, first: int, length: int, on_end: Callable[[LargePublish], None]) -> None:
        self.first = first
        self.left = length
        self.head = b""
        self._on_end = on_end
        self._begun = bytearray()
        self._to_skip = 0
        self._size = 0
        self._digest = hashlib.sha256()

    @property
    def left_out(self) -> LeftOut:
        """What is known of the payload."""
        return LeftOut(self._size, self._digest.hexdigest())

    def feed(self, data: bytes) -> int:
        """Take the bytes that belong to the packet, and return how many they are.

        Raises:
            MalformedPacket: its inner lengths do not fit.
        """
        piece = data[: self.left]
        taken = len(piece)
        self.left -= taken
        if not self.head:
            self._begun += piece
            piece = self._begin()
        if self.head:
            self._take(piece)
        elif not self.left:
            raise MalformedPacket("a PUBLISH packet ends too early")
        if not self.left:
            if self._to_skip:
                raise MalformedPacket("the properties of a PUBLISH packet are longer than it is")
            self._on_end(self)
        return taken

    def _begin(self) -> bytes:
        """Find where the payload begins, if enough has arrived; return what follows."""
        begun = bytes(self._begun)
        try:
            position = 2 + (begun[0] << 8 | begun[1]) + (2 if self.first & 6 else 0)
            length, properties = read_variable(begun, position)
        except IndexError:
            return b""
        end = properties + length
        if end > LARGEST_HEAD:
            self.head = begun[:position] + b"\0"
            self._to_skip = length
            end = properties
        elif end <= len(begun):
            self.head = begun[:end]
        else:
            return b""
        self._begun.clear()
        return begun[end:]

    def _take(self, piece: bytes) -> None:
        if self._to_skip:
            skipped = min(self._to_skip, len(piece))
            self._to_skip -= skipped
            piece = piece[skipped:]
        self._size += len(piece)
        self._digest.update(piece)


def as_taken(envelope: Envelope, largest: int, wire: WireFormat = CLOUDEVENTS) -> Envelope:
    """Return the message as the client would hand it out, for simulations of MQTT.

    Args:
        envelope: the message.
        largest: the largest payload that is accepted, in bytes.
        wire: the format that messages have.
    """
    size = len(envelope.payload)
    if _may_have_large_head(envelope):
        try:
            length = _length_of(PublishPacket(envelope))
        except EncodeError:
            # No packet can have that. A message in memory must not stop those behind it.
            length = 0
        if length > largest + LARGEST_HEAD and length - size > LARGEST_HEAD:
            digest = hashlib.sha256(envelope.payload).hexdigest()
            return Envelope(
                topic=envelope.topic,
                payload=b"",
                qos=envelope.qos,
                retain=envelope.retain,
                redelivered=envelope.redelivered,
                left_out=LeftOut(size, digest),
            )
    return wire.opened(envelope) if size <= largest else without_payload(envelope)


def _length_of(packet: PublishPacket) -> int:
    """Return the length in the fixed header of a packet of more than 16 KB, without that header."""
    length = packet.size - 4
    return length if length <= _LONGEST_OF_THREE_BYTES else length - 1


def _may_have_large_head(envelope: Envelope) -> bool:
    texts = 0
    if envelope.headers:
        texts = len("".join((*envelope.headers, *envelope.headers.values())))
    if envelope.key is not None:
        texts += len(envelope.key)
    if envelope.content_type is not None:
        texts += len(envelope.content_type)
    # A character takes up to four bytes.
    return texts > LARGEST_HEAD // 8


class Dropped:
    """Takes, and drops, the rest of a packet that is no longer wanted."""

    def __init__(self, left: int) -> None:
        self.left = left

    def feed(self, data: bytes) -> int:
        """Drop the bytes that belong to the packet, and return how many they are."""
        taken = min(self.left, len(data))
        self.left -= taken
        return taken
