"""References: how an actor is addressed, told and asked."""

from __future__ import annotations

import asyncio
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pykka

from ..errors import ActorError, ActorStopped, RequestTimeout
from ._local_message import LocalMessage
from ._waits import Frame, current_frame, deadlock, find_cycle

if TYPE_CHECKING:
    from ._actor import Actor
    from ._cell import Cell

__all__ = ["ActorRef"]

A_co = TypeVar("A_co", bound="Actor", covariant=True)


class ActorRef(Generic[A_co]):
    """The address of an actor. It stays valid, and the same, through restarts.

    Attributes:
        name: the actor's name, unique in its system.
    """

    __slots__ = ("__weakref__", "_cell", "_mailbox", "_thread", "name")

    def __init__(self, cell: Cell[Any]) -> None:
        self.name: str = cell.name
        self._cell = cell
        self._mailbox = cell.mailbox
        self._thread = get_ident()

    def __repr__(self) -> str:
        return f"<ActorRef {self._cell.address!r}{'' if self.is_alive else ' (stopped)'}>"

    @property
    def is_alive(self) -> bool:
        """Whether the actor takes messages."""
        return not self._mailbox.closed

    @property
    def pykka(self) -> pykka.ActorRef[Any]:
        """The same actor as a `pykka.ActorRef`, for other threads and for pykka's proxies."""
        return self._cell.pykka_ref

    def tell(self, message: Any) -> None:
        """Send a message and wait for nothing. Works from any thread.

        If the handler raises, that is logged and given to the actor's ``on_failure``.

        Raises:
            MailboxFull: the mailbox has no free place and its policy is to refuse.
            ActorStopped: the actor has stopped.
        """
        if get_ident() == self._thread:
            self._mailbox.offer(LocalMessage(message))
        else:
            self._mailbox.put(LocalMessage(message))

    async def send(self, message: Any) -> None:
        """As `tell`, but wait for a place in the mailbox, as long as it takes.

        Raises:
            ActorStopped: the actor has stopped, or does while we wait.
            DeadlockDetected: the mailbox is full and the actor waits for the one who sends.
        """
        self._check_thread()
        await self._put(LocalMessage(message), current_frame())

    async def ask(self, message: Any, *, timeout: float = 30.0) -> Any:
        """Send a message and wait for the answer.

        A message whose asker has given up before the actor came to it is not handled.

        Args:
            message: what the actor's ``on_receive`` gets.
            timeout: seconds for everything, waiting for a place in the mailbox included.

        Returns:
            What ``on_receive`` returned.

        Raises:
            RequestTimeout: no answer in time (a TimeoutError). The actor may still do the work.
            ActorStopped: the actor has stopped, or does before it gets to the message.
            DeadlockDetected: the actor waits, directly or not, for the one who asks.
            Exception: whatever ``on_receive`` raised.
        """
        if get_ident() != self._thread:
            self._check_thread()
        frame = current_frame()
        if frame is not None:
            self._refuse_cycle(frame)
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        timer = loop.call_later(timeout, self._expire, reply, timeout)
        try:
            if self._mailbox.full:
                await self._put_asked(LocalMessage(message, reply, frame), reply)
            else:
                self._mailbox.force(LocalMessage(message, reply, frame))
            return await reply
        finally:
            timer.cancel()
            if not reply.cancel() and not reply.cancelled():
                # Marks it as seen, for the asker that is cancelled as the answer comes.
                reply.exception()
            # What it raises refers to this frame.
            del reply

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the actor and wait until it has stopped; stopping it again does no harm.

        From inside the actor, or for an actor that waits for the one who calls, the stop is
        only requested: it could never be waited for.

        Args:
            drain: handle what is in the mailbox first; otherwise only what is being handled.
        """
        self._check_thread()
        await self._cell.stop(drain=drain)

    async def _put(self, local: LocalMessage, frame: Frame | None) -> None:
        if frame is not None and self._mailbox.full:
            self._refuse_cycle(frame)
        await self._mailbox.put_wait(local)

    async def _put_asked(self, local: LocalMessage, reply: asyncio.Future[Any]) -> None:
        putting = asyncio.ensure_future(self._mailbox.put_wait(local))
        try:
            await asyncio.wait((putting, reply), return_when=asyncio.FIRST_COMPLETED)
            if putting.done():
                putting.result()
        finally:
            putting.cancel()

    def _refuse_cycle(self, frame: Frame) -> None:
        cycle = find_cycle(frame, self._cell)
        if cycle is not None:
            raise deadlock(cycle, self._cell.address)

    def _expire(self, reply: asyncio.Future[Any], timeout: float) -> None:
        if not reply.done():
            reply.set_exception(
                RequestTimeout(
                    f"actor {self._cell.address!r} gave no answer within {timeout} s;"
                    f" {len(self._mailbox)} messages wait in its mailbox"
                )
            )

    def _check_thread(self) -> None:
        if get_ident() == self._thread:
            return
        if not self.is_alive:
            raise ActorStopped(f"actor {self._cell.address!r} has stopped")
        raise ActorError(
            f"actor {self._cell.address!r} lives on the event loop of another thread:"
            " use ref.tell(...) or ref.pykka.ask(...) here"
        )
