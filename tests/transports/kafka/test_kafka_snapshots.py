"""Snapshots of the states of keys, on the simulated cluster and on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka.errors as kafka
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from spa_dat._limited_log import LimitedLog
from spa_dat._logs import get_logger
from spa_dat._pytest import require
from spa_dat.errors import ConfigurationError, StateNotWritten
from spa_dat.testing import Kafka
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka.consuming import _changelog, _snapshots
from spa_dat.transports.kafka.consuming._changelog import restore
from spa_dat.transports.kafka.consuming._snapshot_file import SnapshotFile
from spa_dat.transports.kafka.consuming._snapshots import (
    PartitionStates,
    Snapshot,
    SnapshotLost,
)
from support.transactions import Bench, real_bench, simulated_bench

NOW = 1_000_000.0
HOUR = 3_600.0


@dataclass
class World:
    """A cluster with a changelog, and a folder."""

    bench: Bench
    folder: Path
    logged: Callable[[], list[str]]
    topic: str = ""
    identifier: str = "id"
    partitions: int = 1
    end: int = 0
    now: float = NOW

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / "app.0.work.snapshot"

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Open it, and close it at the end."""
        lost: list[SnapshotLost] = []
        log = LimitedLog(get_logger("spa_dat.snapshots"))
        one = Snapshot(lambda: self.path, log, lost.append)
        await one.open(self.identifier, self.partitions)
        try:
            yield one
        finally:
            await one.close()

    async def read(self, snapshot: Snapshot) -> PartitionStates:
        """Return the states of the first partition, from the snapshot and the changelog."""
        states = PartitionStates(snapshot)
        place = await snapshot.place(0) if snapshot.is_open else None
        if place is not None:
            states.position, states.at, states.epoch = place
        await self.restore(states)
        return states

    async def restore(self, states: PartitionStates) -> None:
        """Bring states up to date."""
        config = KafkaConfig(self.bench.admin, request_timeout=10.0)
        async with asyncio.timeout(60):
            await restore(config, "test", self.topic, {0: states}, self.now, {0: 5})

    async def change(self, **values: str | None) -> None:
        """Commit a change of states."""
        producer = await self.bench.producer("p")
        async with producer.transaction():
            for key, value in values.items():
                text = None if value is None else value.encode()
                await producer.send_and_wait(self.topic, text, key=key.encode(), partition=0)
        await producer.stop()
        self.end += len(values) + 1
        await self.bench.until_ends(self.topic, self.end)

    def mark(self) -> None:
        """Change the file, which shows whether something is read from there."""
        with contextlib.closing(sqlite3.connect(self.path)) as database, database:
            database.execute("UPDATE state SET value = CAST(value || '!' AS BLOB)")


Program = Callable[[World], Awaitable[None]]
PROGRAMS: dict[str, Program] = {}


def program(one: Program) -> Program:
    """Run it on both clusters."""
    PROGRAMS[one.__name__] = one
    return one


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    require(Kafka)
    acls = [("ann", "ALL", kind, "may-*") for kind in ("TOPIC", "GROUP", "TRANSACTIONAL_ID")]
    with Kafka(sasl_users={"ann": "secret"}, acls=acls) as one:
        yield one


async def run(name: str, bench: Bench, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "spa_dat")

    def logged() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "spa_dat.snapshots"]

    world = World(bench, folder, logged)
    world.topic = await bench.topic("t")
    await world.change(a="1", b="2", gone="3")
    await world.change(gone=None)
    async with world.snapshot() as snapshot:
        await world.read(snapshot)
    assert world.logged() == []
    await PROGRAMS[name](world)


