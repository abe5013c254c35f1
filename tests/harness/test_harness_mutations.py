"""Known mistakes, made on purpose: the harness finds each of them from a seed, without a broker."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from typing import Any

import pytest

from spa_dat import DistributedApplication, RetryPolicy, Socket
from spa_dat.actors import Mailbox
from spa_dat.errors import ActorStopped, MailboxFull
from spa_dat.runtime.handling._delivery_processor import DeliveryProcessor
from spa_dat.runtime.messaging._requests import Requests
from spa_dat.runtime.routing._routed_deliveries import RoutedDelivery
from spa_dat.runtime.routing._router import Router
from spa_dat.testing import Faults, Harness, explore
from spa_dat.transports import Delivery, Envelope, Tracker
from spa_dat.transports.kafka.consuming._commits import Committer
from spa_dat.transports.kafka.consuming._committable_offsets import PartitionTracker
from spa_dat.transports.memory import Broker, ClientLink, MemoryConsumer
from support.machine import examples

PASSING = examples(60)
FEWER = examples(15)
"""Where each takes longer."""
MUTATED = 1000
NUMBERS = list(range(5))


def application() -> DistributedApplication:
    return DistributedApplication("mqtt://broker", name="app")


def crash_on_kafka(seed: int) -> None:
    """Check that what several lanes are working on when they are killed is handled all the same."""
    app = DistributedApplication("kafka://broker?commit_interval=0.1", name="app")
    chance = random.Random(seed)

    @app.application("in", concurrency=2)
    async def forward(payload: int, socket: Socket) -> None:
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        await socket.publish("out", payload)

    with Harness(app, seed=seed) as harness:
        for number in NUMBERS:
            harness.publish("in", number, key=str(number))
        harness.advance(chance.uniform(0.0, 1.5))
        harness.crash()
        harness.restart()
        harness.settle()
        assert set(harness.published("out")) == set(NUMBERS)


handle = DeliveryProcessor.handle


async def too_early(self: DeliveryProcessor, instance: Any, delivery: RoutedDelivery) -> None:
    copy: RoutedDelivery = Delivery(delivery.envelope, route=delivery.route)
    delivery.settle()
    await handle(self, instance, copy)


def test_acknowledging_before_the_handler_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(seed: int) -> None:
        app = application()

        @app.application("in")
        async def forward(payload: int, socket: Socket) -> None:
            await socket.publish("out", payload)

        with Harness(app, seed=seed, faults=Faults(crash=0.02, reorder=0.5)) as harness:
            for number in NUMBERS:
                harness.publish("in", number)
            harness.settle()
            assert set(harness.published("out")) == set(NUMBERS)

    check(scenario, lambda: monkeypatch.setattr(DeliveryProcessor, "handle", too_early))


def test_committing_before_the_handler_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check(
        crash_on_kafka,
        lambda: monkeypatch.setattr(DeliveryProcessor, "handle", too_early),
        passing=FEWER,
    )


def test_acknowledging_with_an_old_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(seed: int) -> None:
        app = application()

        @app.application("in", concurrency=2)
        async def forward(payload: int, socket: Socket) -> None:
            await asyncio.sleep(1.0)
            await socket.publish("out", payload)

        chance = random.Random(seed)
        with Harness(app, seed=seed, faults=Faults(reorder=0.5)) as harness:
            for number in NUMBERS:
                harness.publish("in", number, key=str(number))
            harness.advance(chance.uniform(0.1, 2.0))
            harness.lose_session("forward")
            harness.advance(0.3)
            later = [number + 10 for number in NUMBERS]
            for number in later:
                harness.publish("in", number, key=str(number))
            harness.advance(chance.uniform(0.1, 2.0))
            harness.crash()
            harness.restart()
            harness.settle()
            assert set(later) <= set(harness.published("out"))

    def settled(self: Tracker, delivery: Delivery) -> None:
        if delivery.epoch != self.epoch:
            self._release([delivery])
        else:
            current(self, delivery)

    current = Tracker.settled
    check(scenario, lambda: monkeypatch.setattr(Tracker, "settled", settled))


def test_dropping_what_finds_the_mailbox_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(seed: int) -> None:
        app = application()

        @app.application("in", mailbox=2)
        async def forward(payload: int, socket: Socket) -> None:
            await socket.publish("out", payload)

        with Harness(app, seed=seed, faults=Faults(delay=0.5)) as harness:
            for number in NUMBERS:
                harness.publish("in", number)
            harness.settle()
            assert set(harness.published("out")) == set(NUMBERS)

    force = Mailbox.force

    def drop(self: Mailbox, item: Any) -> None:
        try:
            self.offer(item)
        except MailboxFull:
            item.settle()
        except ActorStopped:
            force(self, item)

    check(scenario, lambda: monkeypatch.setattr(Mailbox, "force", drop))


def test_not_subscribing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(seed: int) -> None:
        app = application()

        @app.application("in")
        async def forward(payload: int, socket: Socket) -> None:
            await socket.publish("out", payload)

        with Harness(app, seed=seed) as harness:
            harness.lose_session("forward")
            harness.settle()
            harness.publish("in", 1)
            harness.settle()
            assert harness.published("out") == [1]

    connect = MemoryConsumer._connect

    def without_filters(self: MemoryConsumer) -> ClientLink:
        with pytest.MonkeyPatch.context() as patch:
            if self._queue is not None:
                patch.setattr(Broker, "subscribe", lambda *args: None)
            return connect(self)

    check(scenario, lambda: monkeypatch.setattr(MemoryConsumer, "_connect", without_filters))


def test_mixing_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(seed: int) -> None:
        app = application()

        @app.application("in", concurrency=3)
        async def ask(payload: int, socket: Socket) -> None:
            topic = "slow" if payload % 2 else "quick"
            answer = await socket.request(topic, payload, reply=int)
            await socket.publish("out", [payload, answer])

        @app.application("slow")
        async def slow(payload: int) -> int:
            await asyncio.sleep(1.0)
            return 2 * payload

        @app.application("quick")
        async def quick(payload: int) -> int:
            return 2 * payload

        with Harness(app, seed=seed, faults=Faults(delay=0.5)) as harness:
            for number in NUMBERS:
                harness.publish("in", number, key=str(number))
            harness.settle()
            assert sorted(harness.published("out")) == [[n, 2 * n] for n in NUMBERS]

    on_reply = Requests.on_reply

    def to_anybody(self: Requests, correlation: str, envelope: Envelope) -> None:
        on_reply(self, next(iter(self._pending), correlation), envelope)

    check(scenario, lambda: monkeypatch.setattr(Requests, "on_reply", to_anybody))


def test_losing_a_message_whose_retry_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(seed: int) -> None:
        app = application()
        tries: dict[int, int] = {}

        @app.application("in", retry=RetryPolicy(attempts=50, hold=1000.0))
        async def retried(payload: int, socket: Socket) -> None:
            tries[payload] = tries.get(payload, 0) + 1
            if tries[payload] < 3:
                raise OSError("try again")
            await socket.publish("out", payload)

        with Harness(app, seed=seed, faults=Faults(cut=0.02), allow_failures=OSError) as harness:
            for number in NUMBERS:
                harness.publish("in", number)
            harness.settle()
            assert set(harness.published("out")) == set(NUMBERS)

    def forget(self: Router, delivery: Delivery) -> bool:
        delivery.settle()
        return True

    check(scenario, lambda: monkeypatch.setattr(Router, "give_back", forget))


def test_committing_past_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = PartitionTracker.settled

    def past_gaps(self: PartitionTracker, delivery: Delivery) -> None:
        settled(self, delivery)
        if self.commit_at <= delivery.token:
            self.commit_at = delivery.token + 1
            self._assignment.released += 1
            self._assignment.on_release()

    mutate = functools.partial(monkeypatch.setattr, PartitionTracker, "settled", past_gaps)
    check(crash_on_kafka, mutate, passing=FEWER)


def test_committing_what_was_only_handed_out_when_partitions_are_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scenario(seed: int) -> None:
        app = DistributedApplication("kafka://broker?partitions=2", name="app")
        chance = random.Random(seed)

        @app.application("in")
        async def forward(payload: int, socket: Socket) -> None:
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            await socket.publish("out", payload)

        with Harness(app, seed=seed, faults=Faults(reorder=0.5)) as harness:
            for number in NUMBERS:
                harness.publish("in", number, key=str(number))
            harness.advance(chance.uniform(0.0, 4.0))
            harness.rebalance()
            harness.settle()
            assert set(harness.published("out")) == set(NUMBERS)

    finish = Committer.finish

    async def everything(self: Committer, timeout: float, *, lost: bool = False) -> None:
        for tracker in self._assignment.trackers.values():
            if tracker.slots:
                tracker.commit_at = tracker.slots[-1].token + 1
        await finish(self, timeout, lost=lost)

    check(scenario, lambda: monkeypatch.setattr(Committer, "finish", everything), passing=FEWER)


def check(
    scenario: Callable[[int], None], mutate: Callable[[], None], passing: int = PASSING
) -> None:
    """Check that the scenario passes without the mistake, and finds it when it is made."""
    assert explore(scenario, seeds=passing) == passing
    mutate()
    with pytest.raises(AssertionError, match=r"^explore\(\w+, seeds=\["):
        explore(scenario, seeds=MUTATED)
