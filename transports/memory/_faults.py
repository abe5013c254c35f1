"""Faults of the memory broker on demand, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigurationError, ConnectFailed, PublishRefused, TransportError
from .._topics import TopicFilter

if TYPE_CHECKING:
    from ._broker import Broker

__all__ = ["BrokerFaults"]


class BrokerFaults:
    """What can go wrong with a memory broker at a test's request.

    Available as ``provider.broker.faults``. Patterns are plain filters; ``#`` does not match
    replies and dead letters, for which there are ``_spa/reply/#`` and ``_spa/dead-letter/#``.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._refused_connections: int | None = 0
        self._confirmations = 0
        self._drops = _Countdown()
        self._duplicates = _Countdown()
        self._refused: dict[TopicFilter, TransportError | None] = {}

    def disconnect(self, client_id: str | None = None, *, lose_session: bool = False) -> None:
        """Cut a connection at once; its owner reconnects after its usual backoff.

        Args:
            client_id: the client whose connection to cut; None for all.
            lose_session: whether the broker also forgets the subscription and everything kept for
                it.

        Raises:
            ConfigurationError: no client with this id is connected.
        """
        links = self._broker.links
        if client_id is not None and client_id not in links:
            raise ConfigurationError(
                f"no client {client_id!r} is connected; connected are: {', '.join(links) or 'none'}"
            )
        for link in [links[client_id]] if client_id is not None else list(links.values()):
            self._broker.drop(link, lose_session=lose_session)

    def refuse_connections(self, times: int | None = None) -> None:
        """Refuse the next ``times`` attempts to connect; None for all until `allow`."""
        self._refused_connections = times

    def refuse_publish(self, pattern: str, error: TransportError | None = None) -> None:
        """Refuse every publish to a topic that matches, until `allow`.

        Args:
            pattern: a plain filter.
            error: what the publisher gets; None for a PublishRefused.
        """
        self._refused[TopicFilter.parse(pattern)] = error

    def allow(self) -> None:
        """Accept connections and publishes again."""
        self._refused_connections = 0
        self._refused.clear()

    def drop_confirmations(self, count: int = 1) -> None:
        """Accept the next ``count`` publishes but lose their confirmations.

        The publisher sends them again when its connection is cut, as with any broker.
        """
        self._confirmations = count

    def drop_next(self, count: int = 1, pattern: str = "#") -> None:
        """Lose the next ``count`` messages that match on their way to a subscriber.

        Messages with QoS 1 are sent again when the subscriber's connection is cut.
        """
        self._drops = _Countdown(count, TopicFilter.parse(pattern))

    def duplicate_next(self, count: int = 1, pattern: str = "#") -> None:
        """Deliver the next ``count`` QoS 1 messages that match twice, as two messages."""
        self._duplicates = _Countdown(count, TopicFilter.parse(pattern))

    def check_connection(self) -> None:
        """Raise ConnectFailed to refuse an attempt to connect; called by the broker for each."""
        if self._refused_connections == 0:
            return
        if self._refused_connections is not None:
            self._refused_connections -= 1
        raise ConnectFailed(f"{self._broker.address} refuses connections because a test said so")

    def check_publish(self, topic: str) -> None:
        """Raise the error that refuses a publish; called by the broker for each."""
        for pattern, error in self._refused.items():
            if pattern.matches(topic):
                raise error or PublishRefused(
                    f"publish to {topic!r} was refused because a test said so"
                )

    def loses_confirmation(self) -> bool:
        """Return whether to lose a confirmation; called by the broker for each."""
        if self._confirmations == 0:
            return False
        self._confirmations -= 1
        return True

    def drops(self, topic: str) -> bool:
        """Return whether to lose a message to a subscriber; called by the broker for each."""
        return self._drops.takes(topic)

    def duplicates(self, topic: str) -> bool:
        """Return whether to duplicate a message; called by the broker for each that it queues."""
        return self._duplicates.takes(topic)


class _Countdown:
    """Applies to the first ``count`` topics that match."""

    __slots__ = ("_count", "_pattern")

    def __init__(self, count: int = 0, pattern: TopicFilter | None = None) -> None:
        self._count = count
        self._pattern = pattern

    def takes(self, topic: str) -> bool:
        if self._count == 0 or self._pattern is None or not self._pattern.matches(topic):
            return False
        self._count -= 1
        return True
