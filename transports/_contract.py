"""The contract between transports and the runtime."""

from __future__ import annotations

import abc
import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from .._environment import Environment
from ._commit_steps import Reached
from ._dead_letter_topics import removal
from ._delivery import Delivery, Tracker
from ._envelope import Envelope
from ._wire_formats import opened

if TYPE_CHECKING:
    from ._units import Outcome

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
    """Who is connected: an application, and which instance of it.

    Attributes:
        application: its name; random if ``ephemeral``.
        instance: distinguishes the instances of one application.
        ephemeral: whether nothing is kept for it while it is away.
    """

    application: str
    instance: str = "0"
    ephemeral: bool = False

    @property
    def client_id(self) -> str:
        """What a broker knows the instance by."""
        return f"{self.application}.{self.instance}"

    def client_id_of(self, subscription: str) -> str:
        """Return what a broker knows a subscription of the instance by."""
        return f"{self.application}.{self.instance}.{subscription}"

    def group_of(self, subscription: str) -> str:
        """Return what a broker knows a subscription by that the instances share."""
        return f"{self.application}.{subscription}"


@dataclass(frozen=True)
class Surroundings:
    """What a bus gets from the application that opens it.

    Attributes:
        identity: who is connected.
        environment: wall time, randomness and identifiers.
        stats: counters by dotted name, for example ``messages.dropped``.
        fatal: called when the bus cannot continue at all, for example because another program
            keeps taking over the client id. The application ends with that error.
        folder: returns where files may be kept from one run to the next, and raises
            ConfigurationError if there is no such place; None if no file is to be kept.
        reached: is told of each step in which outcomes of messages are committed; None for nobody.
    """

    identity: Identity
    environment: Environment = field(default_factory=Environment)
    stats: Counter[str] = field(default_factory=Counter)
    fatal: Callable[[BaseException], None] = lambda error: None
    folder: Callable[[], Path] | None = None
    reached: Reached | None = None


@dataclass(frozen=True)
class Subscription:
    """A lasting right to messages.

    Attributes:
        name: unique in the application; together with the identity it names the session or group.
        filters: plain MQTT filters (``+`` and ``#``, no captures); may be empty.
        qos: the highest quality of service requested, 0 or 1.
        window: the most deliveries that may be unsettled at once before intake pauses.
        window_bytes: the most bytes of unsettled deliveries before intake pauses. A single larger
            message passes alone.
        share: whether instances share the messages, so that each goes to one of them.
        durable: whether the bus keeps messages while nobody is connected. Never for ephemeral
            identities.
        retained: whether retained messages come for filters that are ``new`` to the subscription,
            ``always`` when it is connected, or ``never``. Never if instances share the messages; a
            bus that keeps none ignores it.
        wire: the format in which its messages are expected, one of the provider's ``wires``; None
            for that of the bus.
        rewind_to: the time to which the subscription goes back, once, if it is beyond it; None for
            none. Only where the provider has ``keeps_history``.
        transactional: whether its deliveries belong to a `Unit`, with which their effects are
            committed. Only where the provider has ``has_transactions``.
        keeps_states: whether the units also keep the states of keys; only with ``transactional``.
        on_restored: called in the event loop whenever the states of a unit are known.
    """

    name: str
    filters: tuple[str, ...]
    qos: int = 1
    window: int = 200
    window_bytes: int = DEFAULT_WINDOW_BYTES
    share: bool = False
    durable: bool = True
    retained: Literal["new", "always", "never"] = "new"
    wire: str | None = None
    rewind_to: datetime | None = None
    transactional: bool = False
    keeps_states: bool = False
    on_restored: Callable[[], None] = lambda: None


class Receiver(Protocol):
    """The runtime's side of a subscription.

    All methods are called in the event loop, return at once and never raise.
    """

    def deliver(self, delivery: Delivery, /) -> None:
        """Take a message that has arrived."""

    def deliver_all(self, deliveries: Sequence[Delivery], /) -> None:
        """Take messages that have arrived, in this order: `deliver` for each, but faster."""

    def hold(self) -> None:
        """Start nothing that came with the lost connection until `resume` is called."""

    def resume(self, *, redelivered: bool) -> None:
        """Continue, as it is connected again.

        With ``redelivered`` the bus sends again what was not acknowledged: drop whatever has not
        been started. Without it, the held deliveries are the last copies: handle them.
        """


