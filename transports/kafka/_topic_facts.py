"""Topic facts that the client library does not ask for: a topic's id, and our rights."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import aiokafka.errors as kafka

from ._aiokafka_private import TopicIdsRequest

__all__ = [
    "TopicFacts",
    "TopicsRecreated",
    "id_metadata",
    "is_of_deleted_topic",
    "recreated",
    "topic_facts",
]

_READ, _DESCRIBE = 1 << 3, 1 << 8
_ATTEMPTS, _TRY_AGAIN = 3, 0.1
_NOTE = "topic-id="


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
    """

    id: str
    readable: bool


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
            base64.urlsafe_b64encode(identifier).decode().rstrip("="), _is_readable(rights)
        )
        for code, name, identifier, _, _, rights, _ in answer.topics
        if code == 0 and any(identifier)
    }


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


def id_metadata(identifier: str | None) -> str:
    """Return the metadata to commit with an offset, which identifies the topic of the offset."""
    return f"{_NOTE}{identifier}" if identifier else ""


def is_of_deleted_topic(note: str, identifier: str) -> bool:
    """Return whether an offset was committed for a deleted topic of this name."""
    return note.startswith(_NOTE) and note != id_metadata(identifier)
