"""The filters of one session, and which of them are in force."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable

from .._topics import TopicTrie, check_filter, is_reserved, minimal
from ._adapter import MqttClient
from ._filters import CopyGuard, candidates

__all__ = ["SubscriptionSet"]

_log = logging.getLogger(__name__)

_BATCH = 64
_REFUSED = 0x80
_MOST_DISCARDED = 1_000


class SubscriptionSet:
    """What a session is to receive, brought in force on whatever connection there is.

    Of filters that cover each other only the widest are subscribed to.

    Args:
        filters: plain filters to begin with.
        qos: highest quality of service.
        group: name of the group that shares the messages; None when they are not shared.
        timeout: seconds for each answer of the broker.

    Attributes:
        guard: recognises copies that come because filters overlap in part.
    """

    def __init__(
        self, filters: Iterable[str], *, qos: int, group: str | None, timeout: float
    ) -> None:
        self.guard = CopyGuard()
        self._qos = qos
        self._prefix = "" if group is None else f"$share/{group}/"
        self._timeout = timeout
        self._wanted: dict[str, None] = {}
        self._reserved: TopicTrie[str] = TopicTrie()
        self._in_force: dict[str, int] = {}
        self._in_force_on: MqttClient | None = None
        self._unwanted: dict[str, None] = {}
        self._discarded: dict[str, None] = {}
        self._lock = asyncio.Lock()
        for pattern in filters:
            self.add(pattern)

    def add(self, pattern: str) -> None:
        """Want this filter too, from the next `apply` on.

        Raises:
            ConfigurationError: it is no filter.
        """
        check_filter(pattern)
        self._wanted[pattern] = None
        self._unwanted.pop(pattern, None)
        if is_reserved(pattern):
            self._reserved.add(pattern, pattern)

    def remove(self, pattern: str) -> None:
        """Do not want this filter any more, from the next `apply` on."""
        if pattern in self._wanted:
            del self._wanted[pattern]
            self._unwanted[pattern] = None
            self._reserved.discard(pattern, pattern)

    def allows(self, topic: str) -> bool:
        """Whether a topic under the reserved level was asked for by name."""
        return bool(self._reserved.match(topic))

    def connection_lost(self) -> None:
        """What comes from now on is no copy of what came before."""
        self.guard.forget()

    async def apply(self, client: MqttClient) -> dict[str, int]:
        """Bring what is wanted in force, and then end what is not.

        Returns:
            The filters that the broker refused, with its reason codes.

        Raises:
            ConnectionLost: the connection ended first, or the broker did not answer.
        """
        async with self._lock:
            if self._in_force_on is not client:
                self._in_force.clear()
                self._in_force_on = client
            wanted = minimal(self._wanted)
            watched = wanted if client.limits.subscription_identifiers else ()
            self.guard.watch(watched)
            refused: dict[str, int] = {}
            missing = [
                pattern
                for pattern in wanted
                if self._in_force.get(pattern) != self.guard.identifier(pattern)
            ]
            for identifier, group in itertools.groupby(missing, self.guard.identifier):
                patterns = list(group)
                for start in range(0, len(patterns), _BATCH):
                    batch = patterns[start : start + _BATCH]
                    refused |= await self._subscribe(client, batch, identifier)
            covered = [pattern for pattern in self._wanted if pattern not in wanted]
            await self._unsubscribe(
                client, dict.fromkeys([*self._unwanted, *covered, *self._in_force]), wanted
            )
            return refused

    async def discard(self, client: MqttClient, topic: str) -> None:
        """Find the filter in force that matches the topic and is not wanted, and end it.

        Raises:
            ConnectionLost: the connection ended first, or the broker did not answer.
        """
        if topic in self._discarded:
            return
        if len(self._discarded) >= _MOST_DISCARDED:
            self._discarded.clear()
        self._discarded[topic] = None
        async with self._lock:
            keep = [self._prefix + pattern for pattern in (*self._wanted, *self._in_force)]
            found = candidates(topic, () if self._prefix else self._wanted)
            if self._prefix:
                found += [self._prefix + pattern for pattern in found]
            found = [pattern for pattern in found if pattern not in keep]
            codes = await client.unsubscribe(found, timeout=self._timeout)
        removed = [pattern for pattern, code in zip(found, codes, strict=False) if code == 0]
        if removed:
            _log.warning(
                "the session still had filters that are not wanted any more, seen by a message"
                " on %r; removed: %s",
                topic,
                ", ".join(map(repr, removed)),
            )

    async def _subscribe(
        self, client: MqttClient, patterns: list[str], identifier: int
    ) -> dict[str, int]:
        codes = await client.subscribe(
            [self._prefix + pattern for pattern in patterns],
            qos=self._qos,
            identifier=identifier,
            timeout=self._timeout,
            # Mosquitto 2.0 sends them to groups too, which the standard forbids.
            retained=not self._prefix,
        )
        refused = {}
        for pattern, code in zip(patterns, codes, strict=False):
            if code >= _REFUSED:
                refused[pattern] = code
                continue
            self._in_force[pattern] = identifier
            if code < self._qos:
                _log.warning(
                    "the broker grants QoS %d only for %r: messages may be lost on the way",
                    code,
                    pattern,
                )
        return refused

    async def _unsubscribe(
        self, client: MqttClient, patterns: Iterable[str], wanted: tuple[str, ...]
    ) -> None:
        ending = [pattern for pattern in patterns if pattern not in wanted]
        for start in range(0, len(ending), _BATCH):
            batch = ending[start : start + _BATCH]
            await client.unsubscribe(
                [self._prefix + pattern for pattern in batch], timeout=self._timeout
            )
            for pattern in batch:
                self._in_force.pop(pattern, None)
                self._unwanted.pop(pattern, None)
