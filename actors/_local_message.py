"""Local messages: what `ActorRef` puts into a mailbox."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ._deadlocks import Frame, Waiter

__all__ = ["LocalMessage", "Reply"]


class Reply(Waiter, Protocol):
    """Where the answer to an ask goes."""

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: Any, /) -> None: ...


class LocalMessage(msgspec.Struct, eq=False):
    """One local message.

    Attributes:
        message: what was sent.
        reply: where the answer goes; None for a tell.
        asker: the frame of the actor that asks; None outside of actors.
    """

    message: Any
    reply: Reply | None = None
    asker: Frame | None = None

    def hand_to(self, actor: Any) -> Any:
        """Have the actor handle the message; the result may have to be awaited."""
        return actor.on_receive(self.message)

    def answer(self, value: Any) -> None:
        """Give the asker its answer; do nothing if nobody asked."""
        if self.reply is not None and not self.reply.done():
            self.reply.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Give the asker an error instead of an answer; do nothing if nobody asked."""
        if self.reply is None or self.reply.done():
            return
        if isinstance(error, StopIteration):
            # A future refuses StopIteration, which would end the coroutine that awaits it.
            wrapped = RuntimeError("the handler raised StopIteration")
            wrapped.__cause__ = error
            error = wrapped
        self.reply.set_exception(error)
