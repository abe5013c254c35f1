"""Durable keys in a PostgreSQL database: another store than the file, on a real server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spa_dat import Context, DistributedApplication, Durable, Socket
from spa_dat.errors import ConfigurationError, StateNotWritten
from spa_dat.states import Change, StateStore, StoredKey
from support.postgres import Postgres, postgres_states
from support.waiting import eventually

pytestmark = pytest.mark.repository


@dataclass
class Count:
    n: int = 0


def application(opens: Any, got: list[Any], started: asyncio.Event | None = None) -> Any:
    bus = f"memory://postgres-{id(got)}"
    app = DistributedApplication(bus, name="app")
    durable = Durable(store=opens, ttl=1e6)

    @app.application("work/{key}", per="key", state=Count, durable=durable)
    async def work(step: int, key: str, state: Count, socket: Socket, context: Context) -> int:
        state.n += step
        await socket.publish(f"done/{key}", state.n)
        context.remind("later", state.n, after=0.1)
        if started is not None and not started.is_set():
            started.set()
            await asyncio.sleep(0.05)
        return state.n

    @app.on_reminder("work", "later")
    async def later(number: int) -> None:
        got.append(("later", number))

    @app.application("done/{key}")
    async def done(n: int, key: str) -> None:
        got.append((key, n))

    return app


class Recording:
    """Opens stores for one owner, and notes for whom it was asked."""

    def __init__(self, address: str) -> None:
        self.owners: list[str] = []
        self._open = partial(postgres_states(), address, uuid.uuid4().hex)

    def __call__(self, owner: str) -> StateStore:
        self.owners.append(owner)
        store: StateStore = self._open()
        return store


async def test_states_outputs_and_reminders_survive_in_a_database(postgres: Postgres) -> None:
    got: list[Any] = []
    opens = Recording(postgres.address)
    for n in (2, 4):
        async with application(opens, got) as app:
            assert await app.socket().request("work/a", 2, reply=int) == n
            await eventually(lambda n=n: ("a", n) in got)  # type: ignore[misc]
            await eventually(lambda n=n: ("later", n) in got)  # type: ignore[misc]
            assert await app.peek("work", "a") == Count(n)
            assert await app.peek("work", "b") is None
    assert opens.owners == ["app.0", "app.0"]
    assert sorted(got, key=repr) == [("a", 2), ("a", 4), ("later", 2), ("later", 4)]


async def test_after_a_conflict_the_message_is_handled_again_with_the_new_state(
    postgres: Postgres,
) -> None:
    got: list[Any] = []
    opens = Recording(postgres.address)
    started = asyncio.Event()
    async with application(opens, got, started) as app:
        started.set()
        assert await app.socket().request("work/a", 1, reply=int) == 1
        started.clear()
        handled = asyncio.create_task(app.socket().request("work/a", 1, reply=int, timeout=60))
        await started.wait()
        # Somebody else changes the key meanwhile.
        other = opens("other")
        (stored,) = other.load("work", ["a"]).values()
        assert isinstance(stored, StoredKey)
        value = stored.value.partition(b"\n")[0] + b'\n{"n":100}'
        assert other.commit([Change("work", "a", stored.revision, value, None, (), 0)], ()) != [
            None
        ]
        other.close()
        assert await handled == 101
        await app.socket().publish("work/a", 1)
        await eventually(lambda: ("a", 102) in got)
    assert ("a", 2) not in got


async def test_a_message_waits_for_a_database_that_is_away(own_postgres: Postgres) -> None:
    got: list[Any] = []
    async with application(Recording(own_postgres.address), got) as app:
        assert await app.socket().request("work/a", 1, reply=int) == 1
        await asyncio.to_thread(own_postgres.stop)
        for _ in range(3):
            await app.socket().publish("work/a", 1)
        await eventually(lambda: "work" in app.problems)
        await asyncio.to_thread(own_postgres.start)
        await eventually(lambda: ("a", 4) in got)
        await eventually(lambda: "work" not in app.problems)
        assert app.stats["dead_letters.stored"] == 0
    assert [n for key, n in got if key == "a"] == [1, 2, 3, 4]


def test_stores_that_cannot_be_used_are_named(postgres: Postgres) -> None:
    def app_with(*stores: Any) -> DistributedApplication:
        app = DistributedApplication("memory://", name="app")
        for number, store in enumerate(stores):

            @app.application(
                f"work{number}/{{key}}",
                name=f"work{number}",
                per="key",
                state=Count,
                durable=Durable(store=store),
            )
            async def work() -> None: ...

        return app

    async def start(app: DistributedApplication) -> None:
        async with app:
            pass

    with pytest.raises(ConfigurationError, match=r"Durable\(store=7\): give a callable"):
        app_with(7)
    first, second = Recording(postgres.address), Recording(postgres.address)
    with pytest.raises(ConfigurationError, match="'work0' and 'work1' give different stores"):
        asyncio.run(start(app_with(first, second)))
    with pytest.raises(ConfigurationError, match="has returned 7: return an instance"):
        asyncio.run(start(app_with(lambda owner: 7)))
    nobody = partial(postgres_states(), "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StateNotWritten, match="the database of states cannot be used"):
        asyncio.run(start(app_with(nobody)))
    asyncio.run(start(app_with(first, first)))


class Breaking(StateStore):
    """Fails as no store should."""

    def __init__(self, owner: str) -> None:
        self.broken = False

    def load(self, actor: str, keys: Any) -> Any:
        return {}

    def find(self, message: Any) -> bool:
        return False

    def commit(self, changes: Any, sent: Any, acknowledged: Any = ()) -> Any:
        if not self.broken:
            self.broken = True
            raise LookupError("a bug in a store")
        return range(1, len(changes) + 1)

    def first_due(self, actor: str, most: int) -> Any:
        return []

    def unsent(self) -> Any:
        return []

    def trim(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass


async def test_what_a_store_raises_makes_no_dead_letter() -> None:
    app = DistributedApplication("memory://", name="app")
    seen: list[Any] = []

    @app.application("work/{key}", per="key", state=Count, durable=Durable(store=Breaking))
    async def work(context: Context) -> None:
        seen.append(context.attempt)

    async with app:
        await app.socket().publish("work/a")
        await eventually(lambda: app.stats["messages.handled"] == 1)
        assert app.stats["dead_letters.stored"] == 0
    assert seen == [1, 1]


def test_the_example_runs(postgres: Postgres, tmp_path: Path) -> None:
    example = Path(__file__).parent.parent.parent / "examples" / "postgres_states.py"
    for total in (3, 6):
        result = subprocess.run(
            [sys.executable, "-W", "error", example, postgres.address],
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert f"old has driven {total} km" in result.stdout
