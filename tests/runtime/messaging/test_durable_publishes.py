"""Applications whose outbox is a file."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from spa_dat import DistributedApplication, OutboxFile, Socket
from spa_dat.errors import ConfigurationError
from spa_dat.testing import Faults, Harness
from spa_dat.transports import Envelope, Identity
from spa_dat.transports._outbox_file import Rows, messages_in, row_of
from support.unmeasured import unmeasured_environment
from support.waiting import eventually


def test_an_application_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="outbox='file' needs an application with a name"):
        DistributedApplication("memory://", outbox="file")


@pytest.mark.parametrize("given", ["disk", 5, True])
def test_what_is_no_outbox_is_refused(given: object) -> None:
    with pytest.raises(ConfigurationError, match=r"outbox=.*give 'file', an OutboxFile, or None"):
        DistributedApplication("memory://", name="plant", outbox=given)  # type: ignore[arg-type]


async def test_publishes_requests_and_replies_work_as_ever(tmp_path: Path) -> None:
    app = DistributedApplication("memory://", name="plant", outbox=OutboxFile(folder=tmp_path))
    got: list[int] = []

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    @app.application("numbers")
    async def take(number: int, socket: Socket) -> None:
        got.append(await socket.request("double", number, reply=int))

    async with app:
        for number in range(100):
            app.socket().post("numbers", number)
        await app.socket().publish("numbers", 100)
        await eventually(lambda: len(got) == 101)
    assert got == [2 * number for number in range(101)]
    assert [path.suffix for path in tmp_path.iterdir()] == [".outbox"]


def test_without_the_option_sqlite_is_not_imported() -> None:
    program = (
        "import sys; from spa_dat import DistributedApplication, OutboxFile; "
        "DistributedApplication('memory://', name='plant'); assert 'sqlite3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=unmeasured_environment())


async def test_a_child_process_publishes_into_the_file_of_its_application(tmp_path: Path) -> None:
    app = DistributedApplication("memory://", name="plant", outbox=OutboxFile(folder=tmp_path))
    got: list[int] = []

    @app.application("in", placement="process")
    async def work(number: int, socket: Socket) -> None:
        socket.post("out", number)
        await socket.publish("out", number + 1)

    @app.application("out")
    async def take(number: int) -> None:
        got.append(number)

    async with app:
        await app.socket().publish("in", 1)
        await eventually(lambda: len(got) == 2)
    assert sorted(got) == [1, 2]


def plant(recorded: list[int]) -> tuple[DistributedApplication, DistributedApplication, list[int]]:
    """Return an application that publishes, one that receives, and what that gets."""
    sender = DistributedApplication("mqtt://broker", name="sender", outbox="file")
    receiver = DistributedApplication("mqtt://broker", name="receiver")
    got: list[int] = []

    @receiver.application("numbers")
    async def take(number: int) -> None:
        got.append(number)

    @sender.application("go", qos=0)
    async def go(first: int, socket: Socket) -> None:
        for number in range(first, first + 10):
            if number % 2:
                await socket.publish("numbers", number)
            else:
                socket.post("numbers", number)
            recorded.append(number)

    return sender, receiver, got


@pytest.mark.parametrize("seed", range(15))
def test_under_the_harness_nothing_that_was_recorded_is_lost_in_crashes(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    recorded: list[int] = []
    sender, receiver, got = plant(recorded)
    with Harness(sender, receiver, seed=seed, faults=Faults.all()) as harness:
        for first in range(0, 100, 10):
            harness.publish("go", first)
            if dice.random() < 0.5:
                harness.crash(sender)
                harness.restart(sender)
        harness.settle()
    assert set(recorded) <= set(got)


def test_a_harness_leaves_no_files_where_the_application_would_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    recorded: list[int] = []
    sender, receiver, got = plant(recorded)
    with Harness(sender, receiver) as harness:
        harness.publish("go", 0)
        harness.settle()
    assert got == list(range(10))
    assert not list(tmp_path.iterdir())


async def test_messages_for_another_address_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = Identity("plant", "0")
    outbox = OutboxFile(folder=tmp_path)
    message = Envelope(topic="t", payload=b"")
    for address, count in (("mqtt://away", 2), ("mqtt://empty", 0), ("memory://here", 0)):
        rows = Rows(outbox.path(identity, address))
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rows.add([row_of(n, message, 0.0, waiting) for n in range(1, count + 1)])
        rows.close()
    Rows(outbox.path(Identity("other"), "mqtt://away")).close()
    (tmp_path / "plant.0.broken.outbox").write_text("no database")
    app = DistributedApplication("memory://here", name="plant", outbox=outbox)

    @app.application("numbers")
    async def take() -> None: ...

    async with app:
        pass
    told = [record.getMessage() for record in caplog.records if "another address" in record.message]
    assert len(told) == 1
    assert "has 2 messages for a bus at another address" in told[0]
    assert outbox.path(identity, "mqtt://away").name in told[0]
    assert messages_in(outbox.path(identity, "mqtt://away")) == 2
