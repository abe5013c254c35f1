"""Fetching as fast as things are settled, and staying a member when they are not."""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import aiokafka.errors as kafka
import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.consumer.fetcher import Fetcher as LibraryFetcher
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.structs import TopicPartition

from spa_dat.transports import Delivery, Envelope
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka._aiokafka_private import end_tasks
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._committable_offsets import PartitionTracker
from spa_dat.transports.kafka.consuming._fetching import Fetched, Fetching
from spa_dat.transports.kafka.consuming._partition_pauses import PartitionPauses

pytestmark = pytest.mark.virtual

PLACE = TopicPartition("t", 0)


class Fetcher:
    """Stands for the fetcher of the library's consumer."""

    def __init__(self) -> None:
        self._fetch_task = asyncio.get_running_loop().create_future()
        self._fetch_waiters: set[asyncio.Future[None]] = set()
        self._fetcher_timeout = 0.2
        self._fetch_max_wait_ms = 500

    def _create_fetch_waiter(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fetch_waiters.add(waiter)
        waiter.add_done_callback(self._fetch_waiters.remove)
        return waiter

    def _notify(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)


class Library:
    """Stands for a consumer of the library that has records without end."""

    def __init__(self) -> None:
        self.polls: list[float] = []
        self.is_paused = False
        self.parked = False
        self.error: Exception | None = None
        self.fetched = 0
        self._client = SimpleNamespace(
            _sync_task=asyncio.get_running_loop().create_future(), _conns={}
        )
        self._fetcher = Fetcher()

    def assignment(self) -> set[TopicPartition]:
        return {PLACE}

    def pause(self, *places: TopicPartition) -> None:
        self.is_paused = self.is_paused or bool(places)

    def resume(self, *places: TopicPartition) -> None:
        self.is_paused = self.is_paused and not places

    def arrive(self) -> None:
        """Have records again."""
        self.is_paused = False
        for waiter in tuple(self._fetcher._fetch_waiters):
            self._fetcher._notify(waiter)

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, Any]:
        assert max_records > 0
        self.polls.append(asyncio.get_running_loop().time())
        if self.parked:
            await asyncio.sleep(1e9)
        if self.error is not None:
            raise self.error
        if self.is_paused:
            return {}
        await asyncio.sleep(0.001)
        first, self.fetched = self.fetched, self.fetched + max_records
        return {PLACE: range(first, self.fetched)}


class Here:
    """Stands for brokers that are where they were, unless ``gone``: the looks until that shows."""

    def __init__(self) -> None:
        self.gone: int | None = None

    async def reachable(self) -> bool:
        return self.gone is None

    def silent(self) -> bool:
        return False

    async def moved(self) -> bool:
        assert self.gone is not None
        self.gone -= 1
        return self.gone == 0


def all_readable() -> Any:
    return SimpleNamespace(
        busy=False,
        unanswered=False,
        keeps=lambda partition: False,
        look_for_leaders=lambda: None,
        look_for_refusals=lambda: None,
        look_for_silent_leaders=lambda: None,
        forget_silent_leaders=lambda: None,
        look_for_transactions=lambda: None,
    )


class Case:
    """A fetching that runs, and hands out what it gets."""

    def __init__(
        self, window: int, *, window_bytes: int = 4_194_304, size: int = 0, **options: Any
    ) -> None:
        self.size = size
        self.most_bytes = 0
        self.library = Library()
        self.stop = asyncio.Event()
        self.stats: Counter[str] = Counter()
        self.deliveries: list[Delivery] = []
        self.most = 0
        self.assignment: Assignment | None = None
        self.assign()
        self.here = Here()
        self.looks = self.told = 0
        guard = all_readable()
        self.running = Fetching(
            self.library,
            KafkaConfig("h", **options),
            window,
            lambda: self.assignment,
            self.take,
            self.stats,
            "consumer 'x'",
            guard,
            PartitionPauses(self.library, guard, lambda: self.assignment, 10, self.stats, "x"),
            cast("Any", self.here),
            self.look,
            self.handed_out,
            window_bytes=window_bytes,
        )
        self.task = asyncio.ensure_future(self.running.run(self.stop))

    async def look(self) -> None:
        self.looks += 1

    def handed_out(self) -> None:
        self.told += 1

    def assign(self) -> None:
        assignment = self.assignment = Assignment(1)
        assignment.trackers[PLACE] = PartitionTracker(assignment, PLACE)

    def take(self, fetched: Fetched) -> None:
        assert self.assignment is not None
        tracker = self.assignment.trackers[PLACE]
        for offset in fetched[PLACE]:
            delivery = Delivery(Envelope(topic="t"), token=int(str(offset)), tracker=tracker)
            delivery.epoch = 1
            tracker.slots.append(delivery)
            self.assignment.unsettled += 1
            self.deliveries.append(delivery)
        self.most = max(self.most, self.assignment.unsettled)

    async def end(self) -> None:
        self.stop.set()
        assert await self.task


