"""``spa-dat run --workers``: they share the work, come back, and end together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from spa_dat import DistributedApplication
from spa_dat.testing import Kafka, Mosquitto
from support.command import Command
from support.kafka_bus import create
from support.kafka_ledger import Ledger, Numbers, seeded
from support.waiting import eventually

# A life is announced with the process behind it. The producer runs once everything has started.
LEDGER = """
import asyncio, os
from spa_dat import DistributedApplication

app = DistributedApplication({url!r}, name={name!r})
ledger = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
takers = os.open({ledger!r} + ".takers", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@app.application({topic!r}, deliver="share")
async def note(payload: bytes) -> None:
    await asyncio.sleep(0.005)
    os.write(takers, f"{{app.identity.instance}}\\n".encode())
    os.write(ledger, payload)

@app.producer()
async def announce() -> None:
    print(f"life {{app.identity.instance}} {{os.getpid()}}")
"""
ALONE = """
import asyncio, os, pathlib, sys, time
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="alone")

@app.application("never")
async def never(payload: int) -> None: ...

@app.producer()
async def announce() -> None:
    print(f"life {app.identity.instance} {os.getpid()}")
"""
UNSAID = """
app = DistributedApplication("mqtt://127.0.0.1:1")

@app.application("x")
async def x(payload: int) -> None: ...
"""
DURABLE = """
app = DistributedApplication("mqtt://127.0.0.1:1", name="durable")

