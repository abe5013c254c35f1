"""Versions of the states of durable keys: what is kept is upgraded, or left as it is."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spa_dat import Actor, DistributedApplication, Durable, RetryPolicy, on
from spa_dat.errors import StateUnreadable
from spa_dat.testing import Harness
from support.waiting import eventually


@dataclass
class First:
    n: int = 0


@dataclass
class Grown:
    n: int = 0
    name: str = "nobody"


@dataclass
class Split:
    whole: int
    rest: int
    name: str = "nobody"


def to_2(state: dict[str, Any]) -> dict[str, Any]:
    return {"n": state["n"] * 10}


def to_4(state: dict[str, Any]) -> dict[str, Any]:
    whole, rest = divmod(state.pop("n"), 7)
    return {**state, "whole": whole, "rest": rest}


def application(
    folder: Path, state: type, durable: Any, seen: list[Any], steps: int = 1
) -> DistributedApplication:
    app = DistributedApplication("memory://versions", name="app", state_folder=str(folder))
    retry = RetryPolicy(attempts=1)

    @app.application("work/{key}", per="key", state=state, durable=durable, retry=retry)
    async def work(key: str, state: Any) -> None:
        seen.append(state)
        if hasattr(state, "n"):
            state.n += steps

    return app


async def run_with(folder: Path, state: type, durable: Any, key: str = "a") -> Any:
    seen: list[Any] = []
    async with application(folder, state, durable, seen) as app:
        await app.socket().publish(f"work/{key}", b"")
        await eventually(lambda: app.stats["messages.handled"] == 1)
        assert app.stats["dead_letters.stored"] == 0
    return seen[0]


async def test_states_are_upgraded_step_by_step(tmp_path: Path) -> None:
    await run_with(tmp_path, First, True)
    await run_with(tmp_path, First, True, "b")
    # A field with a default needs no version.
    assert await run_with(tmp_path, Grown, True) == Grown(2)
    two = Durable(version=2, upgrade={1: to_2})
    assert await run_with(tmp_path, Grown, two) == Grown(21)
    assert await run_with(tmp_path, Grown, two) == Grown(22)
    # Version 3 needs no function, and key b is still of version 1.
    four = Durable(version=4, upgrade={1: to_2, 3: to_4})
    assert await run_with(tmp_path, Split, four) == Split(3, 1)
    assert await run_with(tmp_path, Split, four, "b") == Split(1, 3)


def to_none(state: dict[str, Any]) -> None:
    state["n"] = 1


def failing(state: dict[str, Any]) -> dict[str, Any]:
    return {"n": state["number"]}


@dataclass
class Renamed:
    number: int


@pytest.mark.parametrize(
    ("state", "durable", "text"),
    [
        (First, Durable(), r"key 'a' was written by version 2 .* this program has version 1"),
        (Renamed, Durable(version=2), r"key 'a', written by version 2 .*does not fit Renamed"),
        (First, Durable(version=3, upgrade={2: to_none}), "returned None instead of the state"),
        (First, Durable(version=3, upgrade={2: failing}), "version 2 .*First, version 3.*'number'"),
    ],
)
async def test_what_cannot_be_read_stops_the_actor_and_keeps_state_and_message(
    tmp_path: Path, state: type, durable: Durable, text: str
) -> None:
    await run_with(tmp_path, First, Durable(version=2))
    seen: list[Any] = []
    app = application(tmp_path, state, durable, seen)
    async with app:
        await app.socket().publish("work/a", b"")
        with pytest.raises(StateUnreadable, match=text):
            await asyncio.wait_for(app.wait(), 60)
        assert "it has stopped" in app.problems["work"]
    assert seen == []
    assert app.stats["dead_letters.stored"] == app.stats["messages.handled"] == 0
    # The program that can read it gets the message.
    async with application(tmp_path, First, Durable(version=2), seen) as app:
        await eventually(lambda: seen == [First(1 + 1)])


async def test_what_is_damaged_stops_the_actor(tmp_path: Path) -> None:
    await run_with(tmp_path, First, True)
    for header, text in (
        (b"{}", "is damaged"),
        (b"", "is damaged"),
        (b"\xff", "is damaged"),
        (b'{"format":1,"version":"x","changed":0}', "is damaged"),
        (b'{"format":9,"new":1}', "format 9, and 1 is the newest"),
    ):
        with sqlite3.connect(tmp_path / "app.0.states") as database:
            database.execute("UPDATE state SET value = ?", (header + b'\n{"n":1}',))
        database.close()
        async with application(tmp_path, First, True, []) as app:
            await app.socket().publish("work/a", b"")
            with pytest.raises(StateUnreadable, match=text):
                await asyncio.wait_for(app.wait(), 60)


async def test_other_actors_go_on(tmp_path: Path) -> None:
    await run_with(tmp_path, First, Durable(version=2))
    app = application(tmp_path, First, True, [])

    @app.application("other")
    async def other() -> int:
        return 1

    async with app:
        await app.socket().publish("work/a", b"")
        await eventually(lambda: "work" in app.problems)
        assert not app.healthy
        assert await app.socket().request("other", reply=int) == 1


def test_a_class_can_say_how_its_states_are_kept() -> None:
    app = DistributedApplication("memory://", name="app")

    class Work(Actor):
        per, state = "key", First
        durable = Durable(hot=2)

        @on("work/{key}")
        async def work(self) -> None:
            self.state.n += 1

    app.add(Work)
    with Harness(app) as harness:
        for _ in range(2):
            for key in "abcd":
                harness.publish(f"work/{key}")
                harness.settle()
        assert harness.keys("Work") == ["c", "d"]
        assert harness.state("Work", key="d") == First(2)


def test_the_format_of_what_is_stored_is_plain(tmp_path: Path) -> None:
    asyncio.run(run_with(tmp_path, First, Durable(version=2)))
    with sqlite3.connect(tmp_path / "app.0.states") as database:
        ((value,),) = database.execute("SELECT value FROM state")
    database.close()
    header, state = value.split(b"\n")
    assert json.loads(state) == {"n": 1}
    assert json.loads(header)["version"] == 2
