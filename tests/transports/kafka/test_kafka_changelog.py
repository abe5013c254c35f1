"""Reading the states of keys from a changelog, on the simulated cluster and on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from spa_dat.testing import Kafka
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka.consuming._changelog import restore, wake_header
from spa_dat.transports.kafka.consuming._snapshots import PartitionStates
from support.transactions import Bench, real_bench, simulated_bench

Program = Callable[[Bench], Awaitable[None]]
NOW = 1_000_000.0
PROGRAMS: dict[str, Program] = {}


def program(one: Program) -> Program:
    """Run it on both clusters."""
    PROGRAMS[one.__name__] = one
    return one


@pytest.mark.virtual
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_the_simulated_cluster(name: str) -> None:
    async with simulated_bench() as bench:
        await PROGRAMS[name](bench)


@pytest.mark.kafka
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_a_real_broker(name: str, kafka: Kafka) -> None:
    async with real_bench(kafka, f"{name}-") as bench:
        await PROGRAMS[name](bench)


async def read(bench: Bench, topic: str, *known: PartitionStates) -> None:
    config = KafkaConfig(bench.admin, request_timeout=10.0)
    async with asyncio.timeout(60):
        await restore(config, "test", topic, dict(enumerate(known)), NOW, {})


async def change(producer: Any, topic: str, values: dict[str, str | None], partition: int) -> None:
    async with producer.transaction():
        for key, value in values.items():
            text = None if value is None else value.encode()
            await producer.send_and_wait(topic, text, key=key.encode(), partition=partition)


@program
async def it_reads_to_the_end_although_the_last_records_are_none_of_states(bench: Bench) -> None:
    topic = await bench.topic("t", 2)
    producer = await bench.producer("p")
    await change(producer, topic, {"a": "1", "b": "2"}, 0)
    await change(producer, topic, {"a": "3", "b": None}, 0)
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"lost", key=b"a", partition=0)
    await producer.abort_transaction()
    # Two records and a marker each time, and then one and a marker.
    await bench.until_ends(topic, 8, 0)
    first, second = PartitionStates(), PartitionStates()
    await read(bench, topic, first, second)
    assert (first.values, first.position) == ({b"a": b"3"}, 8)
    assert (second.values, second.position) == ({}, 0)


@program
async def only_what_is_kept_of_a_key_can_be_woken(bench: Bench) -> None:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    wake = wake_header(5.0)
    async with producer.transaction():
        for key, value in ((b"a", b"1"), (b"gone", None), (b"\xff", b"2")):
            await producer.send_and_wait(topic, value, key=key, partition=0, headers=wake)
    await bench.until_ends(topic, 4)
    states = PartitionStates()
    await read(bench, topic, states)
    assert await states.first_due(10, ()) == [(b"a", 5.0)]


@program
async def it_goes_on_where_it_was(bench: Bench) -> None:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    await change(producer, topic, {"a": "1", "b": "2"}, 0)
    await bench.until_ends(topic, 3)
    known = PartitionStates()
    await read(bench, topic, known)
    # What is changed here shows whether it is read again.
    known.values[b"a"] = b"known"
    await change(producer, topic, {"b": "3"}, 0)
    await bench.until_ends(topic, 5)
    await read(bench, topic, known)
    assert (known.values, known.position) == ({b"a": b"known", b"b": b"3"}, 5)


@program
async def what_is_known_of_another_log_is_forgotten(bench: Bench) -> None:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    await change(producer, topic, {"a": "1"}, 0)
    await bench.until_ends(topic, 2)
    known = PartitionStates()
    known.values, known.position = {b"a": b"old", b"gone": b"x"}, 100
    await read(bench, topic, known)
    assert (known.values, known.position) == ({b"a": b"1"}, 2)


@program
async def what_is_known_from_before_the_log_begins_is_forgotten(bench: Bench) -> None:
    topic = await bench.topic("t")
    producer = await bench.producer("p")
    await change(producer, topic, {"gone": "1"}, 0)
    await change(producer, topic, {"a": "2"}, 0)
    await bench.until_ends(topic, 4)
    client = AIOKafkaAdminClient(bootstrap_servers=bench.admin)
    await client.start()
    try:
        await client.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=2)})
    finally:
        await client.close()
    known = PartitionStates()
    known.values, known.position = {b"gone": b"1"}, 1
    await read(bench, topic, known)
    assert (known.values, known.position) == ({b"a": b"2"}, 4)
