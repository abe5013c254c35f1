"""Addresses and the names of topics on a cluster."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from spa_dat.errors import ConfigurationError
from spa_dat.transports import KafkaConfig, KafkaTopic
from spa_dat.transports._topics import TopicFilter
from spa_dat.transports.kafka._topic_names import Destination, Names

_LEVELS = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
_ADDRESSES = st.lists(_LEVELS, min_size=1, max_size=5).map("/".join)
_PREFIXES = st.sampled_from(["", "test-", "a.b."])
_FILTERS = st.lists(st.one_of(_LEVELS, st.just("+")), max_size=4).flatmap(
    lambda levels: st.sampled_from(["/".join([*levels, "#"]), "/".join(levels) or "+"])
)


def bound(prefix: str = "") -> Names:
    return Names(
        KafkaConfig(
            prefix=prefix,
            topics={
                "fleet/{truck}/position": KafkaTopic("fleet.position", key="truck"),
                "fleet/{truck}/{part}/state": KafkaTopic("states"),
                "orders/eu": KafkaTopic("orders.v1.eu"),
            },
        )
    )


@given(address=_ADDRESSES, prefix=_PREFIXES)
def test_plain_addresses_come_back(address: str, prefix: str) -> None:
    names = Names(KafkaConfig(prefix=prefix))
    if address.startswith(("_spa/reply/", "_spa/dead-letter/")):
        return
    name = names.destination(address).name
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert name.startswith(prefix)
    assert names.is_plain(name)
    assert names.plain_topic(name) == address
    assert names.topic(name, None, "", 0) == address


@given(address=_ADDRESSES, pattern=_FILTERS, prefix=_PREFIXES)
def test_selections_take_what_filters_match(address: str, pattern: str, prefix: str) -> None:
    if address.split("/")[0] == "_spa" or address.startswith("__"):
        return
    names = Names(KafkaConfig(prefix=prefix))
    selection = names.selection([pattern])
    name = names.destination(address).name
    taken = name in selection.names or (
        selection.pattern is not None and selection.pattern.match(name) is not None
    )
    assert taken == TopicFilter.parse(pattern).matches(address)
    assert selection.exact


def test_a_bound_address_has_its_topic_key_and_subject() -> None:
    names = bound("p-")
    position = names.destination("fleet/7/position")
    assert position == ("p-fleet.position", "7", "fleet/7/position", None)
    assert names.destination("fleet/7/door/state") == ("p-states", None, "fleet/7/door/state", None)
    assert names.destination("orders/eu").name == "p-orders.v1.eu"
    # Captures may hold what a plain level may not.
    assert names.destination("fleet/größe/position").key == "größe"


def test_a_bound_topic_gives_the_address_of_each_record() -> None:
    names = bound()
    subject = "fleet/7/position"
    assert names.topic("fleet.position", "7", subject, 0) == "fleet/7/position"
    assert names.topic("fleet.position", "8", "", 0) == "fleet/8/position"
    # What does not fit the binding is not believed.
    assert names.topic("fleet.position", "8", "x/y", 0) == "fleet/8/position"
    assert names.topic("fleet.position", "a/b", "", 0) == "fleet/unknown/position"
    assert names.topic("fleet.position", None, "", 0) == "fleet/unknown/position"
    assert names.topic("states", "k", "", 0) == "fleet/unknown/unknown/state"
    assert not names.is_plain("fleet.position")


def test_the_names_of_bound_topics_are_nobody_elses() -> None:
    names = bound()
    with pytest.raises(ConfigurationError, match=r"'fleet/position'.*'fleet\.position'"):
        names.destination("fleet/position")
    selection = names.selection(["fleet/#"])
    assert set(selection.names) == {"fleet.position", "states"}
    assert not selection.exact
    assert selection.pattern is not None
    assert selection.pattern.match("fleet.7")
    assert not selection.pattern.match("fleet.position")
    assert names.selection(["fleet/+/position"]) == (("fleet.position",), None, False)


def test_own_topics_and_those_of_brokers_are_hidden_from_wildcards() -> None:
    names = Names(KafkaConfig(prefix="p-"))
    for pattern in ("#", "+/#", "+/+/+"):
        selection = names.selection([pattern])
        assert selection.pattern is not None
        for hidden in ("p-_spa.reply.app", "p-_spa.dead-letter.app", "_spa.reply.app", "a.b.c"):
            assert not selection.pattern.match(hidden), hidden
        assert not selection.pattern.match("p-__consumer.a.b")
    assert names.selection(["#"]).pattern.match("p-_spam")  # type: ignore[union-attr]


def test_dead_letters_of_an_application_have_one_topic() -> None:
    names = Names(KafkaConfig(prefix="p-"))
    letter = names.destination("_spa/dead-letter/app/x%2F1")
    subject = "_spa/dead-letter/app/x%2F1"
    assert letter == Destination("p-_spa.dead-letter.app", "x%2F1", subject)
    assert letter.name == names.dead_letters("app")
    assert names.is_own(letter.name)
    own = "_spa/dead-letter/app/1"
    assert names.topic(letter.name, "1", own, 5) == own
    assert names.topic(letter.name, "1", "", 5) == "_spa/dead-letter/app/5"
    assert names.selection(["_spa/dead-letter/app/+"]) == ((letter.name,), None, True)
    every = names.selection(["_spa/dead-letter/+/+"])
    assert every.pattern is not None
    assert every.pattern.match(letter.name)
    assert not every.pattern.match("p-_spa.reply.app")


def test_replies_of_an_application_have_one_topic() -> None:
    names = Names(KafkaConfig())
    reply = names.destination("_spa/reply/app/token/0a1b")
    assert reply == Destination("_spa.reply.app", correlation="token/0a1b")
    assert reply.name == names.replies("app")


@pytest.mark.parametrize(
    "address",
    ["a b", "größe", "a.b", "a//b", "/a", "a/", "", "a/+", "$SYS/x", "a" * 250, "_spa/reply/ä/x"],
)
def test_an_address_that_no_topic_can_have_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError):
        Names(KafkaConfig()).destination(address)


@pytest.mark.parametrize("pattern", ["a b/+", "größe", "a.b/#", "a/#/b", "+/ü"])
def test_a_filter_that_no_topic_can_match_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        Names(KafkaConfig()).check_filter(pattern)


def test_a_filter_for_a_bound_address_may_have_any_level() -> None:
    bound().check_filter("fleet/größe/position")


def test_groups_have_the_prefix() -> None:
    assert Names(KafkaConfig(prefix="p-")).group("app.actor") == "p-app.actor"
