"""Processing batches in an actor: read, run together, retry, run one by one, settle."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from contextvars import copy_context
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..._texts import describe, error_name, quoted
from ...actors import end_attempt, refuse_unrun, run_apart
from ...errors import DecodeError
from ...transports import DeliveryState
from ..diagnostics._stacks import of_users_code
from ..messaging._logged_fields import batch_fields
from ..messaging._message import Message
from ..messaging._middleware import CallOutcome, HandlerCall, OutcomeCallbacks
from ..messaging._turn import Turn, current_turn, lasting_identity
from ..options._retry_policy import Reject, Retry
from ..payloads._codec import check_readable
from ..registration._specs import Handler
from ..routing._routed_deliveries import RoutedDelivery
from ..routing._tallies import Tally
from ._argument_values import ProducerScope, with_usable_address
from ._delivery_processor import DONE_WITH, DeliveryProcessor
from ._failures_and_retries import as_failure, log_failure, pause_in_outage

if TYPE_CHECKING:
    from ._handling_lane import HandlingLane

__all__ = ["BatchProcessor"]

_tally_of: Callable[[RoutedDelivery], Tally] = attrgetter("route.tally")
_NAMESPACE = uuid.UUID("0b0d1f0e-5a43-5c0a-9d5f-3e0f0c7a6b21")


class BatchProcessor(DeliveryProcessor):
    """Runs one actor's handlers on batches, one batch at a time.

    A batch is retried as a whole. When its attempts are used up, each of its messages is tried
    once on its own, and only those that fail on their own become dead letters. Messages that
    cannot be decoded are left out from the start.
    """

    __slots__ = ()

    async def handle_batch(self, instance: Any, deliveries: Sequence[RoutedDelivery]) -> None:
        """Process deliveries together: afterwards each is settled, about to be, or given back.

        Args:
            instance: of the actor's class.
            deliveries: not started; all from one router and for one handler.
        """
        handled = {tally: tally.handled for tally in set(map(_tally_of, deliveries))}
        batch: list[RoutedDelivery] = []
        values: list[Any] = []
        unreadable: list[tuple[RoutedDelivery, DecodeError]] = []
        late: list[RoutedDelivery] = []
        for delivery in deliveries:
            if not delivery.start():
                continue
            if self.is_late(delivery):
                late.append(delivery)
                continue
            try:
                # Context variables that a payload's code sets must not leak out of the batch.
                values.append(copy_context().run(self._read, delivery))
                batch.append(delivery)
            except DecodeError as error:
                unreadable.append((delivery, error))
        for delivery in late:
            await self._leave_out(delivery)
        if batch:
            try:
                await self._process(instance, batch, values)
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001
                # A bug in the runtime must not lose or block messages.
                await self._park_all(batch, error)
        for delivery, problem in unreadable:
            await self._undecodable(delivery, None, problem)
        for delivery in deliveries:
            if delivery.state in DONE_WITH:
                delivery.route.tally.otherwise += 1
        for tally, number in handled.items():
            tally.otherwise -= tally.handled - number

    async def _park_all(self, batch: list[RoutedDelivery], error: BaseException) -> None:
        left = [delivery for delivery in batch if delivery.state is DeliveryState.RUNNING]
        topic = quoted(batch[0].envelope.topic)
        self._lane.log.error(
            "%d messages, the first on %s, could not be handled",
            len(batch),
            topic,
            exc_info=error,
            about=batch_fields(batch),
        )
        self._lane.failed("handler", error, batch[0].envelope)
        for delivery in left:
            await self._park(delivery, error)

    def _read(self, delivery: RoutedDelivery) -> Any:
        check_readable(delivery.envelope, self._lane.max_received)
        handler = self._lane.handlers[delivery.route.handler]
        return _decode(handler, delivery)

    async def _process(self, instance: Any, batch: list[RoutedDelivery], values: list[Any]) -> None:
        failure: BaseException | None = None
        left, error = await self._run(instance, batch, values, once=False)
        try:
            if error is not None and left == batch[:1] == batch:
                await self._park(batch[0], error)
                return
            if error is not None:
                self._are_retried(left, error)
            while left:
                if left[0].route.router.holding or self._pauses.stopped:
                    left = self._give_back(left)
                for delivery in await self._in_time(left[:1], error):
                    failed, failure = await self._run(instance, [delivery], None, once=True)
                    if failed and failure is not None:
                        await self._park(delivery, failure)
                left = left[1:]
        finally:
            # From Python 3.13 on their tracebacks also keep the frames of callers.
            del error, failure

    def _are_retried(self, batch: list[RoutedDelivery], error: BaseException) -> None:
        for delivery in batch:
            self.ended(delivery, "retried", error)

    async def _run(
        self, instance: Any, batch: list[RoutedDelivery], values: list[Any] | None, *, once: bool
    ) -> tuple[list[RoutedDelivery], BaseException | None]:
        """Make attempts at a batch; return what is still to be dealt with after the last, and why.

        Args:
            instance: of the actor's class.
            batch: started.
            values: the payloads for the first attempt; None to read them.
            once: no second attempt, except after failures that are not the handler's.
        """
        held_since: float | None = None
        router = batch[0].route.router
        while True:
            instance = await self._lane.current(instance)
            if instance is None:
                return self._give_back(batch), None
            error, outcome = await self._attempt(instance, batch, values)
            if error is None:
                return [], None
            # The handler may have changed the values it got, so the next attempt reads new ones.
            values = None
            if held_since is None:
                held_since = self._now()
            try:
                wait = self._wait(batch, error, held_since, once=once)
                if outcome is not None:
                    outcome.tell(_decided(batch, error, wait, once=once))
                if wait is None:
                    return batch, error
                self._are_retried(batch, error)
                if router.holding or not await self._pauses.wait(wait, router):
                    return self._give_back(batch), error
                batch = await self._in_time(batch, error)
                if not batch:
                    return [], None
            finally:
                # From Python 3.13 on its traceback also keeps the frames of callers.
                del error

    async def _in_time(
        self, batch: list[RoutedDelivery], error: BaseException | None
    ) -> list[RoutedDelivery]:
        """Return the messages of a batch that have not expired, and finish with the others."""
        in_time: list[RoutedDelivery] = []
        for delivery in batch:
            if self.is_late(delivery):
                await self._leave_out(delivery, error)
            else:
                in_time.append(delivery)
        return in_time

    async def _attempt(
        self, instance: Any, batch: list[RoutedDelivery], values: list[Any] | None
    ) -> tuple[BaseException | None, OutcomeCallbacks[CallOutcome] | None]:
        lane = self._lane
        index = batch[0].route.handler
        handler = lane.handlers[index]
        limit = lane.options.deadline
        shared = batch[0].route.router.shared
        turn = Turn(_identity(batch), lane.source, shared=shared, batch=batch)
        current_turn.set(turn)
        self.attempt_begins(batch[0])
        deadline = None if limit is None else self._now() + limit
        # Unlike in other scopes, message() returns several messages.
        scope: Any = _BatchScope(lane, handler, batch, values, deadline)
        try:
            arguments = copy_context().run(handler.injection.bind, scope)
            result = await run_apart(lane.invoke, instance, index, arguments, scope)
            refuse_unrun(result, handler.injection.name)
            turn.refuse_failure()
        except GeneratorExit:
            raise
        except BaseException as raised:  # noqa: BLE001 (the user's code)
            turn.active = False
            for post in turn.posts:
                post.add_done_callback(self._connection.lost_posts.report)
            try:
                error = as_failure(raised)
                self.attempt_ended(error)
                await end_attempt()
            except BaseException:
                if scope.outcome is not None:
                    scope.outcome.tell(CallOutcome(raised, "none"))
                raise
            try:
                return error, scope.outcome
            finally:
                # Its traceback has this frame.
                del error
        turn.active = False
        self.attempt_ended()
        await end_attempt()
        self._stats["messages.handled"] += len(batch)
        for delivery in batch:
            delivery.route.tally.handled += 1
        if scope.outcome is not None:
            scope.outcome.tell(CallOutcome(None, "handled"))
        await self.settlements.settle_all_after(batch, turn)
        return None, None

    def _wait(
        self, batch: list[RoutedDelivery], error: BaseException, held_since: float, *, once: bool
    ) -> float | None:
        """Return the seconds before the next attempt at the batch; None if there is none."""
        if self._is_outage(error):
            self._lane.log.warning(
                "%d messages, the first on %s: %s; trying again",
                len(batch),
                quoted(batch[0].envelope.topic),
                describe(error),
                about=batch_fields(batch, _attempts(batch) + 1),
            )
            return pause_in_outage(batch, self._retry.first)
        for delivery in batch:
            delivery.attempts += 1
        self._stats["messages.failed"] += len(batch)
        self._lane.failed("handler", error, batch[0].envelope)
        wait = None
        if not once:
            held = self._now() - held_since
            wait = self._retry.wait(_attempts(batch), held, self._environment.random, error)
        if len(batch) == 1:
            log_failure(self._lane.log, batch[0], error, wait, is_answer=False)
        else:
            self._log_batch(batch, error, wait)
        return wait

    def _log_batch(
        self, batch: list[RoutedDelivery], error: BaseException, wait: float | None
    ) -> None:
        expected = isinstance(error, Reject | Retry) or wait is not None
        then = "trying each on its own" if wait is None else f"next attempt in {wait:.2g} s"
        self._lane.log.log(
            logging.WARNING if expected else logging.ERROR,
            "%d messages, the first on %s, failed together (attempt %d, %s): %s: %s",
            len(batch),
            quoted(batch[0].envelope.topic),
            _attempts(batch),
            then,
            error_name(error),
            describe(error),
            exc_info=None if expected else of_users_code(error),
            kind=error_name(error),
            about=batch_fields(batch),
        )

    def _give_back(self, batch: list[RoutedDelivery]) -> list[RoutedDelivery]:
        """Give started deliveries back, in order; return those that cannot be given back."""
        # Each goes to the front of the queue.
        left = [one for one in reversed(batch) if not one.route.router.give_back(one)]
        return left[::-1]


class _BatchScope(ProducerScope):
    """What the arguments of one attempt at a batch are taken from.

    Args:
        owner: the actor.
        handler: the handler to call.
        batch: the messages.
        values: their payloads; None to read them when they are needed.
        deadline: loop time at which the attempt is cut off.
    """

    def __init__(
        self,
        owner: HandlingLane,
        handler: Handler,
        batch: Sequence[RoutedDelivery],
        values: list[Any] | None,
        deadline: float | None,
    ) -> None:
        super().__init__(owner, handler, deadline)
        self._batch = batch
        self._values = values
        self._attempt = _attempts(batch) + 1

    @property
    def payload(self) -> list[Any]:
        """The payloads, decoded to the type that the handler asks for."""
        if self._values is None:
            self._values = [_decode(self._handler, delivery) for delivery in self._batch]
        return self._values

    def handler_call(self) -> HandlerCall:
        """Return the call as middleware sees it."""
        return self._call_of(self._batch, is_batch=True)

    def message(self) -> list[Message[Any]]:  # type: ignore[override]
        """Return the whole messages."""
        return [
            Message.of(
                with_usable_address(self._owner, delivery.envelope),
                value,
                attempt=delivery.attempts + 1,
            )
            for delivery, value in zip(self._batch, self.payload, strict=True)
        ]


def _decided(
    batch: Sequence[RoutedDelivery], error: BaseException, wait: float | None, *, once: bool
) -> CallOutcome:
    if wait is not None:
        return CallOutcome(error, "retry", wait)
    return CallOutcome(error, "dead-letter" if once or len(batch) == 1 else "apart")


def _decode(handler: Handler, delivery: RoutedDelivery) -> Any:
    decoder = handler.injection.payload_decoder
    assert decoder is not None
    return decoder.decode(delivery.envelope.payload, delivery.envelope.content_type)


def _attempts(batch: Sequence[RoutedDelivery]) -> int:
    # Messages that were given back may have had more; each must get as many as the policy says.
    return min(delivery.attempts for delivery in batch)


def _identity(batch: Sequence[RoutedDelivery]) -> str | None:
    """Return what the ids of a batch's publishes are derived from; None if a message has no id."""
    identities = [lasting_identity(delivery.envelope) for delivery in batch]
    if len(identities) == 1:
        return identities[0]
    known = [identity for identity in identities if identity is not None]
    if len(known) < len(identities):
        return None
    return str(uuid.uuid5(_NAMESPACE, "\0".join(known)))