@pytest.mark.parametrize("window", [1, 2, 63, 64, 200])
async def test_no_more_than_the_window_is_unsettled_and_each_that_is_makes_room(
    window: int,
) -> None:
    case = Case(window)
    await asyncio.sleep(1)
    assert len(case.deliveries) == window
    for count in range(1, 2 * window):
        case.deliveries[count - 1].settle()
        await asyncio.sleep(0.5)
        assert len(case.deliveries) == window + count
    assert case.most == window
    await case.end()


async def test_a_big_window_is_refilled_in_one_go() -> None:
    case = Case(100)
    await asyncio.sleep(1)
    before = len(case.library.polls)
    for delivery in case.deliveries[:50]:
        delivery.settle()
    await asyncio.sleep(0.005)
    assert len(case.deliveries) == 150
    assert len(case.library.polls) == before + 1
    await case.end()


async def test_a_full_window_is_polled_over_so_that_the_member_stays() -> None:
    case = Case(10, max_poll_interval=40)
    await asyncio.sleep(30)
    gaps = [b - a for a, b in zip(case.library.polls, case.library.polls[1:], strict=False)]
    assert max(gaps) < 15
    assert len(case.deliveries) == 10
    assert case.library.is_paused
    case.deliveries[3].settle()
    await asyncio.sleep(0.1)
    assert len(case.deliveries) == 11
    assert not case.library.is_paused
    await case.end()


async def test_a_paused_partition_stays_paused_when_there_is_room_again() -> None:
    case = Case(10)
    await asyncio.sleep(30)
    assert case.assignment is not None
    case.assignment.trackers[PLACE].paused = True
    case.deliveries[0].settle()
    await asyncio.sleep(1)
    assert case.library.is_paused
    await case.end()


async def test_it_ends_when_nothing_is_settled_for_too_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    case = Case(10, max_poll_interval=40)
    await asyncio.sleep(30)
    case.deliveries[0].settle()
    settled = loop.time()
    assert await case.task is False
    assert 39 < loop.time() - settled < 42
    assert case.stats == Counter({"kafka.stalled": 1})
    assert "consumer 'x': nothing was settled for 40 s" in caplog.text


async def test_while_there_is_room_a_handler_may_take_any_time() -> None:
    async def nothing(**options: int) -> dict[TopicPartition, Any]:
        return {}

    case = Case(10, max_poll_interval=40)
    await asyncio.sleep(1)
    case.library.getmany = nothing  # type: ignore[method-assign]
    case.deliveries[0].settle()
    await asyncio.sleep(400)
    assert not case.task.done()
    assert len(case.deliveries) == 10
    await case.end()


async def test_it_stops_at_once_though_the_window_is_full() -> None:
    loop = asyncio.get_running_loop()
    case = Case(10)
    await asyncio.sleep(7)
    began = loop.time()
    await case.end()
    assert loop.time() - began < 0.1


async def test_it_stops_though_the_library_waits_for_an_assignment() -> None:
    loop = asyncio.get_running_loop()
    case = Case(10)
    case.library.parked = True
    await asyncio.sleep(1)
    assert case.library.polls
    began = loop.time()
    await case.end()
    assert loop.time() - began < 2.0


async def test_it_goes_on_with_the_next_assignment() -> None:
    case = Case(10)
    await asyncio.sleep(7)
    assert case.assignment is not None
    case.assignment.end()
    case.library.is_paused = False
    case.assign()
    await asyncio.sleep(1)
    assert len(case.deliveries) == 20
    # Of the last one: nothing waits for them.
    for delivery in case.deliveries[:10]:
        delivery.settle()
    await asyncio.sleep(1)
    assert len(case.deliveries) == 20
    await case.end()


def while_paused(case: Case, happens: Callable[[], dict[TopicPartition, Any]]) -> None:
    """Let something happen in the next poll over a window that is full."""
    poll, left = case.library.getmany, [happens]

    async def getmany(**options: int) -> dict[TopicPartition, Any]:
        if case.library.is_paused and left:
            return left.pop()()
        return await poll(**options)

    case.library.getmany = getmany  # type: ignore[method-assign]


