"""Actors with several lanes: order per key, keys at the same time."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Message,
    Overflow,
    Reject,
    RetryPolicy,
    Socket,
    SyncSocket,
    on,
)
from spa_dat.errors import ActorStopped, ConfigurationError, RemoteError
from spa_dat.harness._eventually import Gate
from spa_dat.runtime.options._actor_options import ActorOptions
from spa_dat.runtime.registration._message_keys import lane_of
from spa_dat.testing import Harness
from support.machine import examples
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual


def keys_of_lanes(lanes: int) -> list[str]:
    """A key for each lane."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < lanes:
        found.setdefault(lane_of(f"k{number}", lanes), f"k{number}")
        number += 1
    return [found[lane] for lane in range(lanes)]


A, B, C, D = keys_of_lanes(4)


# Order and concurrency.


def test_keys_run_at_the_same_time_and_each_in_order() -> None:
    app = DistributedApplication("memory://", name="app")
    begun: list[tuple[str, int]] = []
    done: dict[str, list[int]] = defaultdict(list)

    @app.application("work/{machine}", concurrency=4, key="machine")
    async def handle(number: int, machine: str) -> None:
        begun.append((machine, number))
        await asyncio.sleep(10.0)
        done[machine].append(number)

    with Harness(app) as harness:
        for number in range(3):
            for machine in (A, B, C, D):
                harness.publish(f"work/{machine}", number)
        harness.advance(9.0)
        assert sorted(begun) == sorted((machine, 0) for machine in (A, B, C, D))
        harness.settle()
        assert harness.time == 30.0
    assert done == {machine: [0, 1, 2] for machine in (A, B, C, D)}


@pytest.mark.parametrize(
    ("key", "of"),
    [
        (None, lambda key: {"topic": "work/x", "key": key}),
        (None, lambda key: {"topic": f"work/{key}"}),
        ("header:machine", lambda key: {"topic": "work/x", "headers": {"machine": key}}),
        ("header:machine", lambda key: {"topic": f"work/{key}", "key": "one"}),
        ("machine", lambda key: {"topic": f"work/{key}"}),
    ],
    ids=["own key", "topic", "header", "no such header", "capture"],
)
def test_what_the_key_may_be(key: str | None, of: Any) -> None:
    app = DistributedApplication("memory://", name="app")
    lanes: dict[str, set[int]] = defaultdict(set)

    class Worker(Actor):
        concurrency = 4

        @on("work/{machine}")
        async def handle(self, name: str) -> None:
            lanes[name].add(id(self))

    app.configure(app.add(Worker), key=key)
    names = [f"n{number}" for number in range(50)]
    with Harness(app) as harness:
        for name in names * 2:
            harness.publish(payload=name, **of(name))
        harness.settle()
        assert sorted(lanes) == sorted(names)
        assert sorted(lanes) == sorted(names)
        assert all(len(of_one) == 1 for of_one in lanes.values())
        assert len({lane for of_one in lanes.values() for lane in of_one}) == 4


def test_lanes_of_keys_are_the_same_in_every_process() -> None:
    assert [lane_of(key, 1000) for key in ("", "boiler", "kessel-ä")] == [0, 977, 8]


def test_a_stuck_key_does_not_stop_the_others() -> None:
    app = DistributedApplication("memory://", name="app")
    done: Counter[str] = Counter()

    @app.application("work/{machine}", concurrency=4, key="machine", window=20)
    async def handle(payload: bytes, machine: str) -> None:
        if machine == A:
            await asyncio.sleep(10.0)
        done[machine] += 1

    with Harness(app) as harness:
        harness.publish(f"work/{A}")
        for _ in range(30):
            harness.publish(f"work/{B}")
        # The stuck message is not acknowledged, nor what came after it: 19 fit beside it.
        harness.advance(9.0)
        assert done == {B: 19}
        assert " acknowledge " not in harness.trace
        harness.settle()
        assert harness.trace.count(" acknowledge ") == 31
    assert done == {A: 1, B: 30}


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({}, 200),
        ({"concurrency": 8}, 200),
        ({"concurrency": 100}, 1000),
        ({"concurrency": 100, "window": 50}, 50),
        ({"batch": (50, 1)}, 200),
        ({"batch": (500, 1)}, 1000),
        ({"batch": (50, 1), "concurrency": 8}, 800),
        ({"batch": (60_000, 1), "concurrency": 8}, 65_535),
    ],
)
def test_the_window_has_room_for_all_lanes(options: dict[str, Any], window: int) -> None:
    assert ActorOptions(**options).window_for(200) == window


