"""A service manager such as systemd is told what it has asked for: sd_notify(3)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spa_dat import DistributedApplication
from spa_dat._service_manager import ServiceManager, without_service_manager
from support.command import Command
from support.waiting import eventually

ALONE = """
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="alone")

@app.application("never")
async def never(payload: int) -> None: ...
"""
WATCHED = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}


class Manager:
    """What systemd has at its end."""

    def __init__(self, path: str) -> None:
        self.address = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path[0] == "@" else path)
        self._socket.setblocking(False)
        self._told: list[str] = []

    def told(self) -> list[str]:
        """All that it was told so far."""
        while True:
            try:
                self._told.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self._told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["/notify"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(request.param.replace("/", f"{tmp_path}/"))
    yield made
    made.close()


def fill(manager: Manager) -> None:
    """Send it as much as it has room for."""
    path = manager.address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"STATUS=busy", "\0" + path[1:] if path[0] == "@" else path)


class Timers:
    """What is to be called later."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.functions: list[Callable[[], object]] = []

    def __call__(self, seconds: float, function: Callable[[], object]) -> None:
        self.seconds.append(seconds)
        self.functions.append(function)


@pytest.mark.parametrize("manager", ["/notify", "@spa_dat of a test in /"], indirect=True)
def test_it_is_told_of_the_start_of_the_stop_and_that_the_program_runs(manager: Manager) -> None:
    timers, complaints = Timers(), list[str]()
    program = ServiceManager(
        timers, complaints.append, {"NOTIFY_SOCKET": manager.address, **WATCHED}
    )
    assert manager.told() == []
    program.ready()
    assert manager.told() == ["READY=1", "WATCHDOG=1"]
    timers.functions.pop()()
    program.stopping()
    assert manager.told() == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]
    # Twice as often as it has to.
    assert timers.seconds == [1.5, 1.5]
    assert complaints == []


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "9" * 5_000},
        {**WATCHED, "WATCHDOG_PID": "1"},
    ],
)
def test_who_is_not_asked_does_not_tell_that_it_runs(
    manager: Manager, variables: dict[str, str]
) -> None:
    timers = Timers()
    ServiceManager(timers, pytest.fail, {"NOTIFY_SOCKET": manager.address, **variables}).ready()
    assert manager.told() == ["READY=1"]
    assert timers.functions == []


def test_without_a_service_manager_nothing_happens() -> None:
    timers = Timers()
    program = ServiceManager(timers, pytest.fail, WATCHED)
    program.ready()
    program.stopping()
    assert timers.functions == []


@pytest.mark.parametrize("address", ["/nowhere/notify", "x" * 200, "a\0b", "@", "relative"])
def test_one_that_cannot_be_reached_is_named_once(address: str) -> None:
    timers, complaints = Timers(), list[str]()
    program = ServiceManager(timers, complaints.append, {"NOTIFY_SOCKET": address, **WATCHED})
    program.ready()
    program.stopping()
    (complaint,) = complaints
    assert "NOTIFY_SOCKET=" in complaint
    assert timers.functions == []


def test_one_that_does_not_read_holds_nobody_up(manager: Manager) -> None:
    timers = Timers()
    program = ServiceManager(timers, pytest.fail, {"NOTIFY_SOCKET": manager.address, **WATCHED})
    program.ready()
    for _ in range(5_000):
        timers.functions.pop()()
    assert len(manager.told()) < 5_000


def test_a_start_is_told_again_to_one_that_did_not_read(manager: Manager) -> None:
    timers = Timers()
    busy = ServiceManager(timers, pytest.fail, {"NOTIFY_SOCKET": manager.address, **WATCHED})
    fill(manager)
    busy.ready()
    # It stays full the next time.
    timers.functions.pop()()
    (again,) = timers.functions
    before = len(manager.told())
    again()
    # Nothing has come before it that would have taken its place.
    assert manager.told()[before:] == ["READY=1", "WATCHDOG=1"]


def test_a_start_is_not_told_again_after_the_stop(manager: Manager) -> None:
    timers = Timers()
    busy = ServiceManager(timers, pytest.fail, {"NOTIFY_SOCKET": manager.address})
    fill(manager)
    busy.ready()
    busy.stopping()
    before = len(manager.told())
    timers.functions.pop()()
    assert manager.told()[before:] == []
    assert timers.functions == []


def test_without_files_for_a_moment_it_is_told_later(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    timers = Timers()
    program = ServiceManager(
        timers, pytest.fail, {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000"}
    )
    with monkeypatch.context() as short:
        short.setattr(socket, "socket", none_left)
        program.ready()
    for function in timers.functions[:]:
        function()
    assert sorted(manager.told()) == ["READY=1", "WATCHDOG=1"]


@pytest.mark.parametrize("asked", ["1", "9" * 20])
def test_how_often_it_is_told_has_bounds(manager: Manager, asked: str) -> None:
    timers = Timers()
    variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": asked}
    ServiceManager(timers, pytest.fail, variables).ready()
    assert 0.001 <= timers.seconds[0] <= 86_400


def test_children_are_not_asked() -> None:
    asked = {"NOTIFY_SOCKET": "/run/notify", **WATCHED}
    assert without_service_manager({**asked, "PATH": "/bin"}) == {"PATH": "/bin"}


def test_run_tells_it(monkeypatch: pytest.MonkeyPatch, manager: Manager) -> None:
    app = DistributedApplication("memory://", name="told")

    @app.producer()
    async def produce() -> None:
        await eventually(lambda: manager.told() == ["READY=1", "WATCHDOG=1"])

    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    for name, value in WATCHED.items():
        monkeypatch.setenv(name, value)
    app.run()
    assert manager.told() == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_a_start_that_fails_is_not_told_as_one(
    monkeypatch: pytest.MonkeyPatch, manager: Manager
) -> None:
    app = DistributedApplication("mqtt://127.0.0.1:1?start_timeout=0.1", name="told")

    @app.application("a")
    async def handler(payload: int) -> None: ...

    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with pytest.raises(SystemExit):
        app.run()
    assert "READY=1" not in manager.told()


async def test_of_several_processes_the_one_that_looks_after_the_others_tells_it(
    tmp_path: Path, manager: Manager
) -> None:
    (tmp_path / "alone.py").write_text(ALONE, encoding="utf-8")
    asked = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"}
    with Command(tmp_path, "run", "alone.py", "--workers", "1", environment=asked) as running:
        await eventually(lambda: manager.told()[:3] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"])
        running.signal(signal.SIGTERM)
        assert await running.end() == 0
    told = [text for text in manager.told() if text != "WATCHDOG=1"]
    assert told == ["READY=1", "STOPPING=1"]
