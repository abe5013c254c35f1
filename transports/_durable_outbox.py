"""An outbox in a file: what was published survives the process while the broker is away."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from .._limited_log import LimitedLog
from .._logs import get_logger
from .._texts import describe, error_name, quoted
from ..errors import (
    ConfigurationError,
    OutboxFull,
    PublishNotSent,
    PublishUnknown,
    SpaDatError,
    TransportError,
)
from ._connect_failures import not_outage
from ._contract import Bus, SocketProvider, Surroundings
from ._delegating_bus import DelegatingBus
from ._envelope import REPLY_HEADER, Envelope
from ._outbox import on_outcome, payload_too_large, size_of
from ._outbox_file import OUTBOX_FILE, Row, Rows, RowStatus, Unreadable, is_wanted, row_of
from ._outbox_options import OutboxFile
from ._sqlite_file import SqliteFile, file_name

__all__ = ["DurableOutbox"]

_log = get_logger(__name__)

# Messages that are given to the bus and have no outcome, and those in memory before that.
_MOST_UNDER_WAY = 1_000
_MOST_IN_LINE = 1_000
_MOST_BYTES_IN_LINE = 8_388_608
# A post waits while a transaction is written, so it is not to have more messages than that.
_LARGEST_TRANSACTION = 500
# Seconds after which something that the disk or the bus had no room for is tried again.
_AGAIN = 1.0
_LAST_WRITES = 5.0
# Seconds, and messages, until what was sent is removed from the file.
_REMOVE_AFTER = 0.02
_MOST_GONE = 1_000
_SYNCHRONISED = "synchronised with its disk"


class DurableOutbox(DelegatingBus):
    """Records in a file what is published, and then publishes it on another bus, in order.

    A publish, and the future of a post, is done when the message would survive a loss of power. A
    post returns when it would survive the end of the process. What is left in the file is published
    first after the next start, with the same ids. Requests, replies, dead letters and QoS 0 are
    left to the other bus as they are: nobody waits for the first two after a restart, whoever
    stores a dead letter waits until the broker has it, and QoS 0 may be lost.

    A message that the broker refuses for good is logged, counted as ``outbox.refused``, and removed
    from the file, so that those behind it are sent. One that cannot be read stays in the file, is
    told of by `trouble`, and counted as ``outbox.unreadable``.

    Args:
        bus: the other one.
        provider: what has opened it.
        surroundings: identity, clock and counters.
        options: where the file is, and how much it may have.

    Raises:
        ConfigurationError: there is no folder for the file.
    """

    def __init__(
        self, bus: Bus, provider: SocketProvider, surroundings: Surroundings, options: OutboxFile
    ) -> None:
        super().__init__(bus)
        self._check_message = provider.check_message
        self._now = surroundings.environment.now
        self._stats = surroundings.stats
        self._fatal = surroundings.fatal
        self._options = options
        self._path = options.path(surroundings.identity, provider.address)
        # For errors.
        self._file = file_name(OUTBOX_FILE, self._path)
        self._loop = asyncio.get_running_loop()
        self._limited_log = LimitedLog(_log)
        # One thread: it writes what has gathered while it was busy in one transaction.
        self._thread = ThreadPoolExecutor(1, "spa_dat outbox")
        # Set by the thread, and by the event loop, in which it is used then.
        self._opened: Rows | None = None
        self._rows: Rows | None = None
        self._closed = False
        # By what was done with the file: how it failed the last time.
        self._failing: dict[str, Exception] = {}
        self._unreadable = 0
        self._first_unreadable: Unreadable | None = None
        # Messages in the file or on their way there, without an outcome.
        self._count = 0
        self._size = 0
        self._last = 0
        # In order: in memory and to be published next. If it is `behind`, others that come after
        # these are only in the file.
        self._line: deque[Row] = deque()
        self._line_size = 0
        self._line_end = 0
        self._behind = False
        self._under_way: dict[int, Row] = {}
        self._again: asyncio.TimerHandle | None = None
        # For the thread: messages to write, those being written, those that are in the file and not
        # yet synchronised, and the places of those that have an outcome.
        self._unwritten: deque[Row] = deque()
        self._writing: list[Row] = []
        self._syncing: list[Row] = []
        self._unsynced: list[Row] = []
        self._gone: list[int] = []
        self._work = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._progress: list[asyncio.Future[None]] = []

    # The contract of a bus.

    @property
    def trouble(self) -> str | None:
        """See `Bus.trouble`."""
        for what, error in self._failing.items():
            return f"{self._file} cannot be {what}: {error}"
        return self._about_unreadable() or self._bus.trouble

    @property
    def pending(self) -> int:
        """See `Bus.pending`."""
        return self._count - len(self._under_way) + (self._bus.pending or 0)

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """See `Bus.start`; also opens the file, and publishes first what is left in it.

        Raises:
            ConfigurationError: the file cannot be used; it is left as it is.
        """
        rows = await self._loop.run_in_executor(self._thread, self._open)
        if self._closed:
            return
        self._rows = rows
        self._last = rows.last
        self._count, self._size = rows.count, rows.size
        self._behind = rows.count > 0
        if rows.count:
            _log.info("%d messages are left in %s, and are sent first", rows.count, self._path)
        self._worker = self._loop.create_task(self._run())
        self._worker.add_done_callback(self._worker_ended)
        await self._bus.start(on_reply)
        self._work.set()

    def _open(self) -> Rows:
        rows = self._opened = Rows(self._path)
        if self._closed:
            rows.close()
        return rows

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """See `Bus.post`."""
        if self._passes(envelope):
            return self._bus.post(envelope)
        recorded: asyncio.Future[None] = self._loop.create_future()
        rows = self._rows
        if self._closed or rows is None:
            recorded.set_exception(_closed(envelope))
            return recorded
        row = self._accepted(envelope, recorded)
        try:
            rows.add([row])
        except sqlite3.Error as error:
            self._note("written", error)
            raise self._not_written(row, error) from error
        self._note("written", None)
        self._enter(row)
        row.status = RowStatus.WRITTEN
        self._unsynced.append(row)
        self._work.set()
        self._feed()
        return recorded

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        """See `Bus.publish`; the confirmation is that of the file."""
        if self._passes(envelope):
            await self._bus.publish(envelope, timeout=timeout)
            return
        if self._closed or self._rows is None:
            raise _closed(envelope)
        recorded: asyncio.Future[None] = self._loop.create_future()
        row = self._accepted(envelope, recorded)
        row.awaited = True
        self._enter(row)
        self._unwritten.append(row)
        self._work.set()
        timer = self._loop.call_later(timeout, self._out_of_time, row, timeout)
        try:
            await recorded
        finally:
            timer.cancel()

    async def drain(self) -> None:
        """See `Bus.drain`: waits until the file is empty."""
        while not self._closed and (self._count or self._unsynced or self._syncing):
            await self._change()
        await self._bus.drain()

    async def room(self) -> None:
        """See `Bus.room`."""
        options = self._options
        while not self._closed and (
            self._count > options.max_messages // 2 or self._size > options.max_bytes // 2
        ):
            await self._change()
        await self._bus.room()

    async def close(self) -> None:
        """See `Bus.close`; what has no outcome stays in the file."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        await self._bus.close()
        # The outcomes of what it had are told.
        await asyncio.sleep(0)
        self._work.set()
        if self._worker is not None:
            await asyncio.wait((self._worker,), timeout=_LAST_WRITES)
        if self._count and self._rows is not None:
            lost = self._failing.get(_SYNCHRONISED)
            if lost is None:
                _log.info("%d messages stay in %s until the next start", self._count, self._path)
            else:
                _log.error(
                    "%d messages were not sent, and may not be there at the next start: %s cannot"
                    " be %s: %s",
                    self._count,
                    self._file,
                    _SYNCHRONISED,
                    lost,
                )
        self.abandon()

    def abandon(self) -> None:
        """Release the file at once, as it is."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False)
        if self._opened is not None:
            self._opened.close()
        for row in self._unwritten:
            _end(row, _closed(row.envelope))
        for row in (*self._writing, *self._syncing, *self._unsynced):
            _end(row, self._unknown(row, "before the application ended"))
        self._wake()

    # Into the file.

    @staticmethod
    def _passes(envelope: Envelope) -> bool:
        """Return whether a message is none that is recorded."""
        return (
            envelope.correlation is not None
            or envelope.qos == 0
            or REPLY_HEADER in envelope.headers
        )

    def _accepted(self, envelope: Envelope, recorded: asyncio.Future[None]) -> Row:
        """Return a message as it is to be written; raise what the bus would."""
        if len(envelope.payload) > self.max_payload:
            raise payload_too_large(envelope, self.max_payload)
        self._check_message(envelope)
        if envelope.qos != 1:
            raise ConfigurationError(f"qos={envelope.qos} of a publish: give 0 or 1")
        size = size_of(envelope)
        options = self._options
        what = ""
        if self._count >= options.max_messages:
            what = f"{self._count} messages, as many as max_messages allows"
        elif self._size and self._size + size > options.max_bytes:
            what = f"{self._size} bytes of max_bytes={options.max_bytes}"
        if what:
            full = OutboxFull(
                f"{self._file} has {what}, and the message to {envelope.topic!r} was not accepted:"
                " wait for room with 'await socket.drain()', or raise the option of OutboxFile"
            )
            full.outage = not self._bus.connected
            raise full
        self._last += 1
        return row_of(self._last, envelope, self._now(), recorded)

    def _enter(self, row: Row) -> None:
        self._count += 1
        self._size += row.size
        if not self._behind and (
            len(self._line) >= _MOST_IN_LINE or self._line_size > _MOST_BYTES_IN_LINE
        ):
            self._behind = True
        if not self._behind:
            self._append(row)

    def _leave(self, row: Row) -> None:
        self._count -= 1
        self._size -= row.size
        self._wake()

    def _not_written(self, row: Row, error: BaseException) -> TransportError:
        """Return the error for a message that is not in the file."""
        if not SqliteFile.is_full(error):
            return not_outage(
                PublishNotSent(
                    f"the message to {row.envelope.topic!r} was not written to {self._file}:"
                    f" {error}"
                )
            )
        full = OutboxFull(
            f"there is no room on the disk for {self._file} ({error}), and the message to"
            f" {row.envelope.topic!r} was not accepted: make room, or give another folder"
        )
        # A handler does not fail over it, but is called again until there is room.
        full.outage = True
        return full

    def _out_of_time(self, row: Row, timeout: float) -> None:
        _end(row, self._unknown(row, f"within {timeout:g} s"))

    def _unknown(self, row: Row, when: str) -> PublishUnknown:
        """Return the error for a message that may be in the file, or come there."""
        return not_outage(
            PublishUnknown(
                f"it is not known whether the publish to {row.envelope.topic!r} was written to"
                f" {self._file} {when}; it may be sent all the same"
            )
        )

    async def _run(self) -> None:
        """Have the thread write, again and again, whatever there is."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._unwritten or self._unsynced or self._gone:
                if not await self._write():
                    break
                self._wake()
                self._feed()
            self._wake()
            if self._closed:
                return
            self._feed()
            await self._catch_up()

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        error = None if worker.cancelled() else worker.exception()
        if error is not None:
            self._fatal(error)

    async def _write(self) -> bool:
        """Write once; return whether all is well."""
        rows = self._rows
        assert rows is not None
        taken = min(len(self._unwritten), _LARGEST_TRANSACTION)
        writing = self._writing = [self._unwritten.popleft() for _ in range(taken)]
        # Some may be with the broker by now.
        unsynced = self._syncing = [row for row in self._unsynced if is_wanted(row)]
        self._unsynced = []
        gone, self._gone = self._gone[:5_000], self._gone[5_000:]
        problems = await self._loop.run_in_executor(
            self._thread, _written, rows, writing, gone, bool(writing or unsynced)
        )
        self._writing, self._syncing = [], []
        not_removed, not_added, not_synced = problems
        # What was not tried proves nothing.
        if gone:
            self._note("emptied", not_removed)
        if writing:
            self._note("written", not_added)
        if writing or unsynced:
            self._note(_SYNCHRONISED, not_synced)
        if not_removed is not None:
            self._gone[:0] = gone
            self._retry_later()
        for row in writing:
            if not_added is None:
                row.status = RowStatus.WRITTEN
            else:
                row.status = RowStatus.FAILED
                self._leave(row)
        for row in filter(is_wanted, (*unsynced, *writing)):
            assert row.recorded is not None
            if row.status is RowStatus.FAILED:
                assert not_added is not None
                row.recorded.set_exception(self._not_written(row, not_added))
            elif not_synced is None:
                row.recorded.set_result(None)
            elif row.awaited:
                row.recorded.set_exception(self._not_synced(not_synced))
            else:
                # The message that it follows from is not acknowledged before it is safe, here or
                # with the broker.
                self._unsynced.append(row)
        if not_synced is not None:
            self._retry_later()
        return not_removed is None and not_synced is None

    def _not_synced(self, error: Exception) -> PublishUnknown:
        unknown = PublishUnknown(f"{self._file} cannot be {_SYNCHRONISED}: {error}")
        # A handler does not fail over it, but is called again until it can be.
        unknown.outage = True
        return unknown

    def _note(self, what: str, error: Exception | None) -> None:
        """Note how something that was done with the file has ended."""
        if error is not None:
            self._failing[what] = error
            self._limited_log.error("%s cannot be %s: %s", self._file, what, error)
        elif self._failing:
            self._failing.pop(what, None)

    def _retry_later(self) -> None:
        if not self._closed:
            self._loop.call_later(_AGAIN, self._work.set)

    # Out of the file.

    def _append(self, row: Row) -> None:
        self._line.append(row)
        self._line_size += row.size
        self._line_end = row.n

    def _feed(self) -> None:
        """Give to the bus what is in memory, as far as it is in the file."""
        line = self._line
        while line and not self._closed and len(self._under_way) < _MOST_UNDER_WAY:
            row = line[0]
            if row.status is RowStatus.UNWRITTEN:
                break
            if row.status is RowStatus.WRITTEN and not self._publish(row):
                break
            line.popleft()
            self._line_size -= row.size
        if self._behind and not line and self._rows is not None:
            self._work.set()

    def _publish(self, row: Row) -> bool:
        """Give one message to the bus; return False if it has no room."""
        envelope = row.envelope
        if row.expires is not None:
            left = row.expires - self._now()
            if left <= 0:
                self._stats["publishes.expired"] += 1
                self._limited_log.warning(
                    "the message to %s has expired while it waited for the broker, and is not sent",
                    quoted(envelope.topic),
                )
                self._forget(row)
                return True
            # The clock may have been put back.
            left = min(left, envelope.expiry or left)
            envelope = msgspec.structs.replace(envelope, expiry=left)
        try:
            posted = self._bus.post(envelope)
        except OutboxFull:
            if self._again is None or self._again.when() <= self._loop.time():
                self._again = self._loop.call_later(_AGAIN / 10, self._feed)
            return False
        except SpaDatError as error:
            self._refused(row, error)
            return True
        self._under_way[row.n] = row
        on_outcome(posted, partial(self._sent, row))
        return True

    def _sent(self, row: Row, posted: asyncio.Future[None]) -> None:
        del self._under_way[row.n]
        error = asyncio.CancelledError() if posted.cancelled() else posted.exception()
        if error is None:
            self._forget(row)
        elif self._closed or isinstance(
            error, asyncio.CancelledError | PublishNotSent | PublishUnknown
        ):
            # The bus was closed: it stays in the file.
            return
        elif isinstance(error, TransportError) and error.outage:
            self._line = deque(sorted((row, *self._line), key=lambda row: row.n))
            self._line_size += row.size
        else:
            self._refused(row, error)
        self._feed()

    def _refused(self, row: Row, error: BaseException) -> None:
        self._stats["outbox.refused"] += 1
        self._limited_log.error(
            "the message %s to %s in the outbox file is refused for good, and dropped: %s: %s",
            quoted(row.envelope.id),
            quoted(row.envelope.topic),
            error_name(error),
            describe(error),
            kind=error_name(error),
        )
        self._forget(row)

    def _forget(self, row: Row) -> None:
        if is_wanted(row):
            # What the broker has need not be in the file.
            assert row.recorded is not None
            row.recorded.set_result(None)
        self._gone.append(row.n)
        self._leave(row)
        # What is sent and not removed comes twice if the program ends now, but each transaction
        # costs as much as several messages.
        if len(self._gone) == 1:
            self._loop.call_later(_REMOVE_AFTER, self._work.set)
        elif len(self._gone) == _MOST_GONE:
            self._work.set()

    async def _catch_up(self) -> None:
        """Read the next messages from the file if there are only these."""
        rows = self._rows
        if not self._behind or self._line or rows is None or self._closed:
            return
        first = next(iter(self._writing or self._unwritten), None)
        last = self._last
        upto = last if first is None else first.n - 1
        try:
            read = await self._loop.run_in_executor(
                self._thread, rows.read, self._line_end, upto, _MOST_IN_LINE, _MOST_BYTES_IN_LINE
            )
        except sqlite3.Error as error:
            if self._closed:
                return
            self._note("read", error)
            self._retry_later()
            return
        self._note("read", None)
        for row in read:
            if isinstance(row, Row):
                self._append(row)
            else:
                self._set_aside(row)
        if not read:
            if first is None and last == self._last:
                self._behind = False
            elif first is None:
                self._work.set()
        self._feed()

    def _set_aside(self, message: Unreadable) -> None:
        """Leave a message in the file, and go on with those behind it."""
        self._line_end = message.n
        self._unreadable += 1
        self._first_unreadable = self._first_unreadable or message
        self._stats["outbox.unreadable"] += 1
        self._limited_log.error(
            "message number %d in %s cannot be read (%s), and stays there",
            message.n,
            self._file,
            message.why,
        )
        self._count -= 1
        self._size -= message.size
        self._wake()

    def _about_unreadable(self) -> str | None:
        first = self._first_unreadable
        if first is None:
            return None
        return (
            f"{self._unreadable} messages in {self._file} cannot be read and stay there, the first"
            f" of them is number {first.n} ({first.why}): use the version that has written them, or"
            " move the file away when the application has stopped, and do without them"
        )

    # Whoever waits.

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._progress.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._progress = self._progress, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _written(
    rows: Rows, adding: list[Row], removing: list[int], sync: bool
) -> tuple[Exception | None, Exception | None, Exception | None]:
    """Write in the thread; return what has gone wrong when removing, adding and synchronising."""
    not_removed = not_added = not_synced = None
    if removing:
        # First, which makes room.
        not_removed = _problem(partial(rows.remove, removing))
    if adding:
        not_added = _problem(partial(rows.add, adding))
    if sync:
        not_synced = _problem(rows.sync)
    elif removing:
        # While what was left is sent, and nothing else published, nobody else keeps the log short.
        not_removed = not_removed or _problem(rows.tidy)
    return not_removed, not_added, not_synced


def _problem(work: Callable[[], None]) -> Exception | None:
    try:
        work()
    except (sqlite3.Error, OSError) as error:
        return error
    return None


def _end(row: Row, error: TransportError) -> None:
    """Tell an error to whoever waits for a message."""
    if is_wanted(row):
        assert row.recorded is not None
        row.recorded.set_exception(error)
        # Whoever waited may be gone.
        row.recorded.exception()


def _closed(envelope: Envelope) -> PublishNotSent:
    return not_outage(
        PublishNotSent(
            f"publish to {envelope.topic!r} was not sent: the bus is not open; it is safe to"
            " publish it again"
        )
    )