async def test_thread_handlers_have_a_thread_for_each_lane() -> None:
    site = Site()
    app = site.app()
    barrier = threading.Barrier(4, timeout=10)
    threads = set[int]()
    out = site.watch("out")

    @app.application("work/{machine}", name="actor", concurrency=4, key="machine")
    def handle(machine: str, socket: SyncSocket) -> None:
        barrier.wait()
        threads.add(threading.get_ident())
        socket.publish("out", machine)

    async with app:
        for machine in (A, B, C, D):
            site.publish(f"work/{machine}")
        await site.settled()
    assert len(threads) == 4
    assert sorted(out.payloads) == sorted((A, B, C, D))


# State, resources, hooks, references.


def test_each_lane_has_its_own_state_and_all_share_the_resources() -> None:
    app = DistributedApplication("memory://", name="app")
    seen: list[tuple[str, int, int]] = []

    class Pool:
        opened = 0

        def __enter__(self) -> Pool:
            Pool.opened += 1
            return self

        def __exit__(self, *_: object) -> None:
            seen.append(("closed", 0, 0))

    @app.application(
        "work/{machine}",
        concurrency=4,
        key="machine",
        state=Counter,
        ressources={"pool": Pool},
    )
    async def handle(machine: str, state: Counter[str], pool: Pool) -> None:
        state[machine] += 1
        seen.append((machine, state.total(), id(pool)))

    with Harness(app) as harness:
        for machine in (A, B, A):
            harness.publish(f"work/{machine}")
    assert Pool.opened == 1
    assert harness.state("handle") == [{A: 2}, {B: 1}, {}, {}]
    assert [(machine, total) for machine, total, _ in seen if machine != B] == [
        (A, 1),
        (A, 2),
        ("closed", 0),
    ]
    assert len({pool for _, _, pool in seen[:3]}) == 1


class Hooked(Actor):
    """Notes what happens to its instances."""

    concurrency = 3
    topics = "work/+"

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.handled = 0

    async def on_start(self, context: Context) -> None:
        assert context.actor == "Hooked"
        self.log.append("start")

    async def on_stop(self) -> None:
        self.log.append("stop")

    async def on_message(self, payload: bytes) -> None:
        self.handled += 1

    async def on_receive(self, message: Any) -> int:
        return self.handled


async def test_hooks_run_in_each_lane_and_there_is_a_reference_to_each() -> None:
    site = Site()
    app = site.app()
    log: list[str] = []
    spec = app.add(Hooked, log)
    with pytest.raises(ActorStopped):
        spec.refs  # noqa: B018
    async with app:
        assert log == ["start"] * 3
        with pytest.raises(ConfigurationError, match="has 3 lanes"):
            spec.ref  # noqa: B018
        for number in range(40):
            site.publish(f"work/{number}")
        await site.settled("app.0.Hooked")
        counts = [await ref.ask("how many?") for ref in spec.refs]
        assert sum(counts) == 40
        assert len(counts) == 3
        assert all(counts)
    assert log == ["start"] * 3 + ["stop"] * 3
    with pytest.raises(ActorStopped):
        spec.refs  # noqa: B018


