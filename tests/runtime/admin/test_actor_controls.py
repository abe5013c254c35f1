"""Pausing, resuming and restarting single actors of a running application."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spa_dat import Actor, Context, DistributedApplication, on
from spa_dat.errors import ConfigurationError
from support.waiting import eventually


def make() -> tuple[DistributedApplication, list[str]]:
    app = DistributedApplication("memory://?window=4", name="plant")
    log: list[str] = []

    class Pump(Actor):
        def __init__(self) -> None:
            self.count = 0

        async def on_start(self) -> None:
            log.append("start")

        async def on_stop(self) -> None:
            log.append("stop")

        @on("a")
        async def got(self, payload: str) -> None:
            self.count += 1
            log.append(f"{payload} {self.count}")

    @app.application("a")
    async def other(payload: str) -> None:
        log.append(f"other {payload}")

    app.add(Pump)
    return app, log


@pytest.mark.virtual
async def test_a_paused_actor_holds_up_nobody_else() -> None:
    app, log = make()
    async with app:
        app.pause("Pump")
        assert app.problems == {"Pump": "it is paused"}
        assert not app.healthy
        assert app.health().ready
        for number in range(3):
            await app.socket().publish("a", f"{number}")
        await asyncio.sleep(1)
        pump, other = app.health().actors[1], app.health().actors[0]
        assert (pump.name, pump.paused, pump.mailbox) == ("Pump", True, 3)
        assert (other.paused, other.mailbox) == (False, 0)
        app.resume("Pump")
        assert app.healthy
        await eventually(lambda: "2 3" in log)
    assert [entry for entry in log if "other" not in entry] == [
        "start",
        "0 1",
        "1 2",
        "2 3",
        "stop",
    ]


@pytest.mark.virtual
async def test_a_restarted_actor_begins_with_a_new_state_and_the_same_mailbox() -> None:
    app, log = make()
    async with app:
        await app.socket().publish("a", "x")
        await eventually(lambda: "x 1" in log)
        app.pause("Pump")
        await app.socket().publish("a", "y")
        app.restart("Pump")
        app.resume("Pump")
        await eventually(lambda: "y 1" in log)
        assert app.healthy
    ours = [entry for entry in log if "other" not in entry]
    assert ours == ["start", "x 1", "stop", "start", "y 1", "stop"]


@pytest.mark.virtual
@pytest.mark.parametrize("options", [{"batch": (2, 0.1)}, {"concurrency": 3}, {"is_plain": True}])
async def test_a_pause_holds_for_batches_lanes_and_threads(options: dict[str, Any]) -> None:
    app = DistributedApplication("memory://", name="plant")
    got: list[str] = []
    started = 0

    def make_state() -> int:
        nonlocal started
        started += 1
        return started

    async def batches(payload: list[str]) -> None:
        got.extend(payload)

    async def lanes(payload: str) -> None:
        got.append(payload)

    def plain(payload: str) -> None:
        got.append(payload)

    handler = batches if "batch" in options else plain if options.pop("is_plain", 0) else lanes
    app.application("a", name="pump", state=make_state, **options)(handler)
    async with app:
        app.pause("pump")
        app.restart("pump")
        for number in range(9):
            await app.socket().publish("a", f"{number}", key=f"{number}")
        await asyncio.sleep(10)
        assert got == []
        # Each lane has a state of its own, and a new one.
        assert started == 2 * options.get("concurrency", 1)
        app.resume("pump")
        await eventually(lambda: len(got) == 9)


@pytest.mark.virtual
async def test_a_paused_actor_leaves_what_it_has_not_begun_to_the_bus() -> None:
    app, log = make()
    async with app:
        app.pause("Pump")
        await app.socket().publish("a", "x")
        await asyncio.sleep(1)
    assert "x 1" not in log
    async with app:
        await eventually(lambda: "x 1" in log)


@pytest.mark.virtual
async def test_a_paused_producer_makes_no_call() -> None:
    app = DistributedApplication("memory://", name="plant")
    calls = 0

    @app.producer(every=1)
    async def tick() -> None:
        nonlocal calls
        calls += 1

    async with app:
        await eventually(lambda: calls == 2)
        app.pause("tick")
        await asyncio.sleep(10)
        assert calls == 2
        app.resume("tick")
        await eventually(lambda: calls == 4)


@pytest.mark.virtual
async def test_a_pause_ends_with_the_actor() -> None:
    app = DistributedApplication("memory://", name="plant")
    began, go = asyncio.Event(), asyncio.Event()

    @app.application("a")
    async def last(payload: str, context: Context) -> None:
        began.set()
        await go.wait()
        context.stop()

    @app.application("b")
    async def other(payload: str) -> None: ...

    async with app:
        await app.socket().publish("a", "x")
        await began.wait()
        app.pause("last")
        assert not app.healthy
        go.set()
        await eventually(lambda: app.health().actors[0].stopped)
        assert app.healthy
        assert not app.health().actors[0].paused


async def test_another_thread_may_ask() -> None:
    app, log = make()
    async with app:
        await asyncio.to_thread(app.restart, "Pump")
        await eventually(lambda: log == ["start", "stop", "start"])


@pytest.mark.virtual
async def test_what_cannot_be_done_is_refused() -> None:
    app, _ = make()
    with pytest.raises(ConfigurationError, match="is not running"):
        app.pause("Pump")

    @app.producer()
    async def once() -> None: ...

    async with app:
        with pytest.raises(
            ConfigurationError,
            match=r"cannot pause 'Pmup': application 'plant' has no such actor; there are: 'other'",
        ):
            app.pause("Pmup")
        await eventually(lambda: app.health().actors[2].stopped)
        with pytest.raises(ConfigurationError, match="cannot restart actor 'once': it has ended"):
            app.restart("once")
