"""PUBLISH and PUBACK on one connection: messages and their acknowledgements, sent and received."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from ..._envelope import without_payload
from ..._wire_formats import CLOUDEVENTS, WireFormat
from .._connection_events import ClientHandler
from ._packets import (
    LARGEST_ALIAS,
    LARGEST_HEAD,
    LargePublish,
    MalformedPacket,
    PublishDecoder,
    PublishPacket,
    TopicAliases,
    encode_acknowledgements,
    encode_completion,
)
from ._reason_codes import BrokerReason
from ._stream import FrameStream
from ._subscribe import read_properties

__all__ = ["MessageFlow"]

_PUBLISH, _PUBACK, _PUBREL, _PINGRESP = 0x30, 0x40, 0x60, 0xD0
# The memory that one takes besides its characters.
_OVERHEAD_OF_A_HEADER = 256
_REFUSED = 0x80


class MessageFlow:
    """Reads the packets that carry messages from a stream, and writes them.

    Args:
        handler: gets messages and confirmations.
        stats: counters.
        largest: the largest payload that is accepted, in bytes; of a larger one the handler gets
            the size and digest.
        next_packet_id: allocates from the same ids as the client library's own requests.
        on_other: gets every other packet, as `FrameStream` hands it over.
        wire: the format that messages have.
    """

    def __init__(
        self,
        handler: ClientHandler,
        stats: Counter[str],
        largest: int,
        next_packet_id: Callable[[], int],
        on_other: Callable[[int, bytes, int, int], None],
        wire: WireFormat = CLOUDEVENTS,
    ) -> None:
        self._handler = handler
        self._largest = largest
        self._decode = PublishDecoder(stats).decode
        self._is_packed = wire.is_packed
        self._opened = wire.opened
        self._next_packet_id = next_packet_id
        self._on_other = on_other
        self._stream: FrameStream | None = None
        self._aliases: TopicAliases | None = None
        self._largest_aliased = 0
        # By packet id: note, bytes, and the total written up to its end.
        self._in_flight: dict[int, tuple[Any, int, int]] = {}
        # When the broker refused a publish, and why, if that was its last answer to one.
        self._refusal: tuple[float, int] | None = None

    def begin(self, stream: FrameStream) -> None:
        """Write to this stream from now on."""
        self._stream = stream

    def use_aliases(self, most: int, largest: int) -> None:
        """Use topic aliases on this connection from now on.

        Args:
            most: how many; 0 for none.
            largest: the largest packet that the broker accepts, in bytes.
        """
        self._aliases = TopicAliases(most) if most else None
        self._largest_aliased = largest - LARGEST_ALIAS

    def end(self) -> None:
        """Forget what was not confirmed, as the connection is lost."""
        self._stream = None
        self._in_flight.clear()

    def unconfirmed(self) -> int:
        """Return the size of the oldest QoS 1 message that is not confirmed yet, in bytes."""
        return next((size for _, size, _ in self._in_flight.values()), 0)

    def oldest(self) -> int:
        """Return the bytes written on the connection up to the end of that message; 0 for none."""
        return next((end for _, _, end in self._in_flight.values()), 0)

    def refused_within(self, seconds: float) -> int | None:
        """Return why the broker has just refused a publish; None if it has accepted one since."""
        if self._refusal is None:
            return None
        at, code = self._refusal
        return code if asyncio.get_running_loop().time() - at < seconds else None

    def acknowledge(self, tokens: list[int]) -> None:
        """Send a PUBACK or PUBREC for each of the messages, in this order."""
        if self._stream is not None:
            self._stream.write(encode_acknowledgements(tokens))

    def publish(self, packet: PublishPacket, note: Any) -> None:
        """Write a message; the handler's ``on_confirmed`` gets the note with the outcome."""
        stream = self._stream
        if stream is None:
            return
        packet_id = 0
        if packet.qos:
            packet_id = self._next_packet_id()
            while packet_id in self._in_flight:
                packet_id = self._next_packet_id()
        if self._aliases is None or packet.size > self._largest_aliased:
            stream.write(packet.encode(packet_id))
        else:
            stream.write(self._aliases.encode(packet, packet_id))
        if packet.qos:
            self._in_flight[packet_id] = note, packet.size, stream.written
        else:
            stream.after_flush(lambda: self._handler.on_confirmed(note, 0))

    def on_packet(self, first: int, data: bytes, start: int, stop: int) -> None:
        """Handle a packet.

        Raises:
            MalformedPacket: it cannot be read.
        """
        kind = first & 0xF0
        if kind == _PUBLISH:
            envelope, token, identifiers = self._decode(first, data, start, stop)
            size = stop - start
            if size > self._largest and len(envelope.payload) > self._largest:
                size -= len(envelope.payload)
                envelope = without_payload(envelope)
            elif self._is_packed(envelope):
                envelope = self._opened(envelope)
                size += len(envelope.payload)
            if envelope.headers:
                size += _OVERHEAD_OF_A_HEADER * len(envelope.headers)
            self._handler.on_message(envelope, token, identifiers, size)
        elif kind == _PUBACK:
            if stop - start < 2:
                raise MalformedPacket("a PUBACK packet ends too early")
            confirmed = self._in_flight.pop(data[start] << 8 | data[start + 1], None)
            if confirmed is not None:
                code = data[start + 2] if stop - start > 2 else 0
                self._refusal = None
                if code >= _REFUSED and stop - start > 4:
                    code = BrokerReason.of(code, read_properties(data, start + 3, stop)[0])
                if code >= _REFUSED:
                    self._refusal = asyncio.get_running_loop().time(), code
                self._handler.on_confirmed(confirmed[0], code)
        elif kind == _PUBREL:
            if self._stream is not None:
                self._stream.write(encode_completion(data[start:stop]))
        elif kind != _PINGRESP:
            self._on_other(first, data, start, stop)

    def divert(self, first: int, length: int) -> LargePublish | None:
        """Return a sink for a PUBLISH that is too large to be assembled; None if it is not."""
        if length <= self._largest + LARGEST_HEAD:
            return None
        return LargePublish(first, length, self._on_large)

    def _on_large(self, large: LargePublish) -> None:
        head = large.head
        envelope, token, identifiers = self._decode(large.first, head, 0, len(head))
        envelope = msgspec.structs.replace(envelope, left_out=large.left_out)
        size = len(head) + _OVERHEAD_OF_A_HEADER * len(envelope.headers)
        self._handler.on_message(envelope, token, identifiers, size)
