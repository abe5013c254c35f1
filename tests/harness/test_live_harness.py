"""The harness on real brokers: when everything is done, and what cannot be had there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from spa_dat import DistributedApplication, RetryPolicy, Socket, busy_thread
from spa_dat.errors import ConfigurationError
from spa_dat.harness._pytest_fixture import HarnessFactory
from spa_dat.harness.live import _live_bus
from spa_dat.harness.live._arrivals import Arrivals, WatchedReceiver
from spa_dat.harness.live._real_brokers import KafkaBrokers, MosquittoBrokers
from spa_dat.recording import Recorder
from spa_dat.testing import (
    AsyncHarness,
    Faults,
    HandlerFailed,
    Kafka,
    Mosquitto,
    NotSettled,
    NotSimulated,
)
from spa_dat.transports import Consumer, Delivery, Envelope, Identity, Subscription
from support.elsewhere import ThreadElsewhere

FIRST, SECOND = Identity("app", "0"), Identity("app", "1")


def test_a_watched_consumer_leaves_nothing_to_the_defaults_of_a_consumer() -> None:
    # The other one may do something else.
    public = {name for name in vars(Consumer) if not name.startswith("_")}
    assert public <= vars(_live_bus._WatchedConsumer).keys()


def subscription(*filters: str, **options: Any) -> Subscription:
    return Subscription("actor", filters, **options)


class Case:
    """Rights to messages, in force."""

    def __init__(self, *who: tuple[Identity, Subscription]) -> None:
        self.arrivals = Arrivals()
        self.tracked = [self.arrivals.tracked(*one) for one in who]
        for tracked, (_, one) in zip(self.tracked, who, strict=True):
            tracked.active += 1
            for pattern in one.filters:
                tracked.add(pattern)

    def publish(self, topic: str = "a/b", **options: Any) -> Envelope:
        envelope = Envelope(topic=topic, payload=b"", id=options.pop("id", "1"), **options)
        self.arrivals.expect(envelope)
        return envelope

    def arrive(self, envelope: Envelope, index: int = 0) -> Delivery:
        delivery = Delivery(envelope)
        self.tracked[index].arrived(delivery)
        return delivery


async def test_a_message_is_awaited_until_it_is_settled() -> None:
    case = Case((FIRST, subscription("a/+")))
    assert case.arrivals.under_way() is None
    envelope = case.publish()
    assert case.arrivals.under_way() == "app/0/actor: a message on 'a/b' has not arrived"
    delivery = case.arrive(envelope)
    assert case.arrivals.under_way() == "app/0/actor: a message on 'a/b' is not settled"
    delivery.start()
    assert case.arrivals.under_way() is not None
    delivery.settle()
    assert case.arrivals.under_way() is None


async def test_what_nobody_has_subscribed_to_is_not_awaited() -> None:
    case = Case((FIRST, subscription("a/+")))
    case.publish("b/b")
    case.publish("_spa/reply/app/1")
    assert case.arrivals.under_way() is None
    case.tracked[0].discard("a/+")
    case.publish()
    assert case.arrivals.under_way() is None


async def test_what_was_refused_does_not_arrive() -> None:
    case = Case((FIRST, subscription("a/+")))
    case.arrivals.not_published(case.publish())
    assert case.arrivals.under_way() is None


async def test_a_message_that_is_published_twice_arrives_twice() -> None:
    case = Case((FIRST, subscription("a/+")))
    for _ in range(2):
        envelope = case.publish()
    case.arrive(envelope).settle()
    assert case.arrivals.under_way() is not None
    case.arrive(envelope).settle()
    assert case.arrivals.under_way() is None


async def test_what_was_taken_back_comes_again() -> None:
    case = Case((FIRST, subscription("a/+")))
    envelope = case.publish()
    case.arrive(envelope).withdraw()
    assert case.arrivals.under_way() == "app/0/actor: a message on 'a/b' is to come again"
    case.arrive(envelope).settle()
    assert case.arrivals.under_way() is None


async def test_instances_that_share_get_one_copy_and_others_one_each() -> None:
    shared = subscription("a/+", share=True)
    case = Case((FIRST, shared), (SECOND, shared))
    case.arrive(case.publish(), 1).settle()
    assert case.arrivals.under_way() is None

    case = Case((FIRST, subscription("a/+")), (SECOND, subscription("a/+")))
    envelope = case.publish()
    case.arrive(envelope, 1).settle()
    assert case.arrivals.under_way() == "app/0/actor: a message on 'a/b' has not arrived"
    case.arrive(envelope, 0).settle()
    assert case.arrivals.under_way() is None


async def test_who_is_away_is_not_waited_for_before_it_is_back() -> None:
    case = Case((FIRST, subscription("a/+")))
    case.tracked[0].active -= 1
    case.publish()
    assert case.arrivals.under_way() is None
    case.tracked[0].active += 1
    assert case.arrivals.under_way() is not None


async def test_nothing_is_kept_for_who_is_away_without_a_durable_subscription() -> None:
    case = Case((FIRST, subscription("a/+", durable=False)))
    case.publish()
    case.tracked[0].active -= 1
    case.tracked[0].forget()
    case.publish()
    case.tracked[0].active += 1
    assert case.arrivals.under_way() is None


@pytest.mark.virtual
@pytest.mark.parametrize(
    ("options", "published", "seconds"),
    [({"qos": 0}, {}, 1.0), ({}, {"qos": 0}, 1.0), ({}, {"expiry": 5.0}, 5.0)],
)
async def test_what_the_broker_may_drop_is_awaited_for_so_long(
    options: dict[str, Any], published: dict[str, Any], seconds: float
) -> None:
    case = Case((FIRST, subscription("a/+", **options)))
    case.publish(**published)
    await asyncio.sleep(seconds - 0.1)
    assert case.arrivals.under_way() is not None
    await asyncio.sleep(0.2)
    assert case.arrivals.under_way() is None


async def test_a_watched_receiver_hands_everything_on() -> None:
    case = Case((FIRST, subscription("a/+")))
    calls: list[str] = []

    class Receiver:
        def deliver(self, delivery: Delivery, /) -> None:
            calls.append("one")

        def deliver_all(self, deliveries: Any, /) -> None:
            calls.append(f"{len(deliveries)} at once")

        def hold(self) -> None:
            calls.append("hold")

        def resume(self, *, redelivered: bool) -> None:
            calls.append(f"resume {redelivered}")

    watched = WatchedReceiver(Receiver(), case.tracked[0])
    deliveries = [Delivery(case.publish(id=str(number))) for number in range(3)]
    watched.hold()
    watched.resume(redelivered=True)
    watched.deliver(deliveries[0])
    watched.deliver_all(deliveries[1:])
    assert calls == ["hold", "resume True", "one", "2 at once"]
    for delivery in deliveries:
        assert case.arrivals.under_way() is not None
        delivery.settle()
    assert case.arrivals.under_way() is None


def application(name: str = "plant") -> DistributedApplication:
    app = DistributedApplication("mqtt://broker.example", name=name, stop_timeout=0.2)

    @app.application("in")
    async def carry(payload: str, socket: Socket) -> None:
        if payload == "bad":
            raise ValueError("as asked")
        while payload == "hang":
            await asyncio.sleep(0.01)
        await socket.publish("in" if payload == "again" else "out", payload)

    return app


@pytest.fixture
def factory(own_mosquitto: object) -> HarnessFactory:
    return HarnessFactory({}, brokers=MosquittoBrokers)


@pytest.mark.mosquitto
def test_a_handler_that_hangs_is_named(factory: HarnessFactory) -> None:
    harness = factory(application(), patience=0.1)
    harness.publish("in", "hang")
    with pytest.raises(NotSettled, match=r"(?s)plant/0/carry is at work on .*'in'.*sleep\(0\.01\)"):
        harness.settle()
    factory.abandon()


@pytest.mark.mosquitto
def test_what_is_kept_for_a_stopped_instance_is_told(factory: HarnessFactory) -> None:
    seen: list[int] = []

    def sharing(instance: int) -> DistributedApplication:
        app = DistributedApplication("mqtt://broker", name="app", instance=str(instance))

        @app.application("in", deliver="share")
        async def see(number: int) -> None:
            seen.append(number)

        return app

    first, second = sharing(0), sharing(1)
    harness = factory(first, second, patience=1.0)
    harness.stop(second)
    for number in range(6):
        harness.publish("in", number)
    with pytest.raises(NotSettled, match=r"'in' has not arrived: .* are stopped \(1\)"):
        harness.settle()
    harness.restart(second)
    factory.finish()
    assert sorted(seen) == [*range(6)]


@pytest.mark.mosquitto
def test_a_storm_is_named(factory: HarnessFactory) -> None:
    harness = factory(application(), limit=200)
    harness.publish("in", "again")
    with pytest.raises(NotSettled, match="200 messages were published, the last one on 'in'"):
        harness.settle()
    factory.abandon()


@pytest.mark.mosquitto
def test_a_failure_is_not_waited_out(factory: HarnessFactory) -> None:
    harness = factory(application())
    harness.publish("in", "bad")
    with pytest.raises(HandlerFailed, match="as asked"):
        harness.settle()
    assert [failure.where for failure in harness.failures] == ["handler"]
    factory.abandon()


@pytest.mark.mosquitto
def test_at_the_end_everything_is_settled_and_checked(factory: HarnessFactory) -> None:
    good, bad = factory(application("good")), factory(application("bad"))
    good.publish("in", "x")
    bad.publish("in", "bad")
    with pytest.raises(HandlerFailed, match="bad/0/carry"):
        factory.finish()
    assert not good.is_open
    assert not bad.is_open


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("advance", lambda harness: harness.advance(1)),
        ("cut", lambda harness: harness.cut()),
        ("cut", lambda harness: harness.lose_session("carry")),
        ("outage", lambda harness: harness.outage(1)),
        ("crash", lambda harness: harness.crash()),
        ("rebalance", lambda harness: harness.rebalance()),
        ("compact", lambda harness: harness.compact()),
        ("restart_actor", lambda harness: harness.restart_actor("carry")),
    ],
)
def test_what_only_a_simulated_bus_has_is_refused(
    factory: HarnessFactory, name: str, call: Callable[[Any], None]
) -> None:
    harness = factory(application())
    with pytest.raises(NotSimulated, match=rf"{name}\(\) needs a simulated bus .* mqtt broker"):
        call(harness)
    factory.finish()


@pytest.mark.mosquitto
async def test_so_it_is_when_the_methods_are_awaited(factory: HarnessFactory) -> None:
    async with HarnessFactory({}, brokers=MosquittoBrokers, asynchronous=True)(
        application()
    ) as harness:
        assert isinstance(harness, AsyncHarness)
        with pytest.raises(NotSimulated):
            await harness.advance(1)
        with pytest.raises(NotSimulated):
            harness.crash()
        harness.publish("in", "x")
        await harness.settle()
        assert harness.published() == ["x"]


@pytest.mark.mosquitto
def test_options_that_need_a_simulation_are_refused(factory: HarnessFactory) -> None:
    with pytest.raises(
        NotSimulated, match="faults need a simulated bus, and this is a real mqtt broker"
    ):
        factory(application(), faults=Faults.all())
    with pytest.raises(
        NotSimulated, match=r"profile='kafka' needs a simulated bus, .* mqtt broker"
    ):
        factory(application(), profile="kafka")
    factory(application(), profile="mqtt", faults=None, seed=5)
    factory.finish()


@pytest.mark.mosquitto
@pytest.mark.parametrize("actor", [None, "carry"])
def test_a_recording_is_replayed_on_a_real_broker(
    factory: HarnessFactory, tmp_path: Path, actor: str | None
) -> None:
    file = tmp_path / "incident.jsonl"
    app = application()
    with Recorder(app, file), factory(app) as harness:
        harness.publish("in", "x")
        harness.publish("in", "y")
        harness.settle()
    with factory(application()) as harness:
        assert harness.replay(file, actor=actor) == 2
        assert harness.published("out") == ["x", "y"]


@pytest.mark.kafka
def test_what_is_committed_in_transactions_is_waited_for(kafka: Kafka) -> None:
    app = DistributedApplication("kafka://somewhere", name="shop")
    billed: list[int] = []

    @app.application("orders", exactly_once=True, retry=RetryPolicy(attempts=1))
    async def orders(number: int, socket: Socket) -> None:
        await socket.publish("invoices", number)
        if number == 2:
            raise ValueError("bad luck")

    @app.application("invoices")
    async def bill(number: int) -> None:
        billed.append(number)

    factory = HarnessFactory({}, brokers=lambda: KafkaBrokers(kafka))
    try:
        harness = factory(app)
        harness.expect_failure(ValueError)
        for number in range(4):
            harness.publish("orders", number)
        harness.settle()
        assert sorted(billed) == [0, 1, 3]
        assert sorted(harness.published("invoices")) == [0, 1, 3]
        (letter,) = harness.dead_letters()
        assert letter.payload == b"2"
    finally:
        factory.close()


@pytest.mark.kafka
def test_on_kafka_addresses_are_what_kafka_can_carry(kafka: Kafka) -> None:
    factory = HarnessFactory({}, brokers=lambda: KafkaBrokers(kafka))
    harness = factory(application())
    with pytest.raises(ConfigurationError, match="ü"):
        harness.publish("fürth", 1)
    factory.finish()


def test_an_application_that_can_not_start_says_so() -> None:
    factory = HarnessFactory({})
    app = application()

    @app.application("more", ressources={"db": _broken})
    async def more(payload: str, db: object) -> None: ...

    with pytest.raises(ConfigurationError, match="no database"):
        factory(app)
    factory.finish()
    assert "seed 0" in factory.report("pytest x")


def _broken() -> Any:
    raise OSError("no database")


@pytest.mark.mosquitto
def test_announced_work_of_a_thread_is_waited_for(mqtt_broker: Mosquitto) -> None:
    app = DistributedApplication("mqtt://elsewhere", name="app")
    jobs: SimpleQueue[Any] = SimpleQueue()

    def work_off() -> None:
        for _ in range(2):
            work, busy = jobs.get()
            with busy:
                work()

    def more_work() -> None:
        time.sleep(0.2)
        done.append(True)

    done: list[bool] = []
    thread = ThreadElsewhere(work_off)

    @app.application("in")
    async def start(payload: int, socket: Socket) -> None:
        loop = asyncio.get_running_loop()

        def publish() -> None:
            time.sleep(0.2)
            asyncio.run_coroutine_threadsafe(socket.publish("out", payload), loop).result(10)

        jobs.put((publish, busy_thread()))

    with HarnessFactory({}, brokers=MosquittoBrokers)(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]
        jobs.put((more_work, harness.busy_thread("more work")))
        harness.settle()
        assert done == [True]
    thread.join()
