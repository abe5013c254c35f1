"""States that expire: seen no more from then on, and deleted."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spa_dat import DistributedApplication, Durable, RetryPolicy
from spa_dat.errors import RequestTimeout, StateNotWritten
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.hosting import _key_wakeups
from spa_dat.testing import Faults, Harness
from spa_dat.transports._sqlite_states import SqliteStates
from support.waiting import eventually


@dataclass
class Count:
    n: int = 0


def counting(seen: list[int], **options: Any) -> DistributedApplication:
    app = DistributedApplication("memory://", name="app")
    kept = Durable(ttl=100, **options)

    @app.application("work/{key}", per="key", state=Count, durable=kept)
    async def work(step: int, state: Count) -> int:
        state.n += step
        seen.append(state.n)
        return state.n

    return app


def stored(app: DistributedApplication) -> list[str]:
    store: Any = runs_of(app).settings.state_store
    return [key for _, key in store._states]


def test_a_state_expires_some_time_after_its_last_change() -> None:
    seen: list[int] = []
    app = counting(seen)
    with Harness(app) as harness:
        assert harness.request("work/a", 1, reply=int) == 1
        harness.advance(90)
        assert harness.request("work/a", 1, reply=int) == 2
        harness.advance(90)
        # This changes nothing.
        assert harness.request("work/a", 0, reply=int) == 2
        harness.advance(20)
        assert stored(app) == harness.keys("work") == []
        assert harness.request("work/a", 1, reply=int) == 1


def test_what_has_expired_is_not_seen_before_it_is_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_key_wakeups.KeyWakeups, "start", lambda self: None)
    monkeypatch.setattr(_key_wakeups.KeyWakeups, "note", lambda self, when: None)
    app = counting([])
    with Harness(app) as harness:
        for key, hot in (("a", True), ("b", False)):
            assert harness.request(f"work/{key}", 1, reply=int) == 1
            if not hot:
                harness.passivate("work", key)
        harness.advance(150)
        assert stored(app) == ["a", "b"]
        for key in "ab":
            assert harness.request(f"work/{key}", 1, reply=int) == 1
            assert harness.request(f"work/{key}", 1, reply=int) == 2


def test_many_that_expire_while_nobody_is_there_are_deleted_at_the_next_start() -> None:
    app = counting([])
    with Harness(app) as harness:
        for key in range(350):
            harness.publish(f"work/{key}", 1)
        harness.settle()
        assert len(stored(app)) == 350
        harness.crash()
        harness.advance(200)
        assert len(stored(app)) == 350
        harness.restart()
        harness.settle()
        assert stored(app) == harness.keys("work") == []


def test_a_store_that_fails_deletes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    app = counting([])
    with Harness(app) as harness:
        harness.request("work/a", 1, reply=int)
        store: Any = runs_of(app).settings.state_store

        def fails(*_: Any) -> Any:
            raise StateNotWritten("no room")

        for name in ("commit", "first_due"):
            with monkeypatch.context() as patched:
                patched.setattr(store, name, fails)
                harness.advance(150)
            assert stored(app) == ["a"]
        harness.advance(150)
        assert stored(app) == []


@pytest.mark.parametrize("name", ["commit", "load"])
def test_a_store_that_fails_is_a_problem_of_its_actors(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    app = counting([])
    with Harness(app) as harness:
        store: Any = runs_of(app).settings.state_store

        def fails(*_: Any) -> Any:
            raise StateNotWritten("no room")

        with monkeypatch.context() as patched:
            patched.setattr(store, name, fails)
            harness.publish("work/a", 1)
            for _ in range(20):
                harness.advance(5)
                assert app.problems == {"work": "no room"}
        harness.settle()
        assert app.problems == {}
        # Without anything that is tried again nobody would learn that it is over.
        with monkeypatch.context() as patched:
            patched.setattr(store, name, fails)
            with pytest.raises(RequestTimeout):
                harness.request("work/b", 1, reply=int, timeout=5)
            assert app.problems == {"work": "no room"}
        harness.advance(120)
        assert app.problems == {}


@pytest.mark.parametrize("crash", [0, 0.01])
@pytest.mark.parametrize("seed", range(6))
def test_states_expire_once_and_never_early_whatever_fails(seed: int, crash: float) -> None:
    dice = random.Random(seed)
    app = DistributedApplication("memory://", name="app")
    retry = RetryPolicy(attempts=100, first=0.5, factor=1)
    # By key: the times of the messages, and what each found.
    found: dict[str, list[tuple[float, int, float]]] = defaultdict(list)

    @dataclass
    class Last:
        n: int = 0
        at: float = 0.0

    kept = Durable(ttl=100)

    @app.application("work/{key}", per="key", state=Last, durable=kept, retry=retry)
    async def work(key: str, state: Last, context: Any) -> None:
        before = state.n, state.at
        state.n += 1
        state.at = context.now()
        if dice.random() < 0.2:
            raise ValueError("a bad day")
        found[key].append((context.now(), *before))

    with Harness(app, seed=seed, faults=replace(Faults.all(), crash=crash)) as harness:
        harness.expect_failure(ValueError)
        for _ in range(30):
            harness.publish(f"work/{dice.choice('abc')}", key="x")
            harness.advance(dice.choice((1, 50, 150)))
        harness.settle()
        harness.advance(300)
        harness.settle()
        assert stored(app) == []
    assert sum(map(len, found.values())) >= 30
    for now, n, at in (one for of_key in found.values() for one in of_key):
        assert (n == 0) or now < at + 100.5


async def test_states_expire_on_a_real_clock(tmp_path: Path) -> None:
    app = DistributedApplication("memory://", name="app", state_folder=str(tmp_path))

    @app.application("work/{key}", per="key", state=Count, durable=Durable(ttl=0.2))
    async def work(state: Count) -> int:
        state.n += 1
        return state.n

    async with app:
        assert await app.socket().request("work/a", reply=int) == 1
        await eventually(lambda: not runs_of(app).current.actors[0].keyed.keys)  # type: ignore[union-attr]
    store = SqliteStates(tmp_path / "app.0.states")
    assert store.load("work", ("a",)) == {}
    store.close()


def test_another_ttl_counts_from_the_next_start_on() -> None:
    seen: list[int] = []
    app = counting(seen)
    with Harness(app) as harness:
        harness.request("work/a", 1, reply=int)
        harness.stop()
        (spec,) = app._registry.specs
        spec.reconfigure(replace(spec.options, durable=Durable(ttl=1_000)))
        harness.restart()
        harness.advance(900)
        assert harness.request("work/a", 0, reply=int) == 1
        harness.advance(200)
        assert stored(app) == []
