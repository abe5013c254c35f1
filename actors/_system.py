"""The actor system: the actors of one application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context, copy_context
from typing import Any, TypeVar

import pykka

from .._environment import Environment
from .._limited_log import LimitedLog
from .._logs import get_logger
from ..errors import ConfigurationError
from ._actor import Actor
from ._actor_cell import ActorCell
from ._deadlocks import current_frame
from ._mailbox import Mailbox
from ._pykka_adapter import check_pykka
from ._reference import ActorRef
from ._restart import RestartPolicy

__all__ = ["ActorSystem", "RestartPolicy"]

A = TypeVar("A", bound=Actor)

_log = get_logger("spa_dat.actors")

# Seconds that actors have to end after they were cancelled.
GRACE = 1.0


class ActorSystem:
    """Starts actors, finds them by name, supervises and stops them.

    Args:
        name: precedes the actors' names in chains and errors, as in ``plant/boiler``.
        environment: where jitter and identifiers come from.
        on_failure: called with every failure that no asker gets: the actor, the error and where
            it came from: ``on_receive``, ``receive``, ``on_start``, ``on_stop``,
            ``on_failure``, ``restart`` (with RestartLimitReached) or ``task`` (the actor has ended
            with it).
        on_unhandled: called with an actor that has ended and the number of messages left in its
            mailbox, not counting those that ``leftover`` got.

    Attributes:
        context: of the code that has created it, in which the ends of actors are noted.

    Raises:
        ConfigurationError: the installed pykka is not a supported one.
    """

    def __init__(
        self,
        *,
        name: str = "",
        environment: Environment | None = None,
        on_failure: Callable[[ActorRef[Any], BaseException, str], None] | None = None,
        on_unhandled: Callable[[ActorRef[Any], int], None] | None = None,
    ) -> None:
        check_pykka()
        self.name = name
        # What actors fail at often contains text from a stranger's message.
        self.log: LimitedLog = LimitedLog(_log)
        self.environment: Environment = Environment() if environment is None else environment
        self.context: Context = copy_context()
        self._on_failure = on_failure
        self._on_unhandled = on_unhandled
        self._cells: dict[str, ActorCell[Any]] = {}
        self._count = 0
        self._global: dict[str, ActorRef[Any]] = {}

    def spawn(
        self,
        factory: Callable[[], A],
        *,
        name: str | None = None,
        mailbox: Mailbox | None = None,
        restart: RestartPolicy = RestartPolicy(),
        receive: Callable[[A, Any], Awaitable[None]] | None = None,
        leftover: Callable[[list[Any]], None] | None = None,
        stopped: Callable[[], None] | None = None,
        alias: Callable[[], str] | None = None,
        register_globally: bool = False,
    ) -> ActorRef[A]:
        """Start an actor on the running event loop. Messages can be sent to it at once.

        The factory is called here for the first time, and again for each restart.

        Args:
            factory: returns an instance of the actor's class.
            name: unique among the running actors of this system; None for a generated one.
            mailbox: a new one with the desired limits; None for one of 1,000 messages.
            restart: how often and how quickly a failed start is retried.
            receive: handles items in the mailbox that did not come through the reference.
                What it raises is reported, and the actor goes on.
            leftover: called once with what ``receive`` would have got but the actor did not
                get to before it stopped, in order.
            stopped: called once when it has ended because somebody stopped it, and not
                because it was cancelled or given up.
            alias: returns the name by which chains and errors call it at the moment, in place of
                ``name``: what is at work in it changes with each message.
            register_globally: also enter it in pykka's process-wide registry.

        Raises:
            ConfigurationError: the name or the mailbox is taken, or the factory returns no Actor.
            Exception: whatever the factory raises.
        """
        if name is None:
            self._count += 1
            name = f"actor-{self._count}"
        if not name or name in self._cells:
            problem = "is empty" if not name else "is taken by a running actor"
            raise ConfigurationError(f"actor name {name!r} {problem}; choose another one")
        box = Mailbox() if mailbox is None else mailbox
        cell = ActorCell(self, name, box, factory, restart, receive, leftover, stopped, alias)
        self._cells[name] = cell
        if register_globally:
            self._global[name] = cell.ref
            pykka.ActorRegistry.register(cell.pykka_ref)
        return cell.ref

    def get(self, name: str) -> ActorRef[Any] | None:
        """Return the running actor with this name; None if there is none."""
        cell = self._cells.get(name)
        return None if cell is None else cell.ref

    def __len__(self) -> int:
        """Return the number of actors that have not ended."""
        return len(self._cells)

    def __iter__(self) -> Iterator[ActorRef[Any]]:
        """Iterate over the actors that have not ended, in the order in which they were started."""
        return iter([cell.ref for cell in self._cells.values()])

    async def started(self, ref: ActorRef[Any]) -> None:
        """Wait until the actor's ``on_start`` has succeeded.

        Raises:
            RestartLimitReached: it failed too often.
            ActorStopped: the actor was stopped first.
            DeadlockDetected: called from inside that ``on_start``.
        """
        await ref._cell.started()

    async def stop(self, ref: ActorRef[Any], *, drain: bool = True) -> None:
        """Stop an actor as `ActorRef.stop` does."""
        await ref.stop(drain=drain)

    def task(self, ref: ActorRef[Any]) -> asyncio.Task[None]:
        """Return the task that the actor runs in."""
        return ref._cell.task

    def is_up(self, ref: ActorRef[Any]) -> bool:
        """Return whether the actor has started and is not starting again."""
        return ref._cell.up

    def is_at_work(self) -> bool:
        """Return whether the running code is part of the work of one of these actors."""
        frame = current_frame()
        return frame is not None and any(cell is frame.owner for cell in self._cells.values())

    def crash(self, ref: ActorRef[Any]) -> bool:
        """Make the actor drop its instance in the middle of what it is doing, and start again.

        The message it was working on is abandoned; the mailbox stays. For tests.

        Returns:
            False if it is starting or stopping, in which case nothing happens.
        """
        return ref._cell.restart()

    def pause(self, ref: ActorRef[Any]) -> None:
        """Have the actor take nothing more out of its mailbox after the current message."""
        ref._cell.pause()

    def resume(self, ref: ActorRef[Any]) -> None:
        """Have a paused actor go on. Stopping it does so, too."""
        ref._cell.resume()

    def begin_afresh(self, ref: ActorRef[Any]) -> bool:
        """Stop the actor's instance after the current message, and start a new one.

        The old one's ``on_stop`` is called. The mailbox stays, and a failing start is retried as
        the first one is.

        Returns:
            False if it is starting, stopping or has ended, in which case nothing happens.
        """
        return ref._cell.begin_afresh()

    def renew(self, ref: ActorRef[Any]) -> None:
        """Have a new instance take over, without the old one's ``on_stop``; the mailbox stays.

        It is created when the actor asks for it with `current`, or after the current message.
        """
        ref._cell.renew()

    async def current(self, ref: ActorRef[A]) -> A | None:
        """Return the current instance to code inside the actor; None if it is about to end."""
        return await ref._cell.current()

    async def kill(self, ref: ActorRef[Any]) -> asyncio.Task[None] | None:
        """End the actor now by cancelling what it is doing, and again a second later.

        Returns:
            Its task if that is still running another second later; None if it has ended.
        """
        cell = ref._cell
        for _ in range(2):
            cell.kill()
            if await self._ended([cell], GRACE):
                return None
        return cell.task

    async def stop_all(self, *, timeout: float) -> None:
        """Stop all actors after they have handled what is in their mailboxes.

        Those that are not done after ``timeout`` seconds are cancelled, and named in the log.
        If called by an actor, it waits for all the others.
        """
        for cell in self._cells.values():
            cell.request_stop(drain=True)
        current = asyncio.current_task()
        cells = [cell for cell in self._cells.values() if cell.task is not current]
        if await self._ended(cells, timeout):
            return
        late = [cell for cell in cells if not cell.task.done()]
        names = ", ".join(sorted(cell.address for cell in late))
        text = "actors cancelled because they had not stopped within %s s: %s"
        _log.warning(text, timeout, names)
        for cell in late:
            cell.kill()
        if not await self._ended(late, GRACE):
            left = ", ".join(sorted(cell.address for cell in late if not cell.task.done()))
            _log.error("actors still running although they were cancelled: %s", left)

    async def _ended(self, cells: list[ActorCell[Any]], timeout: float) -> bool:
        if not cells:
            return True
        _, pending = await asyncio.wait([cell.task for cell in cells], timeout=timeout)
        return not pending

    def actor_failed(self, ref: ActorRef[Any], error: BaseException, where: str) -> None:
        """Report a failure to the hook ``on_failure``; called by an actor's supervision."""
        if self._on_failure is None:
            return
        try:
            self._on_failure(ref, error, where)
        except BaseException as raised:  # noqa: BLE001  (the actors go on whatever the hook does)
            text = "on_failure of the actor system raised for actor %r"
            _log.error(text, ref.name, exc_info=raised)

    def actor_left(self, ref: ActorRef[Any], unhandled: int) -> None:
        """Report messages that an actor left unhandled; called by its supervision."""
        if self._on_unhandled is not None:
            self._on_unhandled(ref, unhandled)

    def actor_ended(self, cell: ActorCell[Any]) -> None:
        """Forget an actor that has ended; called by its supervision."""
        self._cells.pop(cell.name, None)
        if not self._cells:
            self.log.flush()
        ref = self._global.pop(cell.name, None)
        if ref is not None:
            pykka.ActorRegistry.unregister(ref.pykka)
