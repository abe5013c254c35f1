"""State machines of Hypothesis whose rules run on virtual time."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine

from spa_dat.harness import VirtualLoop

__all__ = ["VirtualMachine", "at_once", "examples", "machine_case", "step"]

P = ParamSpec("P")
M = TypeVar("M", bound="VirtualMachine")
T = TypeVar("T")

_ITERATIONS = 12


class VirtualMachine(RuleBasedStateMachine):
    """A machine with an event loop of its own, on virtual time.

    Its rules are coroutines under `step`. What they start goes on while other rules run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.unhandled: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(str(context)))

    async def settle(self) -> None:
        """Let everything that is ready run; no time goes by."""
        for _ in range(_ITERATIONS):
            await asyncio.sleep(0)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task whose outcome a later rule looks at."""
        task = self.loop.create_task(coroutine)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def finish(self) -> None:
        """Check what has to hold at the end of a run; override it."""

    def teardown(self) -> None:
        """Run `finish`, then end what is left."""
        try:
            self.loop.run_until_complete(self.finish())
            assert self.unhandled == []
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks))
            self.loop.close()


def step(
    rule: Callable[Concatenate[M, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[M, P], None]:
    """Run a rule, an invariant or what begins a run on the machine's loop."""

    @functools.wraps(rule)
    def on_the_loop(machine: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
        machine.loop.run_until_complete(rule(machine, *args, **kwargs))

    return on_the_loop


def at_once(rule: Callable[Concatenate[M, P], T]) -> Callable[Concatenate[M, P], T]:
    """Run a plain rule as if on the machine's loop, and nothing else of what is ready there."""

    @functools.wraps(rule)
    def without_an_iteration(machine: M, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asyncio._set_running_loop(machine.loop)
        try:
            return rule(machine, *args, **kwargs)
        finally:
            asyncio._set_running_loop(None)

    return without_an_iteration


def examples(count: int) -> int:
    """Return how many examples to try: more if somebody looks for what chance finds."""
    return max(1, round(count * float(os.environ.get("SPA_DAT_TEST_EXAMPLES", "1"))))


def machine_case(
    machine: type[RuleBasedStateMachine], *, tries: int = 25, steps: int = 40
) -> type[Any]:
    """Return the test case of a machine, with a bound on how much it tries.

    Args:
        machine: what the rules are in.
        tries: how many examples, unless more are asked for.
        steps: of each example, at most.
    """
    case: type[Any] = machine.TestCase
    more = "SPA_DAT_TEST_EXAMPLES" in os.environ
    # The same examples each time: what chance finds is looked for on purpose, not in passing.
    case.settings = settings(
        max_examples=examples(tries), stateful_step_count=steps, deadline=None, derandomize=not more
    )
    return case