async def test_what_comes_although_all_is_paused_is_taken() -> None:
    case = Case(10)
    await asyncio.sleep(1)
    while_paused(case, lambda: {PLACE: range(10, 11)})
    await asyncio.sleep(7)
    assert len(case.deliveries) == 11
    assert case.library.is_paused
    await case.end()


async def test_what_is_settled_while_a_full_window_is_polled_over_makes_room() -> None:
    def settle() -> dict[TopicPartition, Any]:
        case.deliveries[0].settle()
        return {}

    case = Case(10)
    await asyncio.sleep(1)
    while_paused(case, settle)
    await asyncio.sleep(7)
    assert len(case.deliveries) == 11
    await case.end()


async def test_what_is_taken_away_while_a_full_window_is_polled_over_is_not_resumed() -> None:
    def end() -> dict[TopicPartition, Any]:
        assert case.assignment is not None
        case.assignment.end()
        return {}

    case = Case(10)
    await asyncio.sleep(1)
    while_paused(case, end)
    await asyncio.sleep(7)
    # The next assignment decides about that.
    assert case.library.is_paused
    case.assign()
    case.library.arrive()
    await asyncio.sleep(1)
    assert len(case.deliveries) == 20
    await case.end()


async def test_it_ends_in_time_when_asked_to() -> None:
    case = Case(10)
    await case.end()
    loop = asyncio.get_running_loop()
    case.library.is_paused = True
    began = loop.time()
    assert await case.running.run(asyncio.Event(), began + 3.0)
    assert 3.0 <= loop.time() - began < 3.5


async def test_errors_of_the_library_end_it() -> None:
    case = Case(10)
    case.library.error = kafka.KafkaError("odd")
    with pytest.raises(kafka.KafkaError, match="odd"):
        await case.task


@pytest.mark.parametrize("which", ["_client._sync_task", "_fetcher._fetch_task"])
async def test_a_task_of_the_library_that_has_ended_ends_it(which: str) -> None:
    case = Case(10)
    case.library.is_paused = True
    operator.attrgetter(which)(case.library).cancel()
    with pytest.raises(kafka.KafkaError, match="task of the library"):
        await case.task


async def test_what_taking_waits_for_is_waited_for() -> None:
    case = Case(10)
    await case.end()
    gate = asyncio.Event()

    async def take(fetched: Fetched) -> None:
        await gate.wait()

    guard = all_readable()
    fetching = Fetching(
        case.library,
        KafkaConfig("h"),
        10,
        lambda: None,
        take,
        Counter(),
        "consumer 'x'",
        guard,
        PartitionPauses(case.library, guard, lambda: None, 10, Counter(), "x"),
        cast("Any", case.here),
        case.look,
        case.handed_out,
        window_bytes=1_000,
    )
    stop = asyncio.Event()
    task = asyncio.ensure_future(fetching.run(stop))
    await asyncio.sleep(5)
    polls = len(case.library.polls)
    gate.set()
    await asyncio.sleep(1)
    assert len(case.library.polls) > polls
    stop.set()
    await task


@pytest.mark.parametrize("stuck", [False, True])
async def test_it_ends_when_the_cluster_is_somewhere_else(stuck: bool) -> None:
    case = Case(10)
    # The library waits for the group, or for records.
    case.library.parked, case.library.is_paused = stuck, not stuck
    await asyncio.sleep(5)
    assert not case.task.done()
    case.here.gone = 3
    with pytest.raises(ConnectionError, match="other addresses"):
        await case.task
    assert case.here.gone == 0


async def test_who_receives_nothing_asks_seldom_and_has_brokers_wait_longer() -> None:
    case = Case(10)
    library, fetcher = case.library, case.library._fetcher
    library.is_paused = True
    await asyncio.sleep(10)
    assert fetcher._fetcher_timeout >= 1.0
    assert fetcher._fetch_max_wait_ms == 5_000
    before = len(library.polls)
    await asyncio.sleep(100)
    assert len(library.polls) - before <= 101
    library.arrive()
    await asyncio.sleep(0.01)
    assert len(case.deliveries) == 10
    assert fetcher._fetch_max_wait_ms == 500
    await case.end()


async def test_brokers_do_not_wait_longer_while_anything_is_unsettled() -> None:
    # Partitions may be paused: a fetch that is under way does not ask for them when they are
    # resumed.
    case = Case(10)
    await asyncio.sleep(1)
    for delivery in case.deliveries[1:]:
        case.library.is_paused = True
        delivery.settle()
    case.library.is_paused = True
    await asyncio.sleep(10)
    assert case.library._fetcher._fetch_max_wait_ms == 500
    for delivery in case.deliveries:
        delivery.settle()
    await asyncio.sleep(10)
    assert case.library._fetcher._fetch_max_wait_ms == 5_000
    await case.end()