async def test_a_lane_that_stops_its_actor_stops_all_lanes() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    done: list[str] = []

    @app.application("work/{machine}", name="actor", concurrency=4, key="machine")
    async def handle(machine: str, context: Context) -> None:
        if machine == A:
            context.stop()
        else:
            await gate.pass_()
        done.append(machine)

    async with app:
        for machine in (B, C):
            site.publish(f"work/{machine}")
        await gate.reached(2)
        for machine in (B, A):
            site.publish(f"work/{machine}")
        await eventually(lambda: done == [A])
        asyncio.get_running_loop().call_later(1, gate.open)
        await asyncio.wait_for(app.wait(), 60)
    assert sorted(done[1:]) == sorted([B, C])
    # The second of B had not begun, and what came after it cannot be acknowledged before it.
    assert site.unsettled() == 2


# Failures.


def test_a_failing_message_holds_up_its_lane_only_and_is_parked() -> None:
    app = DistributedApplication("memory://", name="app")
    begun: list[tuple[str, int]] = []
    policy = RetryPolicy(attempts=3, first=1, factor=1, jitter=0)

    @app.application("work/{machine}", name="actor", concurrency=4, key="machine", retry=policy)
    async def handle(number: int, machine: str, context: Context) -> None:
        begun.append((machine, number))
        if (machine, number) == (A, 0):
            raise ValueError(f"attempt {context.attempt}")

    with Harness(app, allow_failures=ValueError) as harness:
        for number in range(2):
            for machine in (A, B):
                harness.publish(f"work/{machine}", number)
        harness.advance(0.5)
        assert begun == [(A, 0), (B, 0), (B, 1)]
    (letter,) = harness.dead_letters()
    assert (letter.actor, letter.text) == ("app/0/actor", "attempt 3")
    assert begun == [(A, 0), (B, 0), (B, 1), (A, 0), (A, 0), (A, 1)]


async def test_a_lane_that_can_not_park_is_unhealthy_until_it_can() -> None:
    site = Site()
    app = site.app()
    done: list[str] = []

    @app.application("work/{machine}", name="actor", concurrency=4, key="machine")
    async def handle(machine: str) -> None:
        if machine in (A, B):
            raise Reject
        done.append(machine)

    async with app:
        site.faults.refuse_publish("_spa/dead-letter/#")
        site.publish(f"work/{A}")
        await eventually(lambda: not app.healthy)
        site.publish(f"work/{C}")
        await eventually(lambda: done == [C])
        site.faults.allow()
        await site.parked()
        assert app.healthy
        site.publish(f"work/{B}")
        await site.parked(2)
        await site.settled()


async def test_a_lane_that_does_not_start_fails_the_start() -> None:
    site = Site()
    app = site.app()
    made: list[Actor] = []

    class Fragile(Actor):
        concurrency = 3
        topics = "work"

        def __init__(self) -> None:
            made.append(self)

        async def on_start(self) -> None:
            if self is made[1] or len(made) > 3:
                raise ValueError("no")

        async def on_message(self) -> None: ...

    app.add(Fragile)
    with pytest.raises(Exception, match="app/0/Fragile/1"):
        await app.__aenter__()
    assert not app.healthy


# Stopping, interruptions, redelivery.


def test_a_stop_drains_all_lanes_and_gives_back_what_has_not_begun() -> None:
    app = DistributedApplication("memory://", name="app")
    done: list[tuple[str, int]] = []

    @app.application("work/{machine}", concurrency=4, key="machine")
    async def handle(number: int, machine: str) -> None:
        await asyncio.sleep(1.0)
        done.append((machine, number))

    with Harness(app) as harness:
        for number in range(3):
            for machine in (A, B, C):
                harness.publish(f"work/{machine}", number)
        harness.advance(0.5)
        harness.stop()
        assert sorted(done) == sorted((machine, 0) for machine in (A, B, C))
        assert harness.stats["actors.cut_off"] == 0
        harness.restart()
    assert len(done) == 9
    for machine in (A, B, C):
        assert [number for name, number in done if name == machine] == [0, 1, 2]


