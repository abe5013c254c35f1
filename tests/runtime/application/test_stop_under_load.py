"""Nothing is lost and order is kept, whatever happens and whenever."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spa_dat import Context, DistributedApplication, Reject, RetryPolicy, Socket
from spa_dat.errors import ConnectionLost
from spa_dat.testing import Harness
from support.machine import examples
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual


# Stopping.


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.013, 0.1, 0.7])
def test_stop_under_load_finishes_what_runs_and_leaves_the_rest_to_the_bus(moment: float) -> None:
    app = DistributedApplication("memory://", name="app")
    begun: list[int] = []
    seen: list[int] = []

    @app.application("n")
    async def handle(number: int, socket: Socket) -> None:
        begun.append(number)
        await asyncio.sleep(0.01)
        socket.post("out", number)
        await socket.publish("out", number)
        seen.append(number)

    with Harness(app) as harness:
        for number in range(200):
            harness.publish("n", number)
        harness.advance(moment)
        harness.stop()
        assert seen == begun
        assert harness.trace.count(" acknowledge ") == len(seen) < 200
        assert harness.stats["actors.cut_off"] == 0
        harness.restart()
    assert seen == list(range(200))
    assert harness.published("out") == [number for number in range(200) for _ in range(2)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_actor_that_stops_itself_handles_no_further_message(concurrency: int) -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    seen: list[int] = []

    @app.application("n", concurrency=concurrency)
    async def handle(number: int, context: Context) -> None:
        seen.append(number)
        if number == 2:
            context.stop()

    with Harness(app) as harness:
        for number in range(10):
            harness.publish("n", number, key="same")
        harness.settle()
        assert seen == [0, 1, 2]
        harness.restart()
        harness.settle()
        assert seen == list(range(10))


def test_a_handler_that_does_not_end_is_cut_off_and_its_message_comes_again() -> None:
    app = DistributedApplication("memory://", name="app", stop_timeout=2.0)
    begun: list[int] = []
    seen: list[int] = []

    @app.application("n")
    async def handle(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(1000.0 if len(begun) == 1 else 0.0)
        seen.append(number)

    with Harness(app) as harness:
        harness.publish("n", 1)
        harness.publish("n", 2)
        harness.advance(0.0)
        assert begun == [1]
        harness.stop()
        assert harness.time < 4.0
        assert harness.stats["actors.cut_off"] == 1
        harness.restart()
    assert seen == [1, 2]


async def test_stop_while_the_broker_is_away_ends_in_time_and_loses_nothing() -> None:
    site = Site()
    app = site.app(stop_timeout=3.0)
    seen: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket) -> None:
        seen.append(number)
        await asyncio.sleep(0.1)
        socket.post("out", number)

    out = site.watch("out")
    async with app:
        site.number("n", *range(10))
        await asyncio.sleep(0.25)
        site.faults.refuse_connections()
        for client in ("app.0", "app.0.actor"):
            site.cut(client)
        start = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - start < 5
    site.faults.allow()
    async with app:
        await site.settled()
    assert set(seen) == set(range(10))
    assert set(out.payloads) == {str(number) for number in range(10)}


def test_many_actors_stop_together_in_the_time_of_the_slowest() -> None:
    app = DistributedApplication("memory://", name="app")
    begun: list[str] = []

    for number in range(30):

        @app.application("n", name=f"actor-{number}")
        async def handle(payload: bytes, context: Context) -> None:
            begun.append(context.actor)
            await asyncio.sleep(2)

    with Harness(app) as harness:
        harness.publish("n", 1)
        harness.advance(0.0)
        assert len(begun) == 30
        harness.stop()
        assert harness.time < 3.0
    assert harness.stats["messages.handled"] == 30


def test_requests_under_way_when_the_application_stops_get_their_answer() -> None:
    asker = DistributedApplication("memory://shared", name="asker")
    responder = DistributedApplication("memory://shared", name="responder")
    begun: list[int] = []
    answers: list[int] = []

    @asker.application("n")
    async def ask(number: int, socket: Socket) -> None:
        answers.append(await socket.request("q", number, reply=int, timeout=5))

    @responder.application("q")
    async def answer(number: int) -> int:
        begun.append(number)
        await asyncio.sleep(1.0)
        return number

    with Harness(asker, responder) as harness:
        harness.publish("n", 1)
        harness.advance(0.5)
        assert begun == [1]
        harness.stop(responder)
    assert answers == [1]
    assert begun == [1]


# Anything, at any time.


@dataclass
class World:
    """One application under trouble, and what it did.

    Messages have a source and a number; those of one source come in order.
    """

    chance: random.Random
    site: Site = field(default_factory=Site)
    published: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    done: list[tuple[str, int]] = field(default_factory=list)
    begun: list[tuple[str, int]] = field(default_factory=list)
    trouble: float = 0.3

    def __post_init__(self) -> None:
        self.app = self._make_app()

    def _make_app(self) -> DistributedApplication:
        app = self.site.app(stop_timeout=20.0)
        policy = RetryPolicy(attempts=3, first=0.05, factor=2.0)

        @app.application(["from/{source}", "from/#"], name="actor", window=8, retry=policy)
        async def handle(number: int, socket: Socket, context: Context, source: str = "-") -> None:
            self.begun.append((source, number))
            kind = self.chance.random()
            if kind < 0.5:
                await asyncio.sleep(self.chance.choice([0.0, 0.003, 0.05]))
            if self.chance.random() < 0.3:
                socket.post("out", number)
            if self.chance.random() < 0.1:
                await socket.publish("out", number, timeout=2)
            luck = self.chance.random()
            if luck < self.trouble * 0.6:
                raise ValueError(f"{source} {number}")
            if luck < self.trouble * 0.7:
                raise ConnectionLost("somewhere else")
            if luck < self.trouble * 0.8:
                raise Reject
            self.done.append((source, number))

        return app

    def publish(self, count: int) -> None:
        for _ in range(count):
            source = self.chance.choice("ab")
            number = self.published[source]
            self.published[source] += 1
            self.site.publish(f"from/{source}", str(number), id=f"{source}-{number}")

    async def step(self, action: str) -> None:
        site = self.site
        clients = [client for client in site.broker.links if client.startswith("app.0")]
        if action == "publish":
            self.publish(self.chance.randrange(1, 15))
        elif action == "wait":
            await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.02, 0.5, 3.0]))
        elif action == "cut":
            if clients:
                site.cut(self.chance.choice(clients))
        elif action == "cut all":
            for client in clients:
                site.cut(client)
        elif action == "away":
            site.faults.refuse_connections(self.chance.randrange(1, 4))
        elif action == "lose confirmations":
            site.faults.drop_confirmations(self.chance.randrange(1, 4))
        elif action == "lose messages":
            site.faults.drop_next(self.chance.randrange(1, 4), "from/#")
        elif action == "duplicate":
            site.faults.duplicate_next(self.chance.randrange(1, 4), "from/#")
        elif action == "no parking":
            site.faults.refuse_publish("_spa/dead-letter/#")
        elif action == "parking":
            site.faults.allow()
        elif action == "restart":
            site.faults.refuse_connections(0)
            await self.app.aclose()
            await self.app.__aenter__()
        elif action == "lose session":
            # What the broker loses while it has not been delivered is nobody's to handle.
            await self.calm()
            await eventually(lambda: not len(site.broker.queues["app.0.actor"]), 600.0)
            await asyncio.sleep(0)
            site.cut(lose_session=True)
            await site.reconnected()
        elif action == "restart in calm":
            await self.calm()
            await self.step("restart")

    async def calm(self) -> None:
        """End the trouble that the broker makes, and wait until all are connected."""
        site = self.site
        site.faults.allow()
        site.faults.drop_confirmations(0)
        site.faults.drop_next(0)
        await site.reconnected("app.0")
        site.cut("app.0")
        await site.reconnected("app.0")
        await site.reconnected()

    async def run(self, actions: list[str]) -> None:
        site = self.site
        async with self.app:
            for action in actions:
                await self.step(action)
            self.trouble = 0.0
            await self.calm()
            # What was lost on the way comes with the next connection.
            site.cut()
            await site.reconnected()
            await site.settled(timeout=600.0)
            await eventually(lambda: not self.missing(), 60.0)

    def parked(self) -> set[tuple[str, int]]:
        return {
            (letter.headers["spa_dead_topic"].removeprefix("from/"), int(letter.payload))
            for letter in self.site.letters()
        }

    def missing(self) -> set[tuple[str, int]]:
        everything = {
            (source, number) for source, count in self.published.items() for number in range(count)
        }
        return everything - set(self.done) - self.parked()

    def out_of_order(self) -> list[tuple[str, int, int]]:
        """Messages that came after a later one of the same source, but for repetitions."""
        # A parked message may come again, and be handled when later ones have long been.
        parked = self.parked()
        handled = [message for message in self.done if message not in parked]
        return [*_descents(self.begun), *_descents(handled)]


def _descents(messages: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    newest: dict[str, int] = {}
    wrong = []
    for source, number in dict.fromkeys(messages):
        if number < newest.get(source, -1):
            wrong.append((source, newest[source], number))
        newest[source] = max(number, newest.get(source, -1))
    return wrong


ALWAYS_IN_ORDER = [
    "publish",
    "publish",
    "wait",
    "wait",
    "cut",
    "cut all",
    "away",
    "lose confirmations",
    "duplicate",
    "no parking",
    "parking",
    "restart",
]


WITHOUT_RESTART = [action for action in ALWAYS_IN_ORDER if action != "restart"]


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(
    actions=st.lists(st.sampled_from(ALWAYS_IN_ORDER), min_size=5, max_size=60),
    seed=st.integers(0, 2**32),
)
async def test_every_message_is_handled_or_parked_in_order(actions: list[str], seed: int) -> None:
    world = World(random.Random(seed))
    await world.run(actions)
    assert world.missing() == set()
    assert world.out_of_order() == []


@settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(
    actions=st.lists(
        st.sampled_from([*WITHOUT_RESTART, "restart in calm", "lose session"]),
        min_size=5,
        max_size=60,
    ),
    seed=st.integers(0, 2**32),
)
async def test_a_lost_session_loses_nothing_that_was_delivered(
    actions: list[str], seed: int
) -> None:
    world = World(random.Random(seed))
    await world.run(actions)
    assert world.missing() == set()


@settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(
    actions=st.lists(st.sampled_from([*ALWAYS_IN_ORDER, "lose messages"]), min_size=5, max_size=60),
    seed=st.integers(0, 2**32),
)
async def test_messages_lost_on_the_way_are_handled_too(actions: list[str], seed: int) -> None:
    world = World(random.Random(seed))
    await world.run(actions)
    assert world.missing() == set()
