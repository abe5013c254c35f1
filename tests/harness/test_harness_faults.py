"""Seeded faults: what named applications promise holds under all of them, and runs repeat."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import fields
from typing import Any, Literal

import pytest

import support.forwarding
from spa_dat import Actor, DistributedApplication, Socket, SyncSocket
from spa_dat.errors import ConfigurationError
from spa_dat.testing import Faults, Harness, NotSettled, explore
from support.hash_seeds import output_with_hash_seed
from support.machine import examples

NUMBERS = range(5)
_ELSEWHERE = ("most", "rebalance", "compact", "crash_in_commit")
KINDS = [field.name for field in fields(Faults) if field.name not in _ELSEWHERE]


def forwarding(kind: str = "async") -> DistributedApplication:
    return support.forwarding.forwarding("mqtt://broker", kind)


def run(app: DistributedApplication, seed: int, faults: Faults) -> str:
    with Harness(app, seed=seed, faults=faults) as harness:
        for number in NUMBERS:
            harness.publish(f"in/{number % 2}", number)
        harness.settle()
        assert set(harness.published("out")) == set(NUMBERS)
        assert harness.dead_letters() == []
        return harness.trace


@pytest.mark.parametrize("kind", ["async", "posting", "thread", "batch", "lanes"])
def test_every_message_is_handled_at_least_once_under_all_faults(kind: str) -> None:
    explore(lambda seed: run(forwarding(kind), seed, Faults.all()), seeds=examples(40))


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_strikes_and_no_message_is_lost(kind: str) -> None:
    trace = ""

    def scenario(seed: int) -> None:
        nonlocal trace
        faults = Faults(**{kind: 0.1})  # type: ignore[arg-type]
        trace += run(forwarding(), seed, faults)

    explore(scenario, seeds=30)
    marks = {
        "drop": " drop\n",
        "duplicate": " deliver ",
        "delay": "\n0.1",
        "reorder": "\n0.001",
        "cut": " lost\n",
        "crash_actor": " restart\n",
        "crash": " crash\n",
    }
    quiet = "".join(run(forwarding(), seed, Faults()) for seed in range(30))
    assert trace.count(marks[kind]) > quiet.count(marks[kind])


def test_what_different_sources_send_is_reordered_and_what_one_sends_is_not() -> None:
    orders: dict[tuple[str, ...], None] = {}

    def scenario(seed: int) -> None:
        app = DistributedApplication("mqtt://broker", name="app")
        seen: list[str] = []

        for source in ("a", "b"):
            copy = DistributedApplication("mqtt://broker", name=source)

            @copy.producer()
            async def send(socket: Socket, context: object = None, name: str = source) -> None:
                for number in (1, 2):
                    socket.post("in", f"{name}{number}")

            others.append(copy)

        @app.application("in")
        async def collect(payload: str) -> None:
            seen.append(payload)

        with Harness(app, *others, seed=seed, faults=Faults(reorder=0.5)) as harness:
            harness.settle()
        others.clear()
        assert seen.index("a1") < seen.index("a2")
        assert seen.index("b1") < seen.index("b2")
        orders[tuple(seen)] = None

    others: list[DistributedApplication] = []
    explore(scenario, seeds=30)
    assert len(orders) > 2


def test_faults_have_to_be_likelihoods() -> None:
    with pytest.raises(ConfigurationError, match="drop"):
        Faults(drop=2.0)


# By hand.


class Counting(Actor):
    topics = ("in/+",)

    def __init__(self) -> None:
        self.count = 0

    async def on_message(self, payload: int, socket: Socket) -> None:
        self.count += 1
        await socket.publish("out", self.count)


def counting() -> DistributedApplication:
    app = DistributedApplication("mqtt://broker", name="app")
    app.add(Counting)
    return app


def test_a_crash_loses_the_state_and_the_broker_keeps_what_was_not_acknowledged() -> None:
    with Harness(counting()) as harness:
        harness.publish("in/a", 1)
        harness.settle()
        harness.crash()
        harness.publish("in/a", 2)
        harness.settle()
        assert harness.published("out") == [1]
        harness.restart()
        harness.settle()
        assert harness.published("out") == [1, 1]


def test_a_crash_leaves_nothing_running() -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    steps: list[str] = []

    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        steps.append("begun")
        try:
            await socket.request("nobody-answers", timeout=5.0)
        finally:
            steps.append("ended")

    @app.application("nobody-answers")
    async def listen(payload: bytes) -> None:
        """No responder."""

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.advance(1.0)
        assert steps == ["begun"]
        harness.crash()
        harness.advance(60.0)
        assert steps == ["begun"]


def test_what_wants_to_wait_at_its_violent_end_is_given_up_from_the_inside_out() -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    steps: list[str] = []

    async def inner() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            steps.append("inner")
            await asyncio.sleep(1.0)
            steps.append("wrong")

    @app.application("in")
    async def outer(payload: int) -> None:
        try:
            await inner()
        except Exception as error:
            steps.append(repr(error))
        finally:
            steps.append("outer")

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.advance(1.0)
        harness.crash()
    gc.collect()
    assert steps == ["inner", "outer"]


def test_restarting_an_actor_loses_its_state_only() -> None:
    with Harness(counting()) as harness:
        harness.publish("in/a", 1)
        harness.settle()
        harness.restart_actor("Counting")
        harness.publish("in/a", 2)
        harness.settle()
        assert harness.published("out") == [1, 1]
        assert harness.state("Counting").count == 1


def test_a_cut_connection_comes_back_and_the_session_is_kept() -> None:
    with Harness(counting()) as harness:
        harness.cut("Counting")
        harness.publish("in/a", 1)
        harness.settle()
        assert harness.published("out") == [1]
        assert harness.stats["connections.lost"] == 1
        assert harness.time > 0.0


def test_a_lost_session_takes_with_it_what_comes_meanwhile() -> None:
    with Harness(counting()) as harness:
        harness.lose_session("Counting")
        harness.publish("in/a", 1)
        harness.settle()
        assert harness.published("out") == []
        harness.publish("in/a", 2)
        harness.settle()
        assert harness.published("out") == [1]


def test_cutting_what_is_not_there_is_named() -> None:
    with Harness(counting()) as harness, pytest.raises(ConfigurationError, match="nobody"):
        harness.cut("nobody")


# Repeating.

_SCRIPT = """
from test_harness_faults import Faults, forwarding, run
print(run(forwarding("async"), 3, Faults.all()))
print(run(forwarding("thread"), 4, Faults.all()))
print(run(forwarding("lanes"), 5, Faults.all()))
"""


def test_the_same_seed_gives_the_same_trace_in_any_process() -> None:
    first = output_with_hash_seed("1", _SCRIPT)
    assert first.count(b"\n") > 100
    assert output_with_hash_seed("2", _SCRIPT) == first


def test_another_seed_gives_another_trace() -> None:
    assert run(forwarding(), 1, Faults.all()) != run(forwarding(), 2, Faults.all())


def test_explore_names_the_seed_that_replays_the_failure() -> None:
    tried: list[int] = []

    def scenario(seed: int) -> None:
        tried.append(seed)
        assert seed % 7 != 5, "found"

    with pytest.raises(AssertionError, match=r"^explore\(scenario, seeds=\[5\]\)  # ") as caught:
        explore(scenario)
    assert tried == [0, 1, 2, 3, 4, 5]
    assert "found" in str(caught.value.__cause__)
    with pytest.raises(AssertionError, match=r"seeds=\[12\]"):
        explore(scenario, seeds=10, start=6)
    with pytest.raises(AssertionError, match=r"seeds=\[19\]"):
        explore(scenario, seeds=[18, 19])
    assert explore(scenario, seeds=[6, 7]) == 2
    with pytest.raises(ConfigurationError, match="at least one"):
        explore(scenario, seeds=0)


def test_what_does_not_settle_fails_a_seed_too() -> None:
    def scenario(seed: int) -> None:
        raise NotSettled("on and on")

    with pytest.raises(AssertionError, match=r"^explore") as caught:
        explore(scenario)
    assert isinstance(caught.value.__cause__, NotSettled)


def test_a_thread_that_is_given_up_cleans_up_before_anything_else_happens() -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    steps: list[str] = []

    @app.application("in")
    def work(payload: int, socket: SyncSocket) -> None:
        steps.append("begun")
        try:
            socket.request("deaf", timeout=5.0)
        finally:
            steps.append("cleaned up")

    @app.application("deaf")
    async def deaf(payload: bytes) -> None:
        """No responder."""

    with Harness(app, allow_failures=TimeoutError) as harness:
        harness.publish("in", 1)
        harness.advance(1.0)
        harness.restart_actor("work")
        harness.advance(0.0)
        assert steps == ["begun", "cleaned up", "begun"]
        harness.crash()
        harness.advance(0.0)
        assert steps == ["begun", "cleaned up"] * 2


@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
def test_an_outage_of_the_broker_is_survived(profile: Literal["mqtt", "kafka"]) -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    times: list[float] = []

    @app.application("in")
    async def forward(payload: int, socket: Socket) -> None:
        await asyncio.sleep(2.0)
        await socket.publish("out", payload)
        times.append(harness.time)

    harness = Harness(app, profile=profile)
    with harness:
        harness.publish("in", 1)
        harness.advance(1.0)
        harness.outage(60.0)
        harness.outage(30.0)
        harness.publish("in", 2)
        harness.advance(58.0)
        assert harness.published("out") == []
        harness.settle()
        assert sorted(set(harness.published("out"))) == [1, 2]
        assert all(time > 61.0 for time in times)


@pytest.mark.parametrize(
    ("address", "away", "kept"),
    [
        ("mqtt://broker", 6 * 86_400.0, True),
        ("mqtt://broker", 8 * 86_400.0, False),
        ("mqtt://broker?session_expiry=60", 59.0, True),
        ("mqtt://broker?session_expiry=60", 61.0, False),
        ("mqtt://broker?session_expiry=4294967295", 1000 * 86_400.0, True),
    ],
)
@pytest.mark.parametrize("end", ["stop", "crash"])
def test_a_session_is_kept_as_long_as_the_broker_would(
    address: str, away: float, kept: bool, end: Literal["stop", "crash"]
) -> None:
    app = DistributedApplication(address, name="app")
    seen: list[int] = []

    @app.application("in")
    async def see(payload: int) -> None:
        seen.append(payload)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        for number in (2, 3):
            # The time begins anew each time.
            getattr(harness, end)()
            harness.publish("in", number)
            harness.advance(away)
            harness.restart()
            harness.settle()
        assert seen == ([1, 2, 3] if kept else [1])
        assert (" session-expired\n" in harness.trace) is not kept
        harness.publish("in", 4)
        harness.settle()
        assert seen[-1] == 4


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), "1", True])
def test_an_outage_lasts_for_some_time(seconds: Any) -> None:
    with (
        Harness(DistributedApplication("mqtt://broker", name="app")) as harness,
        pytest.raises(
            ConfigurationError, match=rf"outage\({seconds!r}\): give a number of seconds"
        ),
    ):
        harness.outage(seconds)
