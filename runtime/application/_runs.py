"""The runs of an application, one after another: where the test harness and the recorder attach."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..._logs import get_logger
from ..._texts import reason_of
from ...errors import ConfigurationError
from ...transports import Identity, SocketProvider
from ..hosting._actor_observer import Observer, Observers
from ..hosting._application_settings import Settings
from ..messaging._turn import current_turn
from ..registration._registry import Registry, is_interactive
from ..registration._specs import Spec
from ._lifecycle import Run, RunState

if TYPE_CHECKING:
    from ..diagnostics._health import Health

__all__ = ["Runs"]

log = get_logger("spa_dat")

_of_session: WeakValueDictionary[Identity, Run] = WeakValueDictionary()
"""The latest run of each application of an interactive session, whose object may be gone."""


class Runs:
    """The runs of an application, one after another, and what the next one is made from.

    This is how code runs an application in its own way, as `spa_dat.run` and the test harness do,
    or observes it, as the recorder does; see `runs_of`.

    Args:
        registry: what is registered with the application.
        settings: the application's.

    Attributes:
        settings: those of the next run. Code that replaces them puts them back.
        last: the current run, or else the most recent one; None before the first.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._current: Run | None = None
        self.settings = settings
        self.last: Run | None = None

    @property
    def specs(self) -> Sequence[Spec[Any]]:
        """The registered actors."""
        return self._registry.specs

    @property
    def resources(self) -> tuple[str, ...]:
        """The names of the resources that all actors may use."""
        return tuple(self._registry.resources)

    @property
    def providers(self) -> list[SocketProvider]:
        """The default bus and all that the registered actors name; some may appear repeatedly."""
        given = [self.settings.provider]
        given += [spec.options.socket_provider for spec in self.specs]
        return [provider for provider in given if provider is not None]

    @property
    def current(self) -> Run | None:
        """The run that has begun and not yet ended; None when there is none."""
        run = self._current
        if run is None or run.state is RunState.STOPPED:
            return None
        if run.is_lost:
            run.abandon()
            self._current = None
        return self._current

    @property
    def of_this_process(self) -> Run | None:
        """The current run if it is this process that runs it; None otherwise."""
        run = self.current
        return run if run is None or run.is_of_this_process else None

    @property
    def why(self) -> str:
        """Why there is no current run, as the end of a sentence; empty without a reason."""
        failure = None if self.last is None else self.last.reason.failure
        return "" if failure is None else f", because of {reason_of(failure)}"

    @property
    def problem_at_rest(self) -> str:
        """What is wrong, in words, while no run is `of_this_process`."""
        if self.current is not None:
            return (
                "it is not running in this process, which was forked off from the one that runs"
                " it: ask that one"
            )
        return f"it is not running{self.why}"

    @property
    def health_at_rest(self) -> Health:
        """The health of the application while no run is `of_this_process`."""
        from ..diagnostics._health import Health

        identity = self.settings.identity
        return Health(
            application=identity.application,
            instance=identity.instance,
            state="failed" if self.why else "ended",
            problems={identity.application: self.problem_at_rest},
        )

    def refuse(self, what: str) -> None:
        """Raise ConfigurationError if the application is running.

        Args:
            what: what cannot be done then, for the error.
        """
        if self.current is not None:
            name = self.settings.identity.application
            raise ConfigurationError(
                f"cannot {what} while application {name!r} is running; stop it first, with 'await"
                " app.aclose()' or by leaving its 'async with'"
            )

    def replace_provider(self, provider: SocketProvider) -> int:
        """Use another default bus from now on; returns how many actors it is the bus of."""
        self.refuse("change the bus")
        self.settings = replace(self.settings, provider=provider)
        return self._registry.replace_provider(provider)

    def observe(self, observer: Observer) -> None:
        """Add an observer to the next run; it is told first, before those already there."""
        before = self.settings.observer
        both = observer if before is None else Observers(observer, before)
        self.settings = replace(self.settings, observer=both)

    async def start(self) -> None:
        """Start the next run, but not its producers.

        If the previous one is still stopping, wait for that: the task that asked for the stop may
        have been cancelled in the meantime.

        Raises:
            ConfigurationError: it is running already.
            Exception: what `Run.start` raises.
        """
        _refuse_other_loops(self.settings.identity.application)
        if self.current is not None and self.current.is_running_here:
            await self.current.stopped()
        self.refuse("start")
        identity = self.settings.identity
        if is_interactive():
            await _stop_earlier(identity)
        # A handler of another application may start it, and its turn must not be inherited.
        # (Not set if there is none: each actor would have a table of variables of its own.)
        turn = None if current_turn.get() is None else current_turn.set(None)
        try:
            known = self._registry
            run = Run(self.settings, tuple(known.specs), dict(known.resources))
            self._current = self.last = run
            if is_interactive():
                _of_session[identity] = run
            await run.start()
        finally:
            if turn is not None:
                current_turn.reset(turn)

    def begin(self) -> None:
        """Start the producers of the current run, if there is one."""
        if self.current is not None:
            self.current.begin()

    async def stop(self) -> None:
        """Stop the current run, if there is one."""
        if self.current is not None:
            self.current.refuse_other_loop("aclose()")
            # Handlers that are still running use the application's sockets until they are done.
            await asyncio.shield(self.current.stop())

    def forget(self) -> None:
        """Drop the current run, all of whose tasks were ended from outside."""
        self._current = None


def _refuse_other_loops(name: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"application {name!r} is started where no event loop of asyncio is running, as under"
            " trio: start it with asyncio (with anyio, choose that backend), or with `with app:` in"
            " a thread"
        ) from None


async def _stop_earlier(identity: Identity) -> None:
    """Stop what the cell of a notebook started before it was run again, and nobody else can stop.

    Whoever runs a cell again means to replace what it has made.
    """
    run = _of_session.get(identity)
    if run is not None and run.is_running_here:
        log.info(
            "application %r instance %r is started again: the earlier one is stopped",
            identity.application,
            identity.instance,
        )
        await run.stop()
