"""Topics, filters, matching, and the addresses of replies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from .._texts import LONGEST_REMEMBERED, quoted, unfit_character
from ..errors import ConfigurationError
from ._envelope import REPLY_HEADER, Envelope

__all__ = [
    "COMMAND",
    "RESERVED",
    "FilterIndex",
    "TopicFilter",
    "TopicTrie",
    "check_filter",
    "check_topic",
    "command_topic",
    "covers",
    "is_foreign_reply",
    "is_reserved",
    "minimal",
    "overlap",
    "reply_filter",
    "reply_prefix",
]

RESERVED = "_spa"
"""First level of every topic reserved for the runtime."""
COMMAND = "command/0"
"""What stands for the token and the correlation in the topic of commands."""

_LONGEST = 65_535
_REMEMBERED = 4_096

V = TypeVar("V", bound=Hashable)


def is_reserved(topic: str) -> bool:
    """Return whether the topic or filter is under `RESERVED`."""
    return topic.startswith(RESERVED) and topic[len(RESERVED) : len(RESERVED) + 1] in ("", "/")


def check_topic(topic: str) -> None:
    """Raise ConfigurationError unless messages can be published to ``topic``."""
    _check_text("topic", topic)
    for wildcard in "+#":
        if wildcard in topic:
            raise ConfigurationError(
                f"topic {quoted(topic)} contains {wildcard!r}, which only filters may;"
                " publish to one concrete topic"
            )
    if topic.startswith("$"):
        raise ConfigurationError(
            f"topic {quoted(topic)} starts with '$', which is reserved for brokers;"
            " choose another first level"
        )


def check_filter(pattern: str) -> None:
    """Raise ConfigurationError unless ``pattern`` is a filter with ``+`` and ``#`` only."""
    _check_text("filter", pattern)
    levels = pattern.split("/")
    if levels[0] == "$share":
        raise ConfigurationError(
            f"filter {quoted(pattern)} names a shared group; remove '$share/<group>/'"
            " and use deliver='share' instead"
        )
    for index, level in enumerate(levels):
        if level == "#" and index < len(levels) - 1:
            raise ConfigurationError(
                f"filter {quoted(pattern)} has levels after '#'; '#' must be the last level"
            )
        if len(level) > 1 and ("+" in level or "#" in level):
            raise ConfigurationError(
                f"filter {quoted(pattern)} has a wildcard inside the level {quoted(level)};"
                " '+' and '#' must be whole levels"
            )


def _check_text(kind: str, text: str) -> None:
    if not text:
        raise ConfigurationError(f"the {kind} is empty; it needs at least one character")
    if (unfit := unfit_character(text)) is not None:
        raise ConfigurationError(f"{kind} {quoted(text)} contains {unfit}; remove it")
    size = len(text.encode())
    if size > _LONGEST:
        raise ConfigurationError(
            f"{kind} {quoted(text, 40)} is {size} bytes long in UTF-8;"
            f" at most {_LONGEST} are allowed"
        )


class TopicFilter:
    """A filter as users write it: ``+``, ``#``, and ``{name}`` for a level to capture.

    Attributes:
        text: as written.
        pattern: the same with ``+`` in place of each capture, as brokers understand it.
        captures: index of the level and name of each capture, in order.
    """

    __slots__ = ("_levels", "_many", "captures", "pattern", "text")

    def __init__(self, text: str, pattern: str, captures: tuple[tuple[int, str], ...]) -> None:
        self.text: str = text
        self.pattern: str = pattern
        self.captures: tuple[tuple[int, str], ...] = captures
        levels = pattern.split("/")
        self._many = levels[-1] == "#"
        self._levels = levels[:-1] if self._many else levels

    @classmethod
    def parse(cls, text: str) -> TopicFilter:
        """Return the filter that ``text`` describes.

        Raises:
            ConfigurationError: it is not a valid filter, or a capture is not a whole level, not an
                identifier, or not unique.
        """
        _check_text("filter", text)
        levels = text.split("/")
        captures: list[tuple[int, str]] = []
        for index, level in enumerate(levels):
            if "{" not in level and "}" not in level:
                continue
            name = level[1:-1]
            if level != f"{{{name}}}" or "{" in name or "}" in name:
                raise ConfigurationError(
                    f"filter {text!r}: {level!r} mixes a capture with other text;"
                    " a capture such as {name} must be a whole level, and levels are"
                    " separated by '/'"
                )
            if not name.isidentifier():
                raise ConfigurationError(
                    f"filter {text!r}: the capture name {name!r} is not an identifier;"
                    " use letters, digits and '_', not starting with a digit"
                )
            if any(name == other for _, other in captures):
                raise ConfigurationError(
                    f"filter {text!r} has the capture {{{name}}} twice; give each its own name"
                )
            captures.append((index, name))
            levels[index] = "+"
        pattern = "/".join(levels)
        check_filter(pattern)
        return cls(text, pattern, tuple(captures))

    def matches(self, topic: str) -> bool:
        """Return whether the concrete ``topic`` matches."""
        return _matches(self._levels, self._many, topic)

    def capture(self, topic: str) -> dict[str, str]:
        """Return the captured levels of a matching ``topic``, by name."""
        if not self.captures:
            return {}
        levels = topic.split("/")
        if len(self.captures) == 1:
            # Most filters, without the cost of a comprehension.
            ((index, name),) = self.captures
            return {name: levels[index]}
        return {name: levels[index] for index, name in self.captures}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopicFilter) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"TopicFilter({self.text!r})"


