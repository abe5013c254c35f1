"""The outbox in a file: what was recorded is sent, in order, also after a restart."""

from __future__ import annotations

import asyncio
import random
import resource
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spa_dat._environment import Environment
from spa_dat.errors import (
    ConfigurationError,
    MessageTooLarge,
    NotAuthorised,
    OutboxFull,
    PublishNotSent,
    PublishUnknown,
)
from spa_dat.transports import (
    Bus,
    Consumer,
    Envelope,
    Identity,
    MemoryProvider,
    Outbox,
    OutboxEntry,
    Receiver,
    Subscription,
    Surroundings,
)
from spa_dat.transports._durable_outbox import DurableOutbox
from spa_dat.transports._outbox_options import OutboxFile
from spa_dat.transports.memory import MemoryConfig
from support.failing_disk import fail_to_synchronise

IDENTITY = Identity("plant", "0")


class Broker(Bus):
    """A bus whose broker comes and goes, and that keeps what it has confirmed."""

    def __init__(self, confirmed: list[Envelope], capacity: int = 10_000) -> None:
        self.max_payload = 1_000_000
        self.connected = False
        self.confirmed = confirmed
        self.refuses: str | None = None
        self._outbox = Outbox(self._write, capacity=capacity)

    def _write(self, entry: OutboxEntry) -> None:
        if entry.envelope.topic == self.refuses:
            self._outbox.fail(entry, NotAuthorised("not you"))
            return
        self.confirmed.append(entry.envelope)
        self._outbox.confirm(entry)

    def come(self) -> None:
        self.connected = True
        self._outbox.connected()

    def go(self) -> None:
        self.connected = False
        self._outbox.disconnected()

    @property
    def pending(self) -> int:
        return len(self._outbox)

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """Start without a connection."""

    def reply_address(self, correlation: str) -> str:
        return correlation

    def consumer(self, subscription: Subscription, receiver: Receiver) -> Consumer:
        raise NotImplementedError

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        return self._outbox.submit(envelope)

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        await self._outbox.publish(envelope, timeout)

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        await self._outbox.publish(envelope, timeout)

    async def drain(self) -> None:
        await self._outbox.drain()

    async def close(self) -> None:
        self._outbox.close()


class Clock(Environment):
    """Wall time that a test moves."""

    time = 1_000.0

    def now(self) -> float:
        return self.time


class Life:
    """One life of an outbox on the same file."""

    def __init__(self, folder: Path, confirmed: list[Envelope], **options: int) -> None:
        self.clock = Clock()
        self.stats: Counter[str] = Counter()
        self.broker = Broker(confirmed, options.pop("capacity", 10_000))
        surroundings = Surroundings(IDENTITY, self.clock, self.stats)
        self.outbox = DurableOutbox(
            self.broker,
            MemoryProvider(MemoryConfig("outbox")),
            surroundings,
            OutboxFile(folder=folder, **options),
        )

    async def start(self) -> None:
        await self.outbox.start(lambda correlation, envelope: None)

    async def publish(self, number: int, **fields: object) -> None:
        await self.outbox.publish(message(number, **fields), timeout=60)

    def post(self, number: int, **fields: object) -> asyncio.Future[None]:
        return self.outbox.post(message(number, **fields))


def message(number: int, **fields: object) -> Envelope:
    values: dict[str, object] = {"topic": "n", "payload": b"%d" % number, "id": f"id-{number}"}
    return Envelope(**{**values, **fields})  # type: ignore[arg-type]


def numbers(envelopes: list[Envelope]) -> list[int]:
    return [int(envelope.payload) for envelope in envelopes]


@asynccontextmanager
async def living(folder: Path, confirmed: list[Envelope], **options: int) -> AsyncIterator[Life]:
    life = Life(folder, confirmed, **options)
    try:
        await life.start()
        yield life
    finally:
        await life.outbox.close()


def only_file(folder: Path) -> Path:
    (found,) = folder.glob("*.outbox")
    return found