@pytest.mark.virtual
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_the_simulated_cluster(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with simulated_bench() as bench:
        await run(name, bench, tmp_path, caplog)


@pytest.mark.kafka
@pytest.mark.parametrize("name", PROGRAMS)
async def test_on_a_real_broker(
    name: str, broker: Kafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with real_bench(broker, f"{name}-"[:60]) as bench:
        await run(name, bench, tmp_path, caplog)


async def found(states: PartitionStates) -> list[bytes | None]:
    return [await states.load(key) for key in ("a", "b", "gone")]


FROM_THE_LOG = [b"1", b"2", None]
FROM_THE_FILE = [b"1!", b"2!", None]


async def is_thrown_away(world: World, why: str) -> None:
    """Check that all is read from the changelog, and that the one line about it says why."""
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
        assert await found(states) == FROM_THE_LOG
    (line,) = world.logged()
    assert why in line
    assert str(world.path) in line
    # From then on there is a good one.
    world.mark()
    async with world.snapshot() as snapshot:
        assert await found(await world.read(snapshot)) == FROM_THE_FILE
    assert len(world.logged()) == 1


@program
async def only_what_is_behind_the_snapshot_is_read(world: World) -> None:
    world.mark()
    await world.change(b="4", new="5")
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
        assert await found(states) == [b"1!", b"4", None]
        assert await states.load("new") == b"5"
        # None of it is in memory.
        assert states.values == {}
    assert world.logged() == []


@program
async def what_is_noted_is_read_from_memory_until_it_is_written(world: World) -> None:
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
        states.apply(b"a", b"9")
        states.apply(b"b", None)
        snapshot.note(states)
        assert await found(states) == [b"9", None, None]
        await snapshot.write(states)
        assert states.values == {}
        assert states.size == 0
        assert await found(states) == [b"9", None, None]


@program
async def what_changes_while_it_is_written_is_written_next(world: World) -> None:
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
        for number in range(50):
            states.apply(b"a", b"%d" % number)
            writing = asyncio.ensure_future(snapshot.write(states))
            await asyncio.sleep(0)
            states.apply(b"a", b"%d later" % number)
            await writing
            assert await states.load("a") == b"%d later" % number
        snapshot.note(states)
    async with world.snapshot() as snapshot:
        assert await snapshot.load(0, b"a") == b"49 later"


@program
async def the_changelog_of_another_topic_or_cluster(world: World) -> None:
    world.mark()
    world.identifier = "other"
    await is_thrown_away(world, "a changelog with another id")


@program
async def a_changelog_with_other_partitions(world: World) -> None:
    world.mark()
    world.partitions = 3
    await is_thrown_away(world, "of a changelog with 1 partitions, which has 3 now")


@program
async def an_offset_beyond_the_end(world: World) -> None:
    world.mark()
    with contextlib.closing(sqlite3.connect(world.path)) as database, database:
        database.execute("UPDATE place SET position = 1000")
    await is_thrown_away(world, "it is up to offset 1000, and the changelog ends at 6")


@program
async def an_offset_before_the_start(world: World) -> None:
    world.mark()
    await world.change(a="1", b="2")
    client = AIOKafkaAdminClient(bootstrap_servers=world.bench.admin)
    await client.start()
    try:
        records = {TopicPartition(world.topic, 0): RecordsToDelete(before_offset=6)}
        await client.delete_records(records)
    finally:
        await client.close()
    with contextlib.closing(sqlite3.connect(world.path)) as database, database:
        database.execute("UPDATE place SET position = 3")
    await is_thrown_away(world, "it is up to offset 3, and the changelog begins at 6")


@program
async def one_that_is_older_than_what_deletes_keys(world: World) -> None:
    world.mark()
    world.now = NOW + 13 * HOUR
    async with world.snapshot() as snapshot:
        # Nothing was written since.
        assert await found(await world.read(snapshot)) == FROM_THE_FILE
    assert world.logged() == []
    world.now = NOW + 26 * HOUR
    await world.change(a="0")
    await world.change(a="1")
    await is_thrown_away(world, "it is 13 hours old")


@program
async def one_from_before_a_clock_was_set_back(world: World) -> None:
    world.mark()
    world.now = NOW - 13 * HOUR
    await world.change(a="0")
    await world.change(a="1")
    await is_thrown_away(world, "it is from a time that has not come yet")


@program
async def what_was_known_all_the_time_is_not_too_old(world: World) -> None:
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
        # As if there had been commits of its own until an hour ago.
        states.at = NOW + 25 * HOUR
        world.now = NOW + 26 * HOUR
        await world.change(b="4")
        await world.restore(states)
        assert await found(states) == [b"1", b"4", None]
    assert world.logged() == []


@program
async def what_a_member_knew_before_it_was_away_for_too_long_is_read_again(world: World) -> None:
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
        # Nothing of it tells that a key was deleted: that was removed from the changelog, too.
        states.apply(b"gone", b"3")
        await snapshot.write(states)
        world.now = NOW + 26 * HOUR
        await world.change(b="4")
        await world.restore(states)
        assert await found(states) == [b"1", b"4", None]
    (line,) = world.logged()
    assert "it is 26 hours old" in line


@program
async def what_is_read_in_parts_is_as_old_as_its_first_part(world: World) -> None:
    async with world.snapshot() as snapshot:
        states = PartitionStates(snapshot)
        states.position, states.at = 1, NOW - HOUR
        await snapshot.write(states)
        assert await snapshot.place(0) == (1, NOW - HOUR, -1)
        await world.restore(states)
        place = await snapshot.place(0)
        assert place is not None
        assert place.at == NOW


@program
async def what_is_written_waits_for_no_others_that_go_on_changing(world: World) -> None:
    async with world.snapshot() as snapshot:
        states, busy = PartitionStates(snapshot, 1), PartitionStates(snapshot, 2)
        use = snapshot._use
        goes_on = True

        async def used(work: Callable[[SnapshotFile], Any]) -> Any:
            if goes_on:
                busy.apply(b"key", b"x" * 5_000_000)
                snapshot.note(busy)
            await asyncio.sleep(0)
            return await use(work)

        snapshot._use = used  # type: ignore[method-assign]
        snapshot.note(busy)
        states.apply(b"a", b"1")
        try:
            async with asyncio.timeout(60):
                await snapshot.write(states)
        finally:
            goes_on = False
        assert states.values == {}


@program
async def one_that_is_closed_is_never_taken_for_a_state_that_is_not_there(world: World) -> None:
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
    with pytest.raises(StateNotWritten):
        await states.load("a")


@program
async def a_damaged_file(world: World) -> None:
    world.path.write_bytes(b"no database" * 1_000)
    await is_thrown_away(world, "damaged, or no database")


@program
async def a_file_of_a_newer_version(world: World) -> None:
    with contextlib.closing(sqlite3.connect(world.path)) as database:
        database.execute("PRAGMA user_version=99")
    await is_thrown_away(world, "a newer version of this package")


@program
async def a_file_that_another_process_uses_is_left_to_it(world: World) -> None:
    async with world.snapshot() as first, world.snapshot() as second:
        states = await world.read(second)
        assert await found(states) == FROM_THE_LOG
        assert states.values == {b"a": b"1", b"b": b"2"}
        assert first.is_open
        assert not second.is_open
    (line,) = world.logged()
    assert "in use by another process" in line
    world.mark()
    async with world.snapshot() as snapshot:
        assert await found(await world.read(snapshot)) == FROM_THE_FILE


@program
async def a_database_of_somebody_else_is_left_alone(world: World) -> None:
    world.path.unlink()
    with contextlib.closing(sqlite3.connect(world.path)) as database:
        database.execute("CREATE TABLE precious (n)")
    async with world.snapshot() as snapshot:
        assert await found(await world.read(snapshot)) == FROM_THE_LOG
    (line,) = world.logged()
    assert "another kind of database" in line
    with contextlib.closing(sqlite3.connect(world.path)) as database:
        assert database.execute("SELECT count(*) FROM precious").fetchone() == (0,)


@program
async def a_disk_that_is_full_while_it_is_read(world: World) -> None:
    await world.change(**{f"k{number}": "x" * 1_000 for number in range(100)})
    async with world.snapshot() as snapshot:
        fill_the_disk(snapshot)
        states = PartitionStates(snapshot)
        with pytest.raises(SnapshotLost):
            await world.restore(states)
        assert not snapshot.is_open
        assert not world.path.exists()
        states.forget()
        await world.restore(states)
        assert await found(states) == FROM_THE_LOG
        assert len(states.values) == 102
    (line,) = world.logged()
    assert "is thrown away" in line
    assert "database or disk is full" in line


@program
async def one_that_fails_later_is_never_taken_for_a_state_that_is_not_there(world: World) -> None:
    async with world.snapshot() as snapshot:
        states = await world.read(snapshot)
        snapshot._on_lost = lambda error: states.forget()
        fill_the_disk(snapshot)
        states.apply(b"a", b"x" * 100_000)
        with pytest.raises(SnapshotLost):
            await snapshot.write(states)
        for key in ("a", "b"):
            with pytest.raises(StateNotWritten):
                await states.load(key)


class Reader:
    """Reads what each step says: records and the position after them, by partition."""

    def __init__(self, *steps: Callable[[], dict[TopicPartition, tuple[list[Any], int]]]) -> None:
        self._steps = iter(steps)
        self._positions: dict[TopicPartition, int] = {}
        self.paused: list[TopicPartition] = []

    async def getmany(
        self, *places: TopicPartition, timeout_ms: int
    ) -> dict[TopicPartition, list[Any]]:
        """As of the library, but regardless of what was asked for."""
        found = next(self._steps)()
        self._positions |= {place: position for place, (_, position) in found.items()}
        return {place: records for place, (records, _) in found.items()}

    async def position(self, place: TopicPartition) -> int:
        """As of the library."""
        return self._positions.get(place, 0)

    def pause(self, place: TopicPartition) -> None:
        """As of the library."""
        self.paused.append(place)


def test_one_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    SnapshotFile(tmp_path / "file").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "file")) as database:
        database.execute("PRAGMA user_version = 1")
    file = SnapshotFile(tmp_path / "file")
    assert "older version" in str(file.replaced)
    file.close()


