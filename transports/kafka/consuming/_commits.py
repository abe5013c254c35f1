"""Commits of settled records."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from .._config import KafkaConfig
from .._errors import describe
from ._assignment import Assignment
from ._group_requests import commit

__all__ = ["Committer"]

_log = get_logger(__name__)

_NEVER = 1 << 62
_TRY_AGAIN = 0.1
# Seconds for which commits have to fail until that is trouble.
_SERIOUS_AFTER = 10.0


class Committer:
    """Commits the settled prefixes of one assignment, by number and time, one commit at a time.

    It ends with the assignment, so that nothing of an old one is ever committed as part of the
    next: the library would send it with whatever generation is current.

    Args:
        consumer: the library's consumer.
        assignment: the assignment.
        config: says how often to commit.
        stats: counts ``kafka.commits``, ``kafka.commits_lost`` and ``kafka.commits_failed``.
        group: its id, for log messages.
    """

    def __init__(
        self,
        consumer: Any,
        assignment: Assignment,
        config: KafkaConfig,
        stats: Counter[str],
        group: str,
    ) -> None:
        self._consumer = consumer
        self._assignment = assignment
        self._config = config
        self._stats = stats
        self._group = group
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[bool] | None = None
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._failures = 0
        # Since when (loop time), and why.
        self._failing: tuple[float, str] | None = None
        self._forbidden: set[str] = set()
        assignment.on_release = self._on_release

    @property
    def trouble(self) -> str | None:
        """Why commits have been failing for long; None if they have not."""
        if self._failing is None or self._loop.time() - self._failing[0] < _SERIOUS_AFTER:
            return None
        return (
            "what is settled cannot be committed, and comes again after a restart:"
            f" {self._failing[1]}"
        )

    def _on_release(self) -> None:
        assignment = self._assignment
        if self._ended or self._task is not None:
            assignment.notify_at = _NEVER
        elif assignment.released >= self._config.commit_records:
            self._start()
        else:
            assignment.notify_at = self._config.commit_records
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._config.commit_interval, self._start)

    def _start(self) -> None:
        self._cancel_timer()
        self._assignment.notify_at = _NEVER
        self._assignment.released = 0
        self._task = asyncio.get_running_loop().create_task(self._commit(self._pending()))
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[bool]) -> None:
        self._task = None
        assignment = self._assignment
        assignment.notify_at = 1
        # What was not committed waits for the next interval, as new records do.
        if not self._ended and (assignment.released or not (task.cancelled() or task.result())):
            self._on_release()

    async def finish(self, timeout: float, *, lost: bool = False) -> None:
        """Commit what is left, within ``timeout`` seconds, and nothing after that.

        Args:
            timeout: seconds.
            lost: whether the partitions are already gone, so nothing can be committed.
        """
        self._ended = True
        self._cancel_timer()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if self._task is not None:
            await _bounded(self._task, 0.0 if lost else timeout)
        offsets = {} if lost else self._pending()
        if offsets:
            task = loop.create_task(self._commit_at_last(offsets))
            if not await _bounded(task, max(deadline - loop.time(), 0.0)):
                self._stats["kafka.commits_failed"] += 1
                _log.warning(
                    "group %r: the last commit was not confirmed: settled messages may come again",
                    self._group,
                )

    def catch_up(self, position: Callable[[TopicPartition], int]) -> None:
        """Commit past records that were read but are not handed out.

        Args:
            position: returns up to where a partition was read and handed out.
        """
        assignment = self._assignment
        news = [
            tracker.pass_to(position(tp))
            for tp, tracker in assignment.trackers.items()
            # Without ids it is not known what was committed before.
            if assignment.ids or tracker.first >= 0
        ]
        if any(news):
            assignment.released += sum(news)
            self._on_release()

    async def commit(self, offsets: dict[TopicPartition, int]) -> bool:
        """Commit these now, when nothing is settled; return whether the cluster has them all."""
        if not self._ended:
            await self._commit(offsets)
        trackers = self._assignment.trackers
        return all(trackers[tp].committed == offset for tp, offset in offsets.items())

    async def _commit_at_last(self, offsets: dict[TopicPartition, int]) -> bool:
        done = await self._commit(offsets)
        while not done:
            await asyncio.sleep(_TRY_AGAIN)
            done = await self._commit(offsets)
        return done

    def _pending(self) -> dict[TopicPartition, int]:
        return {
            partition: tracker.commit_at
            for partition, tracker in self._assignment.trackers.items()
            if tracker.commit_at > tracker.committed
        }

    async def _commit(self, offsets: dict[TopicPartition, int]) -> bool:
        """Commit these; return False if that has to be retried."""
        done = await self._attempt(offsets)
        if done:
            self._failing = None
        return done

    async def _attempt(self, offsets: dict[TopicPartition, int]) -> bool:
        began = self._loop.time()
        try:
            async with asyncio.timeout(self._config.request_timeout):
                assignment = self._assignment
                await commit(
                    self._consumer,
                    offsets,
                    assignment.ids,
                    assignment.rewound,
                    assignment.epochs,
                )
        except kafka.CommitFailedError as error:
            # Whoever has the partitions now gets the records again.
            self._stats["kafka.commits_lost"] += 1
            _log.info("group %r: a commit came too late: %s", self._group, describe(error))
            return True
        except (kafka.UnknownTopicOrPartitionError, kafka.TopicAuthorizationFailedError) as error:
            if len(offsets) == 1:
                self._say_so(next(iter(offsets)).topic, error)
                return True
            # The error does not say which one is gone or no longer accessible.
            return all([await self._attempt({tp: offset}) for tp, offset in offsets.items()])
        except Exception as error:  # noqa: BLE001 (whatever the library raises, it is tried again)
            self._stats["kafka.commits_failed"] += 1
            self._failures += 1
            self._failing = (self._failing or (began,))[0], describe(error)
            # Connections are closed now and then, also to renew a login; that is harmless.
            passing = isinstance(error, kafka.KafkaError) and error.retriable
            if self._failures == (2 if passing else 1):
                _log.error(
                    "group %r: a commit failed and will be retried: %s",
                    self._group,
                    describe(error),
                )
            return False
        self._failures = 0
        self._stats["kafka.commits"] += 1
        trackers = self._assignment.trackers
        for partition, offset in offsets.items():
            trackers[partition].committed = offset
        return True

    def _say_so(self, topic: str, error: kafka.KafkaError) -> None:
        forbidden = isinstance(error, kafka.TopicAuthorizationFailedError)
        if forbidden and topic not in self._forbidden:
            self._forbidden.add(topic)
            _log.error(
                "group %r: settled messages of topic %r cannot be committed, and come again:"
                " %s; allow Read in the cluster's access rules",
                self._group,
                topic,
                describe(error),
            )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _bounded(task: asyncio.Task[bool], timeout: float) -> bool:
    """Wait for the task, cancelling it after ``timeout`` seconds; return whether it ended."""
    try:
        await asyncio.wait({task}, timeout=timeout)
        return task.done()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
