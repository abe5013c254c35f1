"""What MQTT sessions bring along: messages that come again, copies, stale filters."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, strategies as st

from spa_dat.transports._delivery import Delivery, DeliveryState, Tracker
from spa_dat.transports._envelope import Envelope
from spa_dat.transports._topics import TopicFilter
from spa_dat.transports.mqtt._overlapping_filters import CopyGuard, overlapping
from spa_dat.transports.mqtt._redelivery import Redelivery
from spa_dat.transports.mqtt._subscription_set import _Plan, candidates

_MESSAGE = Envelope(topic="t", payload=b"x")


class Session:
    """A tracker with the redelivery that belongs to it, as a consumer has them."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.tracker = Tracker(self._release)
        self.redelivery = Redelivery(window=10)

    def _release(self, free: list[Delivery]) -> None:
        self.acknowledged += self.redelivery.acknowledged(free)

    def receive(self, token: int, envelope: Envelope = _MESSAGE, size: int = 1) -> Delivery:
        delivery = self.tracker.register(envelope, token, size)
        self.redelivery.arrived(delivery)
        return delivery

    def again(
        self, token: int, envelope: Envelope = _MESSAGE, size: int = 1
    ) -> tuple[Delivery, bool]:
        delivery = self.receive(token, envelope, size)
        return delivery, self.redelivery.resolve(delivery)

    def is_copy(self, token: int, envelope: Envelope = _MESSAGE, size: int = 1) -> bool:
        """Return whether this, sent with the mark of a duplicate, is passed over."""
        duplicate = msgspec.structs.replace(envelope, redelivered=True)
        return self.redelivery.is_copy(duplicate, token, size)

    def lose_connection(self) -> None:
        self.redelivery.connection_lost(self.tracker.begin())
        self.acknowledged.clear()


def running(
    session: Session, token: int = 1, envelope: Envelope = _MESSAGE, size: int = 1
) -> Delivery:
    delivery = session.receive(token, envelope, size)
    assert delivery.start()
    return delivery


def test_a_handler_that_still_runs_settles_the_message_that_came_again() -> None:
    session = Session()
    old = running(session)
    session.lose_connection()
    _, known = session.again(1)
    assert known
    assert session.acknowledged == []
    old.settle()
    assert session.acknowledged == [1]


def test_a_handler_that_runs_through_two_cuts_settles_the_last_receipt() -> None:
    session = Session()
    old = running(session)
    for _ in range(3):
        session.lose_connection()
        assert session.again(1)[1]
    old.settle()
    assert session.acknowledged == [1]


def test_a_message_given_back_after_a_second_cut_is_delivered() -> None:
    session = Session()
    old = running(session)
    session.lose_connection()
    assert session.again(1)[1]
    old.requeue()
    session.lose_connection()
    old.withdraw()
    delivery, known = session.again(1)
    assert not known
    assert delivery.start()


def test_what_was_settled_but_not_acknowledged_is_settled_again() -> None:
    session = Session()
    first = running(session, 1)
    running(session, 2).settle()
    session.lose_connection()
    assert first.state is not DeliveryState.SETTLED
    session.again(1)
    assert session.again(2)[1]
    first.settle()
    assert session.acknowledged == [1, 2]


def test_what_was_settled_while_away_is_settled_when_it_comes_again() -> None:
    session = Session()
    old = running(session)
    session.lose_connection()
    old.settle()
    assert session.again(1)[1]
    assert session.acknowledged == [1]


_UNIQUE = Envelope(topic="t", payload=b"x", id="7", time=1.5)


@pytest.mark.parametrize(
    ("envelope", "size"),
    [
        (_MESSAGE, 1),
        (Envelope(topic="t", payload=b"x", id="7"), 1),
        (Envelope(topic="t", payload=b"x", time=1.5), 1),
        (_UNIQUE, 1_025),
    ],
)
def test_an_acknowledgement_that_may_be_lost_counts_only_for_what_can_be_told_apart(
    envelope: Envelope, size: int
) -> None:
    session = Session()
    running(session, 1, envelope, size).settle()
    running(session, 2, _UNIQUE).settle()
    assert session.acknowledged == [1, 2]
    session.lose_connection()
    assert not session.again(1, envelope, size)[1], "another may have got the packet id since"
    assert session.again(2, _UNIQUE)[1]


