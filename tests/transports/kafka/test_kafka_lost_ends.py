"""Partitions that lose their end, and grow beyond what was read of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import NodeNotReadyError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic, Socket
from spa_dat.testing import Kafka
from spa_dat.transports.kafka._offset_notes import Claim, claims_of, offset_note
from spa_dat.transports.kafka.consuming import _group_requests, _groupless_reader, _leader_epochs
from spa_dat.transports.kafka.consuming._leader_epochs import (
    EndsLost,
    LeaderEpochs,
    lost_ends,
    report_lost_ends,
)
from support.kafka_bus import bus_client, create, new_prefix
from support.kafka_consuming import committed, taker
from support.waiting import eventually

PLACE = TopicPartition("t", 0)


def cut_off(broker: Kafka, topic: str, end: int) -> None:
    """Have the broker lose what a partition has from this offset on, as in a power cut."""
    broker.kill()
    folder = Path(broker.folder) / "data" / f"{topic}-0"
    (log,) = folder.glob("*.log")
    data, at = log.read_bytes(), 0
    while int.from_bytes(data[at : at + 8], "big") < end:
        at += 12 + int.from_bytes(data[at + 8 : at + 12], "big")
    log.write_bytes(data[:at])
    for name in ("*.index", "*.timeindex", "*.snapshot"):
        for path in folder.glob(name):
            path.unlink()
    broker.start()


async def publish(server: str, prefix: str, numbers: range) -> None:
    """Publish numbers, each in a batch of its own."""
    async with bus_client(server, prefix=prefix, name="sender") as client:
        for number in numbers:
            await client.publish("t", b"%d" % number)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("reset", ["earliest", "latest"])
async def test_what_has_come_at_offsets_that_were_handled_is_handled(
    kafka_to_break: Kafka, caplog: pytest.LogCaptureFixture, reset: str
) -> None:
    broker, prefix = kafka_to_break, new_prefix()
    await create(broker.server, f"{prefix}t")
    async with taker(broker.server, "t", prefix=prefix, offset_reset=reset) as inbox:
        await publish(broker.server, prefix, range(20))
        await eventually(lambda: len(inbox.numbers) == 20)
    assert await committed(broker.server, prefix) == {"t/0": 20}
    await asyncio.to_thread(cut_off, broker, f"{prefix}t", 12)
    await publish(broker.server, prefix, range(100, 115))
    async with taker(broker.server, "t", prefix=prefix, offset_reset=reset) as inbox:
        await eventually(lambda: len(inbox.numbers) >= 15)
        assert inbox.numbers == [*range(100, 115)]
        assert inbox.stats["kafka.ends_lost"] == 1
    assert "has lost its end: what was read from offset 12 on" in caplog.text
    # Once.
    async with taker(broker.server, "t", prefix=prefix) as inbox:
        await publish(broker.server, prefix, range(115, 116))
        await eventually(lambda: inbox.numbers)
        assert inbox.numbers == [115]


def copier(config: KafkaConfig, folder: Path, copies: list[int]) -> DistributedApplication:
    """Make an application that copies numbers in transactions, and notes the copies."""
    app = DistributedApplication(config, name="app", state_folder=folder)

    @app.application("t", exactly_once=True)
    async def copy(number: int, socket: Socket) -> None:
        await socket.publish("copies", number)

    @app.application("copies")
    async def note(number: int) -> None:
        copies.append(number)

    return app


@pytest.mark.kafka
@pytest.mark.slow
async def test_it_is_noticed_while_running_and_in_transactions(
    kafka_to_break: Kafka, tmp_path: Path
) -> None:
    broker, prefix = kafka_to_break, new_prefix()
    for topic in ("t", "copies"):
        await create(broker.server, f"{prefix}{topic}")
    copies: list[int] = []
    async with broker.proxy() as proxy:
        server = f"{proxy.host}:{proxy.port}"
        config = KafkaConfig(server, prefix=prefix, backoff_max=0.2, request_timeout=5.0)
        app = copier(config, tmp_path, copies)
        await publish(broker.server, prefix, range(20))
        async with app:
            await eventually(lambda: copies == [*range(20)])
            await proxy.refuse()
            proxy.cut()
            # It sees nothing of the topic before that has grown again.
            await asyncio.to_thread(cut_off, broker, f"{prefix}t", 12)
            await publish(broker.server, prefix, range(100, 120))
            await proxy.allow()
            await eventually(lambda: set(range(100, 120)) <= set(copies))
            assert app.stats["kafka.ends_lost"] == 1


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("ephemeral", [False, True], ids=["group", "without a group"])
async def test_who_sees_it_before_it_has_grown_again_does_not_go_back_to_its_start(
    kafka_to_break: Kafka, caplog: pytest.LogCaptureFixture, ephemeral: bool
) -> None:
    broker, prefix = kafka_to_break, new_prefix()
    await create(broker.server, f"{prefix}t")
    async with taker(broker.server, "t", prefix=prefix, ephemeral=ephemeral) as inbox:
        await publish(broker.server, prefix, range(20))
        await eventually(lambda: len(inbox.numbers) == 20)
        await asyncio.to_thread(cut_off, broker, f"{prefix}t", 12)
        await eventually(lambda: inbox.stats["kafka.ends_lost"])
        await publish(broker.server, prefix, range(100, 115))
        await eventually(lambda: len(inbox.numbers) >= 35)
        assert inbox.numbers == [*range(20), *range(100, 115)]
        assert inbox.stats["kafka.ends_lost"] == 1
    assert "has lost its end: what was read from offset 12 on" in caplog.text


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["", "a broker that fails meanwhile"])
async def test_who_reads_without_a_group_sees_what_has_come_at_offsets_that_were_read(
    kafka_to_break: Kafka, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    broker, prefix = kafka_to_break, new_prefix()

    def report_and_fail(*given: Any) -> None:
        report_lost_ends(*given)
        if fails:
            raise NodeNotReadyError

    monkeypatch.setattr(_groupless_reader, "report_lost_ends", report_and_fail)
    await create(broker.server, f"{prefix}t")
    async with broker.proxy() as proxy:
        server = f"{proxy.host}:{proxy.port}"
        async with taker(server, "t", prefix=prefix, ephemeral=True) as inbox:
            await publish(broker.server, prefix, range(20))
            await eventually(lambda: len(inbox.numbers) == 20)
            await proxy.refuse()
            proxy.cut()
            await asyncio.to_thread(cut_off, broker, f"{prefix}t", 12)
            await publish(broker.server, prefix, range(100, 120))
            await proxy.allow()
            await eventually(lambda: set(range(100, 120)) <= set(inbox.numbers))
            assert inbox.stats["kafka.ends_lost"] == 1


@pytest.mark.kafka
@pytest.mark.slow
async def test_transactions_repeat_nothing_where_it_is_seen_before_it_has_grown_again(
    kafka_to_break: Kafka, tmp_path: Path
) -> None:
    broker, prefix = kafka_to_break, new_prefix()
    for topic in ("t", "copies"):
        await create(broker.server, f"{prefix}{topic}")
    copies: list[int] = []
    config = KafkaConfig(broker.server, prefix=prefix, backoff_max=0.2, request_timeout=5.0)
    app = copier(config, tmp_path, copies)
    await publish(broker.server, prefix, range(20))
    async with app:
        await eventually(lambda: copies == [*range(20)])
        await asyncio.to_thread(cut_off, broker, f"{prefix}t", 12)
        await eventually(lambda: app.stats["kafka.ends_lost"])
        await publish(broker.server, prefix, range(100, 120))
        await eventually(lambda: set(range(100, 120)) <= set(copies))
    async with (
        AIOKafkaConsumer(
            f"{prefix}copies",
            bootstrap_servers=broker.server,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        ) as reader,
        asyncio.timeout(60),
    ):
        seen = [int((await reader.getone()).value) for _ in range(40)]
    assert seen == [*range(20), *range(100, 120)]


@dataclass
class Count:
    n: int = 0


def counter(
    server: str, prefix: str, folder: Path, seen: list[tuple[str, int]]
) -> DistributedApplication:
    """Make an application that counts the messages of each key in durable states."""
    topics = {"t/{key}": KafkaTopic("t", key="key")}
    config = KafkaConfig(server, prefix=prefix, topics=topics, backoff_max=0.2)
    app = DistributedApplication(config, name="app", state_folder=folder)

    @app.application("t/{key}", per="key", state=Count, durable=True, exactly_once=True)
    async def count(number: int, key: str, state: Count) -> None:
        state.n += 1
        seen.append((key, state.n))

    return app


async def send(app: DistributedApplication, keys: str) -> None:
    """Send a message of each key, each counted in a transaction of its own."""
    for key in keys:
        committed = app.stats["kafka.transactions"] + 1
        await app.socket().publish(f"t/{key}", 1)
        await eventually(partial(_has, app, committed))


def _has(app: DistributedApplication, transactions: int) -> bool:
    return app.stats["kafka.transactions"] >= transactions


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_snapshot_of_what_the_changelog_has_lost_is_not_used(
    kafka_to_break: Kafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker, prefix = kafka_to_break, new_prefix()
    await create(broker.server, f"{prefix}t")
    changelog = f"{prefix}_spa.state.app.count"
    seen: list[tuple[str, int]] = []
    async with (app := counter(broker.server, prefix, tmp_path / "one", seen)):
        await send(app, "ababab")
    assert seen[-2:] == [("a", 3), ("b", 3)]
    # Each count is followed by the marker of its transaction: one of each key is left.
    await asyncio.to_thread(cut_off, broker, changelog, 4)
    async with (app := counter(broker.server, prefix, tmp_path / "two", seen)):
        await send(app, "baaaaa")
    assert seen[-6:-4] == [("b", 2), ("a", 2)]
    # What is known here is of an offset that there is again.
    async with (app := counter(broker.server, prefix, tmp_path / "one", seen)):
        await send(app, "b")
    assert seen[-1] == ("b", 3)
    assert "what there is from offset 4 on has come since" in caplog.text


def test_a_partition_is_doubted_until_the_cluster_has_said_what_it_has() -> None:
    epochs = LeaderEpochs()
    gone = [(PLACE.topic, [(PLACE.partition, 1, -1, b"")])]
    # Of what was never read nothing can be lost.
    assert epochs.hear(gone) == []
    epochs.hear(answer(batch(0, 10, 3)))
    assert epochs.hear(gone) == [PLACE]
    assert epochs.hear(gone) == []
    assert epochs.doubted == {PLACE}
    epochs.forget([PLACE])
    assert not epochs.doubted
    assert epochs.claims(PLACE, 10) == []


async def test_a_partition_that_has_what_was_read_is_trusted_again() -> None:
    epochs = LeaderEpochs()
    epochs.hear(answer(batch(0, 10, 3)))
    epochs.hear([(PLACE.topic, [(PLACE.partition, 1, -1, b"")])])
    assert await epochs.verify(Leader({}, leader=None)) == []
    assert await epochs.verify(Leader({3: 10})) == [PLACE]
    assert not epochs.doubted
    epochs.hear([(PLACE.topic, [(PLACE.partition, 1, -1, b"")])])
    with lost(4):
        await epochs.verify(Leader({3: 4}))


def batch(start: int, count: int, epoch: int) -> bytes:
    content = (
        epoch.to_bytes(4, "big") + b"\2" + bytes(6) + (count - 1).to_bytes(4, "big") + bytes(40)
    )
    return start.to_bytes(8, "big") + len(content).to_bytes(4, "big") + content


def answer(*batches: bytes) -> list[tuple[str, list[tuple[Any, ...]]]]:
    return [(PLACE.topic, [(PLACE.partition, 0, 0, b"".join(batches))])]


def test_what_was_read_is_noted_with_the_epochs_of_its_leaders() -> None:
    epochs = LeaderEpochs()
    assert epochs.claims(PLACE, 5) == []
    epochs.hear(answer(batch(0, 10, 3), batch(10, 5, 3)))
    assert epochs.claims(PLACE, 12) == [Claim(3, 12)]
    # What was compacted away before the next one claims nothing.
    epochs.hear(answer(batch(20, 2, 5)))
    assert epochs.claims(PLACE, 15) == [Claim(3, 15)]
    assert epochs.claims(PLACE, 21) == [Claim(3, 15), Claim(5, 21)]
    # A batch that is cut off was not read.
    epochs.hear(answer(batch(22, 2, 6)[:-1]))
    assert epochs.claims(PLACE, 22) == [Claim(3, 15), Claim(5, 22)]
    # Something is read again.
    epochs.hear(answer(batch(10, 5, 3)))
    assert epochs.claims(PLACE, 15) == [Claim(3, 15)]


def test_a_note_has_what_was_read() -> None:
    claims = [Claim(3, 15), Claim(5, 22)]
    note = offset_note("id", 7, claims)
    assert claims_of(note) == claims
    assert offset_note("", None, claims) == ""
    for wrong in ("", "topic-id=x", "epochs=", "epochs=1", "epochs=1:2:3x", "xepochs=1:2"):
        assert claims_of(wrong) in ([], [Claim(1, 2)] if wrong == "epochs=1:2:3x" else [])
    assert claims_of("epochs=" + ",".join(["9999999999:1"] * 3)) == []


async def test_who_has_gone_back_with_the_note_of_another_offset_has_not_read_that_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = offset_note("id", None, [Claim(3, 15), Claim(5, 22)])

    async def offsets(*_: Any) -> dict[TopicPartition, OffsetAndMetadata]:
        return {PLACE: OffsetAndMetadata(17, note)}

    monkeypatch.setattr(_group_requests, "committed_offsets", offsets)
    found = await _group_requests.committed(None, [PLACE], {"t": "id"})
    assert found.claims == {PLACE: [Claim(3, 15)]}


class Leader:
    """A client of a cluster that says where epochs end."""

    def __init__(
        self,
        ends: dict[int, int],
        code: int = 0,
        leader: int | None = 1,
        *,
        silent: bool = False,
    ) -> None:
        self.ends, self.code, self.leader, self.silent = ends, code, leader, silent
        self.cluster = self

    def leader_for_partition(self, place: TopicPartition) -> int | None:
        return self.leader

    async def send(self, node: int, request: Any) -> Any:
        if self.silent:
            await asyncio.get_running_loop().create_future()
        ((place, epoch),) = request._epochs.items()
        end = self.ends.get(epoch, -1)
        self.topics = [(place.topic, [(self.code, place.partition, epoch, end)])]
        return self


@contextlib.contextmanager
def lost(end: int) -> Iterator[None]:
    with pytest.raises(EndsLost) as caught:
        yield
    assert caught.value.ends == {PLACE: end}


async def test_a_broker_that_never_tells_where_epochs_end_does_not_speak_for_others() -> None:
    class Cluster(Leader):
        """Its first broker is older than the request."""

        def leader_for_partition(self, place: TopicPartition) -> int | None:
            return int(place.partition) + 1

        async def send(self, node: int, request: Any) -> Any:
            if node == 1:
                raise NotImplementedError
            return await super().send(node, request)

    other = TopicPartition("t", 1)
    claims = {PLACE: [Claim(3, 10)], other: [Claim(3, 10)]}
    assert await lost_ends(Cluster({3: 5}), claims) == ({other: 5}, set())


async def test_only_what_the_cluster_says_that_it_has_less_of_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_leader_epochs, "_PATIENCE", 0.01)
    epochs = LeaderEpochs()
    epochs.hear(answer(batch(0, 10, 3)))
    # Nothing is asked before there is a later epoch.
    await epochs.verify(Leader({3: 0}))
    epochs.hear(answer(batch(10, 10, 4)))
    for unknown in (
        Leader({}, leader=None),
        Leader({3: 5}, code=6),
        Leader({3: 5}, silent=True),
    ):
        await epochs.verify(unknown)
    assert epochs.claims(PLACE, 20) == [Claim(3, 10), Claim(4, 20)]
    with lost(5):
        await epochs.verify(Leader({3: 5}))
    await epochs.verify(Leader({3: 10}))
    assert epochs.claims(PLACE, 20) == [Claim(4, 20)]
    # It was verified.
    await epochs.verify(Leader({3: 5}))