async def test_a_publish_returns_without_a_broker_and_is_sent_in_the_next_life(
    tmp_path: Path,
) -> None:
    confirmed: list[Envelope] = []
    fields = {"headers": {"a": "b"}, "key": "k", "time": 5.0, "content_type": "text/plain"}
    async with living(tmp_path, confirmed) as life:
        await life.publish(1, **fields)
        await life.post(2)
        assert life.outbox.pending == 2
    assert confirmed == []
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
        assert life.outbox.pending == 0
    assert confirmed == [message(1, **fields), message(2)]
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.publish(3)
        await life.outbox.drain()
    assert numbers(confirmed) == [1, 2, 3]


async def test_what_a_post_returned_for_is_in_the_file_before_anything_else_runs(
    tmp_path: Path,
) -> None:
    confirmed: list[Envelope] = []
    life = Life(tmp_path, confirmed)
    await life.start()
    life.post(1)
    # As a kill: nothing else of it runs.
    life.outbox.abandon()
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
    assert numbers(confirmed) == [1]


@pytest.mark.parametrize("seed", range(12))
async def test_any_lives_send_all_that_was_recorded_in_order(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    confirmed: list[Envelope] = []
    recorded: set[int] = set()
    number = 0
    for _ in range(6):
        life = Life(tmp_path, confirmed, capacity=dice.choice((3, 10_000)))
        await life.start()
        publishing: list[asyncio.Task[None]] = []

        async def publish(number: int, life: Life = life) -> None:
            await life.publish(number)
            recorded.add(number)

        for _ in range(dice.randrange(1, 1_500)):
            chance = dice.random()
            number += 1
            if chance < 0.3:
                publishing.append(asyncio.ensure_future(publish(number)))
                # It takes its place when it runs.
                await asyncio.sleep(0)
            else:
                life.post(number)
                recorded.add(number)
            if chance > 0.99:
                life.broker.come()
            elif chance > 0.98:
                life.broker.go()
            elif chance > 0.97:
                await asyncio.sleep(0)
        if dice.random() < 0.5:
            life.outbox.abandon()
        await life.outbox.close()
        await asyncio.gather(*publishing, return_exceptions=True)
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
    first = list(dict.fromkeys(numbers(confirmed)))
    assert first == sorted(first)
    assert recorded <= set(first)
    contents = {(envelope.id, envelope.payload) for envelope in confirmed}
    assert len(contents) == len({envelope.id for envelope in confirmed})


async def test_more_than_memory_may_hold_waits_in_the_file(tmp_path: Path) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed, capacity=50) as life:
        for number in range(5_000):
            life.post(number)
        assert len(life.outbox._line) <= 1_000
        life.broker.come()
        await life.outbox.drain()
        life.post(5_000)
        await life.outbox.drain()
    assert numbers(confirmed) == list(range(5_001))


async def test_what_expires_in_the_file_is_not_sent(tmp_path: Path) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed) as life:
        await life.publish(1, expiry=10.0)
        await life.publish(2, expiry=100.0)
    life = Life(tmp_path, confirmed)
    life.clock.time += 50
    await life.start()
    life.broker.come()
    await life.outbox.drain()
    assert life.stats["publishes.expired"] == 1
    await life.outbox.close()
    assert numbers(confirmed) == [2]
    assert confirmed[0].expiry == pytest.approx(50.0)


async def test_a_message_that_is_refused_for_good_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed) as life:
        life.broker.refuses = "secret"
        await life.publish(1, topic="secret")
        await life.publish(2)
        life.broker.come()
        await life.outbox.drain()
        assert life.stats["outbox.refused"] == 1
    assert numbers(confirmed) == [2]
    assert "'id-1' to 'secret'" in caplog.text
    assert "NotAuthorised: not you" in caplog.text
    async with living(tmp_path, confirmed) as life:
        assert life.outbox.pending == 0


