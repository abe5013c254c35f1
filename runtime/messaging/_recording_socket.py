"""The socket of a handler whose publishes are kept until its message is committed."""

from __future__ import annotations

from typing import Any

from ...transports import Envelope
from ._socket import Socket

__all__ = ["RecordingSocket"]


class RecordingSocket(Socket):
    """A socket that records what a handler publishes, and sends only what it does not record.

    Args:
        args: those of `Socket`, or of the other base class of a subclass.
        options: likewise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._send = self._record_or_send
        self._post = self._record_or_post

    def _recorded(self, envelope: Envelope) -> bool:
        """Record what is published; return whether it was."""
        raise NotImplementedError

    async def _record_or_send(self, envelope: Envelope, *, timeout: float) -> None:
        if not self._recorded(envelope):
            await self._connection.publish(envelope, timeout=timeout)

    def _record_or_post(self, envelope: Envelope) -> object:
        return None if self._recorded(envelope) else self._connection.post(envelope)
