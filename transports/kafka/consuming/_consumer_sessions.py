"""The sessions of one subscription with a cluster: how they begin and end, one after another."""

from __future__ import annotations

import abc
import asyncio
import enum
import math
from collections.abc import Awaitable, Container, Coroutine, Iterable, Sequence
from typing import Any

import aiokafka.errors as kafka

from ...._logs import get_logger
from ....errors import ConfigurationError, ConnectFailed, ConnectionLost, SpaDatError
from ..._connect_failures import ConnectProblem
from ..._contract import Receiver, Subscription
from ..._delivery import Tracker
from .._aiokafka_private import client_of, is_assigned, limit_prefetching
from .._bus_context import BusContext
from .._client_options import common_options, fetch_options, renewed_options
from .._errors import GroupRefused, connect_problem, translate
from .._reachability import Brokers, Reachability, reach
from .._topic_facts import TopicsRecreated, topic_facts
from .._topic_names import Selection
from ._assignment import Assignment
from ._dispatcher import Dispatcher
from ._fetching import Fetched, Fetching
from ._leader_epochs import EndsLost
from ._partition_guard import PartitionGuard
from ._partition_pauses import PartitionPauses
from ._unreadable_reports import Troubles

__all__ = ["ConsumerSessions", "SessionState", "unless"]

_log = get_logger(__name__)
_DELETED = "it no longer exists; create it"
_FORBIDDEN = "not authorised; allow Describe and Read in the cluster's access rules"
_LONGEST_END = 8.0
# Longer than anything waits inside the library: see `Fetching`.
_NO_PREFETCH = 30.0


class SessionState(enum.Enum):
    """The states of a subscription, whatever its sessions do.

    Attributes:
        STARTING: the filters have never been in force.
        RECEIVING: what is fetched is handed out.
        AWAY: the last session has failed, and the next one is not in force yet.
        STOPPED: nothing more is handed out; settling and committing continue.
        CLOSED: it is ending, or has ended.
    """

    STARTING = enum.auto()
    RECEIVING = enum.auto()
    AWAY = enum.auto()
    STOPPED = enum.auto()
    CLOSED = enum.auto()


_ENDING = (SessionState.STOPPED, SessionState.CLOSED)


