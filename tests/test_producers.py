"""Producers: once, or at a fixed rate, and how a program of producers ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading

import pytest

from spa_dat import Context, DistributedApplication, Socket, SyncSocket
from spa_dat.errors import ConfigurationError, EncodeError, MessageTooLarge, PublishRefused
from spa_dat.transports.memory import MemoryProvider
from support.virtual import VirtualEnvironment
from support.waiting import eventually


@pytest.fixture
def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
def app(provider: MemoryProvider) -> DistributedApplication:
    return DistributedApplication(provider, name="plant", environment=VirtualEnvironment())


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_producer_runs_once_and_only_when_subscriptions_are_in_force(
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

    async with app:
        await eventually(lambda: len(got) >= 3)
    assert got == ["0", "1", "2"]
    assert app.stats["producers.called"] == 1


async def test_a_program_of_producers_ends_when_all_they_published_is_confirmed(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    @app.producer(name="one")
    async def one(socket: Socket) -> None:
        for number in range(100):
            socket.post(f"a/{number}", "x", retain=True)

    @app.producer(name="two")
    async def two(socket: Socket) -> None:
        await socket.publish("b", "y", retain=True)

    async with app:
        await app.wait()
    assert len(provider.broker.retained) == 101


async def test_a_program_with_other_actors_goes_on_after_its_producers(
    app: DistributedApplication,
) -> None:
    @app.producer()
    async def produce(socket: Socket) -> None: ...

    @app.application("a")
    async def consume(payload: str) -> None: ...

    async with app:
        await eventually(lambda: app.stats["producers.called"] == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await app.wait()
        app.stop()
        await app.wait()


@pytest.mark.virtual
async def test_ticks_come_at_once_and_then_at_a_fixed_rate(app: DistributedApplication) -> None:
    times: list[float] = []

    @app.producer(every=2.0)
    async def tick(context: Context) -> None:
        times.append(now() - begin)
        await asyncio.sleep(0.7)

    begin = now()
    async with app:
        await asyncio.sleep(9.0)
    assert times == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0])
    assert app.stats["producers.missed"] == 0


@pytest.mark.virtual
async def test_ticks_do_not_overlap_and_missed_ones_are_counted(
    app: DistributedApplication,
) -> None:
    times: list[float] = []
    running = 0

    @app.producer(every=1.0)
    async def tick() -> None:
        nonlocal running
        times.append(now() - begin)
        running += 1
        assert running == 1
        await asyncio.sleep(2.5 if len(times) == 2 else 0.0)
        running -= 1

    begin = now()
    async with app:
        await asyncio.sleep(5.5)
    assert times == pytest.approx([0.0, 1.0, 4.0, 5.0])
    assert app.stats["producers.missed"] == 2
    assert app.stats["producers.called"] == 4


@pytest.mark.virtual
async def test_a_tick_that_raises_is_reported_and_the_next_one_runs(
    app: DistributedApplication, caplog: pytest.LogCaptureFixture
) -> None:
    count = 0

    @app.producer(every=1.0)
    async def tick() -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise ValueError("no sensor")

    async with app:
        await asyncio.sleep(3.5)
    assert count == 4
    assert app.stats["producers.failed"] == 1
    assert app.stats["producers.called"] == 3
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "producer 'tick' failed: ValueError: no sensor" in record.getMessage()


@pytest.mark.virtual
async def test_a_call_over_its_deadline_is_cut_off_and_counts_as_failed(
    app: DistributedApplication,
) -> None:
    ended: list[float] = []
    limits: list[float | None] = []

    @app.producer(every=10.0, deadline=1.5)
    async def tick(context: Context) -> None:
        limits.append(context.deadline)
        try:
            await asyncio.sleep(5.0)
        finally:
            ended.append(now() - begin)

    begin = now()
    async with app:
        await asyncio.sleep(2.0)
    assert ended == pytest.approx([1.5])
    assert limits == pytest.approx([begin + 1.5])
    assert app.stats["producers.failed"] == 1


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


@pytest.mark.virtual
async def test_stopping_cancels_a_one_shot_producer(app: DistributedApplication) -> None:
    ended: list[str] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    begin = now()
    async with app:
        await asyncio.sleep(0.1)
    assert ended == ["cancelled"]
    assert now() - begin < 5.0
    assert app.stats["producers.failed"] == 0
    assert app.stats["actors.cut_off"] == 0


@pytest.mark.virtual
async def test_stopping_lets_a_running_tick_end(app: DistributedApplication) -> None:
    ended: list[str] = []

    @app.producer(every=60.0)
    async def tick(socket: Socket) -> None:
        await asyncio.sleep(3.0)
        await socket.publish("a", "x")
        ended.append("ended")

    async with app:
        await asyncio.sleep(0.1)
    assert ended == ["ended"]
    assert app.stats["actors.cut_off"] == 0


@pytest.mark.virtual
async def test_a_tick_that_never_ends_is_cut_off_and_leaves_time_for_the_others(
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

    async with app:
        await asyncio.sleep(0.1)
    assert ended == ["consume", "consume", "tick"]
    assert app.stats["actors.cut_off"] == 1


@pytest.mark.virtual
async def test_a_tick_may_use_a_responder_of_its_own_application_while_it_stops(
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

    async with app:
        await asyncio.sleep(0.1)
    assert replies == [42]


@pytest.mark.virtual
async def test_a_producer_that_stops_itself_has_ended(app: DistributedApplication) -> None:
    ticks: list[float] = []

    @app.producer(every=1.0)
    async def tick(context: Context, socket: Socket) -> None:
        ticks.append(now())
        if len(ticks) == 3:
            context.stop()
            await asyncio.sleep(0.3)
            await socket.publish("a", "the last one", retain=True)
            ticks.append(0.0)

    async with app:
        await asyncio.wait_for(app.wait(), 60)
    assert len(ticks) == 4


@pytest.mark.virtual
async def test_a_one_shot_producer_that_stops_itself_ends_its_call_first(
    app: DistributedApplication,
) -> None:
    ended: list[str] = []

    @app.producer()
    async def produce(context: Context) -> None:
        context.stop()
        await asyncio.sleep(1.0)
        ended.append("ended")

    async with app:
        await asyncio.wait_for(app.wait(), 60)
    assert ended == ["ended"]


@pytest.mark.virtual
async def test_a_producer_in_a_thread_ticks_too(app: DistributedApplication) -> None:
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

    async with app:
        await asyncio.sleep(2.5)
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


async def test_what_is_too_large_or_can_not_be_written_is_refused_at_once() -> None:
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

    async with app:
        await app.wait()
    assert refused == ["MessageTooLarge"] * 9 + ["EncodeError"] * 6


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "$SYS/x", "_spa/reply/x", "a\0"])
async def test_topics_that_can_not_be_published_to_are_refused_at_once(
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

    async with app:
        await app.wait()
    assert len(errors) == 3


async def test_a_producer_has_nothing_that_could_take_a_subscription(
    app: DistributedApplication,
) -> None:
    refused: list[ConfigurationError] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        with pytest.raises(ConfigurationError) as caught:
            await socket.subscribe("a")
        refused.append(caught.value)

    async with app:
        await app.wait()
    assert "no handler" in str(refused[0])


async def test_confirmed_posts_of_a_producer_are_forgotten_before_its_call_ends(
    app: DistributedApplication,
) -> None:
    count: list[int] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        for number in range(2000):
            socket.post("a", number)
            if number % 100 == 99:
                await socket.publish("a", "all before is confirmed")
        futures = [o for o in gc.get_objects() if isinstance(o, asyncio.Future) and o.done()]
        count.append(len(futures))

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
