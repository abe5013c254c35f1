"""Topics, filters, captures and the trie, against a reference that follows the standard's text."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from spa_dat.errors import ConfigurationError
from spa_dat.transports import _topics
from spa_dat.transports._topics import (
    FilterIndex,
    TopicFilter,
    TopicTrie,
    check_filter,
    check_topic,
    covers,
    is_reserved,
    minimal,
)
from support.machine import machine_case

_LEVELS = ("a", "b", "", "$x", "_spa")

levels = st.sampled_from(_LEVELS)
topics = st.lists(levels, min_size=1, max_size=4).map("/".join)


@st.composite
def filters(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.sampled_from((*_LEVELS, "+", "+")), min_size=0, max_size=4))
    if draw(st.booleans()) or not parts:
        parts.append("#")
    return "/".join(parts) or "/"


def reference(pattern: str, topic: str) -> bool:
    """Section 4.7 of MQTT 5, level by level, and the runtime's own reserved level."""
    hidden = topic.startswith("$") or topic.split("/")[0] == "_spa"
    if hidden and pattern[0] in "+#":
        return False

    def fits(wanted: list[str], got: list[str]) -> bool:
        if wanted == ["#"]:
            return True
        if not wanted or not got:
            return not wanted and not got
        return wanted[0] in ("+", got[0]) and fits(wanted[1:], got[1:])

    return fits(pattern.split("/"), topic.split("/"))


@given(filters(), topics)
def test_matching_agrees_with_the_reference(pattern: str, topic: str) -> None:
    assert TopicFilter.parse(pattern).matches(topic) == reference(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a", True),
        ("#", "$SYS/broker", False),
        ("+/broker", "$SYS/broker", False),
        ("$SYS/#", "$SYS/broker", True),
        ("#", "_spa/reply/x", False),
        ("+/reply/x", "_spa/reply/x", False),
        ("_spa/reply/+", "_spa/reply/x", True),
        ("#", "_spare/x", True),
        ("+", "", True),
        ("+/+", "/a", True),
        ("+", "/a", False),
        ("/+", "/a", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
    ],
)
def test_matching_known_cases(pattern: str, topic: str, expected: bool) -> None:
    assert reference(pattern, topic) is expected
    assert TopicFilter.parse(pattern).matches(topic) is expected
    trie: TopicTrie[str] = TopicTrie()
    trie.add(pattern, "found")
    assert trie.match(topic) == (("found",) if expected else ())


@given(filters(), filters(), topics)
def test_a_wide_filter_matches_all_that_the_narrow_one_does(
    wide: str, narrow: str, topic: str
) -> None:
    if covers(wide, narrow) and reference(narrow, topic):
        assert reference(wide, topic)


# The level "z" appears in no filter, so it stands for whatever '+' and '#' may match.
_WITNESSES = [
    "/".join(parts)
    for size in range(1, 6)
    for parts in itertools.product((*_LEVELS, "z"), repeat=size)
]


@given(filters(), filters())
def test_covers_misses_nothing(wide: str, narrow: str) -> None:
    if not covers(wide, narrow):
        assert any(reference(narrow, t) and not reference(wide, t) for t in _WITNESSES)