@app.application("x/{key}", per="key", state=dict[str, int], durable=True, deliver="all")
async def x(payload: int) -> None: ...
"""
LIFE = r"^worker (\d+) \| life (\S+) (\d+)$"


def lives(command: Command) -> dict[str, list[int]]:
    """The processes of each worker so far."""
    found: dict[str, list[int]] = {}
    for match in command.found(LIFE):
        found.setdefault(match[1], []).append(int(match[3]))
    return found


def is_there(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def second_signal(command: Command) -> bool:
    command.signal(signal.SIGTERM)
    return bool(command.found("again: ending at once"))


async def end_together(command: Command) -> None:
    """One signal stops all, in good order."""
    command.signal(signal.SIGTERM)
    assert await command.end() == 0
    assert not any(is_there(pid) for pids in lives(command).values() for pid in pids)


async def probed(port: int, path: str) -> tuple[int, Any]:
    """Ask one of the processes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def test_every_application_of_every_worker_answers_probes(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    names = [f"workers{uuid.uuid4().hex[:8]}{letter}" for letter in "ab"]
    for name in names:
        options = {"url": mosquitto.url, "name": name, "topic": name}
        text = LEDGER.format(ledger=str(tmp_path / name), **options)
        (tmp_path / f"{name}.py").write_text(text)
    targets = [f"{name}.py" for name in names]
    port = free_ports(4)
    admin = f"127.0.0.1:{port}"
    with Command(tmp_path, "run", *targets, "--workers", "2", "--admin", admin) as command:
        await eventually(lambda: len(command.found(LIFE)) == 4, 60.0)
        for number in range(4):
            health = (await probed(port + number, "/health"))[1]
            assert health["application"] == names[number % 2]
            assert health["instance"] == str(number // 2)
            assert await probed(port + number, "/readyz") == (200, {"ready": True, "reasons": {}})
        await end_together(command)


def free_ports(count: int) -> int:
    """Return the first of so many ports in a row that are free."""
    while True:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            first = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            port: int = first.getsockname()[1]
            for further in range(port + 1, port + count):
                held.enter_context(socket.create_server(("127.0.0.1", further)))
            return port


@pytest.mark.mosquitto
@pytest.mark.slow
async def test_on_mqtt_a_killed_worker_comes_back_and_nothing_is_lost(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    name = f"workers-{uuid.uuid4().hex[:8]}"
    ledger = Ledger(tmp_path / "ledger")
    text = LEDGER.format(url=mosquitto.url, name=name, ledger=str(ledger.path), topic=f"{name}/+")
    (tmp_path / "main.py").write_text(text)
    sender = DistributedApplication(mosquitto.url)
    with Command(tmp_path, "run", "main.py", "--workers", "2") as command:
        await command.says(LIFE, times=2)
        assert [sorted(lives(command)), len(command.found("several workers on MQTT"))] == [
            ["0", "1"],
            1,
        ]
        async with sender:
            for number in range(400):
                if number == 150:
                    os.kill(lives(command)["1"][0], signal.SIGKILL)
                await sender.socket().publish(f"{name}/{number}", f"k {number}\n".encode())
        await command.says("^spa-dat: worker 1 was killed by SIGKILL; it is started again in")
        await command.says(LIFE, times=3)
        await ledger.has(400)
        assert len(lives(command)["1"]) == 2
        assert len(command.found("several workers on MQTT")) == 1, "only at the first start"
        await end_together(command)


@pytest.mark.kafka
@pytest.mark.slow
async def test_on_kafka_workers_share_the_partitions_and_nothing_is_lost(
    kafka: Kafka, tmp_path: Path
) -> None:
    name = f"workers-{uuid.uuid4().hex[:8]}"
    await create(kafka.server, name, 4)
    ledger = Ledger(tmp_path / "ledger")
    url = f"{kafka.url}?session_timeout=9"
    text = LEDGER.format(url=url, name=name, ledger=str(ledger.path), topic=name)
    (tmp_path / "main.py").write_text(text)
    rng = seeded()
    with Command(tmp_path, "run", "main:app", "--workers", "2", "--instance", "pod") as command:
        await command.says(LIFE, times=2)
        assert {match[2] for match in command.found(LIFE)} == {"pod-0", "pod-1"}
        async with Numbers(kafka.server, name, 8, rng) as numbers:
            async with numbers.flow(400, ledger, 50):
                os.kill(lives(command)[rng.choice("01")][0], signal.SIGKILL)
            await command.says(LIFE, times=3)
            await numbers.produce(100)
            await ledger.has(numbers.count)
        assert ledger.disorder == []
        await end_together(command)


@pytest.mark.kafka
@pytest.mark.slow
async def test_on_kafka_three_copies_share_a_topic_and_losing_two_of_them_loses_nothing(
    kafka: Kafka, tmp_path: Path
) -> None:
    name = f"copies-{uuid.uuid4().hex[:8]}"
    await create(kafka.server, name, 6)
    ledger, takers = Ledger(tmp_path / "ledger"), tmp_path / "ledger.takers"
    url = f"{kafka.url}?session_timeout=9"
    text = LEDGER.format(url=url, name=name, ledger=str(ledger.path), topic=name)
    (tmp_path / "main.py").write_text(text)
    rng = seeded()
    async with contextlib.AsyncExitStack() as stack:
        numbers = await stack.enter_async_context(Numbers(kafka.server, name, 12, rng))
        copies: list[Command] = []
        for instance in ("a", "b", "c"):
            command = Command(tmp_path, "run", "main:app", "--instance", instance)
            copies.append(stack.enter_context(command))
            await command.says(f"^life {instance} ")

            # The group gives it its share while messages flow.
            async with asyncio.timeout(120):
                while not takers.exists() or instance not in takers.read_text().split():
                    await numbers.produce(24)
                    await ledger.has(numbers.count)
        async with numbers.flow(300, ledger, 50):
            copies[1].signal(signal.SIGTERM)
        assert await copies[1].end() == 0
        await ledger.has(numbers.count)
        async with numbers.flow(300, ledger, 50):
            copies[2].signal(signal.SIGKILL)
        assert await copies[2].end() == -signal.SIGKILL
        await numbers.produce(100)
        await ledger.has(numbers.count)
        assert ledger.disorder == []
        copies[0].signal(signal.SIGTERM)
        assert await copies[0].end() == 0


async def test_workers_stop_in_good_order_when_who_looks_after_them_is_killed(
    tmp_path: Path,
) -> None:
    text = """
@app.producer(every=0.05)
async def chatter() -> None:
    print("chatter")

import contextlib

@contextlib.contextmanager
def resource():
    yield 1
    pathlib.Path("left").touch()

app.resource("resource", resource)

@app.application("other")
async def uses(payload: int, resource: int) -> None: ...
"""
    (tmp_path / "main.py").write_text(ALONE + text)
    with Command(tmp_path, "run", "main.py", "--workers", "1") as command:
        pid = int((await command.says(LIFE))[3])
        await command.says("chatter")
        command.signal(signal.SIGKILL)
        assert await command.end() == -signal.SIGKILL
        await eventually(lambda: not is_there(pid))
    assert (tmp_path / "left").exists()


async def test_a_second_signal_ends_all_at_once_even_what_stands_still(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(ALONE)
    with Command(tmp_path, "run", "main.py", "--workers", "1") as command:
        pid = int((await command.says(LIFE))[3])
        os.kill(pid, signal.SIGSTOP)
        command.signal(signal.SIGINT)
        await command.says("^spa-dat: SIGINT: stopping; a second signal ends at once$")
        # One that comes right after the first counts as the same.
        await eventually(lambda: second_signal(command), 60.0, 0.5)
        assert await command.end() == 128 + signal.SIGTERM
        await eventually(lambda: not is_there(pid))
        assert command.found("^spa-dat: SIGTERM again: ending at once$")


async def test_a_log_that_nobody_reads_holds_up_the_worker_but_not_the_signals(
    tmp_path: Path,
) -> None:
    text = """
@app.producer()
async def write() -> None:
    for number in range(100_000):
        pathlib.Path("number").write_text(str(number))
        os.write(1, b"x" * 4096)
        await asyncio.sleep(0)
"""
    (tmp_path / "main.py").write_text(ALONE + text)
    options = ("--workers", "1", "--worker-timeout", "1")
    arguments = [sys.executable, "-m", "spa_dat", "run", "main.py", *options]
    numbers: list[str] = []

    def is_held_up() -> bool:
        with contextlib.suppress(FileNotFoundError):
            numbers.append((tmp_path / "number").read_text())
        # For so long that one which stands still for another reason would have been replaced.
        return len(numbers) > 10 and len(set(numbers[-10:])) == 1

    with subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:

        def ends() -> bool:
            process.send_signal(signal.SIGTERM)
            return process.poll() is not None

        try:
            await eventually(is_held_up, 60.0, 0.5)
            assert int(numbers[-1]) * 4096 < 2_000_000, "what waits is in the pipes"
            await eventually(ends, 60.0, 0.5)
            assert process.returncode == 128 + signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.mosquitto
async def test_a_second_copy_gives_way_and_is_not_started_again(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    name = f"workers-{uuid.uuid4().hex[:8]}"
    text = LEDGER.format(url=mosquitto.url, name=name, ledger=str(tmp_path / "l"), topic=name)
    (tmp_path / "main.py").write_text(text)
    command = ("run", "main.py", "--workers", "1")
    with Command(tmp_path, *command) as first, Command(tmp_path, *command) as second:
        await eventually(lambda: first.found("given up") or second.found("given up"))
        gone = [one for one in (first, second) if one.found("given up")]
        assert await gone[0].end() == 1
        assert gone[0].found("ConfigurationError: another program uses the same identifier")
        assert gone[0].errors[-1].endswith("; it is given up because it would only do so again")
        await end_together(second if gone[0] is first else first)


async def test_a_worker_that_dies_at_once_again_and_again_is_given_up(tmp_path: Path) -> None:
    text = 'if os.path.exists("begun"): os._exit(9)\npathlib.Path("begun").touch()\n'
    (tmp_path / "main.py").write_text(ALONE + text)
    with Command(tmp_path, "run", "main.py", "--workers", "1") as command:
        pid = int((await command.says(LIFE))[3])
        os.kill(pid, signal.SIGTERM)
        # It has stopped in good order, but nobody who looks after it wanted that.
        await command.says("^spa-dat: worker 0 has ended with exit code 0; it is started again")
        assert await command.end() == 1
        assert 4 <= len(command.found("worker 0 has ended with exit code 9; it is started")) <= 5
        assert command.errors[-1] == (
            "spa-dat: worker 0 has ended with exit code 9; it is given up after 5 restarts in a row"
        )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 / 0", "module 'main' cannot be imported: ZeroDivisionError: division by zero"),
        ("", "'never' is on memory://~1, which is inside one process: several workers would"),
        (
            UNSAID,
            "actor 'x': with several workers it has to say how messages are distributed",
        ),
        (DURABLE, "actor 'x' is durable: only one process may keep the states of its keys"),
    ],
)
async def test_what_would_fail_in_all_workers_is_said_once(
    text: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(f"{ALONE}\n{text}\n")
    with Command(tmp_path, "run", "main:app", "--workers", "3") as command:
        assert await command.end() == 2
    assert len(command.lines) == 1
    assert problem in command.lines[0]
    assert command.lines[0].startswith("worker 0 | spa-dat: ")


@pytest.mark.parametrize(
    ("text", "how", "code"),
    [
        ("os._exit(0)", "has ended with exit code 0", 1),
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV", 139),
    ],
)
async def test_a_worker_that_ends_without_a_word_while_it_imports_has_failed(
    text: str, how: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(f"import os\n{text}\n")
    with Command(tmp_path, "run", "main:app", "--workers", "2") as command:
        assert await command.end() == code
    assert command.errors[-1] == f"spa-dat: worker 0 {how} while it was importing the application"


async def test_a_worker_that_stands_still_is_replaced(tmp_path: Path) -> None:
    text = """
@app.producer()
async def block() -> None:
    if not os.path.exists("blocked"):
        pathlib.Path("blocked").touch()
        time.sleep(600)
"""
    (tmp_path / "main.py").write_text(ALONE + text)
    command = Command(tmp_path, "run", "main.py", "--workers", "1", "--worker-timeout", "2")
    with command:
        await command.says("^spa-dat: worker 0 hangs: .*; killing process")
        await command.says("^spa-dat: worker 0 was killed by SIGKILL; it is started again")
        await command.says(LIFE, times=2)
        await end_together(command)


async def test_workers_with_nothing_left_to_do_are_not_started_again(tmp_path: Path) -> None:
    start = ALONE.index("@app.application")
    text = ALONE[:start] + ALONE[ALONE.index("@app.producer") :]
    (tmp_path / "main.py").write_text(text)
    with Command(tmp_path, "run", "main.py", "--workers", "1") as command:
        assert await command.end() == 0
        assert len(command.found(LIFE)) == 1
        assert command.errors[-1] == "spa-dat: worker 0 has nothing left to do"


async def test_lines_are_whole_however_they_are_written(tmp_path: Path) -> None:
    text = """
import subprocess, threading

@app.producer(every=60)
async def write() -> None:
    script = "for i in $(seq 300); do printf child; printf ' %s\\\\n' $i; done"
    child = subprocess.Popen(["sh", "-c", script])
    for number in range(300):
        os.write(2, b"own ")
        os.write(2, b"%d\\n" % number)
    child.wait()
    for _ in range(200):
        os.write(1, b"x" * 100_000)
    print("\\nlast")
"""
    (tmp_path / "main.py").write_text(ALONE + text)
    with Command(tmp_path, "run", "main.py", "--workers", "1", "--log-level", "error") as command:
        await command.says(r"^worker 0 \| last$")
        await end_together(command)
    own = [line for line in command.lines if line.startswith("worker 0 | own")]
    assert own == [f"worker 0 | own {number}" for number in range(300)]
    child = [line for line in command.lines if line.startswith("worker 0 | child")]
    assert child == [f"worker 0 | child {number}" for number in range(1, 301)]
    long = [line for line in command.lines if line.startswith("worker 0 | x")]
    assert sum(len(line) - len("worker 0 | ") for line in long) == 20_000_000
    assert max(map(len, long)) < 200_000
    assert set("".join(line.removeprefix("worker 0 | ") for line in long)) == {"x"}
    assert all(line.startswith(("worker 0 | ", "spa-dat: ")) for line in command.lines)
