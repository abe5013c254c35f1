"""Unclean stops: keeping account of the work that is given up when an application ends."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, error_name, quoted, reason_of
from ...errors import PublishNotSent, PublishUnknown
from ...transports import Delivery, OutboxEntry
from ._stacks import frames_of, place

__all__ = ["GivenUp", "LostPosts", "let_go"]

log = get_logger("spa_dat")


class LostPosts:
    """Reports posts that failed and that nobody is waiting for.

    Until `close` each is a line in the log. Those without an outcome after that are counted.

    Attributes:
        count: posts without an outcome since `close`.
        first: the topic of the first of them.
    """

    def __init__(self) -> None:
        self.count: int = 0
        self.first: str = ""
        self._closing = False
        self._log = LimitedLog(log)

    def close(self) -> None:
        """Count, from now on, posts that are given up because their bus is closed."""
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
        reasons: why the application did not stop cleanly, one for each thing given up.
        messages: how many messages were given up, by the name of the lane.
    """

    def __init__(self, application: str, stats: Counter[str]) -> None:
        self.reasons: list[str] = []
        self.messages: Counter[str] = Counter()
        self._application = application
        self._stats = stats
        self._unstopped: set[str] = set()

    def add(self, reason: str) -> None:
        """Remember a reason that has been logged already."""
        self.reasons.append(reason)

    def posts(self, posts: Iterable[LostPosts]) -> None:
        """Log the posts without an outcome when their buses were closed, on one line."""
        lost = [each for each in posts if each.count]
        count = sum(each.count for each in lost)
        if count:
            self._stats["posts.given_up"] += count
            first = next(
                (f", the first to {quoted(each.first)}" for each in lost if each.first), ""
            )
            self._tell(f"{count} posts were not confirmed and were given up{first}")

    def unhandled(self, actor: str, count: int) -> None:
        """Note that an actor stopped with ``count`` messages unhandled that are nowhere else."""
        self._stats["messages.given_up"] += count
        self.messages[actor] += count
        self.add(f"actor {actor!r} stopped with {count} messages unhandled")

    def unstopped(self, actor: str, error: BaseException) -> None:
        """Note that an actor's ``on_stop`` has failed, the first time that it does."""
        # There may be any number of restarts.
        if actor not in self._unstopped:
            self._unstopped.add(actor)
            self.add(f"on_stop of actor {actor!r} has failed: {reason_of(error)}")

    def left_over(self, actor: str, items: Sequence[Any]) -> None:
        """Note which items an actor left behind; those that its bus still has are not lost."""
        left = [item for item in items if isinstance(item, Delivery)]
        count = sum(not delivery.route.router.withdraw(delivery) for delivery in left)
        if count:
            self._stats["messages.given_up"] += count
            self.messages[actor] += count
            self._tell(f"actor {actor!r} ended before it handled {count} messages that are lost")

    def task(self, whose: str, task: asyncio.Future[Any]) -> None:
        """Abandon a task that keeps running although it was cancelled."""
        where = place(frames_of(task)) or "in code of its own"
        self._abandoned(f"{whose} keeps running although it was cancelled: {where}")
        if isinstance(task, asyncio.Task):
            let_go([task])

    def unclosed(self, resources: Iterable[object]) -> None:
        """Note which resources are left open."""
        if named := ", ".join(map(str, resources)):
            self._tell(f"not closed, and left as they are: {named}")

    def thread(self, whose: str, where: str) -> None:
        """Abandon a function in a thread, which is at ``where``."""
        self._abandoned(f"{whose}: a thread cannot be ended from outside: {where}")

    def running_on(self, whose: str, places: Iterable[str]) -> None:
        """Note where calls go on that were given up before the stop, at their deadlines."""
        for where, count in Counter(places).items():
            calls = f"{count} calls" if count > 1 else "a call"
            self._tell(f"{whose}: {calls} given up at the deadline may keep running: {where}")

    def _abandoned(self, what: str) -> None:
        self._stats["actors.abandoned"] += 1
        self._tell(f"{what}; it is abandoned and may keep running")

    def _tell(self, reason: str) -> None:
        log.error("%s: %s", self._application, reason)
        self.add(reason)


def let_go(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Make nobody, `asyncio.run` included, wait for tasks that ignore their cancellation.

    They are kept alive for good: a coroutine that does not end when it is cancelled does not end
    when it is closed either.
    """
    for task in tasks:
        # asyncio's own function for tasks that are ending.
        asyncio._unregister_task(task)
        _keeper.keep(task)


class _Keeper:
    """A thread that keeps tasks alive until the process ends, even past the interpreter's exit.

    A module's variables are cleared earlier than that, which would close the coroutines.
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
