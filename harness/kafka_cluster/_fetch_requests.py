"""Fetch requests, which may wait until there are records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiokafka.protocol.fetch import FetchResponse_v11

from ._cluster import REFUSAL_DELAY, Cluster
from ._errors import ErrorCode, RequestRefused
from ._partition_log import Log
from ._protocol_frames import Request

__all__ = ["PendingFetch"]

_NO_REPLICA = -1


class PendingFetch:
    """One fetch request, answered when there is enough, something is wrong, or time is up.

    Args:
        cluster: the cluster.
        request: the request.
        reply: called with the answer, once.
    """

    def __init__(self, cluster: Cluster, request: Request, reply: Callable[[Any], None]) -> None:
        self._cluster = cluster
        self._request = request
        self._reply = reply
        self._timer: asyncio.TimerHandle | None = None
        self._logs: list[Log] = []
        self._overdue = False

    def start(self) -> None:
        """Answer it, now or later."""
        body = self._request.body
        if body.max_wait_time <= 0 or self._is_due():
            self._answer()
            return
        for topic, partitions in body.topics:
            for partition, *_ in partitions:
                log = self._cluster.log(topic, partition)
                self._logs.append(log)
                log.wait(self._look)
        self._timer = self._cluster.loop.call_later(body.max_wait_time / 1000, self._on_time)

    def hurry(self) -> None:
        """Wait no longer than the client wanted, since it has sent another request."""
        if self._overdue:
            self._answer()

    def _on_time(self) -> None:
        patience = self._cluster.patience
        longer = 0.0 if patience is None else patience()
        if longer > 0:
            self._overdue = True
            self._timer = self._cluster.loop.call_later(longer, self._answer)
        else:
            self._answer()

    def cancel(self) -> None:
        """Drop the request: nobody waits for its answer any more."""
        if self._timer is not None:
            self._timer.cancel()
        for log in self._logs:
            log.forget(self._look)

    def _look(self) -> None:
        if self._is_due():
            self._answer()

    def _is_due(self) -> bool:
        wanted = self._request.body.min_bytes
        size = count = 0
        for topic, partitions in self._request.body.topics:
            for partition, _, offset, _, _ in partitions:
                try:
                    log = self._checked(topic, partition, offset)
                except RequestRefused:
                    return True
                size += log.size_from(offset, wanted, self._end(log))
                count += 1
        return size >= wanted or not count

    def _checked(self, topic: str, partition: int, offset: int) -> Log:
        log = self._cluster.log(topic, partition)
        if not log.start <= offset <= log.end:
            raise RequestRefused(ErrorCode.OFFSET_OUT_OF_RANGE)
        return log

    def _end(self, log: Log) -> int:
        return log.end_for(self._request.body.isolation_level)

    def _answer(self) -> None:
        self.cancel()
        self._overdue = False
        body = self._request.body
        left = body.max_bytes
        first = True
        refused = False
        topics = []
        for topic, wanted in body.topics:
            partitions = []
            for partition, _, offset, _, most in wanted:
                code, start, end, stable, data = ErrorCode.NONE, -1, -1, -1, b""
                aborted: list[tuple[int, int]] | None = None
                try:
                    log = self._checked(topic, partition, offset)
                except RequestRefused as refusal:
                    code, refused = refusal.code, True
                else:
                    start, end, stable = log.start, log.end, log.stable
                    limit = self._end(log)
                    size = min(most, max(left, 0))
                    data = log.read(offset, size, limit, at_least_one=first)
                    if body.isolation_level:
                        aborted = log.aborted_between(offset, limit)
                if data:
                    first = False
                    left -= len(data)
                    place = f"{topic}-{partition}"
                    self._cluster.note(self._request.client_id, "fetch", place, str(offset))
                partitions.append((partition, code, end, stable, start, aborted, _NO_REPLICA, data))
            topics.append((topic, partitions))
        answer = FetchResponse_v11(0, 0, 0, topics)
        if refused:
            self._timer = self._cluster.loop.call_later(REFUSAL_DELAY, self._reply, answer)
        else:
            self._reply(answer)