def test_what_was_settled_out_of_order_is_not_done_again_after_a_cut() -> None:
    app = DistributedApplication("memory://", name="app")
    done: list[tuple[str, int]] = []

    @app.application("work/{machine}", name="actor", concurrency=4, key="machine")
    async def handle(number: int, machine: str) -> None:
        if machine == A:
            await asyncio.sleep(10.0)
        done.append((machine, number))

    with Harness(app) as harness:
        for number in range(2):
            harness.publish(f"work/{A}", number)
        for number in range(5):
            harness.publish(f"work/{B}", number)
        harness.advance(1.0)
        assert len(done) == 5
        assert " acknowledge " not in harness.trace
        harness.cut("actor")
    assert harness.trace.count(" redeliver ") == 7
    assert done == [*((B, number) for number in range(5)), (A, 0), (A, 1)]


def test_a_retry_in_a_lane_is_interrupted_when_the_connection_ends() -> None:
    app = DistributedApplication("memory://", name="app")
    begun: list[tuple[str, int]] = []
    policy = RetryPolicy(attempts=9, first=600, hold=10_000)

    @app.application("work/{machine}", name="actor", concurrency=4, key="machine", retry=policy)
    async def handle(number: int, machine: str, message: Message[int]) -> None:
        begun.append((machine, message.attempt))
        if message.attempt == 1:
            raise ValueError

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish(f"work/{A}", 0)
        harness.publish(f"work/{B}", 0)
        harness.advance(1.0)
        assert harness.stats["messages.failed"] == 2
        harness.cut("actor")
        harness.settle()
        assert harness.time < 60.0
    assert sorted(begun) == sorted([(A, 1), (B, 1), (A, 2), (B, 2)])


def test_a_lost_session_keeps_what_waits_in_the_lanes_in_order() -> None:
    app = DistributedApplication("memory://", name="app")
    done: list[tuple[str, int]] = []

    @app.application("work/{machine}", name="actor", concurrency=4, key="machine")
    async def handle(number: int, machine: str) -> None:
        await asyncio.sleep(10.0)
        done.append((machine, number))

    with Harness(app) as harness:
        for number in range(3):
            for machine in (A, B):
                harness.publish(f"work/{machine}", number)
        harness.advance(1.0)
        harness.lose_session("actor")
    assert len(done) == 6
    for machine in (A, B):
        assert [number for name, number in done if name == machine] == [0, 1, 2]


# Subscriptions at run time, requests, shared subscriptions, overflow.


async def test_filters_added_at_run_time_belong_to_all_lanes() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    done: list[tuple[str, int]] = []

    class Worker(Actor):
        concurrency = 4
        key = "machine"

        @on("work/{machine}")
        async def handle(self, number: int, machine: str, socket: Socket) -> None:
            if number < 0:
                await socket.subscribe("more/{machine}")
                if number == -2:
                    await socket.unsubscribe("more/+")
                return
            await gate.pass_()
            done.append((machine, id(self)))

    app.add(Worker)
    async with app:
        for machine in (A, B):
            site.publish(f"work/{machine}", "-1")
        await site.settled("app.0.Worker")
        for machine in (A, B, C, D):
            site.publish(f"more/{machine}", "1")
        await gate.reached(4)
        gate.open()
        await eventually(lambda: len(done) == 4)
        assert len({instance for _, instance in done}) == 4
        site.publish(f"work/{A}", "-2")
        await site.settled("app.0.Worker")
        assert site.broker.queues["app.0.Worker.now"].filters == {}


def test_a_filter_without_the_key_is_refused_at_run_time() -> None:
    app = DistributedApplication("memory://", name="app")
    refused: list[str] = []

    @app.application("work/{machine}", concurrency=4, key="machine")
    async def handle(socket: Socket) -> None:
        with pytest.raises(ConfigurationError) as caught:
            await socket.subscribe("more/+")
        refused.append(str(caught.value))

    with Harness(app) as harness:
        harness.publish(f"work/{A}")
    (text,) = refused
    assert "'more/+'" in text
    assert "'machine'" in text