@pytest.mark.parametrize(
    "fields",
    [{"correlation": b"x", "response_topic": "r"}, {"qos": 0}, {"headers": {"spa_reply": "1"}}],
)
async def test_requests_replies_and_qos_0_are_not_recorded(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    async with living(tmp_path, []) as life:
        posted = life.post(1, **fields)
        assert not posted.done()
    assert isinstance(posted.exception(), PublishNotSent)
    async with living(tmp_path, []) as life:
        assert life.outbox.pending == 0


async def test_what_cannot_be_sent_is_refused_at_once(tmp_path: Path) -> None:
    async with living(tmp_path, []) as life:
        life.broker.max_payload = 1
        with pytest.raises(MessageTooLarge, match="max_payload"):
            life.post(10)
        with pytest.raises(ConfigurationError, match="half of a surrogate"):
            await life.publish(1, key="\ud800")
        with pytest.raises(ConfigurationError, match="qos=2"):
            await life.publish(1, qos=2)
        assert life.outbox.pending == 0


@pytest.mark.parametrize(
    ("options", "named"), [({"max_messages": 3}, "max_messages"), ({"max_bytes": 3}, "max_bytes=3")]
)
async def test_a_full_file_refuses_and_has_room_again(
    tmp_path: Path, options: dict[str, int], named: str
) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed, **options) as life:
        for number in range(3):
            await life.publish(number)
        with pytest.raises(OutboxFull, match=named) as full:
            life.post(3)
        assert str(only_file(tmp_path)) in str(full.value)
        assert full.value.outage
        with pytest.raises(OutboxFull, match=named):
            await life.publish(3)
        room = asyncio.ensure_future(life.outbox.room())
        await asyncio.sleep(0)
        assert not room.done()
        life.broker.come()
        await room
        await life.outbox.drain()
        await life.publish(4)
        await life.outbox.drain()
    assert numbers(confirmed) == [0, 1, 2, 4]


async def test_the_folder_and_the_file_are_for_the_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "state"
    async with living(folder, []) as life:
        await life.publish(1)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in folder.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def refused(folder: Path, reason: str) -> None:
    """A life cannot start, for a reason that names the file; which is left as it is."""
    path = only_file(folder)
    before = path.read_bytes()
    life = Life(folder, [])
    with pytest.raises(ConfigurationError, match=reason) as error:
        await life.start()
    await life.outbox.close()
    assert str(path) in str(error.value)
    assert path.read_bytes() == before


async def left_file(folder: Path) -> Path:
    async with living(folder, []) as life:
        await life.publish(1)
    return only_file(folder)


def change(path: Path, sql: str) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute(sql)
    database.close()


async def test_a_file_in_use_is_refused(tmp_path: Path) -> None:
    path = await left_file(tmp_path)
    program = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "d.execute('PRAGMA locking_mode=EXCLUSIVE'); d.execute('BEGIN EXCLUSIVE');"
        "print('has it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"has it\n"
        await refused(tmp_path, "in use by another process: give each copy .* instance=")
        other.stdin.close()


async def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    change(await left_file(tmp_path), "PRAGMA user_version=2")
    await refused(tmp_path, "written by a newer version of this package .format 2")


async def test_another_database_is_refused(tmp_path: Path) -> None:
    change(await left_file(tmp_path), "PRAGMA application_id=7")
    await refused(tmp_path, "another kind of database")


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = await left_file(tmp_path)
    path.write_bytes(b"no database at all" * 1_000)
    await refused(tmp_path, "damaged, or no database")


async def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = await left_file(tmp_path)
    path.write_bytes(path.read_bytes()[:5_000])
    await refused(tmp_path, "damaged")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("message = x'c1'", "malformed"),
        ("message = 'text'", "str"),
        ("message = 7", "int"),
        ("size = 'large'", "number"),
    ],
)
async def test_a_message_that_cannot_be_read_stays_and_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, why: str
) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed) as life:
        for number in (1, 2, 3):
            await life.publish(number)
    change(only_file(tmp_path), f"UPDATE outbox SET {damage} WHERE n = 2")
    for kept in (0, 4):
        async with living(tmp_path, confirmed) as life:
            life.broker.come()
            await life.outbox.drain()
            assert life.outbox.pending == 0
            await life.publish(4 + kept)
            await life.outbox.drain()
            trouble = life.outbox.trouble or ""
            assert "1 messages in the outbox file" in trouble
            assert "number 2 (" in trouble
            assert why in trouble
            assert life.stats["outbox.unreadable"] == 1
    assert numbers(confirmed) == [1, 3, 4, 8]
    assert "message number 2 in the outbox file" in caplog.text


