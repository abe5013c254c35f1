"""Failures of handlers: which count as attempts, how they are logged; pauses between attempts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..._limited_log import LimitedLog
from ..._texts import describe, error_name, forget_earlier, inspectable, quoted
from ...actors import is_ending
from ...errors import OutboxFull, PublishNotSent, PublishUnknown, RequestTimeout, TransportError
from ...transports import Delivery
from ..diagnostics._stacks import of_users_code
from ..messaging._logged_fields import message_fields
from ..options._retry_policy import Reject, Retry

if TYPE_CHECKING:
    from ..routing._router import Router

__all__ = [
    "LONGEST_PAUSE",
    "SHORTEST_PAUSE",
    "Pauses",
    "advice",
    "as_failure",
    "deadline_missed",
    "is_outage",
    "log_failure",
    "pause_in_outage",
]

SHORTEST_PAUSE = 0.1
"""Seconds between attempts at what has to succeed eventually, if the policy has no wait."""
LONGEST_PAUSE = 10.0

_MOST_DOUBLED = 30
_OF_OUTAGES = (OutboxFull, PublishNotSent, PublishUnknown)


def as_failure(raised: BaseException) -> BaseException:
    """Return what a handler raised, as an error; raises it if the actor itself is being ended."""
    raised = inspectable(raised)
    forget_earlier(raised)
    if not isinstance(raised, asyncio.CancelledError):
        return raised
    if is_ending():
        raise raised
    # Something that the handler awaited was cancelled, or the handler cancelled itself.
    return RuntimeError("what the handler was waiting for was cancelled")


def deadline_missed(text: str) -> TimeoutError:
    """Return the error of a handler cut off at its deadline, marked so that `is_outage` knows."""
    error = TimeoutError(text)
    error.spa_dat_deadline = True  # type: ignore[attr-defined]
    return error


def is_outage(error: BaseException, *, connected: bool) -> bool:
    """Return whether a handler failed because a connection was lost, which is not its fault.

    A failure during a working connection counts as an attempt, whatever it was: otherwise a handler
    that always posts too much, or always waits too briefly, would be called forever. A group is an
    outage if all its errors are.

    Args:
        error: what was raised.
        connected: whether the actor's bus is connected, for errors that do not say.
    """
    try:
        return _are_lost_connections(error, connected=connected)
    except BaseException:  # noqa: BLE001 (the classes may be anybody's)
        return False


def _are_lost_connections(error: BaseException, *, connected: bool) -> bool:
    """As `is_outage`; raises what looking at the error raises."""
    errors = 0
    groups: set[int] = set()
    left = [error]
    # Groups may be nested deeper than calls may, and the same one may be in many others.
    while left:
        part = left.pop()
        if not isinstance(part, BaseExceptionGroup):
            if not _is_lost_connection(part, connected=connected):
                return False
            errors += 1
        elif id(part) not in groups:
            groups.add(id(part))
            left += part.exceptions
    return errors > 0


def _is_lost_connection(error: BaseException, *, connected: bool) -> bool:
    """Return whether an error that is no group stems from a lost connection; see `is_outage`."""
    if isinstance(error, TimeoutError) and hasattr(error, "spa_dat_deadline"):
        return not connected
    if not isinstance(error, TransportError | RequestTimeout):
        return False
    if error.outage is None:
        return isinstance(error, _OF_OUTAGES) and not connected
    return error.outage


def pause_in_outage(deliveries: Iterable[Delivery], first: float) -> float:
    """Return the seconds until messages are tried again that an outage has kept from it.

    They grow with each time: the outage may be a full disk, and last for hours.

    Args:
        deliveries: the messages, of which this is noted.
        first: the first pause that the actor's policy has.
    """
    times = 0
    for delivery in deliveries:
        times = max(times, delivery.outages)
        delivery.outages += 1
    first = first or SHORTEST_PAUSE
    return max(first, min(first * 2.0 ** min(times, _MOST_DOUBLED), LONGEST_PAUSE))


def log_failure(
    log: LimitedLog,
    delivery: Delivery,
    error: BaseException,
    wait: float | None,
    *,
    is_answer: bool,
) -> None:
    """Log a failed attempt at one message.

    Args:
        log: the actor's.
        delivery: the message.
        error: what was raised.
        wait: seconds until the next attempt; None when there is none.
        is_answer: whether the message is a request and the error is its answer.
    """
    expected = is_answer or isinstance(error, Reject | Retry)
    level = logging.WARNING if expected or wait is not None else logging.ERROR
    if is_answer and wait is None:
        level = logging.INFO  # an answer like any other
    then = "no further attempt" if wait is None else f"next attempt in {wait:.2g} s"
    log.log(
        level,
        "message on %s failed (attempt %d, %s): %s: %s%s",
        quoted(delivery.envelope.topic),
        delivery.attempts,
        then,
        error_name(error),
        describe(error),
        f"; {text}" if (text := advice(error)) else "",
        exc_info=None if expected or wait is not None else of_users_code(error),
        kind=error_name(error),
        about=message_fields(delivery),
    )


def advice(error: BaseException) -> str:
    """Return what to do about an error that does not say so itself; empty for others."""
    if type(error).__module__ != "sqlite3" or "SQLite objects created in a thread" not in str(
        error
    ):
        return ""
    return (
        "a connection that only one actor's def handlers and def hooks use is opened in their"
        " thread if its ressources= has a callable that opens it, no handler is async def, and"
        " concurrency= is 1; otherwise pass check_same_thread=False to sqlite3.connect, or open it"
        " in the handler"
    )


class Pauses:
    """The waits of one actor, which can be cut short."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Future[bool], Router | None] = {}
        self._stopped = False

    @property
    def messages(self) -> int:
        """How many messages wait for their next attempt now."""
        return sum(router is not None for router in tuple(self._open.values()))

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, so that no wait begins any more."""
        return self._stopped

    async def wait(self, seconds: float, router: Router | None = None) -> bool:
        """Wait; return False if the wait was cut short, by `stop` or for the router.

        Args:
            seconds: how long at most.
            router: the router of the message concerned; None for a wait that only `stop` ends.
        """
        if self._stopped:
            return False
        loop = asyncio.get_running_loop()
        pause: asyncio.Future[bool] = loop.create_future()
        self._open[pause] = router
        timer = loop.call_later(seconds, _wake, pause, True)
        try:
            return await pause
        finally:
            timer.cancel()
            del self._open[pause]

    def interrupt(self, router: Router) -> None:
        """End the waits for messages of this router."""
        for pause, waited_for in tuple(self._open.items()):
            if waited_for is router:
                _wake(pause, False)

    def stop(self) -> None:
        """End all waits, and begin no further one."""
        self._stopped = True
        for pause in tuple(self._open):
            _wake(pause, False)


def _wake(pause: asyncio.Future[bool], result: bool) -> None:
    if not pause.done():
        pause.set_result(result)
