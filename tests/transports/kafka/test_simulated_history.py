"""The history of topics on a simulated cluster: what was read before, single records, trouble."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.record.util import calc_crc32c

from spa_dat.errors import ConnectFailed, TransportError
from spa_dat.harness.kafka_cluster._record_batches import encode_record
from spa_dat.transports import KafkaConfig
from spa_dat.transports.kafka.consuming._history import read_history, read_on, read_record
from support.simulated import SERVER, SimulatedCluster, world

pytestmark = pytest.mark.virtual

CONFIG = KafkaConfig(SERVER, request_timeout=10.0)


async def new(read: dict[int, int], since: int = 0) -> list[bytes]:
    return [it.payload async for it in read_on(CONFIG, "t", since=since, read=read)]


async def delete_before(offset: int) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=SERVER)
    await client.start()
    await client.delete_records({TopicPartition("t", 0): RecordsToDelete(before_offset=offset)})
    await client.close()


def append_oddly_named(here: SimulatedCluster, partition: int) -> None:
    """Append a record with a header whose name is not text."""
    good = encode_record(None, b"odd", [("name", b"x")], int(here.cluster.now() * 1000))
    bad = bytearray(good.replace(b"name", b"na\xffe"))
    bad[17:21] = calc_crc32c(bytes(bad[21:])).to_bytes(4, "big")
    here.cluster.append_batch("", here.cluster.log("t", partition), bytes(bad), None)


async def test_what_was_read_before_is_not_read_again() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        for number in range(6):
            here.cluster.append("t", number % 2, value=b"%d" % number, timestamp=1000 * number)
        read: dict[int, int] = {}
        # The time counts for what was not read before.
        assert await new(read, since=2000) == [b"2", b"3", b"4", b"5"]
        assert read == {0: 3, 1: 3}
        assert await new(read, since=2000) == []
        here.cluster.append("t", 1, value=b"6", timestamp=0)
        here.cluster.topics["t"].grow(3)
        for number in (7, 8):
            here.cluster.append("t", 2, value=b"%d" % number, timestamp=number * 250)
        assert await new(read, since=2000) == [b"6", b"8"]
        assert read == {0: 3, 1: 4, 2: 2}


async def test_of_a_topic_that_was_recreated_all_is_read() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        for number in range(3):
            here.cluster.append("t", value=b"%d" % number)
        read: dict[int, int] = {}
        assert len(await new(read)) == 3
        here.cluster.delete_topic("t")
        here.cluster.create_topic("t")
        here.cluster.append("t", value=b"of the new one")
        assert await new(read) == [b"of the new one"]
        assert read == {0: 1}


async def test_one_record_is_read_unless_it_is_not_there_any_more() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        for number in range(4):
            here.cluster.append("t", 0, value=b"%d" % number)
        found = await read_record(CONFIG, "t", 0, 2)
        assert found is not None
        assert (found.payload, found.partition, found.offset) == (b"2", 0, 2)
        assert await read_record(CONFIG, "t", 0, 4) is None
        assert await read_record(CONFIG, "t", 1, 0) is None
        assert await read_record(CONFIG, "t", 7, 0) is None
        await delete_before(3)
        assert await read_record(CONFIG, "t", 0, 2) is None


async def test_names_of_headers_that_are_not_text_are_read_and_hide_nothing() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        for number in range(2):
            here.cluster.append("t", number, value=b"first")
            append_oddly_named(here, number)
            here.cluster.append("t", number, value=b"last")
        found = [it async for _, it in read_history(CONFIG, ["t"], since=0)]
        assert sorted(it.payload for it in found) == [
            *[b"first"] * 2,
            *[b"last"] * 2,
            *[b"odd"] * 2,
        ]
        assert [dict(it.headers) for it in found if it.payload == b"odd"] == 2 * [{"na\\xffe": "x"}]


async def test_what_is_damaged_is_named_although_something_else_is_odd() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        append_oddly_named(here, 0)
        here.cluster.append("t", 1, value=b"good")
        log = here.cluster.log("t", 1)
        read = log.read

        def damaged(*arguments: Any, **more: Any) -> bytes:
            return read(*arguments, **more).replace(b"bad", b"BAD")

        log.read = damaged  # type: ignore[method-assign]
        here.cluster.append("t", 1, value=b"bad")
        wrong = "partition 1 of topic 't' cannot be read from offset 1"
        with pytest.raises(TransportError, match=wrong):
            [it async for it in read_history(CONFIG, ["t"], since=0)]


async def test_brokers_that_send_nothing_any_more_are_not_waited_for_for_ever() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        here.cluster.append("t", 1, value=b"0", timestamp=0)
        for number in range(1, 11):
            # More than one fetch brings.
            here.cluster.append("t", 0, value=b"x" * 200_000, timestamp=number)
        history = read_history(CONFIG, ["t"], since=0)
        assert (await anext(history))[1].payload == b"0"
        for connection in list(here.network.connections):
            connection.fall_silent()
        here.network.refuse("kafka", 9092)
        loop = asyncio.get_running_loop()
        began = loop.time()
        wrong = "partition 0 of topic 't' has sent nothing for 10 s, although .* to offset 10"
        with pytest.raises(ConnectFailed, match=wrong):
            [it async for it in history]
        assert 9 < loop.time() - began < 25
