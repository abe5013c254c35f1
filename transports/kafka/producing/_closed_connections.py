"""Closed connections: finding out that a broker closes them over what is published.

It does so without a word over a request that is larger than it accepts, and the library would send
that again for ever, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from ....errors import PublishRefused

__all__ = ["ClosedConnections", "ClosedOver", "refused_publish"]

# How often in a row a connection has to be closed over the same partitions, and over a single
# publish, and for how many seconds that has to go on.
_OFTEN, _VERY_OFTEN, _FOR_SECONDS = 3, 6, 1.0


class ClosedOver(kafka.KafkaConnectionError):  # type: ignore[misc]
    """A broker has closed its connections over what was published.

    Args:
        count: how often in a row.
        what: describes the publishes.
    """

    def __init__(self, count: int, what: str) -> None:
        super().__init__(
            f"a broker has closed the connection {count} times in a row over {what}; it may accept"
            " no request of that size (socket.request.max.bytes)"
        )


class ClosedConnections:
    """Counts how often in a row a broker has closed the connection over requests to partitions."""

    def __init__(self) -> None:
        # Since when (loop time), and how often.
        self._closed: dict[TopicPartition, tuple[float, int]] = {}

    def __contains__(self, place: TopicPartition) -> bool:
        return place in self._closed

    def unanswered(self, places: Sequence[TopicPartition], closed: bool) -> int:
        """Note that there was no answer to a request.

        Args:
            places: the partitions that it was for.
            closed: whether the connection was closed over it; otherwise it is an outage.

        Returns:
            how often in a row that was so.
        """
        if not closed:
            self._closed.clear()
            return 0
        now = asyncio.get_running_loop().time()
        for place in places:
            since, count = self._closed.get(place, (now, 0))
            self._closed[place] = since, count + 1
        return min(self._closed[place][1] for place in places)

    def answered(self, topic: str, number: int) -> None:
        """Note that a broker has answered for a partition, whatever it said."""
        if self._closed:
            self._closed.pop(TopicPartition(topic, number), None)

    def is_suspicious(self, places: Sequence[TopicPartition]) -> bool:
        """Return whether what is sent there may be the reason."""
        return all(self._closed.get(place, (0.0, 0))[1] >= _OFTEN for place in places)

    def is_proof(self, places: Sequence[TopicPartition]) -> bool:
        """Return whether it is, if nothing else was sent."""
        long_ago = asyncio.get_running_loop().time() - _FOR_SECONDS
        found = [self._closed.get(place, (long_ago + 1, 0)) for place in places]
        return all(since <= long_ago and count >= _VERY_OFTEN for since, count in found)


def refused_publish(topic: str, size: int) -> PublishRefused:
    """Return the error of a publish over which a broker closes its connections."""
    return PublishRefused(
        f"the cluster ends the connection over the publish to {topic!r} ({size} bytes) again and"
        " again, the last times with nothing else in flight. It is not sent again; send less, or"
        " raise socket.request.max.bytes of the brokers"
    )
