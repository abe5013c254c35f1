"""Actors in child processes: what becomes of their messages when a process ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_dat import Actor, Context, DistributedApplication, RestartPolicy, RetryPolicy, Socket, on
from spa_dat.errors import ConfigurationError, RemoteError
from spa_dat.harness.brokers import Mosquitto
from spa_dat.transports import MemoryConfig, MemoryProvider
from support.processes import add_worker, collect, make, pid_told
from support.waiting import eventually

AT_ONCE = RetryPolicy(attempts=3, first=0.01, jitter=0, hold=60)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_function_is_called_in_another_process_and_keeps_its_state_there() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in/{kind}", placement="process", state=list)
    async def work(kind: str, payload: int, socket: Socket, state: list[int]) -> None:
        state.append(payload)
        await socket.publish("out", [os.getpid(), kind, sum(state)])

    async with app:
        for number in range(4):
            await app.socket().publish("in/a", number)
        await eventually(lambda: len(got) == 4)
        await eventually(lambda: app.stats["messages.handled"] == 8)
        assert app.healthy
    (pid,) = {one[0] for one in got}
    assert pid != os.getpid()
    assert [one[1:] for one in got] == [["a", 0], ["a", 1], ["a", 3], ["a", 6]]
    assert not is_alive(pid)


async def test_a_class_lives_in_another_process_with_its_hooks() -> None:
    app = make()
    got = collect(app, "out")

    class Counter(Actor):
        placement = "process"

        def __init__(self, begin: int) -> None:
            self.count = begin

        async def on_start(self, socket: Socket) -> None:
            await socket.publish("out", ["start", os.getpid()])

        async def on_stop(self, socket: Socket) -> None:
            await socket.publish("out", ["stop", self.count])

        @on("in")
        async def add(self, payload: int, context: Context) -> None:
            self.count += payload
            context.stats["added"] += 1

    app.add(Counter, 10)
    async with app:
        await app.socket().publish("in", 5)
        await eventually(lambda: app.stats["added"] == 1)
    assert got[0][0] == "start"
    assert got[0][1] != os.getpid()
    assert got[1:] == []  # who collects stops at the same time


# What ends a process.


def by_signal(number: int) -> Callable[[], None]:
    def end() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    return end


def by_null_pointer() -> None:
    ctypes.string_at(0)


def by_exit_code() -> None:
    os._exit(3)


def by_exit_zero() -> None:
    os._exit(0)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        pytest.param(by_signal(signal.SIGKILL), "was killed by SIGKILL", id="SIGKILL"),
        pytest.param(by_null_pointer, "was killed by SIGSEGV", id="SIGSEGV"),
        pytest.param(by_exit_code, "has ended with exit code 3", id="exit"),
        pytest.param(by_exit_zero, "has ended with exit code 0", id="exit-0"),
    ],
)
async def test_a_message_that_ends_its_process_is_tried_again_and_becomes_a_dead_letter(
    end: Callable[[], None], said: str, caplog: pytest.LogCaptureFixture, mosquitto: Mosquitto
) -> None:
    topic = f"crash/{os.urandom(4).hex()}"
    app = make(mosquitto.url, name=f"crash-{os.urandom(4).hex()}")
    got = collect(app, f"{topic}/out")

    @app.application(f"{topic}/in", placement="process", retry=AT_ONCE)
    async def work(payload: int, socket: Socket, context: Context) -> None:
        if payload == 2:
            end()
        await socket.publish(f"{topic}/out", [payload, os.getpid()])

    async with app:
        for number in range(6):
            await app.socket().publish(f"{topic}/in", number)
        await eventually(lambda: len(got) >= 5)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        await eventually(lambda: app.healthy)
    # In order, none twice, and all behind the bad one in another process.
    assert [number for number, _ in got] == [0, 1, 3, 4, 5]
    pids = [pid for _, pid in got]
    assert len(set(pids[:2])) == 1
    assert len(set(pids[2:])) == 1
    assert pids[0] != pids[2]
    assert app.stats["messages.failed"] == 3
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert said in text
    assert "ProcessCrashed" in text


async def test_cancelling_all_tasks_ends_the_process_alone() -> None:
    provider = MemoryProvider(MemoryConfig())
    broker = provider.broker
    app = make(provider)
    got = collect(app, "out")

    @app.application("in", placement="process", retry=AT_ONCE)
    async def work(payload: int, socket: Socket) -> None:
        if payload == 1:
            for task in asyncio.all_tasks():
                task.cancel()
            # Taken back at once, before it has begun.
            await socket.publish("elsewhere", payload)
        await socket.publish("out", payload)

    async with app:
        for number in range(3):
            await app.socket().publish("in", number)
        await eventually(lambda: got == [0, 2])
        await eventually(lambda: app.healthy)
        # The last process may have stored it, too.
        letters = [it for topic, it in broker.retained.items() if "dead" in topic]
    assert {letter.payload for letter in letters} == {b"1"}


async def test_the_dead_letter_says_what_ended_the_process() -> None:
    provider = MemoryProvider(MemoryConfig())
    broker = provider.broker
    app = make(provider)

    @app.application("in", placement="process", retry=RetryPolicy(attempts=1))
    async def work(payload: str) -> None:
        os._exit(9)

    async with app:
        await app.socket().publish("in", "bad")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        (letter,) = (it for topic, it in broker.retained.items() if "dead" in topic)
    assert letter.payload == b"bad"
    assert letter.headers["spa_dead_error"] == "ProcessCrashed"
    assert "exit code 9" in letter.headers["spa_dead_text"]
    assert letter.headers["spa_dead_attempts"] == "1"


async def test_a_request_whose_process_ends_is_answered_with_an_error() -> None:
    app = make()

    @app.application("divide", placement="process")
    async def divide(payload: int) -> int:
        if payload == 0:
            os._exit(1)
        return 100 // payload

    async with app:
        socket = app.socket()
        assert await socket.request("divide", 5, reply=int) == 20
        with pytest.raises(RemoteError) as caught:
            await socket.request("divide", 0)
        assert caught.value.code == "crashed"
        assert await socket.request("divide", 4, reply=int) == 25


async def test_of_several_at_work_only_the_one_that_ends_the_process_is_blamed() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in/{kind}", placement="process", concurrency=4, key="kind", retry=AT_ONCE)
    async def work(kind: str, payload: int, socket: Socket) -> None:
        await asyncio.sleep(0.05)
        if payload == 7:
            os._exit(1)
        await socket.publish("out", payload)

    async with app:
        for number in range(20):
            await app.socket().publish(f"in/{number % 5}", number)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        await eventually(lambda: set(got) == set(range(20)) - {7})
    assert app.stats["dead_letters.stored"] == 1
    assert app.stats["messages.failed"] == 3


async def test_a_process_that_ends_beside_its_messages_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make()
    told = add_worker(app)
    async with app:
        pid = await pid_told(app, told)
        # It tells before its handler has ended; what it told was a message, too.
        await eventually(lambda: app.stats["messages.handled"] == 2)
        os.kill(pid, signal.SIGKILL)
        assert await pid_told(app, told) != pid
        assert app.stats["messages.failed"] == 0
        await eventually(lambda: app.healthy)


def lack_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pipe() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe", no_pipe)


def lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_map(*args: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_map)


def lack_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*args: object, **options: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", no_process)


@pytest.mark.parametrize("lack", [lack_of_files, lack_of_memory, lack_of_processes])
async def test_a_process_that_cannot_be_replaced_at_the_moment_is_replaced_later(
    lack: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make()
    told = add_worker(app)
    async with app:
        pid = await pid_told(app, told)
        await eventually(lambda: app.stats["messages.handled"] == 2)
        with monkeypatch.context() as lacking:
            lack(lacking)
            files = len(os.listdir("/proc/self/fd"))
            os.kill(pid, signal.SIGKILL)
            await eventually(
                lambda: any("no process can be started" in text for text in app.problems.values())
            )
            # Whatever the first one had is given back, and nothing of the attempt is left.
            assert len(os.listdir("/proc/self/fd")) < files
        assert await pid_told(app, told) != pid
        await eventually(lambda: app.healthy)


async def test_an_application_whose_process_cannot_be_started_at_all_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = make()
    add_worker(app)
    lack_of_files(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"no process can be started: .*Too many open"):
        await app.start()


async def test_processes_that_end_at_once_are_given_up(caplog: pytest.LogCaptureFixture) -> None:
    app = make(restart=RestartPolicy(intensity=1, backoff_min=0.01))

    class Unstable(Actor):
        placement = "process"

        def on_start(self) -> None:
            threading.Timer(0.1, os._exit, (5,)).start()

        @on("in")
        async def work(self, payload: int) -> None: ...

    app.add(Unstable)
    async with app:
        await eventually(lambda: "not started again" in app.problems.get("Unstable", ""))
        assert "exit code 5" in app.problems["Unstable"]


# The end.


async def test_stopping_finishes_what_is_at_work_and_leaves_the_rest(mosquitto: Mosquitto) -> None:
    name = f"drain-{os.urandom(4).hex()}"
    seen: list[int] = []

    def make_app() -> DistributedApplication:
        app = make(mosquitto.url, name=name)

        @app.application(f"{name}/in", placement="process")
        async def work(payload: int, socket: Socket) -> None:
            await asyncio.sleep(0.1)
            await socket.publish(f"{name}/out", payload)

        return app

    listener = make(mosquitto.url, name=f"{name}-listener")

    @listener.application(f"{name}/out")
    async def take(payload: int) -> None:
        seen.append(payload)

    async with listener:
        async with make_app() as app:
            for number in range(12):
                await app.socket().publish(f"{name}/in", number)
            await eventually(lambda: len(seen) >= 2)
        at_stop = len(seen)
        assert at_stop < 12
        async with make_app():
            await eventually(lambda: len(seen) == 12)
    assert seen == list(range(12))


async def test_a_process_that_does_not_stop_is_ended() -> None:
    app = make(stop_timeout=0.5)
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        await socket.publish("out", os.getpid())
        while True:
            time.sleep(1)

    async with app:
        await app.socket().publish("in", 1)
        await eventually(lambda: len(got) == 1)
    assert not is_alive(got[0])
    assert app.stop_report is not None
    cut_off = "actor 'work' did not finish in time and was cut off"
    assert cut_off in app.stop_report.given_up


async def test_a_process_without_standard_output_ends_when_it_is_told_to() -> None:
    app = make(stop_timeout=60)
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        # As where the program was started with closed descriptors.
        sys.stdout = None
        threading.Thread(target=time.sleep, args=(60,)).start()
        await socket.publish("out", os.getpid())

    async with app:
        await app.socket().publish("in", 1)
        await eventually(lambda: len(got) == 1)
    assert not is_alive(got[0])
    assert app.stats["actors.cut_off"] == 0


async def test_a_killed_program_leaves_no_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import os, time
from spa_dat import DistributedApplication, run

app = DistributedApplication("memory://", name="plant")

@app.application("in", placement="process")
async def work(payload: int) -> None:
    print(os.getpid(), flush=True)
    while True:
        time.sleep(1)

@app.producer()
async def send(socket) -> None:
    await socket.publish("in", 1)

run(app)
"""
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(await asyncio.to_thread(process.stdout.readline))
        process.kill()
        await eventually(lambda: not is_alive(pid))
