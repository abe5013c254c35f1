"""The handler of a connection whose only purpose is to see whether the broker has a session."""

from __future__ import annotations

from .._envelope import Envelope
from ._connection_events import Loss

__all__ = ["SessionProbe"]


class SessionProbe:
    """Ignores everything on a connection whose only purpose is to look at the session."""

    session_present = False

    def on_connected(self, session_present: bool) -> None:
        self.session_present = session_present

    def on_lost(self, loss: Loss) -> None:
        """Do nothing: nothing depends on it."""

    def on_message(
        self, envelope: Envelope, token: int, identifiers: tuple[int, ...], size: int
    ) -> None:
        """Leave the message unacknowledged."""

    def on_confirmed(self, note: object, code: int) -> None:
        """Do nothing: nothing is published here."""