@given(st.lists(filters(), max_size=6), topics)
def test_minimal_filters_match_the_same(patterns: list[str], topic: str) -> None:
    kept = minimal(patterns)
    assert any(reference(p, topic) for p in kept) == any(reference(p, topic) for p in patterns)
    assert list(kept) == [p for p in dict.fromkeys(patterns) if p in kept]
    for pattern in kept:
        assert not any(covers(other, pattern) for other in kept if other != pattern)


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (("a/b", "a/+", "a/#"), ("a/#",)),
        (("a/#", "a"), ("a/#",)),
        (("#", "+/#"), ("#",)),
        (("+/#", "#"), ("+/#",)),
        (("#", "$SYS/#"), ("#", "$SYS/#")),
        (("a/+/c", "a/b/+"), ("a/+/c", "a/b/+")),
        (("a", "a"), ("a",)),
        ((), ()),
    ],
)
def test_minimal_known_cases(patterns: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert minimal(patterns) == kept


@given(st.lists(filters(), max_size=6), filters())
def test_an_index_of_filters_says_what_looking_at_each_pair_does(
    patterns: list[str], pattern: str
) -> None:
    index = FilterIndex()
    new = [index.add(other) for other in patterns]
    same = [covers(one, pattern) and covers(pattern, one) for one in patterns]
    others = [one for one, equal in zip(patterns, same, strict=True) if not equal]
    assert index.covers(pattern) == any(covers(other, pattern) for other in others)
    for topic in _WITNESSES:
        if reference(pattern, topic) and any(reference(other, topic) for other in others):
            assert index.overlaps(pattern)
    equal = [one for place, one in enumerate(patterns) if one in patterns[:place]]
    assert new.count(False) >= len(equal)


@pytest.mark.parametrize(
    ("patterns", "overlapping"),
    [
        (("a/+", "+/b", "c/d/#", "d"), ("a/+", "+/b")),
        (("a/#", "+"), ("a/#", "+")),
        (("a/#", "a/b/#"), ("a/#", "a/b/#")),
        (("a/b", "a/c/#", "+/d/e", "a/b/c"), ()),
        (("a", "b", "a/b", "+/c"), ()),
        (("a/b/#", "a"), ()),
    ],
)
def test_filters_of_an_index_that_overlap(
    patterns: tuple[str, ...], overlapping: tuple[str, ...]
) -> None:
    index = FilterIndex()
    assert all(index.add(pattern) for pattern in patterns)
    assert tuple(filter(index.overlaps, patterns)) == overlapping


def test_each_of_many_filters_is_looked_at_alone_and_not_with_each_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[str] = []
    split = _topics._split

    def count(pattern: str) -> tuple[list[str], bool]:
        looks.append(pattern)
        return split(pattern)

    monkeypatch.setattr(_topics, "_split", count)
    filters = [f"fleet/{number}/+" for number in range(500)]
    assert minimal(filters) == tuple(filters)
    assert len(looks) <= 4 * len(filters)


class TrieMachine(RuleBasedStateMachine):
    """A trie against a list of what was added."""

    def __init__(self) -> None:
        super().__init__()
        self.trie: TopicTrie[int] = TopicTrie()
        self.model: list[tuple[str, int]] = []

    @rule(pattern=filters(), value=st.integers(0, 5))
    def add(self, pattern: str, value: int) -> None:
        self.trie.add(pattern, value)
        if (pattern, value) not in self.model:
            self.model.append((pattern, value))

    @rule(pattern=filters(), value=st.integers(0, 5))
    def discard_any(self, pattern: str, value: int) -> None:
        self.trie.discard(pattern, value)
        if (pattern, value) in self.model:
            self.model.remove((pattern, value))

    @rule(data=st.data())
    def discard_added(self, data: st.DataObject) -> None:
        if self.model:
            self.discard_any(*data.draw(st.sampled_from(self.model)))

    @rule(topic=topics)
    def match(self, topic: str) -> None:
        expected = dict.fromkeys(value for p, value in self.model if reference(p, topic))
        assert self.trie.match(topic) == tuple(expected)

    @invariant()
    def empty_when_nothing_is_left(self) -> None:
        if not self.model:
            assert not self.trie._root.children


TestTrie = machine_case(TrieMachine)


def test_the_memory_of_results_is_bounded() -> None:
    trie: TopicTrie[str] = TopicTrie()
    trie.add("a/#", "found")
    for number in range(30_000):
        assert trie.match(f"a/{number}") == ("found",)
    assert len(trie._recent) + len(trie._earlier) <= 2 * 4_096


def test_a_topic_of_very_many_levels_is_matched() -> None:
    topic = "/" * 65_000
    trie: TopicTrie[str] = TopicTrie()
    trie.add("#", "found")
    trie.add("+/+/#", "also")
    assert trie.match(topic) == ("found", "also")
    assert TopicFilter.parse(f"{topic}#").matches(topic)


def test_captures_are_cut_from_the_topic() -> None:
    parsed = TopicFilter.parse("plant/{machine}/+/{sensor}/#")
    assert parsed.pattern == "plant/+/+/+/#"
    assert parsed.captures == ((1, "machine"), (3, "sensor"))
    assert parsed.capture("plant/boiler/x/t1/raw") == {"machine": "boiler", "sensor": "t1"}
    assert TopicFilter.parse("a/+").capture("a/b") == {}
    assert parsed == TopicFilter.parse(parsed.text)
    assert parsed != TopicFilter.parse("plant/+/+/+/#")
    assert "{machine}" in repr(parsed)


@pytest.mark.parametrize(
    ("check", "text", "words"),
    [
        (check_topic, "", ("topic", "empty")),
        (check_topic, "a/+", ("'a/+'", "'+'", "concrete")),
        (check_topic, "a/#", ("'a/#'", "'#'", "concrete")),
        (check_topic, "a\0", ("null",)),
        (check_topic, "$SYS/x", ("'$SYS/x'", "'$'")),
        (check_topic, "a/\ud800", ("surrogate",)),
        (check_topic, "ä" * 40_000, ("80000", "65535")),
        (check_filter, "", ("filter", "empty")),
        (check_filter, "a/#/b", ("'a/#/b'", "last")),
        (check_filter, "a/b#", ("'b#'", "whole")),
        (check_filter, "a+/b", ("'a+'", "whole")),
        (check_filter, "$share/g/a", ("shared",)),
        (check_filter, "a\0", ("null",)),
        (TopicFilter.parse, "a/b{c}", ("'b{c}'", "whole level")),
        (TopicFilter.parse, "a/{b", ("'{b'", "whole level")),
        (TopicFilter.parse, "a/b}", ("'b}'", "whole level")),
        (TopicFilter.parse, "a/{{b}}", ("whole level",)),
        (TopicFilter.parse, "a/{}", ("''", "identifier")),
        (TopicFilter.parse, "a/{1b}", ("'1b'", "identifier")),
        (TopicFilter.parse, "{a}/{a}", ("{a}", "twice")),
        (TopicFilter.parse, "{a}/#/b", ("last",)),
    ],
)
def test_what_is_wrong_is_named(
    check: Callable[[str], object], text: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("topic", ["a", "a/b", "/", "a//b", "ä/ö", "a$b", "_spa/x"])
def test_good_topics_pass(topic: str) -> None:
    check_topic(topic)
    check_filter(topic)


@pytest.mark.parametrize("pattern", ["#", "+", "+/#", "a/+/b", "$SYS/#", "/+"])
def test_good_filters_pass(pattern: str) -> None:
    check_filter(pattern)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [("_spa", True), ("_spa/x", True), ("_spare", False), ("a/_spa", False), ("", False)],
)
def test_reserved(topic: str, expected: bool) -> None:
    assert is_reserved(topic) is expected
