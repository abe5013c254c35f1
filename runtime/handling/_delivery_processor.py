"""Processing deliveries in an actor: bind, run, retry or park, reply, settle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Literal

from ..._texts import describe, error_name, escaped, quoted
from ...actors import (
    DONE,
    Isolated,
    end_attempt,
    end_code,
    enter_chain,
    enter_chain_apart,
    interrupted_guard,
    looked_at,
    raised_by_hand,
    refuse_unrun,
    returns_nothing,
    run_apart,
    stay_in_process,
)
from ...errors import DecodeError, OutboxFull, RemoteError
from ...transports import Delivery, DeliveryState, Envelope
from ..messaging._bus_connection import BusConnection
from ..messaging._logged_fields import message_fields
from ..messaging._middleware import CallOutcome, HandlerCall, OutcomeCallbacks
from ..messaging._request_deadlocks import CHAIN_HEADER, chain_of
from ..messaging._sent_replies import error_answer
from ..messaging._turn import Turn, current_turn, lasting_identity
from ..options._retry_policy import Reject
from ..payloads._codec import check_readable
from ..registration._specs import Handler
from ..routing._routed_deliveries import RoutedDelivery
from ..routing._router import Router
from ._argument_values import MessageScope
from ._dead_letter_store import DeadLetterStore
from ._failures_and_retries import (
    SHORTEST_PAUSE,
    as_failure,
    is_outage,
    log_failure,
    pause_in_outage,
)
from ._settlement import Settlements

if TYPE_CHECKING:
    from ..metrics._measurements import FailureKind
    from ._handling_lane import HandlingLane

__all__ = ["DONE_WITH", "DeliveryProcessor"]

DONE_WITH = (DeliveryState.SETTLED, DeliveryState.RUNNING)
"""The states of deliveries that were processed and do not come again."""

_Decode = Callable[[bytes, str | None], Any]
# What is called for a message, and for a request if what it returns is the reply; the name of its
# one argument if that is the payload, and what decodes that.
_FastPath = tuple[Callable[..., Any], Callable[..., Any] | None, str | None, _Decode | None]


class DeliveryProcessor:
    """Runs one actor's handlers on its deliveries, one at a time.

    Args:
        lane: the lane that the handlers are called in.
        connection: the actor's bus.
    """

    # With thousands of actors a message costs what it touches in memory, hence slots, and at hand
    # what every message needs.
    __slots__ = (
        "_connection",
        "_dead_letters",
        "_direct_of",
        "_environment",
        "_fast_paths",
        "_lane",
        "_max_received",
        "_now",
        "_pauses",
        "_replies",
        "_retry",
        "_source",
        "_stats",
        "_told_unsent",
        "settlements",
    )

    def __init__(self, lane: HandlingLane, connection: BusConnection) -> None:
        self._lane = lane
        self._connection = connection
        self._replies = lane.make_replies()
        self._stats = connection.surroundings.stats
        self._environment = connection.surroundings.environment
        self._now = connection.loop.time
        self._retry = lane.options.retry
        self._pauses = lane.pauses
        self._told_unsent = False
        self._dead_letters = DeadLetterStore(lane, connection, self._pauses, self._retry.first)
        self.settlements: Settlements = Settlements(
            self._stats, self._posts_refused, lane.log, self._answer_too_large
        )
        self._source = lane.source
        self._max_received = lane.max_received
        self._fast_paths: list[_FastPath | None] = []
        self._direct_of: Any = None

    @property
    def retrying(self) -> int:
        """How many messages wait for their next attempt now."""
        return self._pauses.messages

    def interrupt(self, router: Router) -> None:
        """End waits between two attempts at a message of the router, which gets it back."""
        self._pauses.interrupt(router)

    def stop(self) -> None:
        """Start no further attempt."""
        self._pauses.stop()

    def receive(self, instance: Any, item: Any) -> Awaitable[None]:
        """Handle one item of the lane's mailbox."""
        if isinstance(item, Delivery):
            return self.handle(instance, item)
        return self._lane.receive_other(instance, item)

    async def handle(self, instance: Any, delivery: RoutedDelivery) -> None:
        """Process a delivery: afterwards it is settled, about to be, or given back."""
        # The fast path: the first attempt at a message that is not a request, in as few steps as
        # possible, because most of a program's time is spent here; `_answer` is the one for
        # requests. The slow path, `_handle_fully`, does the same for every message, and they must
        # agree: `test_handling_short_ways` runs them all.
        if instance is not self._direct_of:
            self._direct_of, self._fast_paths = instance, self._fast_paths_of(instance)
        envelope = delivery.envelope
        route = delivery.route
        index = route.handler
        path = self._fast_paths[index]
        if (
            path is None
            or envelope.response_topic is not None
            or (envelope.headers and CHAIN_HEADER in envelope.headers)
            or len(envelope.payload) > self._max_received
            or envelope.left_out is not None
            or envelope.flaw is not None
            or (delivery.deadline is not None and self._now() >= delivery.deadline)
        ):
            await self._handle_otherwise(instance, delivery, path)
            return
        if not delivery.start():
            return
        turn = Turn(delivery, self._source, shared=route.router.shared)
        # Like run_apart(), without the cost of a call. The turn is set in the copy only: what is
        # set in the actor's own context is one more thing that an idle actor keeps.
        context = copy_context()
        context.run(current_turn.set, turn)
        function, _, name, decode = path
        try:
            if name is None:
                lane = self._lane
                handler = lane.handlers[index]
                scope = MessageScope(lane, handler, delivery, turn, None)
                arguments = context.run(handler.injection.bind, scope)
            elif decode is None:
                arguments = {name: envelope.payload}
            else:
                arguments = {name: context.run(decode, envelope.payload, envelope.content_type)}
        except DecodeError as error:
            current_turn.set(turn)
            await self._finish_undecodable(delivery, None, error)
            current_turn.set(None)
            return
        try:
            coroutine = function(**arguments)
            try:
                waits_for = context.run(next, coroutine.__await__(), DONE)
            except GeneratorExit as error:
                raised_by_hand(error)
            if waits_for is not DONE:
                rest = Isolated(context, coroutine, waits_for)
                # What the coroutine raises may come from there, and its traceback has this frame.
                del waits_for
                await rest
        except GeneratorExit:
            raise
        except BaseException as raised:  # noqa: BLE001 (the user's code)
            turn.failure = raised
        if turn.failure is None:
            turn.active = False
            self._stats["messages.handled"] += 1
            route.tally.handled += 1
            if turn.posts:
                # As in _attempts(), without the cost of two coroutines.
                guard = end_code()
                if guard is not None:
                    await guard.recover()
                if self.settlements.crowded:
                    await self.settlements.settle_after(delivery, turn)
                else:
                    self.settlements.begin((delivery,), turn)
            else:
                delivery.settle()
            return
        current_turn.set(turn)
        await self._handle_fully(instance, delivery, turn)
        # The last message must not be kept alive while the actor is idle.
        current_turn.set(None)

    def _handle_otherwise(
        self, instance: Any, delivery: RoutedDelivery, path: _FastPath | None
    ) -> Awaitable[None]:
        envelope = delivery.envelope
        if (
            path is None
            or path[1] is None
            or envelope.response_topic is None
            or len(envelope.payload) > self._max_received
            or envelope.left_out is not None
            or envelope.flaw is not None
            or self._lane.reply_address_problem(envelope) is not None
            or (delivery.deadline is not None and self._now() >= delivery.deadline)
        ):
            return self._handle_fully(instance, delivery)
        return self._answer(instance, delivery, path)

    async def _answer(self, instance: Any, delivery: RoutedDelivery, path: _FastPath) -> None:
        # The fast path for the first attempt at a request that may be answered; see `handle`.
        if not delivery.start():
            return
        lane, envelope = self._lane, delivery.envelope
        turn = Turn(delivery, self._source, envelope, shared=delivery.route.router.shared)
        context = copy_context()
        context.run(current_turn.set, turn)
        # The code never sees the actor's own frame, which can go on.
        frames = enter_chain_apart(context, chain_of(envelope))
        _, function, name, decode = path
        assert function is not None
        handler = lane.handlers[delivery.route.handler]
        try:
            if name is None:
                scope = MessageScope(lane, handler, delivery, turn, None)
                arguments = context.run(handler.injection.bind, scope)
            elif decode is None:
                arguments = {name: envelope.payload}
            else:
                arguments = {name: context.run(decode, envelope.payload, envelope.content_type)}
        except DecodeError as error:
            current_turn.set(turn)
            await self._finish_undecodable(delivery, envelope, error)
            current_turn.set(None)
            return
        try:
            coroutine = function(**arguments)
            # As go_on_apart(), without the cost of a call.
            try:
                waits_for = context.run(coroutine.send, None)
            except StopIteration as done:
                result = done.value
            except GeneratorExit as error:
                raised_by_hand(error)
            else:
                rest = Isolated(context, coroutine, waits_for)
                # What the coroutine raises may come from there, and its traceback has this frame.
                del waits_for
                result = await rest
            if result is not None:
                refuse_unrun(result, handler.injection.name)
            turn.refuse_failure()
            for frame in frames:
                frame.end()
            guard = interrupted_guard()
            if guard is not None:
                await guard.recover()
            # Replies wait for room, so that there is always some for other publishes.
            await self._connection.bus.room()
            self._replies.send(turn, self._source, result, handler.reply_codec)
        except GeneratorExit:
            raise
        except BaseException as raised:  # noqa: BLE001 (the user's code)
            turn.failure = raised
            for frame in frames:
                frame.end()
        if turn.failure is None:
            turn.active = False
            self._stats["messages.handled"] += 1
            delivery.route.tally.handled += 1
            if self.settlements.crowded:
                await self.settlements.settle_after(delivery, turn)
            else:
                self.settlements.begin((delivery,), turn)
            return
        current_turn.set(turn)
        await self._handle_fully(instance, delivery, turn)
        current_turn.set(None)

    def _fast_paths_of(self, instance: Any) -> list[_FastPath | None]:
        paths: list[_FastPath | None] = []
        lane = self._lane
        for function, handler in zip(lane.direct(instance), lane.handlers, strict=False):
            if function is None:
                paths.append(None)
                continue
            decoder = handler.injection.payload_decoder
            decode = None if decoder is None else decoder.decode
            answers = handler.responder and handler.returns_reply
            paths.append(
                (
                    _to_nobody(function, handler.injection.name),
                    function if answers else None,
                    handler.injection.only_payload,
                    decode,
                )
            )
        return paths

    async def _handle_fully(
        self, instance: Any, delivery: RoutedDelivery, failed: Turn | None = None
    ) -> None:
        # The slow path. What `handle` and `_answer` do in a few steps must have the same effect.
        tally = delivery.route.tally
        handled = tally.handled
        await self._handle_or_fail(instance, delivery, failed)
        if tally.handled == handled:
            _finished(delivery)

    async def _handle_or_fail(
        self, instance: Any, delivery: RoutedDelivery, failed: Turn | None
    ) -> None:
        envelope = delivery.envelope
        index = delivery.route.handler
        request = None
        if failed is not None:
            stay_in_process(failed.failure)
            request = failed.request
        elif not delivery.start():
            return
        else:
            if envelope.response_topic is not None and self._lane.handlers[index].responder:
                request = self._request_of(delivery)
            if self.is_late(delivery):
                await self._leave_out(delivery)
                return
        try:
            check_readable(envelope, self._lane.max_received)
        except DecodeError as error:
            await self._undecodable(delivery, request, error)
            return
        try:
            await self._attempts(instance, index, delivery, request, failed)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            # A bug in the runtime must not lose or block a message.
            self._lane.log.error(
                "message on %s could not be handled",
                quoted(envelope.topic),
                exc_info=error,
                about=message_fields(delivery),
            )
            self._lane.failed("handler", error, envelope)
            if request is not None:
                await self._answer_error(delivery, Turn(None, self._lane.source, request), error)
            else:
                await self._park(delivery, error)

    async def _attempts(
        self,
        instance: Any,
        index: int,
        delivery: RoutedDelivery,
        request: Envelope | None,
        failed: Turn | None,
    ) -> None:
        lane = self._lane
        handler = lane.handlers[index]
        limit, shared = lane.options.deadline, delivery.route.router.shared
        held_since: float | None = None
        if failed is not None:
            held_since = self._now()
            instance = await self._next(instance, delivery, failed, failed.take(), held_since)
            if instance is None:
                return
        while True:
            turn = Turn(delivery, lane.source, request, shared=shared)
            current_turn.set(turn)
            deadline = None if limit is None else self._now() + limit
            scope = MessageScope(lane, handler, delivery, turn, deadline)
            try:
                arguments = copy_context().run(handler.injection.bind, scope)
            except DecodeError as error:
                await self._undecodable(delivery, request, error)
                return
            try:
                result = await self._call(instance, index, arguments, scope)
                if result is not None:
                    refuse_unrun(result, handler.injection.name)
                turn.refuse_failure()
                if request is not None and handler.returns_reply:
                    await end_attempt()
                    # Replies wait for room, so that there is always some for other publishes.
                    await self._connection.bus.room()
                    self._replies.send(turn, lane.source, result, handler.reply_codec)
                elif (
                    result is not None
                    and not handler.returns_reply
                    and delivery.envelope.response_topic is not None
                ):
                    self._unsent_reply(handler)
            except GeneratorExit:
                raise
            except BaseException as raised:  # noqa: BLE001 (the user's code)
                if held_since is None:
                    held_since = self._now()
                instance = await self._next(
                    instance, delivery, turn, raised, held_since, scope.outcome
                )
                if instance is None:
                    return
            else:
                self.attempt_ended()
                # `handle` ends the same way, without the cost of two coroutines.
                turn.active = False
                current_turn.set(None)
                self._stats["messages.handled"] += 1
                delivery.route.tally.handled += 1
                if scope.outcome is not None:
                    scope.outcome.tell(CallOutcome(None, "handled"))
                if turn.posts:
                    await end_attempt()
                    await self.settlements.settle_after(delivery, turn)
                else:
                    delivery.settle()
                return

    async def _next(
        self,
        instance: Any,
        delivery: RoutedDelivery,
        turn: Turn,
        raised: BaseException,
        held_since: float,
        outcome: OutcomeCallbacks[CallOutcome] | None = None,
    ) -> Any:
        """Return what the attempt after a failed one is made on; None if there is to be none."""
        if not await self._attempt_failed(delivery, turn, raised, held_since, outcome):
            return None
        # The failure may have made it anew.
        instance = await self._lane.current(instance)
        if instance is None:
            delivery.route.router.give_back(delivery)
        else:
            self.attempt_begins(delivery)
        return instance

    async def _call(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: MessageScope
    ) -> Any:
        invoke = self._lane.invoke
        chain = chain_of(scope.envelope)
        if not chain:
            return await run_apart(invoke, instance, index, arguments, scope)
        with enter_chain(chain):
            return await run_apart(invoke, instance, index, arguments, scope)

    def _unsent_reply(self, handler: Handler) -> None:
        if not self._told_unsent:
            self._told_unsent = True
            self._lane.log.warning(
                "%s returned a value for a request, but it is not sent: annotate the reply's type,"
                " as in `-> float`, or register the handler with replies=True",
                handler.injection.name,
            )

    # For metrics; here they do nothing. On the fast path nothing is called.

    def taken(self, delivery: RoutedDelivery) -> None:
        """Note that a message is about to be handled; in another process if it is not here."""

    def attempt_begins(self, delivery: RoutedDelivery) -> None:
        """Note that an attempt begins that is not the first one at this message."""

    def attempt_ended(self, error: BaseException | None = None) -> None:
        """Note that the latest attempt has ended.

        Args:
            error: what the handler has raised.
        """

    def ended(
        self, delivery: RoutedDelivery, kind: FailureKind, error: BaseException | None = None
    ) -> None:
        """Note what became of a message that was not handled, or is to be tried again."""

    # Failures.

    async def _park(self, delivery: RoutedDelivery, error: BaseException) -> None:
        """Store a dead letter as `DeadLetterStore.park` does."""
        await self._dead_letters.park(delivery, error)
        if delivery.state is DeliveryState.SETTLED:
            self.ended(delivery, "rejected" if isinstance(error, Reject) else "dead_letter", error)

    async def failed_apart(
        self, delivery: RoutedDelivery, error: BaseException, held_since: float
    ) -> bool:
        """Handle that an attempt in another process has failed with that process.

        Args:
            delivery: started.
            error: what ended it.
            held_since: loop time of its first failure.

        Returns:
            Whether there is to be another attempt; without, the message is dealt with.
        """
        envelope = delivery.envelope
        handler = self._lane.handlers[delivery.route.handler]
        request = None
        if envelope.response_topic is not None and handler.responder:
            request = self._request_of(delivery)
        turn = Turn(delivery, self._lane.source, request, shared=delivery.route.router.shared)
        turn.active = False
        return await self._failed(delivery, turn, error, held_since)

    async def _attempt_failed(
        self,
        delivery: RoutedDelivery,
        turn: Turn,
        raised: BaseException,
        held_since: float,
        outcome: OutcomeCallbacks[CallOutcome] | None = None,
    ) -> bool:
        """Handle what a handler raised; return whether there is to be another attempt."""
        turn.active = False
        if turn.outcome is not None:
            turn.outcome.drop()
            turn.outcome = None
        for post in turn.posts:
            post.add_done_callback(self._connection.lost_posts.report)
        try:
            error = as_failure(raised)
            self.attempt_ended(error)
            await end_attempt()
            return await self._failed(delivery, turn, error, held_since, outcome)
        finally:
            if outcome is not None:
                # Without effect if something was decided.
                outcome.tell(CallOutcome(raised, "none"))

    async def _failed(
        self,
        delivery: RoutedDelivery,
        turn: Turn,
        error: BaseException,
        held_since: float,
        outcome: OutcomeCallbacks[CallOutcome] | None = None,
    ) -> bool:
        """Retry, give back, answer or park after a failure; return whether to try again."""
        request = turn.request
        if self._is_outage(error):
            text = describe(error)
            self._lane.log.warning(
                "%s: %s; trying again",
                quoted(delivery.envelope.topic),
                text,
                about=message_fields(delivery, delivery.attempts + 1),
            )
            self._lane.troubled(f"{error_name(error)}: {text}")
            wait: float | None = pause_in_outage((delivery,), self._retry.first)
        else:
            delivery.attempts += 1
            self._stats["messages.failed"] += 1
            is_answer = request is not None and isinstance(error, RemoteError)
            self._lane.failed("answer" if is_answer else "handler", error, delivery.envelope)
            wait = self._wait_before_next(delivery, turn, error, held_since)
            log_failure(self._lane.log, delivery, error, wait, is_answer=is_answer)
        if outcome is not None:
            no_more: Literal["answer", "dead-letter"] = "answer" if request else "dead-letter"
            outcome.tell(CallOutcome(error, no_more if wait is None else "retry", wait))
        if wait is not None:
            self.ended(delivery, "retried", error)
            router = delivery.route.router
            if not router.holding and await self._pauses.wait(wait, router):
                if not self.is_late(delivery):
                    return True
                await self._leave_out(delivery, error)
                return False
            if router.give_back(delivery):
                return False
        if request is not None:
            await self._answer_error(delivery, turn, error)
        else:
            await self._park(delivery, error)
        return False

    def _wait_before_next(
        self, delivery: RoutedDelivery, turn: Turn, error: BaseException, held_since: float
    ) -> float | None:
        if turn.request is not None and (turn.answered or not self._lane.options.retry_requests):
            return None
        now = self._now()
        random = self._environment.random
        wait = self._retry.wait(delivery.attempts, now - held_since, random, error)
        return None if wait is None or self.is_late(delivery, now + wait) else wait

    def is_late(self, delivery: RoutedDelivery, when: float | None = None) -> bool:
        """Return whether the message has expired, so that no attempt at it may begin.

        Args:
            delivery: with its route.
            when: loop time of the attempt; None for now.
        """
        deadline = delivery.deadline
        if deadline is None or (self._now() if when is None else when) < deadline:
            return False
        return not self._lane.options.handle_expired or self._is_request(delivery)

    def _is_request(self, delivery: RoutedDelivery) -> bool:
        handler = self._lane.handlers[delivery.route.handler]
        return delivery.envelope.response_topic is not None and handler.responder

    async def _leave_out(
        self, delivery: RoutedDelivery, error: BaseException | None = None
    ) -> None:
        """Finish with a message that has expired.

        One that no handler has failed on is dropped, as its sender has allowed; a failure is
        stored like any other.

        Args:
            delivery: started, and late.
            error: the last failure; None if it is not known any more.
        """
        if delivery.attempts and not self._is_request(delivery):
            reason = error or _over(delivery)
            self._lane.expired(self._call_of(delivery), CallOutcome(reason, "dead-letter"))
            await self._park(delivery, reason)
        else:
            self.drop(delivery)

    def drop(self, delivery: RoutedDelivery) -> None:
        """Settle a message that has expired before any handler has failed on it."""
        if self._is_request(delivery):
            # The requester knows best, and has its RequestTimeout.
            self._stats["requests.expired"] += 1
        else:
            self._stats["messages.expired"] += 1
            self._lane.log.warning(
                "message on %s has expired while it waited here, and is not handled",
                quoted(delivery.envelope.topic),
                about=message_fields(delivery),
            )
        self.ended(delivery, "expired")
        self._lane.expired(self._call_of(delivery), CallOutcome(None, "none"))
        delivery.settle()

    def _call_of(self, delivery: RoutedDelivery) -> Callable[[], HandlerCall]:
        """Return what makes the call that a message would have got."""
        lane = self._lane
        handler = lane.handlers[delivery.route.handler]
        return MessageScope(lane, handler, delivery, Turn(None, lane.source), None).handler_call

    def _is_outage(self, error: BaseException) -> bool:
        return is_outage(error, connected=self._connection.bus.connected)

    async def _undecodable(
        self, delivery: RoutedDelivery, request: Envelope | None, error: DecodeError
    ) -> None:
        lane = self._lane
        then: Literal["answer", "dead-letter"] = "answer" if request else "dead-letter"
        lane.undecodable(self._call_of(delivery), CallOutcome(error, then))
        delivery.attempts += 1
        self._stats["messages.undecodable"] += 1
        self._lane.failed("payload", error, delivery.envelope)
        level = logging.ERROR if request is None else logging.WARNING
        topic = quoted(delivery.envelope.topic)
        about = message_fields(delivery)
        self._lane.log.log(level, "message on %s: %s", topic, describe(error), about=about)
        if request is not None:
            turn = Turn(None, self._lane.source, request)
            await self._answer_error(delivery, turn, RemoteError("bad-request", str(error)))
        else:
            await self._park(delivery, error)

    async def _finish_undecodable(
        self, delivery: RoutedDelivery, request: Envelope | None, error: DecodeError
    ) -> None:
        await self._undecodable(delivery, request, error)
        _finished(delivery)

    async def _answer_error(
        self, delivery: RoutedDelivery, failed: Turn, error: BaseException
    ) -> None:
        """Answer a request with an error, unless it has been answered, then settle it."""
        self._stats["requests.failed"] += 1
        rejected = isinstance(error, Reject)
        self.ended(delivery, "rejected" if rejected else "answered", error)
        request = failed.request
        assert request is not None
        if failed.answered:
            await self.settlements.settle_after(delivery, failed)
            return
        turn = Turn(lasting_identity(request), self._lane.source, request, shared=failed.shared)
        turn.posts.extend(failed.posts)
        if await self._reply_error(delivery, turn, error):
            await self.settlements.settle_after(delivery, turn)

    async def _answer_too_large(
        self, delivery: RoutedDelivery, refused: Turn, error: BaseException
    ) -> None:
        """Answer with an error after the bus has refused the reply as too large, and settle."""
        self._stats["requests.failed"] += 1
        self.ended(delivery, "answered", error)
        request = refused.request
        assert request is not None
        turn = Turn(lasting_identity(request), self._lane.source, request, shared=refused.shared)
        if await self._reply_error(delivery, turn, error):
            # Without waiting for others, because this one counts among those that they wait for.
            self.settlements.begin((delivery,), turn)

    async def _reply_error(
        self, delivery: RoutedDelivery, turn: Turn, error: BaseException
    ) -> bool:
        """Answer with an error as soon as there is room; return False if it is given back first."""
        code, text = error_answer(error)
        while True:
            try:
                self._replies.send_error(turn, self._lane.source, code, text)
            except OutboxFull:
                if not await self._pauses.wait(SHORTEST_PAUSE):
                    delivery.route.router.give_back(delivery)
                    return False
            else:
                return True

    async def _posts_refused(self, delivery: RoutedDelivery, error: BaseException) -> None:
        """Park a handled message after the broker has refused one of its posts for good."""
        delivery.attempts += 1
        self._lane.failed("post", error, delivery.envelope)
        self._lane.log.error(
            "message on %s was handled, but one of its posts was refused: %s",
            quoted(delivery.envelope.topic),
            describe(error),
            about=message_fields(delivery),
        )
        await self._park(delivery, error)

    # Requests.

    def may_answer(self, delivery: RoutedDelivery) -> bool:
        """Return whether a reply may go where the message asks for; says so in the log when not."""
        envelope = delivery.envelope
        if self._lane.handlers[delivery.route.handler].responder:
            return self._request_of(delivery) is not None
        return self._lane.reply_address_problem(envelope) is None

    def _request_of(self, delivery: RoutedDelivery) -> Envelope | None:
        envelope = delivery.envelope
        problem = self._lane.reply_address_problem(envelope)
        if problem is None:
            return envelope
        self._stats["replies.refused"] += 1
        self._lane.log.warning(
            "message on %s asks for a reply to %s, which is refused: %s",
            quoted(envelope.topic),
            quoted(envelope.response_topic),
            escaped(problem),
            about=message_fields(delivery),
        )
        return None


def _finished(delivery: RoutedDelivery) -> None:
    """Count a message that was not handled, unless it comes again."""
    if delivery.state in DONE_WITH:
        delivery.route.tally.otherwise += 1


def _over(delivery: RoutedDelivery) -> TimeoutError:
    return TimeoutError(
        f"it has expired before it could be tried again, after {delivery.attempts} failed attempts"
    )


def _to_nobody(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a handler whose result is looked at and dropped."""
    if returns_nothing(function):
        return function
    return lambda **arguments: looked_at(function(**arguments), name)
