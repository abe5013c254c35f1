"""The socket of a handler whose publishes are kept until its message is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..._texts import quoted
from ...errors import MessageTooLarge
from ...transports import Envelope
from ...transports._outbox import size_of
from ._socket import Socket

__all__ = ["MUCH_OUTPUT", "RecordingSocket", "size_with"]

# Bytes that one message may publish, with so many for each besides its own.
_MOST_OUTPUT = 67_108_864
MUCH_OUTPUT = 16_777_216
"""Bytes that a message may publish before anybody looks closely."""
_FOR_EACH_OUTPUT = 1_000


class RecordingSocket(Socket):
    """A socket that records what a handler publishes, and sends only what it does not record.

    Args:
        args: those of `Socket`, or of the other base class of a subclass.
        options: likewise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._recorded = self._recorder()
        self._send = self._record_or_send
        self._post = self._record_or_post

    def _recorder(self) -> Callable[[Envelope], bool]:
        """Return a function that records what is published, and returns whether it has."""
        raise NotImplementedError

    async def _record_or_send(self, envelope: Envelope, *, timeout: float) -> None:
        if not self._recorded(envelope):
            await self._connection.publish(envelope, timeout=timeout)

    def _record_or_post(self, envelope: Envelope) -> object:
        return None if self._recorded(envelope) else self._connection.post(envelope)


def size_with(size: int, envelope: Envelope) -> int:
    """Return the bytes of what a message publishes with one more.

    Args:
        size: those of what it has published so far.
        envelope: what it publishes now.

    Raises:
        MessageTooLarge: together they cannot be committed.
    """
    size += size_of(envelope) + _FOR_EACH_OUTPUT
    if size > _MOST_OUTPUT:
        raise MessageTooLarge(
            "what this message publishes is committed as a whole, and with the one to"
            f" {quoted(envelope.topic)} it has {size} bytes, while {_MOST_OUTPUT} are allowed:"
            " publish less for each message"
        )
    return size
