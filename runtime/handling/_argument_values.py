"""The values of a call's arguments: what the parameters of a handler get in one attempt."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...transports import Envelope
from ..injection._handler_context import Context
from ..messaging._message import Message
from ..messaging._middleware import CallOutcome, HandlerCall, OutcomeCallbacks
from ..messaging._outgoing_message import MessageBuilder
from ..messaging._sent_replies import reply
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..messaging._turn import Turn
from ..registration._specs import Handler
from ..routing._routed_deliveries import RoutedDelivery

if TYPE_CHECKING:
    from ._handling_lane import HandlingLane

__all__ = ["MessageScope", "ProducerScope", "with_usable_address"]

_BUILDER = MessageBuilder()


class ProducerScope:
    """What the arguments of a producer's call are taken from.

    Args:
        owner: the actor.
        handler: the handler to call.
        deadline: loop time at which the call is cut off.

    Attributes:
        outcome: whom to tell what has become of the call; None if it goes through no middleware.
    """

    # Each message needs one.
    __slots__ = ("_attempt", "_deadline", "_handler", "_owner", "outcome")

    def __init__(
        self, owner: HandlingLane, handler: Handler, deadline: float | None = None
    ) -> None:
        self.outcome: OutcomeCallbacks[CallOutcome] | None = None
        self._owner = owner
        self._handler = handler
        self._deadline = deadline
        self._attempt = 1

    @property
    def socket(self) -> Socket | SyncSocket:
        """The socket for this kind of function."""
        return self._owner.socket if self._handler.injection.is_async else self._owner.sync_socket

    @property
    def context(self) -> Context:
        """The context of this attempt."""
        return Context(self._owner.context_owner, attempt=self._attempt, deadline=self._deadline)

    @property
    def state(self) -> Any:
        """The actor's state as it is now."""
        return self._owner.state

    @property
    def message_builder(self) -> MessageBuilder:
        """The builder of messages to be sent."""
        return _BUILDER

    @property
    def resources(self) -> Mapping[str, Any]:
        """The actor's open resources."""
        return self._owner.resources

    @property
    def captures(self) -> Mapping[str, str]:
        """Nothing: producers have no topics."""
        return {}

    @property
    def payload(self) -> Any:
        """Not available: producers have no messages."""
        raise NotImplementedError

    @property
    def envelope(self) -> Envelope:
        """Not available: producers have no messages."""
        raise NotImplementedError

    def message(self) -> Message[Any]:
        """Raise NotImplementedError: producers have no messages."""
        raise NotImplementedError

    def handler_call(self) -> HandlerCall:
        """Return the call as middleware sees it."""
        return self._call_of(())

    def _call_of(
        self, deliveries: Sequence[RoutedDelivery], *, is_batch: bool = False
    ) -> HandlerCall:
        def make() -> tuple[Message[bytes], ...]:
            return tuple(
                Message.of(
                    with_usable_address(self._owner, delivery.envelope),
                    delivery.envelope.payload,
                    attempt=delivery.attempts + 1,
                )
                for delivery in deliveries
            )

        name = self._handler.injection.name.removesuffix("()")
        topic_filter = deliveries[0].route.filter.text if deliveries else None
        self.outcome = OutcomeCallbacks()
        return HandlerCall(
            actor=self._owner.actor_name,
            bus=self._owner.connection.provider.address,
            handler=name,
            attempt=self._attempt,
            topic_filter=topic_filter,
            is_batch=is_batch,
            make=make,
            outcome=self.outcome,
        )


class MessageScope(ProducerScope):
    """What the arguments of one attempt at a message are taken from.

    Args:
        owner: the actor.
        handler: the handler to call.
        delivery: the message.
        turn: the attempt.
        deadline: loop time at which the attempt is cut off.
    """

    __slots__ = ("_delivery", "_turn")

    def __init__(
        self,
        owner: HandlingLane,
        handler: Handler,
        delivery: RoutedDelivery,
        turn: Turn,
        deadline: float | None,
    ) -> None:
        # As that of the base class, without the cost of a call.
        self.outcome = None
        self._owner = owner
        self._handler = handler
        self._deadline = deadline
        self._delivery = delivery
        self._turn = turn
        self._attempt = delivery.attempts + 1

    @property
    def captures(self) -> Mapping[str, str]:
        """The captures of the topic."""
        captured: Mapping[str, str] = self._delivery.route.filter.capture(
            self._delivery.envelope.topic
        )
        return captured

    @property
    def payload(self) -> Any:
        """The payload, decoded to the type that the handler asks for; raises DecodeError."""
        decoder = self._handler.injection.payload_decoder
        envelope = self._delivery.envelope
        if decoder is None:
            return envelope.payload
        return decoder.decode(envelope.payload, envelope.content_type)

    @property
    def envelope(self) -> Envelope:
        """The message as it came from the bus."""
        return self._delivery.envelope

    def handler_call(self) -> HandlerCall:
        """Return the call as middleware sees it."""
        return self._call_of((self._delivery,))

    def message(self) -> Message[Any]:
        """Return the whole message; raises DecodeError."""
        envelope = self._delivery.envelope
        answer = self._reply if self._turn.request is not None else None
        if answer is None:
            envelope = with_usable_address(self._owner, envelope)
        return Message.of(envelope, self.payload, attempt=self._attempt, reply=answer)

    def _reply(
        self, payload: object, headers: Mapping[str, str | None] | None
    ) -> Coroutine[Any, Any, None]:
        # The socket as it is then: a handler may keep a request.
        return reply(self._owner.socket, self._turn, payload, headers)


def with_usable_address(owner: HandlingLane, envelope: Envelope) -> Envelope:
    """Return the message, without its response topic if no reply may go there.

    A handler that publishes its reply itself, or forwards the request, must not use it either.
    """
    if envelope.response_topic is None or owner.reply_address_problem(envelope) is None:
        return envelope
    return msgspec.structs.replace(envelope, response_topic=None)
