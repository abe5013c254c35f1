"""Durable keys on a simulated Kafka cluster for which it is time: what has expired is deleted."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spa_dat import Context, DistributedApplication, Durable, KafkaConfig, KafkaTopic, RetryPolicy
from spa_dat.runtime.hosting._key_wakeups import KeyWakeups
from spa_dat.testing import Faults, Harness
from support.kafka_states import in_changelog, in_snapshot, snapshots_in

FAULTS = replace(Faults.all(), duplicate=0.0, most=30)
TTL = 10.0


@dataclass
class Last:
    n: int = 0
    at: float = 0.0


Found = dict[str, list[tuple[float, int, float]]]
"""By key, of each message: when it was handled, and the state that it found."""


def expiring(
    found: Found, instance: int = 0, *, fails: random.Random | None = None, **options: Any
) -> DistributedApplication:
    """Return an application that counts the messages of each key since its state has expired."""
    topics = {"work/{key}": KafkaTopic("work", key="key")}
    config = KafkaConfig("cluster", partitions=3, topics=topics)
    app = DistributedApplication(config, name="app", instance=str(instance))
    given: dict[str, Any] = {"durable": Durable(ttl=TTL)} | options

    @app.application(
        "work/{key}",
        per="key",
        state=Last,
        exactly_once=True,
        retry=RetryPolicy(attempts=100, first=0.5, factor=1),
        **given,
    )
    async def work(step: int, key: str, state: Last, context: Context) -> None:
        before = state.n, state.at
        if step:
            state.n += step
            state.at = context.now()
        if fails is not None and fails.random() < 0.2:
            raise ValueError("a bad day")
        found[key].append((context.now(), *before))

    return app


def seen(found: Found, key: str = "a") -> list[int]:
    return [n for _, n, _ in found[key]]


def test_a_state_expires_some_time_after_its_last_change() -> None:
    found: Found = defaultdict(list)
    with Harness(expiring(found)) as harness:
        for step, wait in ((1, 9), (1, 9), (0, 2), (1, 0)):
            harness.publish("work/a", step)
            harness.advance(wait)
            if step == 0:
                assert in_changelog(harness) == harness.keys("work") == []
        harness.settle()
        # One that changes nothing does not prolong it.
        assert seen(found) == [0, 1, 2, 0]


def test_what_has_expired_is_not_seen_before_it_is_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KeyWakeups, "_look", lambda self: None)
    found: Found = defaultdict(list)
    with Harness(expiring(found)) as harness:
        for key in "ab":
            harness.publish(f"work/{key}", 1)
        harness.settle()
        harness.passivate("work", "b")
        harness.advance(15)
        assert in_changelog(harness) == ["a", "b"]
        for key in "abab":
            harness.publish(f"work/{key}", 1)
        harness.settle()
        assert seen(found, "a") == seen(found, "b") == [0, 0, 1]


@pytest.mark.parametrize("kept", [False, True])
def test_many_that_expire_while_nobody_is_there_are_deleted_by_whoever_comes(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept:
        snapshots_in(tmp_path, monkeypatch)
    first, second = (
        expiring(defaultdict(list), number, durable=Durable(ttl=100)) for number in range(2)
    )
    with Harness(first, second) as harness:
        harness.stop(second)
        for key in range(350):
            harness.publish(f"work/{key}", 1)
        harness.settle()
        harness.stop(first)
        harness.advance(200)
        assert len(in_changelog(harness)) == 350
        if kept:
            assert len(in_snapshot(tmp_path)) == 350
            harness.restart(first)
        else:
            harness.restart(second)
        harness.settle()
        harness.advance(2)
        assert in_changelog(harness) == []
        harness.stop()
        if kept:
            assert in_snapshot(tmp_path) == {}


def test_the_messages_that_are_known_of_a_key_expire_with_its_state() -> None:
    found: Found = defaultdict(list)
    with Harness(expiring(found, durable=Durable(ttl=TTL, dedupe=5))) as harness:
        for _ in range(2):
            harness.publish("work/a", 1, id="one")
        harness.settle()
        assert seen(found) == [0]
        harness.advance(15)
        assert in_changelog(harness) == []


def test_states_with_another_ttl_expire_by_that_and_without_one_never() -> None:
    found: Found = defaultdict(list)
    app = expiring(found)
    with Harness(app) as harness:
        harness.publish("work/a", 1)
        harness.settle()
        for durable, wait in ((Durable(ttl=100), 90), (Durable(), 200)):
            harness.stop()
            (spec,) = app._registry.specs
            spec.reconfigure(replace(spec.options, durable=durable))
            harness.restart()
            harness.advance(wait)
            harness.publish("work/a", 0)
            harness.settle()
        assert seen(found) == [0, 1, 1]
        assert in_changelog(harness) == ["a"]


def run(
    seed: int, folder: Path | None = None, monkeypatch: pytest.MonkeyPatch | None = None
) -> None:
    """Let faults strike while states expire, and check what messages have found."""
    dice, found = random.Random(seed), defaultdict[str, list[tuple[float, int, float]]](list)
    if folder is not None and monkeypatch is not None:
        snapshots_in(folder, monkeypatch)
    apps = [expiring(found, number, fails=dice) for number in range(2)]
    # Chance may have it that none fails.
    with Harness(*apps, seed=seed, faults=FAULTS, allow_failures=ValueError) as harness:
        for _ in range(30):
            harness.publish(f"work/{dice.choice('abcde')}", 1)
            harness.advance(dice.choice((0.1, 5, 15)))
        harness.settle()
        harness.advance(60)
        harness.settle()
        assert in_changelog(harness) == []
    assert sum(map(len, found.values())) >= 30
    for now, n, at in (one for of_key in found.values() for one in of_key):
        assert (n == 0) or now < at + TTL + 0.5


@pytest.mark.parametrize("seed", range(4))
def test_states_expire_and_never_early_whatever_fails(seed: int) -> None:
    run(seed)


@pytest.mark.parametrize("seed", range(2))
def test_states_in_snapshots_expire_whatever_fails(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(seed, tmp_path, monkeypatch)