async def test_it_stops_at_once_though_there_are_no_records() -> None:
    loop = asyncio.get_running_loop()
    case = Case(10)
    case.library.is_paused = True
    await asyncio.sleep(10.5)
    began = loop.time()
    await case.end()
    assert loop.time() == began


async def test_who_receives_has_reached_a_broker() -> None:
    case = Case(10)
    case.library.is_paused = True
    case.here.gone = 100
    await asyncio.sleep(2.5)
    assert case.running.brokers.name == "AWAY"
    case.library.arrive()
    await asyncio.sleep(0.01)
    assert case.running.brokers.name == "ANSWERING"
    await case.end()


async def test_brokers_do_not_keep_a_fetch_so_long_that_it_times_out() -> None:
    case = Case(10, request_timeout=1.0)
    case.library.is_paused = True
    await asyncio.sleep(10)
    assert case.library._fetcher._fetch_max_wait_ms == 500
    await case.end()


class Connection:
    """A connection of the library that is never used again."""

    def __init__(self, *, owes: bool = False) -> None:
        self._last_action = asyncio.get_running_loop().time()
        self._requests = [1] if owes else []
        self.closed: list[Any] = []

    def connected(self) -> bool:
        return not self.closed

    def close(self, reason: Any = None) -> None:
        self.closed.append(reason)


async def test_only_the_connection_that_an_idle_consumer_does_not_use_is_closed() -> None:
    case = Case(10)
    case.library.is_paused = True
    unused, asked, fetches, of_group = (
        Connection(),
        Connection(owes=True),
        Connection(),
        Connection(),
    )
    case.library._client._conns = {
        (1, ConnectionGroup.DEFAULT): unused,
        (2, ConnectionGroup.DEFAULT): asked,
        (1, "fetches"): fetches,
        (1, ConnectionGroup.COORDINATION): of_group,
    }
    await asyncio.sleep(14)
    assert not unused.closed
    await asyncio.sleep(3)
    assert unused.closed == [CloseReason.IDLE_DROP]
    assert [*asked.closed, *fetches.closed, *of_group.closed] == []
    await case.end()


class Broker:
    """A client of the library whose requests are never answered, and end a little late."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._metadata_max_age_ms = 1000
        self.cluster = SimpleNamespace(leader_for_partition=lambda place: 1)
        self.asked = self.ending = 0

    async def send(self, node: int, request: Any) -> None:
        self.asked += 1
        try:
            await self._loop.create_future()
        finally:
            self.ending += 1
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("later", ["another assignment", "none"])
async def test_fetching_ends_also_while_it_waits_for_fetches_of_lost_partitions(later: str) -> None:
    broker, state = Broker(), SubscriptionState()
    state.subscribe({"t"})
    state.assign_from_subscribed({PLACE})
    state.seek(PLACE, 0)
    fetcher = LibraryFetcher(broker, state)
    await asyncio.sleep(0.01)
    assert broker.asked == 1
    if later == "none":
        state.unsubscribe()
    else:
        state.assign_from_subscribed({PLACE})
        state.seek(PLACE, 0)
    while not broker.ending:
        await asyncio.sleep(0)

    began = asyncio.get_running_loop().time()
    await end_tasks(SimpleNamespace(_coordinator=None, _fetcher=fetcher), 5.0)
    assert fetcher._fetch_task.done()
    assert all(task.done() for task in fetcher._pending_tasks)
    assert asyncio.get_running_loop().time() - began < 1.0


async def test_a_group_ends_also_while_it_waits_for_the_end_of_its_heartbeats() -> None:
    coordinator, event = SimpleNamespace(_heartbeat_task=None), asyncio.Event()

    async def beat() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await event.wait()
        await asyncio.sleep(0)

    async def coordinate() -> None:
        # As the library does at each rebalance.
        while True:
            coordinator._heartbeat_task = asyncio.create_task(beat())
            await asyncio.sleep(0)
            coordinator._heartbeat_task.cancel()
            await coordinator._heartbeat_task
            coordinator._heartbeat_task = asyncio.create_task(beat())
            await event.wait()

    coordinator._coordination_task = asyncio.create_task(coordinate())
    heartbeats = None
    while heartbeats is None or not heartbeats.cancelling():
        await asyncio.sleep(0)
        heartbeats = coordinator._heartbeat_task
    await end_tasks(SimpleNamespace(_coordinator=coordinator, _fetcher=None), 5.0)
    assert coordinator._coordination_task.done()
    assert coordinator._heartbeat_task.done()
    assert coordinator._heartbeat_task is not heartbeats
