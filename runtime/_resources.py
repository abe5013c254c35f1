"""Resources: context managers that live as long as what they are registered with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from typing import Any, TypeAlias

from .._logs import get_logger
from ..actors import is_closing
from ..errors import ActorStopped, ConfigurationError
from ._given_up import GivenUp
from ._settings import Settings
from ._stacks import frames_of, place

__all__ = ["Resource", "ResourceKeeper", "SupportedContextManagers", "check_resources"]

log = get_logger("spa_dat")

_GRACE = 1.0

SupportedContextManagers: TypeAlias = AbstractAsyncContextManager[Any] | AbstractContextManager[Any]
"""What can be entered: a context manager, synchronous or asynchronous."""

Resource: TypeAlias = SupportedContextManagers | Callable[[], SupportedContextManagers]
"""A context manager, or a callable that makes one."""


def _enterable(value: object) -> bool:
    # Looked up on the type: a class that has __enter__ is a factory, not a context manager.
    kind = type(value)
    return hasattr(kind, "__aenter__") or hasattr(kind, "__enter__")


def check_resources(owner: str, resources: Mapping[str, Resource]) -> None:
    """Raise ConfigurationError for what can neither be entered nor called."""
    for name, resource in resources.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(
                f"{owner}: resource name {name!r} can not be a parameter name; use an identifier"
            )
        if not _enterable(resource) and not callable(resource):
            raise ConfigurationError(
                f"{owner}: resource {name!r} is {type(resource).__name__}; give a context manager,"
                " or a callable that returns one"
            )


class ResourceKeeper:
    """Opens resources and leaves them again, in one task of its own.

    Context managers may hold on to the task that entered them (cancel scopes, task groups), so
    entering and leaving has to happen in the same one.

    Args:
        given_up: what the run could not finish before its end.
        settings: the application's.
    """

    def __init__(self, given_up: GivenUp, settings: Settings) -> None:
        self._given_up = given_up
        self._settings = settings
        self._opening = "resources"
        self._release = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[list[dict[str, Any]]] | None = None

    @property
    def opening(self) -> str:
        """What is being opened, in words."""
        where = None if self._task is None else place(frames_of(self._task))
        return self._opening if where is None else f"{self._opening} ({where})"

    async def open(
        self, wanted: Sequence[tuple[str, Mapping[str, Resource]]]
    ) -> list[dict[str, Any]]:
        """Enter the resources of each owner, in order; returns what entering them gave.

        Raises:
            ConfigurationError: one failed to open; its error is the cause. Those that were open
                are being left again, and `close` waits for that.
            ActorStopped: `close` was called meanwhile.
        """
        opened: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._opened = opened
        self._task = asyncio.create_task(self._keep(wanted, opened), name="spa_dat resources")
        await asyncio.wait((opened,))
        if opened.cancelled():
            raise ActorStopped("the application was stopped while its resources were opened")
        return opened.result()

    async def close(self, timeout: float) -> None:
        """Leave everything, in reverse order; errors are logged.

        What is still being opened is given up at once, and what takes longer than ``timeout``
        seconds to close is cut off. What goes on another second later is abandoned.
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

    async def _keep(
        self,
        wanted: Sequence[tuple[str, Mapping[str, Resource]]],
        opened: asyncio.Future[list[dict[str, Any]]],
    ) -> None:
        try:
            async with AsyncExitStack() as stack:
                try:
                    values = [await self._open_all(stack, *owner) for owner in wanted]
                except ConfigurationError as error:
                    opened.set_exception(error)
                    opened.exception()  # who wanted it may have been cancelled meanwhile
                else:
                    opened.set_result(values)
                    await self._release.wait()
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and is_closing(error):
                raise
            log.error("a resource failed to close", exc_info=error)
            if self._settings.observer is not None:
                identity = self._settings.identity
                name = f"{identity.application}/{identity.instance}"
                self._settings.observer.failed(name, "resource", error, None)
        finally:
            opened.cancel()

    async def _open_all(
        self, stack: AsyncExitStack, owner: str, resources: Mapping[str, Resource]
    ) -> dict[str, Any]:
        opened: dict[str, Any] = {}
        for name, resource in resources.items():
            self._opening = f"resource {name!r} of {owner}"
            try:
                opened[name] = await _open(stack, resource)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if isinstance(error, GeneratorExit) and is_closing(error):
                    raise
                task = asyncio.current_task()
                cancelled = isinstance(error, asyncio.CancelledError)
                if cancelled and task is not None and task.cancelling():
                    raise
                raise ConfigurationError(
                    f"{owner}: resource {name!r} failed to open: {type(error).__name__}: {error}"
                ) from error
        return opened


async def _open(stack: AsyncExitStack, resource: Resource) -> Any:
    manager: Any = resource
    if not _enterable(manager):
        manager = manager()
    if hasattr(type(manager), "__aenter__"):
        return await stack.enter_async_context(manager)
    if hasattr(type(manager), "__enter__"):
        return stack.enter_context(manager)
    raise TypeError(f"the callable returned {type(manager).__name__}, not a context manager")