def record(key: bytes, value: bytes) -> Any:
    return SimpleNamespace(key=key, value=value, headers=())


async def test_a_partition_that_is_restored_knows_only_what_its_actor_commits() -> None:
    first, second = TopicPartition("c", 0), TopicPartition("c", 1)
    states = {number: PartitionStates(None, number) for number in (0, 1)}
    live: list[int] = []

    def commit() -> dict[TopicPartition, tuple[list[Any], int]]:
        # The reader has got the first of two.
        states[0].apply(b"k", b"2")
        states[0].position = 5
        return {first: ([record(b"k", b"1")], 4), second: ([record(b"x", b"y")], 5)}

    reader = Reader(lambda: {first: ([record(b"k", b"0")], 2)}, commit)
    ends, config = {first: 2, second: 5}, KafkaConfig("localhost")
    await _changelog._read(
        reader,
        config,
        {first: 0, second: 0},
        ends,
        states,
        NOW,
        lambda it: live.append(it.partition),
    )
    assert live == [0, 1]
    assert await states[0].load("k") == b"2"
    assert states[0].position == 5
    assert reader.paused == [first, second]


async def test_what_is_read_after_everything_was_forgotten_is_not_taken_for_all(
    tmp_path: Path,
) -> None:
    place = TopicPartition("c", 1)
    log = LimitedLog(get_logger("spa_dat.snapshots"))
    snapshot = Snapshot(lambda: tmp_path / "file", log, lambda error: states.forget())
    await snapshot.open("id", 2)
    states = PartitionStates(snapshot, 1)
    states.position = 100
    file = snapshot._file
    assert file is not None

    def fail() -> dict[TopicPartition, tuple[list[Any], int]]:
        # As when the file cannot be read for another partition.
        snapshot._file = None
        states.forget()
        return {place: ([record(b"y", b"2")], 110)}

    reader = Reader(lambda: {place: ([record(b"x", b"1")], 105)}, fail)
    with pytest.raises(SnapshotLost):
        await _changelog._read(
            reader, KafkaConfig("localhost"), {place: 0}, {place: 110}, {1: states}, NOW, print
        )
    assert (states.restored, states.position, states.values) == (False, 0, {})
    await snapshot.close()
    file.close()


