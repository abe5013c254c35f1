"""What is noted of messages that were committed: each output once, and acknowledgements."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from spa_dat._environment import Environment
from spa_dat.errors import NotAuthorised, OutboxFull
from spa_dat.harness.world._memory_states import MemoryStates
from spa_dat.runtime.diagnostics._unclean_stop import GivenUp
from spa_dat.runtime.hosting._committed_messages import CommittedMessages, left_of
from spa_dat.runtime.hosting._durable_states import DurableStates
from spa_dat.transports import Delivery, Envelope, Outbox, OutboxEntry, Tracker
from spa_dat.transports._state_store import Change, Handled

OUTPUTS = tuple(Envelope(topic="out", payload=b"%d" % n, id=str(n)) for n in range(3))


class Posts:
    """Takes posts, and has no room for more than so many."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.posted: list[tuple[str | None, asyncio.Future[None]]] = []

    def __call__(self, envelope: Envelope) -> asyncio.Future[None]:
        if len(self.posted) >= self.most:
            raise OutboxFull("full")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.posted.append((envelope.id, future))
        return future

    @property
    def ids(self) -> list[str | None]:
        return [id for id, _ in self.posted]


def delivered(tracker: Tracker, number: int) -> Delivery:
    delivery = tracker.register(Envelope(topic="in", id=str(number)), number)
    assert delivery.start()
    return delivery


async def test_what_is_on_its_way_is_posted_once_and_what_has_failed_again() -> None:
    committed, posts = CommittedMessages(), Posts(2)
    with pytest.raises(OutboxFull):
        committed.outputs_of(1, OUTPUTS).post(posts)
    posts.most = 100
    committed.outputs_of(1, OUTPUTS).post(posts)
    assert posts.ids == ["0", "1", "2"]
    posts.posted[0][1].set_result(None)
    posts.posted[1][1].set_exception(OutboxFull("closed"))
    outputs = committed.outputs_of(1, OUTPUTS)
    assert outputs.pending == [posts.posted[2][1]]
    outputs.post(posts)
    assert posts.ids == ["0", "1", "2", "1"]
    assert not outputs.confirmed
    for _, future in posts.posted[2:]:
        future.set_result(None)
    assert outputs.confirmed
    committed.watch(1, None)
    assert committed.take() == ([1], [])
    committed.noted([1])
    committed.outputs_of(1, OUTPUTS).post(posts)
    assert len(posts.posted) == 7


async def test_only_what_the_bus_was_told_of_counts_as_acknowledged() -> None:
    told: list[Delivery] = []
    tracker, committed = Tracker(told.extend), CommittedMessages()
    deliveries = [delivered(tracker, number) for number in range(5_000)]
    posts = Posts()
    for number, delivery in enumerate(deliveries[1:], 1):
        if number == 1:
            committed.outputs_of(number, OUTPUTS).post(posts)
            for _, future in posts.posted:
                future.set_result(None)
        committed.watch(number, delivery)
        delivery.settle()
    # The first one holds up the acknowledgements of all others.
    assert committed.take() == ([1], [])
    assert committed.take() == ([], [])
    committed.watch(0, deliveries[0])
    deliveries[0].settle()
    sent, acknowledged = committed.take()
    assert not sent
    assert sorted(acknowledged) == list(range(5_000))
    committed.give_back([], acknowledged)
    assert committed.take() == ([], acknowledged)


async def test_a_message_that_is_held_up_keeps_no_others() -> None:
    tracker, committed = Tracker(lambda deliveries: None), CommittedMessages()
    other = Tracker(lambda deliveries: None)
    committed.watch(0, delivered(tracker, 0))
    for number in range(1, 2_000):
        delivery = delivered(other, number)
        committed.watch(number, delivery)
        delivery.settle()
    _, acknowledged = committed.take()
    assert acknowledged == list(range(1, 2_000))


async def test_a_message_that_comes_again_is_acknowledged_by_its_later_receipt() -> None:
    tracker, committed = Tracker(lambda deliveries: None), CommittedMessages()
    blocking, first = delivered(tracker, 1), delivered(tracker, 2)
    committed.watch(7, first)
    first.settle()
    assert committed.take() == ([], [])
    tracker.begin()
    blocking.settle()
    assert committed.take() == ([], [])
    again = tracker.register(first.envelope, 3)
    first.replaced_by(again)
    assert committed.take() == ([], [7])


async def test_outputs_of_a_message_that_was_taken_back_are_noted_when_they_are_sent() -> None:
    committed, posts = CommittedMessages(), Posts()
    committed.outputs_of(1, OUTPUTS).post(posts)
    delivery = delivered(Tracker(lambda deliveries: None), 1)
    committed.watch(1, delivery)
    delivery.withdraw()
    assert committed.take() == ([], [])
    for _, future in posts.posted:
        future.set_result(None)
    assert committed.take() == ([1], [])


def test_what_is_left_of_an_expiry_goes_on() -> None:
    outputs = tuple(Envelope(topic="t", expiry=expiry) for expiry in (None, 5.0, 20.0))
    handled = Handled(1, "a", 100.0, outputs)
    assert [one.expiry for one in left_of(handled, 110.0)] == [None, 10.0]
    # The clock was put back.
    assert [one.expiry for one in left_of(handled, 50.0)] == [None, 5.0, 20.0]


class SmallBus:
    """A bus with room for few messages, which are confirmed a little later."""

    def __init__(self) -> None:
        self.got: list[Envelope] = []
        self._outbox = Outbox(self._write, capacity=4)
        self._outbox.connected()
        self.post = self._outbox.submit
        self.room = self._outbox.room

    def _write(self, entry: OutboxEntry) -> None:
        if entry.envelope.topic == "refused":
            self._outbox.fail(entry, NotAuthorised("not you"))
            return
        self.got.append(entry.envelope)
        asyncio.get_running_loop().call_later(1.0, self._outbox.confirm, entry)


@pytest.mark.virtual
async def test_a_start_sends_more_than_the_bus_has_room_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outputs = tuple(Envelope(topic="out", id=str(n)) for n in range(100))
    outputs = (*outputs, Envelope(topic="refused"), Envelope(topic="late", expiry=0.0))
    store = MemoryStates()
    for message in ((outputs), (Envelope(topic="out", id="100"),)):
        store.commit([Change("a", "k", 0, None, None, message, 0.0)], ())
    bus, stats, failed = SmallBus(), Counter[str](), list[BaseException]()
    connection: Any = SimpleNamespace(bus=bus, surroundings=SimpleNamespace(stats=stats))
    states = DurableStates(lambda: store, Environment(), failed.append, inline=True)
    await states.open({"a": connection})
    await asyncio.sleep(10)
    assert [envelope.id for envelope in bus.got] == [str(n) for n in range(101)]
    assert stats["publishes.expired"] == 1
    assert "was not sent: not you" in caplog.text
    await states.close(5.0, GivenUp("app", stats))
    # What was refused is tried again.
    assert [handled.number for handled in store.unsent()] == [1]
    assert not failed
