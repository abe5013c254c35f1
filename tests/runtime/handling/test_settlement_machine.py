"""Settling after posts, against a model of what is confirmed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from spa_dat._logs import get_logger
from spa_dat.errors import PublishNotSent, PublishRefused, PublishUnknown
from spa_dat.runtime.handling import _settlement
from spa_dat.runtime.handling._settlement import Settlements
from spa_dat.runtime.messaging._turn import Turn
from spa_dat.runtime.routing._routed_deliveries import RoutedDelivery
from spa_dat.transports import Delivery, DeliveryState, Envelope
from support.machine import VirtualMachine, machine_case, step

MOST_OPEN = 3
OUTCOMES = st.sampled_from(
    ["confirmed", "refused", "confirmed", "not sent", "unknown", "cancelled"]
)


@pytest.fixture(autouse=True, scope="module")
def _few_open_ones() -> Iterator[None]:
    with mock.patch.object(_settlement, "_MOST_OPEN", MOST_OPEN):
        yield


@dataclass
class Handled:
    """What the model knows of the messages of one turn."""

    deliveries: list[RoutedDelivery]
    posts: list[asyncio.Future[None]]
    is_request: bool
    outcomes: list[str] = field(default_factory=list)
    parked: int = 0

    @property
    def end(self) -> str | None:
        """What is to become of them, once all posts have their outcome."""
        if len(self.outcomes) < len(self.posts):
            return None
        if any(outcome in ("not sent", "unknown", "cancelled") for outcome in self.outcomes):
            return "left to the bus"
        if "refused" not in self.outcomes or self.is_request:
            return "settled"
        return "parked" if self.parked == len(self.deliveries) else "parking"

    @property
    def is_open(self) -> bool:
        return self.end in (None, "parking")


class SettlementMachine(VirtualMachine):
    """Messages with posts that end in all ways and in any order."""

    @initialize()
    def begin(self) -> None:
        self.stats: Counter[str] = Counter()
        self.gates: dict[RoutedDelivery, asyncio.Event] = {}
        self.settlements = Settlements(self.stats, self.park, get_logger("spa_dat"), self.answer)
        self.handled: list[Handled] = []
        self.handling: asyncio.Task[None] | None = None
        self.drains: list[asyncio.Task[None]] = []

    async def answer(self, delivery: RoutedDelivery, turn: Turn, error: BaseException) -> None:
        raise AssertionError("no reply was too large")

    async def park(self, delivery: RoutedDelivery, error: BaseException) -> None:
        assert isinstance(error, PublishRefused)
        assert delivery not in self.gates, "parked once"
        gate = self.gates[delivery] = asyncio.Event()
        await gate.wait()
        delivery.settle()

    def resolve(self, handled: Handled, post: asyncio.Future[None], outcome: str) -> None:
        handled.outcomes.append(outcome)
        if outcome == "confirmed":
            post.set_result(None)
        elif outcome == "cancelled":
            post.cancel()
        else:
            kinds = {"refused": PublishRefused, "not sent": PublishNotSent}
            post.set_exception(kinds.get(outcome, PublishUnknown)(outcome))

    def still_open(self) -> int:
        return sum(handled.is_open for handled in self.handled)

    @precondition(lambda self: self.handling is None or self.handling.done())
    @rule(
        count=st.integers(1, 3),
        is_request=st.booleans(),
        before=st.lists(st.one_of(st.none(), OUTCOMES), max_size=3),
    )
    @step
    async def handle(self, count: int, is_request: bool, before: list[str | None]) -> None:
        """The next message or batch is handled; some of its posts have their outcome already."""
        request = Envelope(topic="n", response_topic="back") if is_request else None
        deliveries: list[RoutedDelivery] = [
            Delivery(Envelope(topic="n")) for _ in range(1 if is_request else count)
        ]
        assert all(delivery.start() for delivery in deliveries)
        posts: list[asyncio.Future[None]] = [self.loop.create_future() for _ in before]
        handled = Handled(deliveries, posts, is_request)
        for post, outcome in zip(posts, before, strict=True):
            if outcome is not None:
                self.resolve(handled, post, outcome)
        self.handled.append(handled)
        turn = Turn("id", "app/0/actor", request, posts=posts)
        self.handling = self.spawn(self.settlements.settle_all_after(deliveries, turn))
        await self.settle()

    @rule(data=st.data(), outcomes=st.lists(OUTCOMES, min_size=1, max_size=3))
    @step
    async def posts_end(self, data: st.DataObject, outcomes: list[str]) -> None:
        """Several at the same moment."""
        for outcome in outcomes:
            pending = [
                (handled, post)
                for handled in self.handled
                for post in handled.posts
                if not post.done()
            ]
            if pending:
                handled, post = data.draw(st.sampled_from(pending))
                self.resolve(handled, post, outcome)
        await self.settle()

    @rule(data=st.data())
    @step
    async def a_dead_letter_is_stored(self, data: st.DataObject) -> None:
        parking = [handled for handled in self.handled if handled.end == "parking"]
        if parking:
            handled = data.draw(st.sampled_from(parking))
            self.gates[handled.deliveries[handled.parked]].set()
            handled.parked += 1
            await self.settle()

    @rule()
    @step
    async def drain(self) -> None:
        self.drains.append(self.spawn(self.settlements.drain()))
        await self.settle()

    @invariant()
    def settled_is_what_is_safe(self) -> None:
        for handled in self.handled:
            end = handled.end
            for place, delivery in enumerate(handled.deliveries):
                safe = end in ("settled", "parked") or (end == "parking" and place < handled.parked)
                assert (delivery.state is DeliveryState.SETTLED) is safe
                parked = end == "parked" or (end == "parking" and place <= handled.parked)
                assert (delivery in self.gates) is parked, "one dead letter after the other"

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.settlements) == self.still_open()
        left = [handled for handled in self.handled if handled.end == "left to the bus"]
        messages = sum(len(handled.deliveries) for handled in left)
        assert self.stats["posts.unconfirmed"] == self.settlements.unconfirmed == messages
        refused = [one for one in self.handled if one.is_request and "refused" in one.outcomes]
        assert self.stats["replies.refused"] == sum(one.end == "settled" for one in refused)

    @invariant()
    def who_waits_is_let_on_in_time(self) -> None:
        if self.handling is not None:
            assert self.handling.done() is (self.still_open() < MOST_OPEN)
        if self.still_open() == 0:
            assert all(drain.done() for drain in self.drains)
            self.drains.clear()
        assert not any(drain.done() for drain in self.drains)

    async def finish(self) -> None:
        for handled in self.handled:
            for post in handled.posts:
                if not post.done():
                    self.resolve(handled, post, "confirmed")
        await self.settle()
        for _ in range(3):
            for handled in self.handled:
                if handled.end == "parking":
                    self.gates[handled.deliveries[handled.parked]].set()
                    handled.parked += 1
            await self.settle()
        self.settled_is_what_is_safe()
        self.who_waits_is_let_on_in_time()
        assert len(self.settlements) == 0


TestSettlement = machine_case(SettlementMachine)
