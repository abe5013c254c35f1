"""Wire formats: how a message is written to a bus and read from it, ours and that of 0.4.0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, TypeAlias

import msgspec

from .._logs import get_logger
from .._texts import quoted
from ..errors import EncodeError
from ._envelope import Envelope
from ._structured_events import is_structured, opened as opened_event
from ._topics import RESERVED, is_reserved

__all__ = [
    "CLOUDEVENTS",
    "WIRES",
    "WIRE_CHOICES",
    "SpaDatFormat",
    "WireFormat",
    "WireFormats",
    "WireName",
    "opened",
    "wire_format",
    "with_wire",
]

_log = get_logger(__name__)

WireName: TypeAlias = Literal["cloudevents", "spa-dat"]
"""The values of the option ``wire``."""
WIRES: tuple[WireName, ...] = ("cloudevents", "spa-dat")
"""The same, for the ``wires`` of providers."""
WIRE_CHOICES: Mapping[str, tuple[str | None, ...]] = {"wire": WIRES}
"""The same, for the ``choices`` of configurations."""
_SPA_DAT = "spa-dat"
# At the end of the correlation of a request that names its format. No other ends so: tokens are
# hexadecimal.
_MARKS = {"cloudevents": "v", "spa-dat": "s"}
_PACKED = "application/vnd.spa-dat+json"
# As long as that of a CloudEvent.
_LENGTH_OF_PACKED = len(_PACKED)
# How 0.4.0 begins all of its messages.
_BEGINNING = b'{"Payload":"'
_LENGTH_OF_BEGINNING = len(_BEGINNING)
_MOST_TOPICS = 1_000
_DEAD_LETTERS = f"{RESERVED}/dead-letter/"
# Hashes of the topics on which messages of 0.4.0 have come and were not expected; strangers may
# invent long ones.
_reported: dict[int, None] = {}


class _Message(msgspec.Struct, rename="pascal", gc=False):
    """A message as 0.4.0 writes it; the names and their order are those on the wire."""

    payload: str
    topic: str
    content_type: str | None = None
    client_id: str | None = None
    client_name: str | None = None
    quality_of_service: Literal[0, 1, 2] = 2
    response_topic: str | None = None
    timestamp: int | float | str = 0


class _WholeMessage(msgspec.Struct, rename="pascal", gc=False):
    """The same with all of its members, none of which 0.4.0 leaves out."""

    payload: str
    topic: str
    content_type: str | None
    client_id: str | None
    client_name: str | None
    quality_of_service: Literal[0, 1, 2]
    response_topic: str | None
    timestamp: int


_read = msgspec.json.Decoder(_Message).decode
_read_whole = msgspec.json.Decoder(_WholeMessage).decode
_write = msgspec.json.Encoder().encode


class WireFormat:
    """CloudEvents: the payload as it is, and everything else beside it.

    What is a document on the wire is opened: a CloudEvent in structured mode. A message of spa-dat
    0.4.0 is recognised, so that no handler takes it for its payload.
    """

    packs: ClassVar[bool] = False
    """Whether messages have to be packed before they are written."""

    def is_packed(self, envelope: Envelope) -> bool:
        """Return whether a received message may have to be opened, so that it needs its payload."""
        content_type = envelope.content_type
        if content_type is None:
            return envelope.id is None and envelope.payload[:_LENGTH_OF_BEGINNING] == _BEGINNING
        # Hardly any other is that long.
        return len(content_type) >= _LENGTH_OF_PACKED and (
            content_type == _PACKED or is_structured(content_type)
        )

    def opened(self, envelope: Envelope) -> Envelope:
        """Return a received message as it was meant; one that cannot be read gets a flaw.

        The message as it came is `Envelope.original`.
        """
        if envelope.left_out is not None or not self.is_packed(envelope):
            return envelope
        if is_structured(envelope.content_type):
            return opened_event(envelope)
        return _recognised(envelope)

    def packed(self, envelope: Envelope) -> Envelope:
        """Return a message as it is to be written.

        Raises:
            EncodeError: the format cannot carry its payload.
        """
        return envelope


CLOUDEVENTS = WireFormat()
"""What this package writes, unless an option says otherwise."""


def opened(envelope: Envelope) -> Envelope:
    """Return a message that was received in the format of this package, see `WireFormat.opened`."""
    return CLOUDEVENTS.opened(envelope)


class SpaDatFormat(WireFormat):
    """The format of spa-dat 0.4.0: one JSON object with the payload, a text, inside.

    0.4.0 looks at nothing else. Fields that it does not know stay beside the object, where programs
    of this package find them. What comes in the format of this package is read as well.

    Args:
        name_of: from the address for replies to the name that peers publish to.
        address_of: the other way round.
    """

    packs = True

    def __init__(self, name_of: Callable[[str], str], address_of: Callable[[str], str]) -> None:
        self._name_of = name_of
        self._address_of = address_of

    def is_packed(self, envelope: Envelope) -> bool:
        content_type = envelope.content_type
        if content_type is None:
            return envelope.id is None and not envelope.tombstone
        return is_structured(content_type) or content_type == _PACKED

    def opened(self, envelope: Envelope) -> Envelope:
        if envelope.left_out is not None or not self.is_packed(envelope):
            return envelope
        if is_structured(envelope.content_type):
            return opened_event(envelope)
        try:
            return self._unpacked(envelope)
        except RecursionError:
            why = "it is nested too deeply"
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            why = str(error)
        return msgspec.structs.replace(
            envelope,
            flaw=f"the payload is not a message of spa-dat 0.4.0, as wire='spa-dat' expects: {why}",
        )

    def _unpacked(self, envelope: Envelope) -> Envelope:
        message = _read(envelope.payload)
        stamp = _seconds(message.timestamp)
        response_topic = envelope.response_topic
        if response_topic is None and message.response_topic:
            response_topic = self._address_of(message.response_topic)
        return msgspec.structs.replace(
            envelope,
            payload=message.payload.encode(),
            content_type=message.content_type or None,
            source=envelope.source or message.client_name or message.client_id or None,
            time=stamp if envelope.time is None else envelope.time,
            response_topic=response_topic,
            original=envelope,
        )

    def packed(self, envelope: Envelope) -> Envelope:
        # What is under _spa/ is read by programs of this package only.
        if envelope.tombstone or is_reserved(envelope.topic):
            return envelope
        try:
            payload = envelope.payload.decode()
        except UnicodeDecodeError as error:
            raise EncodeError(
                f"the payload for {quoted(envelope.topic, 80)} is not UTF-8 ({error}), and"
                " wire='spa-dat' carries nothing else: send a text, for example in base64, or"
                " publish it with wire='cloudevents'"
            ) from None
        response_topic = envelope.response_topic
        message = _Message(
            payload=payload,
            topic=self._name_of(envelope.topic),
            content_type=envelope.content_type,
            client_id=envelope.source,
            client_name=envelope.source,
            quality_of_service=1 if envelope.qos else 0,
            response_topic=None if response_topic is None else self._name_of(response_topic),
            timestamp=int(envelope.time or 0),
        )
        return msgspec.structs.replace(envelope, payload=_write(message), content_type=_PACKED)


def _seconds(stamp: float | str) -> float | None:
    """Return the time that 0.4.0 reads from a time stamp; None if there is none.

    Raises:
        ValueError: it is not a whole number.
    """
    if isinstance(stamp, str):
        if len(stamp) > 20:
            raise ValueError(f"the Timestamp {quoted(stamp, 40)} is not a whole number")
        stamp = int(stamp)
    if stamp != int(stamp):
        raise ValueError(f"the Timestamp {stamp!r} is not a whole number")
    # Beyond it numbers are no times, and some cannot be a float.
    if abs(stamp) > 253_402_300_799:
        raise ValueError(f"the Timestamp {quoted(str(stamp), 40)} is not a time")
    return float(stamp) if stamp else None


def _recognised(envelope: Envelope) -> Envelope:
    """Return a message with a flaw if it is one of 0.4.0, although none was expected."""
    try:
        _read_whole(envelope.payload)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        if envelope.content_type is None:
            return envelope
    topic = envelope.topic
    if topic.startswith(_DEAD_LETTERS):
        # It has the message as it came, and its actor knows the format.
        return envelope
    key = hash(topic)
    if key not in _reported and len(_reported) < _MOST_TOPICS:
        _reported[key] = None
        _log.warning(
            "a program that speaks the format of spa-dat 0.4.0 publishes on %s: these messages"
            " reach no handler here; give the actor or the provider the option wire='spa-dat', or"
            " move that program",
            quoted(topic, 200),
        )
    return msgspec.structs.replace(
        envelope,
        flaw=(
            "the message is in the format of spa-dat 0.4.0: give the actor or the provider the"
            " option wire='spa-dat' to read it, or move the program that sends it"
        ),
    )


def _as_it_is(topic: str) -> str:
    return topic


_SPA_DAT_ON_MQTT = SpaDatFormat(_as_it_is, _as_it_is)


def wire_format(
    wire: str,
    name_of: Callable[[str], str] | None = None,
    address_of: Callable[[str], str] | None = None,
) -> WireFormat:
    """Return the format that the option ``wire`` names.

    Args:
        wire: one of `WIRE_CHOICES`.
        name_of: from an address to the name that others know; None if they are the same.
        address_of: the other way round.
    """
    if wire != _SPA_DAT:
        return CLOUDEVENTS
    if name_of is None or address_of is None:
        return _SPA_DAT_ON_MQTT
    return SpaDatFormat(name_of, address_of)


class WireFormats:
    """The formats of one bus: its own, and those that subscriptions and messages name.

    Args:
        wire: the option of the bus.
        name_of: as in `wire_format`.
        address_of: as in `wire_format`.

    Attributes:
        own: the format of all that names none.
        of_replies: the format that each reply to a request of this application has.
    """

    def __init__(
        self,
        wire: str,
        name_of: Callable[[str], str] | None = None,
        address_of: Callable[[str], str] | None = None,
    ) -> None:
        self._by_name: dict[str, WireFormat] = {
            name: wire_format(name, name_of, address_of) for name in WIRES
        }
        self._by_mark = {mark: self._by_name[name] for name, mark in _MARKS.items()}
        self.own = self._by_name[wire]
        self.of_replies: WireFormat = _ReplyFormat(self)

    def of(self, wire: str | None) -> WireFormat:
        """Return the format with a name; the bus's own for None."""
        return self.own if wire is None else self._by_name[wire]

    def of_reply(self, correlation: str) -> WireFormat:
        """Return the format of a reply: that of its request; see `with_wire`."""
        return self._by_mark.get(correlation[-1:], self.own)

    def packed(self, envelope: Envelope) -> Envelope:
        """Return a message as it is to be written, in the format that it names.

        Raises:
            EncodeError: the format cannot carry its payload.
        """
        wire = envelope.wire
        if wire is None:
            return self.own.packed(envelope)
        # Whoever gets it on a bus in memory is to see no more of it than on the network.
        return self._by_name[wire].packed(msgspec.structs.replace(envelope, wire=None))


class _ReplyFormat(WireFormat):
    """The format of the request, whose correlation is the end of the topic."""

    def __init__(self, formats: WireFormats) -> None:
        self._of_reply = formats.of_reply

    def is_packed(self, envelope: Envelope) -> bool:
        return self._of_reply(envelope.topic).is_packed(envelope)

    def opened(self, envelope: Envelope) -> Envelope:
        return self._of_reply(envelope.topic).opened(envelope)


def with_wire(correlation: str, wire: str | None) -> str:
    """Return a correlation that tells which format its request has been given.

    So the reply is read in that format, and nothing has to be remembered of requests that nobody
    answers.
    """
    return correlation if wire is None else correlation + _MARKS[wire]
