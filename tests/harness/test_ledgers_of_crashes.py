"""Ledgers of keyed actors on a simulated Kafka cluster, killed at steps that a seed chooses."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Durable,
    KafkaConfig,
    KafkaTopic,
    Reject,
    RetryPolicy,
    Socket,
    on,
    on_reminder,
)
from spa_dat.runtime.hosting._durable_lane import DurableLane
from spa_dat.runtime.hosting._durable_unit_lane import DurableUnitLane
from spa_dat.runtime.hosting._keyed_mailbox import KeyCell
from spa_dat.testing import Faults, Harness, explore
from spa_dat.transports import Envelope
from spa_dat.transports._commit_steps import CommitStep
from support.exploring import found_by_explore
from support.kafka_states import cluster_of, snapshots_in
from support.machine import examples

KEYS, MESSAGES = 4, 20
# Real seconds: what one step takes on a busy machine says nothing about the ledger.
GRACE = 120.0
STEPS: tuple[CommitStep, ...] = ("handled", "sent", "offsets", "committed")
INPUTS = ("orders", "payments", "returns")
OUTPUTS = ("counts", "rings")
TOPICS = {f"{name}/{{key}}": KafkaTopic(name, key="key") for name in (*INPUTS, *OUTPUTS)}
POISON = ("reject", "spoil", "unreadable")
STUBBORN = RetryPolicy(attempts=100, first=0.1, factor=1)
# A member that comes or goes, and packets that are lost, besides the crashes of the ledger itself.
FAULTS = replace(Faults.all(), duplicate=0.0, crash_in_commit=0.0, most=8)


@dataclass
class Job:
    number: int
    asks: str = ""


@dataclass
class Tally:
    n: int = 0
    rings: int = 0
    text: str = ""


@dataclass
class Plan:
    """What a seed has chosen.

    Attributes:
        dice: what chooses on.
        inputs: the topics that the actor reads.
        partitions: how many these have.
        instances: how many of the application run.
        dedupe: how many ids are kept of a key; None for none.
        hot: how many states stay in memory; None for all.
        failures: how likely an attempt fails after it has done everything.
        faults: what else goes wrong.
    """

    dice: random.Random
    inputs: tuple[str, ...] = field(init=False)
    partitions: int = field(init=False)
    instances: int = field(init=False)
    dedupe: int | None = field(init=False)
    hot: int | None = field(init=False)
    failures: float = field(init=False)
    faults: Faults | None = field(init=False)

    def __post_init__(self) -> None:
        dice = self.dice
        self.inputs = INPUTS[: dice.randint(1, len(INPUTS))]
        self.partitions = dice.choice((1, 2, 3))
        self.instances = dice.choice((1, 2, 2, 3))
        self.dedupe = dice.choice((None, 50))
        self.hot = dice.choice((None, 2))
        self.failures = dice.choice((0.0, 0.1, 0.3))
        self.faults = dice.choice((None, FAULTS))


def tallying(plan: Plan, instance: int) -> DistributedApplication:
    """Return an application that numbers the messages of each key, of whichever topic."""
    config = KafkaConfig("cluster", partitions=plan.partitions, start_timeout=120, topics=TOPICS)
    app = DistributedApplication(config, name="app", instance=str(instance))

    class Tallies(Actor):
        per, state, exactly_once, retry = "key", Tally, True, STUBBORN
        durable = Durable(dedupe=plan.dedupe, hot=plan.hot)

        @on(*(f"{name}/{{key}}" for name in plan.inputs))
        async def tally(self, job: Job, key: str, socket: Socket, context: Context) -> None:
            self.state.n += 1
            self.state.text = f"{job.number} was the last"
            await socket.publish(f"counts/{key}", [job.number, self.state.n])
            await socket.publish("copies", job.number)
            if job.asks == "ring":
                context.remind(f"ring{job.number % 3}", job.number, after=plan.dice.random())
            if job.asks == "reject":
                raise Reject("it asks for it")
            if job.asks == "spoil":
                self.state.text = "x" * 1_000_000
            elif plan.dice.random() < plan.failures:
                raise ValueError("a bad day")

        @on_reminder("ring0", "ring1", "ring2")
        async def ring(self, number: int, key: str, socket: Socket) -> None:
            self.state.rings += 1
            await socket.publish(f"rings/{key}", [number, self.state.rings])
            if plan.dice.random() < plan.failures:
                raise ValueError("a bad day")

    app.add(Tallies)
    return app


class Ledger:
    """What was sent, and what has to have come of it.

    Args:
        harness: where it is sent.
        plan: how.
    """

    def __init__(self, harness: Harness, plan: Plan) -> None:
        self._harness = harness
        self._plan = plan
        self._numbers: Iterator[int] = count()
        # By key and topic.
        self._sent: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._poison: list[bytes] = []
        self._rings: defaultdict[str, set[int]] = defaultdict(set)
        self._free_names = {str(key): {0, 1, 2} for key in range(KEYS)}

    def send(self, key: str) -> None:
        """Send one message of a key, which may be poison, set a reminder, or come twice."""
        dice, number = self._plan.dice, next(self._numbers)
        topic = dice.choice(self._plan.inputs)
        kind = dice.random()
        asks = ""
        if kind < 0.1:
            asks = dice.choice(POISON)
        elif kind < 0.3 and number % 3 in self._free_names[key]:
            # A name is used once: another message that sets it would replace the reminder.
            self._free_names[key].remove(number % 3)
            self._rings[key].add(number)
            asks = "ring"
        payload = json.dumps({"number": number, "asks": asks}).encode()
        if asks == "unreadable":
            payload = payload[:-1]
        if asks in POISON:
            self._poison.append(payload)
        else:
            self._sent[key, topic].append(number)
        twice = self._plan.dedupe is not None and asks not in POISON and dice.random() < 0.2
        for _ in range(1 + twice):
            self._harness.publish(
                f"{topic}/{key}", payload, id=str(number), content_type="application/json"
            )

    def check(self) -> None:
        """Fail unless everything has come of it once, and the states say so."""
        committed = states_in_changelog(self._harness)
        everything: list[int] = []
        for key in map(str, range(KEYS)):
            counts = self._harness.published(f"counts/{key}")
            assert [n for _, n in counts] == [*range(1, len(counts) + 1)], f"key {key}: {counts}"
            found = [number for number, _ in counts]
            sent = {topic: self._sent[key, topic] for topic in self._plan.inputs}
            for topic, numbers in sent.items():
                in_order = [number for number in found if number in numbers]
                assert in_order == numbers, f"key {key}, {topic}: {in_order} and not {numbers}"
            assert len(found) == sum(map(len, sent.values())), f"key {key}: {found} of {sent}"
            everything += found
            rings = self._harness.published(f"rings/{key}")
            assert {number for number, _ in rings} == self._rings[key], f"key {key}: {rings}"
            assert [n for _, n in rings] == [*range(1, len(rings) + 1)], f"key {key}: {rings}"
            kept = committed.get(key, {"n": 0, "rings": 0})
            assert (kept["n"], kept["rings"]) == (len(counts), len(rings)), f"key {key}: {kept}"
        assert Counter(self._harness.published("copies")) == Counter(everything)
        letters = Counter(letter.payload for letter in self._harness.dead_letters())
        assert letters == Counter(self._poison)


def states_in_changelog(harness: Harness) -> dict[str, dict[str, Any]]:
    """Return the states of all keys, as they are committed."""
    found: dict[str, dict[str, Any]] = {}
    for partition in cluster_of(harness).topics["_spa.state.app.Tallies"].partitions:
        for record in partition.readable():
            found[record.key.decode()] = json.loads(record.value.partition(b"\n")[2])
    return found


class Members:
    """The instances of the application, which are killed at steps, and started again."""

    def __init__(self, harness: Harness, apps: list[DistributedApplication]) -> None:
        self._harness = harness
        self._apps = apps

    def _tested(self, app: DistributedApplication) -> Any:
        return next(one for one in self._harness._core.world.tested if one.application is app)

    @property
    def dead(self) -> list[DistributedApplication]:
        """Those that do not run."""
        tested = [(app, self._tested(app)) for app in self._apps]
        return [app for app, one in tested if one.life is None and not one.returns]

    def strike(self, dice: random.Random) -> None:
        """Let something happen to one that runs, or have one that does not run come back."""
        for app in self.dead:
            if dice.random() < 0.5:
                self._harness.restart(app)
        alive = [app for app in self._apps if app not in self.dead]
        if not alive:
            return
        app, kind = dice.choice(alive), dice.random()
        if kind < 0.3:
            self._harness.crash(app, at=dice.choice(STEPS))
        elif kind < 0.35:
            self._harness.crash(app)
        elif kind < 0.4:
            self._harness.stop(app)
        elif kind < 0.45:
            self._harness.rebalance()

    def finish(self, ledger: Ledger) -> None:
        """Have all steps reached at which one is to be killed, and all run in the end."""
        self._harness.settle()
        for app in self._apps:
            if self._tested(app).crash_at is None:
                continue
            for other in self._apps:
                if other is not app:
                    self._harness.stop(other)
            if app in self.dead:
                self._harness.restart(app)
            # Some are poison, but not of all keys.
            while self._tested(app).crash_at is not None:
                for key in range(KEYS):
                    ledger.send(str(key))
                self._harness.settle()
        for app in self.dead:
            self._harness.restart(app)
        self._harness.settle()


def balance(seed: int) -> str:
    """Run what the seed chooses, and check the ledger; returns the trace."""
    dice = random.Random(seed)
    plan = Plan(dice)
    apps = [tallying(plan, number) for number in range(plan.instances)]
    with Harness(
        *apps, seed=seed, faults=plan.faults, allow_failures=Exception, grace=GRACE
    ) as harness:
        ledger, members = Ledger(harness, plan), Members(harness, apps)
        for _ in range(MESSAGES):
            ledger.send(str(dice.randrange(KEYS)))
            harness.advance(dice.choice((0.0, 0.05, 0.2, 1.0)))
            members.strike(dice)
        members.finish(ledger)
        # Reminders that were set are due by now.
        harness.advance(2.0)
        harness.settle()
        ledger.check()
        return harness.trace


def test_the_ledger_balances_wherever_transactions_are_cut_off() -> None:
    traces: list[str] = []
    explore(lambda seed: traces.append(balance(seed)), seeds=examples(10))
    for step in STEPS:
        assert any(f" reached {step}\n" in trace for trace in traces)


def test_it_balances_with_snapshots(tmp_path: Path) -> None:
    def with_snapshots(seed: int) -> None:
        folder = tmp_path / str(seed)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            snapshots_in(folder, patch)
            balance(seed)

    explore(with_snapshots, seeds=examples(5))


def test_it_does_not_without_the_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forgotten(self: AIOKafkaProducer, *arguments: Any) -> None: ...

    monkeypatch.setattr(AIOKafkaProducer, "send_offsets_to_transaction", forgotten)
    found_by_explore(balance, 5)


def test_it_does_not_without_the_rollback_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DurableLane, "_undo", lambda self, cell: None)
    found_by_explore(balance, 10)


def test_it_does_not_without_the_ids_of_what_was_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: DurableUnitLane, cell: KeyCell, envelope: Envelope) -> None: ...

    monkeypatch.setattr(DurableUnitLane, "_known_by", unknown)
    found_by_explore(balance, 10)