async def test_who_gives_up_waiting_for_the_file_leaves_it_to_who_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def opened(path: Path) -> SnapshotFile:
        begun.set()
        goes_on.wait(60)
        return SnapshotFile(path)

    monkeypatch.setattr(_snapshots, "SnapshotFile", opened)
    log = LimitedLog(get_logger("spa_dat.snapshots"))
    snapshot = Snapshot(lambda: tmp_path / "file", log, lambda error: None)
    opening = asyncio.create_task(snapshot.open("id", 1))
    await asyncio.to_thread(begun.wait, 60)
    opening.cancel()
    await asyncio.wait((opening,))
    goes_on.set()
    async with asyncio.timeout(60):
        await snapshot.open("id", 1)
    assert snapshot.is_open
    await snapshot.close()


async def test_a_disk_that_hangs_does_not_keep_a_program_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def hang(*_: object) -> None:
        goes_on.wait(60)

    monkeypatch.setattr(_snapshots, "_LAST_WRITE", 0.1)
    log = LimitedLog(get_logger("spa_dat.snapshots"))
    snapshot = Snapshot(lambda: tmp_path / "file", log, lambda error: None)
    await snapshot.open("id", 1)
    file = snapshot._file
    assert file is not None
    states = PartitionStates(snapshot)
    states.apply(b"a", b"1")
    monkeypatch.setattr(SnapshotFile, "write", hang)
    snapshot.note(states)
    try:
        async with asyncio.timeout(30):
            await snapshot.close()
        assert not snapshot.is_open
    finally:
        goes_on.set()
        writing = snapshot._writing
        if writing is not None:
            await asyncio.wait((writing,))
        await asyncio.to_thread(file.close)


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Snapshot, list[SnapshotLost]]]:
    """Open a snapshot of its own, which notes that it is lost, and close it at the end."""
    lost: list[SnapshotLost] = []
    log = LimitedLog(get_logger("spa_dat.snapshots"))
    snapshot = Snapshot(lambda: path / "file", log, lost.append)
    await snapshot.open("id", 1)
    try:
        yield snapshot, lost
    finally:
        await snapshot.close()


