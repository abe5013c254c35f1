"""The resource manager: opens the resources of an application and its actors, and closes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from ..._logs import get_logger
from ..._texts import reason_of
from ...actors import is_closing
from ...errors import ActorStopped, ConfigurationError
from ..diagnostics._stacks import frames_of, place
from ..diagnostics._unclean_stop import GivenUp
from ..options._resources import (
    LeftAlone,
    Opener,
    RequiredResources,
    Resource,
    failed_to_open,
    manager_of,
)

__all__ = ["ResourceManager"]

log = get_logger("spa_dat")

_GRACE = 1.0

_LEAST = 0.5
"""Seconds that a resource may take if all that there were are used up."""


class _ClosingTime:
    """The seconds that closing resources may take, shared out among those that are still open.

    A resource may take half of what is left, the last one all of it. Then its task is cancelled,
    which goes no further than this resource, and again after a second if that did not help.

    Args:
        given_up: the account of what the run could not finish before its end.

    Attributes:
        open: the resources that are open, in order, including `closing`.
        closing: the one that is being closed.
    """

    def __init__(self, given_up: GivenUp) -> None:
        self._given_up = given_up
        self._loop = asyncio.get_running_loop()
        self._until: float | None = None
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._cuts = 0
        self.open: list[_Held] = []
        self.closing: _Held | None = None

    def start(self, seconds: float) -> None:
        """Begin to count, also for a resource that is being closed already."""
        self._began = self._loop.time()
        self._until = self._began + seconds
        if self.closing is not None:
            self._arm()

    def end(self) -> None:
        """Cut nothing off any more."""
        self._until = None
        self._disarm()

    def opened(self, resource: _Held) -> None:
        """Note that the task that calls this has opened a resource, and will close it."""
        self._task = asyncio.current_task()
        self.open.append(resource)

    def begin(self, resource: _Held) -> None:
        """Note that a resource begins to be closed."""
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._cuts = 0
        self._began = self._loop.time()
        self.closing = resource
        self._arm()

    def finish(self) -> bool:
        """Note that it is closed; return whether nobody else has cancelled the task meanwhile."""
        self._disarm()
        assert self._task is not None
        self.open.pop()
        self.closing = None
        for _ in range(self._cuts):
            self._task.uncancel()
        return self._task.cancelling() <= self._cancelling

    @property
    def has_cut(self) -> bool:
        """Whether the one that was closed last was cut off."""
        return self._cuts > 0

    def _arm(self) -> None:
        self._disarm()
        if self._until is not None:
            now = self._loop.time()
            left = self._until - now
            if len(self.open) > 1:
                left /= 2
            if self._cuts:
                left = min(left, _GRACE)
            self._timer = self._loop.call_at(now + max(left, _LEAST), self._cut)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self) -> None:
        assert self._task is not None
        if not self._cuts:
            seconds = self._loop.time() - self._began
            log.error("%s did not close within %.3g s and is cut off", self.closing, seconds)
            self._given_up.add(f"{self.closing} did not close in time and was cut off")
        self._cuts += 1
        self._task.cancel()
        # Its cleanup may hang as well.
        self._arm()


class _Held(LeftAlone):
    """A resource on the event loop, synchronous or not, which is left by itself and in time.

    Args:
        time: what limits it.
    """

    def __init__(
        self,
        manager: Any,
        owner: str,
        name: str,
        failed: Callable[[BaseException], object],
        time: _ClosingTime,
    ) -> None:
        super().__init__(manager, owner, name, failed)
        self._time = time
        self._async_stack = AsyncExitStack()

    async def __aenter__(self) -> Any:
        if hasattr(type(self._manager), "__aenter__"):
            value = await self._async_stack.enter_async_context(self._manager)
        else:
            value = self._async_stack.enter_context(self._manager)
        self._time.opened(self)
        return value

    async def __aexit__(self, *exception: Any) -> bool | None:
        self._time.begin(self)
        only_cut = False
        try:
            try:
                return await self._async_stack.__aexit__(*exception)
            finally:
                only_cut = self._time.finish()
        except asyncio.CancelledError as error:
            if only_cut and self._time.has_cut:
                return None
            # A task that it waits for may have been cancelled, and not the one that it is in.
            if not only_cut or not self._contains(exception[1], error):
                raise
            return None
        except BaseException as error:
            if not self._contains(exception[1], error):
                raise
            return None


class ResourceManager:
    """Opens resources and closes them again, in one task of its own.

    Context managers may be tied to the task that entered them (cancel scopes, task groups), so they
    have to be entered and left in the same one.

    Args:
        given_up: the account of what the run could not finish before its end.
        failed: called with what closing a resource raised.
        lost: called with the reason if a resource ends before `close`, which closes all of them.
    """

    def __init__(
        self,
        given_up: GivenUp,
        failed: Callable[[BaseException], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        self._given_up = given_up
        self._failed = failed
        self._lost = lost
        self._time = _ClosingTime(given_up)
        self._opening = "resources"
        self._thread: Opener | None = None
        self._release = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[list[dict[str, Any]]] | None = None

    @property
    def opening(self) -> str:
        """What is being opened, in words."""
        where = None if self._task is None else place(frames_of(self._task))
        if self._thread is not None:
            where = self._thread.in_thread_at
        return self._opening if where is None else f"{self._opening} ({where})"

    async def open(self, required: Sequence[RequiredResources]) -> list[dict[str, Any]]:
        """Open the resources of each owner, in order; return the values entered, by name.

        Raises:
            ConfigurationError: one failed to open; its error is the cause. Those that were open
                are being closed again, and `close` waits for that.
            ActorStopped: `close` was called in the meantime.
        """
        opened: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._opened = opened
        self._task = asyncio.create_task(self._hold(required, opened), name="spa_dat resources")
        await asyncio.wait((opened,))
        if opened.cancelled():
            raise ActorStopped("the application was stopped while its resources were opened")
        return opened.result()

    async def close(self, timeout: float) -> None:
        """Close everything, in reverse order; errors are logged.

        A resource that is still being opened is given up at once. One that takes more than its
        share of ``timeout`` seconds to close is cut off, and the others are closed nevertheless.
        What is still running a second after the timeout is abandoned.
        """
        task, opened = self._task, self._opened
        if task is None or opened is None:
            return
        self._release.set()
        self._time.start(timeout)
        if not opened.done():
            task.cancel()
        await asyncio.wait((task,), timeout=timeout)
        if not task.done() and self._time.closing is None:
            log.error("%s did not end within %g s and is cut off", self.opening, timeout)
            self._given_up.add(f"{self._opening} did not end in time and was cut off")
            task.cancel()
        if not task.done():
            await asyncio.wait((task,), timeout=_GRACE)
        if not task.done():
            self._time.end()
            closing = self._time.closing
            self._given_up.task(str(closing or self._opening), task)
            self._given_up.unclosed(each for each in self._time.open if each is not closing)
        opened.cancel()

    async def _hold(
        self,
        required: Sequence[RequiredResources],
        opened: asyncio.Future[list[dict[str, Any]]],
    ) -> None:
        failure: BaseException | None = None
        is_open, is_early = False, True
        try:
            async with AsyncExitStack() as stack:
                try:
                    values = [await self._open_all(stack, *owner) for owner in required]
                except (ConfigurationError, ActorStopped) as error:
                    opened.set_exception(error)
                    opened.exception()  # the caller of `open` may have been cancelled meanwhile
                else:
                    opened.set_result(values)
                    is_open = any(owner.resources for owner in required)
                    await self._release.wait()
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            failure = error
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and is_closing(error):
                is_early = False
                raise
            failure = error
            log.error("resources failed", exc_info=error)
            self._failed(error)
        finally:
            if is_early and not self._release.is_set():
                if is_open:
                    self._lost(_left_early("the application was using it", failure))
                elif not opened.done():
                    opened.set_exception(_left_early(f"{self._opening} was being opened", failure))
                    opened.exception()  # who wanted it may have been cancelled meanwhile
            opened.cancel()
            # Its traceback has this frame.
            del failure

    async def _open_all(
        self,
        stack: AsyncExitStack,
        owner: str,
        resources: Mapping[str, Resource],
        thread: Opener | None,
    ) -> dict[str, Any]:
        opened: dict[str, Any] = {}
        for name, resource in resources.items():
            self._opening = f"resource {name!r} of {owner}"
            try:
                held = _Held(manager_of(resource), owner, name, self._failed, self._time)
                opened[name] = await stack.enter_async_context(held)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if isinstance(error, GeneratorExit) and is_closing(error):
                    raise
                task = asyncio.current_task()
                cancelled = isinstance(error, asyncio.CancelledError)
                if cancelled and task is not None and task.cancelling():
                    raise
                raise failed_to_open(owner, name, error) from error
        if thread is not None:
            self._opening, self._thread = f"resources of {owner}", thread
            opened.update(await thread.open_resources())
            self._thread = None
        return opened


def _left_early(moment: str, error: BaseException | None) -> ConfigurationError:
    why = "it was closed" if error is None else reason_of(error)
    if isinstance(error, asyncio.CancelledError):
        why = "the task that holds it was cancelled, perhaps by a task group or timeout around it"
    result = ConfigurationError(
        f"a resource ended while {moment}, which closed the others too: {why}"
    )
    result.__cause__ = error
    return result
