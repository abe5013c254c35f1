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

        A resource that is still being opened is given up at once, and one that takes longer than
        ``timeout`` seconds to close is cut off. If it is still running a second later, it is
        abandoned.
        """
        task, opened = self._task, self._opened
        if task is None or opened is None:
            return
        self._release.set()
        if not opened.done():
            task.cancel()
        await asyncio.wait((task,), timeout=timeout)
        if not task.done():
            log.error("resources did not close within %g s and are cut off", timeout)
            self._given_up.add("resources did not close in time and were cut off")
            task.cancel()
            await asyncio.wait((task,), timeout=_GRACE)
        if not task.done():
            self._given_up.task("a resource", task)
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
                left = LeftAlone(manager_of(resource), owner, name, self._failed)
                opened[name] = await stack.enter_async_context(left)
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
