"""Topic facts that the client library does not ask for: a topic's id, and our rights."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import aiokafka.errors as kafka

from ._aiokafka_private import TopicIdsRequest

__all__ = [
    "SharedTopicFacts",
    "TopicFacts",
    "TopicsRecreated",
    "recreated",
    "topic_facts",
]

_READ, _DESCRIBE = 1 << 3, 1 << 8
_ATTEMPTS, _TRY_AGAIN = 3, 0.1
# Consumers look at the same moment, so a little is enough to share an answer.
_MOST_AGE = 0.25


class TopicsRecreated(Exception):
    """Topics were deleted and recreated: known positions in them are meaningless.

    Args:
        names: of the topics.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        super().__init__(", ".join(self.names))


class TopicFacts(NamedTuple):
    """A topic that exists.

    Attributes:
        id: its id, as the cluster's tools show it; another topic of the same name has another id.
        readable: whether we may read it.
        leaders: by partition, the broker that leads it; -1 if none does.
        epochs: by partition, the epoch of that leader, or of a former one; -1 if it is not known.
    """

    id: str
    readable: bool
    leaders: Mapping[int, int]
    epochs: Mapping[int, int]


async def topic_facts(client: Any, names: Iterable[str]) -> dict[str, TopicFacts] | None:
    """Look up the topics; those that do not exist, or that we may not see, are left out.

    Args:
        client: the library's.
        names: of the topics.

    Returns:
        None when the brokers are too old to tell (before 2.8).

    Raises:
        OSError, aiokafka.errors.KafkaError: no answer.
    """
    wanted = sorted(set(names))
    if not wanted:
        return {}
    try:
        answer = await _asked(client, TopicIdsRequest(wanted))
    except (NotImplementedError, kafka.IncompatibleBrokerVersion):
        return None
    return {
        name: TopicFacts(
            base64.urlsafe_b64encode(identifier).decode().rstrip("="),
            _is_readable(rights),
            {number: leader for _, number, leader, *_ in partitions},
            {number: epoch for _, number, _, epoch, *_ in partitions},
        )
        for code, name, identifier, _, partitions, rights, _ in answer.topics
        if code == 0 and any(identifier)
    }


class SharedTopicFacts:
    """Looks topics up for all consumers of a bus together: one request, however many they are.

    Args:
        refresh: seconds after which the consumers look again.
        timeout: seconds for one request.
    """

    def __init__(self, refresh: float, timeout: float) -> None:
        self._most_age = min(refresh / 2, _MOST_AGE)
        self._forget_after = refresh * 4
        self._timeout = timeout
        # When each was last looked up for a consumer.
        self._wanted: dict[str, float] = {}
        self._request: asyncio.Task[dict[str, TopicFacts] | None] | None = None
        self._names: frozenset[str] = frozenset()
        self._began = 0.0

    async def look_up(self, client: Any, names: Iterable[str]) -> dict[str, TopicFacts] | None:
        """Look topics up as `topic_facts` does, or return what another consumer was just told.

        Args:
            client: the library's, of the consumer that asks; used if a request is needed.
            names: of the topics.

        Raises:
            OSError, aiokafka.errors.KafkaError: no answer.
        """
        now = asyncio.get_running_loop().time()
        wanted = frozenset(names)
        self._wanted |= dict.fromkeys(wanted, now)
        request = self._request
        if request is None or now - self._began > self._most_age or not wanted <= self._names:
            self._wanted = {
                name: at for name, at in self._wanted.items() if now - at < self._forget_after
            }
            self._began, self._names = now, frozenset(self._wanted)
            request = self._request = asyncio.ensure_future(self._ask(client, self._names))
            request.add_done_callback(self._ended)
        # The session of the consumer that asked first may end before the answer is there.
        facts = await asyncio.shield(request)
        return None if facts is None else {n: facts[n] for n in wanted if n in facts}

    async def _ask(self, client: Any, names: frozenset[str]) -> dict[str, TopicFacts] | None:
        async with asyncio.timeout(self._timeout):
            return await topic_facts(client, names)

    def _ended(self, request: asyncio.Task[Any]) -> None:
        # The next one may have more luck with another client.
        if (request.cancelled() or request.exception()) and self._request is request:
            self._request = None


def _is_readable(rights: int) -> bool:
    # A broker that only says that we may not see a topic says nothing about our rights.
    return not rights & _DESCRIBE or bool(rights & _READ)


async def _asked(client: Any, request: Any) -> Any:
    for _ in range(_ATTEMPTS - 1):
        try:
            return await client.send(client.get_random_node(), request)
        except (kafka.KafkaConnectionError, kafka.NodeNotReadyError):
            # Brokers close connections, for example when a login has to be renewed.
            await asyncio.sleep(_TRY_AGAIN)
    return await client.send(client.get_random_node(), request)


def recreated(known: Mapping[str, str], facts: Mapping[str, TopicFacts]) -> list[str]:
    """Return the topics that are no longer the ones known by these names.

    Args:
        known: the known ids; empty for a topic that did not exist.
        facts: the topics that exist now.
    """
    return [
        name for name, identifier in known.items() if name in facts and facts[name].id != identifier
    ]
