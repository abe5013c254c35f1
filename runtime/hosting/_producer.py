"""Producers: actors that start messages themselves."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..._texts import describe, error_name, inspectable
from ...actors import Mailbox, refuse_unrun, run_apart
from ..handling._argument_values import ProducerScope
from ..handling._delivery_processor import DeliveryProcessor
from ..messaging._middleware import CallOutcome
from ..messaging._turn import current_turn
from ._message_source import mailbox_of

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["CallSource", "ProducerState"]

_GRACE = 1.0


class _Tick:
    """The item of a mailbox that starts the next call."""


_TICK = _Tick()


class ProducerState(enum.IntEnum):
    """Whether a producer makes further calls; see "States" in docs/design.md."""

    CALLING = 1
    LAST = 2
    """It has asked to be stopped: the current call is the last one."""
    STOPPED = 3
    """The application is stopping: no call begins, and a one-shot call is cancelled."""


class CallSource:
    """The calls of a producer: the work source of its lane.

    With ``every`` its ticks come at a fixed rate, counted from the first call. Ticks that fall into
    a call that is still running are skipped and counted (``producers.missed``).

    Args:
        lane: the producer's only lane.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self.mailbox: Mailbox = mailbox_of(lane, Mailbox)
        self.local: Mailbox = self.mailbox
        self.processor: DeliveryProcessor = DeliveryProcessor(lane, lane.connection)
        self._first = 0.0
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._call: asyncio.Future[Any] | None = None
        self._state = ProducerState.CALLING

    def _enter(self, state: ProducerState) -> None:
        """Move on to a later state. Nothing else changes the state."""
        self._state = max(self._state, state)

    @property
    def task(self) -> asyncio.Future[Any] | None:
        """The task of the current call; None between calls."""
        return self._call

    def begin(self) -> None:
        """Make the first call."""
        self._first = self._loop.time()
        self.mailbox.force(_TICK)

    def make_no_more(self) -> None:
        """Make the current call the last one; see `Context.stop`."""
        self._enter(ProducerState.LAST)
        self._lane.timers.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._call is None:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not self._lane.runner.ended and self._state is not ProducerState.STOPPED:
            self._lane.runner.end(error)

    async def stop(self, deadline: float) -> None:
        """Make no further call. A repeated one may finish; a one-shot one is cancelled.

        Args:
            deadline: loop time until which to wait for the current call.
        """
        before = self._state
        self._enter(ProducerState.STOPPED)
        if self._timer is not None:
            self._timer.cancel()
        call = self._call
        if call is None:
            return
        if self._lane.options.every is None and before is not ProducerState.LAST:
            # A call in a thread ends when it next uses its socket.
            self._lane.sync_socket.revoke()
            call.cancel()
        await asyncio.wait((call,), timeout=max(0.0, deadline - self._loop.time()))

    async def finish(self) -> None:
        """Give up a call that has not ended with its lane."""
        call = self._call
        if call is not None and (await asyncio.wait((call,), timeout=_GRACE))[1]:
            self._lane.runner.run.given_up.task(f"actor {self._lane.name!r}", call)

    def flush(self) -> None:
        """Do nothing: it holds nothing back."""

    async def receive(self, instance: Any, item: Any) -> None:
        """Make one call."""
        if self._state is not ProducerState.CALLING:
            return
        error = await self._one_call(instance)
        every = self._lane.options.every
        if every is None or isinstance(error, SystemExit):
            self._end(error)
        elif self._state is ProducerState.CALLING:
            self._wait_for_next(every)
        else:
            self._end(None)

    def _wait_for_next(self, every: float) -> None:
        self._ticks += 1
        missed = int((self._loop.time() - self._first) / every) - self._ticks + 1
        if missed > 0:
            self._lane.stats["producers.missed"] += missed
            self._ticks += missed
        self._timer = self._loop.call_at(
            self._first + self._ticks * every, self.mailbox.force, _TICK
        )

    async def _attempt(
        self, instance: Any, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> BaseException | None:
        try:
            result = await run_apart(self._lane.invoke, instance, 0, arguments, scope)
            refuse_unrun(result, self._lane.handlers[0].injection.name)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 (the user's code)
            return inspectable(error)
        return None

    async def _one_call(self, instance: Any) -> BaseException | None:
        # What it sends belongs to no message.
        current_turn.set(None)
        limit = self._lane.options.deadline
        deadline = None if limit is None else self._loop.time() + limit
        handler = self._lane.handlers[0]
        scope = ProducerScope(self._lane, handler, deadline)
        arguments = handler.injection.bind(scope)
        # In a task of its own, so that stopping can cancel the call without ending the actor.
        call = self._call = asyncio.ensure_future(self._attempt(instance, arguments, scope))
        try:
            await asyncio.wait((call,))
        finally:
            if call.done():
                self._call = None
            else:
                call.cancel()
        if call.cancelled() and self._state is ProducerState.STOPPED:
            if scope.outcome is not None:
                scope.outcome.tell(CallOutcome(asyncio.CancelledError(), "none"))
            return None
        # No error may leave the actor's task, where some of them would end the event loop.
        error = RuntimeError("it was cancelled") if call.cancelled() else call.result()
        if scope.outcome is not None:
            scope.outcome.tell(CallOutcome(error, "none" if error else "handled"))
        if error is None:
            self._lane.stats["producers.called"] += 1
            return None
        self._lane.stats["producers.failed"] += 1
        self._lane.failed("producer", error)
        self._lane.log.error(
            "producer %r failed: %s: %s",
            self._lane.actor_name,
            error_name(error),
            describe(error),
            exc_info=error,
        )
        return error