async def known(snapshot: Snapshot) -> PartitionStates:
    """Return states of which one key is in the snapshot, and in memory no more."""
    states = PartitionStates(snapshot)
    states.restored = True
    states.apply(b"a", b"1")
    await snapshot.write(states)
    return states


def break_it(*_: object) -> Any:
    raise sqlite3.DatabaseError("database disk image is malformed")


async def test_who_asks_for_the_same_key_at_once_gets_it_with_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, looks = SnapshotFile.load, []

    def looked(self: SnapshotFile, keys: Any) -> Any:
        looks.append([*keys])
        return load(self, keys)

    monkeypatch.setattr(SnapshotFile, "load", looked)
    async with opened(tmp_path) as (snapshot, _):
        states = await known(snapshot)
        found = await asyncio.gather(*(states.load(key) for key in ("a", "a", "b", "a")))
    assert found == [b"1", b"1", None, b"1"]
    assert looks == [[(0, b"a"), (0, b"b")]]


async def test_one_that_fails_in_two_ways_at_once_is_lost_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as (snapshot, lost):
        states = await known(snapshot)
        states.apply(b"b", b"2")
        monkeypatch.setattr(SnapshotFile, "load", break_it)
        monkeypatch.setattr(SnapshotFile, "write", break_it)
        asked, written = await asyncio.gather(
            states.load("a"), snapshot.write(states), return_exceptions=True
        )
    # Nobody is told that there is no state, or that it is safe.
    assert isinstance(asked, StateNotWritten)
    assert isinstance(written, SnapshotLost)
    assert len(lost) == 1
    assert caplog.text.count("is thrown away") == 1


