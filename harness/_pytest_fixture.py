"""The pytest fixture ``harness``: starts harnesses, closes them, and shows the seed of failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

from ..runtime.application._application import DistributedApplication
from ._errors import NotSimulated
from ._faults import Faults
from ._harness import Harness
from .live._live_world import LiveHarness
from .live._real_brokers import RealBrokers
from .loop._loop_thread import is_loop_running
from .simulated._stand_ins import Profile

__all__ = ["HarnessFactory", "HarnessOptions"]

_EVENTS = 30
_FOR_SIMULATION = ("seed", "profile", "faults", "grace")


class HarnessOptions(TypedDict, total=False):
    """The options of `Harness`."""

    seed: int
    profile: Profile | None
    faults: Faults | None
    allow_failures: type[BaseException] | tuple[type[BaseException], ...]
    grace: float
    patience: float
    limit: int


class HarnessFactory:
    """Starts harnesses for one test: the pytest fixture ``harness``.

    ``harness(app)`` returns a `Harness` with the applications started. At the end of the test all
    harnesses are settled and checked, as at the end of a ``with`` block, and closed. Using one in a
    ``with`` or ``async with`` block does so earlier; ``async with`` gives an `AsyncHarness`. If the
    block is in a fixture, the harness is settled and checked at the end of the test, and stays open
    until the fixture leaves the block.

    Args:
        options: the options that a test does not give itself.
        brokers: makes real brokers to run on; None for simulated buses.
        asynchronous: whether the test is an ``async def`` one.
    """

    def __init__(
        self,
        options: HarnessOptions,
        *,
        brokers: Callable[[], RealBrokers] | None = None,
        asynchronous: bool = False,
    ) -> None:
        self._options = options
        self._brokers = brokers
        self._asynchronous = asynchronous
        self._made: list[tuple[Harness, HarnessOptions]] = []

    def __call__(
        self, *applications: DistributedApplication, **options: Unpack[HarnessOptions]
    ) -> Harness:
        """Start applications under test.

        Args:
            applications: as for `Harness`.
            options: as for `Harness`; they take precedence over the marker ``spa_dat``, which takes
                precedence over the command line.

        Raises:
            ConfigurationError: as `Harness` does, or a real bus does not support an option.
            Exception: whatever an application raises when it starts.
        """
        chosen: HarnessOptions = {**self._options, **options}
        harness = self._harness(applications, chosen)
        self._made.append((harness, chosen))
        harness.start_ahead(in_thread=self._asynchronous or is_loop_running())
        return harness

    def _harness(
        self, applications: tuple[DistributedApplication, ...], options: HarnessOptions
    ) -> Harness:
        if self._brokers is None:
            return Harness(*applications, **options)
        real = self._brokers()
        profile = options.get("profile")
        if options.get("faults") is not None:
            raise NotSimulated(
                f"faults need a simulated bus, and this is a real {real.profile} broker"
            )
        if profile is not None and profile != real.profile:
            raise NotSimulated(
                f"profile={profile!r} needs a simulated bus, and this is a real"
                f" {real.profile} broker"
            )
        others: Mapping[str, Any] = {
            name: value for name, value in options.items() if name not in _FOR_SIMULATION
        }
        return LiveHarness(*applications, brokers=lambda: real, **others)

    def finish(self) -> None:
        """Settle, check and close all harnesses of a test that has passed, the last one first.

        Those in a block of a fixture are closed by the fixture.

        Raises:
            HandlerFailed, NotSettled: as leaving a ``with`` block does.
        """
        __tracebackhide__ = True
        try:
            for harness in reversed(self._made_and_open):
                if harness.is_in_block:
                    harness.settle()
                else:
                    harness.__exit__(None, None, None)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close all harnesses of a test that has failed, whatever is going on in them.

        Those in a block of a fixture are closed by the fixture, and raise nothing.
        """
        for harness in reversed(self._made_and_open):
            harness.excuse()
            if not harness.is_in_block:
                harness.__exit__(None, None, None)

    def close(self) -> None:
        """Close all harnesses that are still open, whatever is going on in them."""
        for harness in reversed(self._made_and_open):
            harness.excuse()
            harness.__exit__(None, None, None)

    @property
    def _made_and_open(self) -> list[Harness]:
        return [harness for harness, _ in self._made if harness.is_open]

    def report(self, replay: str) -> str:
        """Return what is shown with a failure: seed, command that replays it, and last events.

        Args:
            replay: the command that runs the test, without a seed.
        """
        return "\n\n".join(
            self._report(harness, options, replay) for harness, options in self._made
        )

    def _report(self, harness: Harness, options: HarnessOptions, replay: str) -> str:
        if self._brokers is None:
            seed = options.get("seed", 0)
            lines = [f"seed {seed}, profile {options.get('profile') or 'of each address'}"]
            replay += f" --spa-dat-seed={seed}"
        else:
            lines = ["on a real broker, in real time"]
        lines.append(f"replay with: {replay}")
        events = harness.trace.splitlines() if harness.was_started else []
        left_out = len(events) - _EVENTS
        if left_out > 0:
            lines.append(f"the last {_EVENTS} of {len(events)} events:")
        lines += events[-_EVENTS:]
        return "\n".join(lines)
