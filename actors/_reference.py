"""References: the means to tell, ask and stop an actor."""

from __future__ import annotations

import asyncio
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pykka

from ..errors import ActorError, ActorStopped, RequestTimeout
from ._deadlocks import Frame, current_frame, deadlock, find_cycle
from ._local_message import LocalMessage
from ._mailbox import Mailbox

if TYPE_CHECKING:
    from ._actor import Actor
    from ._actor_cell import ActorCell

__all__ = ["ActorRef"]

A_co = TypeVar("A_co", bound="Actor", covariant=True)


class ActorRef(Generic[A_co]):
    """A reference to an actor. It stays valid, and the same, through restarts.

    Attributes:
        name: the actor's name, unique in its system.
    """

    __slots__ = ("__weakref__", "_cell", "_mailbox", "_thread", "name")

    def __init__(self, cell: ActorCell[Any]) -> None:
        self.name: str = cell.name
        self._cell = cell
        self._mailbox = cell.mailbox
        self._thread = get_ident()

    def __repr__(self) -> str:
        return f"<ActorRef {self._cell.address!r}{'' if self.is_alive else ' (stopped)'}>"

    @property
    def is_alive(self) -> bool:
        """Whether the actor accepts messages."""
        return not self._mailbox.closed

    @property
    def pykka(self) -> pykka.ActorRef[Any]:
        """The same actor as a `pykka.ActorRef`, for other threads and for pykka's proxies."""
        return self._cell.pykka_ref

    def tell(self, message: Any) -> None:
        """Send a message without waiting. Works from any thread.

        If the handler raises, the error is logged and passed to the actor's ``on_failure``.

        Raises:
            MailboxFull: the mailbox is full and its policy is to refuse.
            ActorStopped: the actor has stopped.
        """
        if get_ident() == self._thread:
            # Mailbox.offer(), without the cost of a call
            mailbox = self._mailbox
            items = mailbox.items
            if type(mailbox) is Mailbox and len(items) < mailbox.limit:
                items.append(LocalMessage(message))
                if mailbox.getter is not None:
                    mailbox.wake()
            else:
                mailbox.offer(LocalMessage(message))
        else:
            self._mailbox.put(LocalMessage(message))

    async def send(self, message: Any) -> None:
        """Send a message as `tell` does, but wait for room in the mailbox as long as it takes.

        Raises:
            ActorStopped: the actor has stopped, or stops meanwhile.
            DeadlockDetected: the mailbox is full and the actor is waiting for the sender.
        """
        self._check_thread()
        await self._put(LocalMessage(message), current_frame())

    async def ask(self, message: Any, *, timeout: float = 30.0) -> Any:
        """Send a message and wait for the answer.

        If the asker gives up before the actor gets to the message, the message is not handled.

        Args:
            message: what the actor's ``on_receive`` gets.
            timeout: seconds for everything, including the wait for room in the mailbox.

        Returns:
            What ``on_receive`` returned.

        Raises:
            RequestTimeout: no answer in time (a TimeoutError). The actor may still handle the
                message.
            ActorStopped: the actor has stopped, or stops before it gets to the message.
            DeadlockDetected: the actor is waiting, directly or indirectly, for the asker.
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
                # Marks it as seen, in case the asker is cancelled just as the answer arrives.
                reply.exception()
            # The error refers to this frame.
            del reply

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the actor and wait until it has stopped; stopping it again is harmless.

        From inside the actor, or when the actor is waiting for the caller, the stop is only
        requested: waiting for it would never end.

        Args:
            drain: first handle what is in the mailbox; otherwise finish only the current message.
        """
        if self._cell.task.done():
            # Also for code on another event loop: its own may be closed.
            return
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
                    f"actor {self._cell.address!r} did not answer within {timeout} s;"
                    f" {len(self._mailbox)} messages are waiting in its mailbox"
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
