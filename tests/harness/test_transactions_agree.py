"""What becomes of transactions on the simulated cluster, and on a real broker: the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.producer import message_accumulator as accumulator
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.record.util import calc_crc32c

from spa_dat.harness.kafka_cluster import Right
from spa_dat.testing import Kafka
from support.transactions import Bench, outcome, real_bench, simulated_bench

Program = Callable[[Bench], Awaitable[Any]]
PROGRAMS: dict[str, tuple[Program, Any]] = {}


def ends_with(expected: Any) -> Callable[[Program], Program]:
    """Run a program in the tests, and demand what it returns."""

    def add(program: Program) -> Program:
        PROGRAMS[program.__name__] = program, expected
        return program

    return add


@pytest.mark.virtual
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_the_simulated_cluster(name: str) -> None:
    program, expected = PROGRAMS[name]
    async with simulated_bench() as bench:
        assert await program(bench) == expected


@pytest.mark.kafka
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_a_real_broker(name: str, kafka: Kafka) -> None:
    program, expected = PROGRAMS[name]
    async with real_bench(kafka, f"{name}-") as bench:
        assert await program(bench) == expected


async def send(producer: Any, topic: str, *values: bytes, partition: int = 0, **more: Any) -> None:
    """Send records one after the other, and wait until each is stored."""
    for value in values:
        await producer.send_and_wait(topic, value, partition=partition, **more)


def identity(producer: Any) -> tuple[int, int]:
    manager = producer._txn_manager
    return manager.producer_id, manager.producer_epoch


@ends_with(
    (
        ([0, 0], [2, 1]),
        ([({}, 0), ({}, 0)], [({0: b"a", 1: b"b"}, 2), ({0: b"c"}, 1)]),
        [({0: b"a", 1: b"b", 3: b"d"}, 5), ({0: b"c"}, 2)],
        [({0: b"a", 1: b"b", 3: b"d"}, 5), ({0: b"c"}, 2)],
    )
)
async def committed(bench: Bench) -> Any:
    topic = await bench.topic("t", 2)
    producer = await bench.producer("p")
    await producer.begin_transaction()
    await send(producer, topic, b"a", b"b")
    await send(producer, topic, b"c", partition=1)
    open_ends = await bench.ends(topic), await bench.ends(topic, committed=False)
    seen = await bench.read(topic), await bench.read(topic, committed=False)
    await producer.commit_transaction()
    await bench.until_ends(topic, 3, 2)
    async with producer.transaction():
        await send(producer, topic, b"d")
    await bench.until_ends(topic, 5, 2)
    return open_ends, seen, await bench.read(topic), await bench.read(topic, committed=False)


@ends_with(([({3: b"c"}, 7)], [({0: b"a", 1: b"b", 3: b"c", 5: b"d"}, 7)]))
async def aborted(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    await producer.begin_transaction()
    await send(producer, topic, b"a", b"b")
    await producer.abort_transaction()
    await producer.begin_transaction()
    await send(producer, topic, b"c")
    await producer.commit_transaction()
    await bench.until_ends(topic, 5)
    await producer.begin_transaction()
    await send(producer, topic, b"d")
    await producer.abort_transaction()
    await bench.until_ends(topic, 7)
    return await bench.read(topic), await bench.read(topic, committed=False)


@ends_with(
    [
        ([1], [({0: b"0"}, 1)]),
        ([6], [({0: b"0", 2: b"2", 3: b"3"}, 6)]),
        ([9], [({0: b"0", 2: b"2", 3: b"3", 6: b"6"}, 9)]),
    ]
)
async def interleaved(bench: Bench) -> Any:
    topic = await bench.topic("t")
    first, second = await bench.producer("first"), await bench.producer("second")
    plain = await bench.producer(None)
    found = []
    await send(plain, topic, b"0")
    await first.begin_transaction()
    await send(first, topic, b"1")
    await second.begin_transaction()
    await send(second, topic, b"2")
    await send(plain, topic, b"3")
    await send(first, topic, b"4")
    await second.commit_transaction()
    await bench.until_ends(topic, 6, committed=False)
    found.append((await bench.ends(topic), await bench.read(topic)))
    await second.begin_transaction()
    await send(second, topic, b"6")
    await first.abort_transaction()
    await bench.until_ends(topic, 8, committed=False)
    found.append((await bench.ends(topic), await bench.read(topic)))
    await second.commit_transaction()
    await bench.until_ends(topic, 9)
    found.append((await bench.ends(topic), await bench.read(topic)))
    return found


@ends_with((["done", "done"], [0]))
async def nothing_in_it(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    found = []
    for end in (producer.commit_transaction, producer.abort_transaction):
        await producer.begin_transaction()
        found.append(await outcome(end()))
    return found, await bench.ends(topic, committed=False)


@ends_with(
    (
        [2],
        [True, 2, "ProducerFenced", "ProducerFenced"],
        [({2: b"c"}, 4)],
        [({0: b"a", 2: b"c"}, 4)],
    )
)
async def fenced_in_a_transaction(bench: Bench) -> Any:
    topic = await bench.topic("t")
    first = await bench.producer("p")
    await first.begin_transaction()
    await send(first, topic, b"a")
    second = await bench.producer("p")
    ends = await bench.ends(topic)
    found = [
        identity(second)[0] == identity(first)[0],
        identity(second)[1] - identity(first)[1],
        await outcome(send(first, topic, b"b")),
        await outcome(first.commit_transaction()),
    ]
    await second.begin_transaction()
    await send(second, topic, b"c")
    await second.commit_transaction()
    await bench.until_ends(topic, 4)
    return ends, found, await bench.read(topic), await bench.read(topic, committed=False)


@ends_with(
    (
        [1, "ProducerFenced", "AssertionError", "ProducerFenced", "AssertionError", "done"],
        [({0: b"b"}, 2)],
        None,
    )
)
async def fenced_outside_of_a_transaction(bench: Bench) -> Any:
    topic = await bench.topic("t")
    first = await bench.producer("p")
    second = await bench.producer("p")
    found: list[Any] = [identity(second)[1] - identity(first)[1]]
    await first.begin_transaction()
    future = await first.send(topic, b"a", partition=0)
    found += [await outcome(future), await outcome(first.commit_transaction())]
    third = await bench.producer("p")
    await second.begin_transaction()
    offsets = {TopicPartition(topic, 0): 1}
    group = bench.name("g")
    found.append(await outcome(second.send_offsets_to_transaction(offsets, group)))
    found.append(await outcome(second.abort_transaction()))
    await third.begin_transaction()
    await send(third, topic, b"b")
    found.append(await outcome(third.commit_transaction()))
    await bench.until_ends(topic, 2)
    return found, await bench.read(topic), await bench.committed("g", topic)


@ends_with((["ProducerFenced", "ProducerFenced"], [({}, 4)]))
async def fenced_at_the_end(bench: Bench) -> Any:
    topic = await bench.topic("t")
    found = []
    for number in range(2):
        first = await bench.producer("p")
        await first.begin_transaction()
        await send(first, topic, b"a")
        await bench.producer("p")
        end = first.abort_transaction if number else first.commit_transaction
        found.append(await outcome(end()))
    return found, await bench.read(topic)


@ends_with((["ProducerFenced", "ProducerFenced", 2], [({}, 2)], [({0: b"a"}, 2)]))
async def out_of_time(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p", transaction_timeout_ms=2000)
    await producer.begin_transaction()
    await send(producer, topic, b"a")
    await bench.until_ends(topic, 2)
    found: list[Any] = [
        await outcome(send(producer, topic, b"b")),
        await outcome(producer.commit_transaction()),
    ]
    later = await bench.producer("p")
    found.append(identity(later)[1] - identity(producer)[1])
    return found, await bench.read(topic), await bench.read(topic, committed=False)


@ends_with((["ProducerFenced"], [({}, 2)], None))
async def out_of_time_at_the_end(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p", transaction_timeout_ms=2000)
    await producer.begin_transaction()
    await send(producer, topic, b"a")
    await producer.send_offsets_to_transaction({TopicPartition(topic, 0): 1}, bench.name("g"))
    await bench.until_ends(topic, 2)
    found = [await outcome(producer.commit_transaction())]
    return found, await bench.read(topic), await bench.committed("g", topic)


@ends_with([None, 1, 1, 1, 1, 3])
async def offsets(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    group, place = bench.name("g"), TopicPartition(topic, 0)
    found = []
    for number, end in enumerate(
        (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction)
    ):
        await producer.begin_transaction()
        await producer.send_offsets_to_transaction({place: number + 1}, group)
        found.append(await bench.committed("g", topic))
        await end()
        # The next one of this id does not begin before the markers are written.
        async with producer.transaction():
            await send(producer, topic, b"x")
        found.append(await bench.committed("g", topic))
    return found


@ends_with([3, 3, 3, 3])
async def offsets_committed_by_others_meanwhile(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    group, place = bench.name("g"), TopicPartition(topic, 0)
    found = []
    for end in (producer.commit_transaction, producer.abort_transaction):
        await bench.commit("g", topic, 1)
        await producer.begin_transaction()
        await producer.send_offsets_to_transaction({place: 5}, group)
        await bench.commit("g", topic, 3)
        found.append(await bench.committed("g", topic))
        await end()
        async with producer.transaction():
            await send(producer, topic, b"x")
        found.append(await bench.committed("g", topic))
    return found


@ends_with(["done", 1])
async def offsets_beside_members(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    group, place = bench.name("g"), TopicPartition(topic, 0)
    # First: a member that joins before the broker knows the topic asks again in five minutes.
    await send(await bench.producer(None), topic, b"x")
    async with bench.consumer(group_id=group) as member:
        member.subscribe([topic])
        async with asyncio.timeout(60):
            await member.getone()
        await producer.begin_transaction()
        found = [await outcome(producer.send_offsets_to_transaction({place: 1}, group))]
        await producer.commit_transaction()
        async with producer.transaction():
            await send(producer, topic, b"y")
        found.append(await member.committed(place))
    return found


@ends_with((["GroupAuthorizationFailedError", "done"], [({0: b"lost", 1: b"kept"}, 3)]))
async def group_that_may_not_be_read(bench: Bench) -> Any:
    """Aborting tells the broker nothing then, so that the next commit publishes it all."""
    topic = await bench.topic("t")
    group = bench.forbidden(Right.READ_GROUP, "g")
    producer = await bench.producer("p")
    await producer.begin_transaction()
    await send(producer, topic, b"lost")
    offsets = {TopicPartition(topic, 0): 1}
    found = [
        await outcome(producer.send_offsets_to_transaction(offsets, group)),
        await outcome(producer.abort_transaction()),
    ]
    await producer.begin_transaction()
    await send(producer, topic, b"kept")
    await producer.commit_transaction()
    await bench.until_ends(topic, 3)
    return found, await bench.read(topic)


@ends_with(["TopicAuthorizationFailedError", "done", "TopicAuthorizationFailedError"])
async def topic_that_may_not_be_written(bench: Bench) -> Any:
    topic = await bench.topic("t")
    other = await bench.topic(bench.forbidden(Right.WRITE_TOPIC, "u"))
    producer = await bench.producer("p")
    await producer.begin_transaction()
    await send(producer, topic, b"lost")
    sending = await producer.send(other, b"refused", partition=0)
    found = [await outcome(producer.commit_transaction())]
    found.append(await outcome(producer.abort_transaction()))
    found.append(await outcome(sending) if sending.done() else "waits")
    sending.cancel()
    return found


@ends_with("TransactionalIdAuthorizationFailed")
async def transactional_id_that_may_not_be_used(bench: Bench) -> Any:
    return await outcome(bench.producer(bench.forbidden(Right.TRANSACT, "p")))


@ends_with(
    (["MessageSizeTooLargeError", "done", "OutOfOrderSequenceNumber", "done"], [({0: b"a"}, 3)])
)
async def too_large(bench: Bench) -> Any:
    """Committing succeeds without the record, and the next one is out of sequence."""
    topic = await bench.topic("t", max_message_bytes="1000")
    producer = await bench.producer("p")
    await producer.begin_transaction()
    await send(producer, topic, b"a")
    found = [
        await outcome(send(producer, topic, bytes(2000))),
        await outcome(producer.commit_transaction()),
    ]
    await bench.until_ends(topic, 2)
    await producer.begin_transaction()
    found.append(await outcome(send(producer, topic, b"b")))
    found.append(await outcome(producer.commit_transaction()))
    await bench.until_ends(topic, 3)
    return found, await bench.read(topic)


@ends_with(
    [
        "MessageSizeTooLargeError",
        "OutOfOrderSequenceNumber",
        "done",
        "OutOfOrderSequenceNumber",
        "done",
        "MessageSizeTooLargeError",
        "OutOfOrderSequenceNumber",
        "done",
        "OutOfOrderSequenceNumber",
        "done",
    ]
)
async def too_large_and_then_more(bench: Bench) -> Any:
    topic = await bench.topic("t", max_message_bytes="1000")
    found = []
    for first in (True, False):
        producer = await bench.producer(f"p{first}")
        await producer.begin_transaction()
        if not first:
            await send(producer, topic, b"a")
        found.append(await outcome(send(producer, topic, bytes(2000))))
        found.append(await outcome(send(producer, topic, b"b")))
        found.append(await outcome(producer.abort_transaction()))
        await producer.begin_transaction()
        found.append(await outcome(send(producer, topic, b"c")))
        found.append(await outcome(producer.abort_transaction()))
        await producer.stop()
    return found


@ends_with(False)
async def offsets_of_a_topic_that_is_missing(bench: Bench) -> Any:
    """The library asks again and again."""
    producer = await bench.producer("p")
    asked, enough = 0, asyncio.Event()
    ask = producer.client.send

    async def counted(node: int, request: Any, **more: Any) -> Any:
        nonlocal asked
        asked += isinstance(request, TxnOffsetCommitRequest)
        if asked > 3:
            enough.set()
        return await ask(node, request, **more)

    producer.client.send = counted
    await producer.begin_transaction()
    place = TopicPartition(bench.name("missing"), 0)
    sending = asyncio.ensure_future(
        producer.send_offsets_to_transaction({place: 1}, bench.name("g"))
    )
    async with asyncio.timeout(60):
        await enough.wait()
    returned = sending.done()
    sending.cancel()
    return returned


@ends_with(
    [
        "InvalidTxnState",
        "InvalidTxnState",
        "InvalidTxnState",
        "InvalidProducerIdMapping",
        "InvalidProducerIdMapping",
        "InvalidProducerEpoch",
        "InvalidProducerIdMapping",
        "InvalidProducerIdMapping",
        "InvalidProducerEpoch",
        "InvalidProducerIdMapping",
        "InvalidProducerIdMapping",
        "InvalidProducerEpoch",
        "OperationNotAttempted OperationNotAttempted UnknownTopicOrPartitionError",
        "InvalidRequestError",
        "InvalidTransactionTimeout",
        "InvalidTransactionTimeout",
        "InvalidTransactionTimeout",
        "done",
        "done",
        "done",
        "InvalidTxnState",
        "done",
        "done",
        "done",
        "InvalidProducerIdMapping",
        "done",
        "InvalidGroupIdError",
        "done",
        "UnknownTopicOrPartitionError",
        "done",
        "...",
        "done",
        "InvalidTxnState",
    ]
)
async def requests_out_of_place(bench: Bench) -> Any:
    topic, other = await bench.topic("t"), await bench.topic("u")
    producer = await bench.producer("p")
    identifier, group = bench.name("p"), bench.name("g")
    pid, epoch = identity(producer)
    # So that offsets can be stored at all.
    await bench.commit("other", topic, 0)
    add = [(topic, [0])]
    commit = [(topic, [(0, 1, "")])]
    found = await bench.ask(
        # Nothing has begun.
        EndTxnRequest(identifier, pid, epoch, True),
        EndTxnRequest(identifier, pid, epoch, False),
        TxnOffsetCommitRequest(identifier, group, pid, epoch, commit),
        # Nobody, somebody else, and too early and late.
        AddPartitionsToTxnRequest(bench.name("nobody"), pid, epoch, add),
        AddPartitionsToTxnRequest(identifier, pid + 1000, epoch, add),
        AddPartitionsToTxnRequest(identifier, pid, epoch + 1, add),
        AddOffsetsToTxnRequest(bench.name("nobody"), pid, epoch, group),
        AddOffsetsToTxnRequest(identifier, pid + 1000, epoch, group),
        AddOffsetsToTxnRequest(identifier, pid, epoch + 1, group),
        EndTxnRequest(bench.name("nobody"), pid, epoch, True),
        EndTxnRequest(identifier, pid + 1000, epoch, True),
        EndTxnRequest(identifier, pid, epoch + 1, True),
        AddPartitionsToTxnRequest(identifier, pid, epoch, [(topic, [0, 1]), (other, [0])]),
        InitProducerIdRequest("", 1000),
        InitProducerIdRequest(bench.name("q"), 0),
        InitProducerIdRequest(bench.name("q"), -5),
        InitProducerIdRequest(bench.name("q"), 900_001),
        InitProducerIdRequest(bench.name("q"), 900_000),
        # In a transaction.
        AddPartitionsToTxnRequest(identifier, pid, epoch, add),
        AddPartitionsToTxnRequest(identifier, pid, epoch, add),
        TxnOffsetCommitRequest(identifier, group, pid, epoch, commit),
        AddOffsetsToTxnRequest(identifier, pid, epoch, group),
        AddOffsetsToTxnRequest(identifier, pid, epoch, ""),
        TxnOffsetCommitRequest(identifier, group, pid, epoch, commit),
        TxnOffsetCommitRequest(identifier, group, pid + 1000, epoch, commit),
        TxnOffsetCommitRequest(identifier, bench.name("h"), pid, epoch, commit),
        TxnOffsetCommitRequest(identifier, "", pid, epoch, commit),
        TxnOffsetCommitRequest(bench.name("nobody"), group, pid, epoch, commit),
        TxnOffsetCommitRequest(identifier, group, pid, epoch, [(topic, [(0, 1, ""), (7, 1, "")])]),
        EndTxnRequest(identifier, pid, epoch, True),
    )
    await bench.until_ends(topic, 1, committed=False)
    found.append("...")
    found += await bench.ask(
        EndTxnRequest(identifier, pid, epoch, True),
        EndTxnRequest(identifier, pid, epoch, False),
    )
    return found


async def read_keys(bench: Bench, topic: str) -> Any:
    """Read it all by offset, and return where the reader gets to."""
    (end,) = await bench.ends(topic)
    found = []
    async with bench.consumer() as consumer, asyncio.timeout(60):
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        while (position := await consumer.position(place)) < end:
            for batch in (await consumer.getmany(timeout_ms=20)).values():
                found += [(record.offset, record.key, record.value) for record in batch]
    return found, position


async def compact_until(bench: Bench, topic: str, offsets: list[int]) -> Any:
    """Let the topic be compacted until records with these offsets are left."""
    async with asyncio.timeout(60):
        while True:
            await bench.compact(topic)
            found, position = await read_keys(bench, topic)
            if [offset for offset, *_ in found] == offsets:
                return found, position
            await asyncio.sleep(0.05)


def compacted_topic(bench: Bench, **more: str) -> Awaitable[str]:
    return bench.topic(
        "t",
        1,
        cleanup_policy="compact",
        segment_ms="1000",
        min_cleanable_dirty_ratio="0",
        **more,
    )


async def roll(producer: Any, topic: str, key: bytes) -> None:
    """Begin a new segment with a record: a real broker does not compact the last one."""
    stamp = int(accumulator.time.time() * 1000) + 100_000 * (1 + key[0] - ord("A"))
    await producer.send_and_wait(topic, b"end", key=key, partition=0, timestamp_ms=stamp)


@ends_with(
    (
        [
            (1, b"b", b"2"),
            (2, b"a", b"3"),
            (4, b"c", None),
            (7, b"d", b"7"),
            (8, b"e", b"8"),
            (9, b"f", b"9"),
            (10, b"A", b"end"),
        ],
        11,
    )
)
async def compaction(bench: Bench) -> Any:
    topic = await compacted_topic(bench)
    producer = await bench.producer(None)
    for key, value in [(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"c", b"4"), (b"c", None)]:
        await producer.send_and_wait(topic, value, key=key, partition=0)
    batch = producer.create_batch()
    for key, value in [(b"d", b"5"), (b"e", b"6"), (b"d", b"7"), (b"e", b"8"), (b"f", b"9")]:
        batch.append(key=key, value=value, timestamp=None)
    await (await producer.send_batch(batch, topic, partition=0))
    await roll(producer, topic, b"A")
    return await compact_until(bench, topic, [1, 2, 4, 7, 8, 9, 10])


@ends_with(
    [
        ([(1, b"b", b"2"), (2, b"a", None), (3, b"A", b"end")], 4),
        ([(1, b"b", b"2"), (3, b"A", b"end"), (4, b"B", b"end")], 5),
    ]
)
async def compaction_of_tombstones(bench: Bench) -> Any:
    topic = await compacted_topic(bench, delete_retention_ms="0")
    producer = await bench.producer(None)
    for key, value in [(b"a", b"1"), (b"b", b"2"), (b"a", None)]:
        await producer.send_and_wait(topic, value, key=key, partition=0)
    found = []
    await roll(producer, topic, b"A")
    found.append(await compact_until(bench, topic, [1, 2, 3]))
    await roll(producer, topic, b"B")
    found.append(await compact_until(bench, topic, [1, 3, 4]))
    return found


@ends_with(
    [
        ([(1, b"b0", b"0"), (6, b"a", b"2"), (7, b"b2", b"2"), (9, b"A", b"end")], 10),
        (
            [
                (1, b"b0", b"0"),
                (6, b"a", b"2"),
                (7, b"b2", b"2"),
                (9, b"A", b"end"),
                (10, b"B", b"end"),
            ],
            11,
        ),
        (
            [
                (1, b"b0", b"0"),
                (6, b"a", b"2"),
                (7, b"b2", b"2"),
                (9, b"A", b"end"),
                (10, b"B", b"end"),
                (11, b"C", b"end"),
            ],
            12,
        ),
        (
            [
                (1, b"b0", b"0"),
                (6, b"a", b"2"),
                (7, b"b2", b"2"),
                (9, b"A", b"end"),
                (10, b"B", b"end"),
                (11, b"C", b"end"),
                (12, b"a", b"last"),
            ],
            14,
        ),
    ]
)
async def compaction_of_transactions(bench: Bench) -> Any:
    topic = await compacted_topic(bench, delete_retention_ms="0")
    producer = await bench.producer("p")
    found = []
    for number, end in enumerate(
        (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction)
    ):
        await producer.begin_transaction()
        for key in (b"a", b"b%d" % number):
            await producer.send_and_wait(topic, b"%d" % number, key=key, partition=0)
        await end()
    await bench.until_ends(topic, 9)
    plain = await bench.producer(None)
    for key in (b"A", b"B", b"C"):
        await roll(plain, topic, key)
        found.append(await compact_until(bench, topic, [1, 6, 7, *range(9, 9 + key[0] - 64)]))
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"last", key=b"a", partition=0)
    await producer.commit_transaction()
    await bench.until_ends(topic, 14)
    found.append(await read_keys(bench, topic))
    return found


@ends_with(
    [
        ([(1, b"a", b"2"), (2, b"A", b"end")], 3),
        ([(2, b"A", b"end"), (4, b"a", b"4"), (5, b"B", b"end"), (7, b"C", b"end")], 8),
    ]
)
async def compaction_beside_an_open_transaction(bench: Bench) -> Any:
    """What comes before it is compacted, and the rest is not."""
    topic = await compacted_topic(bench)
    plain, producer = await bench.producer(None), await bench.producer("p")
    for value in (b"1", b"2"):
        await plain.send_and_wait(topic, value, key=b"a", partition=0)
    await roll(plain, topic, b"A")
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"3", key=b"a", partition=0)
    await plain.send_and_wait(topic, b"4", key=b"a", partition=0)
    await roll(plain, topic, b"B")
    found = [await compact_until(bench, topic, [1, 2])]
    await producer.commit_transaction()
    await bench.until_ends(topic, 7)
    await roll(plain, topic, b"C")
    found.append(await compact_until(bench, topic, [2, 4, 5, 7]))
    return found


@ends_with(["UnknownError", "UnknownError", "done"])
async def record_without_a_key_to_a_compacted_topic(bench: Bench) -> Any:
    topic = await compacted_topic(bench)
    producer = await bench.producer(None, request_timeout_ms=1000)
    found = [await outcome(send(producer, topic, b"x"))]
    transactional = await bench.producer("p")
    await transactional.begin_transaction()
    found.append(await outcome(send(transactional, topic, b"x")))
    found.append(await outcome(transactional.commit_transaction()))
    await bench.until_ends(topic, 1)
    return found


@ends_with([b"245", b"245", b"245", b"45", b"45", b"5", b"", b"", b""])
async def reading_from_everywhere(bench: Bench) -> Any:
    topic = await bench.topic("t")
    first, second = await bench.producer("first"), await bench.producer("second")
    await first.begin_transaction()
    await second.begin_transaction()
    await send(first, topic, b"0", b"1")
    await send(second, topic, b"2")
    await first.abort_transaction()
    await bench.until_ends(topic, 4, committed=False)
    await send(second, topic, b"4")
    await first.begin_transaction()
    await send(first, topic, b"5")
    await second.commit_transaction()
    await bench.until_ends(topic, 7, committed=False)
    await first.commit_transaction()
    await bench.until_ends(topic, 8)
    found = []
    async with bench.consumer() as consumer, asyncio.timeout(60):
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        for start in range(9):
            consumer.seek(place, start)
            values = []
            while await consumer.position(place) < 8:
                for batch in (await consumer.getmany(timeout_ms=20)).values():
                    values += [record.value for record in batch]
            found.append(b"".join(values))
    return found


@ends_with([0, None, None, None, 0, 1, 2, None, 0, 1, 2, 3, 0, 1, 2, 3])
async def offsets_by_time(bench: Bench) -> Any:
    topic = await bench.topic("t")
    plain, producer = await bench.producer(None), await bench.producer("p")
    await send(plain, topic, b"0", timestamp_ms=1_700_000_001_000)
    await producer.begin_transaction()
    await send(producer, topic, b"1", timestamp_ms=1_700_000_002_000)
    await send(plain, topic, b"2", timestamp_ms=1_700_000_003_000)
    place = TopicPartition(topic, 0)
    found = []
    for _ in range(2):
        for level in ("read_committed", "read_uncommitted"):
            async with bench.consumer(isolation_level=level) as consumer:
                for second in (1, 2, 3, 4):
                    asked = {place: 1_700_000_000_000 + 1000 * second}
                    answer = (await consumer.offsets_for_times(asked))[place]
                    found.append(None if answer is None else answer.offset)
        if producer._txn_manager.is_in_transaction():
            await producer.abort_transaction()
            await bench.until_ends(topic, 4)
    return found


@ends_with([[2], [({2: b"2"}, 4)]])
async def records_deleted_in_a_transaction(bench: Bench) -> Any:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    await producer.begin_transaction()
    await send(producer, topic, b"0", b"1", b"2")
    client = AIOKafkaAdminClient(bootstrap_servers=bench.admin)
    await client.start()
    await client.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=2)})
    await client.close()
    found: list[Any] = [await bench.ends(topic)]
    await producer.commit_transaction()
    await bench.until_ends(topic, 4)
    found.append(await bench.read(topic))
    return found


def batch(
    producer: tuple[int, int], sequence: int, *, transactional: bool = True, control: bool = False
) -> bytes:
    builder = accumulator.BatchBuilder(10_000, 0, is_transactional=transactional)
    builder.append(timestamp=None, key=b"\0\0\0\1", value=b"x")
    builder._builder.set_producer_state(*producer, sequence)
    data = bytearray(builder._build())
    if control:
        data[22] |= 0x20
        data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)


@ends_with(
    (
        [
            "InvalidTxnState",
            "InvalidProducerIdMapping",
            "InvalidProducerEpoch",
            "InvalidProducerIdMapping",
            "TransactionalIdAuthorizationFailed",
            "done",
            "InvalidTxnState",
            "done",
            "UnknownError",
            "OutOfOrderSequenceNumber",
            "done",
            "done",
            "InvalidTxnState",
            "done",
            "OutOfOrderSequenceNumber",
            "done",
            "done",
            "InvalidTxnState",
            "done",
            "InvalidTxnState",
            "InvalidProducerEpoch",
            "InvalidTxnState",
            "InvalidTxnState",
            "done",
            "OutOfOrderSequenceNumber",
            "done",
            "InvalidProducerEpoch",
            "InvalidProducerEpoch",
            "done",
        ],
        [({0: b"x", 1: b"x", 2: b"x", 4: b"x"}, 7)],
    )
)
async def batches_out_of_place(bench: Bench) -> Any:
    topic = await bench.topic("t")
    # What is asked by hand is not asked again if the partition has no leader yet.
    await bench.until_ends(topic, 0)
    producer = await bench.producer("p")
    identifier = bench.name("p")
    me = pid, epoch = identity(producer)

    def produce(data: bytes, name: str | None = identifier) -> ProduceRequest:
        return ProduceRequest(name, -1, 5000, [(topic, [(0, data)])])

    add = AddPartitionsToTxnRequest(identifier, pid, epoch, [(topic, [0])])
    found = await bench.ask(
        produce(batch(me, 0)),
        produce(batch((pid + 1000, 0), 0)),
        produce(batch((pid, epoch + 1), 0)),
        produce(batch(me, 0), bench.name("nobody")),
        produce(batch(me, 0), None),
        produce(batch((-1, -1), -1)),
        produce(batch(me, 0, control=True)),
        add,
        produce(batch(me, 0, control=True)),
        produce(batch(me, 1)),
        produce(batch(me, 0)),
        produce(batch(me, 0)),
        produce(batch(me, 1, transactional=False)),
        produce(batch(me, 1), bench.name("nobody")),
        produce(batch(me, 3)),
        produce(batch(me, 1)),
        EndTxnRequest(identifier, pid, epoch, True),
    )
    async with asyncio.timeout(60):
        while (await bench.ends(topic)) != (await bench.ends(topic, committed=False)):
            await asyncio.sleep(0.01)
    found += await bench.ask(
        produce(batch(me, 2)),
        produce(batch(me, 2, transactional=False)),
        produce(batch(me, 0)),
    )
    await bench.producer("p")
    found += await bench.ask(
        produce(batch(me, 3)),
        produce(batch((pid, epoch + 1), 3)),
        produce(batch((pid, epoch + 1), 0)),
        AddPartitionsToTxnRequest(identifier, pid, epoch + 1, [(topic, [0])]),
        produce(batch((pid, epoch + 1), 3)),
        produce(batch((pid, epoch + 1), 0)),
        produce(batch(me, 3)),
        produce(batch(me, 3, transactional=False)),
        EndTxnRequest(identifier, pid, epoch + 1, False),
    )
    async with asyncio.timeout(60):
        while (await bench.ends(topic)) != (await bench.ends(topic, committed=False)):
            await asyncio.sleep(0.01)
    return found, await bench.read(topic)
