"""What lanes have in common whose messages come to an outcome that the bus commits."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from ..._texts import describe
from ...errors import SpaDatError
from ...transports import Delivery, Envelope, on_outcome
from ...transports._commit_steps import STEPS_IN_TRANSACTIONS
from ...transports._delegating_bus import DelegatingBus
from ...transports._units import Outcome, OwnDelivery, Unit
from ..messaging._bus_connection import BusConnection
from ..messaging._recording_socket import MUCH_OUTPUT, size_with
from ..messaging._sent_replies import Replies
from ..messaging._turn import current_turn
from ..options._retry_policy import Reject
from ..registration._specs import Handler
from ._lane import Lane

__all__ = ["OutcomeLane", "note", "recorded", "refuse_again"]


class OutcomeLane(Lane):
    """A lane whose replies and dead letters are parts of the outcome of a message.

    Messages that do not belong to a unit, such as replayed ones, have none.
    """

    commit_steps = STEPS_IN_TRANSACTIONS

    def make_replies(self) -> Replies:
        """As in `Lane`, sent after the commit."""
        return self.connection.replies_in(self.options.wire, _AfterCommit(self.connection))

    @abc.abstractmethod
    async def _note(
        self, handler: Handler, call: Callable[..., Awaitable[Any]], /, **arguments: Any
    ) -> None:
        """Call a handler, and note what it has come to.

        It returns nothing, so that nobody has to look at that.
        """

    def _noting(
        self, functions: Iterable[Callable[..., Any] | None]
    ) -> list[Callable[..., Any] | None]:
        """Wrap the functions of handlers to note outcomes; None for handlers that may reply."""
        return [
            None
            if function is None or handler.responder
            else partial(self._note, handler, function)
            for function, handler in zip(functions, self.handlers, strict=True)
        ]

    async def _invoke_and_note(self, index: int, invoke: Callable[[], Awaitable[Any]]) -> Any:
        """Invoke a handler, note what the call has come to, and return what it has returned."""
        result: Any = None

        async def call() -> Any:
            nonlocal result
            result = await invoke()
            return result

        await self._note(self.handlers[index], call)
        return result

    async def park(self, delivery: Delivery, letter: Envelope, timeout: float) -> bool:
        """As in `Lane`: committed with the acknowledgement, unless it was refused there."""
        unit = delivery.unit
        refused = None if unit is None else unit.refused(delivery)
        if unit is None or (refused is not None and refused.letter_too):
            return await super().park(delivery, letter, timeout)
        outcome = Outcome(committed=(self.parked,), lost=(self.return_letter,))
        self.connection.bus.add_output(outcome, letter, letter=True)
        if isinstance(delivery, OwnDelivery):
            delivery.outcome = outcome
        else:
            unit.note(delivery, outcome)
        return False


def note(unit: Unit, delivery: Delivery, outcome: Outcome, *, hurry: bool = False) -> None:
    """Note what a delivery has come to that was handled, whoever has handed it out."""
    if isinstance(delivery, OwnDelivery):
        delivery.complete(outcome)
    else:
        unit.note(delivery, outcome, hurry=hurry)


def refuse_again(unit: Unit, delivery: Delivery) -> None:
    """Raise Reject if the outcome of an earlier receipt of a message was refused."""
    refused = unit.refused(delivery)
    if refused is not None:
        raise Reject(
            f"what an earlier attempt has published was refused: {describe(refused.error)}"
        )


def recorded(connection: BusConnection, envelope: Envelope, *, outputs: bool = True) -> bool:
    """Record what a handler publishes in the outcome of its message; return whether it was.

    Args:
        connection: the bus.
        envelope: what is published.
        outputs: whether everything is recorded, and not only replies.
    """
    turn = current_turn.get()
    if turn is None or not turn.active or turn.outcome is None:
        return False
    if turn.is_reply(envelope.topic):
        turn.outcome.committed += (partial(_send, connection, envelope),)
    elif outputs:
        outcome = turn.outcome
        if outcome.size + len(envelope.payload) > MUCH_OUTPUT:
            # Hardly any message gets here, and those that do not are below every limit.
            size_with(outcome.size, envelope)
        connection.bus.add_output(outcome, envelope)
    else:
        return False
    connection.recorded(envelope)
    return True


class _AfterCommit(DelegatingBus):
    """Posts the reply to a request once what the request has come to is committed.

    Args:
        connection: whose bus it is.
    """

    def __init__(self, connection: BusConnection) -> None:
        super().__init__(connection.bus)
        self._connection = connection

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """See `Bus.post`; what is posted without an outcome goes at once."""
        turn = current_turn.get()
        if turn is None or turn.outcome is None:
            return self._bus.post(envelope)
        turn.outcome.committed += (partial(_send, self._connection, envelope),)
        # The message does not have to wait for it.
        done: asyncio.Future[None] = self._connection.loop.create_future()
        done.set_result(None)
        return done


def _send(connection: BusConnection, reply: Envelope) -> None:
    """Send a reply that nobody waits for here: if it is lost, its requester asks again."""
    try:
        posted = connection.bus.post(reply)
    except SpaDatError as error:
        connection.surroundings.stats["replies.refused"] += 1
        connection.lost_posts.report(_failed(connection, error))
        return
    on_outcome(posted, connection.lost_posts.report)


def _failed(connection: BusConnection, error: SpaDatError) -> asyncio.Future[None]:
    posted: asyncio.Future[None] = connection.loop.create_future()
    posted.set_exception(error)
    return posted