async def test_many_messages_that_cannot_be_read_block_nothing(tmp_path: Path) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed) as life:
        for number in range(2_500):
            life.post(number)
    change(only_file(tmp_path), "UPDATE outbox SET message = x'c1' WHERE n <= 2400")
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
    assert numbers(confirmed) == list(range(2_400, 2_500))


async def test_a_drain_ends_when_the_outbox_is_closed(tmp_path: Path) -> None:
    async with living(tmp_path, []) as life:
        await life.publish(1)
        draining = asyncio.ensure_future(life.outbox.drain())
        await asyncio.sleep(0)
        assert not draining.done()
    await asyncio.wait_for(draining, 60)


async def test_an_expiry_grows_no_longer_when_the_clock_is_put_back(tmp_path: Path) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed) as life:
        await life.publish(1, expiry=10.0)
    life = Life(tmp_path, confirmed)
    life.clock.time -= 500
    await life.start()
    life.broker.come()
    await life.outbox.drain()
    await life.outbox.close()
    assert confirmed[0].expiry == 10.0


async def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    path = await left_file(tmp_path)
    path.unlink()
    path.mkdir()
    life = Life(tmp_path, [])
    with pytest.raises(ConfigurationError, match=r"outbox' *: it cannot be used"):
        await life.start()
    await life.outbox.close()


