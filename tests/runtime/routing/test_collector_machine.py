"""The collector of batches, against a plain list and a clock."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from spa_dat.actors import Overflow
from spa_dat.errors import MailboxFull
from spa_dat.runtime.routing._batch_collector import BatchCollector
from spa_dat.transports import Delivery, Envelope
from support.machine import VirtualMachine, machine_case, step

SIZE = 6
SECONDS = 2.5
CAPACITY = 8
KINDS = st.sampled_from([0, 0, 0, 1])
SEVERAL = st.lists(KINDS, max_size=7)


class CollectorMachine(VirtualMachine):
    """Routers put in and take out, an actor takes batches, time goes by."""

    overflow = Overflow.REFUSE

    @initialize()
    @step
    async def begin(self) -> None:
        self.called = 0
        by_key = self.overflow is Overflow.LATEST_BY_KEY
        self.collector = BatchCollector(
            SIZE,
            SECONDS,
            self.ready,
            capacity=CAPACITY,
            overflow=self.overflow,
            key=(lambda item: item.envelope.key) if by_key else None,
        )
        self.dropped: list[Any] = []
        self.collector.on_drop = self.dropped.append
        self.waiting: list[Delivery] = []
        self.since = 0.0
        self.told = False
        self.calls = 0
        self.flushing = False
        self.routes = [SimpleNamespace(router=None, handler=handler) for handler in (0, 1)]
        self.kept_keys: list[Delivery] = []

    def ready(self) -> None:
        self.called += 1

    def new(self, kind: int, key: str = "p") -> Delivery:
        if not self.waiting:
            self.since = self.loop.time()
        return Delivery(Envelope(topic="n", key=key), token=kind, route=self.routes[kind])

    def is_complete(self) -> bool:
        """Return whether nothing that may come makes the first batch larger."""
        return len(self.waiting) >= SIZE or self.has_another_kind()

    def has_another_kind(self) -> bool:
        return len({delivery.token for delivery in self.waiting}) > 1

    def look(self) -> None:
        """Whenever something has changed, word is due once a batch is due."""
        due = self.flushing or self.is_complete() or self.loop.time() >= self.since + SECONDS
        if self.waiting and due and not self.told:
            self.told = True
            self.calls += 1

    @rule(kind=KINDS, key=st.sampled_from("pq"))
    @step
    async def offer(self, kind: int, key: str) -> None:
        item = self.new(kind, key)
        if self.overflow is Overflow.LATEST_BY_KEY:
            for place, old in enumerate(self.waiting):
                if old in self.kept_keys and old.envelope.key == key:
                    self.waiting[place] = item
                    self.kept_keys.append(item)
                    assert self.collector.offer(item)
                    self.look()
                    return
            self.kept_keys.append(item)
        if len(self.waiting) >= CAPACITY:
            if self.overflow is Overflow.REFUSE:
                with pytest.raises(MailboxFull):
                    self.collector.offer(item)
                return
            del self.waiting[0]
        self.waiting.append(item)
        assert self.collector.offer(item)
        self.look()

    @rule(kinds=SEVERAL, way=st.sampled_from(["force", "force_all", "push_front"]))
    @step
    async def put(self, kinds: list[int], way: str) -> None:
        items = [self.new(kind) for kind in kinds]
        if way == "push_front":
            self.collector.push_front(items)
            self.waiting[:0] = items
            self.look()
        elif way == "force_all":
            self.collector.force_all(items)
            self.waiting += items
            self.look()
        else:
            for item in items:
                self.collector.force(item)
                self.waiting.append(item)
                self.look()

    @rule(kind=KINDS)
    @step
    async def a_router_takes_back(self, kind: int) -> None:
        taken = self.collector.extract(lambda item: item.token == kind)
        assert taken == [item for item in self.waiting if item.token == kind]
        self.waiting = [item for item in self.waiting if item.token != kind]
        self.look()

    @precondition(lambda self: self.told)
    @rule()
    @step
    async def the_actor_takes_a_batch(self) -> None:
        batch = self.collector.take()
        if not batch:
            assert not self.waiting or not (
                self.flushing or self.is_complete() or self.loop.time() >= self.since + SECONDS
            )
            return
        assert len(batch) <= SIZE
        assert batch == self.waiting[: len(batch)], "in order, and nothing is left out"
        assert len({item.token for item in batch}) == 1, "for one handler"
        rest = self.waiting[len(batch) :]
        assert len(batch) == SIZE or not rest or rest[0].token != batch[0].token, "all it can"
        self.waiting = rest

    @precondition(lambda self: self.told)
    @rule()
    @step
    async def the_actor_is_done(self) -> None:
        self.told = False
        self.look()
        self.collector.done()

    @rule(seconds=st.sampled_from([1, 2]))
    @step
    async def time_goes_by(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        self.look()

    @precondition(lambda self: self.calls > 3)
    @rule()
    @step
    async def flush(self) -> None:
        self.flushing = True
        self.collector.flush()
        self.look()

    @invariant()
    def word_came_exactly_when_it_was_time(self) -> None:
        assert self.called == self.calls

    @invariant()
    def nothing_is_lost(self) -> None:
        assert [getattr(entry, "item", entry) for entry in self.collector.items] == self.waiting

    async def finish(self) -> None:
        """Whatever waits comes out, for an actor that does what it is told."""
        for _ in range(60):
            if self.called and self.told:
                while batch := self.collector.take():
                    del self.waiting[: len(batch)]
                self.told = False
                calls = self.called
                self.collector.done()
                self.told = self.called > calls
            elif self.waiting:
                calls = self.called
                await asyncio.sleep(SECONDS)
                self.told = self.called > calls
        assert self.waiting == []


class LatestMachine(CollectorMachine):
    """The same where a newer one takes the place of an older one."""

    overflow = Overflow.LATEST_BY_KEY


class OldestMachine(CollectorMachine):
    """The same where the oldest ones make room."""

    overflow = Overflow.DROP_OLDEST


TestCollector = machine_case(CollectorMachine, tries=50)
TestCollectorOfLatest = machine_case(LatestMachine, tries=15)
TestCollectorThatDrops = machine_case(OldestMachine, tries=15)
