"""The events of a connection, for the one who uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from .._envelope import Envelope
from .protocol._reason_codes import Reason

__all__ = ["ClientHandler", "Ending", "Loss", "ServerLimits"]


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
    wildcards: bool = True
    shared_subscriptions: bool = True
    keepalive: int = 0
    """Seconds that the broker demands; 0 when it leaves ours."""
    session_expiry: int | None = None
    """Seconds for which it keeps the session; None when that is what was asked for."""

    def lacking(self, filter_: str) -> Reason | None:
        """Why the broker cannot serve a filter, by what it said about itself; None if it can.

        Args:
            filter_: as it stands in a SUBSCRIBE.
        """
        if filter_.startswith("$share/") and not self.shared_subscriptions:
            return Reason(0x9E)
        if ("+" in filter_ or "#" in filter_) and not self.wildcards:
            return Reason(0xA2)
        return None

    @classmethod
    def of(cls, properties: Mapping[int, int | str]) -> ServerLimits:
        """What the properties of a CONNACK say. Limits of 0 are forbidden, and are none."""

        def said(identifier: int, default: int) -> int:
            return int(properties.get(identifier, default))

        expiry = properties.get(0x11)
        return cls(
            receive_maximum=said(0x21, 0) or 65_535,
            maximum_packet_size=said(0x27, 0) or 268_435_460,
            maximum_qos=said(0x24, 2),
            retain=said(0x25, 1) == 1,
            subscription_identifiers=said(0x29, 1) == 1,
            wildcards=said(0x28, 1) == 1,
            shared_subscriptions=said(0x2A, 1) == 1,
            keepalive=said(0x13, 0),
            session_expiry=None if expiry is None else int(expiry),
        )


class Ending(Enum):
    """Who ended a connection, and how."""

    GOODBYE = "the broker said why, or at least that"
    REFUSED = "the broker closed it right after it had refused a publish"
    CLOSED = "the broker closed it in good order, without a word"
    RESET = "the other side broke it off"
    FAILED = "the network failed, or the broker has gone silent"
    OURS = "we did"


@dataclass(frozen=True)
class Loss:
    """How a connection ended.

    Attributes:
        text: for logs.
        ending: who ended it.
        reason: what the broker gave as its reason, None without one.
        unconfirmed: bytes of the oldest message that was not confirmed, when the connection was
            given up because the broker had gone silent, or confirmed nothing; 0 for every other
            end.
    """

    text: str
    ending: Ending = Ending.FAILED
    reason: Reason | None = None
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
        """The broker's answer to a publish; ``note`` is what `publish` got.

        The code is a `Reason` where the broker says more than the code.
        """
