"""Reminders of durable keys: each comes once, never early, with all its effects, whatever fails."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Durable,
    KafkaConfig,
    KafkaTopic,
    RetryPolicy,
    Socket,
    on,
    on_reminder,
)
from spa_dat.errors import ConfigurationError, RemoteError
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.dead_letters._stored_letter import LetterFilter
from spa_dat.runtime.hosting._durable_lane import DurableLane
from spa_dat.testing import Faults, Harness
from support.kafka_states import in_changelog
from support.waiting import eventually


@dataclass
class Count:
    n: int = 0


@dataclass
class Plan:
    """What a test asks a key for."""

    after: float = 0.0
    name: str = "late"
    payload: int = 0
    forget: str | None = None
    delete: bool = False
    fail: bool = False
    at: float | None = None


Seen = list[tuple[str, str, int, float]]


def obey(plan: Plan, context: Context) -> None:
    if plan.delete:
        context.delete()
    if plan.forget is not None:
        context.forget_reminder(plan.forget)
    elif plan.at is not None:
        context.remind(plan.name, plan.payload, at=plan.at)
    elif plan.after:
        context.remind(plan.name, plan.payload, after=plan.after)
    if plan.fail:
        raise ValueError("a bad day")


TOPICS = {f"{name}/{{key}}": KafkaTopic(name, key="key") for name in ("work", "done")}


def application(bus: str = "memory", instance: int = 0) -> DistributedApplication:
    if bus == "memory":
        return DistributedApplication("memory://", name="app")
    config = KafkaConfig("cluster", partitions=3, topics=TOPICS)
    return DistributedApplication(config, name="app", instance=str(instance))


def with_function(seen: Seen, bus: str = "memory", **options: Any) -> DistributedApplication:
    app = application(bus)
    given: dict[str, Any] = {"durable": True, "retry": RetryPolicy(attempts=1)} | options
    given["exactly_once"] = bus != "memory"

    @app.application("work/{key}", per="key", state=Count, **given)
    async def work(plan: Plan, context: Context, state: Count) -> int:
        obey(plan, context)
        return state.n

    @app.on_reminder("work", "late", "later")
    async def late(
        number: int, key: str, reminder: str, state: Count, context: Context, socket: Socket
    ) -> None:
        state.n += 1
        seen.append((key, reminder, number, context.now()))
        await socket.publish(f"done/{key}", number)
        if number < 0:
            raise ValueError("a bad number")

    return app


def with_class(seen: Seen, bus: str = "memory", **options: Any) -> DistributedApplication:
    app = application(bus)

    class Work(Actor):
        name = "work"
        exactly_once = bus != "memory"
        per, state = "key", Count
        durable = options.get("durable", True)
        retry = RetryPolicy(attempts=1)

        @on("work/{key}")
        async def work(self, plan: Plan, context: Context) -> int:
            obey(plan, context)
            return int(self.state.n)

        @on_reminder("late", "later")
        async def late(
            self, number: int, key: str, reminder: str, context: Context, socket: Socket
        ) -> None:
            self.state.n += 1
            seen.append((key, reminder, number, context.now()))
            await socket.publish(f"done/{key}", number)
            if number < 0:
                raise ValueError("a bad number")

    app.add(Work)
    return app


Kind = Any
KINDS: dict[str, Kind] = {
    "function": with_function,
    "class": with_class,
    "function on Kafka": partial(with_function, bus="kafka"),
    "class on Kafka": partial(with_class, bus="kafka"),
}
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
on_each_bus = pytest.mark.parametrize("bus", ["memory", "kafka"])


@all_kinds
def test_a_reminder_comes_when_it_is_due(kind: Kind) -> None:
    seen: Seen = []
    app = kind(seen)
    with Harness(app) as harness:
        harness.request("work/a", Plan(after=10, payload=1), reply=int)
        harness.request("work/b", Plan(after=500, name="later", payload=2), reply=int)
        harness.advance(9.9)
        assert seen == []
        harness.advance(0.2)
        assert [one[:3] for one in seen] == [("a", "late", 1)]
        harness.passivate("work")
        harness.advance(600)
        assert [one[:3] for one in seen] == [("a", "late", 1), ("b", "later", 2)]
        assert 490 <= seen[1][3] - seen[0][3] < 490.1
        assert harness.published("done/a") == [1]
        assert harness.request("work/a", Plan(), reply=int) == 1


@all_kinds
def test_setting_it_again_replaces_it_and_it_can_be_forgotten(kind: Kind) -> None:
    seen: Seen = []
    with Harness(kind(seen)) as harness:
        for plan in (
            Plan(after=10, payload=1),
            Plan(after=20, payload=2),
            Plan(after=30, name="later", payload=3),
            Plan(forget="later"),
            Plan(forget="unknown"),
        ):
            harness.request("work/a", plan, reply=int)
        harness.advance(15)
        assert seen == []
        harness.advance(100)
        assert [one[2] for one in seen] == [2]
        # A handler that fails has set nothing, and removed nothing.
        harness.request("work/a", Plan(after=10, payload=4), reply=int)
        for plan in (Plan(forget="late", fail=True), Plan(after=1, payload=5, fail=True)):
            with pytest.raises(RemoteError):
                harness.request("work/a", plan, reply=int)
        harness.advance(100)
        assert [one[2] for one in seen] == [2, 4]


@all_kinds
def test_deleting_a_state_removes_its_reminders_but_not_new_ones(kind: Kind) -> None:
    seen: Seen = []
    with Harness(kind(seen)) as harness:
        harness.request("work/a", Plan(after=10, payload=1), reply=int)
        harness.request("work/a", Plan(delete=True), reply=int)
        harness.advance(100)
        assert seen == []
        harness.request("work/a", Plan(after=10, payload=2, delete=True), reply=int)
        harness.advance(100)
        assert [one[2] for one in seen] == [2]
        # It found a new state.
        assert harness.request("work/a", Plan(), reply=int) == 1


@on_each_bus
def test_an_overdue_reminder_comes_once_after_the_next_start(bus: str) -> None:
    seen: Seen = []
    with Harness(with_function(seen, bus)) as harness:
        for key in range(250):
            harness.publish(f"work/{key}", Plan(after=100, payload=key))
        harness.publish("work/far", Plan(after=5_000, payload=-7))
        harness.settle()
        harness.crash()
        harness.advance(200)
        assert seen == []
        harness.restart()
        harness.settle()
        assert sorted(one[2] for one in seen) == list(range(250))
        harness.restart()
        harness.settle()
        assert len(seen) == 250


@on_each_bus
def test_a_time_in_the_past_is_due_at_once_even_if_it_is_the_same_again(bus: str) -> None:
    seen: Seen = []
    with Harness(with_function(seen, bus)) as harness:
        for n in range(3):
            harness.request("work/a", Plan(at=1_000.0, payload=n), reply=int)
            harness.settle()
        assert [one[2] for one in seen] == [0, 1, 2]
        assert harness.published("done/a") == [0, 1, 2]


@all_kinds
def test_a_reminder_that_fails_becomes_a_dead_letter_and_is_gone(kind: Kind) -> None:
    seen: Seen = []
    with Harness(kind(seen)) as harness:
        harness.expect_failure(ValueError)
        harness.request("work/a", Plan(after=10, payload=-1), reply=int)
        harness.request("work/a", Plan(after=20, name="later", payload=2), reply=int)
        harness.advance(100)
        (letter,) = harness.dead_letters()
        assert letter.topic == "_spa/reminder/late/a"
        assert letter.text == "a bad number"
        assert [one[2] for one in seen] == [-1, 2]
        assert harness.published("done/a") == [2]
        harness.restart()
        harness.advance(100)
        assert len(seen) == 2
        assert harness.request("work/a", Plan(), reply=int) == 1


@on_each_bus
def test_a_reminder_is_tried_again_and_waits_for_its_turn(bus: str) -> None:
    seen: Seen = []
    app = application(bus)
    order: list[Any] = []

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work(plan: Plan, context: Context) -> None:
        obey(plan, context)
        order.append(plan.payload)

    @app.on_reminder("work", "late")
    async def late(number: int, context: Context, state: Count) -> None:
        state.n += 1
        order.append((number, context.attempt))
        if context.attempt < 3:
            raise ValueError("again")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("work/a", Plan(after=0.5, payload=1))
        harness.advance(0.6)
        harness.publish("work/a", Plan(payload=2))
        harness.settle()
        assert order == [1, (1, 1), (1, 2), (1, 3), 2]
        assert harness.state("work", key="a") == Count(1)
    assert seen == []


@on_each_bus
def test_reminders_that_are_tried_again_do_not_keep_others_from_coming(bus: str) -> None:
    app = application(bus)
    done: dict[str, float] = {}
    again = RetryPolicy(attempts=2, first=300.0, hold=1_000.0)

    @app.application("work/{key}", per="key", state=Count, durable=True, retry=again)
    async def work(plan: Plan, context: Context) -> None:
        obey(plan, context)

    @app.on_reminder("work", "late")
    async def late(number: int, key: str, context: Context) -> None:
        if number < 0 and context.attempt == 1:
            raise ValueError("a bad number")
        done[key] = context.now()

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        for key in range(80):
            harness.publish(f"work/bad{key}", Plan(after=10, payload=-1))
            harness.publish(f"work/good{key}", Plan(after=10, payload=1))
        harness.advance(20)
        harness.settle()
        assert len(done) == 160
        good = [when for key, when in done.items() if key.startswith("good")]
        assert max(good) - min(good) < 10


@on_each_bus
def test_a_reminder_without_a_handler_becomes_a_dead_letter(bus: str) -> None:
    app = with_function([], bus)
    with Harness(app) as harness:
        harness.request("work/a", Plan(after=10, payload=1), reply=int)
        harness.stop()
        (spec,) = app._registry.specs
        spec.reminder_functions.clear()
        spec.reconfigure(spec.options)
        harness.restart()
        harness.advance(100)
        (letter,) = harness.dead_letters()
        assert "reminder 'late' has no handler" in letter.text


@on_each_bus
def test_a_reminder_outlives_a_state_that_has_expired(bus: str) -> None:
    seen: Seen = []
    with Harness(with_function(seen, bus, durable=Durable(ttl=50))) as harness:
        harness.request("work/a", Plan(after=100, payload=1), reply=int)
        harness.advance(99)
        assert harness.keys("work") == []
        harness.advance(2)
        assert [one[2] for one in seen] == [1]
        assert harness.request("work/a", Plan(), reply=int) == 1
        harness.advance(60)
        assert stored(harness, bus) == []


def stored(harness: Harness, bus: str) -> list[str]:
    """Return the keys of which something is kept."""
    if bus == "kafka":
        return in_changelog(harness)
    (tested,) = harness._core.world.tested
    store: Any = runs_of(tested.application).settings.state_store
    return [key for _, key in store._states]


def chain(
    dice: random.Random,
    due: dict[tuple[str, int], float],
    bus: str = "memory",
    instance: int = 0,
    *,
    once: bool = True,
) -> DistributedApplication:
    """Return an application whose keys remind themselves again and again."""
    app = application(bus, instance)
    retry = RetryPolicy(attempts=100, first=0.5, factor=1)
    exactly_once = bus == "kafka" and once

    @app.application(
        "work/{key}", per="key", state=Count, durable=True, exactly_once=exactly_once, retry=retry
    )
    async def work(context: Context) -> None:
        context.remind("tick", 1, after=5)

    @app.on_reminder("work", "tick")
    async def tick(number: int, key: str, state: Count, context: Context, socket: Socket) -> None:
        assert context.now() >= due.get((key, number), 0)
        state.n += 1
        await socket.publish(f"done/{key}", state.n)
        if number < 6:
            wait = dice.choice((0.0, 1.0, 40.0))
            context.remind("tick", number + 1, after=wait)
        if dice.random() < 0.3:
            raise ValueError("a bad day")
        if number < 6:
            # If this is not committed, the next attempt says when it is due.
            due[key, number + 1] = context.now() + wait

    return app


def run(seed: int, crash: float, profile: Any = None) -> None:
    app = chain(random.Random(seed), {})
    faults = replace(Faults.all(), crash=crash)
    # Chance may have it that none fails.
    with Harness(
        app, seed=seed, faults=faults, profile=profile, allow_failures=ValueError
    ) as harness:
        check(harness)


def run_on_kafka(seed: int, *, once: bool = True) -> None:
    dice, due = random.Random(seed), dict[tuple[str, int], float]()
    apps = [chain(dice, due, "kafka", number, once=once) for number in range(2)]
    faults = replace(Faults.all(), duplicate=0.0, most=30)
    with Harness(*apps, seed=seed, faults=faults, allow_failures=ValueError) as harness:
        check(harness, once=once)


def check(harness: Harness, *, once: bool = False) -> None:
    """Start the chains of three keys, wait for their ends, and compare what they have published."""
    for key in "abc":
        harness.publish(f"work/{key}", key=key)
    harness.settle()
    for _ in range(40):
        harness.advance(20)
        if all(6 in harness.published(f"done/{key}") for key in "abc"):
            break
    harness.settle()
    numbers: dict[str, dict[Any, int]] = defaultdict(dict)
    for one in harness.messages("done/+"):
        assert not once or one.id not in numbers[one.topic]
        assert numbers[one.topic].setdefault(one.id, int(one.payload)) == int(one.payload)
    assert len(numbers) == 3
    for of_key in numbers.values():
        assert list(of_key.values()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("profile", [None, "mqtt"])
@pytest.mark.parametrize("crash", [0, 0.01])
@pytest.mark.parametrize("seed", range(5))
def test_each_reminder_has_its_effects_once_whatever_fails(
    seed: int, crash: float, profile: Any
) -> None:
    run(seed, crash, profile)


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_each_reminder_has_its_effects_once_on_kafka_whatever_fails(seed: int, once: bool) -> None:
    run_on_kafka(seed, once=once)


def test_without_undoing_the_states_they_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DurableLane, "_undo", lambda self, cell: None)
    with pytest.raises(AssertionError):
        run(1, 0.0)


async def test_reminders_survive_the_program(tmp_path: Path) -> None:
    got: list[Any] = []

    def application() -> DistributedApplication:
        app = DistributedApplication("memory://", name="app", state_folder=str(tmp_path))

        @app.application("work/{key}", per="key", state=Count, durable=True)
        async def work(context: Context) -> int:
            context.remind("soon", b"\xff\x00", after=0.3)
            context.remind("text", "x", at=datetime.now(UTC))
            context.remind("nothing", at=0)
            context.remind("far", at=datetime(2999, 1, 1, tzinfo=UTC))
            return 1

        @app.on_reminder("work", "soon")
        def soon(payload: bytes, state: Count) -> None:
            got.append(payload)

        @app.on_reminder("work", "text")
        def text(payload: str) -> None:
            got.append(payload)

        @app.on_reminder("work", "nothing", "far")
        async def nothing(reminder: str) -> None:
            got.append(reminder)

        return app

    async with (app := application()):
        assert await app.socket().request("work/a", reply=int) == 1
    async with application():
        await eventually(lambda: len(got) == 3)
    assert set(got) == {b"\xff\x00", "x", "nothing"}


# Bad input.


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c: c.remind("other", after=1), "no handler .* 'work' .* there are: 'late'"),
        (lambda c: c.remind(7, after=1), "no handler of actor"),
        (lambda c: c.remind("late"), "give either at= or after="),
        (lambda c: c.remind("late", at=1, after=1), "give either at= or after="),
        (lambda c: c.remind("late", after=-1), "after=-1: give seconds"),
        (lambda c: c.remind("late", after=float("nan")), "after=nan: give seconds"),
        (lambda c: c.remind("late", after="x"), "after='x'"),
        (lambda c: c.remind("late", at=float("inf")), "at=inf: give seconds since 1970"),
        (lambda c: c.remind("late", at="x"), "at='x'"),
        (lambda c: c.remind("late", at=datetime(2000, 1, 1)), "has no zone"),  # noqa: DTZ001
        (lambda c: c.remind("late", object(), after=1), "cannot be"),
        (lambda c: c.remind("late", "x" * 200_000, after=1), "100000 bytes are allowed"),
        (lambda c: c.forget_reminder("a/b"), "use 1 to 64"),
    ],
)
def test_reminders_that_cannot_be_are_refused(call: Any, text: str) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work(context: Context) -> int:
        call(context)
        return 1

    @app.on_reminder("work", "late")
    async def late() -> None: ...

    with Harness(app) as harness, pytest.raises(RemoteError, match=text):
        harness.request("work/a", reply=int)


def test_actors_that_are_not_durable_have_no_reminders() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("plain")
    async def plain(forget: bool, context: Context) -> int:
        if forget:
            context.forget_reminder("x")
        context.remind("x", after=1)
        return 1

    @app.application("keyed/{key}", per="key")
    async def keyed(context: Context) -> int:
        context.remind("x", after=1)
        return 1

    with Harness(app) as harness:
        for topic, payload in (("plain", True), ("plain", False), ("keyed/a", False)):
            with pytest.raises(RemoteError, match="is not durable, so it has no reminders"):
                harness.request(topic, payload, reply=int)


def test_handlers_that_cannot_be_are_refused_at_registration() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("plain/{key}", per="key", state=Count)
    async def plain() -> None: ...

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work() -> None: ...

    def refused(actor: str, *names: Any, text: str) -> None:
        with pytest.raises(ConfigurationError, match=text):

            @app.on_reminder(actor, *names)
            async def late() -> None: ...

    refused("other", "late", text="no actor 'other' is registered; there are: 'plain', 'work'")
    refused("plain", "late", text="'late' is a part of what is kept of a key: give per=")
    refused("work", text="give the name of a reminder")
    refused("work", "a/b", text="use 1 to 64")
    refused("work", "late", "late", text="'late' has two handlers")

    with pytest.raises(ConfigurationError, match="unheard"):

        @app.on_reminder("work", "late")
        async def late(number: int, unheard: Any, of: Any) -> None: ...

    # What was refused has left nothing behind.
    @app.on_reminder("work", "late")
    async def fine() -> None: ...

    refused("work", "late", text="'late' has two handlers")

    class Work(Actor):
        per, state = "key", Count

        @on("work/{key}")
        async def work(self) -> None: ...

        @on_reminder("late")
        async def late(self) -> None: ...

    with pytest.raises(ConfigurationError, match="'late' is a part of what is kept of a key"):
        app.add(Work)
    Work.durable = True  # type: ignore[attr-defined]
    app.add(Work)
    refused("Work", "later", text="the actor is a class")
    with pytest.raises(ConfigurationError, match="takes the names of reminders"):
        on_reminder()
    with pytest.raises(ConfigurationError, match="takes the names of reminders"):
        on_reminder(work)  # type: ignore[arg-type]


async def test_a_dead_letter_of_a_reminder_can_be_replayed(tmp_path: Path) -> None:
    app = DistributedApplication("memory://", name="app", state_folder=str(tmp_path))
    well = asyncio.Event()
    got: list[Any] = []

    @app.application(
        "work/{key}", per="key", state=Count, durable=True, retry=RetryPolicy(attempts=1)
    )
    async def work(context: Context) -> int:
        context.remind("late", 7, at=0)
        return 1

    @app.on_reminder("work", "late")
    async def late(number: int, key: str, state: Count) -> None:
        if not well.is_set():
            raise ValueError("a bad day")
        state.n += number
        got.append(key)

    async with app:
        await app.socket().request("work/a", reply=int)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        letters = runs_of(app).current.dead_letters  # type: ignore[union-attr]
        (name,) = [letter.name async for _, letter in letters.search.stored(LetterFilter())]
        well.set()
        assert (await letters.replay(name)).outcome == "handled"
        assert got == ["a"]
        assert await app.peek("work", "a") == Count(7)
