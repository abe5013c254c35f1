"""Looking for a seed under which a test fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from ..errors import ConfigurationError
from .loop._tasks_and_timers import quiet

__all__ = ["explore"]


def explore(
    scenario: Callable[[int], object], seeds: int | Iterable[int] = 1000, *, start: int = 0
) -> int:
    """Run a scenario under one seed after the other, until one makes it fail.

    Args:
        scenario: makes an application and a `Harness` with the seed that it is given, and checks
            what has to hold. It must not use any other source of randomness.
        seeds: how many, or which ones.
        start: the first seed, if ``seeds`` is a number.

    Returns:
        How many seeds passed.

    Raises:
        AssertionError: a seed made it fail. The first line replays it; the cause is the failure.
        ConfigurationError: there is no seed to try, or the scenario is an ``async`` function.
    """
    chosen = range(start, start + seeds) if isinstance(seeds, int) else tuple(seeds)
    if not len(chosen):
        raise ConfigurationError(f"explore(seeds={seeds!r}): give at least one seed")
    name = getattr(scenario, "__qualname__", repr(scenario)).rpartition("<locals>.")[2]
    for number, seed in enumerate(chosen):
        try:
            with quiet():
                result = scenario(seed)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # pytest.fail() raises no Exception
            raise AssertionError(
                f"explore({name}, seeds=[{seed}])  # replays this; {number} seeds passed before"
            ) from error
        if inspect.iscoroutine(result):
            result.close()
            raise ConfigurationError(
                f"explore({name}): the scenario returned a coroutine, which never ran; write it"
                " with def instead of async def"
            )
    return len(chosen)
