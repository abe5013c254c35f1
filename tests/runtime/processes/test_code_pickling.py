"""What cannot be sent to another process is named at the start, with the way to it."""

from __future__ import annotations

import asyncio
import importlib
import socket as network
import sqlite3
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from spa_dat import Actor, DistributedApplication, on
from spa_dat.errors import ConfigurationError
from spa_dat.testing import Harness


class Client:
    """Something of the user's with a lock in it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def make() -> DistributedApplication:
    return DistributedApplication("memory://", name="plant")


async def problem_of(app: DistributedApplication) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with app:
            pass
    return str(caught.value)


async def test_a_variable_of_an_enclosing_function() -> None:
    app = make()
    client = Client()

    @app.application("in", placement="process")
    async def work(payload: int) -> None:
        client.lock.acquire()

    text = await problem_of(app)
    assert "actor 'work'" in text
    assert "variable 'client' of an enclosing function -> attribute 'lock'" in text
    assert "of type _thread.lock" in text


GLOBAL = {"clients": [Client()]}


async def test_a_global_and_what_is_in_it() -> None:
    app = make()

    def helper() -> Any:
        return GLOBAL

    @app.application("in", placement="process")
    async def work(payload: int) -> None:
        helper()

    text = await problem_of(app)
    assert "global 'GLOBAL' -> ['clients'] -> [0] -> attribute 'lock'" in text


async def test_the_application_itself() -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: int) -> None:
        app.stop()

    text = await problem_of(app)
    assert "application 'plant'" in text
    assert "use" in text or "with the socket" in text


@pytest.mark.parametrize(
    ("make_resource", "kind"),
    [
        (lambda folder: sqlite3.connect(folder / "db"), "sqlite3.Connection"),
        (lambda folder: (folder / "file").open("w"), "TextIOWrapper"),
        (lambda folder: network.socket(), "socket"),
        (lambda folder: threading.Lock(), "lock"),
    ],
    ids=["sqlite", "file", "socket", "lock"],
)
async def test_resources_that_are_open_already(
    make_resource: Any, kind: str, tmp_path: Path
) -> None:
    app = make()
    resource = make_resource(tmp_path)

    @app.application("in", placement="process", ressources={"thing": resource})
    async def work(payload: int, thing: Any) -> None: ...

    text = await problem_of(app)
    assert "resource 'thing'" in text
    assert kind in text
    assert "give a function that opens it" in text
    if hasattr(resource, "close"):
        resource.close()


async def test_arguments_of_a_class() -> None:
    app = make()

    class Work(Actor):
        placement = "process"

        def __init__(self, count: int, client: Client) -> None:
            self.client = client

        @on("in")
        async def work(self, payload: int) -> None: ...

    app.add(Work, 1, client=Client())
    text = await problem_of(app)
    assert "argument 'client' of add() -> attribute 'lock'" in text


async def test_nothing_is_connected_or_opened_before() -> None:
    app = DistributedApplication("mqtt://127.0.0.1:1", name="plant")
    lock = threading.Lock()

    @app.application("in", placement="process")
    async def work(payload: int) -> None:
        lock.acquire()

    text = await asyncio.wait_for(problem_of(app), 5)
    assert "variable 'lock'" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"placement": "thread"}, "placement='thread': give 'process'"),
        ({"placement": True}, "placement=True"),
        ({"placement": "process", "processes": 0}, "give a whole number from 1 to 256"),
        ({"placement": "process", "processes": -1}, "give a whole number"),
        ({"placement": "process", "processes": True}, "give a whole number"),
        ({"placement": "process", "processes": 1.5}, "give a whole number"),
        ({"placement": "process", "processes": 10_000}, "give a whole number"),
        ({"processes": 2}, "has no effect without placement='process'"),
        ({"placement": "process", "key": "kind"}, "has no effect"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    app = make()
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(")):

        @app.application("in/{kind}", **options)
        async def work(payload: int) -> None: ...


def test_a_class_option_of_the_wrong_kind_is_named() -> None:
    class Work(Actor):
        placement = "process"
        processes = 0

        @on("in")
        async def work(self, payload: int) -> None: ...

    with pytest.raises(ConfigurationError, match="processes=0"):
        make().add(Work)


async def test_references_to_an_actor_in_another_process_are_refused() -> None:
    app = make()

    class Work(Actor):
        placement = "process"

        @on("in")
        async def work(self, payload: int) -> None: ...

    spec = app.add(Work)
    with pytest.raises(ConfigurationError, match="publish to one of its topics"):
        _ = spec.ref


# In the test harness.


@pytest.mark.virtual
async def test_in_the_harness_it_runs_in_the_process_of_the_test() -> None:
    app = make()
    seen: dict[str, list[int]] = {}

    @app.application("in/{key}", placement="process", processes=3, key="key")
    async def work(key: str, payload: int) -> None:
        seen.setdefault(key, []).append(payload)

    async with Harness(app, seed=3) as harness:
        for number in range(20):
            harness.publish(f"in/{number % 4}", number)
        await harness.settle()
        assert len(harness.state("work")) == 3
    # The closure is this one: nothing was sent anywhere.
    assert seen == {str(key): list(range(key, 20, 4)) for key in range(4)}


@pytest.mark.virtual
async def test_what_could_not_be_sent_fails_in_the_harness_too() -> None:
    app = make()
    lock = threading.Lock()

    @app.application("in", placement="process")
    async def work(payload: int) -> None:
        lock.acquire()

    with pytest.raises(ConfigurationError, match="variable 'lock'"):
        async with Harness(app, seed=3):
            pass


async def test_the_way_leads_out_of_circles() -> None:
    app = make()
    client = Client()
    client.__dict__ = {"itself": client, "others": [client], "lock": client.lock}

    @app.application("in", placement="process")
    async def work(payload: int) -> None:
        client.lock.acquire()

    assert "variable 'client' of an enclosing function -> attribute 'lock'" in await problem_of(app)


async def test_modules_that_a_child_could_not_import_are_sent(tmp_path: Path) -> None:
    module = types.ModuleType("made_up")
    exec("def helper(number):\n    return number * SIX\nSIX = 6", vars(module))
    sys.modules["made_up"] = module
    helper = vars(module)["helper"]
    app = make()

    @app.application("in", placement="process")
    async def work(payload: int) -> int:
        return int(helper(payload))

    try:
        async with app:
            assert await app.socket().request("in", 7, reply=int) == 42
    finally:
        del sys.modules["made_up"]


_IMPORTABLE = """
from __future__ import annotations

from dataclasses import dataclass

from spa_dat import DistributedApplication, Message, Socket


@dataclass
class Celsius:
    value: float


def plant() -> DistributedApplication:
    app = DistributedApplication("memory://", name="plant")

    @dataclass
    class Reading:
        temperature: Celsius

    @app.application("in", placement="process")
    async def work(reading: Reading, message: Message[Reading], socket: Socket) -> float:
        return reading.temperature.value

    return app
"""


async def test_what_is_made_in_a_function_of_a_module_that_a_child_can_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``python -m pytest``, where a child finds the modules of tests."""
    (tmp_path / "importable_plant.py").write_text(_IMPORTABLE)
    monkeypatch.syspath_prepend(tmp_path)
    app = importlib.import_module("importable_plant").plant()
    try:
        async with app:
            reading = {"temperature": {"value": 21.5}}
            got = await app.socket().request("in", reading, reply=float, timeout=60)
        assert got == 21.5
    finally:
        del sys.modules["importable_plant"]
