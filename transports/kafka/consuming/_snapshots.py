"""Snapshots: a local copy of a changelog, so that not all of it is read again, nor in memory."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ...._busy_threads import has_own_clock
from ...._limited_log import LimitedLog
from ....errors import ConfigurationError, StateNotWritten
from ._snapshot_file import Place, SnapshotFile

__all__ = ["PartitionStates", "Snapshot", "SnapshotLost", "key_bytes"]

T = TypeVar("T")

# Seconds for which what was committed is collected: what changes again meanwhile is written once.
_WRITE_AFTER = 1.0
# Seconds for what is left at the end.
_LAST_WRITE = 5.0
# What is collected at the most before it is written, and before those who commit have to wait.
_MANY_KEYS, _MOST_KEYS = 5_000, 20_000
_MANY_BYTES, _MOST_BYTES = 4_194_304, 16_777_216
# As many times that do not hold any more cost nothing.
_FEW = 1_000


# Who waits for what there is of a key of a partition.
_Loads = dict[tuple[int, bytes], list[asyncio.Future[bytes | None]]]


class SnapshotLost(Exception):
    """A snapshot cannot be used any more, and everything has to be read from the changelog."""


def key_bytes(key: str) -> bytes:
    """Return a key as it is in records."""
    return key.encode("utf-8", "surrogatepass")


class PartitionStates:
    """What is committed of the keys of one partition.

    Args:
        snapshot: has what is not in memory; None if all of it is in memory.
        partition: the number of the partition.

    Attributes:
        partition: as given.
        values: by the keys, as they are in records: all there are without a snapshot; with one,
            those that are not written yet, None for one that was deleted.
        wakes: when something is to be done with some of these keys, in seconds since 1970.
        position: the offset in the changelog up to which they are known.
        restored: whether that was its end when nobody else could write there any more.
        at: when the position was the end of the changelog, or reading it from its start began, in
            seconds since 1970.
        epoch: that of the leader which has appended the last of it, or of a former one; -1 if none
            is known.
        size: bytes in ``values``, or more.
        seen: whether any state was ever committed, as far as it is known.
        forgotten: how often everything was forgotten.
    """

    def __init__(self, snapshot: Snapshot | None = None, partition: int = 0) -> None:
        self.partition = partition
        self.values: dict[bytes, bytes | None] = {}
        self.wakes: dict[bytes, float] = {}
        # A heap of the same, in which there may also be what does not hold any more.
        self._order: list[tuple[float, bytes]] = []
        self.position = 0
        self.restored = False
        self.at = 0.0
        self.epoch = -1
        self.size = self.forgotten = 0
        self.seen = False
        self._snapshot = snapshot

    @property
    def snapshot(self) -> Snapshot | None:
        """Where the states are that are not in memory; None if all are."""
        return None if self._snapshot is None or not self._snapshot.is_open else self._snapshot

    @property
    def many(self) -> bool:
        """Whether so much is in memory that it should be written soon."""
        return len(self.values) >= _MANY_KEYS or self.size >= _MANY_BYTES

    @property
    def too_many(self) -> bool:
        """Whether so much is in memory that it has to be written before there is more."""
        return len(self.values) >= _MOST_KEYS or self.size >= _MOST_BYTES

    def apply(self, key: bytes, value: bytes | None, wake: float | None = None) -> None:
        """Take notice of a record.

        Args:
            key: its key.
            value: what is kept of that; None for nothing.
            wake: when something is to be done with it; None for never.
        """
        self.seen = True
        if wake is not None:
            self._wake_at(key, wake)
        elif self.wakes:
            self.wakes.pop(key, None)
        if self.snapshot is not None:
            self.values[key] = value
            self.size += len(key) + (0 if value is None else len(value))
        elif value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value

    def _wake_at(self, key: bytes, wake: float) -> None:
        self.wakes[key] = wake
        heapq.heappush(self._order, (wake, key))
        if len(self._order) > 2 * len(self.wakes) + _FEW:
            self._order = [(when, known) for known, when in self.wakes.items()]
            heapq.heapify(self._order)

    def forget(self) -> None:
        """Know nothing any more."""
        self.values = {}
        self.wakes = {}
        self._order = []
        self.position = self.size = 0
        self.restored = self.seen = False
        self.at = 0.0
        self.epoch = -1
        self.forgotten += 1

    def written(self, values: dict[bytes, bytes | None]) -> None:
        """Note that values are in the snapshot."""
        for key, value in values.items():
            if self.values.get(key, self) is value:
                del self.values[key]
                self.wakes.pop(key, None)
        if not self.wakes:
            self._order.clear()
        self.size = sum(len(key) + len(value or b"") for key, value in self.values.items())

    async def load(self, key: str) -> bytes | None:
        """Return what is committed of a key; None for nothing.

        Raises:
            StateNotWritten: it cannot be read at the moment.
        """
        if not self.restored:
            raise StateNotWritten("the states of the keys are still read from their changelog")
        if self._snapshot is not None and self._snapshot.closed:
            raise StateNotWritten("the states of the keys were given up")
        known = key_bytes(key)
        snapshot = self.snapshot
        if snapshot is None or known in self.values:
            return self.values.get(known)
        return await snapshot.load(self.partition, known)

    async def first_due(
        self, most: int, without: Collection[bytes]
    ) -> Sequence[tuple[bytes, float]]:
        """Return the keys in which something is to be done first, and when, in that order.

        Args:
            most: how many at the most.
            without: keys that are left out.

        Raises:
            StateNotWritten: they cannot be read at the moment.
        """
        found = self._first_in_memory(most, without)
        snapshot = self.snapshot
        if snapshot is None:
            return found
        # What is in memory may be written meanwhile.
        rest = await snapshot.first_due(self.partition, most, {*self.values, *without})
        return sorted((*found, *rest), key=lambda one: one[1])[:most]

    def _first_in_memory(self, most: int, without: Collection[bytes]) -> list[tuple[bytes, float]]:
        found: list[tuple[bytes, float]] = []
        held: list[tuple[float, bytes]] = []
        while self._order and len(found) < most:
            entry = heapq.heappop(self._order)
            wake, key = entry
            if self.wakes.get(key) != wake or (held and held[-1] == entry):
                continue
            held.append(entry)
            if key not in without:
                found.append((key, wake))
        for entry in held:
            heapq.heappush(self._order, entry)
        return found


class Snapshot:
    """The snapshot of one actor, and the thread that reads and writes it.

    What cannot be used is thrown away, which is logged once with the reason; from then on, until
    the next start, states are in memory.

    Args:
        path: returns where its file is; raises ConfigurationError if there is no place for it.
        log: where it is told that, and why, one is thrown away.
        on_lost: called when what was in it has to be read from the changelog.
    """

    def __init__(
        self,
        path: Callable[[], Path],
        log: LimitedLog,
        on_lost: Callable[[SnapshotLost], None],
    ) -> None:
        self._path = path
        self._log = log
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        inline = has_own_clock(self._loop)
        self._thread = None if inline else ThreadPoolExecutor(1, "spa_dat snapshot")
        self._file: SnapshotFile | None = None
        self._opening: asyncio.Task[None] | None = None
        self._loads: _Loads = {}
        self._loading: asyncio.Task[None] | None = None
        # What is to be written next, and what is being written.
        self._changed: dict[PartitionStates, None] = {}
        self._round: dict[PartitionStates, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether it was closed: what is not in memory is not known any more."""
        return self._ending is not None

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._file is not None

    async def open(self, topic: str, partitions: int) -> None:
        """Open its file, unless that was tried before; throw away what is of another changelog.

        Args:
            topic: the id of the changelog.
            partitions: how many it has.
        """
        if self._opening is None:
            self._opening = self._loop.create_task(self._open())
        # Who waits may give up; what was opened would be locked for whoever tries again.
        await asyncio.shield(self._opening)
        file = self._file
        if file is None:
            return
        with contextlib.suppress(SnapshotLost):
            why = await self._use(lambda file: file.fit(topic, partitions)) or file.replaced
            file.replaced = None
            if why is not None:
                self._tell(file.name, f"it is {why}")

    async def _open(self) -> None:
        try:
            path = self._path()
            self._file = await self._in_thread(lambda: SnapshotFile(path))
        except (ConfigurationError, sqlite3.Error, OSError) as error:
            self._log.warning(
                "there is no snapshot of the states of keys, so that all are in memory, and"
                " read from their changelog at each start: %s",
                error,
            )

    def _tell(self, name: str, why: str) -> None:
        self._log.warning(
            "%s is thrown away, and what was in it is read from the changelog: %s", name, why
        )

    async def place(self, partition: int) -> Place | None:
        """Return up to where a partition is known; None if nothing is.

        Raises:
            SnapshotLost: it cannot be read.
        """
        return await self._use(lambda file: file.place(partition))

    async def forget(self, partition: int, why: str) -> None:
        """Throw away what there is of a partition; raises SnapshotLost."""

        def forget(file: SnapshotFile) -> str:
            file.forget(partition)
            return file.name

        self._tell(f"partition {partition} of {await self._use(forget)}", why)

    # Reading.

    async def load(self, partition: int, key: bytes) -> bytes | None:
        """Return what there is of a key.

        Raises:
            StateNotWritten: it cannot be read.
        """
        # Everybody waits for a future of their own, as they may give up: a shield costs more.
        waiter: asyncio.Future[bytes | None] = self._loop.create_future()
        self._loads.setdefault((partition, key), []).append(waiter)
        if self._loading is None:
            self._loading = self._loop.create_task(self._load())
        return await waiter

    async def first_due(
        self, partition: int, most: int, without: Collection[bytes]
    ) -> Sequence[tuple[bytes, float]]:
        """See `PartitionStates.first_due`."""
        try:
            return await self._use(lambda file: file.first_due(partition, most, without))
        except SnapshotLost as error:
            raise StateNotWritten(str(error)) from error

    async def _load(self) -> None:
        try:
            while self._loads:
                # Whoever runs now may ask, too.
                await asyncio.sleep(0)
                asked, self._loads = self._loads, {}
                try:
                    found = await self._use(partial(_load, asked))
                except SnapshotLost as error:
                    self._refuse(asked, error)
                    continue
                for place, waiters in asked.items():
                    for waiter in waiters:
                        if not waiter.done():
                            waiter.set_result(found.get(place))
        finally:
            self._loading = None

    def _refuse(self, asked: _Loads, error: SnapshotLost) -> None:
        for waiter in itertools.chain.from_iterable(asked.values()):
            if not waiter.done():
                waiter.set_exception(StateNotWritten(str(error)))
                # Whoever has asked may be gone.
                waiter.exception()

    # Writing.

    def note(self, states: PartitionStates) -> None:
        """Have what is committed of a partition written, now or soon."""
        self._changed[states] = None
        self._write_soon()

    def _write_soon(self) -> None:
        if any(states.many for states in self._changed):
            self._write_now()
        elif self._changed and self._timer is None:
            self._timer = self._loop.call_later(_WRITE_AFTER, self._write_now)

    def _write_now(self) -> asyncio.Task[None]:
        self._cancel_timer()
        if self._writing is None:
            self._writing = self._loop.create_task(self._write())
        return self._writing

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def write(self, states: PartitionStates) -> None:
        """Write what is known of a partition.

        Raises:
            SnapshotLost: it could not be written.
        """
        self._changed[states] = None
        # Others may go on changing for ever.
        while states in self._changed or states in self._round:
            await asyncio.wait((self._write_now(),))
        if self._file is None:
            raise SnapshotLost("the snapshot was thrown away")

    async def _write(self) -> None:
        self._round, self._changed = self._changed, {}
        try:
            while self._round:
                states = next(iter(self._round))
                values, wakes = dict(states.values), dict(states.wakes)
                at = Place(states.position, states.at, states.epoch)
                number = states.partition
                try:
                    await self._use(partial(_write, number, values, wakes, at))
                except SnapshotLost:
                    self._changed.clear()
                    return
                states.written(values)
                del self._round[states]
        finally:
            self._round = {}
            self._writing = None
        self._write_soon()

    # The file.

    async def _use(self, work: Callable[[SnapshotFile], T]) -> T:
        file = self._file
        if file is None:
            raise SnapshotLost("the snapshot was thrown away")
        try:
            return await self._in_thread(lambda: work(file))
        except (sqlite3.Error, OSError, MemoryError, RuntimeError) as error:
            # The last is said where there is no thread any more.
            lost = SnapshotLost(f"{file.name} cannot be used: {error}")
            await self._lose(file, lost)
            raise lost from error

    async def _lose(self, file: SnapshotFile, error: SnapshotLost) -> None:
        if self._file is not file:
            return
        self._file = None
        self._tell(file.name, str(error.__cause__ or error))
        self._on_lost(error)
        try:
            await self._in_thread(file.remove)
        except OSError as failed:
            self._log.warning("%s cannot be removed: %s", file.name, failed)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            return work()
        return await self._loop.run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Write what is left, and release the file. Never raises; bounded in time."""
        ending = self._ending = self._loop.create_task(self._end())
        await asyncio.wait((ending,), timeout=_LAST_WRITE)
        if not ending.done():
            # The disk hangs. What is missing in the file is in the changelog.
            ending.cancel()
            await asyncio.wait((ending,))
            self._file = None
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def abandon(self) -> None:
        """Release the file as it is, after everything that uses it was killed."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    async def _end(self) -> None:
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        while self._changed or self._writing is not None:
            await asyncio.wait((self._write_now(),))
        if self._loading is not None:
            await asyncio.wait((self._loading,))
        self._cancel_timer()
        file, self._file = self._file, None
        if file is not None:
            await self._in_thread(file.close)


def _load(
    keys: Collection[tuple[int, bytes]], file: SnapshotFile
) -> dict[tuple[int, bytes], bytes]:
    return file.load(keys)


def _write(
    partition: int,
    values: Mapping[bytes, bytes | None],
    wakes: Mapping[bytes, float],
    place: Place,
    file: SnapshotFile,
) -> None:
    file.write(partition, values, wakes, place)
