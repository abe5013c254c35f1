"""What comes again on MQTT, from a broker that reuses packet ids and misses acknowledgements."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from spa_dat.transports import Delivery, DeliveryState, Envelope, Tracker
from spa_dat.transports.mqtt._overlapping_filters import CopyGuard
from spa_dat.transports.mqtt._redelivery import Redelivery
from support.machine import machine_case

PACKET_IDS = 4


@dataclass(eq=False)
class Stored:
    """A message as the broker keeps it, and what the model knows of it."""

    envelope: Envelope
    failures: int = 0
    finished: int = 0
    acknowledgement_lost: bool = False
    deliveries: list[Delivery] = field(default_factory=list)


class RedeliveryMachine(RuleBasedStateMachine):
    """A tracker and its redelivery as a consumer has them, handlers, and the broker's session.

    Many messages have the same content, and some no id: only the broker can tell them apart.
    """

    @initialize()
    def begin(self) -> None:
        self.tracker = Tracker(self.release)
        self.redelivery = Redelivery(window=10)
        self.connected = True
        self.count = 0
        self.pending: list[Stored] = []
        self.again: list[int] = []
        self.in_flight: dict[int, Stored] = {}
        self.under_way: list[tuple[int, Stored]] = []
        self.waiting: list[tuple[Delivery, Stored]] = []
        self.running: list[tuple[Delivery, Stored]] = []
        self.seen: set[int] = set()
        self.copies: list[tuple[Stored, int, bool]] = []

    # The consumer.

    def receive(self, stored: Stored, packet_id: int, *, duplicate: bool) -> None:
        self.copies_come()
        envelope = msgspec.structs.replace(stored.envelope, redelivered=duplicate)
        assert not self.redelivery.is_copy(envelope, packet_id, 1)
        self.seen.add(packet_id)
        delivery = self.tracker.register(envelope, packet_id, 1)
        self.redelivery.arrived(delivery)
        stored.deliveries.append(delivery)
        if self.redelivery.active:
            if not duplicate:
                self.redelivery.over()
            elif self.redelivery.resolve(delivery):
                return
        assert delivery.attempts == stored.failures, "what has failed before is not forgotten"
        self.waiting.append((delivery, stored))

    def release(self, free: list[Delivery]) -> None:
        assert self.connected
        tokens = self.redelivery.acknowledged(free)
        assert tokens == [delivery.token for delivery in free]
        for delivery in free:
            (stored,) = (one for one in self.in_flight.values() if delivery in one.deliveries)
            assert self.in_flight[delivery.token] is stored
            assert stored.finished, "acknowledged before its handler was done"
            self.under_way.append((delivery.token, stored))

    # The broker.

    @rule(content=st.sampled_from([b"x", b"x", b"y"]), with_id=st.booleans())
    def publish(self, content: bytes, with_id: bool) -> None:
        self.count += 1
        identifier = str(self.count) if with_id else None
        envelope = Envelope(topic="t", payload=content, id=identifier, time=1.0)
        self.pending.append(Stored(envelope))

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), is_lost=st.booleans())
    def the_broker_sends(self, data: st.DataObject, is_lost: bool) -> None:
        """What comes again goes first. A packet may be on its way when the connection is lost."""
        if self.again:
            packet_id = self.again.pop(0)
            if not is_lost:
                self.receive(self.in_flight[packet_id], packet_id, duplicate=True)
            return self.cut(is_lost)
        free = [number for number in range(1, PACKET_IDS + 1) if number not in self.in_flight]
        if self.pending and free:
            stored = self.pending.pop(0)
            packet_id = data.draw(st.sampled_from(free))
            self.in_flight[packet_id] = stored
            if not is_lost:
                self.receive(stored, packet_id, duplicate=False)
            return self.cut(is_lost)
        return None

    @rule(count=st.integers(1, 4))
    def acknowledgements_arrive(self, count: int) -> None:
        for packet_id, stored in self.under_way[:count]:
            assert self.in_flight.pop(packet_id) is stored
            self.seen.discard(packet_id)
        del self.under_way[:count]

    @precondition(lambda self: self.connected and self.seen)
    @rule(data=st.data(), marked=st.booleans())
    def the_broker_sends_again_on_the_same_connection(
        self, data: st.DataObject, marked: bool
    ) -> None:
        """It has no acknowledgement yet; one may be under way, and the copy too."""
        packet_id = data.draw(st.sampled_from(sorted(self.seen)))
        is_acknowledged = any(packet_id == one for one, _ in self.under_way)
        self.copies.append((self.in_flight[packet_id], packet_id, marked or is_acknowledged))

    @rule()
    def copies_come(self) -> None:
        """Before whatever the broker sends after them."""
        for stored, packet_id, marked in self.copies:
            marked = marked or all(packet_id != one.token for one in self.tracker.unreleased())
            envelope = msgspec.structs.replace(stored.envelope, redelivered=marked)
            assert self.redelivery.is_copy(envelope, packet_id, 1)
        self.copies.clear()

    def cut(self, is_lost: bool) -> None:
        if is_lost:
            self.connection_is_lost()

    @precondition(lambda self: self.connected)
    @rule()
    def connection_is_lost(self) -> None:
        self.connected = False
        self.seen.clear()
        self.copies.clear()
        for _, stored in self.under_way:
            stored.acknowledgement_lost = True
        self.under_way.clear()
        self.redelivery.connection_lost(self.tracker.begin())

    @precondition(lambda self: not self.connected)
    @rule(kept=st.sampled_from([True, True, True, False]))
    def connection_is_back(self, kept: bool) -> None:
        self.connected = True
        if kept:
            self.again = list(self.in_flight)
            for delivery, _ in self.waiting:
                delivery.withdraw()
            self.waiting.clear()
        else:
            self.redelivery.session_lost()
            self.in_flight.clear()
            self.pending.clear()
            self.again.clear()

    # The handlers.

    @precondition(lambda self: self.connected)
    @rule(place=st.integers(0, 3))
    def start(self, place: int) -> None:
        if place < len(self.waiting):
            delivery, stored = self.waiting.pop(place)
            assert delivery.start()
            self.running.append((delivery, stored))

    @rule(data=st.data())
    def finish_one(self, data: st.DataObject) -> None:
        if self.running:
            delivery, stored = data.draw(st.sampled_from(self.running))
            self.running.remove((delivery, stored))
            stored.finished += 1
            delivery.settle()

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """To be tried again: in place, or later when the connection is gone."""
        if self.running:
            delivery, stored = data.draw(st.sampled_from(self.running))
            stored.failures += 1
            delivery.attempts += 1
            if not self.connected:
                self.running.remove((delivery, stored))
                delivery.requeue()
                self.waiting.append((delivery, stored))

    # What holds after each of them.

    @invariant()
    def nothing_is_handled_twice(self) -> None:
        """But for what has no id and whose acknowledgement was lost."""
        for stored in self.in_flight.values():
            at_work = sum(stored is one for _, one in self.waiting + self.running)
            if stored.envelope.id is not None or not stored.acknowledgement_lost:
                assert stored.finished + at_work <= 1

    def teardown(self) -> None:
        """With a connection that holds everything is acknowledged in the end."""
        if not self.connected:
            self.connection_is_back(kept=True)
        while self.again:
            packet_id = self.again.pop(0)
            self.receive(self.in_flight[packet_id], packet_id, duplicate=True)
        left = list(self.in_flight.values())
        while self.waiting:
            self.start(0)
        while self.running:
            delivery, stored = self.running.pop(0)
            stored.finished += 1
            delivery.settle()
        self.nothing_is_handled_twice()
        self.acknowledgements_arrive(len(self.under_way))
        assert self.in_flight == {}
        assert len(self.tracker) == 0
        assert all(stored.finished for stored in left)
        for stored in left:
            assert stored.deliveries[-1].state is DeliveryState.SETTLED


class CopyMachine(RuleBasedStateMachine):
    """Messages that come once for each of several subscriptions, whole or in part, equal or not.

    The broker sends the copies of one message one after the other.
    """

    @initialize()
    def begin(self) -> None:
        self.guard = CopyGuard()
        self.guard.watch(("a/#", "a/+", "b"))
        self.subscriptions = tuple(map(self.guard.identifier, self.guard.filters))

    @invariant()
    def those_that_overlap_have_identifiers(self) -> None:
        assert self.guard.filters == ("a/#", "a/+")
        assert self.guard.identifier("b") == 0
        assert len(set(self.subscriptions)) == 2
        assert 0 not in self.subscriptions

    @rule(payload=st.sampled_from([b"x", b"y"]), retained=st.booleans(), turned=st.booleans())
    def a_message_comes_in_copies(self, payload: bytes, retained: bool, turned: bool) -> None:
        envelope = Envelope(topic="a/1", payload=payload, retain=retained)
        order = self.subscriptions[::-1] if turned else self.subscriptions
        copies = [self.guard.is_copy(envelope, (identifier,)) for identifier in order]
        assert copies == [False, True]

    @rule(payload=st.sampled_from([b"x", b"y"]), retained=st.booleans())
    def a_message_comes_once(self, payload: bytes, retained: bool) -> None:
        """With the identifiers of all subscriptions."""
        envelope = Envelope(topic="a/1", payload=payload, retain=retained)
        assert not self.guard.is_copy(envelope, self.subscriptions)

    @rule()
    def the_connection_changes(self) -> None:
        self.guard.forget()


TestRedelivery = machine_case(RedeliveryMachine, tries=60, steps=50)
TestCopies = machine_case(CopyMachine, tries=20, steps=20)
