"""Which message is refused because connections end over it, and that no other one is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, strategies as st

from spa_dat.transports._suspect_publishes import Blame, Course, Suspicion


@dataclass(eq=False)
class Message:
    name: str
    over: bool = False
    is_large: bool = True

    def done(self) -> bool:
        return self.over


def made() -> Suspicion[Message]:
    return Suspicion(lambda message: message.is_large)


def suspicion_against(
    *messages: Message, ends: int = 3, lasted: float = 0.01
) -> Suspicion[Message]:
    """As it is when so many connections have ended over the messages."""
    suspicion: Suspicion[Message] = made()
    for _ in range(ends):
        suspicion.connected()
        suspicion.ended(messages, Blame.POSSIBLE, lasted)
    return suspicion


def test_three_ends_make_a_suspect_which_is_then_alone() -> None:
    one, other = Message("one"), Message("other")
    assert suspicion_against(one, other, ends=2).connected() is Course.FREELY
    suspicion = suspicion_against(one, other)
    assert suspicion.connected() is Course.ALONE
    one.over = True
    assert suspicion.connected() is Course.ALONE, "there is another one"
    other.over = True
    assert suspicion.connected() is Course.FREELY


def test_an_end_alone_is_checked_by_a_connection_without_the_message() -> None:
    one, other = Message("one"), Message("other")
    suspicion = suspicion_against(one, other)
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, 0.01)
    assert suspicion.connected() is Course.QUIETLY
    assert suspicion.quiet == 1.0
    assert suspicion.condemn() is one
    one.over = True
    assert suspicion.connected() is Course.ALONE
    assert suspicion.ends(other) == 3


@pytest.mark.parametrize(("lasted", "quiet"), [(0.01, 1.0), (0.5, 3.0), (4.0, 24.0), (40.0, 30.0)])
def test_the_quiet_time_is_twice_as_long_as_the_message_was_under_way(
    lasted: float, quiet: float
) -> None:
    suspicion = suspicion_against(one := Message("one"), lasted=lasted)
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, lasted)
    suspicion.connected()
    assert suspicion.quiet == quiet, "of three connections; on the first it may have come late"


def test_ends_that_took_long_need_three_cross_checks() -> None:
    suspicion = suspicion_against(one := Message("one"), lasted=1.0)
    for _ in range(2):
        assert suspicion.connected() is Course.ALONE
        suspicion.ended([one], Blame.POSSIBLE, 1.0)
        assert suspicion.connected() is Course.QUIETLY
        assert suspicion.condemn() is None
    assert suspicion.connected() is Course.ALONE
    suspicion.ended([one], Blame.POSSIBLE, 1.0)
    suspicion.connected()
    assert suspicion.condemn() is one


def test_a_small_message_is_never_on_its_way_for_long() -> None:
    suspicion = suspicion_against(one := Message("one", is_large=False), lasted=1.0)
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, 1.0)
    suspicion.connected()
    assert suspicion.condemn() is one


def test_a_failed_cross_check_undoes_those_that_held() -> None:
    suspicion = suspicion_against(one := Message("one"), lasted=1.0)
    for _ in range(2):
        suspicion.connected()
        suspicion.ended([one], Blame.POSSIBLE, 1.0)
        suspicion.connected()
        suspicion.condemn()
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, 1.0)
    suspicion.connected()
    suspicion.ended([], Blame.POSSIBLE, 1.0)
    assert suspicion.connected() is Course.FREELY
    assert suspicion.ends(one) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_fails_under_large_messages_hardly_ever_makes_one_be_refused(
    seed: int,
) -> None:
    """Messages take as long as a connection holds on the average, whatever is on it."""
    random = Random(seed)
    refused = confirmed = 0
    for number in range(1_000):
        suspicion: Suspicion[Message] = made()
        message = Message(str(number))
        while not message.over:
            course = suspicion.connected()
            holds = random.expovariate(1.0)
            if course is Course.QUIETLY and holds > suspicion.quiet:
                message.over = suspicion.condemn() is message
                refused += message.over
                course = suspicion.connected()
                holds -= suspicion.quiet
            if course is Course.QUIETLY:
                suspicion.ended([], Blame.POSSIBLE, holds)
            elif holds > 1.0:
                message.over = True
                confirmed += 1
            else:
                suspicion.ended([message], Blame.POSSIBLE, holds)
    assert refused <= 6, f"of {refused + confirmed}"


def test_a_connection_that_ends_without_the_message_too_acquits_all() -> None:
    one, other = Message("one"), Message("other")
    suspicion = suspicion_against(one, other)
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, 0.01)
    suspicion.connected()
    suspicion.ended([], Blame.POSSIBLE, 0.01)
    assert suspicion.connected() is Course.FREELY
    assert suspicion.ends(one) == suspicion.ends(other) == 0


def test_a_quiet_connection_that_ends_for_another_reason_is_tried_again() -> None:
    suspicion = suspicion_against(one := Message("one"))
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, 0.01)
    suspicion.connected()
    suspicion.ended([], Blame.NONE, 0.01)
    assert suspicion.connected() is Course.QUIETLY
    assert suspicion.condemn() is one


def test_what_the_broker_names_needs_no_quiet_time() -> None:
    suspicion = suspicion_against(one := Message("one"))
    suspicion.connected()
    suspicion.ended([one], Blame.NAMED, 5.0)
    assert suspicion.connected() is Course.REFUSE
    assert suspicion.condemn() is one


@pytest.mark.parametrize("alone", [False, True])
def test_an_end_before_an_outage_does_not_count(alone: bool) -> None:
    suspicion = suspicion_against(one := Message("one"), ends=3 if alone else 2)
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, 0.01)
    suspicion.unreachable()
    suspicion.unreachable()
    assert suspicion.connected() is (Course.ALONE if alone else Course.FREELY)
    assert suspicion.ends(one) == (3 if alone else 2)


def test_ends_that_have_another_reason_do_not_count() -> None:
    suspicion: Suspicion[Message] = made()
    one = Message("one")
    for _ in range(100):
        assert suspicion.connected() is Course.FREELY
        suspicion.ended([one], Blame.NONE, 0.01)


def test_what_its_sender_gave_up_is_not_refused() -> None:
    suspicion = suspicion_against(one := Message("one"))
    suspicion.connected()
    suspicion.ended([one], Blame.POSSIBLE, 0.01)
    assert suspicion.connected() is Course.QUIETLY
    one.over = True
    assert suspicion.condemn() is None
    assert suspicion.connected() is Course.FREELY


def test_a_message_that_is_alone_and_gets_no_answer_is_acquitted() -> None:
    suspicion = suspicion_against(Message("one"))
    assert suspicion.connected() is Course.ALONE
    suspicion.acquit()
    assert suspicion.connected() is Course.FREELY


# Against a model of a broker.


@dataclass
class Disturbance:
    """A connection that ends by itself: after so many answers, so blamed, followed by so many
    failed attempts."""

    answers: int
    blame: Blame
    outage: int


@dataclass
class World:
    """A queue of messages and a broker that closes over some of them."""

    messages: list[Message]
    poison: set[str]
    named: bool
    window: int
    disturbances: Iterator[Disturbance | None]
    lasts: float = 0.01
    """Seconds that each connection holds."""
    suspicion: Suspicion[Message] = field(default_factory=made)
    refused: list[Message] = field(default_factory=list)
    confirmed: list[Message] = field(default_factory=list)
    history: list[tuple[list[Message], Blame, Course]] = field(default_factory=list)

    def run(self, most: int) -> None:
        """Connect until everything has its outcome."""
        for _ in range(most):
            if all(message.over for message in self.messages):
                return
            self.connect(next(self.disturbances))

    def connect(self, disturbance: Disturbance | None) -> None:
        course = self.suspicion.connected()
        answers = 0
        while pending := [message for message in self.messages if not message.over]:
            if course in (Course.QUIETLY, Course.REFUSE):
                if disturbance is not None and course is Course.QUIETLY:
                    self.end([], disturbance.blame, disturbance.outage)
                    return
                condemned = self.suspicion.condemn()
                if condemned is not None:
                    assert condemned is pending[0]
                    condemned.over = True
                    self.refused.append(condemned)
                course = self.suspicion.connected()
                continue
            window = 1 if course is Course.ALONE else self.window
            written = pending[:window]
            for place, message in enumerate(written):
                if disturbance is not None and answers >= disturbance.answers:
                    self.end(written[place:], disturbance.blame, disturbance.outage)
                    return
                if message.name in self.poison:
                    blame = Blame.NAMED if self.named else Blame.POSSIBLE
                    self.end(written[place:], blame, 0)
                    return
                message.over = True
                self.confirmed.append(message)
                answers += 1
            if course is Course.ALONE:
                course = self.suspicion.connected()

    def end(self, written: list[Message], blame: Blame, outage: int) -> None:
        self.history.append((written, blame if not outage else Blame.NONE, self.suspicion.course))
        self.suspicion.ended(written, blame, self.lasts)
        for _ in range(outage):
            self.suspicion.unreachable()


def worlds(
    disturbances: st.SearchStrategy[Iterator[Disturbance | None]],
) -> st.SearchStrategy[World]:
    def world(
        poison: list[bool],
        named: bool,
        window: int,
        ends: Iterator[Disturbance | None],
        lasts: float,
    ) -> World:
        messages = [Message(str(number)) for number in range(len(poison))]
        names = {message.name for message, bad in zip(messages, poison, strict=True) if bad}
        return World(messages, names, named, window, ends, lasts)

    return st.builds(
        world,
        st.lists(st.booleans(), min_size=1, max_size=8),
        st.booleans(),
        st.integers(1, 5),
        disturbances,
        st.sampled_from([0.01, 2.0]),
    )


NO_DISTURBANCE = st.builds(lambda: itertools.repeat(None))
FLAPPING = st.builds(
    lambda answers: itertools.repeat(Disturbance(answers, Blame.POSSIBLE, 0)), st.integers(0, 2)
)


def some(one: st.SearchStrategy[Disturbance]) -> st.SearchStrategy[Iterator[Disturbance | None]]:
    """For a while, then no more."""
    return st.lists(st.one_of(st.none(), one), max_size=30).map(
        lambda ends: itertools.chain(ends, itertools.repeat(None))
    )


OUTAGES = some(
    st.one_of(
        st.builds(Disturbance, st.integers(0, 5), st.just(Blame.NONE), st.integers(0, 2)),
        st.builds(Disturbance, st.integers(0, 5), st.just(Blame.POSSIBLE), st.integers(1, 2)),
    )
)
ANYTHING = some(
    st.builds(Disturbance, st.integers(0, 5), st.sampled_from(list(Blame)), st.integers(0, 2))
)


@given(worlds(st.one_of(NO_DISTURBANCE, OUTAGES)))
def test_exactly_what_the_broker_closes_over_is_refused_whatever_outages_there_are(
    world: World,
) -> None:
    world.run(200)
    assert {message.name for message in world.refused} == world.poison
    assert all(message.over for message in world.messages)
    names = [message.name for message in world.confirmed]
    assert names == sorted(names), "in order"


@given(worlds(FLAPPING))
def test_a_broker_that_closes_every_connection_makes_nothing_be_refused(world: World) -> None:
    world.run(200)
    expected = world.poison if world.named else set()
    assert {message.name for message in world.refused} <= expected


@given(worlds(ANYTHING))
def test_whatever_happens_a_refused_message_was_there_at_three_ends_and_alone_at_the_fourth(
    world: World,
) -> None:
    world.run(500)
    assert all(message.over for message in world.messages), "it goes on"
    for message in world.refused:
        counted = [
            course
            for written, blame, course in world.history
            if message in written and blame is not Blame.NONE
        ]
        assert len(counted) >= 4
        assert counted[-1] is Course.ALONE