class Consumer(abc.ABC):
    """One subscription's connection to the bus. Reconnects by itself, forever."""

    __slots__ = ()

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being received, as text; None if nothing does.

        For example that there is no connection, that the broker refuses a filter after a
        reconnect, or that something cannot be read. `DistributedApplication.problems` shows it, and
        `healthy` is false meanwhile.
        """
        return None

    @property
    def trackers(self) -> Sequence[Tracker]:
        """The trackers of what it has handed out, one for each source; empty by default.

        `DistributedApplication.health` shows what is unsettled, and for how long. It may be read in
        any thread.
        """
        return ()

    @property
    def lag(self) -> int | None:
        """How many messages the bus has for it beyond what is settled; None if it is not known.

        It costs nothing to ask: the value is what the bus has said last. It may be read in any
        thread.
        """
        return None

    @abc.abstractmethod
    async def start(self) -> None:
        """Connect and put all filters into force; deliveries may begin before this returns.

        Raises:
            ConnectFailed: no connection, despite retries until the provider's start timeout.
            NotAuthorised: the broker refused the login or a filter (at once, without retries).
        """

    @abc.abstractmethod
    async def add_filter(self, pattern: str) -> None:
        """Also receive what matches; return once it is in force. It survives reconnects."""

    @abc.abstractmethod
    async def remove_filter(self, pattern: str) -> None:
        """Stop receiving what only this filter matches; return once that is in force."""

    @abc.abstractmethod
    def discard_stale(self, topic: str) -> None:
        """Remove the unwanted filter by which a message on ``topic`` arrived.

        It is left from an earlier program, unless the bus changes topics. It is removed in the
        background, if the bus allows finding it. Called up to twice for a topic on one connection:
        the filter may not have been found, or be there again.
        """

    @abc.abstractmethod
    def stop_intake(self) -> None:
        """Stop delivering. Acknowledgements are still sent."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Send the acknowledgements that are due, then disconnect, keeping the subscription.

        Never raises because of a lost connection; bounded in time.
        """

    async def close_within(self, seconds: float) -> None:
        """Do as `close`, waiting no longer than about ``seconds`` for the broker.

        By default that is `close`, with its own bound. Override it where that is more than a second
        or two, or a stop takes that much longer while the broker is silent.
        """
        await self.close()


class Bus(abc.ABC):
    """One application's presence on one bus: publishes, dead letters, the reply inbox.

    Attributes:
        max_payload: the largest payload that may be published, in bytes.
        max_received: the largest payload that is handed out, in bytes; for a larger one the
            envelope has `left_out`. None for ``max_payload``, enforced by the runtime.
        connected: whether there is a connection now (the talk connection if there are several).
        connected_at: loop time at which that connection was made; None if it is not known.
    """

    max_payload: int
    max_received: int | None = None
    connected: bool
    connected_at: float | None = None

    @property
    def trouble(self) -> str | None:
        """What keeps publishes or replies from getting through, as text; None if nothing does.

        By default that is the lack of a connection.
        """
        return None if self.connected else "there is no connection"

    @property
    def pending(self) -> int | None:
        """The number of publishes that have no outcome yet; None if it is not known."""
        return None

    @abc.abstractmethod
    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """Connect and open the reply inbox.

        Args:
            on_reply: called with the correlation that `reply_address` got, and the reply.

        Raises:
            ConnectFailed: no connection, despite retries until the provider's start timeout.
            NotAuthorised: the broker refused the login or the inbox (at once, without retries).
        """

    @abc.abstractmethod
    def reply_address(self, correlation: str) -> str:
        """Return the response topic for a request with this correlation (in hexadecimal)."""

    @abc.abstractmethod
    def consumer(self, subscription: Subscription, receiver: Receiver) -> Consumer:
        """Return a consumer for the subscription, not started."""

    @abc.abstractmethod
    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """Queue a publish and return a future that completes when the broker has confirmed it.

        What is pending when a connection ends is sent again, first and in order, with the same
        id. Cancelling the future withdraws the publish if it has not been written yet.

        Raises (at once):
            OutboxFull: too many publishes are waiting.
            MessageTooLarge: over `max_payload`.
            ConfigurationError: as in `SocketProvider.check_message`.
        The future raises:
            PublishRefused, NotAuthorised: the broker's answer; final.
            NoResponder: a request (an envelope with response_topic) for which, as the broker
                says, nobody listens.
            PublishNotSent, PublishUnknown: the bus was closed first.
        """

    @abc.abstractmethod
    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        """Publish as `post` does, and wait for the confirmation.

        Raises:
            PublishNotSent: it was not written within ``timeout`` seconds, and never will be.
            PublishUnknown: it was written but not confirmed in time; it is not sent again.
            SpaDatError: whatever else `post` raises.
        """

    @abc.abstractmethod
    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        """Store a dead letter durably; ``envelope.id`` names it.

        Raises what `publish` raises.
        """

    async def unpark(self, letter: Envelope, *, timeout: float) -> None:
        """Take a stored dead letter back: nobody who looks for dead letters finds it any more.

        By default with a retained message without payload.

        Args:
            letter: as it was received.
            timeout: as for `publish`, which raises the same.
        """
        await self.publish(removal(letter), timeout=timeout)

    def take_commands(  # noqa: B027 (a bus that nobody else can reach need not define it)
        self, on_command: Callable[[Envelope], None]
    ) -> None:
        """Hand over what arrives on the topic of commands; to be called before the start.

        Only a bus that other programs can reach has to do so; by default nothing arrives. What the
        broker had kept is not handed over, because it would be each time.

        Args:
            on_command: called in the event loop; returns at once, and never raises.
        """

    def opened(self, envelope: Envelope, wire: str | None = None) -> Envelope:
        """Return a message as it was meant that is in the format with this name.

        Args:
            envelope: as it was received.
            wire: one of the provider's ``wires``; None for the format of the bus.
        """
        return opened(envelope)

    def add_output(self, outcome: Outcome, envelope: Envelope, *, letter: bool = False) -> None:
        """Make a publish part of what a message comes to.

        Only a bus whose provider has ``has_transactions`` has to define it.

        Args:
            outcome: of the message.
            envelope: what is published.
            letter: whether it is a dead letter, as for `park`.

        Raises:
            MessageTooLarge, ConfigurationError: as `post` does at once.
        """
        raise NotImplementedError

    def add_removal(self, outcome: Outcome, letter: Envelope) -> None:
        """Make it part of what a message comes to that its dead letter is taken back, as `unpark`.

        Only a bus whose provider has ``has_transactions`` has to define it.

        Args:
            outcome: of the message.
            letter: as it was received.
        """
        raise NotImplementedError

    @abc.abstractmethod
    async def drain(self) -> None:
        """Wait until every pending publish has an outcome."""

    async def room(self) -> None:  # noqa: B027 (a bus without bounds need not define it)
        """Wait until there is room for posts again; return at once if nothing is bounded."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Give up pending publishes and disconnect. Never raises; bounded in time."""