def test_only_a_request_to_the_same_lane_is_a_deadlock() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("ask/{machine}", concurrency=4, key="machine")
    async def asker(machine: str, number: int, socket: Socket) -> int:
        if number == 0:
            return 1
        other = B if machine == A else machine
        return 1 + await socket.request(f"via/{other}", 0, reply=int, timeout=20)

    @app.application("via/{machine}")
    async def via(machine: str, number: int, socket: Socket) -> int:
        return 1 + await socket.request(f"ask/{machine}", number, reply=int, timeout=10)

    with Harness(app) as harness:
        assert harness.request(f"ask/{A}", 1, reply=int) == 3
        harness.expect_failure(RemoteError)
        with pytest.raises(RemoteError) as caught:
            harness.request(f"ask/{C}", 1, reply=int)
    assert "app/0/asker/" in caught.value.text
    assert "deadlock" in str(caught.value)


async def test_actors_with_and_without_lanes_share_a_subscription() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    lanes: list[str] = []
    single: list[str] = []

    @app.application("work/{machine}", concurrency=4, key="machine", subscription="both")
    async def many(machine: str, context: Context) -> None:
        await gate.pass_()
        lanes.append(machine)

    @app.application("work/+", subscription="both")
    async def one(message: Message[bytes], context: Context) -> None:
        single.append(message.topic)
        if len(single) == 5:
            context.stop()

    async with app:
        for machine in (A, B, C, D):
            site.publish(f"work/{machine}")
        await gate.reached(4)
        await eventually(lambda: len(single) == 4)
        assert site.unsettled("app.0.both") == 4
        gate.open()
        await site.settled("app.0.both")
        site.publish(f"work/{A}")
        await site.settled("app.0.both")
        await eventually(lambda: len(site.broker.links) > 0 and len(single) == 5)
        site.publish(f"work/{A}")
        await eventually(lambda: len(lanes) == 6)
    assert len(single) == 5


def test_a_laned_actor_may_leave_a_shared_subscription() -> None:
    app = DistributedApplication("memory://", name="app")
    single: list[str] = []
    lanes: list[str] = []
    stopped: list[int] = []

    class Many(Actor):
        concurrency = 4
        key = "machine"
        subscription = "both"

        @on("work/{machine}")
        async def handle(self, machine: str, context: Context) -> None:
            lanes.append(machine)
            if machine == D:
                context.stop()

        async def on_stop(self) -> None:
            stopped.append(id(self))

    app.add(Many)

    @app.application("work/{machine}", subscription="both")
    async def one(machine: str) -> None:
        single.append(machine)

    with Harness(app) as harness:
        for machine in (A, D):
            harness.publish(f"work/{machine}")
        harness.settle()
        assert len(stopped) == 4
        for machine in (A, B):
            harness.publish(f"work/{machine}")
    assert single == [A, D, A, B]
    assert lanes == [A, D]


def test_latest_by_key_goes_by_the_same_key() -> None:
    app = DistributedApplication("memory://", name="app")
    done: list[tuple[str, int]] = []

    @app.application("work/{machine}/+", key="machine", overflow=Overflow.LATEST_BY_KEY)
    async def handle(number: int, machine: str) -> None:
        await asyncio.sleep(10.0)
        done.append((machine, number))

    with Harness(app) as harness:
        harness.publish("work/first/a", 0)
        harness.advance(1.0)
        harness.publish("work/x/a", 1)
        harness.publish("work/y/a", 2)
        harness.publish("work/x/b", 3)
    assert done == [("first", 0), ("x", 3), ("y", 2)]


