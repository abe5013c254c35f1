"""Deliveries and the tracker, against a model that keeps a plain list."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from spa_dat.transports import Delivery, DeliveryState, Envelope, Tracker
from support.machine import machine_case

QUEUED, RUNNING = DeliveryState.QUEUED, DeliveryState.RUNNING
SETTLED, WITHDRAWN = DeliveryState.SETTLED, DeliveryState.WITHDRAWN

ENVELOPE = Envelope(topic="t")


class TrackerMachine(RuleBasedStateMachine):
    """Registers, starts, settles, withdraws and reconnects in any order.

    ``arrived`` holds the current epoch in order; the model knows for each delivery whether it
    counts as settled, and from that what must have been released.
    """

    @initialize()
    def begin_with_nothing(self) -> None:
        self.released: list[Delivery] = []
        self.tracker = Tracker(self.take)
        self.arrived: list[Delivery] = []
        self.everything: list[Delivery] = []
        self.settled: list[Delivery] = []
        self.heirs: dict[Delivery, Delivery] = {}
        self.left: list[Delivery] = []

    def take(self, free: list[Delivery]) -> None:
        assert free
        self.released += free

    def model_settle(self, delivery: Delivery | None) -> None:
        while delivery is not None and delivery not in self.settled:
            self.settled.append(delivery)
            delivery = self.heirs.get(delivery)

    def unreleased(self) -> list[Delivery]:
        for index, delivery in enumerate(self.arrived):
            if delivery not in self.settled:
                return self.arrived[index:]
        return []

    @rule()
    def register(self) -> None:
        self.arrive()

    def arrive(self) -> Delivery:
        delivery = self.tracker.register(ENVELOPE, len(self.everything))
        self.arrived.append(delivery)
        self.everything.append(delivery)
        assert delivery.state is QUEUED
        assert delivery.epoch == self.tracker.epoch
        return delivery

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        if self.everything:
            delivery = data.draw(st.sampled_from(self.everything))
            before = delivery.state
            assert delivery.start() is (before is QUEUED)
            assert delivery.state is (RUNNING if before is QUEUED else before)

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if self.everything:
            delivery = data.draw(st.sampled_from(self.everything))
            delivery.settle()
            self.model_settle(delivery)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.everything:
            delivery = data.draw(st.sampled_from(self.everything))
            before = delivery.state
            delivery.withdraw()
            assert delivery.state is (SETTLED if before is SETTLED else WITHDRAWN)
            heir = self.heirs.get(delivery)
            if heir is not None and before in (QUEUED, RUNNING):
                assert heir.state in (WITHDRAWN, SETTLED)

    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        if self.everything:
            delivery = data.draw(st.sampled_from(self.everything))
            before = delivery.state
            delivery.requeue()
            assert delivery.state is (QUEUED if before is RUNNING else before)

    @rule()
    def reconnect(self) -> None:
        expected = self.unreleased()
        self.left = self.tracker.begin()
        assert self.left == expected
        self.arrived = []
        self.released = []

    @rule(data=st.data())
    def comes_again(self, data: st.DataObject) -> None:
        """What a transport does with the second receipt of what it knows."""
        candidates = [d for d in self.left if d.state in (RUNNING, SETTLED)]
        if not candidates:
            return
        old = data.draw(st.sampled_from(candidates))
        self.left.remove(old)
        old.attempts += 1
        new = self.arrive()
        self.heirs[old] = new
        if old in self.settled:
            self.model_settle(new)
        old.replaced_by(new)
        assert new.attempts == old.attempts
        assert new.state is (SETTLED if old.state is SETTLED else RUNNING)

    @invariant()
    def released_is_the_longest_settled_prefix(self) -> None:
        rest = self.unreleased()
        assert self.released == self.arrived[: len(self.arrived) - len(rest)]
        assert list(self.tracker.unreleased()) == rest
        assert len(self.tracker) == len(rest)

    @invariant()
    def states_agree(self) -> None:
        for delivery in self.everything:
            assert (delivery.state is SETTLED) is (delivery in self.settled)


TestTrackerMachine = machine_case(TrackerMachine)


def tracked() -> tuple[Tracker, list[list[int]]]:
    released: list[list[int]] = []
    return Tracker(lambda free: released.append([d.token for d in free])), released


def test_release_waits_for_the_oldest_and_then_takes_all_that_is_settled() -> None:
    tracker, released = tracked()
    first, second, third, fourth = (tracker.register(ENVELOPE, n) for n in range(4))
    third.settle()
    second.settle()
    assert released == []
    first.settle()
    assert released == [[0, 1, 2]]
    fourth.settle()
    assert released == [[0, 1, 2], [3]]


def test_settling_twice_releases_once() -> None:
    tracker, released = tracked()
    delivery = tracker.register(ENVELOPE, 7)
    delivery.settle()
    delivery.settle()
    assert released == [[7]]


def test_an_old_epoch_releases_nothing_in_the_new_one() -> None:
    tracker, released = tracked()
    old = tracker.register(ENVELOPE, 1)
    assert tracker.begin() == [old]
    new = tracker.register(ENVELOPE, 1)
    old.settle()
    assert released == []
    new.settle()
    assert released == [[1]]


def test_the_result_of_a_running_handler_counts_for_what_came_again() -> None:
    tracker, released = tracked()
    old = tracker.register(ENVELOPE, 1)
    assert old.start()
    chain = [old]
    for _ in range(3):
        (left,) = tracker.begin()
        again = tracker.register(ENVELOPE, 1)
        left.replaced_by(again)
        assert not again.start()
        chain.append(again)
    old.settle()
    assert released == [[1]]
    assert all(delivery.state is SETTLED for delivery in chain)


def test_giving_up_a_handler_gives_up_the_receipt_that_waited_for_it() -> None:
    tracker, released = tracked()
    old = tracker.register(ENVELOPE, 1)
    old.start()
    tracker.begin()
    again = tracker.register(ENVELOPE, 1)
    old.replaced_by(again)
    old.attempts = 3
    old.withdraw()
    assert again.state is WITHDRAWN
    assert again.attempts == 3
    assert tracker.begin() == [again]
    assert released == []


def test_withdrawing_tells_the_one_who_waits_once() -> None:
    tracker, _ = tracked()
    delivery = tracker.register(ENVELOPE, 1)
    told: list[str] = []
    delivery.on_withdraw = lambda: told.append("told")
    delivery.withdraw()
    delivery.withdraw()
    assert told == ["told"]
    assert not delivery.start()


def test_what_needs_no_acknowledgement_settles_alone() -> None:
    delivery = Delivery(ENVELOPE)
    assert delivery.token == -1
    assert delivery.start()
    delivery.settle()
    assert delivery.state is SETTLED


@pytest.mark.parametrize("state", ["queued", "settled"])
def test_repr_says_where_it_stands(state: str) -> None:
    delivery = Delivery(ENVELOPE, epoch=2, token=5)
    if state == "settled":
        delivery.settle()
    assert repr(delivery) == f"<Delivery 't' token=5 epoch=2 {state}>"


def test_a_delivery_is_acknowledged_when_its_last_receipt_is() -> None:
    tracker, _ = tracked()
    old = tracker.register(ENVELOPE, 1)
    old.start()
    tracker.begin()
    again = tracker.register(ENVELOPE, 1)
    old.replaced_by(again)
    assert not old.acknowledged
    old.settle()
    assert old.acknowledged
    alone = Delivery(ENVELOPE)
    assert not alone.acknowledged
    alone.settle()
    assert alone.acknowledged


def test_the_receiver_hears_which_delivery_everything_waits_for() -> None:
    tracker, released = tracked()
    tracker.fill()
    assert (tracker.next, tracker.newest) == (None, None)
    tracker.begin()
    first, second = tracker.register(ENVELOPE, 1, 10), tracker.register(ENVELOPE, 2, 20)
    told: list[str] = []
    tracker.fill()
    first.on_awaited = lambda: told.append("first")
    second.on_awaited = lambda: told.append("second")
    tracker.fill()
    assert told == ["first"]
    assert (first.awaited, second.awaited) == (True, False)
    assert (tracker.next, tracker.newest) == (first, second)
    second.settle()
    assert tracker.size == 30
    first.settle()
    assert (tracker.size, len(tracker), released) == (0, 0, [[1, 2]])


def test_what_is_never_acknowledged_counts_until_it_is_settled() -> None:
    settled: list[str] = []
    tracker = Tracker(lambda free: None, lambda: settled.append("settled"))
    delivery = tracker.count(ENVELOPE, 10)
    assert (tracker.size, tracker.unreleased()) == (10, ())
    delivery.settle()
    assert (tracker.size, settled) == (0, ["settled"])
