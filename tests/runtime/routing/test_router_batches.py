"""The router with deliveries put into its hands: many at once, and shared ones at a rebalance."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from spa_dat.actors import Mailbox, Overflow
from spa_dat.runtime.options._actor_options import ActorOptions
from spa_dat.runtime.routing._routed_deliveries import Route
from spa_dat.runtime.routing._router import Router
from spa_dat.transports import Delivery, DeliveryState, Envelope, TopicFilter, Tracker


class Actor:
    """An actor, as routers see it: it never works anything off."""

    def __init__(self, **options: object) -> None:
        self.actor_name = "actor"
        self.options = ActorOptions(**options)  # type: ignore[arg-type]
        self.mailbox = Mailbox(self.options.mailbox, self.options.overflow)
        self.refused: list[str] = []

    def interrupt(self, router: Router) -> None:
        """It has no waits."""

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """It refuses requests that say so."""
        if envelope.payload != b"refused":
            return False
        self.refused.append(envelope.topic)
        return True

    def dropped(self, item: Delivery) -> None:
        """It counts nothing."""
        item.settle()

    @property
    def payloads(self) -> list[str]:
        return [item.envelope.payload.decode() for item in self.mailbox.items]


def router_of(*actors: Actor, pattern: str = "a/#") -> Router:
    router = Router("subscription", Counter())
    for actor in actors:
        router.add(Route(router, actor, 0, TopicFilter.parse(pattern)))
    return router


class Source:
    """Deliveries in the order of their offsets, and what of them was released."""

    def __init__(self) -> None:
        self.released: list[int] = []
        self.tracker = Tracker(lambda free: self.released.extend(each.token for each in free))

    def make(self, *payloads: str, topic: str = "a/b", **fields: object) -> list[Delivery]:
        return [
            self.tracker.register(
                Envelope(topic=topic, payload=payload.encode(), **fields),  # type: ignore[arg-type]
                int(payload) if payload.isdigit() else 0,
            )
            for payload in payloads
        ]


def test_what_one_actor_gets_all_of_goes_right_into_its_mailbox() -> None:
    actor, source = Actor(), Source()
    router = router_of(actor)
    router.deliver_all(source.make("1", "2", "3"))
    assert actor.payloads == ["1", "2", "3"]
    assert all(item.route.target is actor for item in actor.mailbox.items)
    assert not router.inbox.items


def test_order_holds_behind_what_waits_in_the_router() -> None:
    actor, source = Actor(), Source()
    router = router_of(actor)
    (first,) = source.make("1")
    router.inbox.force(first)
    router.deliver_all(source.make("2", "3"))
    router.deliver(*source.make("4"))
    assert not actor.payloads
    assert [item.envelope.payload for item in router.inbox.items] == [b"1", b"2", b"3", b"4"]


def test_what_arrives_alone_goes_right_into_the_mailbox_too() -> None:
    actor, source = Actor(), Source()
    router = router_of(actor)
    for delivery in source.make("1", "2"):
        router.deliver(delivery)
    assert actor.payloads == ["1", "2"]
    assert not router.inbox.items


def test_requests_among_many_are_checked_and_keep_their_place() -> None:
    actor, source = Actor(), Source()
    router = router_of(actor)
    before = source.make("1")
    request = source.make("2", response_topic="answers", expiry=5.0)
    refused = source.make("refused", response_topic="answers")
    after = source.make("3")

    async def deliver() -> None:
        router.deliver_all([*before, *request, *refused, *after])

    asyncio.run(deliver())
    assert actor.payloads == ["1", "2", "3"]
    assert actor.refused == ["a/b"]
    assert refused[0].state is DeliveryState.SETTLED
    assert request[0].deadline is not None


def test_requests_wake_their_actor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, source = Actor(), Source()
    router = router_of(actor)
    woken: list[int] = []
    monkeypatch.setattr(Mailbox, "wake", lambda self: woken.append(len(self.items)))
    router.deliver_all(source.make("1", "2", "3", response_topic="answers"))
    assert woken == [3]


def test_topics_that_nobody_wants_are_settled_among_many() -> None:
    actor, source = Actor(), Source()
    router = router_of(actor)
    router.deliver_all([*source.make("1"), *source.make("2", topic="b"), *source.make("3")])
    assert actor.payloads == ["1", "3"]
    assert source.tracker.unreleased()[1].state is DeliveryState.SETTLED


@pytest.mark.parametrize("state", ["held", "stopped"])
def test_many_that_arrive_while_nothing_may_start_wait(state: str) -> None:
    actor, source = Actor(), Source()
    router = router_of(actor)
    if state == "held":
        router.hold()
    else:
        router.stop_intake()
    router.deliver_all(source.make("1", "2"))
    assert not actor.payloads
    assert len(router.inbox.items) == 2


def test_many_without_acknowledgement_obey_the_mailbox() -> None:
    actor = Actor(mailbox=2)
    router = router_of(actor)
    envelopes = [Envelope(topic="a/b", payload=b"%d" % number) for number in range(4)]
    router.deliver_all([Delivery(envelope) for envelope in envelopes])
    # They go through the router's own mailbox, which knows of the policy.
    assert not actor.payloads
    assert len(router.inbox.items) == 4


def test_another_policy_is_kept_for_many() -> None:
    actor = Actor(mailbox=2, overflow=Overflow.DROP_OLDEST)
    router, source = router_of(actor), Source()
    router.deliver_all(source.make("1", "2", "3"))
    assert not actor.payloads
    assert len(router.inbox.items) == 3


async def test_shared_deliveries_that_nobody_has_begun_are_given_back_whole() -> None:
    fast, slow, source = Actor(), Actor(), Source()
    router = router_of(fast, slow)
    deliveries = source.make("1", "2")
    for delivery in deliveries:
        await router.route(delivery)
    assert fast.payloads == slow.payloads == ["1", "2"]
    assert all(delivery.state is DeliveryState.RUNNING for delivery in deliveries)
    router.hold()
    assert not fast.payloads
    assert not slow.payloads
    # Nothing runs, so whoever waits for what runs has nothing to wait for.
    assert all(delivery.state is DeliveryState.QUEUED for delivery in deliveries)
    router.resume(redelivered=True)
    assert all(delivery.state is DeliveryState.WITHDRAWN for delivery in deliveries)


async def test_shared_deliveries_that_somebody_has_begun_are_finished_by_the_others() -> None:
    fast, slow, source = Actor(), Actor(), Source()
    router = router_of(fast, slow)
    begun, waiting = source.make("1", "2")
    for delivery in (begun, waiting):
        await router.route(delivery)
    part = fast.mailbox.get_nowait()
    assert part.start()
    part.settle()
    router.hold()
    assert slow.payloads == ["1"]
    assert begun.state is DeliveryState.RUNNING
    assert waiting.state is DeliveryState.QUEUED
    other = slow.mailbox.get_nowait()
    assert other.start()
    other.settle()
    assert source.released == [1]


async def test_shared_deliveries_that_do_not_come_again_are_routed_anew_in_order() -> None:
    fast, slow, source = Actor(), Actor(), Source()
    router = router_of(fast, slow)
    for delivery in source.make("1", "2"):
        await router.route(delivery)
    router.deliver(source.make("3")[0])
    router.hold()
    router.resume(redelivered=False)
    while router.inbox.items:
        await router.route(router.inbox.get_nowait())
    assert fast.payloads == slow.payloads == ["1", "2", "3"]


async def test_a_shared_last_copy_is_worked_off_although_the_router_has_stopped() -> None:
    fast, slow, source = Actor(), Actor(), Source()
    router = router_of(fast, slow)
    (delivery,) = source.make("1")
    router.deliver(delivery)
    router.hold()
    # The bus has forgotten it.
    router.resume(redelivered=False)
    router.stop_intake()
    router.hold()
    router.resume(redelivered=True)
    while router.inbox.items:
        await router.route(router.inbox.get_nowait())
    assert fast.payloads == slow.payloads == ["1"]