def _is_hidden(first_level: str) -> bool:
    return first_level.startswith("$") or first_level == RESERVED


def _matches(wanted: list[str], many: bool, topic: str) -> bool:
    levels = topic.split("/")
    if len(levels) != len(wanted) and not (many and len(levels) > len(wanted)):
        return False
    if _is_hidden(levels[0]) and (not wanted or wanted[0] == "+"):
        return False
    # A generator for all() would cost more than the rest.
    for want, got in zip(wanted, levels, strict=False):  # noqa: SIM110
        if want != got and want != "+":
            return False
    return True


def _split(pattern: str) -> tuple[list[str], bool]:
    levels = pattern.split("/")
    if levels[-1] != "#":
        return levels, False
    # A topic has at least one level, so '#' alone is equivalent to '+/#'.
    return levels[:-1] or ["+"], True


def covers(wide: str, narrow: str) -> bool:
    """Return whether every topic that matches the plain filter ``narrow`` also matches ``wide``."""
    wide_levels, wide_many = _split(wide)
    narrow_levels, narrow_many = _split(narrow)
    if wide_many:
        if len(narrow_levels) < len(wide_levels):
            return False
    elif narrow_many or len(narrow_levels) != len(wide_levels):
        return False
    if wide_levels[0] == "+" and _is_hidden(narrow_levels[0]):
        return False
    return all(w in ("+", n) for w, n in zip(wide_levels, narrow_levels, strict=False))


def overlap(one: str, other: str) -> bool:
    """Return whether a topic can match both plain filters; the first has no ``#``."""
    levels, wanted = one.split("/"), other.split("/")
    many = wanted[-1] == "#"
    if many:
        wanted = wanted[:-1]
    if len(levels) != len(wanted) and not (many and len(levels) > len(wanted)):
        return False
    return all("+" in (a, b) or a == b for a, b in zip(levels, wanted, strict=False))


def minimal(filters: Iterable[str]) -> tuple[str, ...]:
    """Return the plain filters without those covered by another one, in the same order."""
    index = FilterIndex()
    unique = [pattern for pattern in filters if index.add(pattern)]
    return tuple(pattern for pattern in unique if not index.covers(pattern))


class _Place:
    """A level of the filters of an index, after those above it.

    Attributes:
        below: further levels.
        ends: a filter ends here.
        goes_on: a filter ends here with ``#``.
    """

    __slots__ = ("below", "ends", "goes_on")

    def __init__(self) -> None:
        self.below: dict[str, _Place] = {}
        self.ends = False
        self.goes_on = False


class FilterIndex:
    """Finds which of many plain filters have topics in common.

    A lookup takes time proportional to the levels of a filter, however many others there are: an
    actor may have thousands. ``#`` and ``+/#`` are the same filter.
    """

    def __init__(self) -> None:
        self._root = _Place()

    def add(self, pattern: str) -> bool:
        """Add a filter; return whether it is new."""
        levels, many = _split(pattern)
        place = self._root
        for level in levels:
            place = place.below.setdefault(level, _Place())
        is_new = not (place.goes_on if many else place.ends)
        if many:
            place.goes_on = True
        else:
            place.ends = True
        return is_new

    def covers(self, pattern: str) -> bool:
        """Return whether every topic of a filter also matches another one of the index."""
        levels, many = _split(pattern)
        places = [self._root]
        for depth, level in enumerate(levels):
            alone = level == "+" or (depth == 0 and _is_hidden(level))
            keys = (level,) if alone else (level, "+")
            places = [child for place in places for key in keys if (child := place.below.get(key))]
            if depth + 1 < len(levels) and any(place.goes_on for place in places):
                return True
        own = self._find(levels)
        for place in places:
            if place.goes_on and not (many and place is own):
                return True
            if place.ends and not many and place is not own:
                return True
        return False

    def overlaps(self, pattern: str) -> bool:
        """Return whether a topic may match both a filter and another one of the index."""
        levels, many = _split(pattern)
        places = [self._root]
        for depth, level in enumerate(levels):
            if level == "+":
                places = [child for place in places for child in place.below.values()]
            else:
                keys = (level, "+")
                places = [
                    child for place in places for key in keys if (child := place.below.get(key))
                ]
            if depth + 1 < len(levels) and any(place.goes_on for place in places):
                return True
        own = self._find(levels)
        return any(
            place is not own or (place.ends if many else place.goes_on) or (many and place.below)
            for place in places
            if many or place.ends or place.goes_on
        )

    def _find(self, levels: list[str]) -> _Place | None:
        place: _Place | None = self._root
        for level in levels:
            place = None if place is None else place.below.get(level)
        return place


