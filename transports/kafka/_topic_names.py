"""Topic names: which topics and keys of a Kafka cluster addresses become, and back."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from ..._texts import LONGEST_REMEMBERED
from ...errors import ConfigurationError
from .._contract import Identity
from .._topics import RESERVED, TopicFilter, check_filter, check_topic, covers, overlap
from ._config import KafkaConfig, KafkaTopic

__all__ = ["SHARED_BY_EPHEMERAL", "Destination", "Names", "Selection", "owner_of_topics"]

_LONGEST = 249
_MOST_REMEMBERED = 16_384
_LEVEL = re.compile(r"[A-Za-z0-9_-]+")
_DEAD_LETTER = f"{RESERVED}/dead-letter/"
_REPLY = f"{RESERVED}/reply/"
_OUTSIDE = f"{RESERVED}/outside/"
# The first level of the brokers' own topics, such as __consumer_offsets.
_HIDDEN = rf"(?!{RESERVED}(?:\.|\Z)|__)"
_UNKNOWN = "unknown"
# A topic for each of them, with a new name in every run, would never be removed.
SHARED_BY_EPHEMERAL = "ephemeral"


def owner_of_topics(identity: Identity) -> str:
    """Return the name in those of the runtime's own topics for an application."""
    return SHARED_BY_EPHEMERAL if identity.ephemeral else identity.application


class Destination(NamedTuple):
    """Where a message goes.

    Attributes:
        name: of the topic on the cluster.
        key: the record key that the address implies; None if it implies none.
        subject: the full address, if the topic's name does not tell it.
        correlation: for a reply, what its ``correlation_id`` has to be.
    """

    name: str
    key: str | None = None
    subject: str | None = None
    correlation: str | None = None


class Selection(NamedTuple):
    """The topics of a cluster that a set of filters selects.

    Attributes:
        names: topics by name.
        pattern: matches the whole names of further ones; None if there are none.
        exact: whether every record of these topics matches one of the filters.
    """

    names: tuple[str, ...]
    pattern: re.Pattern[str] | None
    exact: bool

    def selects(self, name: str) -> bool:
        """Return whether a topic of the cluster is one of them."""
        if name in self.names:
            return True
        return self.pattern is not None and self.pattern.match(name) is not None


class _Bound(NamedTuple):
    filter: TopicFilter
    topic: KafkaTopic
    name: str


