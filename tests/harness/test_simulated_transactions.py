"""Transactions on the simulated Kafka cluster: trouble at each step, harnesses, and rare cases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.producer import message_accumulator as accumulator
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest
from aiokafka.record import MemoryRecords
from aiokafka.record.util import calc_crc32c

from spa_dat import DistributedApplication
from spa_dat.harness.kafka_cluster import ErrorCode, RequestRefused, Right, TransactionState, serve
from spa_dat.harness.kafka_cluster._partition_log import Log
from spa_dat.harness.kafka_cluster._record_batches import encode_record
from spa_dat.harness.loop._network import ServerConnection
from spa_dat.testing import Faults, Harness
from support.hash_seeds import output_with_hash_seed
from support.simulated import SimulatedCluster
from support.transactions import SimulatedBench, outcome, simulated_bench

_HARNESS_SERVER = "kafka-1.simulated:9092"
_LAST_STEP = 40


class Breakdown:
    """Lets nothing of one client arrive from its n-th piece of data on, or nothing come back.

    Args:
        here: the cluster.
        client: the id of the client.
        count: how many pieces arrive.
        answered: whether the last one of them is answered.
    """

    def __init__(self, here: SimulatedCluster, client: str, count: int, *, answered: bool) -> None:
        self.struck = False
        self._healed = False
        self._client = client
        self._left = count
        self._answered = answered
        self._broken: list[ServerConnection] = []
        self._cluster = here.cluster
        here.network.listen("kafka", 9092, self._accepting)

    def heal(self) -> None:
        """Let the client notice, and connect again."""
        self._healed = True
        for connection in self._broken:
            connection.reset()

    def _accepting(self, connection: ServerConnection) -> None:
        serve(self._cluster, connection)
        handle = connection.on_data

        def on_data(data: bytes) -> None:
            if self._healed or self._client.encode() not in data:
                handle(data)
                return
            self._left -= 1
            if self._left >= 0:
                handle(data)
            if self._left < 0 or (self._left == 0 and not self._answered):
                self.struck = True
                connection.fall_silent()
                self._broken.append(connection)

        connection.on_data = on_data


async def copy(bench: SimulatedBench, client: str, **options: Any) -> None:
    """Copy what is left of a topic to another one, exactly once."""
    producer = await bench.producer("copy", client_id=client, **options)
    place = TopicPartition("in", 0)
    async with bench.consumer(client_id="reader", group_id="g") as consumer:
        consumer.assign([place])
        start = await consumer.committed(place) or 0
        consumer.seek(place, start)
        for _ in range(start, 3):
            record = await consumer.getone()
            await producer.begin_transaction()
            sent = await producer.send("out", record.value, partition=0)
            offsets = producer.send_offsets_to_transaction({place: record.offset + 1}, "g")
            for problem in await asyncio.gather(offsets, sent, return_exceptions=True):
                if isinstance(problem, Exception):
                    raise problem
            await producer.commit_transaction()


@pytest.mark.virtual
@pytest.mark.parametrize("answered", [True, False])
async def test_whatever_step_a_program_hangs_at_its_successor_copies_the_rest_once(
    answered: bool,
) -> None:
    steps, ends = set(), set()
    for count in range(_LAST_STEP):
        async with simulated_bench() as bench:
            cluster = bench.here.cluster
            cluster.create_topic("in")
            cluster.create_topic("out")
            for number in range(3):
                cluster.append("in", value=b"%d" % number)
            breakdown = Breakdown(bench.here, "victim", count, answered=answered)
            first = asyncio.ensure_future(copy(bench, "victim", request_timeout_ms=2000))
            while not breakdown.struck and not first.done():
                await asyncio.sleep(0.001)
            before = len(cluster.records("out"))
            steps.add((before, bool(bench.here.happened("begin"))))
            await copy(bench, "successor")
            while cluster.transactions["copy"].open:
                await asyncio.sleep(0.001)
            values = [record.value for record in cluster.records("out")]
            assert values == [b"0", b"1", b"2"], count
            breakdown.heal()
            ends.add(await outcome(first))
            await bench.until_ends("out", cluster.end_offset("out", 0))
            ((records, _),) = await bench.read("out")
            assert list(records.values()) == values
            assert cluster.committed("g") == {("in", 0): 3}
    assert ends >= {"done", "ProducerFenced"}
    # It did hang before, in and after transactions.
    assert steps >= {(0, False), (0, True), (1, True), (2, True), (3, True)}


@pytest.mark.virtual
async def test_nothing_begins_while_markers_are_written() -> None:
    async with simulated_bench() as bench:
        cluster = bench.here.cluster
        cluster.create_topic("t", 3)
        cluster.marker_delay = lambda: 1.0
        producer = await bench.producer("p")
        await producer.begin_transaction()
        for partition in range(3):
            await producer.send_and_wait("t", b"x", partition=partition)
        await producer.commit_transaction()
        identity = "p", producer._txn_manager.producer_id, producer._txn_manager.producer_epoch
        found = await bench.ask(
            AddPartitionsToTxnRequest(*identity, [("t", [0])]),
            EndTxnRequest(*identity, True),
            EndTxnRequest(*identity, False),
        )
        assert found == ["ConcurrentTransactions", "ConcurrentTransactions", "InvalidTxnState"]
        await asyncio.sleep(1.5)
        # One partition after the other, as where they have different leaders.
        assert await bench.ends("t") == [2, 0, 0]
        assert cluster.transactions["p"].state is TransactionState.PREPARE_COMMIT
        async with producer.transaction():
            await producer.send_and_wait("t", b"y", partition=0)
        assert [about for _, about, _ in bench.here.happened("marker")] == ["t-0", "t-1", "t-2"]
        assert await bench.ends("t") == [2, 2, 2]


@pytest.mark.virtual
async def test_a_producer_that_has_used_up_its_epochs_gets_another_id() -> None:
    async with simulated_bench() as bench:
        first = await bench.producer("p")
        bench.here.cluster.transactions["p"].epoch = 32_766
        second = await bench.producer("p")
        assert second._txn_manager.producer_id != first._txn_manager.producer_id
        assert second._txn_manager.producer_epoch == 0
        await first.begin_transaction()
        bench.here.cluster.create_topic("t")
        assert await outcome(first.send_and_wait("t", b"x")) == "KafkaError"
        assert await outcome(first.commit_transaction()) == "AssertionError"


@pytest.mark.virtual
async def test_a_topic_that_is_deleted_takes_its_part_of_a_transaction_with_it() -> None:
    async with simulated_bench() as bench:
        cluster = bench.here.cluster
        for name in ("t", "u"):
            cluster.create_topic(name)
        producer = await bench.producer("p")
        await producer.begin_transaction()
        for name in ("t", "u"):
            await producer.send_and_wait(name, b"x", partition=0)
            place = TopicPartition(name, 0)
            await producer.send_offsets_to_transaction({place: 1}, "g")
        cluster.delete_topic("t")
        await producer.commit_transaction()
        await bench.until_ends("u", 2)
        await asyncio.sleep(1)
        assert not cluster.transactions["p"].open
        assert cluster.committed("g") == {("u", 0): 1}


@pytest.mark.virtual
async def test_rights_are_denied_and_allowed_again() -> None:
    async with simulated_bench() as bench:
        cluster = bench.here.cluster
        cluster.create_topic("t")
        producer = await bench.producer(None)
        cluster.deny(Right.WRITE_TOPIC, "t")
        assert await outcome(producer.send_and_wait("t", b"x")) == "TopicAuthorizationFailedError"
        cluster.allow(Right.WRITE_TOPIC, "t")
        assert await outcome(producer.send_and_wait("t", b"x")) == "done"


def test_only_what_is_in_a_transaction_is_taken_as_such() -> None:
    log = Log("t", 0, 1000)

    def refuse(producer: int, epoch: int) -> None:
        raise RequestRefused(ErrorCode.INVALID_TXN_STATE)

    def code_of(data: bytes, verify: Callable[[int, int], None]) -> ErrorCode:
        with pytest.raises(RequestRefused) as caught:
            log.append(data, lambda: 0, verify)
        return caught.value.code

    part = batch(b"a", transactional=True)
    assert code_of(part, refuse) is ErrorCode.INVALID_TXN_STATE
    assert log.append(part, lambda: 1, lambda producer, epoch: None)[0] == 0
    # Asked only once for each transaction.
    assert log.append(batch(b"b", sequence=1, transactional=True), lambda: 2, refuse)[0] == 1
    plain = batch(b"c", sequence=2, transactional=False)
    assert code_of(plain, refuse) is ErrorCode.INVALID_TXN_STATE
    marker = bytearray(batch(b"d", sequence=2, transactional=True))
    marker[22] |= 0x20
    marker[17:21] = calc_crc32c(bytes(marker[21:])).to_bytes(4, "big")
    assert code_of(bytes(marker), refuse) is ErrorCode.INVALID_RECORD
    assert (log.stable, log.end, log.readable()) == (0, 2, [])
    assert [it.value for it in log.end_transaction(7, 0, 1, commit=True)[1]] == [b"a", b"b"]
    assert (log.stable, log.end, log.readable_end) == (3, 3, 2)


def test_tombstones_stay_until_their_time_is_over() -> None:
    log = Log("t", 0, 1000)
    for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", None), (b"c", b"3")):
        log.append(encode_record(key, value, [("h", b"v")], 1))
    for now, offsets in ((1000.0, [1, 2, 3]), (1099.9, [1, 2, 3]), (1100.0, [1, 3])):
        log.compact(now, 100.0)
        assert [record.offset for record in log.records] == offsets
        read = [(record.offset, record.headers) for part in parts(log) for record in part]
        assert read == [(offset, [("h", b"v")]) for offset in offsets]


def test_a_marker_stays_as_long_as_records_of_its_transaction() -> None:
    log = Log("t", 0, 1000)
    log.append(batch(b"a", key=b"k", transactional=True))
    log.end_transaction(7, 0, 1, commit=True)
    log.append(encode_record(b"other", b"x", [], 1))
    for now in (0.0, 1.0, 2.0):
        log.compact(now, 1.0)
        assert [(part.base_offset, part.is_control_batch) for part in parts(log)] == [
            (0, False),
            (1, True),
            (2, False),
        ]
    log.append(encode_record(b"k", b"b", [], 1))
    for now, left in ((10.0, [1, 2, 3]), (10.9, [1, 2, 3]), (11.0, [2, 3])):
        log.compact(now, 1.0)
        assert [part.base_offset for part in parts(log)] == left


def test_readers_get_to_the_end_although_the_last_record_is_gone() -> None:
    log = Log("t", 0, 1000)
    log.append(encode_record(b"a", b"1", [], 1))
    log.append(encode_record(b"a", None, [], 1))
    for now in range(3):
        log.compact(now, 1.0)
    assert log.records == []
    (part,) = parts(log)
    assert (part.next_offset, list(part), log.end) == (2, [], 2)
    assert log.read(1, 1000, log.end, at_least_one=True)


def parts(log: Log) -> list[Any]:
    """Return the batches of a log, as a client gets them."""
    whole = MemoryRecords(log.read(0, 10_000, log.end, at_least_one=True))
    found = []
    while whole.has_next():
        found.append(whole.next_batch())
        assert found[-1].validate_crc()
    return found


def batch(
    value: bytes, *, key: bytes | None = None, sequence: int = 0, transactional: bool
) -> bytes:
    builder = accumulator.BatchBuilder(10_000, 0, is_transactional=transactional)
    builder.append(timestamp=1, key=key, value=value)
    builder._builder.set_producer_state(7, 0, sequence)
    return bytes(builder._build())


# In a harness.


class Writer:
    """An application that writes what it gets to several topics, in a transaction of its own.

    Attributes:
        app: the application.
        got: what another actor has received of it.
        hangs: whether it goes no further than the first record.
    """

    def __init__(self) -> None:
        self.app = app = DistributedApplication("kafka://broker:9092?partitions=2", name="app")
        self.got: list[str] = []
        self.hangs = False
        self.producers: list[Any] = []

        @app.application("in")
        async def write(payload: int) -> None:
            producer = AIOKafkaProducer(
                bootstrap_servers=_HARNESS_SERVER, transactional_id="writer", retry_backoff_ms=20
            )
            self.producers.append(producer)
            await producer.start()
            await producer.begin_transaction()
            for part in "abcdef":
                await producer.send(f"out.{part}", b"%d%s" % (payload, part.encode()))
            await producer.flush()
            if self.hangs:
                await asyncio.Event().wait()
            if payload % 2:
                await producer.commit_transaction()
            else:
                await producer.abort_transaction()
            await producer.stop()

        @app.application("out/+")
        async def read(payload: str) -> None:
            self.got.append(payload)

    def abandon(self) -> None:
        """Forget the producers of an application that was killed."""
        for producer in self.producers:
            producer._closed = True

    def run(self, faults: Faults | None = None) -> str:
        with Harness(self.app, faults=faults) as harness:
            for part in "abcdef":
                harness.publish(f"out/{part}", f"first{part}")
            for number in range(4):
                harness.publish("in", number, key="k")
            harness.settle()
            wanted = [f"{number}{part}" for number in (1, 3) for part in "abcdef"]
            found = [it for it in self.got if not it.startswith("first")]
            assert sorted(found) == wanted
            published = [it for part in "abcdef" for it in harness.published(f"out/{part}")]
            # As no content type is with them.
            assert sorted(it.decode() for it in published if isinstance(it, bytes)) == wanted
            return harness.trace


def test_actors_get_what_is_committed_and_nothing_else() -> None:
    trace = Writer().run()
    assert trace.count("commit-all") == trace.count("abort") == 2


def test_a_fault_delays_markers() -> None:
    trace = Writer().run(Faults(delay=0.5))
    markers = [float(it.split()[0]) for it in trace.splitlines() if " marker " in it]
    assert len(markers) >= 20
    assert max(later - earlier for earlier, later in pairwise(markers)) > 0.1


def test_what_is_committed_is_never_appended_twice() -> None:
    writer = Writer()
    writer.run(Faults(duplicate=0.5, most=1000))
    assert len([it for it in writer.got if it.startswith("first")]) > 6


def test_to_settle_takes_until_no_transaction_is_open() -> None:
    writer = Writer()
    writer.hangs = True
    with Harness(writer.app) as harness:
        for part in "abcdef":
            harness.publish(f"out/{part}", f"first{part}")
        harness.settle()
        harness.publish("in", 1)
        harness.advance(1)
        harness.crash()
        writer.hangs = False
        harness.restart()
        harness.settle()
        assert sorted(writer.got[6:]) == [f"1{part}" for part in "abcdef"]
        # The next one with this id fences the one that was left open.
        assert "abort" in harness.trace
        writer.hangs = True
        harness.publish("in", 3)
        harness.advance(1)
        harness.crash()
        writer.abandon()
        harness.settle()
        assert "time-out" in harness.trace


class Keeper:
    """An application that keeps the last values of what it gets in a compacted topic.

    Attributes:
        app: the application.
        kept: what was in the topic at the end, by offset.
    """

    def __init__(self) -> None:
        self.app = app = DistributedApplication("kafka://broker:9092", name="app")
        self.kept: dict[int, tuple[bytes, bytes]] = {}

        @app.application("in", concurrency=1)
        async def keep(payload: int) -> None:
            if payload < 0:
                await self._read()
                return
            if payload == 0:
                await self._create()
            producer = AIOKafkaProducer(bootstrap_servers=_HARNESS_SERVER)
            try:
                await producer.start()
                await producer.send_and_wait("kept", b"%d" % payload, key=b"%d" % (payload % 3))
            finally:
                await producer.stop()

    async def _create(self) -> None:
        client = AIOKafkaAdminClient(bootstrap_servers=_HARNESS_SERVER)
        await client.start()
        compacted = {"cleanup.policy": "compact"}
        await client.create_topics([NewTopic("kept", 1, 1, topic_configs=compacted)])
        await client.close()

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=_HARNESS_SERVER)
        place = TopicPartition("kept", 0)
        consumer.assign([place])
        try:
            await consumer.start()
            await consumer.seek_to_beginning(place)
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    self.kept |= {it.offset: (it.key, it.value) for it in records}
        finally:
            await consumer.stop()


def test_a_harness_compacts_topics() -> None:
    keeper = Keeper()
    with Harness(keeper.app) as harness:
        for number in range(8):
            harness.publish("in", number, key="k")
        harness.settle()
        harness.compact()
        harness.publish("in", -1, key="k")
        harness.settle()
        assert keeper.kept == {5: (b"2", b"5"), 6: (b"0", b"6"), 7: (b"1", b"7")}


def test_the_fault_compact_strikes_where_there_is_something_to_compact() -> None:
    keeper = Keeper()
    with Harness(keeper.app, faults=Faults(compact=0.5)) as harness:
        for number in range(8):
            harness.publish("in", number, key="k")
        harness.publish("in", -1, key="k")
        harness.settle()
        assert harness.trace.count(" compact ") == 10
        last = {b"2": b"5", b"0": b"6", b"1": b"7"}
        assert dict(keeper.kept.values()) == last
    other = DistributedApplication("kafka://broker:9092", name="other")
    with Harness(other, faults=Faults(compact=1.0)) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert " compact " not in harness.trace


_SCRIPT = """
from test_simulated_transactions import Writer
print(Writer().run())
"""


def test_transactions_do_not_depend_on_hash_values() -> None:
    first = output_with_hash_seed("1", _SCRIPT)
    assert first.count(b"marker") >= 20
    assert output_with_hash_seed("2", _SCRIPT) == output_with_hash_seed("3", _SCRIPT) == first
