"""The history of topics: reading what they hold from one time to another, without a group."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from ....errors import ConfigurationError, ConnectFailed, TransportError, UnknownTopic
from ..._delivery import Delivery
from ..._envelope import Envelope
from ..._wire_formats import wire_format
from .._aiokafka_private import (
    check_libraries,
    client_of,
    find_topics,
    keep_connections,
    stop_consumer,
)
from .._client_options import common_options, fetch_options, renewed_options
from .._config import KafkaConfig
from .._errors import connect_problem, translate
from .._reachability import reach
from .._records import RecordCodec, StoredRecord
from .._topic_names import Names, Selection
from ._assignment import Assignment
from ._dispatcher import Dispatcher
from ._partition_guard import PartitionGuard
from ._start_positions import first_since
from ._unreadable_reports import Troubles

__all__ = ["read_history", "read_on", "read_record"]

_CLIENT = "spa-dat-history"
_WAIT = 200
_STOP_TIMEOUT = 3.0
# Something of each partition is in memory, and a topic may have a thousand of them. A larger record
# still comes, alone.
_FETCHED_OF_A_PARTITION = 65_536

_Offsets: TypeAlias = Mapping[TopicPartition, int]
# From the ends of all partitions: where to begin in each, and where to end.
_Bounds: TypeAlias = Callable[[Any, _Offsets], Awaitable[tuple[_Offsets, _Offsets]]]


async def read_history(
    config: KafkaConfig, filters: Sequence[str], *, since: int, until: int | None = None
) -> AsyncGenerator[tuple[float, Envelope], None]:
    """Yield what topics hold, with the time of each record in seconds since 1970 (UTC).

    In each partition that is from the first record that is not older than ``since``, to the first
    one that is not older than ``until``, or to the end that there is now. Partitions keep their
    order, and what is older in one of them comes before what is younger in another. It is not known
    to the cluster who reads, and nothing is committed.

    Args:
        config: the configuration.
        filters: plain ones, of addresses.
        since: in milliseconds since 1970 (UTC).
        until: in milliseconds since 1970 (UTC); None for the end.

    Raises:
        ConfigurationError: a filter cannot match, or matches no topic.
        UnknownTopic, NotAuthorised: a topic does not exist, or may not be read.
        ConnectFailed: no connection, or nothing comes any more.
        TransportError: a partition cannot be read.
    """

    async def times(consumer: Any, ends: _Offsets) -> tuple[_Offsets, _Offsets]:
        begins = await first_since(consumer, ends, since)
        if until is None:
            return begins, ends
        found = await first_since(consumer, ends, until)
        return begins, {place: min(end, found[place]) for place, end in ends.items()}

    async with contextlib.aclosing(_read(config, filters, times)) as records:
        async for found in records:
            yield found


async def read_on(
    config: KafkaConfig, filter_: str, *, since: int, read: dict[int, int]
) -> AsyncGenerator[Envelope, None]:
    """Yield what has come to a topic since it was last read, or what it holds the first time.

    Args:
        config: the configuration.
        filter_: plain, for one topic.
        since: as for `read_history`; for partitions that were not read before.
        read: by partition, the offset to go on from. It has the new ones when all was read. One
            that is less than before is that of a topic that was recreated, of which that partition
            was read from its start.

    Raises:
        ConfigurationError, UnknownTopic, NotAuthorised, TransportError: as `read_history`.
    """
    reached: dict[int, int] = {}

    async def rest(consumer: Any, ends: _Offsets) -> tuple[_Offsets, _Offsets]:
        reached.update({place.partition: end for place, end in ends.items()})
        new = {place: end for place, end in ends.items() if place.partition not in read}
        begins = dict(await first_since(consumer, new, since))
        for place in ends.keys() - new.keys():
            before = read[place.partition]
            begins[place] = before if before <= ends[place] else 0
        return begins, ends

    async with contextlib.aclosing(_read(config, [filter_], rest)) as records:
        async for _, envelope in records:
            yield envelope
    read.update(reached)


async def read_record(
    config: KafkaConfig, filter_: str, partition: int, offset: int
) -> Envelope | None:
    """Return the message of one record of a topic; None if it is not there any more.

    Args:
        config: the configuration.
        filter_: plain, for one topic.
        partition: where it is.
        offset: likewise.

    Raises:
        ConfigurationError, UnknownTopic, NotAuthorised, TransportError: as `read_history`.
    """

    async def one(consumer: Any, ends: _Offsets) -> tuple[_Offsets, _Offsets]:
        wanted = {
            place: offset
            for place, end in ends.items()
            if place.partition == partition and offset < end
        }
        return {**ends, **wanted}, {**ends, **dict.fromkeys(wanted, offset + 1)}

    async with contextlib.aclosing(_read(config, [filter_], one)) as records:
        async for _, envelope in records:
            return envelope
    return None


async def _read(
    config: KafkaConfig, filters: Sequence[str], bounds: _Bounds
) -> AsyncGenerator[tuple[float, Envelope], None]:
    check_libraries()
    names = Names(config)
    selection = names.selection(filters)
    stats: Counter[str] = Counter()
    reading = _Reading(config, names, filters, selection.exact, stats)
    consumer = None
    try:
        try:
            await reach(config, _CLIENT)
            consumer = _consumer(config)
            guard = PartitionGuard(consumer, Troubles(_CLIENT, stats))
            async with asyncio.timeout(config.start_timeout):
                await consumer.start()
                guard.start()
                spans = await _spans(consumer, config, selection, filters, bounds)
        except Exception as error:  # noqa: BLE001 (whatever the library raises)
            problem = connect_problem(error, config.address, config.login.username)
            raise problem.error from (None if problem.error is error else error)
        async for record in _merged(consumer, guard, spans, config):
            envelope = reading.decoded(record)
            if envelope is not None:
                yield record.timestamp / 1000, envelope
    finally:
        if consumer is not None:
            await stop_consumer(consumer, _STOP_TIMEOUT)


def _consumer(config: KafkaConfig) -> Any:
    consumer = AIOKafkaConsumer(
        **common_options(config, _CLIENT),
        **fetch_options(config.window_bytes)
        | {"max_partition_fetch_bytes": _FETCHED_OF_A_PARTITION},
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        # Only applies to what retention removes meanwhile.
        auto_offset_reset="earliest",
    )
    keep_connections(client_of(consumer), partial(renewed_options, config), config.connect_timeout)
    return consumer


async def _spans(
    consumer: Any,
    config: KafkaConfig,
    selection: Selection,
    filters: Sequence[str],
    bounds: _Bounds,
) -> dict[TopicPartition, int]:
    """Go to the beginning in each partition that has something; return where they end."""
    cluster = await client_of(consumer).fetch_all_metadata()
    missing = [name for name in selection.names if not cluster.partitions_for_topic(name)]
    if missing:
        # Among all topics a broker leaves out those that may not be seen.
        for code, name, *_ in await find_topics(client_of(consumer), missing):
            if code == kafka.TopicAuthorizationFailedError.errno:
                raise translate(kafka.TopicAuthorizationFailedError(name), f"topic {name!r}")
        raise UnknownTopic(f"there is no topic {missing[0]!r} at {config.address}")
    places = [
        TopicPartition(topic, number)
        for topic in sorted(cluster.topics())
        if selection.selects(topic)
        for number in sorted(cluster.partitions_for_topic(topic) or ())
    ]
    if not places:
        wanted = ", ".join(map(repr, filters))
        raise ConfigurationError(f"no topic at {config.address} matches {wanted}")
    # Otherwise the client finds out that it does not know them, and waits before it asks.
    await client_of(consumer).set_topics(sorted({place.topic for place in places}))
    begins, ends = await bounds(consumer, await consumer.end_offsets(places))
    spans = {place: ends[place] for place in places if begins[place] < ends[place]}
    if spans:
        consumer.assign([*spans])
    for place in spans:
        consumer.seek(place, begins[place])
    return spans


async def _merged(
    consumer: Any,
    guard: PartitionGuard,
    spans: Mapping[TopicPartition, int],
    config: KafkaConfig,
) -> AsyncGenerator[StoredRecord, None]:
    """Yield the records of all partitions, the oldest of those that are first in theirs."""
    places = [*spans]
    numbers = {place: number for number, place in enumerate(places)}
    read: dict[TopicPartition, deque[StoredRecord]] = {}
    # Of partitions with records that were read: the time of the first, and the partition.
    first: list[tuple[int, int]] = []
    missing = set(places)
    # What is wrong with partitions, once all that comes before it was read.
    broken: dict[TopicPartition, str] = {}
    loop = asyncio.get_running_loop()
    give_up = loop.time() + config.request_timeout
    while missing or first:
        while missing:
            found = await consumer.getmany(*sorted(missing), timeout_ms=_WAIT)
            await _mend(consumer, guard, broken)
            for place, records in found.items():
                wanted = deque(record for record in records if record.offset < spans[place])
                if wanted:
                    read[place] = wanted
                    heapq.heappush(first, (wanted[0].timestamp, numbers[place]))
                    missing.discard(place)
            for place in sorted(missing & broken.keys()):
                raise TransportError(broken[place])
            # Markers of transactions are records that nobody gets to see.
            over = {place for place in missing if await consumer.position(place) >= spans[place]}
            missing -= over
            if found or over:
                give_up = loop.time() + config.request_timeout
            elif loop.time() > give_up:
                silent = min(missing)
                raise ConnectFailed(
                    f"partition {silent.partition} of topic {silent.topic!r} has sent nothing for"
                    f" {config.request_timeout:g} s, although it has records up to offset"
                    f" {spans[silent]}; check the brokers, and whether a transaction was left open"
                )
        if first:
            _, number = heapq.heappop(first)
            place = places[number]
            record = read[place].popleft()
            if read[place]:
                heapq.heappush(first, (read[place][0].timestamp, number))
            elif record.offset + 1 < spans[place]:
                missing.add(place)
                give_up = loop.time() + config.request_timeout
            yield record


async def _mend(consumer: Any, guard: PartitionGuard, broken: dict[TopicPartition, str]) -> None:
    """Read what can be read in another way; note what is wrong with other partitions."""
    for place, problem in [*guard.found.items()]:
        if not isinstance(problem.error, UnicodeDecodeError):
            del guard.found[place]
            broken[place] = (
                f"partition {place.partition} of topic {place.topic!r} cannot be read from offset"
                f" {problem.offset} on: {problem}"
            )
    if guard.found:
        await guard.mend(consumer.resume)


class _Reading:
    """Decodes records as a consumer does, as a receiver of its own.

    Args:
        config: the configuration.
        names: translates addresses.
        filters: what matches none of them is left out.
        exact: whether everything matches.
        stats: counts what cannot be decoded.
    """

    def __init__(
        self,
        config: KafkaConfig,
        names: Names,
        filters: Sequence[str],
        exact: bool,
        stats: Counter[str],
    ) -> None:
        self._now = 0.0
        self._dispatcher = Dispatcher(
            _CLIENT,
            # What has expired since is a part of the history, too.
            RecordCodec(names, stats, lambda: self._now),
            self,
            config.largest_received,
            wire_format(config.wire, names.name_of, names.reply_topic),
            stats,
        )
        self._dispatcher.select(filters, exact=exact)
        self._envelope: Envelope | None = None

    def decoded(self, record: StoredRecord) -> Envelope | None:
        """Return the message of a record; None if it is none, or matches no filter."""
        self._envelope = None
        self._now = record.timestamp / 1000
        self._dispatcher.hand_out_untracked(Assignment(1), [record])
        return self._envelope

    def deliver(self, delivery: Delivery, /) -> None:
        """See `Receiver.deliver`."""
        self._envelope = delivery.envelope

    def deliver_all(self, deliveries: Sequence[Delivery], /) -> None:
        """See `Receiver.deliver_all`."""
        for delivery in deliveries:
            self.deliver(delivery)

    def hold(self) -> None:
        """See `Receiver.hold`."""

    def resume(self, *, redelivered: bool) -> None:
        """See `Receiver.resume`."""
