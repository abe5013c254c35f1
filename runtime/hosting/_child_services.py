"""The services of an actor's runner for a child process: whatever takes a connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ..._logs import OWN, log_elsewhere_made
from ..._texts import describe
from ...errors import OutboxFull, SpaDatError
from ...transports import DEFAULT_OUTBOX, DEFAULT_OUTBOX_BYTES, Envelope
from ..messaging._requests import LENGTH_OF_PREFIX
from ..metrics._conventions import system_of
from ..processes._channel import Channel
from ..processes._frames import (
    Cancel,
    Confirmed,
    Finished,
    Logged,
    Measured,
    Park,
    PipedEnvelope,
    Post,
    Publish,
    Replied,
    Stats,
    Subscribe,
    problem_of,
    tag_of,
)

if TYPE_CHECKING:
    from ._process_lane import ProcessLane

__all__ = ["MOST_WAITING", "ChildServices"]

MOST_WAITING = 67_108_864
"""Bytes that may wait for a child process; replies beyond it are dropped."""
_CONFIRMED, _REPLY = tag_of(Confirmed), tag_of(Replied)


class ChildServices:
    """Posts, publishes, parks and subscribes for one child process.

    Args:
        lane: whose process it is.
        channel: the way to it.
    """

    def __init__(self, lane: ProcessLane, channel: Channel) -> None:
        self._lane = lane
        self._channel = channel
        self._bus = lane.connection.bus
        self._requests = lane.connection.requests
        self._loop = asyncio.get_running_loop()
        self._confirmed: list[int] = []
        self._posts: dict[int, asyncio.Future[None]] = {}
        self._waiting: deque[Post] = deque()
        self._posting: asyncio.Task[None] | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.prefix = lane.environment.token(LENGTH_OF_PREFIX // 2)
        self._requests.relay(self.prefix, self._on_reply)

    def about_bus(self) -> dict[str, Any]:
        """Return what the child has to know of the bus; see `Start.bus`."""
        provider, bus = self._lane.connection.provider, self._bus
        prefix = problem = None
        try:
            prefix = bus.reply_address(self.prefix)
        except SpaDatError as error:
            problem = describe(error)
        return {
            "address": provider.address,
            "deliver": provider.default_deliver,
            "null_headers": provider.null_headers,
            "qos": provider.default_qos,
            "window": provider.default_window,
            "window_bytes": provider.default_window_bytes,
            "wires": [*provider.wires],
            "max_payload": bus.max_payload,
            "max_received": bus.max_received,
            "connected": bus.connected,
            "reply_prefix": prefix,
            "reply_problem": problem,
            "outbox": getattr(provider.config, "outbox", DEFAULT_OUTBOX),
            "outbox_bytes": getattr(provider.config, "outbox_bytes", DEFAULT_OUTBOX_BYTES),
            "observed": self._lane.observed,
            "measured": self._lane.connection.measurements is not None,
        }

    def do(self, frame: Any) -> None:
        """Do what a frame asks for."""
        if isinstance(frame, Post):
            self._post(frame)
        elif isinstance(frame, Publish):
            envelope = _plain(frame.envelope)
            self._lane.connection.published_elsewhere(envelope)
            self._begin(frame.number, self._bus.publish(envelope, timeout=frame.timeout))
        elif isinstance(frame, Park):
            self._begin(frame.number, self._park(frame))
        elif isinstance(frame, Subscribe):
            subscriptions = self._lane.runner.runtime
            change = subscriptions.remove if frame.undo else subscriptions.add
            self._begin(frame.number, change(frame.pattern))
        elif isinstance(frame, Cancel):
            self._cancel(frame.number)
        elif isinstance(frame, Stats):
            self._lane.count(frame.counted)
        elif isinstance(frame, Measured):
            self._measured(frame)
        elif isinstance(frame, Logged):
            _log(frame)

    def _measured(self, frame: Measured) -> None:
        lane = self._lane
        system = system_of(lane.connection.provider.address)
        if lane.measurements is not None:
            for template, taken in frame.series:
                lane.measurements.series(lane.actor_name, template, system).add(taken)

    def close(self) -> None:
        """Let everything go after the child has ended: nobody waits for any of it.

        What was posted goes out all the same, as it does when a handler has failed.
        """
        self._requests.relay(self.prefix, None)
        if self._posting is not None:
            self._posting.cancel()
        for posted in self._posts.values():
            posted.add_done_callback(self._lane.connection.lost_posts.report)

    def _post(self, frame: Post) -> None:
        if self._waiting:
            self._waiting.append(frame)
            return
        try:
            self._submit(frame)
        except OutboxFull:
            self._waiting.append(frame)
            self._posting = self._loop.create_task(self._post_later())

    def _submit(self, frame: Post) -> None:
        """Post it; raises OutboxFull when there is no room for it yet."""
        try:
            envelope = _plain(frame.envelope)
            posted = self._bus.post(envelope)
        except OutboxFull:
            raise
        except SpaDatError as error:
            self._channel.send(Finished(frame.number, problem_of(error)))
            return
        self._lane.connection.published_elsewhere(envelope)
        self._posts[frame.number] = posted
        posted.add_done_callback(partial(self._posted, frame.number))

    async def _post_later(self) -> None:
        while self._waiting:
            await self._bus.room()
            frame = self._waiting.popleft()
            try:
                self._submit(frame)
            except OutboxFull:
                # Others were faster, or it is larger than half of all there is.
                self._waiting.appendleft(frame)
                await asyncio.sleep(0.01)
        self._posting = None

    def _posted(self, number: int, posted: asyncio.Future[None]) -> None:
        del self._posts[number]
        if posted.cancelled():
            return
        error = posted.exception()
        if error is not None:
            self._channel.send(Finished(number, problem_of(error)))
            return
        if not self._confirmed:
            self._loop.call_soon(self._confirm)
        self._confirmed.append(number)

    def _confirm(self) -> None:
        confirmed, self._confirmed = self._confirmed, []
        self._channel.send((_CONFIRMED, confirmed))

    async def _park(self, frame: Park) -> None:
        lane = self._lane
        if not lane.take_letter():
            raise SpaDatError("the actor has stored as many dead letters as it may")
        stored = False
        try:
            await self._bus.park(_plain(frame.envelope), timeout=frame.timeout)
            stored = True
        finally:
            if not stored:
                lane.return_letter()
        lane.parked()
        lane.connection.parked(frame.envelope)

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[number] = self._loop.create_task(work)
        # A callback also comes of what is cancelled before it has begun.
        task.add_done_callback(partial(self._finished, number))

    def _finished(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        if not task.cancelled():
            error = task.exception()
            self._channel.send(Finished(number, None if error is None else problem_of(error)))

    def _cancel(self, number: int) -> None:
        work: asyncio.Future[None] | None = self._posts.get(number) or self._tasks.get(number)
        if work is not None:
            work.cancel()
            return
        left = [frame for frame in self._waiting if frame.number != number]
        self._waiting = deque(left)

    def _on_reply(self, correlation: str, envelope: Envelope) -> None:
        # Only the child knows what it waits for, and responders may send any number.
        waiting = self._channel.pending
        if waiting >= MOST_WAITING:
            self._lane.stats["replies.dropped"] += 1
            self._lane.log.warning(
                "a reply is dropped: %d bytes wait for the child process, which does not take them",
                waiting,
            )
            return
        self._channel.send_envelope((_REPLY, correlation), envelope)


def _plain(envelope: PipedEnvelope) -> Envelope:
    # As any other: nobody is to see where it has come from.
    return Envelope(**msgspec.structs.asdict(envelope))


def _log(frame: Logged) -> None:
    attributes = dict(frame.attributes)
    if frame.own:
        attributes[OWN] = True
    log_elsewhere_made(
        frame.name,
        frame.level,
        frame.text,
        created=frame.created,
        traceback=frame.traceback,
        attributes=attributes,
    )