@pytest.mark.virtual
async def test_who_has_asked_before_it_is_lost_is_not_told_that_there_is_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as (snapshot, lost):
        states = await known(snapshot)
        monkeypatch.setattr(SnapshotFile, "place", break_it)
        asking = asyncio.ensure_future(states.load("a"))
        await asyncio.sleep(0)
        with pytest.raises(SnapshotLost):
            await snapshot.place(0)
        assert len(lost) == 1
        with pytest.raises(StateNotWritten, match="was thrown away"):
            await asking


async def test_a_file_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remove = SnapshotFile.remove

    def refuse(self: SnapshotFile) -> None:
        remove(self)
        raise PermissionError("read-only file system")

    monkeypatch.setattr(SnapshotFile, "remove", refuse)
    monkeypatch.setattr(SnapshotFile, "load", break_it)
    async with opened(tmp_path) as (snapshot, lost):
        with pytest.raises(StateNotWritten):
            await snapshot.load(0, b"a")
        assert len(lost) == 1
    assert f"{tmp_path / 'file'}' cannot be removed: read-only file system" in caplog.text


async def test_closing_waits_for_who_is_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, begun, goes_on = SnapshotFile.load, threading.Event(), threading.Event()

    def slowly(self: SnapshotFile, keys: Any) -> Any:
        begun.set()
        goes_on.wait(60)
        return load(self, keys)

    async with opened(tmp_path) as (snapshot, _):
        states = await known(snapshot)
        monkeypatch.setattr(SnapshotFile, "load", slowly)
        asking = asyncio.ensure_future(states.load("a"))
        await asyncio.to_thread(begun.wait, 60)
        closing = asyncio.ensure_future(snapshot.close())
        await asyncio.sleep(0)
        goes_on.set()
        await closing
        assert await asking == b"1"


async def test_one_that_was_never_opened_can_be_closed(tmp_path: Path) -> None:
    log = LimitedLog(get_logger("spa_dat.snapshots"))
    snapshot = Snapshot(lambda: tmp_path / "file", log, lambda error: None)
    await snapshot.close()
    assert [*tmp_path.iterdir()] == []


async def test_records_without_a_key_are_no_states() -> None:
    place, states = TopicPartition("c", 0), PartitionStates()
    records = [SimpleNamespace(key=None, value=b"of somebody else"), record(b"k", b"1")]
    reader = Reader(lambda: {place: (records, 2)})
    await _changelog._read(
        reader, KafkaConfig("localhost"), {place: 0}, {place: 2}, {0: states}, NOW, print
    )
    assert states.restored
    assert states.values == {b"k": b"1"}


@pytest.mark.virtual
async def test_a_changelog_whose_end_does_not_come_is_not_taken_for_read(tmp_path: Path) -> None:
    place, states = TopicPartition("c", 0), PartitionStates()
    polls = 0

    class Silent(Reader):
        async def getmany(
            self, *places: TopicPartition, timeout_ms: int
        ) -> dict[TopicPartition, list[Any]]:
            nonlocal polls
            polls += 1
            await asyncio.sleep(timeout_ms / 1000)
            self._positions[place] = min(polls, 3)
            return {}

    config = KafkaConfig("localhost", request_timeout=10.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(kafka.KafkaTimeoutError, match="'c' cannot be read to its end"):
        await _changelog._read(Silent(), config, {place: 0}, {place: 5}, {0: states}, NOW, print)
    # As long as anything comes it goes on.
    assert loop.time() - began == pytest.approx(10.03)
    assert not states.restored


def fill_the_disk(snapshot: Snapshot) -> None:
    """Let the file not grow any more."""
    file: Any = snapshot._file
    database = file._file._database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count={pages}")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
async def test_without_a_folder_states_are_in_memory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="cannot be created"):
        SnapshotFile(tmp_path / "deeper" / "file")