# What is refused.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": 1001}, "1 to 1000"),
        ({"concurrency": True}, "concurrency=True"),
        ({"concurrency": 2.0}, "concurrency=2.0"),
        ({"key": "machine"}, "has no effect"),
        ({"concurrency": 2, "key": "mashine"}, "there are: 'machine', 'part'"),
        ({"concurrency": 2, "key": "header:"}, "neither"),
        ({"concurrency": 2, "key": 3}, "key=3"),
        ({"concurrency": 2, "key": "part"}, "not a capture of 'more/{machine}'"),
        ({"concurrency": 2, "state": []}, "give a factory"),
        ({"concurrency": 2, "state": 0}, "give a factory"),
    ],
)
async def test_what_can_not_be_is_refused(options: dict[str, Any], text: str) -> None:
    app = DistributedApplication("memory://", name="app")

    async def handle(payload: bytes) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        app.application(["work/{machine}/{part}", "more/{machine}"], **options)(handle)
    assert text in str(caught.value)


async def test_a_class_is_configured_with_lanes() -> None:
    app = DistributedApplication("memory://", name="app")
    spec = app.add(Hooked, [])
    assert spec.options.concurrency == 3
    app.configure(spec, concurrency=5, key="header:machine")
    assert spec.options.concurrency == 5
    with pytest.raises(ConfigurationError, match="has no effect"):
        app.configure(spec, concurrency=1)


# Anything, at any time.


class World:
    """One application with lanes under trouble, and what it did."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.site = Site()
        self.published: Counter[str] = Counter()
        self.begun: dict[str, list[int]] = defaultdict(list)
        self.done: dict[str, set[int]] = defaultdict(set)
        self.trouble = 0.3
        self.app = self.site.app(stop_timeout=20.0)
        policy = RetryPolicy(attempts=3, first=0.05, factor=2.0)

        @self.app.application(
            "from/{source}", name="actor", window=12, retry=policy, concurrency=3, key="source"
        )
        async def handle(number: int, source: str, socket: Socket) -> None:
            self.begun[source].append(number)
            if self.chance.random() < 0.5:
                await asyncio.sleep(self.chance.choice([0.0, 0.003, 0.05]))
            if self.chance.random() < 0.3:
                socket.post("out", number)
            if self.chance.random() < self.trouble * 0.6:
                raise ValueError(f"{source} {number}")
            if self.chance.random() < self.trouble * 0.2:
                raise Reject
            self.done[source].add(number)

    async def step(self, action: str) -> None:
        site, chance = self.site, self.chance
        if action == "publish":
            for _ in range(chance.randrange(1, 15)):
                source = chance.choice("abcdef")
                number = self.published[source]
                self.published[source] += 1
                site.publish(f"from/{source}", str(number), id=f"{source}-{number}")
        elif action == "wait":
            await asyncio.sleep(chance.choice([0.0, 0.001, 0.02, 0.5]))
        elif action == "cut" and "app.0.actor" in site.broker.links:
            site.cut()
        elif action == "away":
            site.faults.refuse_connections(chance.randrange(1, 4))
        elif action == "duplicate":
            site.faults.duplicate_next(chance.randrange(1, 4), "from/#")
        elif action == "restart":
            site.faults.refuse_connections(0)
            await self.app.aclose()
            await self.app.__aenter__()

    async def run(self, actions: list[str]) -> None:
        async with self.app:
            for action in actions:
                await self.step(action)
            self.trouble = 0.0
            self.site.faults.allow()
            await self.site.reconnected()
            await self.site.settled(timeout=600.0)

    def missing(self) -> set[tuple[str, int]]:
        parked = {
            (letter.headers["spa_dead_topic"].removeprefix("from/"), int(letter.payload))
            for letter in self.site.letters()
        }
        everything = {(s, n) for s, count in self.published.items() for n in range(count)}
        return everything - {(s, n) for s, done in self.done.items() for n in done} - parked


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(
    actions=st.lists(
        st.sampled_from(["publish", "publish", "wait", "cut", "away", "duplicate", "restart"]),
        min_size=5,
        max_size=40,
    ),
    seed=st.integers(0, 2**32),
)
async def test_nothing_is_lost_and_each_key_is_in_order(actions: list[str], seed: int) -> None:
    world = World(seed)
    await world.run(actions)
    assert world.missing() == set()
    for source, numbers in world.begun.items():
        first = list(dict.fromkeys(numbers))
        assert first == sorted(first), source