async def test_the_file_may_be_a_link_to_one_elsewhere(tmp_path: Path) -> None:
    confirmed: list[Envelope] = []
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = await left_file(folder)
    path.unlink()
    path.symlink_to(elsewhere / "file")
    for number in (1, 2):
        life = Life(folder, confirmed)
        await life.start()
        await life.publish(number)
        # As a kill: the log is left.
        life.outbox.abandon()
    async with living(folder, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
    assert numbers(confirmed) == [1, 2]
    assert stat.S_IMODE((elsewhere / "file").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [path.name]


@pytest.mark.parametrize("log", [False, True])
async def test_a_file_that_is_removed_while_it_is_in_use_is_noticed(
    tmp_path: Path, log: bool
) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed) as life:
        await life.publish(1)
        path = only_file(tmp_path)
        Path(f"{path}-wal" if log else path).unlink()
        with pytest.raises(PublishUnknown, match="somebody has removed or replaced it"):
            await life.publish(2)
        posted = life.post(3)
        assert "somebody has removed" in (life.outbox.trouble or "")
        life.broker.come()
        await life.outbox.drain()
        # With the broker it is safe.
        await posted
    # What was sent was taken out of the file that is gone, which proves nothing.
    assert numbers(confirmed) == [1, 2, 3]
    assert "somebody has removed" in (life.outbox.trouble or "")


async def test_posts_that_the_disk_has_not_confirmed_wait_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised = fail_to_synchronise(monkeypatch, 3)
    async with living(tmp_path, []) as life:
        posted = [life.post(number) for number in range(3)]
        with pytest.raises(PublishUnknown, match="away for a moment") as unknown:
            await life.publish(3)
        assert unknown.value.outage, "a handler is called again"
        assert not any(post.done() for post in posted)
        await asyncio.wait_for(asyncio.gather(*posted), 60)
        assert synchronised()
        assert life.outbox.trouble == "there is no connection"


async def test_what_ends_before_the_disk_has_confirmed_it_may_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed: list[Envelope] = []
    life = Life(tmp_path, confirmed)
    await life.start()
    posted = life.post(1)
    life.outbox.abandon()
    with pytest.raises(PublishUnknown, match="before the application ended; it may be sent"):
        await posted
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
    assert numbers(confirmed) == [1]


async def test_the_log_stays_short_while_only_what_was_left_is_sent(tmp_path: Path) -> None:
    confirmed: list[Envelope] = []
    async with living(tmp_path, confirmed) as life:
        for number in range(10_000):
            life.post(number, headers={"fill": "x" * 1_000})
    path = only_file(tmp_path)
    size = path.stat().st_size
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
        assert Path(f"{path}-wal").stat().st_size < size / 2
    assert numbers(confirmed) == list(range(10_000))


async def test_what_is_left_in_a_file_that_is_gone_is_told_at_the_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(tmp_path, []) as life:
        await life.publish(1)
        only_file(tmp_path).unlink()
        with pytest.raises(PublishUnknown):
            await life.publish(2)
    assert "2 messages were not sent, and may not be there at the next start" in caplog.text


def test_a_fork_that_ends_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    # In a process of its own, as it ends its interpreter twice.
    program = """
import os, sqlite3, sys
from pathlib import Path
from spa_dat.transports._sqlite_file import SqliteFile
file = SqliteFile(Path(sys.argv[1]), kind=1, version=1, schema=["CREATE TABLE t (n)"], what="it")
write = lambda number: file.transaction(lambda d: d.execute("INSERT INTO t VALUES (?)", (number,)))
write(1)
child = os.fork()
if not child:
    try:
        write(2)
    except sqlite3.ProgrammingError:
        sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
write(3)
file.sync()
os._exit(0)
"""
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
    database = sqlite3.connect(path)
    assert database.execute("SELECT n FROM t").fetchall() == [(1,), (3,)]
    database.close()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    life = Life(tmp_path / "file" / "folder", [])
    with pytest.raises(ConfigurationError, match="cannot be created: Not a directory"):
        await life.start()
    await life.outbox.close()


def post_until_full(life: Life, recorded: list[int]) -> None:
    while len(recorded) < 1_000:
        life.post(len(recorded), headers={"fill": "x" * 1_000})
        recorded.append(len(recorded))


async def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    confirmed: list[Envelope] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorded: list[int] = []
    async with living(tmp_path, confirmed) as life:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(OutboxFull, match="no room on the disk for the outbox file") as full:
                post_until_full(life, recorded)
            assert full.value.outage
            assert "cannot be written" in (life.outbox.trouble or "")
            with pytest.raises(OutboxFull, match="no room on the disk"):
                await life.publish(5_000, headers={"fill": "x" * 10_000})
            assert "cannot be written" in (life.outbox.trouble or "")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await life.publish(6_000)
        assert life.outbox.trouble == "there is no connection"
    assert recorded
    async with living(tmp_path, confirmed) as life:
        life.broker.come()
        await life.outbox.drain()
    assert numbers(confirmed) == [*recorded, 6_000]


async def test_a_closed_outbox_takes_nothing(tmp_path: Path) -> None:
    async with living(tmp_path, []) as life:
        pass
    with pytest.raises(PublishNotSent):
        await life.publish(1)
    with pytest.raises(PublishNotSent):
        await life.post(1)


def test_the_default_folder_is_where_state_belongs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = OutboxFile().path(IDENTITY, "mqtt://one:1883")
    assert path.parent == tmp_path / ".local" / "state" / "spa-dat"
    assert path.name.startswith("plant.0.")
    assert path != OutboxFile().path(IDENTITY, "mqtt://two:1883")
    assert path != OutboxFile().path(Identity("plant", "1"), "mqtt://one:1883")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert OutboxFile().path(IDENTITY, "x").parent == tmp_path / "xdg" / "spa-dat"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/plant:/var/lib/other")
    assert OutboxFile().path(IDENTITY, "x").parent == Path("/var/lib/plant")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"folder": ""}, "option folder='' of OutboxFile"),
        ({"folder": 5}, "option folder=5 of OutboxFile"),
        ({"max_messages": 0}, "option max_messages=0 of OutboxFile"),
        ({"max_bytes": True}, "option max_bytes=True of OutboxFile"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        OutboxFile(**options)  # type: ignore[arg-type]
