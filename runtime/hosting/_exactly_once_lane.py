"""Lanes whose messages have their effects exactly once, because they are committed together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from ...actors import refuse_unrun
from ...transports import Envelope
from ...transports._units import Outcome
from ..handling._argument_values import ProducerScope
from ..messaging._recording_socket import RecordingSocket
from ..messaging._socket import Socket
from ..messaging._turn import current_turn
from ..registration._specs import Handler
from ._outcome_lane import OutcomeLane, recorded, refuse_again

__all__ = ["ExactlyOnceLane"]


class ExactlyOnceLane(OutcomeLane):
    """A lane of an actor with ``exactly_once``.

    What a handler publishes is recorded, and so is the dead letter of a message that cannot be
    handled. The unit that the message belongs to commits it with the acknowledgement, when the
    handler has succeeded; replies are sent after that. Messages that do not belong to a unit, such
    as replayed ones, are handled as by any other actor.
    """

    def _make_socket(self) -> Socket:
        options, runtime = self.options, self.runner.runtime
        return _OutcomeSocket(self.connection, self.source, runtime, options.codec, options.wire)

    def alias(self) -> str:
        """As in `Lane`: all of them, as a reply also waits for what others have not finished."""
        return self.actor_name

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """As in `Lane`: also a request that another lane would get."""
        return self._refuses(self.source, envelope, handler)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """As in `Lane`, wrapped to note outcomes; None for handlers that may reply."""
        return self._noting(super().direct(instance))

    def invoke(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """As in `Lane`; notes what the call has come to."""
        invoke = partial(super().invoke, instance, index, arguments, scope)
        return self._invoke_and_note(index, invoke)

    async def _note(
        self, handler: Handler, call: Callable[..., Awaitable[Any]], /, **arguments: Any
    ) -> None:
        """As in `OutcomeLane`."""
        turn = current_turn.get()
        assert turn is not None
        delivery = turn.delivery
        assert delivery is not None
        unit = delivery.unit
        if unit is not None:
            refuse_again(unit, delivery)
            turn.outcome = Outcome()
        result = await call(**arguments)
        if result is not None:
            refuse_unrun(result, handler.injection.name)
        if unit is None or turn.outcome is None:
            return
        turn.refuse_failure()
        # What was posted to other buses has to be there before the message counts as handled.
        if turn.posts:
            await asyncio.gather(*turn.posts)
        unit.note(delivery, turn.outcome, hurry=turn.request is not None)


class _OutcomeSocket(RecordingSocket):
    """The socket of a lane, which records what a handler publishes until it is committed."""

    def _recorder(self) -> Callable[[Envelope], bool]:
        return partial(recorded, self._connection)
