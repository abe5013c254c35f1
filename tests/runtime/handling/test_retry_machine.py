"""How often and how fast something is tried again: messages that fail, actors that do not start."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from spa_dat import Actor, Reject, Retry, RetryPolicy
from spa_dat.actors import ActorRef, ActorSystem, Mailbox, RestartPolicy
from spa_dat.errors import RestartLimitReached
from spa_dat.harness import VirtualEnvironment
from support.machine import VirtualMachine, machine_case, step

ERRORS = st.one_of(
    st.builds(ValueError),
    st.builds(Retry),
    st.builds(Retry, after=st.sampled_from([0.0, 0.5, 100.0])),
)


class RetryMachine(RuleBasedStateMachine):
    """One message after the other, each tried until the policy says no."""

    @initialize(
        policy=st.builds(
            RetryPolicy,
            attempts=st.integers(1, 6),
            first=st.sampled_from([0.0, 0.1, 1.0]),
            factor=st.sampled_from([0.5, 1.0, 4.0, 1e200]),
            jitter=st.sampled_from([0.0, 0.1, 0.9]),
            hold=st.sampled_from([0.0, 1.0, 10.0]),
        ),
        seed=st.integers(0, 1000),
    )
    def begin(self, policy: RetryPolicy, seed: int) -> None:
        self.policy = policy
        self.random = random.Random(seed)
        self.next_message()

    @rule()
    def next_message(self) -> None:
        self.failures = 0
        self.held = 0.0
        self.over = False

    def longest(self) -> float:
        """The wait without jitter."""
        try:
            return self.policy.first * self.policy.factor ** (self.failures - 1)
        except OverflowError:
            return math.inf if self.policy.first else 0.0

    @precondition(lambda self: not self.over and self.failures < 3)
    @rule(error=ERRORS, seconds=st.sampled_from([0.0, 0.25, 2.0]))
    def fail(self, error: Exception, seconds: float) -> None:
        """The handler has run for so many seconds."""
        self.try_once(error, seconds)

    @precondition(lambda self: not self.over)
    @rule()
    def fail_until_the_end(self) -> None:
        """No message is tried for ever."""
        while not self.over:
            self.try_once(ValueError(), 0.0)

    def try_once(self, error: Exception, seconds: float) -> None:
        self.held += seconds if self.failures else 0.0
        self.failures += 1
        wait = self.policy.wait(self.failures, self.held, self.random, error)
        asked = error.after if isinstance(error, Retry) else None
        least = self.longest() * (1 - self.policy.jitter) if asked is None else asked
        most = self.longest() * (1 + self.policy.jitter) if asked is None else asked
        if wait is None:
            assert self.failures == self.policy.attempts or self.held + most > self.policy.hold
            self.over = True
        else:
            assert self.failures < self.policy.attempts
            assert least * 0.999 <= wait <= most * 1.001
            self.held += wait
            assert self.held <= self.policy.hold

    @precondition(lambda self: not self.over)
    @rule()
    def reject(self) -> None:
        failures = self.failures + 1
        assert self.policy.wait(failures, self.held, self.random, Reject()) is None
        self.over = True


INTENSITY, PERIOD, BACKOFF_MIN, BACKOFF_MAX = 3, 20.0, 1.0, 3.0


class SupervisionMachine(VirtualMachine):
    """An actor whose start fails as long as something is away, and who may crash at any time.

    The model knows when each start was tried, and so when the next one has to be.
    """

    @initialize()
    @step
    async def begin(self) -> None:
        self.away = False
        self.starts: list[float] = []
        self.failed: list[float] = []
        self.got: list[int] = []
        self.told = 0
        self.wheres: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.up = self.ended = False
        machine = self

        class Watched(Actor):
            def on_start(self) -> None:
                machine.start_is_tried()

            def on_receive(self, message: int) -> None:
                machine.got.append(message)
                if message % 4 == 0:
                    raise ValueError(message)

        self.system = ActorSystem(
            environment=VirtualEnvironment(7),
            on_failure=lambda ref, error, where: self.wheres.update([where]),
        )
        self.ref: ActorRef[Watched] = self.system.spawn(
            Watched,
            mailbox=Mailbox(1000),
            restart=RestartPolicy(INTENSITY, PERIOD, BACKOFF_MIN, BACKOFF_MAX),
        )
        await self.settle()

    def start_is_tried(self) -> None:
        now = self.loop.time()
        if self.failed:
            # Those in the period before the latest failure count, and the restart for itself.
            latest = self.failed[-1]
            before = sum(latest - PERIOD < time for time in self.failed[:-1])
            backoff = min(BACKOFF_MIN * 2**before, BACKOFF_MAX)
            assert before < INTENSITY, "one restart too many"
            assert latest + backoff / 2 <= now <= latest + backoff
        self.starts.append(now)
        if self.away:
            self.failed.append(now)
            self.expected["on_start"] += 1
            raise ConnectionError("away")
        self.failed = []
        self.up = True

    @rule(away=st.booleans())
    def something_changes(self, away: bool) -> None:
        self.away = away

    @precondition(lambda self: not self.ended)
    @rule(count=st.integers(1, 3))
    @step
    async def tell(self, count: int) -> None:
        for _ in range(count):
            self.told += 1
            if self.told % 4 == 0:
                self.expected["on_receive"] += 1
            self.ref.tell(self.told)
        await self.settle()

    @rule()
    @step
    async def crash(self) -> None:
        was_up, self.up = self.up, False
        assert self.system.crash(self.ref) is was_up
        await self.settle()
        assert self.up is (was_up and not self.away)

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, 30.0]))
    @step
    async def time_goes_by(self, seconds: float) -> None:
        starts = len(self.starts)
        failed = list(self.failed)
        await asyncio.sleep(seconds)
        await self.settle()
        if failed and not self.ended and failed[-1] + BACKOFF_MAX < self.loop.time():
            given_up = sum(failed[-1] - PERIOD < time for time in failed[:-1]) >= INTENSITY
            assert len(self.starts) > starts or given_up, "it is tried again"
        await self.look_whether_it_is_given_up()

    async def look_whether_it_is_given_up(self) -> None:
        if self.failed and not self.ended:
            latest = self.failed[-1]
            if sum(latest - PERIOD < time for time in self.failed[:-1]) >= INTENSITY:
                self.ended = True
                self.expected["restart"] += 1
                with pytest.raises(RestartLimitReached) as caught:
                    await self.system.started(self.ref)
                assert isinstance(caught.value.__cause__, ConnectionError)

    @invariant()
    @step
    async def it_is_where_it_should_be(self) -> None:
        await self.look_whether_it_is_given_up()
        assert self.system.is_up(self.ref) is self.up
        assert len(self.system) == (not self.ended)
        assert self.wheres["restart"] == self.expected["restart"]
        assert self.wheres["on_start"] == self.expected["on_start"]

    @invariant()
    def messages_are_kept_in_order(self) -> None:
        """Also those that came while it was down; one that fails is over."""
        assert self.got == list(range(1, len(self.got) + 1))
        if self.up:
            assert len(self.got) == self.told
            assert self.wheres == +self.expected


TestRetry = machine_case(RetryMachine)
TestSupervision = machine_case(SupervisionMachine)
