"""Account of the work that is given up when an application ends."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, error_name, quoted
from ...errors import PublishNotSent, PublishUnknown
from ...transports import Delivery, OutboxEntry
from ._stacks import frames_of, place

__all__ = ["GivenUp", "LostPosts", "let_go"]

log = get_logger("spa_dat")


class LostPosts:
    """Says what became of posts that nobody waits for and that failed.

    Until `close` each is a line in the log. What has no outcome after it is counted.

    Attributes:
        count: posts without an outcome since `close`.
        first: the topic of the first of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first = ""
        self._closing = False
        self._log = LimitedLog(log)

    def close(self) -> None:
        """From now on posts are given up because their bus is closed."""
        self._closing = True
        self._log.flush()

    def report(self, posted: asyncio.Future[None]) -> None:
        """Note the outcome of a post; a callback of its future."""
        if posted.cancelled() or (error := posted.exception()) is None:
            return
        if not (self._closing and isinstance(error, PublishNotSent | PublishUnknown)):
            self._log.error(
                "a posted message was lost: %s: %s",
                error_name(error),
                describe(error),
                kind=type(error),
            )
            return
        if not self.count and isinstance(posted, OutboxEntry):
            self.first = posted.envelope.topic
        self.count += 1


class GivenUp:
    """What one run of an application could not finish before its end.

    Args:
        application: its name, for the log.
        stats: its counters.

    Attributes:
        reasons: why the application has not ended in good order, one for each thing given up.
    """

    def __init__(self, application: str, stats: Counter[str]) -> None:
        self.reasons: list[str] = []
        self._application = application
        self._stats = stats

    def add(self, reason: str) -> None:
        """Remember what the log has got already."""
        self.reasons.append(reason)

    def posts(self, posts: Iterable[LostPosts]) -> None:
        """Log the posts that had no outcome when their buses were closed, on one line."""
        lost = [each for each in posts if each.count]
        count = sum(each.count for each in lost)
        if count:
            self._stats["posts.given_up"] += count
            first = next(
                (f", the first to {quoted(each.first)}" for each in lost if each.first), ""
            )
            self._tell(f"{count} posts had no confirmation and were given up{first}")

    def unhandled(self, actor: str, count: int) -> None:
        """Note that an actor stopped before so many messages that are nowhere else."""
        self._stats["messages.given_up"] += count
        self.add(f"actor {actor!r} stopped with {count} messages unhandled")

    def left_over(self, actor: str, items: Sequence[Any]) -> None:
        """Note that an actor ended before these items; most of them its bus has, too."""
        left = [item for item in items if isinstance(item, Delivery)]
        count = sum(not delivery.route.router.withdraw(delivery) for delivery in left)
        if count:
            self._stats["messages.given_up"] += count
            self._tell(f"actor {actor!r} ended before it handled {count} messages that are lost")

    def task(self, whose: str, task: asyncio.Future[Any]) -> None:
        """Abandon a task that goes on although it was cancelled."""
        where = place(frames_of(task)) or "in code of its own"
        self._abandoned(f"{whose} goes on although it was cancelled: {where}")
        if isinstance(task, asyncio.Task):
            let_go([task])

    def thread(self, whose: str, where: str) -> None:
        """Note that a function in a thread, which stands at ``where``, is left to itself."""
        self._abandoned(f"{whose}: a thread cannot be ended from outside: {where}")

    def _abandoned(self, what: str) -> None:
        self._stats["actors.abandoned"] += 1
        self._tell(f"{what}; it is abandoned and may go on")

    def _tell(self, reason: str) -> None:
        log.error("%s: %s", self._application, reason)
        self.add(reason)


def let_go(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Let nobody wait for tasks that go on although they were cancelled: no `asyncio.run` either.

    They are kept, for good: what does not end when it is cancelled does not end when it is closed.
    """
    for task in tasks:
        # What asyncio has for tasks that are about to end.
        asyncio._unregister_task(task)
        _keeper.keep(task)


class _Keeper:
    """A thread that holds on to tasks until the process ends, the interpreter's own end included.

    A module's variables, too, are cleared before that, and coroutines closed.
    """

    def __init__(self) -> None:
        self._kept: dict[asyncio.Task[Any], None] = {}
        self._lock = threading.Lock()
        self._started = False

    def keep(self, task: asyncio.Task[Any]) -> None:
        with self._lock:
            self._kept[task] = None
            if not self._started:
                self._started = True
                thread = threading.Thread(target=self._wait, name="spa_dat keeper", daemon=True)
                thread.spa_dat_watches = True  # type: ignore[attr-defined]
                thread.start()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        with self._lock:
            self._kept.pop(task, None)
        if not task.cancelled():
            # Nobody is left to look at it.
            task.exception()

    def _wait(self) -> None:
        threading.Event().wait()


_keeper = _Keeper()