class _Node(Generic[V]):
    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] = {}
        self.values: dict[V, int] = {}


class TopicTrie(Generic[V]):
    """Maps plain filters to values, which are looked up by concrete topic.

    A wildcard as the first level matches neither topics that start with ``$`` nor those under
    ``_spa``. Results for recent topics are cached until something changes.
    """

    __slots__ = ("_count", "_earlier", "_recent", "_root", "_size")

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()
        self._count = 0
        self._size = 0
        # Two generations: forgetting all of the older one at once costs nothing for each topic.
        self._recent: dict[str, tuple[V, ...]] = {}
        self._earlier: dict[str, tuple[V, ...]] = {}

    def add(self, pattern: str, value: V) -> None:
        """Add ``value`` for every matching topic; adding it again changes nothing."""
        node = self._root
        for level in pattern.split("/"):
            node = node.children.setdefault(level, _Node())
        if value not in node.values:
            self._count += 1
            self._size += 1
            node.values[value] = self._count
            self._forget()

    def discard(self, pattern: str, value: V) -> None:
        """Undo `add`; what was never added is ignored."""
        path: list[tuple[_Node[V], str]] = []
        node = self._root
        for level in pattern.split("/"):
            child = node.children.get(level)
            if child is None:
                return
            path.append((node, level))
            node = child
        if node.values.pop(value, None) is None:
            return
        self._size -= 1
        self._forget()
        while path and not node.values and not node.children:
            node, level = path.pop()
            del node.children[level]

    def match(self, topic: str) -> tuple[V, ...]:
        """Return the values whose filters match ``topic``, each once, in the order added."""
        found = self._recent.get(topic)
        return self._look_up(topic) if found is None else found

    def _look_up(self, topic: str) -> tuple[V, ...]:
        found = self._earlier.get(topic)
        if found is None:
            found = self._search(topic)
            if len(topic) > LONGEST_REMEMBERED:
                return found
        # A topic for each filter, at least: no more than what the filters themselves take.
        if len(self._recent) >= max(_REMEMBERED, self._size):
            self._earlier, self._recent = self._recent, {}
        self._recent[topic] = found
        return found

    def _forget(self) -> None:
        if self._recent or self._earlier:
            self._recent, self._earlier = {}, {}

    def _search(self, topic: str) -> tuple[V, ...]:
        levels = topic.split("/")
        hits: list[dict[V, int]] = []
        nodes = [self._root]
        hidden = _is_hidden(levels[0])
        # Level by level instead of recursively: a topic may have 65,536 levels.
        for level in levels:
            following: list[_Node[V]] = []
            for node in nodes:
                children = node.children
                if (child := children.get(level)) is not None:
                    following.append(child)
                if hidden and node is self._root:
                    continue
                if (child := children.get("+")) is not None:
                    following.append(child)
                if (child := children.get("#")) is not None:
                    hits.append(child.values)
            if not following:
                nodes = following
                break
            nodes = following
        for node in nodes:
            hits.append(node.values)
            if (child := node.children.get("#")) is not None:
                hits.append(child.values)
        order: dict[V, int] = {}
        for values in hits:
            for value, count in values.items():
                if count < order.get(value, count + 1):
                    order[value] = count
        return tuple(sorted(order, key=order.__getitem__))


def reply_prefix(application: str, token: str) -> str:
    """Return the prefix of the reply addresses of one bus; the correlation follows it."""
    return f"{RESERVED}/reply/{application}/{token}/"


def reply_filter(application: str) -> str:
    """Return the filter for all replies to an application, whichever bus and instance has asked."""
    return f"{RESERVED}/reply/{application}/#"


def command_topic(application: str) -> str:
    """Return the topic on which operators reach all running instances of an application.

    It is among its inboxes for replies, which it may read, and which no others may; no token of one
    is this word.
    """
    return f"{RESERVED}/reply/{application}/{COMMAND}"


def is_foreign_reply(envelope: Envelope) -> bool:
    """Return whether it is a reply to a topic of the requester's own choice."""
    return REPLY_HEADER in envelope.headers and not is_reserved(envelope.topic)
