"""Programs of the plain client library that run on a simulated cluster and on a real one alike."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code

from spa_dat.harness import VirtualLoop
from spa_dat.harness.kafka_cluster import Right
from spa_dat.testing import Kafka
from support.simulated import SERVER, SimulatedCluster, world

__all__ = ["Bench", "RealBench", "SimulatedBench", "outcome", "real_bench", "simulated_bench"]

_DEADLINE = 60.0


class Bench(abc.ABC):
    """A cluster, and what programs do with it; the names of programs are their own.

    Args:
        server: where the cluster is.
        prefix: in front of all names on it.
        options: for all clients.
    """

    def __init__(self, server: str, prefix: str, **options: Any) -> None:
        self.server = server
        self.prefix = prefix
        self._options = {"bootstrap_servers": server, **options}
        self._producers: list[AIOKafkaProducer] = []

    def name(self, text: str) -> str:
        """Return the name on the cluster, unless it is one already."""
        return text if self.prefix in text else f"may-{self.prefix}{text}"

    @abc.abstractmethod
    def forbidden(self, right: Right, text: str) -> str:
        """Return the name on the cluster of something to which the programs lack a right."""

    @abc.abstractmethod
    async def compact(self, topic: str) -> None:
        """Let the cluster compact a topic, all of which can be compacted."""

    async def topic(self, name: str, partitions: int = 1, **configs: str) -> str:
        """Create a topic; options have underscores instead of dots."""
        client = AIOKafkaAdminClient(bootstrap_servers=self.admin)
        await client.start()
        try:
            settings = {key.replace("_", "."): value for key, value in configs.items()}
            new = NewTopic(self.name(name), partitions, 1, topic_configs=settings)
            answer = await client.create_topics([new])
            assert [code for _, code, *_ in answer.topic_errors] == [0], answer
        finally:
            await client.close()
        return self.name(name)

    @property
    def admin(self) -> str:
        """Where everything is allowed."""
        return self.server

    async def producer(self, identifier: str | None, **options: Any) -> Any:
        """Start a producer, transactional if it has an id."""
        settings = {**self._options, "retry_backoff_ms": 20, **options}
        if identifier is not None:
            settings["transactional_id"] = self.name(identifier)
        producer = AIOKafkaProducer(**settings)
        self._producers.append(producer)
        if identifier is not None:
            _look_at_failures(producer)
        async with asyncio.timeout(_DEADLINE):
            await producer.start()
        return producer

    @contextlib.asynccontextmanager
    async def consumer(self, **options: Any) -> AsyncIterator[Any]:
        """Start a consumer that commits nothing by itself, and stop it at the end."""
        consumer = AIOKafkaConsumer(
            **{
                "bootstrap_servers": self.admin,
                "auto_offset_reset": "earliest",
                "enable_auto_commit": False,
                "isolation_level": "read_committed",
                **options,
            }
        )
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()

    async def ends(self, topic: str, *, committed: bool = True) -> list[int]:
        """Return where each partition ends for a reader."""
        level = "read_committed" if committed else "read_uncommitted"
        async with self.consumer(isolation_level=level) as consumer:
            await consumer._client._wait_on_metadata(topic)
            places = [
                TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic))
            ]
            found = await consumer.end_offsets(places)
            return [found[place] for place in places]

    async def until_ends(self, topic: str, *ends: int, committed: bool = True) -> None:
        """Wait until the partitions end there."""
        async with asyncio.timeout(_DEADLINE):
            while await self.ends(topic, committed=committed) != list(ends):
                await asyncio.sleep(0.01)

    async def read(self, topic: str, *, committed: bool = True) -> list[Any]:
        """Read each partition to its end: records by offset, and the position at last."""
        level = "read_committed" if committed else "read_uncommitted"
        ends = await self.ends(topic, committed=committed)
        found = []
        async with self.consumer(isolation_level=level) as consumer, asyncio.timeout(_DEADLINE):
            for number, end in enumerate(ends):
                place = TopicPartition(topic, number)
                consumer.assign([place])
                await consumer.seek_to_beginning(place)
                records = {}
                while (position := await consumer.position(place)) < end:
                    for batch in (await consumer.getmany(timeout_ms=20)).values():
                        records.update({record.offset: record.value for record in batch})
                found.append((records, position))
        return found

    async def committed(self, group: str, topic: str, partition: int = 0) -> int | None:
        """Return the offset that a group has committed."""
        async with self.consumer(group_id=self.name(group)) as consumer:
            place = TopicPartition(topic, partition)
            consumer.assign([place])
            found: int | None = await consumer.committed(place)
            return found

    async def commit(self, group: str, topic: str, offset: int) -> None:
        """Commit an offset without a transaction."""
        async with self.consumer(group_id=self.name(group)) as consumer:
            place = TopicPartition(topic, 0)
            consumer.assign([place])
            await consumer.commit({place: offset})

    async def ask(self, *requests: Any) -> list[str]:
        """Send requests; return the names of the errors that they are answered with."""
        client = AIOKafkaClient(bootstrap_servers=self.admin, client_id="raw")
        await client.bootstrap()
        try:
            node = client.get_random_node()
            return [_error(await client.send(node, request)) for request in requests]
        finally:
            await client.close()

    async def close(self) -> None:
        """Stop the producers."""
        for producer in self._producers:
            async with asyncio.timeout(_DEADLINE):
                await producer.stop()


class SimulatedBench(Bench):
    """A simulated cluster on virtual time."""

    def __init__(self, here: SimulatedCluster) -> None:
        super().__init__(SERVER, "")
        self.here = here

    def forbidden(self, right: Right, text: str) -> str:
        self.here.cluster.deny(right, text)
        return text

    async def compact(self, topic: str) -> None:
        self.here.cluster.compact(topic)


class RealBench(Bench):
    """A real broker, which checks its logs for what can be compacted all the time."""

    def __init__(self, broker: Kafka, prefix: str) -> None:
        super().__init__(
            f"127.0.0.1:{broker.sasl_port}",
            prefix,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_plain_username="ann",
            sasl_plain_password="secret",
        )
        self._broker = broker

    @property
    def admin(self) -> str:
        return f"127.0.0.1:{self._broker.port}"

    def forbidden(self, right: Right, text: str) -> str:
        return f"not-{self.prefix}{text}"

    async def compact(self, topic: str) -> None:
        """It does so by itself all the time: wait for the next time."""


async def outcome(step: Awaitable[Any]) -> str:
    """Return what a step ends with: done, or the name of the error."""
    try:
        async with asyncio.timeout(_DEADLINE):
            await step
    except Exception as error:
        return type(error).__name__
    return "done"


@contextlib.asynccontextmanager
async def simulated_bench() -> AsyncIterator[SimulatedBench]:
    """Make a simulated cluster on the running loop, which has virtual time."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    with world() as here:
        bench = SimulatedBench(here)
        try:
            yield bench
        finally:
            await bench.close()


