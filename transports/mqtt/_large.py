"""Packets that are taken as they come, since they are too large to be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from ...errors import EncodeError
from .._envelope import Envelope, LeftOut, without_payload
from ._packets import MalformedPacket, PublishPacket, read_variable

__all__ = ["LARGEST_HEAD", "Dropped", "LargePublish", "Taker", "as_taken"]

LARGEST_HEAD = 131_072
"""Bytes that a PUBLISH may have in front of its payload."""
_LONGEST_OF_THREE_BYTES = 2_097_151


class Taker(Protocol):
    """Takes one packet as it comes.

    Attributes:
        left: bytes that are still to come.
    """

    left: int

    def feed(self, data: bytes, /) -> int:
        """Take what belongs to the packet; returns how many bytes that is."""


class LargePublish:
    """Takes one PUBLISH: keeps topic, packet id and properties, and of the payload a digest.

    Properties that are too large themselves are left out, too.

    Args:
        first: first byte of the packet.
        length: bytes of the packet behind its fixed header.
        on_end: called when it has come whole.

    Attributes:
        first: as given.
        left: bytes that are still to come.
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
        """Take what belongs to the packet; returns how many bytes that is.

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
        """Find where the payload begins, if enough has come; returns what came behind that."""
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


def as_taken(envelope: Envelope, largest: int) -> Envelope:
    """What is handed out of a message that comes over MQTT, where it is not simulated.

    Args:
        envelope: the message.
        largest: the most bytes of a payload that is taken.
    """
    size = len(envelope.payload)
    if _may_have_large_head(envelope):
        try:
            length = _length_of(PublishPacket(envelope))
        except EncodeError:
            # No packet can have that. What is in memory must not stop what is behind it.
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
    return envelope if size <= largest else without_payload(envelope)


def _length_of(packet: PublishPacket) -> int:
    """What the fixed header of a packet of more than 16 KB says, which it is not counted in."""
    length = packet.size - 4
    return length if length <= _LONGEST_OF_THREE_BYTES else length - 1


def _may_have_large_head(envelope: Envelope) -> bool:
    texts = 0
    if envelope.headers:
        texts = sum(map(len, envelope.headers)) + sum(map(len, envelope.headers.values()))
    if envelope.key is not None:
        texts += len(envelope.key)
    if envelope.content_type is not None:
        texts += len(envelope.content_type)
    # A character has up to four bytes.
    return texts > LARGEST_HEAD // 8


class Dropped:
    """Takes the rest of a packet that nobody wants any more."""

    def __init__(self, left: int) -> None:
        self.left = left

    def feed(self, data: bytes) -> int:
        """As `Taker.feed`."""
        taken = min(self.left, len(data))
        self.left -= taken
        return taken
