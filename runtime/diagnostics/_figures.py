"""What is measured of actors while an admin endpoint shows it: counts, times, failures, edges."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ..._texts import LONGEST_REMEMBERED, describe, error_name, escaped
from ...transports import TopicFilter, TopicTrie

__all__ = [
    "ActorFigures",
    "Edge",
    "Latency",
    "PublishFigures",
    "RecordedFailure",
    "Times",
    "failure_of",
]

_MOST_FAILURES = 10
_LONGEST_TEXT = 300
_LONGEST_TOPIC = 200
# Eight buckets for each doubling: a time is known to 6 %.
_BITS = 3
_STEPS = 1 << _BITS
_MOST_PATTERNS = 200
_MOST_TOPICS = 200
_MOST_EDGES = 5_000
_MOST_REMEMBERED = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFailure:
    """Something that the user's code has failed with, as it may be shown.

    Attributes:
        at: seconds since 1970.
        where: what failed; as for `Observer.failed`.
        error: the name of its class.
        text: what it says, on one line, cut off.
        topic: of the message that was being handled, likewise; None for none.
    """

    at: float
    where: str
    error: str
    text: str
    topic: str | None


def failure_of(at: float, where: str, error: BaseException, topic: str | None) -> RecordedFailure:
    """Return what may be shown of an error; nothing of it is kept otherwise."""
    return RecordedFailure(
        at=at,
        where=where,
        error=error_name(error),
        text=escaped(describe(error), _LONGEST_TEXT),
        topic=None if topic is None else escaped(topic, _LONGEST_TOPIC),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long calls took lately, in seconds, within 6 %.

    Attributes:
        p50: half of them took no longer.
        p99: 99 % of them took no longer.
        count: how many there were.
    """

    p50: float
    p99: float
    count: int


class Times:
    """How long calls took since the turn before the last one, in a few numbers."""

    __slots__ = ("_earlier", "_recent")

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._earlier: dict[int, int] = {}

    def add(self, nanoseconds: int) -> None:
        """Add one call."""
        octave = max(nanoseconds.bit_length() - 1 - _BITS, 0)
        bucket = (octave << _BITS) + (nanoseconds >> octave)
        recent = self._recent
        recent[bucket] = recent.get(bucket, 0) + 1

    def turn(self) -> None:
        """Forget what was added before the last turn."""
        if self._recent or self._earlier:
            self._earlier, self._recent = self._recent, {}

    def latency(self) -> Latency | None:
        """Return what there is to say; None without a call."""
        counts = dict(self._earlier)
        for bucket, count in self._recent.items():
            counts[bucket] = counts.get(bucket, 0) + count
        total = sum(counts.values())
        if not total:
            return None
        ordered = sorted(counts.items())
        p50, p99 = (_quantile(ordered, total * share) for share in (0.5, 0.99))
        return Latency(p50=p50, p99=p99, count=total)


def _quantile(ordered: list[tuple[int, int]], rank: float) -> float:
    seen, found = 0, 0
    for bucket, count in ordered:
        seen, found = seen + count, bucket
        if seen >= rank:
            break
    octave = max((found >> _BITS) - 1, 0)
    return (((found - (octave << _BITS)) << octave) + (1 << octave) / 2) / 1e9


class ActorFigures:
    """What is measured of one actor.

    Attributes:
        calls: calls of a producer that have ended.
        failed: attempts that have failed.
        failures: the latest of them.
        times: how long it took with each batch, or call, or with the messages that are timed.
        passed_on: how many messages went to its child processes by filter, as patterns; those by
            too many filters under an empty text.
    """

    __slots__ = ("calls", "failed", "failures", "passed_on", "times")

    def __init__(self) -> None:
        self.calls = 0
        self.failed = 0
        self.failures: deque[RecordedFailure] = deque(maxlen=_MOST_FAILURES)
        self.times = Times()
        self.passed_on: dict[str, int] = {}

    def pass_on(self, pattern: str) -> None:
        """Count one message that came by a filter and went to a child process."""
        passed_on = self.passed_on
        if pattern not in passed_on and len(passed_on) >= _MOST_PATTERNS:
            pattern = ""
        passed_on[pattern] = passed_on.get(pattern, 0) + 1

    def fail(self, failure: RecordedFailure) -> None:
        """Note a failure."""
        self.failed += 1
        self.failures.append(failure)


class Edge:
    """What one source has published on one topic.

    Attributes:
        source: who.
        topic: a filter of an actor of the application that takes it, as written, or else the topic.
        declared: whether it is such a filter.
        count: how many messages.
    """

    __slots__ = ("count", "declared", "source", "topic")

    def __init__(self, source: str, topic: str, *, declared: bool) -> None:
        self.source = source
        self.topic = topic
        self.declared = declared
        self.count = 0


class PublishFigures:
    """Who has published how much on which topics of one bus.

    Topics may be made of what strangers have sent, so only some are told apart: those that an actor
    of the application takes count for its filter, and of all others the first 200.

    Attributes:
        left_out: how many messages were published on other topics.
    """

    def __init__(self) -> None:
        self._labels: TopicTrie[str] = TopicTrie()
        self._texts: dict[str, str] = {}
        self._edges: dict[tuple[str, str], Edge] = {}
        self._others: set[str] = set()
        self._known: dict[tuple[str, str], tuple[Edge, ...]] = {}
        self.left_out = 0

    def take(self, filters: Iterable[TopicFilter]) -> None:
        """Have filters of an actor stand for the topics that they match."""
        for filter_ in filters:
            text = self._texts.setdefault(filter_.pattern, filter_.text)
            self._labels.add(filter_.pattern, text)

    def text_of(self, pattern: str) -> str:
        """Return the filter as the program has written it first."""
        return self._texts.get(pattern, pattern)

    def add(self, source: str, topic: str) -> None:
        """Count one message."""
        edges = self._known.get((source, topic))
        if edges is None:
            edges = self._find(source, topic)
        if not edges:
            self.left_out += 1
        for edge in edges:
            edge.count += 1

    @property
    def edges(self) -> list[Edge]:
        """Who publishes where; for any thread."""
        return [*self._edges.copy().values()]

    def _find(self, source: str, topic: str) -> tuple[Edge, ...]:
        labels = self._labels.match(topic)
        declared = bool(labels)
        if not declared and self._is_told_apart(topic):
            labels = (topic,)
        edges = tuple(filter(None, (self._edge(source, label, declared) for label in labels)))
        if len(topic) <= LONGEST_REMEMBERED:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[source, topic] = edges
        return edges

    def _edge(self, source: str, label: str, declared: bool) -> Edge | None:
        edge = self._edges.get((source, label))
        if edge is None and len(self._edges) < _MOST_EDGES:
            edge = self._edges[source, label] = Edge(source, label, declared=declared)
        return edge

    def _is_told_apart(self, topic: str) -> bool:
        if topic in self._others:
            return True
        if len(self._others) >= _MOST_TOPICS or len(topic) > LONGEST_REMEMBERED:
            return False
        self._others.add(topic)
        return True
