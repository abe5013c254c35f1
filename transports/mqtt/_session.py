"""What a connection tells the one who uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .._envelope import Envelope

__all__ = ["ClientHandler", "Loss", "ServerLimits"]


@dataclass(frozen=True)
class ServerLimits:
    """What the broker said about itself when it accepted the connection."""

    receive_maximum: int = 65_535
    """QoS 1 publishes that it takes at once."""
    maximum_packet_size: int = 268_435_460
    """In bytes."""
    maximum_qos: int = 2
    retain: bool = True
    subscription_identifiers: bool = True
    keepalive: int = 0
    """Seconds that the broker demands; 0 when it leaves ours."""


@dataclass(frozen=True)
class Loss:
    """How a connection ended.

    Attributes:
        text: for logs.
        code: reason code that the broker gave, None without one.
        closed_by_broker: the broker ended it in good order, as it does with a client whose
            identifier somebody else uses; False for resets, silence and our own doing.
        unconfirmed: bytes of the oldest message that was not confirmed, when the connection was
            given up because the broker had gone silent; 0 for every other end.
    """

    text: str
    code: int | None = None
    closed_by_broker: bool = False
    unconfirmed: int = 0


class ClientHandler(Protocol):
    """Who uses an `MqttClient`. All methods are called on the loop and return at once."""

    def on_connected(self, session_present: bool) -> None:
        """The broker has accepted; called before the first message is handed over."""

    def on_lost(self, loss: Loss) -> None:
        """The connection has ended; called once after `on_connected`."""

    def on_message(
        self, envelope: Envelope, token: int, identifiers: tuple[int, ...], size: int
    ) -> None:
        """A message came, which takes so many bytes. Acknowledge the token, unless it is -1."""

    def on_confirmed(self, note: Any, code: int) -> None:
        """The broker's answer to a publish; ``note`` is what `publish` got."""
