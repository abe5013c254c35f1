"""Settling messages after their posts."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from spa_dat._logs import get_logger
from spa_dat.errors import MessageTooLarge, PublishNotSent, PublishRefused, PublishUnknown
from spa_dat.runtime.handling._settlement import Settlements
from spa_dat.runtime.messaging._turn import Turn
from spa_dat.runtime.routing._routed_deliveries import RoutedDelivery
from spa_dat.transports import Delivery, DeliveryState, Envelope

pytestmark = pytest.mark.virtual


class Desk:
    """Settlements, and what was refused."""

    def __init__(self) -> None:
        self.stats: Counter[str] = Counter()
        self.refused: list[tuple[RoutedDelivery, BaseException]] = []
        self.answered: list[tuple[RoutedDelivery, Turn, BaseException]] = []
        self.may_park = asyncio.Event()
        self.settlements = Settlements(self.stats, self._park, get_logger("spa_dat"), self._answer)

    async def _park(self, delivery: RoutedDelivery, error: BaseException) -> None:
        self.refused.append((delivery, error))
        await self.may_park.wait()
        delivery.settle()

    async def _answer(self, delivery: RoutedDelivery, turn: Turn, error: BaseException) -> None:
        self.answered.append((delivery, turn, error))
        delivery.settle()

    def delivery(self) -> RoutedDelivery:
        delivery: RoutedDelivery = Delivery(Envelope(topic="n"))
        assert delivery.start()
        return delivery

    def turn(self, posts: int, *, request: bool = False) -> Turn:
        envelope = Envelope(topic="n", response_topic="back") if request else None
        turn = Turn("id", "app/0/actor", envelope)
        loop = asyncio.get_running_loop()
        turn.posts.extend(loop.create_future() for _ in range(posts))
        return turn


async def turns() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_message_is_settled_with_its_last_post() -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(3)
    await desk.settlements.settle_after(delivery, turn)
    states = []
    for post in turn.posts[::-1]:
        await turns()
        states.append((delivery.state, len(desk.settlements)))
        post.set_result(None)
    await turns()
    states.append((delivery.state, len(desk.settlements)))
    assert states == [(DeliveryState.RUNNING, 1)] * 3 + [(DeliveryState.SETTLED, 0)]


async def test_posts_that_are_confirmed_already_make_nobody_wait() -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(2)
    for post in turn.posts:
        post.set_result(None)
    await desk.settlements.settle_after(delivery, turn)
    assert delivery.state is DeliveryState.SETTLED


@pytest.mark.parametrize("before", [True, False])
async def test_a_refused_post_leads_to_a_dead_letter(before: bool) -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(2)
    error = PublishRefused("no")
    if before:
        turn.posts[0].set_exception(error)
        turn.posts[1].set_result(None)
    await desk.settlements.settle_after(delivery, turn)
    if not before:
        turn.posts[0].set_exception(error)
        await turns()
        assert desk.refused == []
        turn.posts[1].set_result(None)
    await turns()
    assert desk.refused == [(delivery, error)]
    assert len(desk.settlements) == 1
    drained = asyncio.ensure_future(desk.settlements.drain())
    await turns()
    assert not drained.done()
    desk.may_park.set()
    await drained
    assert delivery.state is DeliveryState.SETTLED


@pytest.mark.parametrize("error", [PublishNotSent("closed"), PublishUnknown("closed"), None])
async def test_a_post_without_an_outcome_leaves_the_message_to_the_bus(
    error: Exception | None,
) -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(1)
    await desk.settlements.settle_after(delivery, turn)
    if error is None:
        turn.posts[0].cancel()
    else:
        turn.posts[0].set_exception(error)
    await desk.settlements.drain()
    assert delivery.state is DeliveryState.RUNNING
    assert desk.refused == []
    assert desk.stats["posts.unconfirmed"] == 1


async def test_a_post_that_was_cancelled_before_is_no_failure_of_the_settlement() -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(1)
    turn.posts[0].cancel()
    await desk.settlements.settle_after(delivery, turn)
    await desk.settlements.drain()
    assert delivery.state is DeliveryState.RUNNING


@pytest.mark.parametrize("first", [0, 1], ids=["before", "after"])
async def test_a_missing_outcome_counts_more_than_a_refusal(first: int) -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(2)
    await desk.settlements.settle_after(delivery, turn)
    errors = [PublishUnknown("closed"), PublishRefused("no")]
    for post, error in zip(turn.posts, errors[:: 1 - 2 * first], strict=True):
        post.set_exception(error)
    await desk.settlements.drain()
    assert desk.refused == []
    assert delivery.state is DeliveryState.RUNNING


async def test_a_refused_reply_is_final() -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(1, request=True)
    await desk.settlements.settle_after(delivery, turn)
    turn.posts[0].set_exception(PublishRefused("no"))
    await desk.settlements.drain()
    assert delivery.state is DeliveryState.SETTLED
    assert desk.stats["replies.refused"] == 1
    assert desk.refused == []


async def test_the_actor_waits_when_very_many_messages_are_unconfirmed() -> None:
    desk = Desk()
    waiting = [desk.turn(1) for _ in range(1000)]
    for turn in waiting[:-1]:
        await desk.settlements.settle_after(desk.delivery(), turn)
    last = asyncio.ensure_future(desk.settlements.settle_after(desk.delivery(), waiting[-1]))
    await turns()
    assert not last.done()
    waiting[500].posts[0].set_result(None)
    await last
    assert len(desk.settlements) == 999
    for turn in waiting:
        if not turn.posts[0].done():
            turn.posts[0].set_result(None)
    await desk.settlements.drain()


@pytest.mark.parametrize("large", [True, False])
async def test_only_a_reply_that_is_too_large_is_answered_otherwise(large: bool) -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(1, request=True)
    (turn.reply,) = turn.posts
    await desk.settlements.settle_after(delivery, turn)
    error = MessageTooLarge("too large") if large else PublishRefused("no")
    turn.reply.set_exception(error)
    await desk.settlements.drain()
    assert delivery.state is DeliveryState.SETTLED
    assert desk.answered == ([(delivery, turn, error)] if large else [])
    assert desk.stats["replies.refused"] == 1


async def test_a_reply_that_was_cancelled_is_not_answered_otherwise() -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(2, request=True)
    turn.reply = turn.posts[0]
    await desk.settlements.settle_after(delivery, turn)
    turn.reply.cancel()
    turn.posts[1].set_exception(PublishRefused("no"))
    await turns()
    assert desk.answered == []


async def test_who_stops_waiting_for_settlements_keeps_nobody_else_waiting() -> None:
    desk = Desk()
    delivery, turn = desk.delivery(), desk.turn(1)
    await desk.settlements.settle_after(delivery, turn)
    waits, cancelled = (asyncio.create_task(desk.settlements.drain()) for _ in range(2))
    await turns()
    cancelled.cancel()
    turn.posts[0].set_result(None)
    await waits
    assert delivery.state is DeliveryState.SETTLED


async def test_the_messages_of_a_batch_are_settled_with_its_last_post() -> None:
    desk = Desk()
    batch, turn = [desk.delivery(), desk.delivery()], desk.turn(1)
    await desk.settlements.settle_all_after(batch, turn)
    turn.posts[0].set_result(None)
    await desk.settlements.drain()
    assert {delivery.state for delivery in batch} == {DeliveryState.SETTLED}
