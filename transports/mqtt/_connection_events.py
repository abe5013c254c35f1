"""The events of a connection, as its handler gets them: messages, confirmations, its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from .._envelope import Envelope
from .protocol._reason_codes import BrokerReason

__all__ = ["MOST_ENDS", "ClientHandler", "Ending", "Loss", "ServerLimits"]

MOST_ENDS = 3
"""After this many connections that ended over a subscription the next one does without it."""


@dataclass(frozen=True)
class ServerLimits:
    """What the broker stated about itself when it accepted the connection."""

    receive_maximum: int = 65_535
    """The most unconfirmed QoS 1 publishes that it accepts."""
    maximum_packet_size: int = 268_435_460
    """In bytes."""
    maximum_qos: int = 2
    retain: bool = True
    subscription_identifiers: bool = True
    wildcards: bool = True
    shared_subscriptions: bool = True
    keepalive: int = 0
    """The keep-alive that the broker demands, in seconds; 0 if it accepts ours."""
    topic_aliases: int = 0
    """The most topic aliases that it accepts."""
    session_expiry: int | None = None
    """Seconds for which it keeps the session; None if as long as requested."""
    assigned_identifier: str = ""
    """The client identifier that it uses instead of ours, if it says so."""

    def lacking(self, filter_: str) -> BrokerReason | None:
        """Return why the broker cannot serve a filter, judging by its limits; None if it can.

        Args:
            filter_: as in a SUBSCRIBE packet.
        """
        if filter_.startswith("$share/") and not self.shared_subscriptions:
            return BrokerReason(0x9E)
        if ("+" in filter_ or "#" in filter_) and not self.wildcards:
            return BrokerReason(0xA2)
        return None

    @classmethod
    def of(cls, properties: Mapping[int, int | str]) -> ServerLimits:
        """Return the limits in the properties of a CONNACK. Forbidden limits of 0 count as none."""

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
            topic_aliases=said(0x22, 0),
            session_expiry=None if expiry is None else int(expiry),
            assigned_identifier=str(properties.get(0x12, "")),
        )


class Ending(Enum):
    """Who ended a connection, and how."""

    GOODBYE = "the broker announced it, perhaps with a reason"
    REFUSED = "the broker closed it right after refusing a publish for good"
    CLOSED = "the broker closed it cleanly, without a word"
    RESET = "the peer reset it"
    FAILED = "the network failed, or the broker has gone silent"
    OURS = "we did"


@dataclass(frozen=True)
class Loss:
    """How a connection ended.

    Attributes:
        text: for logs.
        ending: who ended it.
        reason: the reason given by the broker; None if it gave none.
        unconfirmed: size in bytes of the oldest unconfirmed message if the connection was given up
            because the broker had gone silent or confirmed nothing; 0 for every other end.
    """

    text: str
    ending: Ending = Ending.FAILED
    reason: BrokerReason | None = None
    unconfirmed: int = 0


class ClientHandler(Protocol):
    """The user of an `MqttClient`. All methods are called in the event loop and return at once."""

    def on_connected(self, session_present: bool) -> None:
        """Note that the broker has accepted; called before the first message is handed over."""

    def on_lost(self, loss: Loss) -> None:
        """Note that the connection has ended; called once after `on_connected`."""

    def on_message(
        self, envelope: Envelope, token: int, identifiers: tuple[int, ...], size: int
    ) -> None:
        """Take a message of this size in bytes. Acknowledge the token, unless it is -1."""

    def on_confirmed(self, note: Any, code: int) -> None:
        """Take the broker's answer to a publish; ``note`` is what `publish` got.

        The code is a `BrokerReason` where the broker says more than the code.
        """