class Names:
    """Translates addresses of the runtime to names on a cluster, and back.

    A ``/`` becomes a ``.`` on the cluster, and levels consist of what both sides allow: letters,
    digits, ``_`` and ``-``. The addresses in `KafkaConfig.topics` go to the topics that they are
    bound to. An application has one topic for dead letters and one for replies.

    Args:
        config: prefix and bindings.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._prefix = config.prefix
        self._states = f"{config.prefix}{RESERVED}.state."
        self._bound = [
            _Bound(TopicFilter.parse(address), topic, config.prefix + topic.name)
            for address, topic in config.topics.items()
        ]
        self._by_name = {bound.name: bound for bound in self._bound}
        self._destinations: dict[str, Destination] = {}
        # The names of their topics, by application.
        self._replies: dict[str, str] = {}

    def group(self, name: str) -> str:
        """Return the id of a consumer group."""
        return self._prefix + name

    def dead_letters(self, application: str) -> str:
        """Return the topic of an application's dead letters."""
        return f"{self._prefix}{RESERVED}.dead-letter.{application}"

    def replies(self, application: str) -> str:
        """Return the topic of the replies to an application."""
        return f"{self._prefix}{RESERVED}.reply.{application}"

    def states(self, application: str, actor: str) -> str:
        """Return the topic of the states of an actor's keys; they begin as for an empty name."""
        return f"{self._states}{application}.{actor}"

    def are_states(self, name: str) -> bool:
        """Return whether a topic is one of states."""
        return name.startswith(self._states)

    def is_own(self, name: str) -> bool:
        """Return whether a topic belongs to the runtime."""
        return name.startswith(f"{self._prefix}{RESERVED}.")

    # From addresses.

    def destination(self, topic: str) -> Destination:
        """Return where to send what is published on ``topic``.

        Raises:
            ConfigurationError: no topic of a cluster can represent it.
        """
        known = self._destinations.get(topic)
        if known is None:
            if topic.startswith(_REPLY):
                return self._reply(topic)
            known = self._find(topic)
            if len(self._destinations) >= _MOST_REMEMBERED:
                self._destinations.clear()
            if len(topic) <= LONGEST_REMEMBERED:
                self._destinations[topic] = known
        return known

    def name_of(self, topic: str) -> str:
        """Return the name of the topic to which an address leads.

        Raises:
            ConfigurationError: as `destination`.
        """
        return self.destination(topic).name

    def _reply(self, topic: str) -> Destination:
        # No two have the same correlation, but many go to the same application.
        application, _, correlation = topic[len(_REPLY) :].partition("/")
        known = self._replies.get(application)
        if known is None:
            known = self.replies(_checked(application, topic))
            if len(self._replies) >= _MOST_REMEMBERED:
                self._replies.clear()
            if len(application) <= LONGEST_REMEMBERED:
                self._replies[application] = known
        return Destination(known, None, None, correlation)

    def _find(self, topic: str) -> Destination:
        check_topic(topic)
        if topic.startswith(_OUTSIDE):
            raise ConfigurationError(
                f"topic {topic[len(_OUTSIDE) :][:80]!r} of the cluster does not start with the"
                f" prefix {self._prefix!r}"
            )
        if topic.startswith(_DEAD_LETTER):
            _, _, application, identifier = [*topic.split("/", 3), ""][:4]
            name = self.dead_letters(_checked(application, topic))
            return Destination(name, key=identifier, subject=topic)
        for bound in self._bound:
            if bound.filter.matches(topic):
                wanted = bound.topic.key
                key = None if wanted is None else bound.filter.capture(topic)[wanted]
                return Destination(bound.name, key, topic)
        for level in topic.split("/"):
            _checked(level, topic)
        name = self._prefix + topic.replace("/", ".")
        if len(name) > _LONGEST or name in (".", ".."):
            raise ConfigurationError(
                f"topic {topic[:80]!r} is {len(name)} characters long on Kafka;"
                f" at most {_LONGEST} are allowed"
            )
        if name in self._by_name:
            raise ConfigurationError(
                f"topic {topic!r} would go to {name!r}, which is bound to"
                f" {self._by_name[name].filter.text!r}; publish to that address"
            )
        return Destination(name)

    def check_filter(self, pattern: str) -> None:
        """Raise ConfigurationError if no topic of a cluster can match the plain filter."""
        check_filter(pattern)
        if pattern.startswith(_DEAD_LETTER) or any(
            overlap(bound.filter.pattern, pattern) for bound in self._bound
        ):
            return
        for level in pattern.split("/"):
            if level not in ("+", "#"):
                _checked(level, pattern)

    def selection(self, filters: Iterable[str]) -> Selection:
        """Return the topics that the plain filters select.

        Raises:
            ConfigurationError: as `check_filter`.
        """
        names: dict[str, None] = {}
        patterns: list[str] = []
        exact = True
        for pattern in dict.fromkeys(filters):
            self.check_filter(pattern)
            if pattern.startswith(_DEAD_LETTER):
                application = pattern.split("/")[2]
                exact = exact and pattern.split("/")[3:] in (["+"], ["#"])
                if application in ("+", "#"):
                    own = re.escape(f"{self._prefix}{RESERVED}.dead-letter.")
                    patterns.append(own + "[^.]+")
                else:
                    names[self.dead_letters(application)] = None
                continue
            for bound in self._bound:
                if overlap(bound.filter.pattern, pattern):
                    names[bound.name] = None
                    exact = False
            if not any(covers(bound.filter.pattern, pattern) for bound in self._bound):
                self._select(pattern, names, patterns)
        if not patterns:
            return Selection(tuple(names), None, exact)
        return Selection(tuple(names), re.compile(f"(?:{'|'.join(patterns)})\\Z"), exact)

    def _select(self, pattern: str, names: dict[str, None], patterns: list[str]) -> None:
        levels = pattern.split("/")
        if any(level not in ("+", "#") and not _LEVEL.fullmatch(level) for level in levels):
            return
        if "+" not in levels and levels[-1] != "#":
            name = self._prefix + ".".join(levels)
            if name not in self._by_name:
                names[name] = None
            return
        many = levels[-1] == "#"
        if many:
            # A topic has at least one level, so '#' alone is equivalent to '+/#'.
            levels = levels[:-1] or ["+"]
        hidden = _HIDDEN if levels[0] == "+" else ""
        body = r"\.".join("[^.]+" if level == "+" else re.escape(level) for level in levels)
        taken = "".join(rf"(?!{re.escape(name)}\Z)" for name in self._by_name)
        rest = r"(?:\.[^.]+)*" if many else ""
        patterns.append(f"{taken}{re.escape(self._prefix)}{hidden}{body}{rest}")

    # To addresses.

    def topic(self, name: str, key: str | None, subject: str, offset: int) -> str:
        """Return the address of a record.

        Args:
            name: the name of its topic.
            key: the record's key.
            subject: the address stated in the record, which counts if the name does not tell.
            offset: the record's offset.
        """
        bound = self._by_name.get(name)
        if bound is not None:
            told = bool(subject) and bound.filter.matches(subject)
            return subject if told else _reconstructed(bound, key)
        plain = self.plain_topic(name)
        if plain.startswith(_DEAD_LETTER):
            return subject if subject.startswith(plain + "/") else f"{plain}/{offset}"
        return plain

    def is_plain(self, name: str) -> bool:
        """Return whether the name alone tells the address of every record of the topic."""
        return name not in self._by_name and not self.plain_topic(name).startswith(_DEAD_LETTER)

    def reply_topic(self, name: str) -> str:
        """Return the address of a topic named by a sender; it is refused if outside the prefix."""
        return self.plain_topic(name) if name.startswith(self._prefix) else _OUTSIDE + name

    def plain_topic(self, name: str) -> str:
        """Return the address that a topic's name represents."""
        return name.removeprefix(self._prefix).replace(".", "/")


def _is_level(text: str) -> bool:
    return _LEVEL.fullmatch(text) is not None


_is_level_remembered = functools.lru_cache(_MOST_REMEMBERED)(_is_level)


def _checked(level: str, topic: str) -> str:
    known = _is_level_remembered if len(level) <= LONGEST_REMEMBERED else _is_level
    if not known(level):
        raise ConfigurationError(
            f"topic {topic[:80]!r}: Kafka cannot carry the level {level[:80]!r}; use letters"
            " A-Z and a-z, digits, '_' and '-', or bind the address with KafkaConfig(topics=...)"
        )
    return level


def _reconstructed(bound: _Bound, key: str | None) -> str:
    """Return an address for a record whose sender gave none: only the key is known."""
    levels = bound.filter.pattern.split("/")
    for index, name in bound.filter.captures:
        is_key = name == bound.topic.key and key and "/" not in key
        levels[index] = key if is_key and key is not None else _UNKNOWN
    return "/".join(levels)
