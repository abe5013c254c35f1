"""Lanes whose messages have their effects exactly once, because they are committed together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from ..._texts import describe
from ...actors import refuse_unrun
from ...errors import SpaDatError
from ...transports import Delivery, Envelope, on_outcome
from ...transports._delegating_bus import DelegatingBus
from ...transports._units import Outcome, Unit
from ..handling._argument_values import ProducerScope
from ..messaging._bus_connection import BusConnection
from ..messaging._recording_socket import RecordingSocket
from ..messaging._sent_replies import Replies
from ..messaging._socket import Socket
from ..messaging._turn import Turn, current_turn
from ..options._retry_policy import Reject
from ..registration._specs import Handler
from ._lane import Lane

__all__ = ["AfterCommit", "ExactlyOnceLane", "park_in", "recorded", "refuse_again"]


class ExactlyOnceLane(Lane):
    """A lane of an actor with ``exactly_once``.

    What a handler publishes is recorded, and so is the dead letter of a message that cannot be
    handled. The unit that the message belongs to commits it with the acknowledgement, when the
    handler has succeeded; replies are sent after that. Messages that do not belong to a unit, such
    as replayed ones, are handled as by any other actor.
    """

    def _make_socket(self) -> Socket:
        options, runtime = self.options, self.runner.runtime
        return _OutcomeSocket(self.connection, self.source, runtime, options.codec, options.wire)

    def make_replies(self) -> Replies:
        """As of `Lane`, sent after the commit."""
        bus = AfterCommit(self.connection)
        return self.connection.replies_in(self.options.wire, bus)

    def alias(self) -> str:
        """As of `Lane`: all of them, as a reply also waits for what others have not finished."""
        return self.actor_name

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """As of `Lane`: also a request that another lane would get."""
        return self._refuses(self.source, envelope, handler)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """As of `Lane`, with what has to be done around every call; none that may answer."""
        return [
            None if function is None or handler.responder else self._noting(function, handler)
            for function, handler in zip(super().direct(instance), self.handlers, strict=True)
        ]

    def _noting(self, function: Callable[..., Any], handler: Handler) -> Callable[..., Any]:
        async def call(**arguments: Any) -> None:
            turn = current_turn.get()
            assert turn is not None
            await self._note(turn, partial(function, **arguments), handler)

        return call

    def invoke(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """As of `Lane`; notes what the call has come to."""
        return self._invoke_and_note(instance, index, arguments, scope)

    async def _invoke_and_note(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Any:
        turn = current_turn.get()
        assert turn is not None
        call = partial(super().invoke, instance, index, arguments, scope)
        return await self._note(turn, call, self.handlers[index])

    async def _note(self, turn: Turn, call: Callable[[], Awaitable[Any]], handler: Handler) -> Any:
        """Call a handler, and note what it has come to."""
        delivery = turn.delivery
        assert delivery is not None
        unit = delivery.tracker
        if not isinstance(unit, Unit):
            return await call()
        refuse_again(unit, delivery)
        turn.outcome = outcome = Outcome()
        result = await call()
        if result is not None:
            refuse_unrun(result, handler.injection.name)
        turn.refuse_failure()
        # What was posted to other buses has to be there before the message counts as handled.
        if turn.posts:
            await asyncio.gather(*turn.posts)
        unit.note(delivery, outcome, hurry=turn.request is not None)
        return result

    async def park(self, delivery: Delivery, letter: Envelope, timeout: float) -> None:
        """As of `Lane`: committed with the acknowledgement, unless it was refused there."""
        if not park_in(delivery, letter, self.connection):
            await super().park(delivery, letter, timeout)


def refuse_again(unit: Unit, delivery: Delivery) -> None:
    """Raise Reject if the outcome of an earlier receipt of a message was refused."""
    refused = unit.refused(delivery)
    if refused is not None:
        raise Reject(
            f"what an earlier attempt has published was refused: {describe(refused.error)}"
        )


def park_in(delivery: Delivery, letter: Envelope, connection: BusConnection) -> bool:
    """Make a dead letter the outcome of a message; return False if it has to be stored otherwise.

    It has to be if it was refused there, or if the message belongs to no unit.
    """
    unit = delivery.tracker
    if not isinstance(unit, Unit):
        return False
    refused = unit.refused(delivery)
    if refused is not None and refused.letter_too:
        return False
    outcome = Outcome()
    connection.bus.add_output(outcome, letter, letter=True)
    unit.note(delivery, outcome)
    return True


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
        turn.outcome.committed.append(partial(_send, connection, envelope))
    elif outputs:
        connection.bus.add_output(turn.outcome, envelope)
    else:
        return False
    connection.recorded(envelope)
    return True


class _OutcomeSocket(RecordingSocket):
    """The socket of a lane, which records what a handler publishes until it is committed."""

    def _recorded(self, envelope: Envelope) -> bool:
        return recorded(self._connection, envelope)


class AfterCommit(DelegatingBus):
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
        turn.outcome.committed.append(partial(_send, self._connection, envelope))
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