@contextlib.asynccontextmanager
async def real_bench(broker: Kafka, prefix: str) -> AsyncIterator[RealBench]:
    """Use a real broker."""
    bench = RealBench(broker, prefix)
    try:
        yield bench
    finally:
        await bench.close()


def _error(answer: Any) -> str:
    codes = [getattr(answer, "error_code", 0)]
    for _, partitions in getattr(answer, "errors", getattr(answer, "topics", ())):
        codes += [code for _, code, *_ in partitions]
    return " ".join(sorted(for_code(code).__name__ for code in codes if code)) or "done"


def _look_at_failures(producer: Any) -> None:
    """Look at the futures with errors that the library itself drops."""
    manager, accumulator = producer._txn_manager, producer._message_accumulator
    fail_all = accumulator.fail_all

    def failing_all(error: Exception) -> None:
        batches = [batch for batches in accumulator._batches.values() for batch in batches]
        fail_all(error)
        for batch in batches:
            if batch._drain_waiter.done():
                batch._drain_waiter.exception()

    accumulator.fail_all = failing_all
    sender = producer._sender
    request = sender._send_produce_req

    async def requesting(*args: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await request(*args)

    sender._send_produce_req = requesting
    for name in ("error_transaction", "fatal_error"):
        fail = getattr(manager, name)

        def failing(error: Exception, fail: Callable[[Exception], None] = fail) -> None:
            fail(error)
            manager._transaction_waiter.exception()

        setattr(manager, name, failing)
