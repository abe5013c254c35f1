"""Connections that count what is published, for the admin endpoint; others do not ask."""

from __future__ import annotations

from typing import Any

from ...transports import REPLY_HEADER, Envelope
from ...transports._wire_formats import WireName
from ..diagnostics._figures import PublishFigures
from ..options._custom_codecs import Codec
from ._bus_connection import BusConnection
from ._middleware_publishes import MiddlewareConnection
from ._outgoing_message import OutgoingMessage

__all__ = ["CountingConnection", "CountingMiddlewareConnection"]


class CountingConnection(BusConnection):
    """A connection that counts what is published, but for replies.

    Attributes:
        figures: what it has counted.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.figures = PublishFigures()

    def envelope(
        self,
        source: str,
        message: OutgoingMessage,
        codec: Codec | None = None,
        wire: WireName | None = None,
        *,
        request: tuple[str, bytes, tuple[str, ...]] | None = None,
    ) -> Envelope:
        """As in `BusConnection`; counted."""
        envelope = super().envelope(source, message, codec, wire, request=request)
        if REPLY_HEADER not in envelope.headers:
            self.figures.add(source, envelope.topic)
        return envelope

    def published_elsewhere(self, envelope: Envelope) -> None:
        """As in `BusConnection`; counted."""
        if REPLY_HEADER not in envelope.headers:
            self.figures.add(envelope.source or "", envelope.topic)


class CountingMiddlewareConnection(CountingConnection, MiddlewareConnection):
    """The same for an application with middleware that sees what is published."""
