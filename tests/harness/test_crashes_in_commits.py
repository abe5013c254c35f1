"""Crashes at the steps in which what a message of a durable key has come to is committed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from spa_dat import DistributedApplication, RetryPolicy, Socket
from spa_dat.errors import ConfigurationError
from spa_dat.harness.world._memory_states import MemoryStates
from spa_dat.runtime.hosting._committed_messages import CommittedMessages, SentOutputs
from spa_dat.runtime.hosting._durable_lane import DurableLane
from spa_dat.testing import Faults, HandlerFailed, Harness, explore
from spa_dat.transports import Envelope
from support.exploring import found_by_explore
from support.machine import examples

KEYS = 4
MESSAGES = 5


@dataclass
class Count:
    n: int = 0


def counting(calls: list[int], fails: Callable[[], bool] = lambda: False) -> DistributedApplication:
    """Return an application that numbers the messages of each key."""
    app = DistributedApplication("mqtt://broker", name="app")
    retry = RetryPolicy(attempts=100, first=0.5, factor=1)

    @app.application("work/{key}", per="key", state=Count, durable=True, retry=retry)
    async def work(number: int, key: str, state: Count, socket: Socket) -> None:
        calls.append(number)
        state.n += 1
        await socket.publish(f"done/{key}", state.n)
        if fails():
            raise ValueError("a bad day")

    return app


@pytest.mark.parametrize(
    ("step", "before", "after", "handled"),
    [
        ("handled", [], [1], [7, 7]),
        ("committed", [], [1], [7]),
        # What is confirmed is not known to the store, so it is sent again, with the same id.
        ("published", [1], [1, 1], [7]),
    ],
)
def test_a_crash_at_a_step_loses_and_repeats_nothing(
    step: Any, before: list[int], after: list[int], handled: list[int]
) -> None:
    calls: list[int] = []
    with Harness(counting(calls)) as harness:
        harness.crash(at=step)
        harness.publish("work/a", 7)
        harness.settle()
        assert harness.published("done/a") == before
        assert calls == [7]
        harness.restart()
        harness.settle()
        assert harness.published("done/a") == after
        assert len({message.id for message in harness.messages("done/a")}) == 1
        assert calls == handled
        harness.publish("work/a", 8)
        harness.settle()
        assert harness.published("done/a") == [*after, 2]
        assert f" app/0 reached {step}\n" in harness.trace


def test_the_store_learns_of_acknowledgements_with_the_next_message() -> None:
    calls: list[int] = []
    with Harness(counting(calls)) as harness:
        harness.crash(at="acknowledged")
        harness.publish("work/a", 7)
        harness.settle()
        assert harness.published("done/a") == [1]
        harness.publish("work/a", 8)
        harness.settle()
        assert calls == [7]
        harness.restart()
        harness.settle()
        assert harness.published("done/a") == [1, 1, 2]
        assert calls == [7, 8]


def test_a_step_that_is_not_reached_is_told() -> None:
    with (
        pytest.raises(HandlerFailed, match="was to crash at 'committed', and no message"),
        Harness(counting([])) as harness,
    ):
        harness.crash(at="committed")


def test_steps_that_there_are_not_are_refused() -> None:
    plain = DistributedApplication("memory://", name="plain")

    @plain.application("a")
    async def a() -> None: ...

    with Harness(plain) as harness:
        with pytest.raises(ConfigurationError, match=r"give one of 'handled', 'committed'"):
            harness.crash(at="begun")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="no actor is durable"):
            harness.crash(at="handled")


def run(seed: int, faults: Faults, failures: float = 0.0) -> str:
    dice = random.Random(seed)
    app = counting([], lambda: dice.random() < failures)
    with Harness(app, seed=seed, faults=faults, allow_failures=ValueError) as harness:
        for number in range(MESSAGES):
            for key in range(KEYS):
                harness.publish(f"work/{key}", number)
        harness.settle()
        numbers: dict[str, list[int]] = defaultdict(list)
        contents: dict[str | None, set[int]] = defaultdict(set)
        for message in harness.messages("done/+"):
            numbers[message.topic].append(message.payload)
            contents[message.id].add(message.payload)
        assert len(numbers) == KEYS
        for found in numbers.values():
            assert list(dict.fromkeys(found)) == list(range(1, MESSAGES + 1))
        assert all(len(payloads) == 1 for payloads in contents.values())
        return harness.trace


COMMITS = Faults(crash_in_commit=0.1)


def test_crashes_at_all_steps_lose_and_repeat_nothing() -> None:
    traces: list[str] = []
    explore(lambda seed: traces.append(run(seed, COMMITS)), seeds=examples(30))
    for step in ("handled", "committed", "published", "acknowledged"):
        assert any(f" reached {step}\n" in trace for trace in traces)


def test_all_faults_and_failures_lose_and_repeat_nothing() -> None:
    explore(lambda seed: run(seed, Faults.all(), 0.2), seeds=examples(30))


def test_without_the_rollback_it_would_go_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DurableLane, "_undo", lambda self, cell: None)
    found_by_explore(lambda seed: run(seed, COMMITS, 0.2))


def test_without_the_ids_of_what_was_handled_it_would_go_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryStates, "find", lambda self, message: False)
    found_by_explore(lambda seed: run(seed, COMMITS))


def test_without_what_was_recorded_it_would_go_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = MemoryStates.commit

    def forgetful(self: MemoryStates, changes: Sequence[Any], *done: Any) -> Any:
        for change in changes:
            change.outputs = ()
        return commit(self, changes, *done)

    monkeypatch.setattr(MemoryStates, "commit", forgetful)
    found_by_explore(lambda seed: run(seed, COMMITS))


def sent_once(seed: int) -> None:
    with Harness(counting([]), seed=seed, faults=Faults(delay=1.0)) as harness:
        harness.crash(at="committed")
        harness.publish("work/a", 7)
        harness.settle()
        harness.restart()
        harness.settle()
        assert harness.published("done/a") == [1]
        assert harness.stats["messages.known"] == 1


def test_what_an_earlier_run_has_left_is_not_sent_again_when_its_message_comes_again() -> None:
    explore(sent_once, seeds=20)


def test_it_would_be_without_knowing_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def anew(self: CommittedMessages, number: int, outputs: Sequence[Envelope]) -> SentOutputs:
        return SentOutputs(outputs)

    monkeypatch.setattr(CommittedMessages, "outputs_of", anew)
    found_by_explore(sent_once, 20)
