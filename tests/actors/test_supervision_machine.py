"""An application's actor fails, is started again, is given up; and what that is to the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from spa_dat import Actor, DistributedApplication, RestartPolicy, on
from spa_dat.errors import RestartLimitReached
from spa_dat.harness import VirtualEnvironment
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.hosting._actor_observer import Receive
from spa_dat.runtime.hosting._lane import Lane
from spa_dat.runtime.routing._routed_deliveries import RoutedDelivery
from spa_dat.transports import Envelope
from support.machine import VirtualMachine, machine_case, step

INTENSITY, BACKOFF_MIN, BACKOFF_MAX = 3, 1.0, 3.0
ONE_MESSAGE = 0.5


class Onlooker:
    """Knows what each actor works on, and what has failed."""

    def __init__(self) -> None:
        self.work: dict[Lane, RoutedDelivery] = {}
        self.failures: Counter[tuple[str, str]] = Counter()
        self.given_up: list[BaseException] = []

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        async def watched(instance: Any, item: Any) -> None:
            self.work[lane] = item
            await receive(instance, item)
            del self.work[lane]

        return watched

    def collected(self, lane: Lane, batch: Sequence[RoutedDelivery]) -> None:
        raise AssertionError("no actor here has batches")

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        self.failures[actor.split("/")[2], where] += 1
        if where == "restart":
            self.given_up.append(error)

    def troubled(self, actor: str, reason: str) -> None:
        raise AssertionError("nothing here is tried again and again")


class SupervisionOfActorsMachine(VirtualMachine):
    """One actor whose start fails as long as something is away, and which may crash at any time;
    and one that has nothing to do with it."""

    @initialize()
    @step
    async def begin(self) -> None:
        self.away = False
        self.failed_starts = self.all_failed_starts = 0
        self.published = 0
        self.events: list[tuple[str, int, int]] = []
        self.steady: list[int] = []
        self.instances = 0
        machine = self

        class Shaky(Actor):
            def __init__(self) -> None:
                machine.instances += 1
                self.number = machine.instances
                self.count = 0

            async def on_start(self) -> None:
                if machine.away:
                    machine.failed_starts += 1
                    machine.all_failed_starts += 1
                    raise ConnectionError("away")
                machine.failed_starts = 0
                machine.events.append(("start", self.number, 0))

            @on("work")
            async def work(self, payload: int) -> None:
                await asyncio.sleep(ONE_MESSAGE)
                self.count += 1
                machine.events.append(("message", self.number, payload))

            async def on_stop(self) -> None:
                machine.events.append(("stop", self.number, self.count))

        self.app = DistributedApplication(
            "memory://",
            name="plant",
            restart=RestartPolicy(INTENSITY, 60.0, BACKOFF_MIN, BACKOFF_MAX),
            environment=VirtualEnvironment(5),
        )
        self.app.add(Shaky)

        @self.app.application("work")
        async def steady(payload: int) -> None:
            self.steady.append(payload)

        self.onlooker = Onlooker()
        runs_of(self.app).observe(self.onlooker)
        await self.app.__aenter__()

    @property
    def shaky(self) -> Lane:
        run = runs_of(self.app).current
        assert run is not None
        return run.actors[0].lanes[0]

    @property
    def given_up(self) -> bool:
        return self.failed_starts > INTENSITY

    def handled(self) -> list[int]:
        """What the actor has handled, each message once."""
        payloads = [payload for what, _, payload in self.events if what == "message"]
        return list(dict.fromkeys(payloads))

    @rule(away=st.booleans())
    def something_changes(self, away: bool) -> None:
        self.away = away

    @rule(count=st.integers(1, 4))
    @step
    async def publish(self, count: int) -> None:
        for _ in range(count):
            self.published += 1
            await self.app.socket().publish("work", self.published)

    @rule()
    @step
    async def crash(self) -> None:
        lane = self.shaky
        was_up = lane.up and not self.given_up
        work = self.onlooker.work.pop(lane, None)
        assert lane.crash(() if work is None else (work,)) is was_up
        await self.settle()
        assert lane.up is (was_up and not self.away)

    @rule(seconds=st.sampled_from([0.2, 1.0, 4.0, 30.0]))
    @step
    async def time_goes_by(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.settle()

    @precondition(lambda self: not self.given_up)
    @rule()
    @step
    async def all_is_well_for_a_while(self) -> None:
        self.away = False
        await asyncio.sleep(BACKOFF_MAX + ONE_MESSAGE * (self.published + 1))
        await self.settle()
        assert self.shaky.up
        assert self.handled() == list(range(1, self.published + 1))
        assert self.app.healthy

    @invariant()
    @step
    async def the_other_actor_does_not_notice(self) -> None:
        await self.settle()
        assert self.steady == list(range(1, self.published + 1))

    @invariant()
    def messages_are_handled_in_order_by_one_instance_at_a_time(self) -> None:
        handled = self.handled()
        assert handled == list(range(1, len(handled) + 1))
        current = 0
        for what, number, _ in self.events:
            if what == "start":
                assert number > current
                current = number
            assert number == current, "an instance that is gone, or has not started, is at work"
        assert all(what != "stop" for what, _, _ in self.events), "it has only crashed so far"

    @invariant()
    def failures_are_counted_and_tell_how_it_is(self) -> None:
        failures = self.onlooker.failures
        assert failures["Shaky", "on_start"] == self.all_failed_starts
        assert failures["Shaky", "restart"] == self.given_up
        assert sum(failures.values()) == self.all_failed_starts + self.given_up
        assert self.app.healthy is not self.given_up
        for error in self.onlooker.given_up:
            assert isinstance(error, RestartLimitReached)
            assert isinstance(error.__cause__, ConnectionError)

    async def finish(self) -> None:
        started = bool(self.events) and self.shaky.up and not self.given_up
        await self.app.aclose()
        stops = [number for what, number, _ in self.events if what == "stop"]
        assert stops == ([self.instances] if started else [])
        # None was lost: what it did not come to, the bus still has, or it is a new start's.
        messages = self.handled()
        assert messages == list(range(1, len(messages) + 1))


TestSupervisionOfActors = machine_case(SupervisionOfActorsMachine, tries=20, steps=25)