class ConsumerSessions(abc.ABC):
    """Brings one subscription's messages from the cluster to its receiver.

    There is one session after another, each with its own consumer of the library, until `close`.
    One task manages them; another one fetches.
    """

    def __init__(self, context: BusContext, subscription: Subscription, receiver: Receiver) -> None:
        surroundings = context.surroundings
        identity = surroundings.identity
        self.identifier = identity.client_id_of(subscription.name)
        self._config = context.config
        self._names = context.names
        self._surroundings = surroundings
        self._stats = surroundings.stats
        self._subscription = subscription
        self._receiver = receiver
        self._topics = context.topics
        self._facts = context.facts
        self._at_most_once = subscription.qos == 0
        self._filters = dict.fromkeys(subscription.filters)
        self._dispatcher = Dispatcher(
            self.identifier,
            context.codec,
            receiver,
            self._config.largest_received,
            context.wires.of(subscription.wire),
            self._stats,
        )
        self._select()
        self._state = SessionState.STARTING
        # What `start` waits for.
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Wakes whoever waits in a session: filters have changed, or it is closed.
        self._interrupt = asyncio.Event()
        # Wakes whoever waits across sessions: it is closed.
        self._closed = asyncio.Event()
        # Callers waiting for their filter to be in force.
        self._changes: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._deadline = 0.0
        # Loop time until which its end may wait for the cluster.
        self._close_by = math.inf
        # Topics that were recreated since the last positions were taken.
        self._reported: set[str] = set()
        # Why the last attempt to start was refused, if a later one may succeed.
        self._refusal: ConnectProblem | None = None
        self._troubles = Troubles(f"consumer {self.identifier!r}", self._stats)
        self._latest: Fetching | None = None
        self._consumer: Any = None
        self._guard: PartitionGuard | None = None
        self._pauses: PartitionPauses | None = None
        # Why there is no session that receives anything.
        self._away: str | None = f"no answer from {self._config.address} yet"

    # Called by the consumer.

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
        """Put a filter into or out of force; return once that is done.

        Raises:
            ConnectionLost: the consumer was closed meanwhile.
            UnknownTopic, NotAuthorised: the topic does not exist, or is not accessible to us.
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
        if self.closed:
            raise self._is_closed()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(done)
        self._interrupt.set()
        await done

    def stop(self) -> None:
        """Stop handing out."""
        self._enter(SessionState.STOPPED)

    async def close(self, seconds: float = math.inf) -> None:
        """End the session and what it has open.

        Args:
            seconds: how long to wait for the cluster at most, where that would take longer.
        """
        self._close_by = asyncio.get_running_loop().time() + seconds
        self._enter(SessionState.CLOSED)
        waiting, self._changes = [*self._changes, self._ready], []
        for future in waiting:
            if not future.done():
                future.set_exception(self._is_closed())
                # Perhaps nobody is waiting for it.
                future.exception()
        if self._task is not None:
            # Its steps are bounded; should one hang anyway, it is cancelled.
            await asyncio.wait({self._task}, timeout=_LONGEST_END)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # The state.

    @property
    def stopped(self) -> bool:
        """Whether nothing more is handed out."""
        return self._state in _ENDING

    @property
    def closed(self) -> bool:
        """Whether it is ending, or has ended."""
        return self._state is SessionState.CLOSED

    def _enter(self, state: SessionState, why: str | None = None) -> None:
        """Change the state, unless that would go back from an end.

        Args:
            state: the next one.
            why: why nothing is received, if that is so.
        """
        if state not in _ENDING:
            # A stopped one may also lose its session and get another.
            self._away = why
        if self._state not in _ENDING or state is SessionState.CLOSED:
            self._state = state
        if state is SessionState.CLOSED:
            self._interrupt.set()
            self._closed.set()

    @property
    def trackers(self) -> Sequence[Tracker]:
        """The trackers of the partitions of the current assignment."""
        assignment = self.assignment
        return () if assignment is None else tuple(assignment.trackers.copy().values())

    @property
    def lag(self) -> int | None:
        """How many records there are after those that are settled; None if that is not known."""
        return None

    @property
    @abc.abstractmethod
    def assignment(self) -> Assignment | None:
        """The current assignment; None between two."""

    # Sessions.

    @abc.abstractmethod
    async def _session(self) -> None:
        """Connect, put the filters into force and fetch, until `_interrupt` is set."""

    def _explained(self, error: Exception) -> Exception:
        """Return what ended a session, as this package's error if it has a better one."""
        return error

    def _added(self, pattern: str) -> None:  # noqa: B027 (there is nothing that everybody does)
        """Put a filter into force that was added while running."""

    async def _run(self) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        backoff = config.backoff(self._surroundings.environment)
        while not self.closed:
            began = loop.time()
            self._interrupt.clear()
            try:
                await self._session()
                continue
            except TopicsRecreated as error:
                self._forget_recreated(error.names)
                continue
            except EndsLost:
                # The next one begins where they end now.
                await self._interrupted(config.backoff_min)
                continue
            except Exception as error:  # noqa: BLE001 (whatever the library raises, it goes on)
                if self.closed or self._is_final(error):
                    return
            self._stats["kafka.reconnects"] += 1
            delay = backoff.next_delay(loop.time() - began)
            if not self._ready.done():
                delay = min(delay, max(self._deadline - loop.time(), 0.0))
            await self._interrupted(delay)

    def _is_final(self, error: Exception) -> bool:
        """Report what ended a session; return whether that is final, which its waiters are told."""
        config = self._config
        problem = connect_problem(self._explained(error), config.address, config.login.username)
        if self._ready.done():
            self._enter(SessionState.AWAY, str(problem.error))
            expected = isinstance(error, (kafka.KafkaError, OSError, SpaDatError))
            _log.warning(
                "consumer %r: %s; retrying",
                self.identifier,
                problem.error,
                exc_info=None if expected else error,
            )
            return False
        connecting = isinstance(problem.error, ConnectFailed) and not (
            problem.final and problem.error is not error
        )
        self._wait_because(str(problem.error))
        late = asyncio.get_running_loop().time() >= self._deadline
        if not late and (connecting or not problem.final):
            self._refusal = problem if isinstance(problem.error, GroupRefused) else None
            return False
        if self._refusal is not None and isinstance(error, TimeoutError):
            # There was no time left to hear it again.
            problem = self._refusal
        failure: SpaDatError = problem.error
        if isinstance(failure, GroupRefused):
            failure = ConfigurationError(str(failure))
        elif not problem.final and not isinstance(failure, ConnectFailed):
            failure = ConnectFailed(str(failure))
        failure.__cause__ = error if failure is not error else error.__cause__
        self._ready.set_exception(failure)
        self._ready.exception()
        return True

    async def _reach(self) -> None:
        """Check that there is a broker, and the topics; fails more quickly than the library."""
        config = self._config
        patience = config.connect_timeout
        if not self._ready.done():
            left = self._deadline - asyncio.get_running_loop().time()
            patience = min(patience, max(left, 0.001))
        await reach(config, self.identifier, patience)
        await self._topics.ensure(self._selection.names, config.start_timeout, self._wait_because)

    def _wait_because(self, why: str) -> None:
        """Note why nothing is received before there is a session."""
        if self._away is not None:
            self._away = why

    async def _ensure(self, names: Sequence[str]) -> None:
        """Wait until the topics exist, however long the cluster is away."""
        config = self._config
        backoff = config.backoff(self._surroundings.environment)
        while names:
            try:
                await self._topics.ensure(names, config.start_timeout)
                return
            except Exception as error:  # noqa: BLE001 (the final ones are raised)
                problem = connect_problem(error, config.address, config.login.username)
                if problem.final:
                    raise problem.error from (None if problem.error is error else error)
            await asyncio.sleep(backoff.next_delay())

    def _hear(self, topics: Any) -> None:
        assignment = self.assignment
        if assignment is not None:
            for place in assignment.epochs.hear(topics):
                if is_assigned(self._consumer, place):
                    self._consumer.pause(place)

    def _pauses_for(self, consumer: Any, guard: PartitionGuard) -> PartitionPauses:
        return PartitionPauses(
            consumer,
            guard,
            lambda: self.assignment,
            self._config.max_uncommitted,
            self._stats,
            f"consumer {self.identifier!r}",
        )

    def _fetching(self, consumer: Any, guard: PartitionGuard, pauses: PartitionPauses) -> Fetching:
        # What is fetched from a broker is consumed before more is requested, or each partition
        # would have as much in memory as all of them may.
        limit_prefetching(consumer, _NO_PREFETCH)
        self._latest = Fetching(
            consumer,
            self._config,
            self._subscription.window,
            lambda: self.assignment,
            self._take,
            self._stats,
            f"consumer {self.identifier!r}",
            guard,
            pauses,
            Reachability(self._config, self.identifier, client_of(consumer)),
            self._look,
            self._handed_out,
            window_bytes=self._subscription.window_bytes,
        )
        return self._latest

    async def _look(self) -> None:
        """Raise what ends the session; called once a second while fetching."""
        self._look_for_topics(client_of(self._consumer).cluster)

    def _look_for_topics(self, cluster: Any, forbidden: Container[str] = ()) -> None:
        """Notice topics that are deleted while running: the library waits silently.

        Args:
            cluster: what is known of it.
            forbidden: further topics of which it says that we may not see them.
        """
        absent = {
            name: _FORBIDDEN
            if name in cluster.unauthorized_topics or name in forbidden
            else _DELETED
            for name in self._selection.names
            if not cluster.partitions_for_topic(name)
        }
        self._troubles.look_for_topics(absent, asyncio.get_running_loop().time())

    def _handed_out(self) -> None:  # noqa: B027 (there is nothing that everybody does)
        """Commit past unread records; called now and then when everything fetched is handed out."""

    async def _check_rights(self, client: Any) -> None:
        """Refuse to start if a topic that is wanted by name may not be read.

        Raises:
            NotAuthorised: names the topic.
        """
        if self._ready.done():
            # While running, it is held, so that others continue.
            return
        facts = await topic_facts(client, self._selection.names) or {}
        for name, topic in facts.items():
            if not topic.readable:
                raise translate(kafka.TopicAuthorizationFailedError(name), f"topic {name!r}")

    def _forget_recreated(self, names: Iterable[str]) -> None:
        """Log that topics were deleted and recreated, and forget what was in the old ones."""
        gone = set(names)
        self._dispatcher.forget_topics(gone)
        news = sorted(gone - self._reported)
        self._reported |= gone
        if news:
            _log.warning(
                "consumer %r: topic %s was deleted and recreated, and is read from its start",
                self.identifier,
                ", ".join(map(repr, news)),
            )
            self._stats["kafka.topics_made_anew"] += len(news)

    @abc.abstractmethod
    def _take(self, fetched: Fetched) -> Awaitable[None] | None:
        """Hand out what was fetched; the result is awaited."""

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being received, as text; None if nothing does."""
        if self._away is not None:
            return self._away
        latest = self._latest
        brokers = None if latest is None else latest.brokers
        if brokers is Brokers.SILENT:
            return (
                f"the brokers at {self._config.address} can be reached, but have not answered for a"
                " long time: they hang, or make this client wait because of a quota"
            )
        if brokers is Brokers.AWAY:
            if latest is not None and latest.obstacle is not None:
                return latest.obstacle
            return f"there is no connection to {self._config.address}"
        return self._troubles.serious(self._selection.names)

    def _options(self) -> dict[str, Any]:
        options = common_options(self._config, self.identifier)
        options["enable_auto_commit"] = False
        options["isolation_level"] = "read_committed"
        options |= fetch_options(self._subscription.window_bytes)
        return options

    async def _renewed_options(self) -> dict[str, Any]:
        return await renewed_options(self._config)

    def _in_force(self, changes: Sequence[asyncio.Future[None]]) -> None:
        self._enter(SessionState.RECEIVING)
        self._changes = [change for change in self._changes if change not in changes]
        for change in changes:
            if not change.done():
                change.set_result(None)
        if not self._ready.done():
            self._ready.set_result(None)

    # Waits that end when something else has to be done.

    async def _interrupted(self, timeout: float) -> bool:
        """Wait ``timeout`` seconds or until `_interrupt` is set; return whether that happened."""
        try:
            async with asyncio.timeout(timeout):
                await self._interrupt.wait()
        except TimeoutError:
            return False
        return True

    async def _unless_interrupted(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Await something, but cancel it when `_interrupt` is set; return whether it completed."""
        return await unless(self._interrupt, coroutine)

    async def _unless_closed(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if not await unless(self._closed, coroutine):
            raise self._is_closed()

    def _is_closed(self) -> ConnectionLost:
        return ConnectionLost(f"consumer {self.identifier!r} is closed")

    def _select(self) -> None:
        self._selection: Selection = self._names.selection(self._filters)
        self._dispatcher.select(self._filters, exact=self._selection.exact)


async def unless(event: asyncio.Event, coroutine: Coroutine[Any, Any, None]) -> bool:
    """Await something, but cancel it when the event is set; return whether it completed."""
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
