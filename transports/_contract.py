"""The contract between transports and the runtime."""

from __future__ import annotations

import abc
import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .._environment import Environment
from ._delivery import Delivery
from ._envelope import Envelope

__all__ = [
    "DEFAULT_WINDOW_BYTES",
    "Bus",
    "Consumer",
    "Identity",
    "Receiver",
    "SocketProvider",
    "Subscription",
    "Surroundings",
]

DEFAULT_WINDOW_BYTES = 2_097_152


@dataclass(frozen=True)
class Identity:
    """Who is connected: an application and which copy of it.

    Attributes:
        application: its name; a random one when ``ephemeral``.
        instance: tells copies of one application apart.
        ephemeral: nothing is kept for it while it is away.
    """

    application: str
    instance: str = "0"
    ephemeral: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What a bus gets from the application that opens it.

    Attributes:
        identity: who is connected.
        environment: wall time, randomness and identifiers.
        stats: counters by dotted name, for example ``messages.dropped``.
        fatal: called when the bus cannot go on at all, for example because another program
            keeps taking over the client id. The application ends with that error.
    """

    identity: Identity
    environment: Environment = field(default_factory=Environment)
    stats: Counter[str] = field(default_factory=Counter)
    fatal: Callable[[BaseException], None] = lambda error: None


@dataclass(frozen=True)
class Subscription:
    """A right to messages.

    Attributes:
        name: unique in the application; with the identity it names the session or group.
        filters: plain MQTT filters (``+`` and ``#``, no captures); may be empty.
        qos: highest quality of service asked for, 0 or 1.
        window: the most deliveries that may be unsettled at once before intake pauses.
        window_bytes: the most bytes of unsettled deliveries before intake pauses. One message that
            takes more goes through alone.
        share: several instances share the messages, each goes to one of them.
        durable: the bus keeps messages while nobody is connected. Never for ephemeral identities.
    """

    name: str
    filters: tuple[str, ...]
    qos: int = 1
    window: int = 200
    window_bytes: int = DEFAULT_WINDOW_BYTES
    share: bool = False
    durable: bool = True


class Receiver(Protocol):
    """The runtime's side of a subscription.

    All methods are called on the event loop, return at once and never raise.
    """

    def deliver(self, delivery: Delivery, /) -> None:
        """Take a message that has arrived."""

    def deliver_all(self, deliveries: Sequence[Delivery], /) -> None:
        """Messages arrived, in this order; as `deliver` for each, in less time."""

    def hold(self) -> None:
        """Start nothing until `resume` that came with the connection, which is gone."""

    def resume(self, *, redelivered: bool) -> None:
        """Go on: it is connected again.

        With ``redelivered`` the bus sends again what was not acknowledged: drop what has not been
        started. Without, what is held is the last copy: work it off.
        """


class Consumer(abc.ABC):
    """One subscription's connection to the bus. Reconnects by itself, for ever."""

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being received, in words; None when nothing does.

        There is no connection, the broker refuses a filter after a reconnect, something cannot be
        read. `DistributedApplication.problems` shows it, and `healthy` is false meanwhile.
        """
        return None

    @abc.abstractmethod
    async def start(self) -> None:
        """Connect and bring all filters in force; deliveries may begin before this returns.

        Raises:
            ConnectFailed: no connection, after retries until the provider's start timeout.
            NotAuthorised: the broker refused the login or a filter (at once, not retried).
        """

    @abc.abstractmethod
    async def add_filter(self, pattern: str) -> None:
        """Also receive what matches; returns when in force, and survives reconnects."""

    @abc.abstractmethod
    async def remove_filter(self, pattern: str) -> None:
        """Stop receiving what only this filter matches; returns when in force."""

    @abc.abstractmethod
    def discard_stale(self, topic: str) -> None:
        """Remove the filter that a message on ``topic`` came by, which is none of the wanted ones.

        An old one is still in force. It is removed in the background, where the bus allows to find
        it.
        """

    @abc.abstractmethod
    def stop_intake(self) -> None:
        """Deliver nothing more. Acknowledgements still go out."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Send the acknowledgements that are free, then disconnect and keep the subscription.

        Never raises for a connection that is gone; bounded in time.
        """


class Bus(abc.ABC):
    """One application's presence on one bus: publishes, dead letters, the reply inbox.

    Attributes:
        max_payload: the largest payload that may be published, in bytes.
        max_received: the largest payload that is handed out, in bytes; of a larger one the
            envelope says `left_out`. None for ``max_payload``, which the runtime sees to.
        connected: whether there is a connection now (the talk connection where several).
    """

    max_payload: int
    max_received: int | None = None
    connected: bool

    @property
    def trouble(self) -> str | None:
        """What keeps publishes or replies from getting through, in words; None when nothing does.

        By default that is having no connection.
        """
        return None if self.connected else "there is no connection"

    @abc.abstractmethod
    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """Connect and open the reply inbox.

        Args:
            on_reply: called with the correlation text that `reply_address` got, and the reply.

        Raises:
            ConnectFailed: no connection, after retries until the provider's start timeout.
            NotAuthorised: the broker refused the login or the inbox (at once, not retried).
        """

    @abc.abstractmethod
    def reply_address(self, correlation: str) -> str:
        """Return the response topic for a request with this correlation (in hexadecimal)."""

    @abc.abstractmethod
    def consumer(self, subscription: Subscription, receiver: Receiver) -> Consumer:
        """Return a consumer for the subscription, not started."""

    @abc.abstractmethod
    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """Queue a publish; the future ends when the broker has confirmed it.

        What is pending when a connection ends is sent again, first and in order, with the same
        id. Cancelling the future gives the publish up if it was not written yet.

        Raises (at once):
            OutboxFull: too many are waiting.
            MessageTooLarge: over `max_payload`.
            ConfigurationError: as `SocketProvider.check_message`.
        The future raises:
            PublishRefused, NotAuthorised: the broker's answer; final.
            NoResponder: a request (an envelope with response_topic) that the broker says nobody
                listens for.
            PublishNotSent, PublishUnknown: the bus was closed first.
        """

    @abc.abstractmethod
    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        """As `post`, and wait for the confirmation.

        Raises:
            PublishNotSent: ``timeout`` seconds went by and it was not written; it never will be.
            PublishUnknown: it was written but not confirmed in time; it is not sent again.
            As `post` does.
        """

    @abc.abstractmethod
    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        """Store a dead letter so that it survives; ``envelope.id`` names it.

        Raises as `publish`.
        """

    @abc.abstractmethod
    async def drain(self) -> None:
        """Wait until every pending publish has its outcome."""

    async def room(self) -> None:  # noqa: B027 (a bus without bounds need not define it)
        """Wait until posts find room again; at once where nothing is bounded."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Give up what is pending, disconnect. Never raises; bounded in time."""


class SocketProvider(abc.ABC):
    """Makes the connections to one bus; the address interface of an application.

    Get one with `SocketProviderFactory`.

    Attributes:
        default_deliver: how messages are spread over instances that do not say: ``all`` gives
            each to every instance, ``share`` to one of them.
        default_qos: quality of service of publishes and subscriptions that name none.
        default_window: the window of subscriptions that name none.
        default_window_bytes: as ``default_window``, in bytes.
        config: the options; providers of one address with equal ones can stand in for each other.
    """

    default_deliver: Literal["share", "all"] = "all"
    config: object = None
    default_qos: int = 1
    default_window: int = 200
    default_window_bytes: int = DEFAULT_WINDOW_BYTES

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """The bus as a URL without secrets; equal for equal buses."""

    @abc.abstractmethod
    def open(self, surroundings: Surroundings) -> Bus:
        """Return a bus, not started. Called inside the running event loop."""

    @abc.abstractmethod
    def check_topic(self, topic: str) -> None:
        """Raise ConfigurationError when the bus cannot carry the (concrete) topic."""

    @abc.abstractmethod
    def check_filter(self, pattern: str) -> None:
        """Raise ConfigurationError when the bus cannot serve the (plain) filter."""

    def check_message(self, envelope: Envelope) -> None:
        """Raise ConfigurationError when the bus cannot carry a text of the message.

        The error names the field (a topic, a header, the key, ...), shows its value, and says
        what to do. `Bus.post`, `Bus.publish` and `Bus.park` raise the same, at once. Override it
        unless the bus takes every text besides topics.
        """
        self.check_topic(envelope.topic)