class SocketProvider(abc.ABC):
    """The address of a bus: what opens connections to it.

    Get one with `SocketProviderFactory`.

    Attributes:
        default_deliver: how messages are distributed over instances by default: ``all`` gives each
            to every instance, ``share`` to one of them.
        default_qos: the quality of service of publishes and subscriptions that specify none.
        default_window: the window of subscriptions that specify none.
        default_window_bytes: as ``default_window``, in bytes.
        wires: the formats that single subscriptions and publishes may name, `Subscription.wire` and
            `Envelope.wire`.
        keeps_history: whether messages stay on the bus after they were handled, so that a
            subscription can go back to a time (``rewind_to``).
        null_headers: whether a header may have no value at all.
        has_transactions: whether what a handler publishes can be committed with the acknowledgement
            of its message, `Subscription.transactional`.
        config: the options; providers of one address with equal options are interchangeable.
    """

    default_deliver: Literal["share", "all"] = "all"
    keeps_history: bool = False
    null_headers: bool = False
    has_transactions: bool = False
    config: object = None
    default_qos: int = 1
    default_window: int = 200
    default_window_bytes: int = DEFAULT_WINDOW_BYTES
    wires: Sequence[str] = ("cloudevents",)

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """The URL of the bus without secrets; equal for equal buses."""

    @abc.abstractmethod
    def open(self, surroundings: Surroundings) -> Bus:
        """Return a bus, not started. Called inside the running event loop."""

    @abc.abstractmethod
    def check_topic(self, topic: str) -> None:
        """Raise ConfigurationError if the bus cannot carry the (concrete) topic."""

    @abc.abstractmethod
    def check_filter(self, pattern: str) -> None:
        """Raise ConfigurationError if the bus cannot serve the (plain) filter."""

    def check_message(self, envelope: Envelope) -> None:
        """Raise ConfigurationError if the bus cannot carry a text of the message.

        The error names the field (a topic, a header, the key, ...), shows its value, and says
        what to do. `Bus.post`, `Bus.publish` and `Bus.park` raise the same, at once. Override it
        unless the bus accepts every text apart from topics.
        """
        self.check_topic(envelope.topic)