@pytest.mark.parametrize(
    "field", ["topic", "payload", "id", "source", "type", "time", "key", "content_type", "headers"]
)
def test_what_differs_in_anything_from_what_was_acknowledged_is_another_message(
    field: str,
) -> None:
    """Senders choose their ids: a sensor may put its own name there."""
    session = Session()
    running(session, 1, _UNIQUE).settle()
    session.lose_connection()
    value: object = {"payload": b"y", "time": 2.5, "headers": {"a": "b"}}.get(field, "other")
    assert not session.again(1, msgspec.structs.replace(_UNIQUE, **{field: value}))[1]


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_what_is_sent_again_on_the_same_connection_is_passed_over(size: int) -> None:
    session = Session()
    first = running(session, 1, size=size)
    assert session.is_copy(1, size=size), "its handler is at work"
    assert session.redelivery.is_copy(_MESSAGE, 1, size), "whatever the broker marks"
    first.settle()
    assert session.acknowledged == [1]
    assert session.is_copy(1, size=size), "its acknowledgement is under way"
    assert not session.redelivery.is_copy(_MESSAGE, 1, size), "the packet id is free again"


def test_another_message_under_a_packet_id_that_is_not_free_is_handled_and_acknowledged_once() -> (
    None
):
    session = Session()
    first = running(session, 1)
    other = Envelope(topic="t", payload=b"y")
    assert not session.is_copy(1, other)
    second = running(session, 1, other)
    first.settle()
    assert session.acknowledged == [], "that would acknowledge the second one"
    second.settle()
    assert session.acknowledged == [1]


def test_what_comes_again_on_the_next_connection_is_no_copy() -> None:
    session = Session()
    running(session, 1)
    running(session, 2)
    session.lose_connection()
    assert not session.is_copy(1)
    _, known = session.again(1)
    assert known
    assert session.is_copy(1), "on the second connection it is"
    assert not session.is_copy(2)


def test_what_is_acknowledged_anew_pushes_out_no_other_acknowledgement() -> None:
    session = Session()
    envelopes = {token: Envelope(topic="t", id=str(token), time=1.0) for token in range(1, 11)}
    for token, envelope in envelopes.items():
        running(session, token, envelope).settle()
    for _ in range(3):
        session.lose_connection()
        for token in range(1, 6):
            assert session.again(token, envelopes[token])[1]
    session.lose_connection()
    assert all(session.again(token, envelope)[1] for token, envelope in envelopes.items())


def test_another_id_under_the_same_packet_id_is_another_message() -> None:
    session = Session()
    running(session, 1, Envelope(topic="t", id="7")).settle()
    session.lose_connection()
    assert not session.again(1, Envelope(topic="t", id="8"))[1]


@pytest.mark.parametrize("state", ["queued", "running", "settled"])
def test_a_packet_id_that_was_used_again_loses_no_message(state: str) -> None:
    session = Session()
    old = session.receive(1)
    if state != "queued":
        old.start()
    session.lose_connection()
    if state == "settled":
        old.settle()
    delivery, known = session.again(1, Envelope(topic="t", payload=b"something else"))
    assert not known
    assert delivery.state is DeliveryState.QUEUED


def test_a_lost_session_starts_packet_ids_anew() -> None:
    session = Session()
    old = running(session)
    running(session, 2, Envelope(topic="t", id="7")).settle()
    session.lose_connection()
    session.redelivery.session_lost()
    old.settle()
    assert not session.again(1)[1]
    assert not session.again(2, Envelope(topic="t", id="7"))[1]


def test_after_something_new_nothing_is_taken_for_old() -> None:
    session = Session()
    running(session, 1).settle()
    running(session, 5)
    session.lose_connection()
    session.redelivery.over()
    assert not session.again(5)[1]


def test_what_did_not_come_again_yet_is_remembered_over_a_further_cut() -> None:
    session = Session()
    old = running(session)
    session.lose_connection()
    session.lose_connection()
    assert session.again(1)[1]
    old.settle()
    assert session.acknowledged == [1]


def test_failed_attempts_are_carried_over_to_the_new_receipt() -> None:
    session = Session()
    old = session.receive(1)
    old.attempts = 3
    session.lose_connection()
    old.withdraw()
    delivery, known = session.again(1)
    assert (known, delivery.attempts) == (False, 3)


def test_a_receipt_that_was_not_taken_back_keeps_its_place_and_settles_the_new_one() -> None:
    session = Session()
    old = session.receive(1)
    session.lose_connection()
    delivery, known = session.again(1)
    assert known
    assert old.successor is delivery


def test_filters_that_overlap_in_part_are_found() -> None:
    assert overlapping(("a/+", "+/b", "c/d/#", "d")) == ("a/+", "+/b")
    assert overlapping(("a/#", "+")) == ("a/#", "+")
    assert overlapping(("a", "b", "a/b", "+/c")) == ()


_FEW_FILTERS = ("a", "a/b", "a/+", "+/b", "a/#", "#", "+/#", "c", "c/d", "e/+", "$s/#", "f", "g")


