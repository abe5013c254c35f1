"""Settling handled messages once everything they sent is confirmed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from ..._logs import OwnLog
from ..._texts import describe, error_name, quoted
from ...errors import MessageTooLarge, PublishNotSent, PublishUnknown
from ...transports import on_outcome
from ..messaging._logged_fields import message_fields
from ..messaging._turn import Turn, is_confirmed
from ..routing._routed_deliveries import RoutedDelivery

__all__ = ["Settlements"]

_MOST_OPEN = 1000
_WITHOUT_OUTCOME = (PublishNotSent, PublishUnknown, asyncio.CancelledError)


class Settlements:
    """Messages of one actor that have been handled and wait for their posts and replies.

    The actor continues with its next message while the broker confirms, and still nothing is
    acknowledged before everything that resulted from it is safe.

    Args:
        stats: the application's counters.
        on_refused: called with a message, and the error, when one of its posts was refused for
            good.
        log: where refusals are logged.
        answer_instead: called with a request, its turn and the error, when the bus has refused the
            reply as too large; to answer with the error, and settle after that.

    Attributes:
        unconfirmed: how many messages were not settled, because the bus was closed first.
    """

    def __init__(
        self,
        stats: Counter[str],
        on_refused: Callable[[RoutedDelivery, BaseException], Awaitable[None]],
        log: OwnLog,
        answer_instead: Callable[[RoutedDelivery, Turn, BaseException], Awaitable[None]],
    ) -> None:
        self._stats = stats
        self._log = log
        self._on_refused = on_refused
        self._answer_instead = answer_instead
        self.unconfirmed: int = 0
        self._open = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._going_on: dict[asyncio.Future[None], None] = {}

    def __len__(self) -> int:
        """Return how many messages are not settled yet."""
        return self._open

    async def settle_after(self, delivery: RoutedDelivery, turn: Turn) -> None:
        """Settle the delivery when the turn's posts are confirmed; waits only if very many do."""
        self.begin((delivery,), turn)
        while self.crowded:
            await self._change()

    async def settle_all_after(self, deliveries: Sequence[RoutedDelivery], turn: Turn) -> None:
        """Settle all deliveries of one turn when its posts are confirmed; see `settle_after`."""
        self.begin(deliveries, turn)
        while self.crowded:
            await self._change()

    @property
    def crowded(self) -> bool:
        """Whether so many are waiting that the actor should wait as well."""
        return self._open >= _MOST_OPEN

    def begin(self, deliveries: Sequence[RoutedDelivery], turn: Turn) -> None:
        """Do as `settle_all_after` without waiting; the caller checks `crowded` itself."""
        pending = [post for post in turn.posts if not is_confirmed(post)]
        if not pending:
            for delivery in deliveries:
                delivery.settle()
            return
        self._open += 1
        _Settlement(self, deliveries, None if turn.request is None else turn, pending)

    async def drain(self) -> None:
        """Wait until every handled message is settled or given up."""
        while self._open:
            await self._change()

    def done(
        self, deliveries: Sequence[RoutedDelivery], answer: Turn | None, error: BaseException | None
    ) -> None:
        """Settle, answer otherwise, or park, now that all posts of a turn have an outcome.

        Args:
            deliveries: those that the turn has handled.
            answer: the turn, if it was at a request.
            error: the first failure; None if there is none.
        """
        if error is None:
            for delivery in deliveries:
                delivery.settle()
        elif isinstance(error, _WITHOUT_OUTCOME):
            # The bus was closed first. The message is not settled, so it comes again.
            self._stats["posts.unconfirmed"] += len(deliveries)
            self.unconfirmed += len(deliveries)
        elif answer is not None:
            (delivery,) = deliveries
            self._stats["replies.refused"] += 1
            self._log.error(
                "a reply or post for the request on %s was refused: %s: %s",
                quoted(delivery.envelope.topic),
                error_name(error),
                describe(error),
                about=message_fields(delivery),
            )
            too_large = _too_large_reply(answer)
            if too_large is not None:
                self._go_on(self._answer_instead(delivery, answer, too_large))
                return
            delivery.settle()
        else:
            self._go_on(self._refused(deliveries, error))
            return
        self._closed()

    def _go_on(self, step: Awaitable[None]) -> None:
        """Take a further step before this one counts as done."""
        task = asyncio.ensure_future(step)
        self._going_on[task] = None
        task.add_done_callback(self._gone_on)

    async def _refused(self, deliveries: Sequence[RoutedDelivery], error: BaseException) -> None:
        for delivery in deliveries:
            await self._on_refused(delivery, error)

    def _gone_on(self, task: asyncio.Future[None]) -> None:
        del self._going_on[task]
        self._closed()

    def _closed(self) -> None:
        self._open -= 1
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class _Settlement:
    """Counts down one turn's unconfirmed posts."""

    __slots__ = ("_answer", "_deliveries", "_error", "_left", "_owner")

    def __init__(
        self,
        owner: Settlements,
        deliveries: Sequence[RoutedDelivery],
        answer: Turn | None,
        posts: list[asyncio.Future[None]],
    ) -> None:
        self._owner = owner
        self._deliveries = deliveries
        self._answer = answer
        self._left = len(posts)
        self._error: BaseException | None = None
        for post in posts:
            on_outcome(post, self._one_done)

    def _one_done(self, post: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if post.cancelled() else post.exception()
        if self._error is None or isinstance(error, _WITHOUT_OUTCOME):
            self._error = error
        self._left -= 1
        if self._left == 0:
            self._owner.done(self._deliveries, self._answer, self._error)


def _too_large_reply(turn: Turn) -> MessageTooLarge | None:
    """Return why the bus has refused the turn's reply, if its size was the reason."""
    reply = turn.reply
    if reply is None or reply.cancelled():
        return None
    error = reply.exception()
    return error if isinstance(error, MessageTooLarge) else None
