"""The stores of states: what they keep, and files that they cannot use."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_dat.errors import ConfigurationError, StateLost, StateNotWritten
from spa_dat.harness.world._memory_states import MemoryStates
from spa_dat.transports import Envelope
from spa_dat.transports._sqlite_states import SqliteStates
from spa_dat.transports._state_store import (
    SECONDS_HANDLED,
    Change,
    Handled,
    StateStore,
    identity_of,
)

OUTPUT = Envelope(topic="out", payload=b"o", id="o1", headers={"a": "b"}, expiry=3.0)


def change(number: int, *, key: str = "k", state: bytes | None = b"{}", at: float = 0) -> Change:
    message = identity_of("a", Envelope(topic="t", payload=b"%d" % number, id=str(number)))
    return Change("a", key, state, message, (OUTPUT,), at)


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], StateStore]:
    """Return what opens the same store again."""
    memory = MemoryStates()
    opened: list[StateStore] = []

    def again() -> StateStore:
        if opened:
            opened.pop().close()
        opened.append(memory if request.param == "memory" else SqliteStates(tmp_path / "states"))
        return opened[-1]

    return again


def test_what_was_committed_is_there_again(reopen: Callable[[], StateStore]) -> None:
    store = reopen()
    odd = "k\0\ud800"
    first, second = store.commit([change(1), change(2, key=odd, state=b"[2]")], ())
    assert first < second
    store = reopen()
    assert store.load("a", ("k", odd, "other")) == {"k": b"{}", odd: b"[2]"}
    assert store.load("b", ("k",)) == {}
    message = change(1).message
    assert message is not None
    found = store.find(message)
    assert isinstance(found, Handled)
    assert (found.number, found.outputs) == (first, (OUTPUT,))
    assert [one.number for one in store.unsent()] == [first, second]
    store.commit([change(3, state=None)], [first])
    store = reopen()
    assert [one.number for one in store.unsent()] == [second, second + 1]
    found = store.find(message)
    assert isinstance(found, Handled)
    assert found.outputs == ()
    assert store.load("a", ("k",)) == {"k": b"{}"}


def test_ids_that_were_used_for_other_messages_are_told(
    reopen: Callable[[], StateStore],
) -> None:
    store = reopen()
    store.commit([change(1)], ())
    other = identity_of("a", Envelope(topic="t", payload=b"other", id="1"))
    unknown = identity_of("b", Envelope(topic="t", payload=b"1", id="1"))
    assert other is not None
    assert unknown is not None
    assert store.find(other) is True
    assert store.find(unknown) is False
    assert identity_of("a", Envelope(topic="t")) is None


def test_only_settled_messages_are_forgotten(reopen: Callable[[], StateStore]) -> None:
    store = reopen()
    first, _ = store.commit([change(1), change(2)], ())
    store.commit([], [first])
    store.trim(SECONDS_HANDLED + 1)
    store = reopen()
    for number, known in ((1, False), (2, True)):
        message = change(number).message
        assert message is not None
        assert isinstance(store.find(message), Handled) is known


def test_a_full_disk_keeps_nothing_and_loses_nothing(tmp_path: Path) -> None:
    store = SqliteStates(tmp_path / "states")
    store.commit([change(0)], ())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(StateNotWritten, match=r"no room on the disk .*states"):
            store.commit([change(1, state=b"x" * 300_000)], ())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.load("a", ("k",)) == {"k": b"{}"}
    store.commit([change(2, state=b"[]")], ())
    store.close()
    store = SqliteStates(tmp_path / "states")
    assert store.load("a", ("k",)) == {"k": b"[]"}
    store.close()


def test_a_disk_that_does_not_confirm_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStates(tmp_path / "states")

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fails)
        with pytest.raises(StateLost, match="unknown what of it would survive"):
            store.commit([change(1)], ())
    store.close()


@pytest.mark.parametrize("damage", ["other", "newer", "noise", "used"])
def test_files_that_cannot_be_used_are_refused_and_left(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "states"
    if damage == "noise":
        path.write_bytes(b"noise" * 1_000)
    elif damage == "other":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mine (a)")
        database.close()
    else:
        store = SqliteStates(path)
        if damage == "used":
            with pytest.raises(ConfigurationError, match="in use"):
                SqliteStates(path)
            store.close()
            return
        store.close()
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version=9")
        database.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="left as it is") as refused:
        SqliteStates(path)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before
