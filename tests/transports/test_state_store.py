"""The stores of states: what they keep, and files that they cannot use."""

from __future__ import annotations

import resource
import sqlite3
import tracemalloc
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spa_dat.errors import ConfigurationError, StateLost, StateNotWritten
from spa_dat.harness.world._memory_states import MemoryStates
from spa_dat.transports import DEFAULT_TYPE, Envelope, _sqlite_file, _sqlite_states
from spa_dat.transports._sqlite_states import SqliteStates
from spa_dat.transports._state_store import (
    SECONDS_HANDLED,
    Change,
    Handled,
    MessageIdentity,
    StateStore,
    identity_of,
)
from support.postgres import Postgres, postgres_states

OUTPUT = Envelope(topic="out", payload=b"o", id="o1", headers={"a": "b"}, expiry=3.0)


def change(
    number: int, *, key: str = "k", value: bytes | None = b"{}", revision: int = 0, at: float = 0
) -> Change:
    envelope = Envelope(topic="t", payload=b"%d" % number, id=str(number))
    message = identity_of("a", key, envelope)
    return Change("a", key, revision, value, message, (OUTPUT,), at)


def commit(store: StateStore, *changes: Change, sent: Sequence[int] = ()) -> list[int]:
    numbers = store.commit(changes, sent)
    assert None not in numbers
    return [number for number in numbers if number is not None]


def values(store: StateStore, *keys: str, actor: str = "a") -> dict[str, bytes]:
    return {key: stored.value for key, stored in store.load(actor, keys).items()}


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.repository)])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], StateStore]]:
    """Return what opens the same store again."""
    memory = MemoryStates()
    opened: list[StateStore] = []
    makes: Callable[[], StateStore] = lambda: memory  # noqa: E731
    if request.param == "sqlite":
        makes = partial(SqliteStates, tmp_path / "states")
    elif request.param == "postgres":
        address = request.getfixturevalue("postgres").address
        makes = partial(postgres_states(), address, uuid.uuid4().hex)

    def again() -> StateStore:
        if opened:
            opened.pop().close()
        opened.append(makes())
        return opened[-1]

    yield again
    for store in opened:
        store.close()


def test_what_was_committed_is_there_again(reopen: Callable[[], StateStore]) -> None:
    store = reopen()
    odd = "k\0\ud800"
    first, second = commit(store, change(1), change(2, key=odd, value=b"[2]"))
    assert first < second
    store = reopen()
    assert values(store, "k", odd, "other") == {"k": b"{}", odd: b"[2]"}
    assert store.load("a", (odd,))[odd].revision == second
    assert values(store, "k", actor="b") == {}
    message = change(1).message
    assert message is not None
    found = store.find(message)
    assert isinstance(found, Handled)
    assert (found.number, found.outputs) == (first, (OUTPUT,))
    assert [one.number for one in store.unsent()] == [first, second]
    (third,) = commit(store, change(3, value=None, revision=first), sent=[first])
    store = reopen()
    assert [one.number for one in store.unsent()] == [second, third]
    found = store.find(message)
    assert isinstance(found, Handled)
    assert found.outputs == ()
    assert values(store, "k") == {"k": b"{}"}


def test_what_is_deleted_is_gone_and_the_message_stays_known(
    reopen: Callable[[], StateStore],
) -> None:
    store = reopen()
    (first,) = commit(store, change(1))
    deletion = change(2, value=b"", revision=first)
    commit(store, deletion)
    store = reopen()
    assert values(store, "k") == {}
    assert deletion.message is not None
    assert isinstance(store.find(deletion.message), Handled)
    # Of what is not there, too.
    commit(store, change(3, value=b"", key="other"))


def test_a_key_that_somebody_else_has_changed_is_a_conflict(
    reopen: Callable[[], StateStore],
) -> None:
    store = reopen()
    (first,) = commit(store, change(1))
    stale, fine = change(2, value=b"[]", revision=first - 1), change(3, key="other")
    assert [number is None for number in store.commit([stale, fine], ())] == [True, False]
    assert values(store, "k", "other") == {"k": b"{}", "other": b"{}"}
    assert stale.message is not None
    assert store.find(stale.message) is False
    (second,) = commit(store, change(2, value=b"[]", revision=first))
    commit(store, change(4, value=b"", revision=second))
    # One that was deleted and made again is another one.
    commit(store, change(5))
    assert store.commit([change(6, value=b"[]", revision=second)], ()) == [None]