@given(st.lists(st.sampled_from(_FEW_FILTERS), max_size=12))
def test_a_plan_that_is_kept_is_the_one_that_would_be_made(changes: list[str]) -> None:
    plan, wanted = _Plan(()), dict[str, None]()
    for pattern in changes:
        if pattern in wanted:
            plan.remove(pattern, len(wanted))
            del wanted[pattern]
        else:
            wanted[pattern] = None
            plan.add(pattern)
        anew = _Plan(wanted)
        if plan.outdated:
            plan = anew
        assert list(plan.minimal) == list(anew.minimal)
        assert plan.overlapping == anew.overlapping


def test_filters_with_nothing_in_common_come_and_go_without_a_new_plan() -> None:
    """A handler may subscribe to thousands of topics, one by one."""
    plan = _Plan(["b/#", "b/c"])
    for number in range(100):
        plan.add(f"a/{number}/+")
    assert not plan.outdated
    assert len(plan.minimal) == 101
    plan = _Plan(["a", "b"])
    plan.remove("a", 2)
    assert not plan.outdated


def guard(*filters: str) -> CopyGuard:
    watching = CopyGuard()
    watching.watch(filters)
    return watching


def test_one_copy_for_each_subscription_counts_once() -> None:
    watching = guard("a/+", "+/b")
    one, other = watching.identifier("a/+"), watching.identifier("+/b")
    assert len({one, other, 0}) == 3
    got = [watching.is_copy(_MESSAGE, (identifier,)) for identifier in (one, other, one, other)]
    assert got == [False, True, False, True], "an equal second message is no copy"


def test_equal_messages_sent_once_each_are_all_kept() -> None:
    watching = guard("a/+", "+/b")
    one, other = watching.identifier("a/+"), watching.identifier("+/b")
    assert not any(watching.is_copy(_MESSAGE, (one, other)) for _ in range(3))
    assert not any(watching.is_copy(_MESSAGE, (one,)) for _ in range(3))


def test_copies_of_messages_that_cross_are_told_apart() -> None:
    watching = guard("a/+", "+/b")
    one, other = watching.identifier("a/+"), watching.identifier("+/b")
    second = Envelope(topic="t", payload=b"y")
    order = [(_MESSAGE, one), (second, one), (second, other), (_MESSAGE, other)]
    got = [watching.is_copy(message, (identifier,)) for message, identifier in order]
    assert got == [False, False, True, True]


def test_a_change_of_filters_forgets_what_came() -> None:
    watching = guard("a/+", "+/b")
    watching.is_copy(_MESSAGE, (watching.identifier("a/+"),))
    watching.watch(("a/+", "+/b", "#"))
    assert not watching.is_copy(_MESSAGE, (watching.identifier("+/b"),))


def test_of_many_messages_only_the_last_ones_are_remembered() -> None:
    watching = guard("a/+", "+/b")
    one, other = watching.identifier("a/+"), watching.identifier("+/b")
    messages = [Envelope(topic="t", payload=b"%d" % number) for number in range(200)]
    for message in messages:
        watching.is_copy(message, (one,))
    copies = [watching.is_copy(message, (other,)) for message in reversed(messages)]
    assert copies == [True] * 128 + [False] * 72


def test_identifiers_are_the_same_in_every_process_and_only_where_needed() -> None:
    assert guard("a/+", "+/b").identifier("a/+") == guard("+/b", "x", "a/+").identifier("a/+")
    assert guard("a/+", "b").identifier("a/+") == 0


levels = st.sampled_from(["a", "b", ""])


@given(topic=st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool))
def test_every_filter_that_matches_is_a_candidate_once(topic: str) -> None:
    found = candidates(topic, ())
    assert len(found) == len(set(found))
    matches: Callable[[str], bool] = lambda text: TopicFilter.parse(text).matches(topic)  # noqa: E731
    assert all(map(matches, found))
    depth = topic.count("/") + 1
    possible = [
        "/".join(parts)
        for size in range(1, depth + 2)
        for parts in itertools.product([*topic.split("/"), "+", "#"], repeat=size)
        if "#" not in parts[:-1]
    ]
    assert {text for text in possible if text and matches(text)} <= set(found)


def test_wanted_filters_are_no_candidates_and_their_number_is_bounded() -> None:
    assert "a/+" not in candidates("a/b", ["a/+"])
    assert len(candidates("/".join("abcdefghijklmnopqrstuvwxyz"), ())) <= 512
    assert sum(map(len, candidates("x" * 30_000 + "/y/z", ()))) < 200_000
    assert not any(text.startswith(("+", "#")) for text in candidates("$a/b", ()))
