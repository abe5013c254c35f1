"""Producers: once, or at a fixed rate, and how a program of producers ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading

import pytest

from spa_dat import Context, DistributedApplication, Socket, SyncSocket
from spa_dat.errors import ConfigurationError, EncodeError, MessageTooLarge, PublishRefused
from spa_dat.harness import VirtualEnvironment
from spa_dat.testing import Faults, Harness
from spa_dat.transports.memory import MemoryProvider
from support.waiting import eventually


@pytest.fixture
def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
def app(provider: MemoryProvider) -> DistributedApplication:
    return DistributedApplication(provider, name="plant", environment=VirtualEnvironment())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_producer_runs_once_and_only_when_subscriptions_are_in_force(
    app: DistributedApplication,
) -> None:
    got: list[str] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        for number in range(3):
            await socket.publish("a", str(number))

    @app.application("a")
    async def consume(payload: str) -> None:
        got.append(payload)

    with Harness(app) as harness:
        harness.advance(3600.0)
    assert got == ["0", "1", "2"]
    assert harness.stats["producers.called"] == 1


def test_a_program_of_producers_ends_when_all_they_published_is_confirmed(
    app: DistributedApplication,
) -> None:
    @app.producer(name="one")
    async def one(socket: Socket) -> None:
        for number in range(100):
            socket.post(f"a/{number}", "x")

    @app.producer(name="two")
    async def two(socket: Socket) -> None:
        await socket.publish("b", "y")

    with Harness(app, faults=Faults(delay=1.0)) as harness:
        harness.settle()
        assert not app.healthy
        assert len(harness.published()) == 101


def test_a_program_with_other_actors_goes_on_after_its_producers(
    app: DistributedApplication,
) -> None:
    @app.producer()
    async def produce(socket: Socket) -> None: ...

    @app.application("a")
    async def consume(payload: str) -> None: ...

    with Harness(app) as harness:
        harness.advance(3600.0)
        assert harness.stats["producers.called"] == 1
        assert app.healthy
        app.stop()
        harness.settle()
        assert not app.healthy


def test_ticks_come_at_once_and_then_at_a_fixed_rate(app: DistributedApplication) -> None:
    times: list[float] = []

    @app.producer(every=2.0)
    async def tick(context: Context) -> None:
        times.append(harness.time)
        await asyncio.sleep(0.7)

    harness = Harness(app)
    with harness:
        harness.advance(9.0)
    assert times == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0])
    assert harness.stats["producers.missed"] == 0


def test_ticks_do_not_overlap_and_missed_ones_are_counted(app: DistributedApplication) -> None:
    times: list[float] = []
    running = 0

    @app.producer(every=1.0)
    async def tick() -> None:
        nonlocal running
        times.append(harness.time)
        running += 1
        assert running == 1
        await asyncio.sleep(2.5 if len(times) == 2 else 0.0)
        running -= 1

    harness = Harness(app)
    with harness:
        harness.advance(5.5)
    assert times == pytest.approx([0.0, 1.0, 4.0, 5.0])
    assert harness.stats["producers.missed"] == 2
    assert harness.stats["producers.called"] == 4


def test_a_tick_that_raises_is_reported_and_the_next_one_runs(
    app: DistributedApplication, caplog: pytest.LogCaptureFixture
) -> None:
    count = 0

    @app.producer(every=1.0)
    async def tick() -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise ValueError("no sensor")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.advance(3.5)
    assert count == 4
    assert harness.stats["producers.failed"] == 1
    assert harness.stats["producers.called"] == 3
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "producer 'tick' failed: ValueError: no sensor" in record.getMessage()


def test_a_call_over_its_deadline_is_cut_off_and_counts_as_failed(
    app: DistributedApplication,
) -> None:
    ended: list[float] = []
    limits: list[float] = []

    @app.producer(every=10.0, deadline=1.5)
    async def tick(context: Context) -> None:
        assert context.deadline is not None
        limits.append(context.deadline - now())
        try:
            await asyncio.sleep(5.0)
        finally:
            ended.append(harness.time)

    with Harness(app) as harness:
        harness.expect_failure(TimeoutError)
        harness.advance(2.0)
    assert ended == pytest.approx([1.5])
    assert limits == pytest.approx([1.5])
    assert harness.stats["producers.failed"] == 1


async def test_what_a_one_shot_producer_raises_ends_the_program_and_is_handed_on(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    @app.producer()
    async def produce(socket: Socket) -> None:
        socket.post("a", "x", retain=True)
        raise ValueError("no sensor")

    @app.application("b")
    async def consume(payload: str) -> None: ...

    async with app:
        with pytest.raises(ValueError, match="no sensor"):
            await app.wait()
    assert list(provider.broker.retained) == ["a"]


async def test_errors_of_two_producers_are_both_reported_and_one_is_handed_on(
    app: DistributedApplication,
) -> None:
    for name in ("one", "two"):

        @app.producer(name=name)
        async def produce(context: Context) -> None:
            raise ValueError(context.actor)

    async with app:
        await eventually(lambda: app.stats["producers.failed"] == 2)
        with pytest.raises(ValueError, match=r"one|two"):
            await app.wait()


def test_stopping_cancels_a_one_shot_producer(app: DistributedApplication) -> None:
    ended: list[str] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with Harness(app) as harness:
        harness.stop()
        assert harness.time < 5.0
    assert ended == ["cancelled"]
    assert harness.stats["producers.failed"] == 0
    assert harness.stats["actors.cut_off"] == 0


def test_stopping_lets_a_running_tick_end(app: DistributedApplication) -> None:
    ended: list[str] = []

    @app.producer(every=60.0)
    async def tick(socket: Socket) -> None:
        await asyncio.sleep(3.0)
        await socket.publish("a", "x")
        ended.append("ended")

    with Harness(app) as harness:
        harness.advance(0.1)
        harness.stop()
    assert ended == ["ended"]
    assert harness.stats["actors.cut_off"] == 0


def test_a_tick_that_never_ends_is_cut_off_and_leaves_time_for_the_others(
    app: DistributedApplication,
) -> None:
    ended: list[str] = []

    @app.producer(every=60.0)
    async def tick() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("tick")

    @app.producer(name="send")
    async def send(socket: Socket) -> None:
        for _ in range(5):
            await socket.publish("a", "x")

    @app.application("a")
    async def consume(payload: str) -> None:
        await asyncio.sleep(4.0)
        ended.append("consume")

    with Harness(app) as harness:
        harness.advance(0.1)
        harness.stop()
    assert ended == ["consume", "consume", "tick"]
    assert harness.stats["actors.cut_off"] == 1


def test_a_tick_may_use_a_responder_of_its_own_application_while_it_stops(
    app: DistributedApplication,
) -> None:
    replies: list[int] = []

    @app.producer(every=60.0)
    async def tick(socket: Socket) -> None:
        await asyncio.sleep(1.0)
        replies.append(await socket.request("double", 21, reply=int, timeout=2.0))

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    with Harness(app) as harness:
        harness.advance(0.1)
        harness.stop()
    assert replies == [42]


def test_a_producer_that_stops_itself_has_ended(app: DistributedApplication) -> None:
    ticks: list[float] = []

    @app.producer(every=1.0)
    async def tick(context: Context, socket: Socket) -> None:
        ticks.append(harness.time)
        if len(ticks) == 3:
            context.stop()
            await asyncio.sleep(0.3)
            await socket.publish("a", "the last one")

    harness = Harness(app)
    with harness:
        harness.advance(60.0)
        assert not app.healthy
        assert harness.published("a") == ["the last one"]
    assert ticks == pytest.approx([0.0, 1.0, 2.0])


def test_a_one_shot_producer_that_stops_itself_ends_its_call_first(
    app: DistributedApplication,
) -> None:
    ended: list[str] = []

    @app.producer()
    async def produce(context: Context) -> None:
        context.stop()
        await asyncio.sleep(1.0)
        ended.append("ended")

    with Harness(app) as harness:
        harness.advance(60.0)
        assert ended == ["ended"]
        assert not app.healthy


def test_a_producer_in_a_thread_ticks_too(app: DistributedApplication) -> None:
    threads: set[int] = set()
    got: list[int] = []

    @app.producer(every=1.0, state=list)
    def tick(socket: SyncSocket, state: list[int]) -> None:
        threads.add(threading.get_ident())
        state.append(1)
        socket.publish("a", len(state))

    @app.application("a")
    async def consume(number: int) -> None:
        got.append(number)

    with Harness(app) as harness:
        harness.advance(2.5)
    assert got == [1, 2, 3]
    assert threading.get_ident() not in threads
    assert len(threads) == 1


async def test_a_one_shot_producer_in_a_thread_ends_at_its_next_use_of_the_socket(
    app: DistributedApplication,
) -> None:
    ended = threading.Event()
    started = threading.Event()

    @app.producer()
    def produce(socket: SyncSocket) -> None:
        try:
            while True:
                socket.publish("a", "x")
                started.set()
        finally:
            ended.set()

    async with app:
        await eventually(started.is_set)
    assert ended.wait(5)
    assert app.stats["producers.failed"] == 0
    assert app.stats["actors.cut_off"] == 0


async def test_posts_of_a_producer_are_not_kept_and_refused_ones_are_reported(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.broker.faults.refuse_publish("bad")

    @app.producer()
    async def produce(socket: Socket) -> None:
        socket.post("bad", "x")
        socket.post("good", "x")
        with pytest.raises(PublishRefused):
            await socket.publish("bad", "x")

    async with app:
        await app.wait()
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "a posted message was lost: PublishRefused" in record.getMessage()


def test_what_is_too_large_or_can_not_be_written_is_refused_at_once() -> None:
    app = DistributedApplication("memory://?max_payload=100", name="plant")
    refused: list[str] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        for payload in (b"x" * 101, "ä" * 51, {"key": "x" * 100}, float("nan"), object()):
            for send in (socket.publish, socket.request):
                try:
                    await send("a", payload)
                except (MessageTooLarge, EncodeError) as error:
                    refused.append(type(error).__name__)
            try:
                socket.post("a", payload)
            except (MessageTooLarge, EncodeError) as error:
                refused.append(type(error).__name__)
        await socket.publish("a", b"x" * 100)

    with Harness(app) as harness:
        harness.settle()
        assert harness.published() == [b"x" * 100]
    assert refused == ["MessageTooLarge"] * 9 + ["EncodeError"] * 6


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "$SYS/x", "_spa/reply/x", "a\0"])
def test_topics_that_can_not_be_published_to_are_refused_at_once(
    app: DistributedApplication, topic: str
) -> None:
    errors: list[ConfigurationError] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        for publish in (socket.publish, socket.request):
            with pytest.raises(ConfigurationError) as caught:
                await publish(topic, "x")
            errors.append(caught.value)
        with pytest.raises(ConfigurationError) as caught:
            socket.post(topic, "x")
        errors.append(caught.value)

    with Harness(app):
        pass
    assert len(errors) == 3


def test_a_producer_has_nothing_that_could_take_a_subscription(
    app: DistributedApplication,
) -> None:
    refused: list[ConfigurationError] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        with pytest.raises(ConfigurationError) as caught:
            await socket.subscribe("a")
        refused.append(caught.value)

    with Harness(app):
        pass
    assert "no handler" in str(refused[0])


async def test_confirmed_posts_of_a_producer_are_forgotten_before_its_call_ends(
    app: DistributedApplication,
) -> None:
    count: list[int] = []

    def done_futures() -> int:
        gc.collect()
        return sum(isinstance(o, asyncio.Future) and o.done() for o in gc.get_objects())

    @app.producer()
    async def produce(socket: Socket) -> None:
        before = done_futures()
        for number in range(2000):
            socket.post("a", number)
            if number % 100 == 99:
                await socket.publish("a", "all before is confirmed")
        count.append(done_futures() - before)

    async with app:
        await app.wait()
    assert count[0] < 500


@pytest.mark.virtual
async def test_a_program_of_producers_waits_longer_than_a_stop_would(
    provider: MemoryProvider,
) -> None:
    app = DistributedApplication(
        provider, name="patient", stop_timeout=1.0, environment=VirtualEnvironment()
    )

    @app.producer()
    async def produce(socket: Socket) -> None:
        provider.broker.faults.refuse_connections()
        provider.broker.faults.disconnect()
        socket.post("a", b"x", retain=True)
        asyncio.get_running_loop().call_later(60.0, provider.broker.faults.allow)

    async with app:
        await app.wait()
    assert "a" in provider.broker.retained