def test_a_message_that_was_handled_is_a_conflict_and_keeps_nothing_else_from_being_kept(
    reopen: Callable[[], StateStore],
) -> None:
    store = reopen()
    (first,) = commit(store, change(1))
    again, fine = change(1, value=b"[]", revision=first), change(2, key="other")
    assert [number is None for number in store.commit([again, fine], ())] == [True, False]
    assert values(store, "k", "other") == {"k": b"{}", "other": b"{}"}


def test_what_another_instance_sends_again_is_the_same_message() -> None:
    def sent(source: str, identifier: str = "8a6e0804-2bd0-5672-b79d-d97027f9071a") -> object:
        return identity_of("a", "k", Envelope(topic="t", source=source, id=identifier))

    assert sent("app/0/relay") == sent("app/host-7/relay")
    assert sent("app/0/relay") != sent("app/0/other")
    assert sent("app/0/relay") != sent("other/0/relay")
    # These are not derived from the message that they follow from.
    assert sent("app/0/relay", "7") != sent("app/1/relay", "7")
    assert sent("a/0") != sent("a/1")
    assert sent("plant/0/line/1") != sent("plant/1/line/1")


@pytest.mark.parametrize(
    ("field", "value"),
    [("topic", "u"), ("payload", b"y"), ("type", "z"), ("content_type", "z"), ("source", "z")],
)
def test_what_tells_messages_with_one_id_apart(field: str, value: Any) -> None:
    message = Envelope(topic="t", payload=b"x", type="y", content_type="y", source="y", id="1")
    other = msgspec.structs.replace(message, **{field: value})
    assert identity_of("a", "k", message) == identity_of("a", "k", message)
    assert identity_of("a", "k", message) != identity_of("a", "k", other)
    assert identity_of("a", "k", message) != identity_of("a", "l\ud800", message)


def test_no_type_is_the_type_that_its_dead_letter_has() -> None:
    message = Envelope(topic="t", payload=b"x", id="1")
    typed = msgspec.structs.replace(message, type=DEFAULT_TYPE)
    assert identity_of("a", "k", message) == identity_of("a", "k", typed)


@pytest.mark.repository
def test_a_database_that_others_may_write_compares_all_revisions(postgres: Postgres) -> None:
    store, owner = postgres_states(), uuid.uuid4().hex
    one, two = store(postgres.address, owner), store(postgres.address, owner)
    (first,) = commit(one, change(1))
    assert two.load("a", ["k"])["k"].revision == first
    assert two.commit([change(2, revision=0, value=None)], ()) == [None]
    assert two.commit([change(2, revision=0, value=b"")], ()) == [None]
    assert two.commit([change(2, revision=0)], ()) == [None]
    commit(two, change(2, revision=first, value=None))
    stranger = store(postgres.address, owner + "x")
    assert values(stranger, "k") == {}
    commit(stranger, change(1))
    for each in (one, two, stranger):
        each.close()


def test_keys_are_told_in_the_order_in_which_they_are_to_be_woken(
    reopen: Callable[[], StateStore],
) -> None:
    store = reopen()
    odd = "k\0\ud800"
    numbers = commit(
        store,
        *(
            msgspec.structs.replace(change(n, key=key), wake=wake)
            for n, (key, wake) in enumerate({"a": 3.0, odd: 1.5, "c": None, "d": 2.0}.items())
        ),
    )
    store = reopen()
    assert store.first_due("a", 10) == [(odd, 1.5), ("d", 2.0), ("a", 3.0)]
    assert store.first_due("a", 2) == [(odd, 1.5), ("d", 2.0)]
    assert store.first_due("b", 10) == []
    later = msgspec.structs.replace(change(7, key=odd, revision=numbers[1]), wake=9.0)
    commit(store, later, change(8, key="d", value=b"", revision=numbers[3]))
    commit(store, change(9, key="a", revision=numbers[0]))
    assert store.first_due("a", 10) == [(odd, 9.0)]


