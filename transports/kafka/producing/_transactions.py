"""Transactions: records and the offsets of what they came from, committed as a whole or not at all.

What the client library does not keep of its promises is dealt with here, and nowhere else:

- After a refusal it aborts without telling the broker, and the next commit publishes what was
  aborted. So nothing is ever aborted: a producer that has failed is closed, and the next one with
  its id ends what it has left open, also when it is unknown whether a commit has succeeded.
- It commits although a record was refused. So all records are confirmed before the commit.
- It waits forever for a topic whose offset cannot be committed, and for a sender that has ended. So
  each step is watched, and has a limit.
- Closing waits for confirmations, see `close_producer`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import aiokafka.errors as kafka
from aiokafka import AIOKafkaProducer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from ....errors import ConfigurationError, NotAuthorised, PublishRefused, SpaDatError, UnknownTopic
from ..._commit_steps import Reached
from .._aiokafka_private import (
    add_record,
    guard_transactions,
    keep_connections,
    overhear,
    producer_tasks,
    sees_topic,
    transaction_failure,
)
from .._client_options import common_options, renewed_options
from .._config import KafkaConfig
from .._errors import REACHABLE_FROM_HERE, broker_at, error_for, publish_refusal
from .._partitioner import hash_of
from .._records import Record
from ._closed_connections import ClosedConnections, ClosedOver, refused_publish
from ._closing import close_producer
from ._partition_queue import REFUSED_FOR_ALL, blames_records
from ._topic_creation import Topics

__all__ = ["Placed", "Refusals", "TransactionFailed", "TransactionalProducer"]

# Readers wait for what a program has left open, unless its successor ends it.
_TRANSACTION_TIMEOUT = 30.0
_MOST_FOR_A_STEP = 20.0
_UNKNOWN_AFTER = 3.0
_LOOK_AGAIN = 0.02
# What may be about the topic, and not about the cluster.
_ABOUT_THE_TOPIC = (ConfigurationError, NotAuthorised, UnknownTopic)


class Placed(NamedTuple):
    """A record, and where it goes.

    Attributes:
        record: the record.
        partition: its partition; None for the one that its key decides on, or for any.
    """

    record: Record
    partition: int | None = None


class Refusals(NamedTuple):
    """Which records a cluster refuses, so that a transaction with them can never be committed.

    Attributes:
        errors: by their places among those of the transaction.
        certain: whether each of them is to blame; otherwise some of them are, and committing them
            in batches of their own tells which.
    """

    errors: Mapping[int, SpaDatError]
    certain: bool


class TransactionFailed(Exception):
    """A transaction has failed; its producer is of no more use.

    It may have been committed all the same, unless records were refused. Whoever starts the next
    producer with the id reads what is committed.

    Attributes:
        refusals: what was refused; None if the reason is another one.
        began: when it began (loop time); infinite if that is not known.
    """

    def __init__(self, cause: BaseException, refusals: Refusals | None = None) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.refusals = refusals
        self.began = math.inf
        self.__cause__ = cause

    @property
    def fenced(self) -> bool:
        """Whether another producer with the id has been started."""
        return isinstance(self.__cause__, (kafka.ProducerFenced, kafka.InvalidProducerEpoch))


class TransactionalProducer:
    """One transactional producer of the library, from its start to its first failure.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        transactional_id: what its successor has, too.
        group: the consumer group whose offsets are committed.
        topics: creates topics that are missing.
        choice: source of the partitions of records without a key.
    """

    def __init__(
        self,
        config: KafkaConfig,
        client_id: str,
        transactional_id: str,
        group: str,
        topics: Topics,
        choice: random.Random,
    ) -> None:
        self._identifier = transactional_id
        self._group = group
        self._topics = topics
        self._choice = choice
        self._patience = min(config.request_timeout, _MOST_FOR_A_STEP)
        self._failed: BaseException | None = None
        self._closed = False
        most = max(config.max_batch, config.max_payload + 65_536)
        self._library = AIOKafkaProducer(
            **common_options(config, client_id),
            transactional_id=transactional_id,
            transaction_timeout_ms=int(_TRANSACTION_TIMEOUT * 1000),
            compression_type=config.compression,
            max_batch_size=config.max_batch,
            max_request_size=most,
            linger_ms=0,
        )
        client = self._library.client
        keep_connections(client, partial(renewed_options, config), config.connect_timeout)
        guard_transactions(self._library)
        # The last refusal by topic.
        self._answers: dict[str, int] = {}
        self._closings = ClosedConnections()
        # Fails when the broker closes its connections over what is sent.
        self._closed_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Which broker coordinates the transactions, as the cluster says; empty before.
        self._coordinator = ""
        overhear(
            client,
            joined=self._hear_of_coordinator,
            produced=self._hear,
            unanswered=self._hear_nothing,
        )

    async def start(self) -> None:
        """Connect, and fence all earlier producers with the id.

        Whatever one of them has begun is over when this returns: committed and readable, or
        aborted.

        Raises:
            NotAuthorised: the id may not be used.
            ConfigurationError: transactions may not last as long as ours may.
            OSError: no connection; TimeoutError is one.
            aiokafka.errors.KafkaError: the cluster refused.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._library.start()
            if self._closed:
                raise kafka.ProducerClosed
        except TimeoutError as error:
            await self._end()
            if not self._coordinator:
                raise
            raise ConnectionError(
                f"the coordinator of the transactional id {self._identifier!r},"
                f" {self._coordinator}, does not answer, while others do: {REACHABLE_FROM_HERE},"
                " and that enough of the brokers with the topic __transaction_state are up"
            ) from error
        except kafka.TransactionalIdAuthorizationFailed as error:
            await self._end()
            raise NotAuthorised(
                f"the cluster does not let us use the transactional id {self._identifier!r}; allow"
                " Write in its access rules"
            ) from error
        except kafka.InvalidTransactionTimeout as error:
            await self.close()
            raise ConfigurationError(
                f"the cluster does not let a transaction last {_TRANSACTION_TIMEOUT:g} s, as those"
                f" of {self._identifier!r} may: raise transaction.max.timeout.ms of its brokers"
            ) from error
        except BaseException:
            # Also what has come about since it was ended.
            await self._end()
            raise

    async def commit(
        self,
        records: Sequence[Placed],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        *,
        apart: bool = False,
        reached: Reached | None = None,
    ) -> dict[TopicPartition, int]:
        """Append records and commit offsets, all of it or nothing.

        Args:
            records: in the order of each partition.
            offsets: what the group has dealt with.
            apart: whether each record gets a batch of its own, to find out which ones are refused.
            reached: is told of steps on the way; None for nobody.

        Returns:
            the offset behind the last record in each partition.

        Raises:
            TransactionFailed: close it, and start the next one.
        """
        if self._failed is not None:
            raise TransactionFailed(self._failed)
        try:
            return await self._commit(records, offsets, apart=apart, reached=reached)
        except TransactionFailed as error:
            self._failed = error
            raise
        except asyncio.CancelledError as error:
            self._failed = error
            raise
        except Exception as error:
            self._failed = error
            raise TransactionFailed(error) from error

    async def close(self) -> None:
        """End it at once. Never raises; bounded in time."""
        if not self._closed:
            await self._end()

    async def _end(self) -> None:
        if self._failed is None:
            self._failed = kafka.ProducerClosed()
        self._closed = True
        await close_producer(self._library)

    async def _commit(
        self,
        records: Sequence[Placed],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        *,
        apart: bool,
        reached: Reached | None,
    ) -> dict[TopicPartition, int]:
        library = self._library
        names = [*dict.fromkeys(placed.record.name for placed in records)]
        finding = self._patience + len(names) * _UNKNOWN_AFTER
        places = await self._step(self._places(records, names), finding)
        await self._step(library.begin_transaction())
        ends: dict[TopicPartition, int]
        try:
            ends = await self._step(self._send(records, places, apart=apart))
        except ClosedOver as error:
            # What is too large for a request is the largest, sooner or later.
            index = max(range(len(records)), key=lambda at: records[at].record.size)
            record = records[index].record
            refusal = refused_publish(record.name, record.size)
            raise TransactionFailed(error, Refusals({index: refusal}, certain=True)) from error
        if reached is not None:
            await reached("sent")
        if offsets:
            # Without a copy the library would empty it.
            await self._step(library.send_offsets_to_transaction(dict(offsets), self._group))
        if reached is not None:
            await reached("offsets")
        await self._step(library.commit_transaction())
        return ends

    async def _step(self, step: Awaitable[Any], patience: float | None = None) -> Any:
        """Take a step within the time for it, and no longer than the library's sender lives."""
        seconds = self._patience if patience is None else patience
        task = asyncio.ensure_future(step)
        ending = [end for end in producer_tasks(self._library) if end is not None]
        ending.append(self._closed_over)
        try:
            await asyncio.wait(
                (task, *ending), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            for end in ending:
                if end.done():
                    why = None if end.cancelled() else end.exception()
                    if why is not None and type(why) is kafka.KafkaError:
                        # The library has words of its own for what it did not expect.
                        why = why.__cause__ or why
                    raise why or kafka.KafkaError("a task of the library has ended")
            raise TimeoutError(f"no answer within {seconds:g} s")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()

    # Where records go.

    async def _places(
        self, records: Sequence[Placed], names: Sequence[str]
    ) -> list[TopicPartition]:
        counts: dict[str, int] = {}
        refused: dict[str, SpaDatError] = {}
        for name in names:
            try:
                counts[name] = await self._partitions(name)
            except _ABOUT_THE_TOPIC as error:
                refused[name] = error
        if refused:
            errors = {
                index: refused[placed.record.name]
                for index, placed in enumerate(records)
                if placed.record.name in refused
            }
            raise TransactionFailed(next(iter(refused.values())), Refusals(errors, certain=True))
        anywhere: dict[str, int] = {}
        # Thousands of records go to few places.
        known = {
            name: [TopicPartition(name, number) for number in range(count)]
            for name, count in counts.items()
        }
        places = []
        for record, partition in records:
            name = record.name
            if partition is None:
                if record.key is not None:
                    partition = hash_of(record.key) % counts[name]
                else:
                    # Whole batches for one partition, instead of a part of each for all.
                    partition = anywhere.get(name)
                    if partition is None:
                        partition = anywhere[name] = self._choice.randrange(counts[name])
            places.append(known[name][partition])
        return places

    async def _partitions(self, name: str) -> int:
        """Return how many partitions a topic has; create it if it may be created.

        Raises:
            UnknownTopic, NotAuthorised, ConfigurationError: it cannot be used.
        """
        client = self._library.client
        count = sees_topic(client, name)
        if not count:
            await self._topics.ensure([name], _UNKNOWN_AFTER)
            await client.force_metadata_update()
            while not (count := sees_topic(client, name)):
                await asyncio.sleep(_LOOK_AGAIN)
                await client.force_metadata_update()
        return count

    # Sending.

    async def _send(
        self, records: Sequence[Placed], places: Sequence[TopicPartition], *, apart: bool
    ) -> dict[TopicPartition, int]:
        """Send records, and wait until all are appended."""
        sent: list[tuple[list[int], asyncio.Future[Any]]] = []
        for batch, place, indices in self._batches(records, places, apart=apart):
            future = await self._library.send_batch(batch, place.topic, partition=place.partition)
            # After the first error nobody looks at the others.
            future.add_done_callback(_look_at)
            sent.append((indices, future))
        if not sent:
            return {}
        await asyncio.wait([future for _, future in sent])
        self._refuse(records, [(indices, _error_of(future)) for indices, future in sent])
        ends: dict[TopicPartition, int] = {}
        for indices, future in sent:
            end = future.result().offset + len(indices)
            place = places[indices[0]]
            ends[place] = max(end, ends.get(place, 0))
        return ends

    def _batches(
        self, records: Sequence[Placed], places: Sequence[TopicPartition], *, apart: bool
    ) -> list[tuple[Any, TopicPartition, list[int]]]:
        batches: list[tuple[Any, TopicPartition, list[int]]] = []
        open_ones: dict[TopicPartition, tuple[Any, list[int]]] = {}
        for index, (placed, place) in enumerate(zip(records, places, strict=True)):
            current = None if apart else open_ones.get(place)
            if current is None or not self._add(current[0], placed.record, index):
                current = self._library.create_batch(), []
                if not self._add(current[0], placed.record, index):
                    topic = placed.record.name
                    error = PublishRefused(f"the message to {topic!r} takes no batch of its own")
                    raise TransactionFailed(error, Refusals({index: error}, certain=True))
                open_ones[place] = current
                batches.append((current[0], place, current[1]))
            current[1].append(index)
        return batches

    def _add(self, batch: Any, record: Record, index: int) -> bool:
        try:
            return add_record(batch, record.key, record.value, record.headers, record.timestamp)
        except (TypeError, ValueError, OverflowError) as error:
            refusal = PublishRefused(
                f"the message to topic {record.name!r} cannot be encoded as a record: {error}"
            )
            raise TransactionFailed(error, Refusals({index: refusal}, certain=True)) from error

    def _refuse(
        self,
        records: Sequence[Placed],
        outcomes: Sequence[tuple[list[int], BaseException | None]],
    ) -> None:
        """Raise what has failed, if anything: rather what is about records than what follows."""
        why = transaction_failure(self._library)
        if isinstance(why, kafka.TopicAuthorizationFailedError):
            forbidden = {
                index for index, one in enumerate(records) if one.record.name in why.args[0]
            }
            raise TransactionFailed(why, self._refusals(records, sorted(forbidden), why))
        first: BaseException | None = why
        blaming: BaseException | None = None
        # The places of what is refused for the same reason, by whether that is certain.
        blamed: dict[bool, list[int]] = {True: [], False: []}
        for indices, outcome in outcomes:
            error = self._said(records, indices, outcome)
            first = first or error
            if error is None or not blames_records(error):
                continue
            blaming = blaming or error
            if type(error) is type(blaming):
                certain = len(indices) == 1 or isinstance(error, REFUSED_FOR_ALL)
                blamed[certain] += indices
        if blaming is not None:
            certain = bool(blamed[True])
            refusals = self._refusals(records, blamed[certain], blaming, certain=certain)
            raise TransactionFailed(blaming, refusals)
        if first is not None:
            raise first

    def _said(
        self, records: Sequence[Placed], indices: Sequence[int], error: BaseException | None
    ) -> BaseException | None:
        if type(error) is kafka.UnknownError:
            # The library has one name for all codes that it does not know.
            said: BaseException = error_for(self._answers.get(records[indices[0]].record.name, -1))
            return said
        return error

    def _refusals(
        self,
        records: Sequence[Placed],
        indices: Sequence[int],
        error: BaseException,
        *,
        certain: bool = True,
    ) -> Refusals:
        errors = {}
        for index in indices:
            record = records[index].record
            errors[index] = publish_refusal(error, record.name, keyless=record.key is None)
        return Refusals(errors, certain)

    def _hear_nothing(self, places: Sequence[TopicPartition], closed: bool) -> None:
        count = self._closings.unanswered(places, closed)
        if self._closings.is_proof(places) and not self._closed_over.done():
            self._closed_over.set_exception(ClosedOver(count, "a transaction"))
            # Perhaps nothing waits.
            self._closed_over.exception()

    def _hear_of_coordinator(self, answer: Any) -> None:
        if not answer.error_code:
            self._coordinator = broker_at(answer.coordinator_id, answer)

    def _hear(self, topics: Any) -> None:
        for topic, partitions in topics:
            for number, code, *_ in partitions:
                self._closings.answered(topic, number)
                if code:
                    self._answers[topic] = code


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    error: BaseException | None
    if future.cancelled():
        error = kafka.KafkaError("the library has dropped a batch")
    else:
        error = future.exception()
    return error
