"""The runs of one application, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .._texts import reason_of
from ..errors import ConfigurationError
from ._lifecycle import Run
from ._turn import current_turn

__all__ = ["Runs"]


class Runs:
    """The current run of an application, or the latest one.

    Args:
        name: the application's.

    Attributes:
        last: the current one, or the one before; None before the first.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._current: Run | None = None
        self.last: Run | None = None

    @property
    def current(self) -> Run | None:
        """The run that has begun and has not ended; None when there is none."""
        run = self._current
        if run is None or run.has_stopped:
            return None
        if run.is_lost:
            run.abandon()
            self._current = None
        return self._current

    def forget(self) -> None:
        """There is no current run any more."""
        self._current = None

    def refuse(self, what: str) -> None:
        """Raise ConfigurationError for what can not be done while the application runs."""
        if self.current is not None:
            raise ConfigurationError(f"can not {what} while application {self._name!r} runs")

    @property
    def why(self) -> str:
        """Why there is no current run, to go on a sentence with; empty without a reason."""
        failure = None if self.last is None else self.last.failure
        return "" if failure is None else f", because of {reason_of(failure)}"

    async def start(self, make: Callable[[], Run]) -> None:
        """Start the next run; raises ConfigurationError while there is one, and as `Run.start`.

        If the one before is being stopped, that is waited for: whoever wanted it may have been
        cancelled meanwhile.

        Args:
            make: makes the run.
        """
        if self.current is not None:
            await self.current.stopped()
        self.refuse("start")
        # Nothing of it is part of what starts it, which may be a handler of another application.
        turn = current_turn.set(None)
        try:
            run = self._current = self.last = make()
            await run.start()
        finally:
            current_turn.reset(turn)

    async def stop(self) -> None:
        """Stop the current one."""
        if self.current is not None:
            # Handlers that still run use the application's sockets until they are done.
            await asyncio.shield(self.current.stop())
