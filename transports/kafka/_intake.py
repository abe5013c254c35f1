"""What both ways of consuming have in common: sessions that begin and end, and handing out."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ...errors import ConnectFailed, ConnectionLost, SpaDatError
from .._backoff import Backoff
from .._contract import Receiver, Subscription
from .._delivery import Delivery
from .._envelope import without_payload
from .._topics import TopicTrie
from ._clients import Whereabouts, common_options, fetch_options, reach
from ._common import Common
from ._errors import connect_problem
from ._fetching import Fetched, Fetching
from ._guard import Guard
from ._names import Selection
from ._past import Past
from ._records import StoredRecord, size_of_headers
from ._slots import Assignment, SizeTracker
from ._unreadable import Troubles

__all__ = ["Intake", "unless"]

_log = get_logger(__name__)


class Intake(abc.ABC):
    """One subscription's way from the cluster to its receiver.

    There is one session after the other, each with a consumer of the library of its own, until
    `close`. A task of its own looks after them; another one fetches.
    """

    def __init__(self, common: Common, subscription: Subscription, receiver: Receiver) -> None:
        surroundings = common.surroundings
        identity = surroundings.identity
        self.identifier = f"{identity.application}.{identity.instance}.{subscription.name}"
        self._config = common.config
        self._names = common.names
        self._codec = common.codec
        self._surroundings = surroundings
        self._stats = surroundings.stats
        self._log = LimitedLog(_log)
        self._subscription = subscription
        self._receiver = receiver
        self._topics = common.topics
        self._at_most_once = subscription.qos == 0
        self._filters = dict.fromkeys(subscription.filters)
        self._select()
        # What earlier assignments handed out, by partition.
        self._past: dict[TopicPartition, Past] = {}
        self._assignment: Assignment | None = None
        self._seen: dict[TopicPartition, int] = {}
        self._stopped = self._closing = False
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._interrupt = asyncio.Event()
        self._closed = asyncio.Event()
        # Those who wait for their filter to come in force.
        self._changes: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._troubles = Troubles(f"consumer {self.identifier!r}", self._stats)
        self._latest: Fetching | None = None
        # Why there is no session that gets anything.
        self._away: str | None = "it has not started"

    # What the consumer calls.

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + self._config.start_timeout
        self._task = loop.create_task(self._run())
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            await self.close()
            raise

    async def change(self, add: str | None, remove: str | None) -> None:
        """Bring a filter in force, or out of it; returns when that is done.

        Raises:
            ConnectionLost: the consumer was closed meanwhile.
            UnknownTopic, NotAuthorised: there is no such topic, or not for us.
        """
        if add is not None:
            names = self._names.selection((add,)).names
            if self._task is not None:
                await self._unless_closed(self._ensure(names))
            self._filters[add] = None
            self._added(add)
        if remove is not None:
            self._filters.pop(remove, None)
        self._select()
        if self._task is None:
            return
        if self._closing:
            raise self._is_closed()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(done)
        self._interrupt.set()
        await done

    def stop(self) -> None:
        """Hand nothing more out."""
        self._stopped = True

    async def close(self) -> None:
        self._stopped = self._closing = True
        self._interrupt.set()
        self._closed.set()
        waiting, self._changes = [*self._changes, self._ready], []
        for future in waiting:
            if not future.done():
                future.set_exception(self._is_closed())
                # Nobody has to be waiting for it.
                future.exception()
        if self._task is not None:
            # It bounds its own steps; should one hang all the same, it is cut off.
            await asyncio.wait({self._task}, timeout=_LONGEST_END)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # Sessions.

    @abc.abstractmethod
    async def _session(self) -> None:
        """Connect, bring the filters in force and fetch; ends when `_interrupt` is set."""

    def _added(self, pattern: str) -> None:  # noqa: B027 (there is nothing that everybody does)
        """A filter was added while running."""

    async def _run(self) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        backoff = Backoff(
            self._surroundings.environment, minimum=config.backoff_min, maximum=config.backoff_max
        )
        while not self._closing:
            began = loop.time()
            self._interrupt.clear()
            try:
                await self._session()
                continue
            except Exception as error:  # noqa: BLE001 (whatever the library raises, it goes on)
                if self._closing or self._is_final(error):
                    return
            self._stats["kafka.reconnects"] += 1
            delay = backoff.next_delay(loop.time() - began)
            if not self._ready.done():
                delay = min(delay, max(self._deadline - loop.time(), 0.0))
            await self._interrupted(delay)

    def _is_final(self, error: Exception) -> bool:
        """Say what ended a session; whether that is an end for good, told to who waits for it."""
        config = self._config
        problem = connect_problem(error, config.address, config.username)
        if self._ready.done():
            self._away = str(problem.error)
            expected = isinstance(error, (KafkaError, OSError, SpaDatError))
            _log.warning(
                "consumer %r: %s; trying again",
                self.identifier,
                problem.error,
                exc_info=None if expected else error,
            )
            return False
        connecting = isinstance(problem.error, ConnectFailed) and not (
            problem.final and problem.error is not error
        )
        late = asyncio.get_running_loop().time() >= self._deadline
        if not late and (connecting or not problem.final):
            return False
        failure: SpaDatError = problem.error
        if not problem.final and not isinstance(failure, ConnectFailed):
            failure = ConnectFailed(str(failure))
        failure.__cause__ = error if failure is not error else error.__cause__
        self._ready.set_exception(failure)
        self._ready.exception()
        return True

    async def _reach(self) -> None:
        """See whether there is a broker, and the topics; quicker to fail than the library."""
        config = self._config
        patience = config.connect_timeout
        if not self._ready.done():
            left = self._deadline - asyncio.get_running_loop().time()
            patience = min(patience, max(left, 0.001))
        async with asyncio.timeout(patience):
            await reach(config, self.identifier)
        await self._topics.ensure(self._selection.names, config.start_timeout)

    async def _ensure(self, names: Sequence[str]) -> None:
        """Return when the topics exist, however long the cluster is away."""
        config = self._config
        backoff = Backoff(
            self._surroundings.environment, minimum=config.backoff_min, maximum=config.backoff_max
        )
        while names:
            try:
                await self._topics.ensure(names, config.start_timeout)
                return
            except Exception as error:  # noqa: BLE001 (the final ones are raised)
                problem = connect_problem(error, config.address, config.username)
                if problem.final:
                    raise problem.error from (None if problem.error is error else error)
            await asyncio.sleep(backoff.next_delay())

    def _fetching(self, consumer: Any, guard: Guard) -> Fetching:
        self._latest = Fetching(
            consumer,
            self._config,
            self._subscription.window,
            lambda: self._assignment,
            self._take,
            self._stats,
            f"consumer {self.identifier!r}",
            guard,
            Whereabouts(self._config, self.identifier, consumer._client),
            window_bytes=self._subscription.window_bytes,
        )
        return self._latest

    @abc.abstractmethod
    def _take(self, fetched: Fetched) -> Awaitable[None] | None:
        """Hand out what was fetched; what it returns is awaited."""

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being received; None when nothing does."""
        if self._away is not None:
            return self._away
        if self._latest is not None and not self._latest.reachable:
            return f"there is no connection to {self._config.address}"
        return self._troubles.serious(self._selection.names)

    def _options(self) -> dict[str, Any]:
        options = common_options(self._config, self.identifier)
        options["enable_auto_commit"] = False
        options["isolation_level"] = "read_committed"
        options |= fetch_options(self._subscription.window_bytes)
        return options

    def _in_force(self, changes: Sequence[asyncio.Future[None]]) -> None:
        self._away = None
        for change in changes:
            if change in self._changes:
                self._changes.remove(change)
            if not change.done():
                change.set_result(None)
        if not self._ready.done():
            self._ready.set_result(None)

    # Waiting that ends when something else has to be done.

    async def _interrupted(self, timeout: float) -> bool:
        """Wait for ``timeout`` seconds, or until `_interrupt` is set; whether that happened."""
        try:
            async with asyncio.timeout(timeout):
                await self._interrupt.wait()
        except TimeoutError:
            return False
        return True

    async def _unless_interrupted(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Await something, or cancel it when `_interrupt` is set; whether it was done."""
        return await unless(self._interrupt, coroutine)

    async def _unless_closed(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if not await unless(self._closed, coroutine):
            raise self._is_closed()

    def _is_closed(self) -> ConnectionLost:
        return ConnectionLost(f"consumer {self.identifier!r} is closed")

    # Handing out.

    def _select(self) -> None:
        self._selection: Selection = self._names.selection(self._filters)
        self._trie: TopicTrie[None] = TopicTrie()
        for pattern in self._filters:
            self._trie.add(pattern, None)

    def _hand_out(
        self, assignment: Assignment, partition: TopicPartition, records: Sequence[StoredRecord]
    ) -> None:
        """Decode and deliver what was fetched of one partition."""
        tracker = assignment.trackers[partition]
        past = self._past.get(partition)
        if past is not None and past.is_over(records[0].offset):
            del self._past[partition]
            past = None
        match = None if self._selection.exact else self._trie.match
        seen = self._seen.get(partition, -1)
        decode, epoch, keep = self._codec.decode, assignment.epoch, tracker.slots.append
        deliveries: list[Delivery] = []
        skipped = total = 0
        largest = self._config.largest_received
        if tracker.first < 0:
            tracker.first = records[0].offset
        # Before anything is settled.
        assignment.unsettled += len(records)
        for record in records:
            offset = record.offset
            try:
                envelope = decode(record, offset < seen)
            except Exception as error:  # noqa: BLE001 (one bad record must not stop the others)
                self._undecodable(record, error)
                envelope = None
            if envelope is None or (match is not None and not match(envelope.topic)):
                tracker.skip(offset)
                skipped += 1
                continue
            size = len(envelope.payload)
            if size > largest:
                envelope, size = without_payload(envelope), 0
            if envelope.key is not None:
                size += len(envelope.key)
            if envelope.headers:
                size += size_of_headers(envelope.headers)
            total += size
            delivery = Delivery(envelope, epoch=epoch, token=offset, tracker=tracker, size=size)
            keep(delivery)
            if past is None or not past.resolve(delivery):
                deliveries.append(delivery)
            else:
                self._stats["messages.recognised"] += 1
        self._seen[partition] = max(seen, records[-1].offset + 1)
        # Before anything is settled.
        assignment.size += total
        assignment.average = max(total // len(records), assignment.average // 2)
        if skipped:
            assignment.unsettled -= skipped
            tracker.advance()
        if deliveries:
            self._receiver.deliver_all(deliveries)

    def _hand_out_untracked(self, assignment: Assignment, records: Sequence[StoredRecord]) -> None:
        """Decode and deliver what nobody commits; its bytes count until it is settled."""
        deliveries: list[Delivery] = []
        tracker = SizeTracker(assignment)
        largest = self._config.largest_received
        match = None if self._selection.exact else self._trie.match
        for record in records:
            try:
                envelope = self._codec.decode(record)
            except Exception as error:  # noqa: BLE001 (one bad record must not stop the others)
                self._undecodable(record, error)
                continue
            if envelope is not None and (match is None or match(envelope.topic)):
                if len(envelope.payload) > largest:
                    envelope = without_payload(envelope)
                size = len(envelope.payload) + size_of_headers(envelope.headers)
                assignment.size += size
                deliveries.append(Delivery(envelope, tracker=tracker, size=size))
        if deliveries:
            self._receiver.deliver_all(deliveries)

    def _undecodable(self, record: StoredRecord, error: Exception) -> None:
        self._stats["messages.malformed"] += 1
        self._log.error(
            "consumer %r: record %d of partition %d of topic %r can not be read and is passed"
            " over: %s: %s",
            self.identifier,
            record.offset,
            record.partition,
            record.topic,
            type(error).__name__,
            error,
        )


_LONGEST_END = 8.0


async def unless(event: asyncio.Event, coroutine: Coroutine[Any, Any, None]) -> bool:
    """Await something, or cancel it when the event is set; whether it was done."""
    task = asyncio.ensure_future(coroutine)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        task.cancel()
        waiting.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
