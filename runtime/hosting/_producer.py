"""Producers: actors that start messages themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ..._texts import describe, error_name, inspectable
from ...actors import run_apart
from ..handling._scope import ProducerScope
from ..messaging._connection import Link
from ..messaging._turn import current_turn
from ..registration._specs import Spec
from ._host import Host
from ._hosted import Runner

__all__ = ["ProducerHost"]

_GRACE = 1.0


class _Tick:
    """It is time for the next call."""


_TICK = _Tick()


class ProducerHost(Host):
    """A producer while the application runs.

    With ``every`` its ticks come at a fixed rate from the first call on. A call that takes longer
    makes the ticks that fall into it be left out and counted (``producers.missed``).

    Args:
        runner: the run that it is part of.
        spec: its registration.
        link: its bus.
    """

    def __init__(self, runner: Runner, spec: Spec[Any], link: Link) -> None:
        super().__init__(runner, spec, link)
        self._first = 0.0
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._call: asyncio.Future[Any] | None = None
        self._stopped = False
        self._last = False

    def _task(self) -> asyncio.Future[Any] | None:
        return self._call or super()._task()

    def begin(self) -> None:
        """All subscriptions are in force: make the first call."""
        self._first = self._loop.time()
        self.mailbox.force(_TICK)

    def request_stop(self) -> None:
        """See `Context.stop`: the call under way is the last one."""
        self._loop.call_soon_threadsafe(self._make_no_more_calls)

    def _make_no_more_calls(self) -> None:
        self._last = True
        self.timers.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._call is None:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not (self.ended or self._stopped):
            self.ended = True
            self.runner.actor_ended(error)

    async def stop_producing(self, deadline: float) -> None:
        """Make no further call. One that repeats may end; one that runs once is cancelled."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        call = self._call
        if call is None:
            return
        if self.options.every is None and not self._last:
            # In a thread it ends when it next uses its socket.
            self.sync_socket.revoke()
            call.cancel()
        await asyncio.wait((call,), timeout=max(0.0, deadline - self._loop.time()))

    async def _finish(self, deadline: float) -> None:
        await super()._finish(deadline)
        call = self._call
        if call is not None and (await asyncio.wait((call,), timeout=_GRACE))[1]:
            self.runner.given_up.task(f"actor {self.own_name!r}", call)

    async def receive_other(self, instance: Any, item: Any) -> None:
        """Make one call."""
        if self._stopped or self._last:
            return
        error = await self._one_call(instance)
        every = self.options.every
        if every is None or isinstance(error, SystemExit):
            self._end(error)
        elif self._last:
            self._end(None)
        elif not self._stopped:
            self._wait_for_next(every)

    def _wait_for_next(self, every: float) -> None:
        self._ticks += 1
        missed = int((self._loop.time() - self._first) / every) - self._ticks + 1
        if missed > 0:
            self.stats["producers.missed"] += missed
            self._ticks += missed
        self._timer = self._loop.call_at(
            self._first + self._ticks * every, self.mailbox.force, _TICK
        )

    async def _attempt(self, instance: Any, arguments: Mapping[str, Any]) -> BaseException | None:
        try:
            await run_apart(self.invoke, instance, 0, arguments)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 (the user's code)
            return inspectable(error)
        return None

    async def _one_call(self, instance: Any) -> BaseException | None:
        # No message waits for what it sends.
        current_turn.set(None)
        limit = self.options.deadline
        deadline = None if limit is None else self._loop.time() + limit
        arguments = self.handlers[0].injection.bind(ProducerScope(self, self.handlers[0], deadline))
        # A task of its own, so that stopping can cancel the call without ending the actor.
        call = self._call = asyncio.ensure_future(self._attempt(instance, arguments))
        try:
            await asyncio.wait((call,))
        finally:
            if call.done():
                self._call = None
            else:
                call.cancel()
        if call.cancelled() and self._stopped:
            return None
        # Whatever it is, it must not get out of a task, where some errors end the event loop.
        error = RuntimeError("it was cancelled") if call.cancelled() else call.result()
        if error is None:
            self.stats["producers.called"] += 1
            return None
        self.stats["producers.failed"] += 1
        self.failed("producer", error)
        self.log.error(
            "producer %r failed: %s: %s",
            self.name,
            error_name(error),
            describe(error),
            exc_info=error,
        )
        return error
