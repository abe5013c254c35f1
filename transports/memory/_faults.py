"""Trouble on demand, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigurationError, ConnectFailed, PublishRefused, TransportError
from .._topics import TopicFilter

if TYPE_CHECKING:
    from ._broker import Broker

__all__ = ["BrokerFaults"]


class BrokerFaults:
    """What can go wrong with a memory broker, when a test asks for it.

    Reached as ``provider.broker.faults``. Patterns are plain filters; ``#`` leaves out replies and
    dead letters, ``_spa/reply/#`` and ``_spa/dead-letter/#`` are these.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._refused_connections: int | None = 0
        self._confirmations = 0
        self._drops = _Countdown()
        self._duplicates = _Countdown()
        self._refused: dict[TopicFilter, TransportError | None] = {}

    def disconnect(self, client_id: str | None = None, *, lose_session: bool = False) -> None:
        """Cut a connection, at once; its owner comes back after its usual backoff.

        Args:
            client_id: whose connection; None cuts all.
            lose_session: the broker also forgets the subscription and all it kept for it.

        Raises:
            ConfigurationError: nobody with this client id is connected.
        """
        links = self._broker.links
        if client_id is not None and client_id not in links:
            raise ConfigurationError(
                f"no client {client_id!r} is connected; connected are: {', '.join(links) or 'none'}"
            )
        for link in [links[client_id]] if client_id is not None else list(links.values()):
            self._broker.drop(link, lose_session=lose_session)

    def refuse_connections(self, times: int | None = None) -> None:
        """Refuse the next ``times`` attempts to connect; None: all, until `allow`."""
        self._refused_connections = times

    def refuse_publish(self, pattern: str, error: TransportError | None = None) -> None:
        """Refuse every publish to a topic that matches, until `allow`.

        Args:
            pattern: a plain filter.
            error: what the publisher gets; None makes a PublishRefused.
        """
        self._refused[TopicFilter.parse(pattern)] = error

    def allow(self) -> None:
        """Take connections and publishes again."""
        self._refused_connections = 0
        self._refused.clear()

    def drop_confirmations(self, count: int = 1) -> None:
        """Take the next ``count`` publishes and lose the confirmation on its way back.

        The publisher sends them again when its connection is cut, as with any broker.
        """
        self._confirmations = count

    def drop_next(self, count: int = 1, pattern: str = "#") -> None:
        """Lose the next ``count`` messages that match on their way to a subscriber.

        What was sent with QoS 1 comes again when the subscriber's connection is cut.
        """
        self._drops = _Countdown(count, TopicFilter.parse(pattern))

    def duplicate_next(self, count: int = 1, pattern: str = "#") -> None:
        """Deliver the next ``count`` QoS 1 messages that match twice, as two messages."""
        self._duplicates = _Countdown(count, TopicFilter.parse(pattern))

    def check_connection(self) -> None:
        """Asked by the broker for each attempt to connect; raises ConnectFailed to refuse it."""
        if self._refused_connections == 0:
            return
        if self._refused_connections is not None:
            self._refused_connections -= 1
        raise ConnectFailed(f"{self._broker.address} refuses connections because a test said so")

    def check_publish(self, topic: str) -> None:
        """Asked by the broker for each publish; raises to refuse it."""
        for pattern, error in self._refused.items():
            if pattern.matches(topic):
                raise error or PublishRefused(
                    f"publish to {topic!r} was refused because a test said so"
                )

    def loses_confirmation(self) -> bool:
        """Asked by the broker for each confirmation."""
        if self._confirmations == 0:
            return False
        self._confirmations -= 1
        return True

    def drops(self, topic: str) -> bool:
        """Asked by the broker for each message on its way to a subscriber."""
        return self._drops.takes(topic)

    def duplicates(self, topic: str) -> bool:
        """Asked by the broker for each message it queues."""
        return self._duplicates.takes(topic)


class _Countdown:
    """True for the first ``count`` topics that match."""

    __slots__ = ("_count", "_pattern")

    def __init__(self, count: int = 0, pattern: TopicFilter | None = None) -> None:
        self._count = count
        self._pattern = pattern

    def takes(self, topic: str) -> bool:
        if self._count == 0 or self._pattern is None or not self._pattern.matches(topic):
            return False
        self._count -= 1
        return True
