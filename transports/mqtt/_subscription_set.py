"""The filters of one session: which are in force, which are to be subscribed, and unwanted ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Collection, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from ..._logs import get_logger
from ...errors import ConnectionLost
from .._topics import FilterIndex, TopicTrie, check_filter, is_reserved, minimal
from ._overlapping_filters import CopyGuard, overlapping
from .protocol._client import MqttClient
from .protocol._reason_codes import reason_text

__all__ = ["SubscriptionSet", "candidates"]

_log = get_logger(__name__)

_Answer = TypeVar("_Answer")

# How many packets are sent before the first of them is answered.
_AT_ONCE = 16
_REFUSED = 0x80
# Unspecified, implementation specific, quota exceeded: perhaps there were too many at once.
_MAYBE_TOO_MANY = frozenset({0x80, 0x83, 0x97})
_MOST_DISCARDED = 1_000
_MOST_DISCARDS = 2
_CLOSE_TIMEOUT = 2.0
_OVERRUN = "closed here, as more arrived before an answer than may be held; it comes again"
_MOST_CANDIDATES = 512
_MOST_BYTES = 100_000


class SubscriptionSet:
    """What a session should receive, and what is in force on the current connection.

    Of filters that cover each other only the widest are subscribed to. Brokers that do not accept
    that many filters or packets at once close the connection or refuse them: from then on fewer are
    sent at once.

    Args:
        filters: plain filters to begin with.
        qos: the highest quality of service.
        group: name of the group that instances share messages in.
        share: whether these are shared.
        timeout: seconds for each answer of the broker.
        batch: the most filters in one packet.
        retained: for which filters retained messages are sent; see `Subscription`.

    Attributes:
        guard: recognises copies due to partly overlapping filters.
        knows_all: whether the session has no filters but those that are wanted.
    """

    def __init__(
        self,
        filters: Iterable[str],
        *,
        qos: int,
        group: str,
        share: bool,
        timeout: float,
        batch: int,
        retained: Literal["new", "always", "never"] = "new",
    ) -> None:
        # Mosquitto 2.0 sends them to groups too, which the standard forbids.
        self._retained = "never" if share else retained
        self.guard = CopyGuard()
        self.knows_all = False
        self._qos = qos
        shared = f"$share/{group}/"
        # That of its filters, and that which they had in a program with another ``deliver=``.
        self._prefix, self._other_prefix = (shared, "") if share else ("", shared)
        self._timeout = timeout
        self._batch = batch
        self._at_once = _AT_ONCE
        self._wanted: dict[str, None] = {}
        self._plan = _Plan(())
        self._reserved: TopicTrie[str] = TopicTrie()
        self._in_force: dict[str, int] = {}
        self._in_force_on: MqttClient | None = None
        # The connection was ended here, so the session is as last confirmed by the broker.
        self._stays_in_force = False
        self._unwanted: dict[str, None] = {}
        # How often their filters were looked for, by topic, and which were found.
        self._discarded: dict[str, int] = {}
        self._removed: dict[str, None] = {}
        self._lock = asyncio.Lock()
        for pattern in filters:
            self.add(pattern)

    def add(self, pattern: str) -> None:
        """Also want this filter, from the next `apply` on.

        Raises:
            ConfigurationError: it is not a filter.
        """
        check_filter(pattern)
        if pattern not in self._wanted:
            self._wanted[pattern] = None
            self._plan.add(pattern)
        self._unwanted.pop(pattern, None)
        if is_reserved(pattern):
            self._reserved.add(pattern, pattern)

    def as_sent(self, pattern: str) -> str:
        """Return the filter as the broker gets it: with the group, if it is shared."""
        return self._prefix + pattern

    def remove(self, pattern: str) -> None:
        """No longer want this filter, from the next `apply` on."""
        if pattern in self._wanted:
            self._plan.remove(pattern, len(self._wanted))
            del self._wanted[pattern]
            self._unwanted[pattern] = None
            # Its messages may be on their way.
            self.knows_all = False
            self._reserved.discard(pattern, pattern)

    def withdraw(self, pattern: str) -> None:
        """Stop wanting a filter that was never in force: there is nothing to end."""
        self.remove(pattern)
        self._unwanted.pop(pattern, None)

    def allows(self, topic: str) -> bool:
        """Return whether a topic under the reserved level is explicitly subscribed to."""
        return bool(self._reserved.match(topic))

    def connection_lost(self) -> None:
        """Note that what arrives from now on is not a copy of what came before."""
        self.guard.forget()

    def connected(self, client: MqttClient, *, session_present: bool) -> None:
        """Note that there is a new connection, perhaps with the session of the last one."""
        if self._stays_in_force and session_present:
            self._in_force_on = client
        if not session_present:
            self.knows_all = True
        self._stays_in_force = False

    async def connect_anew(self, client: MqttClient) -> None:
        """End the connection as soon as the broker has answered all requests.

        On the next one, nothing that is in force is requested again.
        """
        async with self._lock:
            if not client.lost.done():
                self._stays_in_force = True
                await client.disconnect(_CLOSE_TIMEOUT, _OVERRUN)

    async def apply(self, client: MqttClient) -> dict[str, int]:
        """Subscribe to what is wanted, and then unsubscribe from what is not.

        Returns:
            The filters that the broker refused, with its reason codes.

        Raises:
            ConnectionLost: the connection ended first, or the broker did not answer.
        """
        async with self._lock:
            if self._in_force_on is not client:
                self._in_force.clear()
                self._in_force_on = client
            if self._plan.outdated:
                self._plan = _Plan(self._wanted)
            plan = self._plan
            # A copy, since filters come and go while the broker is asked.
            wanted = plan.minimal.copy()
            self.guard.watch(plan.overlapping if client.limits.subscription_identifiers else ())
            missing = [
                pattern
                for pattern in wanted
                if self._in_force.get(pattern) != self.guard.identifier(pattern)
            ]
            # Brokers end the connection when asked for what they do not offer.
            lacking = {
                pattern: reason
                for pattern in missing
                if (reason := client.limits.lacking(self._prefix + pattern)) is not None
            }
            missing = [pattern for pattern in missing if pattern not in lacking]
            refused = await self._subscribe_all(client, missing, self._batch)
            again = [pattern for pattern, code in refused.items() if code in _MAYBE_TOO_MANY]
            if again and len(missing) > 1:
                alone = await self._subscribe_all(client, again, 1)
                if len(alone) < len(again):
                    self._shrink(len(missing))
                refused = {
                    pattern: alone.get(pattern, code)
                    for pattern, code in refused.items()
                    if pattern in alone or pattern not in again
                }
            covered = [pattern for pattern in self._wanted if missing and pattern not in wanted]
            await self._unsubscribe(
                client, dict.fromkeys([*self._unwanted, *covered, *self._in_force]), wanted
            )
            return lacking | refused

    async def discard(self, client: MqttClient, topic: str) -> bool:
        """Unsubscribe from the unwanted filter in force that matches the topic.

        Returns:
            Whether such a filter is there again after it was removed: then it is what the broker
            has made of one that is wanted.
        """
        times = self._discarded.get(topic, 0)
        if times >= _MOST_DISCARDS:
            return False
        if len(self._discarded) >= _MOST_DISCARDED:
            self._discarded.clear()
            self._removed.clear()
        self._discarded[topic] = times + 1
        async with self._lock:
            keep = (*self._wanted, *self._in_force)
            found = [self._prefix + pattern for pattern in candidates(topic, keep)]
            found += [self._other_prefix + pattern for pattern in candidates(topic, ())]
            removed = await self._end(client, found)
            if removed:
                # What was removed may be one that is wanted, which the broker has changed.
                self._in_force.clear()
        if not removed:
            return False
        is_back = any(pattern in self._removed for pattern in removed)
        self._removed.update(dict.fromkeys(removed))
        if not is_back:
            _log.warning(
                "the session still had filters that are no longer wanted, as a message"
                " on %r has shown; removed: %s",
                topic,
                ", ".join(map(repr, removed)),
            )
        with contextlib.suppress(ConnectionLost):
            await self.apply(client)
        return is_back

    async def end_other(self, client: MqttClient) -> None:
        """Unsubscribe from the same filters as shared ones, or else as those that are not.

        The session may be one of an earlier program, whose actor had another ``deliver=``: each
        message would come once more.
        """
        async with self._lock:
            others = [self._other_prefix + pattern for pattern in self._wanted]
            removed = await self._end(client, others)
        if removed:
            # Some brokers say so of filters that were not there, too.
            _log.info(
                "removed what an earlier program with another deliver= may have left: %s",
                ", ".join(map(repr, removed)),
            )

    async def _end(self, client: MqttClient, filters: Iterable[str]) -> list[str]:
        """Unsubscribe from filters that may be in force; return those that were."""
        possible = [pattern for pattern in filters if client.limits.lacking(pattern) is None]
        try:
            return await self._unsubscribe_all(client, possible)
        except ConnectionLost as error:
            _log.info("an unwanted filter stays for now: %s", error)
            return []

    async def _subscribe_all(
        self, client: MqttClient, patterns: Sequence[str], batch: int
    ) -> dict[str, int]:
        answers = await self._in_turn(
            client,
            len(patterns),
            (
                self._subscribe(client, part, identifier)
                for identifier, group in itertools.groupby(patterns, self.guard.identifier)
                for part in _parts(list(group), batch)
            ),
        )
        return {pattern: code for refused in answers for pattern, code in refused.items()}

    async def _unsubscribe_all(self, client: MqttClient, filters: Sequence[str]) -> list[str]:
        """Unsubscribe from these filters, and return those that were in force."""

        async def unsubscribe(part: Sequence[str]) -> list[str]:
            codes = await client.unsubscribe(part, timeout=self._timeout)
            for pattern, code in zip(part, codes, strict=False):
                if code >= _REFUSED:
                    _log.warning(
                        "the broker did not end the subscription to %r: %s; its messages are"
                        " acknowledged and dropped",
                        pattern,
                        reason_text(code),
                    )
            return [pattern for pattern, code in zip(part, codes, strict=False) if code == 0]

        answers = await self._in_turn(
            client, len(filters), (unsubscribe(part) for part in _parts(filters, self._batch))
        )
        return [pattern for removed in answers for pattern in removed]

    async def _in_turn(
        self, client: MqttClient, count: int, calls: Iterator[Coroutine[Any, Any, _Answer]]
    ) -> list[_Answer]:
        """Make the calls for ``count`` filters, several at once.

        If the connection ends, fewer are made at once from then on.
        """
        answers: list[_Answer] = []
        while part := list(itertools.islice(calls, self._at_once)):
            results = await asyncio.gather(*part, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    if isinstance(result, ConnectionLost) and client.lost.done():
                        self._shrink(count)
                    raise result
                answers.append(result)
        return answers

    def _shrink(self, count: int) -> None:
        """Put fewer filters into a packet than the ``count`` of the last attempt."""
        if count > 1:
            self._at_once = 1
            self._batch = max(min(self._batch, count) // 4, 1)

    async def _subscribe(
        self, client: MqttClient, patterns: Sequence[str], identifier: int
    ) -> dict[str, int]:
        codes = await client.subscribe(
            [self._prefix + pattern for pattern in patterns],
            qos=self._qos,
            identifier=identifier,
            timeout=self._timeout,
            retained=self._retained,
        )
        refused = {}
        # A broker has not granted what it leaves out of its answer.
        answer = itertools.chain(codes, itertools.repeat(_REFUSED))
        for pattern, code in zip(patterns, answer, strict=False):
            if code >= _REFUSED:
                refused[pattern] = code
                continue
            self._in_force[pattern] = identifier
            if code < self._qos:
                _log.warning(
                    "the broker grants only QoS %d for %r: messages may be lost in transit",
                    code,
                    pattern,
                )
        return refused

    async def _unsubscribe(
        self, client: MqttClient, patterns: Iterable[str], wanted: Collection[str]
    ) -> None:
        ending = [pattern for pattern in patterns if pattern not in wanted]
        await self._unsubscribe_all(client, [self._prefix + pattern for pattern in ending])
        for pattern in ending:
            self._in_force.pop(pattern, None)
            self._unwanted.pop(pattern, None)


def _parts(patterns: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    return (patterns[start : start + most] for start in range(0, len(patterns), most))


class _Plan:
    """Which of the wanted filters to subscribe to.

    A filter that does not overlap with any other, like most, is added without looking at the
    others: a handler may subscribe to thousands, one by one.

    Args:
        wanted: all wanted filters.

    Attributes:
        minimal: those not covered by another one.
        overlapping: those of ``minimal`` that overlap with another one.
        outdated: whether filters have changed in a way that needs a new plan.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self.minimal = dict.fromkeys(minimal(wanted))
        self.overlapping = overlapping(self.minimal)
        self.outdated = False
        # It also has filters that were removed, which may only lead to a new plan too early.
        self._index = FilterIndex()
        for pattern in wanted:
            self._index.add(pattern)

    def add(self, pattern: str) -> None:
        """Also want this filter."""
        if self._index.overlaps(pattern) or not self._index.add(pattern):
            self.outdated = True
        self.minimal[pattern] = None

    def remove(self, pattern: str, count: int) -> None:
        """No longer want this one of ``count`` filters."""
        if len(self.minimal) < count or pattern in self.overlapping:
            self.outdated = True
        self.minimal.pop(pattern, None)


def candidates(topic: str, wanted: Iterable[str]) -> list[str]:
    """Return filters that match the topic and may be in force without being wanted.

    All of them for topics of up to seven levels; for longer ones a bounded number of those with the
    fewest wildcards.

    Args:
        topic: the topic of a message.
        wanted: filters to leave out.
    """
    keep = set(wanted)
    most = min(_MOST_CANDIDATES, _MOST_BYTES // (len(topic) + 1))
    found = (pattern for pattern in _matching(topic.split("/")) if pattern not in keep)
    return list(itertools.islice(found, most))


def _matching(levels: list[str]) -> Iterator[str]:
    first = 1 if levels[0].startswith("$") else 0
    for wildcards in range(len(levels) + 1):
        for places in itertools.combinations(range(first, len(levels)), wildcards):
            pattern = ["+" if index in places else level for index, level in enumerate(levels)]
            yield "/".join(pattern)
            # Each cut after the last '+' belongs to this combination, so none occurs twice.
            for end in range(max(places, default=first - 1) + 1, len(levels) + 1):
                yield "/".join([*pattern[:end], "#"])
