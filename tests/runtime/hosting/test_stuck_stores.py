"""Stores of states that do not return: told of while they last, and given up at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spa_dat import DistributedApplication, Durable, RetryPolicy, Socket
from spa_dat.errors import ActorStopped, MessageTooLarge
from spa_dat.runtime.application import _lifecycle
from spa_dat.runtime.hosting import _durable_states
from spa_dat.transports import Envelope
from spa_dat.transports._sqlite_states import SqliteStates
from spa_dat.transports._state_store import Change, StateStore
from support.waiting import eventually


@dataclass
class Count:
    n: int = 0


class Stuck(SqliteStates):
    """A store whose database does not answer while it is to be stuck."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.free = threading.Event()
        self.closed_in: str | None = None

    def commit(
        self, changes: Sequence[Change], sent: Sequence[int], acknowledged: Sequence[int] = ()
    ) -> Sequence[int | None]:
        """Wait until somebody lets it go on."""
        self.free.wait()
        return super().commit(changes, sent, acknowledged)

    def close(self) -> None:
        """Note the thread."""
        super().close()
        self.closed_in = threading.current_thread().name


def counting(store: Any, **options: Any) -> DistributedApplication:
    app = DistributedApplication("memory://", name="app", **options)

    @app.application("work/{key}", per="key", state=Count, durable=Durable(store=store))
    async def work(state: Count) -> None:
        state.n += 1

    return app


async def test_a_store_that_does_not_return_is_told_of_and_given_up_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_durable_states, "_LONG", 0.05)
    monkeypatch.setattr(_durable_states, "_PATIENCE", 0.05)
    monkeypatch.setattr(_lifecycle, "LEAST_FOR_RESOURCES", 0.05)
    store = Stuck(tmp_path / "states")
    app = counting(lambda name: store, stop_timeout=0.1)
    try:
        async with app:
            await app.socket().publish("work/a", b"")
            problem = await eventually(lambda: app.problems.get("work"))
            assert "the store of states has been at work for" in problem
            assert "test_stuck_stores.py" in problem
            assert not app.healthy
            peeking = asyncio.ensure_future(app.peek("work", "a"))
        with pytest.raises(ActorStopped):
            await asyncio.wait_for(peeking, 60)
        report = app.stop_report
        assert report is not None
        assert any("the store of states" in reason for reason in report.given_up)
        # It has one thread, which is not the one of the event loop.
        assert store.closed_in is None
    finally:
        store.free.set()
    await eventually(lambda: store.closed_in)
    assert store.closed_in != threading.current_thread().name
    assert "messages of durable keys wait" in caplog.text
    again = counting(lambda name: SqliteStates(tmp_path / "states"))
    async with again:
        assert await again.peek("work", "a") == Count(1)


async def test_a_store_that_is_slow_once_is_no_trouble_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_durable_states, "_LONG", 0.05)
    store = Stuck(tmp_path / "states")
    app = counting(lambda name: store)
    try:
        async with app:
            await app.socket().publish("work/a", b"")
            await eventually(lambda: app.problems)
            store.free.set()
            await eventually(lambda: app.healthy)
            assert await app.peek("work", "a") == Count(1)
    finally:
        store.free.set()
    assert app.stop_report is not None
    assert app.stop_report.clean


async def test_a_store_that_opens_after_its_application_has_ended_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_durable_states, "_PATIENCE", 0.05)
    opening, opened = threading.Event(), threading.Event()
    stores: list[Stuck] = []

    def slowly(name: str) -> StateStore:
        opening.set()
        opened.wait()
        stores.append(Stuck(tmp_path / "states"))
        return stores[0]

    app = counting(slowly, stop_timeout=0.1)
    starting = asyncio.ensure_future(app.start())
    try:
        await eventually(opening.is_set)
        await app.aclose()
        with pytest.raises(ActorStopped):
            await starting
    finally:
        opened.set()
    await eventually(lambda: stores and stores[0].closed_in)
    SqliteStates(tmp_path / "states").close()


async def test_what_the_bus_refuses_at_once_is_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = DistributedApplication("memory://", name="app", state_folder=tmp_path)

    @app.application(
        "work/{key}", per="key", state=Count, durable=True, retry=RetryPolicy(attempts=1)
    )
    async def work(state: Count, socket: Socket) -> None:
        state.n += 1
        socket.post("done", state.n)

    async with app:
        run = app._runs.current
        assert run is not None
        bus, states = run.connections[0].bus, run.durable_states
        assert states is not None
        post = bus.post

        def refuse(envelope: Envelope) -> asyncio.Future[None]:
            if envelope.topic == "done":
                raise MessageTooLarge("the broker takes less than it did")
            return post(envelope)

        monkeypatch.setattr(bus, "post", refuse)
        for _ in range(20):
            await app.socket().publish("work/a", b"")
        await eventually(lambda: app.stats["dead_letters.stored"] == 20)
        # Each look comes with one more message.
        await app.socket().publish("work/b", b"")
        await eventually(lambda: app.stats["dead_letters.stored"] == 21)
        assert len(states._committed._outputs) <= 1