def test_ids_that_were_used_for_other_messages_are_told(
    reopen: Callable[[], StateStore],
) -> None:
    store = reopen()
    commit(store, change(1))
    other = identity_of("a", "k", Envelope(topic="t", payload=b"other", id="1"))
    unknown = identity_of("b", "k", Envelope(topic="t", payload=b"1", id="1"))
    assert other is not None
    assert unknown is not None
    assert store.find(other) is True
    assert store.find(unknown) is False
    assert identity_of("a", "k", Envelope(topic="t")) is None


def test_only_acknowledged_messages_are_forgotten(reopen: Callable[[], StateStore]) -> None:
    store = reopen()
    late = SECONDS_HANDLED + 1
    first, second, third, fourth = commit(
        store, *(change(n, key=str(n), at=0.0 if n < 4 else late) for n in range(1, 5))
    )
    store.commit((), [second], [first])
    assert [one.number for one in store.unsent()] == [third, fourth]
    store.trim(late)
    store = reopen()
    for number, known in ((1, False), (2, True), (3, True), (4, True)):
        message = change(number, key=str(number)).message
        assert message is not None
        assert isinstance(store.find(message), Handled) is known


def test_nothing_is_forgotten_because_nothing_was_handled_for_long(
    reopen: Callable[[], StateStore],
) -> None:
    store = reopen()
    store.commit((), (), commit(store, change(1), change(2, key="other", at=10.0)))
    store.trim(1_000 * SECONDS_HANDLED)
    message = change(1).message
    assert message is not None
    assert isinstance(store.find(message), Handled)


def test_a_sender_with_one_id_for_all_messages_costs_no_more_with_each_of_them(
    tmp_path: Path,
) -> None:
    store = SqliteStates(tmp_path / "states")
    output = msgspec.structs.replace(OUTPUT, payload=b"o" * 100_000)

    def identity(number: int) -> MessageIdentity:
        found = identity_of("a", "k", Envelope(topic="t", id="1", payload=b"%d" % number))
        assert found is not None
        return found

    # No state is changed, so that none of them is a conflict.
    commit(store, *(Change("a", "k", 0, None, identity(n), (output,), 0.0) for n in range(100)))
    tracemalloc.start()
    try:
        assert store.find(identity(1_000)) is True
        assert isinstance(store.find(identity(50)), Handled)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
        store.close()


def test_a_full_disk_keeps_nothing_and_loses_nothing(tmp_path: Path) -> None:
    store = SqliteStates(tmp_path / "states")
    (first,) = commit(store, change(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(StateNotWritten, match=r"no room on the disk .*states"):
            commit(store, change(1, value=b"x" * 300_000, revision=first))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert values(store, "k") == {"k": b"{}"}
    commit(store, change(2, value=b"[]", revision=first))
    store.close()
    store = SqliteStates(tmp_path / "states")
    assert values(store, "k") == {"k": b"[]"}
    store.close()


def test_a_large_file_whose_check_takes_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "file"
    SqliteStates(path).close()
    assert "reading" not in caplog.text
    monkeypatch.setattr(_sqlite_file, "_LARGE", 4_096)
    SqliteStates(path).close()
    assert f"reading the file of states '{path}' to check it, which has 0 MB" in caplog.text


def test_a_disk_that_does_not_confirm_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStates(tmp_path / "states")

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fails)
        with pytest.raises(StateLost, match="unknown what of it would survive"):
            commit(store, change(1))
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


def test_the_oldest_messages_are_forgotten_a_few_with_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite_states, "MOST_HANDLED", 100)

    def known(store: SqliteStates) -> list[int]:
        return store._file.transaction(
            lambda database: [n for (n,) in database.execute("SELECT n FROM handled ORDER BY n")]
        )

    store = SqliteStates(tmp_path / "states")
    kept = commit(store, *(change(n, key=str(n)) for n in range(3)))
    acknowledged: Sequence[int | None] = ()
    for batch in range(60):
        if batch == 30:
            store.close()
            store = SqliteStates(tmp_path / "states")
        changes = [change(n, key=str(n)) for n in range(10 * batch + 10, 10 * batch + 20)]
        acknowledged = store.commit(changes, (), [n for n in acknowledged if n is not None])
        # An hour may bring millions, until it is tidied.
        assert len(known(store)) <= 3 + 100 + 10
    # What is not acknowledged may come again.
    assert known(store)[:3] == kept
    assert known(store)[-100:] == list(range(604 - 100, 604))
    store.close()
