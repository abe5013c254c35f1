"""Durable keys: their states and what they publish survive, as a whole, whatever happens."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Durable,
    Overflow,
    RetryPolicy,
    Socket,
    on,
)
from spa_dat.errors import (
    ConfigurationError,
    EncodeError,
    MessageTooLarge,
    NotHere,
    PublishRefused,
    RemoteError,
)
from spa_dat.runtime.dead_letters._stored_letter import LetterFilter
from spa_dat.runtime.hosting._durable_lane import DurableLane
from spa_dat.testing import Faults, Harness
from spa_dat.transports import Envelope
from spa_dat.transports._sqlite_states import SqliteStates
from spa_dat.transports._state_store import Change, StoredKey
from spa_dat.transports.memory import MemoryBus
from support.waiting import eventually

ONCE = RetryPolicy(attempts=1)
KEYS = 8
MESSAGES = 6


@dataclass
class Count:
    n: int = 0


def counting(dice: random.Random, outputs: dict[str, list[tuple[str | None, int]]]) -> Any:
    """Return an application that numbers the messages of each key, and sometimes fails."""
    app = DistributedApplication("memory://", name="app")
    retry = RetryPolicy(attempts=100, first=0.5, factor=1)

    @app.application("work/{key}", per="key", state=Count, durable=True, retry=retry)
    async def work(key: str, state: Count, socket: Socket) -> None:
        state.n += 1
        await socket.publish(f"done/{key}", state.n)
        await asyncio.sleep(dice.choice((0, 0, 0.1, 2)))
        if dice.random() < 0.3:
            raise ValueError("a bad day")

    return app


def run(seed: int, crash: float, profile: Any) -> None:
    dice = random.Random(seed)
    app = counting(dice, {})
    faults = replace(Faults.all(), crash=crash)
    with Harness(app, seed=seed, faults=faults, profile=profile) as harness:
        harness.expect_failure(ValueError)
        for _ in range(MESSAGES):
            for key in range(KEYS):
                harness.publish(f"work/{key}", key=str(key))
        harness.settle()
        done = harness.messages("done/+")
    contents: dict[str | None, set[tuple[str, str]]] = defaultdict(set)
    numbers: dict[str, list[int]] = defaultdict(list)
    for one in done:
        contents[one.id].add((one.topic, repr(one.payload)))
        numbers[one.topic].append(int(one.payload))
    assert all(len(content) == 1 for content in contents.values())
    assert len(numbers) == KEYS
    for of_key in numbers.values():
        assert list(dict.fromkeys(of_key)) == list(range(1, MESSAGES + 1))


@pytest.mark.virtual
@pytest.mark.parametrize("profile", [None, "mqtt"])
@pytest.mark.parametrize("crash", [0, 0.01])
@pytest.mark.parametrize("seed", range(8))
def test_states_and_outputs_of_each_key_are_right_whatever_fails(
    profile: Any, seed: int, crash: float
) -> None:
    run(seed, crash, profile)


@pytest.mark.virtual
def test_without_undoing_the_states_they_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DurableLane, "_undo", lambda self, cell: None)
    with pytest.raises(AssertionError):
        run(1, 0.0, None)


async def replayed(app: DistributedApplication) -> list[str]:
    run = app._runs.current
    assert run is not None
    found = [letter async for _, letter in run.dead_letters.search.stored(LetterFilter())]
    return [(await run.dead_letters.replay(letter.name)).outcome for letter in found]


def application(folder: Path, got: list[Any]) -> DistributedApplication:
    app = DistributedApplication("memory://durable", name="app", state_folder=folder)

    class Work(Actor):
        per, state, durable = "key", Count, True

        @on("work/{key}")
        async def handle(self, step: int, key: str, socket: Socket) -> int:
            self.state.n += step
            await socket.publish(f"done/{key}", self.state.n)
            return int(self.state.n)

    app.add(Work)

    @app.application("done/{key}")
    async def done(n: int, key: str) -> None:
        got.append((key, n))

    return app


async def test_states_are_there_again_after_a_restart(tmp_path: Path) -> None:
    got: list[Any] = []
    for n in (2, 4):
        app = application(tmp_path / "states", got)
        async with app:
            assert await app.socket().request("work/a", 2, reply=int) == n
            await eventually(lambda n=n: ("a", n) in got)  # type: ignore[misc]
    assert got == [("a", 2), ("a", 4)]
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())


async def test_a_message_that_comes_again_is_known_and_another_with_its_id_is_not(
    tmp_path: Path,
) -> None:
    got: list[Any] = []
    app = application(tmp_path, got)
    async with app:
        bus = app._runs.current.connections[0].bus  # type: ignore[union-attr]
        for payload in (b"1", b"1", b"2"):
            await bus.publish(
                Envelope(topic="work/a", payload=payload, id="x", source="s"), timeout=10
            )
        await eventually(lambda: ("a", 3) in got)
        await bus.publish(Envelope(topic="work/a", payload=b"5"), timeout=10)
        await eventually(lambda: ("a", 8) in got)
        assert list(dict.fromkeys(got)) == [("a", 1), ("a", 3), ("a", 8)]
        assert app.stats["messages.known"] == 1
        assert app.stats["messages.id_reused"] == 1
        assert app.stats["messages.without_id"] == 1


@pytest.mark.virtual
def test_messages_are_known_whatever_dedupe_says() -> None:
    app = DistributedApplication("memory://", name="app")
    kept = Durable(dedupe=1)

    @app.application("work/{key}", per="key", state=Count, durable=kept)
    async def work(number: int, key: str, state: Count, socket: Socket) -> None:
        state.n += 1
        await socket.publish(f"done/{key}", state.n)

    with Harness(app) as harness:
        for number in (1, 2, 3, 1, 2, 3):
            harness.publish("work/a", number, id=str(number))
            harness.settle()
        assert harness.published("done/a") == [1, 2, 3]


@pytest.mark.virtual
def test_what_two_instances_publish_for_one_message_counts_once() -> None:
    def relaying(instance: str) -> DistributedApplication:
        relay = DistributedApplication("memory://plant", name="relay", instance=instance)

        @relay.application("in/#", deliver="share")
        async def pass_on(payload: int, socket: Socket) -> None:
            await socket.publish("work/all", payload)

        return relay

    app = DistributedApplication("memory://plant", name="app")

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work(n: int, state: Count) -> None:
        state.n += n

    with Harness(relaying("0"), relaying("1"), app) as harness:
        # As if the one that got it first had ended before it was acknowledged.
        for _ in range(10):
            harness.publish("in/x", 1, id="same")
        harness.settle()
        assert harness.state("work", key="all").n == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_what_the_bus_has_refused_is_sent_when_the_dead_letter_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    got: list[Any] = []
    is_refused = True
    post = MemoryBus.post

    def refusing(bus: MemoryBus, envelope: Envelope) -> asyncio.Future[None]:
        if envelope.topic != "done/a" or not is_refused:
            return post(bus, envelope)
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(PublishRefused("not authorised"))
        return refused

    monkeypatch.setattr(MemoryBus, "post", refusing)
    app = application(tmp_path, got)
    # It keeps the dead letter while the other one is away.
    async with DistributedApplication("memory://durable"):
        async with app:
            await app.socket().publish("work/a", 1)
            await eventually(lambda: app.stats["dead_letters.stored"] == 1)
            if not restart:
                is_refused = False
                assert await replayed(app) == ["handled"]
                await eventually(lambda: got == [("a", 1)])
        if restart:
            app = application(tmp_path, got)
            async with app:
                assert await replayed(app) == ["failed"]
                is_refused = False
                assert await replayed(app) == ["handled"]
                await eventually(lambda: got == [("a", 1)])


async def test_a_message_without_a_type_is_known_when_its_dead_letter_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []
    is_refused = True
    post = MemoryBus.post

    def refusing(bus: MemoryBus, envelope: Envelope) -> asyncio.Future[None]:
        if envelope.topic == "done/a" and is_refused:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(PublishRefused("not authorised"))
            return refused
        return post(bus, envelope)

    monkeypatch.setattr(MemoryBus, "post", refusing)
    app = application(tmp_path, got)
    async with app:
        bus = app._runs.current.connections[0].bus  # type: ignore[union-attr]
        # As other programs publish, which know nothing of CloudEvents.
        await bus.publish(Envelope(topic="work/a", payload=b"1", id="x"), timeout=10)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        is_refused = False
        assert await replayed(app) == ["handled"]
        await eventually(lambda: got)
        assert await app.peek("Work", "a") == Count(1)
    assert got == [("a", 1)]


async def test_one_id_for_messages_of_several_keys_and_senders_hides_none_of_them(
    tmp_path: Path,
) -> None:
    got: list[Any] = []
    app = application(tmp_path, got)

    @app.application("device/{device}/done")
    async def pass_on(payload: bytes, socket: Socket) -> None:
        await socket.publish("work/all", 1)

    async with app:
        bus = app._runs.current.connections[0].bus  # type: ignore[union-attr]
        for key in "ab":
            bus.post(Envelope(topic=f"work/{key}", payload=b"1", id="1", source="s"))
        for source in "ab":
            topic = f"device/{source}/done"
            await bus.publish(Envelope(topic=topic, id="1", source=source), timeout=10)
        await eventually(lambda: {("a", 1), ("b", 1), ("all", 1), ("all", 2)} <= set(got))
        assert app.stats["messages.known"] == 0
        assert app.stats["messages.id_reused"] == 0


async def test_a_message_may_publish_more_than_the_outbox_has_room_for(tmp_path: Path) -> None:
    got: list[int] = []
    app = DistributedApplication(
        "memory://durable-many?outbox=10", name="app", state_folder=tmp_path
    )

    @app.application("work/{key}", per="key", state=Count, durable=True, retry=ONCE)
    async def work(count: int, socket: Socket) -> None:
        for n in range(count):
            socket.post("done", n)

    @app.application("done")
    async def done(n: int) -> None:
        got.append(n)

    async with app:
        await app.socket().publish("work/a", 100)
        await eventually(lambda: len(got) >= 100)
        await eventually(lambda: app.stats["messages.handled"] == 101)
    assert got == list(range(100))
    assert app.stats["dead_letters.stored"] == 0


async def test_what_an_earlier_run_has_left_is_sent_as_far_as_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    store = SqliteStates(tmp_path / "app.0.states")
    outputs = [Envelope(topic="done", payload=b"%d" % n, id=str(n)) for n in range(100)]
    large = Envelope(topic="done", payload=b" " * 2_000)
    store.commit([Change("work", "a", 0, b"{}", None, (*outputs, large), 0.0)], ())
    store.close()
    app = DistributedApplication(
        "memory://durable-left?outbox=10&max_payload=1000", name="app", state_folder=tmp_path
    )

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work(payload: bytes) -> None: ...

    reader = DistributedApplication("memory://durable-left?outbox=10&max_payload=1000")

    @reader.application("done")
    async def done(n: int) -> None:
        got.append(n)

    async with reader, app:
        await eventually(lambda: len(got) == 100)
    assert got == list(range(100))
    assert "was not sent: the payload for 'done' has 2000 bytes" in caplog.text


@pytest.mark.virtual
def test_what_one_message_publishes_is_limited_in_bytes() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("work/{key}", per="key", state=Count, durable=True, retry=ONCE)
    async def work(count: int, socket: Socket) -> None:
        for _ in range(count):
            socket.post("done", b"x" * 1_000_000)

    with Harness(app) as harness:
        harness.expect_failure(MessageTooLarge)
        for count in (70, 2):
            harness.publish("work/a", count)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert letter.error == "MessageTooLarge"
        assert "with the one to 'done' it has 68068000 bytes" in letter.text
        assert len(harness.messages("done")) == 2


async def test_a_file_that_is_in_use_is_refused(tmp_path: Path) -> None:
    store = SqliteStates(tmp_path / "app.0.states")
    with pytest.raises(ConfigurationError, match=r"app\.0\.states.*in use"):
        async with application(tmp_path, []):
            pass
    store.close()


class Mistaken(SqliteStates):
    """A store whose methods each return something wrong once."""

    def __init__(self, path: Path, wrong: dict[str, Any]) -> None:
        super().__init__(path)
        self.wrong = wrong

    def load(self, actor: str, keys: Iterable[str]) -> Mapping[str, StoredKey]:
        """Return what is no StoredKey."""
        return self.wrong.pop("load", None) or super().load(actor, keys)

    def commit(
        self, changes: Sequence[Change], sent: Sequence[int], acknowledged: Sequence[int] = ()
    ) -> Sequence[int | None]:
        """Return another number of numbers than there are changes."""
        return self.wrong.pop("commit", None) or super().commit(changes, sent, acknowledged)

    def first_due(self, actor: str, most: int) -> Sequence[tuple[str, float]]:
        """Return keys without times."""
        return self.wrong.pop("first_due", None) or super().first_due(actor, most)


@pytest.mark.parametrize(
    ("method", "returned", "text"),
    [
        ("load", {"a": (b"", 1)}, r"load\(\) has returned \(b'', 1\) for a key"),
        (
            "load",
            {"a": StoredKey(memoryview(b""), 1)},  # type: ignore[arg-type]
            r"load\(\) has returned <memory at .*bytes",
        ),
        ("commit", [1, 2, 3], r"commit\(\) has returned 3 numbers for 1 changes"),
        ("first_due", ["a"], "cannot look for keys whose time has come"),
        ("first_due", [(["a"], 1.0)], "cannot look for keys whose time has come"),
        ("first_due", [("a", float("nan"))], "cannot look for keys whose time has come"),
    ],
)
async def test_a_store_that_returns_something_wrong_is_asked_again(
    method: str, returned: Any, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    store = Mistaken(tmp_path / "states", {method: returned})
    app = DistributedApplication("memory://", name="app")

    @app.application(
        "work/{key}",
        per="key",
        state=Count,
        durable=Durable(store=lambda name: store),
        retry=RetryPolicy(attempts=1, first=0.01),
    )
    async def work(state: Count, context: Context) -> None:
        state.n += 1
        context.remind("again", after=0.0)

    @app.on_reminder("work", "again")
    async def again(state: Count) -> None:
        seen.append(state.n)

    async with app:
        await app.socket().publish("work/a", b"")
        await eventually(lambda: seen == [1])
    assert store.wrong == {}
    assert re.search(text, caplog.text)


async def test_scheduled_calls_are_refused(tmp_path: Path) -> None:
    app = DistributedApplication("memory://", name="app", state_folder=tmp_path)

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work(context: Context) -> int:
        context.later(1, print)
        return 1

    async with app:
        with pytest.raises(RemoteError, match="would not be kept"):
            await app.socket().request("work/a", reply=int)


@pytest.mark.parametrize("deliver", [None, "all"])
async def test_another_instance_is_refused(deliver: Any) -> None:
    app = DistributedApplication("memory://", name="app", instance="1")

    @app.application("work/{key}", per="key", state=Count, durable=True, deliver=deliver)
    async def work() -> None: ...

    with pytest.raises(ConfigurationError, match="instance '1': only one instance may keep"):
        async with app:
            pass


async def test_durable_actors_need_a_name() -> None:
    app = DistributedApplication("memory://")

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work() -> None: ...

    with pytest.raises(ConfigurationError, match="give name="):
        async with app:
            pass


@dataclass
class Recent:
    counts: Counter[str] = field(default_factory=Counter)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"per": None, "state": None}, "give per="),
        ({"durable": "yes"}, "give True, False or Durable"),
        ({"durable": Durable(version=0)}, r"Durable\(version\)=0"),
        ({"durable": Durable(version=True)}, r"Durable\(version\)=True"),
        ({"durable": Durable(upgrade={1: str})}, r"upgrade=\{1: .*never be called, as version=1"),
        ({"durable": Durable(version=3, upgrade={0: str})}, r"upgrade=\{0: .*never be called"),
        (
            {"durable": Durable(version=3, upgrade={1: "x"})},  # type: ignore[dict-item]
            "'x' cannot be called",
        ),
        (
            {"durable": Durable(upgrade=str)},  # type: ignore[arg-type]
            "give functions by the versions",
        ),
        (
            {
                "durable": Durable(store=SqliteStates),  # type: ignore[arg-type]
                "exactly_once": True,
                "socket_provider": "kafka://localhost",
            },
            r"Durable\(store=...\) does not go with exactly_once=True",
        ),
        ({"durable": Durable(ttl=0)}, r"Durable\(ttl\)=0"),
        ({"durable": Durable(hot=0)}, r"Durable\(hot\)=0"),
        ({"durable": Durable(idle=-1)}, r"Durable\(idle\)=-1"),
        ({"durable": Durable(hot=1), "hot": 2}, r"hot=2 and Durable\(hot=1\): give only one"),
        ({"durable": Durable(), "per": None, "state": None}, "give per="),
        ({"qos": 0}, "qos=0 does not go with durable"),
        ({"subscription": "s"}, "subscription='s' does not go with durable"),
        ({"deliver": "share"}, "deliver='share' does not go with durable"),
        ({"overflow": Overflow.DROP_OLDEST}, "overflow"),
        ({"batch": (2, 1.0)}, "batch"),
        ({"state": lambda: 1}, "give state= a class"),
        ({"state": None}, "give state= a class"),
        ({"state": Counter}, r"use dict\[str, int\]"),
        ({"state": deque[int]}, "use a list"),
        ({"state": Recent}, r"the state\.counts is a Counter"),
    ],
)
def test_what_cannot_be_durable_is_refused(options: dict[str, Any], text: str) -> None:
    app = DistributedApplication("memory://", name="app")
    given: dict[str, Any] = {"per": "key", "state": Count, "durable": True} | options
    with pytest.raises(ConfigurationError, match=text):

        @app.application("work/{key}", **given)
        async def work() -> None: ...


@dataclass
class Text:
    text: str = ""


@pytest.mark.virtual
def test_a_state_that_is_too_large_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("work/{key}", per="key", state=Text, durable=True)
    async def work(size: int, state: Text, socket: Socket) -> None:
        state.text = "x" * size
        socket.post("done", size)

    with Harness(app) as harness:
        for size in (10, 150_000, 900_000, 20):
            harness.publish("work/a", size)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert "the state of key 'a' has 900011 bytes" in letter.text
        assert harness.published("done") == [10, 150_000, 20]
        assert harness.state("work", key="a").text == "x" * 20
    assert "the state of key 'a' has 150011 bytes" in caplog.text


async def test_a_request_that_was_handled_before_is_not_handled_again(
    tmp_path: Path,
) -> None:
    app = application(tmp_path, [])
    async with app:
        bus = app._runs.current.connections[0].bus  # type: ignore[union-attr]
        request = Envelope(
            topic="work/a", payload=b"1", id="x", response_topic="elsewhere", correlation=b"1"
        )
        for _ in range(2):
            await bus.publish(request, timeout=10)
        await eventually(lambda: app.stats["messages.known"] == 1)
        assert await app.socket().request("work/a", 1, reply=int) == 2


@pytest.mark.virtual
@pytest.mark.parametrize("crash", [0, 0.01])
@pytest.mark.parametrize("seed", range(4))
def test_a_deleted_state_begins_anew_whatever_fails(seed: int, crash: float) -> None:
    dice = random.Random(seed)
    app = DistributedApplication("memory://", name="app")
    retry = RetryPolicy(attempts=100, first=0.5, factor=1)

    @app.application("work/{key}", per="key", state=Count, durable=True, retry=retry)
    async def work(last: bool, key: str, state: Count, context: Context, socket: Socket) -> None:
        state.n += 1
        await socket.publish(f"done/{key}", state.n)
        if last:
            context.delete()
        if dice.random() < 0.3:
            raise ValueError("a bad day")

    with Harness(app, seed=seed, faults=replace(Faults.all(), crash=crash)) as harness:
        harness.expect_failure(ValueError)
        for _ in range(3):
            for last in (False, False, True):
                for key in "ab":
                    harness.publish(f"work/{key}", last, key=key)
        harness.settle()
        done = harness.messages("done/+")
        assert harness.keys("work") == []
    for key in "ab":
        numbers = {one.id: int(one.payload) for one in done if one.topic == f"done/{key}"}
        assert list(numbers.values()) == [1, 2, 3] * 3


async def test_a_deleted_state_stays_deleted_and_its_messages_stay_known(tmp_path: Path) -> None:
    app = DistributedApplication("memory://", name="app", state_folder=str(tmp_path))
    activated: list[int] = []

    class Work(Actor):
        per, state, durable = "key", Count, True

        def on_activate(self) -> None:
            activated.append(self.state.n)

        @on("work/{key}")
        async def handle(self, step: int, context: Context) -> int:
            self.state.n += step
            if step == 100:
                context.delete()
            return int(self.state.n)

    app.add(Work)
    again = Envelope(topic="work/a", payload=b"5", id="x")
    for known, result in ((0, 6), (1, 1)):
        async with app:
            await app._runs.current.connections[0].bus.publish(again, timeout=10)  # type: ignore[union-attr]
            assert await app.socket().request("work/a", 1, reply=int) == result
            assert await app.socket().request("work/a", 100, reply=int) == result + 100
            assert app.stats["messages.known"] == known
    assert activated == [0, 0]


@pytest.mark.virtual
def test_what_is_not_durable_or_not_at_work_cannot_be_deleted() -> None:
    app = DistributedApplication("memory://", name="app")
    kept: list[Context] = []

    @app.application("plain", state=Count)
    async def plain(context: Context) -> int:
        context.delete()
        return 1

    @app.application("work/{key}", per="key", state=Count, durable=True)
    async def work(key: str, context: Context) -> int:
        kept.append(context)
        if key == "b":
            kept[0].delete()
        return 1

    with Harness(app) as harness:
        with pytest.raises(RemoteError, match="'plain' is not durable"):
            harness.request("plain", reply=int)
        harness.request("work/a", reply=int)
        with pytest.raises(RemoteError, match="part of a message that is being handled"):
            harness.request("work/b", reply=int)


@pytest.mark.virtual
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("seven", r"no Count: Expected `int`, got `str` - at `\$.n`"),
        (None, "no Count: Expected `int`, got `null`"),
        (object(), "cannot be encoded as JSON"),
    ],
)
def test_a_state_that_could_not_be_read_again_is_not_kept(wrong: Any, why: str) -> None:
    app = DistributedApplication("memory://", name="app")
    retry = RetryPolicy(attempts=2, first=1)

    @app.application("work/{key}", per="key", state=Count, durable=True, retry=retry)
    async def work(step: int, state: Count, socket: Socket) -> None:
        state.n = state.n + step if step else wrong
        await socket.publish("done", step)

    with Harness(app, allow_failures=EncodeError) as harness:
        for step in (1, 0, 2):
            harness.publish("work/a", step)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert re.search(f"the state that was made of key 'a' is not kept.*{why}", letter.text)
        assert harness.published("done") == [1, 2]
        assert harness.state("work", key="a").n == 3


async def test_peek_returns_what_was_committed_last(tmp_path: Path) -> None:
    app = DistributedApplication("memory://", name="app", state_folder=str(tmp_path))
    at_work, go_on = asyncio.Event(), asyncio.Event()

    class Work(Actor):
        per, state, durable = "key", Count, Durable(ttl=1e6, hot=1)

        @on("work/{key}")
        async def work(self, wait: bool) -> int:
            self.state.n += 1
            if wait:
                at_work.set()
                await go_on.wait()
            return int(self.state.n)

    spec = app.add(Work)

    @app.application("plain/{key}", per="key", state=Count)
    async def plain() -> None: ...

    with pytest.raises(NotHere, match="'Work' is not running in this process"):
        await spec.peek("a")
    async with app:
        assert await spec.peek("a") is None
        for key in "ab":
            assert await app.socket().request(f"work/{key}", False, reply=int) == 1
        assert await spec.peek("a") == await app.peek("Work", "b") == Count(1)
        request = asyncio.create_task(app.socket().request("work/a", True, reply=int))
        await at_work.wait()
        copy = await spec.peek("a")
        copy.n = 100
        assert await spec.peek("a") == Count(1)
        go_on.set()
        assert await request == 2
        assert await spec.peek("a") == Count(2)
        with pytest.raises(ConfigurationError, match="'plain' is not durable"):
            await app.peek("plain", "a")
        with pytest.raises(ConfigurationError, match="no actor 'other'"):
            await app.peek("other", "a")
        with pytest.raises(ConfigurationError, match=r"peek\(7\): give the key as text"):
            await spec.peek(7)  # type: ignore[arg-type]

        async def elsewhere() -> None:
            with pytest.raises(NotHere, match="another event loop"):
                await spec.peek("a")

        await asyncio.to_thread(asyncio.run, elsewhere())
    with pytest.raises(NotHere):
        await spec.peek("a")
