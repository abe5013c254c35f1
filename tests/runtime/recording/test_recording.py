"""What reached an application's actors: written down in production, put in again in a test."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from spa_dat import Actor, DistributedApplication, MemoryConfig, Message, RetryPolicy, Socket, on
from spa_dat.errors import ConfigurationError
from spa_dat.recording import Receipt, Recorder, read_recording
from spa_dat.runtime.recording import _recording_writer
from spa_dat.testing import Faults, HandlerFailed, Harness
from spa_dat.transports import Envelope, TopicFilter, opened
from support.waiting import eventually

QUICK = RetryPolicy(attempts=2, first=0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "incident.jsonl"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Tank(Actor):
    """Divides what it should not divide."""

    retry = QUICK

    def __init__(self) -> None:
        self.shares: list[float] = []

    @on("tank/{name}/users")
    async def users(self, count: int, name: str, socket: Socket) -> None:
        self.shares.append(100 / count)
        await socket.publish(f"share/{name}", 100 / count)


class Board(Actor):
    def __init__(self) -> None:
        self.seen: list[str] = []

    @on("share/+")
    async def share(self, message: Message[float]) -> None:
        self.seen.append(f"{message.topic} {message.payload:g}")


def plant() -> DistributedApplication:
    app = DistributedApplication("memory://", name="plant")
    app.add(Tank)
    app.add(Board)

    @app.application("tank/#")
    async def archive(message: Message[bytes]) -> None:
        pass

    return app


async def run_until_it_fails(app: DistributedApplication) -> None:
    """As in production: on its bus and in real time."""
    async with app:
        socket = app.socket()
        for count in (4, 0, 5):
            await socket.publish("tank/a/users", count)
        await eventually(lambda: app.stats["messages.handled"] == 7)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)


async def test_an_incident_becomes_a_test(file: Path) -> None:
    app = plant()
    with Recorder(app, file) as recorder:
        await run_until_it_fails(app)
    assert (recorder.recorded, recorder.skipped, recorder.problem) == (8, 0, None)

    async with Harness(plant()) as harness:
        with pytest.raises(HandlerFailed) as caught:
            await harness.replay(file)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        (letter,) = harness.dead_letters()
        assert (letter.topic, letter.payload, letter.actor) == (
            "tank/a/users",
            b"0",
            "plant/0/Tank",
        )
        recorded = [receipt for _, receipt in read_recording(file)]
        assert letter.message_id == next(r.id for r in recorded if r.payload == "0")
        assert harness.state("Tank").shares == [25, 20]
        assert harness.state("Board").seen == ["share/a 25", "share/a 20"]


async def test_what_actors_send_again_is_not_put_in_too(file: Path) -> None:
    app = plant()
    with Recorder(app, file):
        await run_until_it_fails(app)
    async with Harness(plant(), allow_failures=ZeroDivisionError) as harness:
        # Three messages, two of which two actors have got; two more came from an actor.
        assert await harness.replay(file) == 3
        assert harness.published("share/#") == [25, 20]
        assert harness.published("tank/#") == []
        assert harness.stats["messages.handled"] == 7


async def test_what_was_sent_by_actors_that_were_not_recorded_is_put_in(file: Path) -> None:
    app = plant()
    with Recorder(app, file, actors=["Board"]) as recorder:
        await run_until_it_fails(app)
    assert recorder.recorded == 2
    assert {line["actor"] for line in lines(file)} == {"Board"}
    async with Harness(plant()) as harness:
        assert await harness.replay(file) == 2
        assert harness.state("Board").seen == ["share/a 25", "share/a 20"]
        assert harness.state("Tank").shares == []


def heard_on_the_bus(file: Path, pattern: str | None = None) -> list[Envelope]:
    """What a listener on the bus writes down of the plant, as it runs in production."""
    with Harness(plant(), allow_failures=ZeroDivisionError) as harness:
        for count in (4, 0, 5):
            harness.publish("tank/a/users", count, id=f"count-{count}")
        harness.publish("share/b", 7.0)
        harness.settle()
        heard = [
            envelope
            for envelope in harness._core.world.taken
            if pattern is None or TopicFilter.parse(pattern).matches(envelope.topic)
        ]
    with file.open("wb") as out:
        for envelope in heard:
            receipt = Receipt.of(envelope, at=envelope.time or 0.0, bus="mqtt://broker")
            out.write(msgspec.json.encode(receipt) + b"\n")
    return heard


def test_what_a_bus_brought_is_put_in_without_what_the_application_sends_again(file: Path) -> None:
    heard = heard_on_the_bus(file)
    assert sum(e.topic.startswith("share/a") for e in heard) == 2
    assert any(e.topic.startswith("_spa/") for e in heard)
    with Harness(plant(), allow_failures=ZeroDivisionError) as harness:
        assert harness.replay(file) == 4
        assert harness.published("share/#") == [25, 20]
        assert sorted(harness.state("Board").seen) == ["share/a 20", "share/a 25", "share/b 7"]
        assert [letter.message_id for letter in harness.dead_letters()] == ["count-0"]


def test_what_a_bus_brought_can_be_put_in_as_it_is(file: Path) -> None:
    heard = heard_on_the_bus(file)
    with Harness(plant(), allow_failures=ZeroDivisionError) as harness:
        assert harness.replay(file, keep_own=True) == len(heard)
        seen = harness.state("Board").seen
        assert sorted(seen) == ["share/a 20"] * 2 + ["share/a 25"] * 2 + ["share/b 7"]


def test_what_nothing_in_the_recording_makes_the_application_send_is_put_in(file: Path) -> None:
    heard = heard_on_the_bus(file, "share/+")
    assert len(heard) == 3
    with Harness(plant()) as harness:
        assert harness.replay(file) == 3
        assert sorted(harness.state("Board").seen) == ["share/a 20", "share/a 25", "share/b 7"]
        assert harness.published() == []


async def test_one_actor_gets_what_it_got(file: Path) -> None:
    app = plant()
    with Recorder(app, file):
        await run_until_it_fails(app)
    async with Harness(plant()) as harness:
        assert await harness.replay(file, actor="Board") == 2
        assert harness.state("Board").seen == ["share/a 25", "share/a 20"]
        assert harness.state("Tank").shares == []
        assert harness.published() == []


def test_the_same_seed_gives_the_same_trace(file: Path) -> None:
    asyncio.run(_recorded(plant(), file, run_until_it_fails))
    traces = []
    for _ in range(2):
        faults = Faults(drop=0.05, duplicate=0.1)
        allowed = ZeroDivisionError
        with Harness(plant(), seed=3, faults=faults, allow_failures=allowed) as harness:
            harness.replay(file)
            assert harness.state("Tank").shares.count(25) >= 1
            traces.append(harness.trace)
    assert traces[0] == traces[1]


async def _recorded(
    app: DistributedApplication, file: Path, use: Callable[[DistributedApplication], Any]
) -> None:
    with Recorder(app, file):
        await use(app)


def watcher(topics: str = "in/#") -> tuple[DistributedApplication, list[Message[Any]]]:
    app = DistributedApplication("memory://", name="watcher")
    got: list[Message[Any]] = []

    @app.application(topics)
    async def look(message: Message[bytes]) -> None:
        got.append(message)

    return app, got


def written(file: Path, *receipts: Receipt) -> Path:
    file.write_bytes(b"".join(receipt.line() for receipt in receipts))
    return file


def at(seconds: float, **fields: Any) -> Receipt:
    known: dict[str, Any] = {
        "version": 1,
        "application": "watcher",
        "instance": "0",
        "actor": "look",
        "topic": "in/a",
    }
    return Receipt(at=seconds, **{**known, **fields})


def test_time_goes_by_as_it_did(file: Path) -> None:
    app, _ = watcher()
    when: list[float] = []

    @app.application("in/#")
    async def note(message: Message[bytes]) -> None:
        when.append(harness.time)

    written(file, at(100.0), at(101.5, id="2"), at(101.0, id="3"), at(3701.0, id="4"))
    with Harness(app) as harness:
        harness.replay(file)
        assert when == [0.0] * 4
        when.clear()
        harness.replay(file, keep_times=True)
        # A wall clock may have been set back.
        assert when == pytest.approx([0.0, 1.5, 1.5, 3601.5])


def test_each_receipt_counts(file: Path) -> None:
    app, got = watcher()
    written(file, at(1.0, id="x"), at(1.0, id="x", redelivered=True), at(1.0, id="y"))
    with Harness(app) as harness:
        assert harness.replay(file) == 3
        assert [message.id for message in got] == ["x", "x", "y"]
        assert not got[1].redelivered


def test_right_at_the_actor_everything_is_as_it_was(file: Path) -> None:
    app, got = watcher()
    place = {"partition": 3, "offset": 17, "redelivered": True, "retain": True}
    written(file, at(1.0, payload="p", headers={"h": "1"}, key="k", time=5.0, **place))
    with Harness(app) as harness:
        harness.replay(file, actor="look")
    (message,) = got
    assert (message.partition, message.offset, message.retained) == (3, 17, True)
    assert (message.redelivered, message.key, message.payload) == (True, "k", b"p")
    assert message.id == "in/a/3/17"
    assert message.headers["h"] == "1"


def test_without_an_id_the_place_in_the_log_stays_the_id(file: Path) -> None:
    app, got = watcher()
    written(file, at(1.0, partition=3, offset=17))
    with Harness(app) as harness:
        harness.replay(file)
    assert [message.id for message in got] == ["in/a/3/17"]


def test_an_actor_at_whom_something_is_put_in_may_crash_and_lose_its_connection(
    file: Path,
) -> None:
    app = DistributedApplication("memory://", name="watcher")
    got: list[bytes] = []

    @app.application("in/#")
    async def look(payload: bytes) -> None:
        await asyncio.sleep(1)
        got.append(payload)

    written(file, *(at(float(n), id=str(n), payload=str(n)) for n in range(10)))
    faults = Faults(cut=0.05, crash_actor=0.05)
    with Harness(app, seed=1, faults=faults) as harness:
        harness.replay(file, actor="look", keep_times=True)
        assert got == [str(n).encode() for n in range(10)]
        assert " lost" in harness.trace
        assert " restart" in harness.trace


def test_replies_to_what_is_replayed_reach_nobody_who_waits_for_others(file: Path) -> None:
    app = DistributedApplication("memory://", name="watcher")

    @app.application("in/#")
    async def look(payload: int) -> int:
        return payload + 1

    address = "_spa/reply/other/f00d/1234"
    written(
        file,
        at(1.0, payload="1", content_type="application/json", response_topic=address),
        at(2.0, payload="5", content_type="application/json", response_topic="mine/answers"),
    )
    with Harness(app) as harness:
        harness.replay(file)
        assert harness.published("mine/answers") == [6]
        assert harness.published("_spa/reply/other/#") == []
        assert harness.published("_spa/reply/#") == [2]


@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
@pytest.mark.parametrize("address", ["$SYS/x", "a/+", "", "a" + "/a" * 300, "a b"])
def test_a_reply_address_of_a_stranger_keeps_no_recording_from_being_replayed(
    file: Path, address: str, profile: Any
) -> None:
    app, got = watcher()
    written(file, at(1.0, response_topic=address), at(2.0))
    with Harness(app, profile=profile) as harness:
        assert harness.replay(file) == 2
    assert len(got) == 2


def test_lanes_and_batches_are_recorded_and_replayed(file: Path) -> None:
    def make() -> tuple[DistributedApplication, list[Any]]:
        app = DistributedApplication("memory://", name="many")
        got: list[Any] = []

        @app.application("in/{who}", batch=(3, 0.05), name="batches")
        async def batches(messages: list[Message[int]]) -> None:
            got.append([message.payload for message in messages])

        @app.application("in/{who}", concurrency=3, key="who", name="lanes")
        async def lanes(payload: int) -> None:
            got.append(payload)

        return app, got

    async def use(app: DistributedApplication) -> None:
        async with app:
            for number in range(6):
                await app.socket().publish(f"in/{number % 2}", number)
            await eventually(lambda: app.stats["messages.handled"] == 12)

    app, _ = make()
    asyncio.run(_recorded(app, file, use))
    by_actor = [line["actor"] for line in lines(file)]
    assert (by_actor.count("batches"), by_actor.count("lanes")) == (6, 6)
    for actor, expected in ((None, 12), ("batches", 6), ("lanes", 6)):
        app, got = make()
        with Harness(app) as harness:
            assert harness.replay(file, actor=actor) == 6
            assert harness.stats["messages.handled"] == expected
        flat = [n for one in got for n in (one if isinstance(one, list) else [one])]
        assert sorted(flat) == sorted(list(range(6)) * (expected // 6))


def test_it_is_the_same_on_simulated_kafka(file: Path) -> None:
    def make() -> tuple[DistributedApplication, list[Message[Any]]]:
        app = DistributedApplication("kafka://localhost:9092", name="watcher")
        got: list[Message[Any]] = []

        @app.application("in/+")
        async def look(message: Message[int], socket: Socket) -> None:
            got.append(message)
            await socket.publish("out/a", message.payload)

        @app.application("out/#")
        async def ask(payload: int) -> int:
            return payload

        return app, got

    app, first = make()
    with Recorder(app, file), Harness(app) as harness:
        for number in range(3):
            harness.publish("in/a", number)
        harness.settle()
        assert harness.request("out/a", 7, reply=int) == 7
    assert len(lines(file)) == 7
    for actor, count in ((None, 4), ("look", 3)):
        app, got = make()
        with Harness(app) as harness:
            assert harness.replay(file, actor=actor) == count
            assert harness.published("out/a") == [0, 1, 2]
        assert [message.id for message in got] == [message.id for message in first]


def test_a_recorder_works_in_a_harness(file: Path) -> None:
    app, _ = watcher()
    with Recorder(app, file), Harness(app) as harness:
        harness.publish("in/x", "täst", headers={"a": "b"}, key="k")
        harness.settle()
    (line,) = lines(file)
    assert line["payload"] == "täst"
    assert line["handler"] == "look"
    assert (line["version"], line.get("attempt", 1)) == (1, 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_attempt_that_is_repeated_is_recorded_once(file: Path) -> None:
    app = DistributedApplication("memory://", name="watcher")
    tries: list[int] = []

    @app.application("in/#")
    async def look(payload: bytes) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError

    with Recorder(app, file), Harness(app, allow_failures=ValueError) as harness:
        harness.publish("in/x")
        harness.settle()
        harness.publish("in/y")
        harness.settle()
        harness.restart_actor("look")
        harness.settle()
    assert [line["topic"] for line in lines(file)] == ["in/x", "in/y"]


# The format.


ENVELOPES = st.builds(
    Envelope,
    topic=st.sampled_from(["a", "a/b"]),
    payload=st.one_of(st.binary(max_size=20), st.text(max_size=5).map(str.encode)),
    content_type=st.none() | st.text(max_size=5),
    id=st.none() | st.text(max_size=5),
    source=st.none() | st.text(max_size=5),
    type=st.none() | st.text(max_size=5),
    time=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    key=st.none() | st.text(max_size=5),
    headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    response_topic=st.none() | st.text(max_size=5),
    correlation=st.none() | st.binary(max_size=5),
    expiry=st.none() | st.floats(0, 1e9),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    redelivered=st.booleans(),
    partition=st.none() | st.integers(0, 9),
    offset=st.none() | st.integers(0, 2**62),
    tombstone=st.booleans(),
)


def test_what_is_no_text_comes_back_too(tmp_path: Path) -> None:
    headers = (("via", b"a"), ("via", b"b"), ("sig", b"\xff"), ("nothing", None))
    envelope = Envelope(topic="a", key=r"\xff", raw_key=b"\xff", raw_headers=headers)
    line = Receipt.of(envelope, at=0.0).line()
    file = tmp_path / "one.jsonl"
    file.write_bytes(line)
    ((_, receipt),) = read_recording(file)
    assert receipt.envelope == envelope
    plain = Envelope(topic="a", key="k", raw_key=b"k", raw_headers=(("via", b"a"),))
    assert b"raw" not in Receipt.of(plain, at=0.0).line()


@given(envelope=ENVELOPES, at=st.floats(0, 1e10), attempt=st.integers(1, 9))
def test_an_envelope_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, envelope: Envelope, at: float, attempt: int
) -> None:
    receipt = Receipt.of(envelope, at=at, attempt=attempt, application="a", bus="memory://")
    line = receipt.line()
    assert line.count(b"\n") == 1
    json.loads(line)
    file = tmp_path_factory.mktemp("recording") / "one.jsonl"
    file.write_bytes(line)
    assert list(read_recording(file)) == [(1, receipt)]
    assert receipt.envelope == envelope


def test_a_bad_document_is_one_in_the_replay_too() -> None:
    kind = "application/cloudevents+json"
    flawed = opened(Envelope(topic="a", payload=b"{}", content_type=kind))
    again = Receipt.of(flawed, at=0.0).envelope
    assert again == flawed
    assert again.flaw is not None
    document = b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":5}'
    good = opened(Envelope(topic="a", payload=document, content_type=kind))
    again = Receipt.of(good, at=0.0).envelope
    assert (again.payload, again.id, again.flaw) == (b"5", "1", None)


GOOD = b'{"version":1,"at":1.0,"topic":"in/a","actor":"look"}\n'


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"nonsense\n", "line 2: JSON is malformed"),
        (b'{"version":1,"at":1.0}\n', "line 2: Object missing required field `topic`"),
        (
            b'{"version":1,"at":"x","topic":"a"}\n',
            r"line 2: Expected `float`, got `str` - at `\$.at`",
        ),
        (b'{"version":2,"at":1.0,"topic":"a"}\n', "line 2: it has version 2, .* reads version 1"),
        (b'{"version":2,"topic":["a"]}\n', "line 2: it has version 2, .* a newer program may"),
        (b'{"version":1,"at":1.0,"topic":"a/#"}\n', "line 2: topic 'a/#' contains '#'"),
        (b'{"version":1,"x":' + b"[" * 100_000 + b"\n", "line 2: it is nested too deeply"),
        (
            b'{"version":1,"headers":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001 + b"\n",
            "line 2: ",
        ),
        (b'{"version":1,"at":1.0,"topic":"a","qos":7}\n', "line 2: qos is 7"),
        (b"\xff\xfe\n", "line 2: "),
        (b'{"version":1,"at":1.0,"topic":"b","actor":"nobody"}\n', "line 2: .*'nobody'.*: look"),
    ],
)
def test_a_wrong_line_is_named(file: Path, line: bytes, what: str) -> None:
    file.write_bytes(GOOD + line + GOOD)
    app, got = watcher()
    with Harness(app) as harness:
        with pytest.raises(ConfigurationError, match=f"incident.jsonl', {what}"):
            harness.replay(file)
        harness.settle()
        assert got == []


def test_a_last_line_that_is_cut_short_is_passed_over(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(GOOD + b"\n" + GOOD[:-9])
    app, got = watcher()
    with Harness(app) as harness:
        assert harness.replay(file) == 1
    assert len(got) == 1
    assert "its last line, 3, is incomplete" in caplog.text


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_line_may_be_cut_short_within_a_letter(file: Path, cut: int) -> None:
    file.write_bytes(GOOD + '{"version":1,"at":1.0,"topic":"in/€'.encode()[:-cut])
    assert len(list(read_recording(file))) == 1


@pytest.mark.parametrize("line", [b'{"version":2}', GOOD[:-2] + b',"qos":7}', GOOD.strip()])
def test_a_last_line_without_an_end_that_is_all_there_is_read(file: Path, line: bytes) -> None:
    file.write_bytes(GOOD + line)
    if line in GOOD:
        assert len(list(read_recording(file))) == 2
    else:
        with pytest.raises(ConfigurationError, match="line 2: "):
            list(read_recording(file))


def test_editors_on_windows_do_no_harm(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 2)
    assert len(list(read_recording(file))) == 2


def test_what_brokers_tell_of_themselves_is_replayed(file: Path) -> None:
    app = DistributedApplication("mqtt://broker", name="watcher")
    got: list[str] = []

    @app.application("$SYS/broker/#")
    async def look(message: Message[bytes]) -> None:
        got.append(message.topic)

    file.write_bytes(GOOD.replace(b"in/a", b"$SYS/broker/load"))
    with Harness(app) as harness:
        assert harness.replay(file) + harness.replay(file, actor="look") == 2
    assert got == ["$SYS/broker/load"] * 2


def test_a_line_that_the_bus_can_not_carry_is_named(file: Path) -> None:
    app, got = watcher()
    file.write_bytes(GOOD + GOOD.replace(b"in/a", b"in/a b"))
    with Harness(app, profile="kafka") as harness:
        with pytest.raises(ConfigurationError, match=r"incident.jsonl', line 2: topic 'in/a b'"):
            harness.replay(file)
        harness.settle()
    assert len(got) == 1


def test_what_a_broker_has_let_through_does_not_make_a_recording_useless(file: Path) -> None:
    topics = ["tank/a\nb/users", "tank/\x1b/users", "tank/ok/users"]
    app = DistributedApplication("mqtt://broker", name="app")
    handled: list[str] = []

    @app.application("tank/{name}/users", name="tank")
    async def tank(message: Message[int]) -> None:
        handled.append(message.topic)

    recorded = [
        {"version": 1, "at": 1.0, "topic": topic, "actor": "tank", "payload": "1"}
        for topic in topics
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in recorded))
    assert [receipt.topic for _, receipt in read_recording(file)] == topics
    with Harness(app) as harness:
        assert harness.replay(file, actor="tank") == 3
        with pytest.raises(ConfigurationError, match=r"line 1: .*U\+000A"):
            harness.replay(file)
    assert handled == topics


@pytest.mark.parametrize("end", [Harness.stop, Harness.crash])
def test_an_actor_that_does_not_run_gets_nothing(
    file: Path, end: Callable[[Harness], None]
) -> None:
    app, _ = watcher()
    file.write_bytes(GOOD)
    with Harness(app) as harness:
        end(harness)
        with pytest.raises(
            ConfigurationError, match=r"^watcher/0/look is not running .*restart\(\)"
        ):
            harness.replay(file, actor="look")


def test_what_can_not_be_replayed_is_named(file: Path, tmp_path: Path) -> None:
    app, _ = watcher()
    file.write_bytes(GOOD)
    with Harness(app) as harness:
        with pytest.raises(ConfigurationError, match=r"no actor 'nobody'; there are: look"):
            harness.replay(file, actor="nobody")
        with pytest.raises(ConfigurationError, match=r"missing.jsonl' cannot be read: No such"):
            harness.replay(tmp_path / "missing.jsonl")
        written(file, at(1.0, topic="other/topic"))
        with pytest.raises(
            ConfigurationError, match=r"line 1: actor 'look' has no declared filter"
        ):
            harness.replay(file, actor="look")


# The file.


async def publish_some(app: DistributedApplication, *payloads: object) -> None:
    async with app:
        for payload in payloads:
            await app.socket().publish("in/a", payload)
        await eventually(lambda: app.stats["messages.handled"] == len(payloads))


async def test_a_file_is_continued_after_what_a_killed_process_left(file: Path) -> None:
    file.write_bytes(GOOD + GOOD[:-9])
    file.chmod(0o644)
    app, _ = watcher()
    with Recorder(app, file):
        await publish_some(app, "x", "y")
    assert len(list(read_recording(file))) == 3
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_long_torn_line_is_taken_off(file: Path) -> None:
    file.write_bytes(GOOD + b"x" * 200_000)
    with Recorder(watcher()[0], file):
        pass
    assert file.read_bytes() == GOOD


async def test_a_file_can_be_replaced_or_left_alone(file: Path) -> None:
    file.write_bytes(GOOD)
    app, _ = watcher()
    with pytest.raises(ConfigurationError, match=r"incident.jsonl' already exists"):
        Recorder(app, file, existing="refuse").__enter__()
    assert file.read_bytes() == GOOD
    with Recorder(app, file, existing="replace"):
        await publish_some(app, "x")
    assert [line["payload"] for line in lines(file)] == ["x"]


async def test_no_more_than_the_limit_is_recorded(file: Path) -> None:
    app, got = watcher()
    with Recorder(app, file, limit=2) as recorder:
        await publish_some(app, 1, 2, 3)
    assert [line["payload"] for line in lines(file)] == ["1", "2"]
    assert (recorder.recorded, recorder.skipped, len(got)) == (2, 0, 3)


async def test_what_is_taken_out_does_not_count_towards_the_limit(file: Path) -> None:
    app, _ = watcher()

    def redact(envelope: Envelope) -> Envelope | None:
        return envelope if envelope.payload == b"keep" else None

    with Recorder(app, file, limit=2, redact=redact) as recorder:
        await publish_some(app, "drop", "drop", "keep", "drop", "keep", "keep")
    assert (recorder.recorded, recorder.skipped, len(lines(file))) == (2, 0, 2)


async def test_a_file_has_one_recorder_at_a_time(file: Path) -> None:
    first, second = watcher()[0], watcher()[0]
    with Recorder(first, file) as recorder:
        for existing in ("append", "replace"):
            other = Recorder(second, file, existing=existing)
            with (
                pytest.raises(ConfigurationError, match=r"being written by another recorder"),
                other,
            ):
                pass
        await publish_some(first, 1)
    with Recorder(second, file):
        await publish_some(second, 2)
    assert recorder.recorded == 1
    assert [line["payload"] for line in lines(file)] == ["1", "2"]


async def test_the_program_may_go_to_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    app, _ = watcher()
    with Recorder(app, "incident.jsonl", max_bytes=1) as recorder:
        monkeypatch.chdir("other")
        await publish_some(app, 1, 2)
    assert (recorder.recorded, recorder.problem) == (2, None)
    assert len(lines(tmp_path / "incident.jsonl.1")) == 1


async def test_what_is_no_file_is_never_put_aside(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    app, _ = watcher()
    with pipe.open("r+b", buffering=0) as reader:
        with Recorder(app, pipe, max_bytes=1) as recorder:
            await publish_some(app, 1, 2)
        assert reader.read(10_000).count(b"\n") == recorder.recorded == 2
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


async def test_a_large_file_is_put_aside(file: Path) -> None:
    app, _ = watcher()
    with Recorder(app, file, max_bytes=1000) as recorder:
        await publish_some(app, *("x" * 400 for _ in range(5)))
    aside = file.with_name("incident.jsonl.1")
    assert recorder.recorded == 5
    assert len(lines(aside)) == 2
    assert len(lines(file)) == 1
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(aside.stat().st_mode) == 0o600


async def test_secrets_can_be_taken_out(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    app, got = watcher()

    def redact(envelope: Envelope) -> Envelope | None:
        if envelope.payload == b"drop":
            return None
        if envelope.payload == b"fail":
            raise ValueError("not this one")
        return Envelope(topic=envelope.topic, payload=b"***")

    with Recorder(app, file, redact=redact) as recorder:
        await publish_some(app, "secret", "drop", "fail")
    assert [line["payload"] for line in lines(file)] == ["***"]
    assert (recorder.recorded, recorder.skipped, len(got)) == (1, 1, 3)
    assert got[0].payload == b"secret"
    assert "ValueError: not this one" in caplog.text
    assert "1 messages are missing" in caplog.text


async def test_what_was_too_large_to_be_taken_is_missing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = DistributedApplication(MemoryConfig(max_received=20), name="plant")

    @app.application("in")
    async def handler(message: Message[bytes]) -> None: ...

    with Recorder(app, file) as recorder:
        async with app:
            for payload in ("small", "l" * 50, "small too"):
                await app.socket().publish("in", payload)
            await eventually(lambda: app.stats["messages.handled"] == 2)
    assert [line["payload"] for line in lines(file)] == ["small", "small too"]
    assert (recorder.recorded, recorder.skipped) == (2, 1)
    assert "its payload of 50 bytes was too large to be accepted" in caplog.text


@pytest.mark.parametrize("most", ["_MOST_WAITING", "_MOST_BYTES_WAITING"])
async def test_what_comes_too_fast_is_left_out_and_counted(
    most: str, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(f"spa_dat.runtime.recording._recording_writer.{most}", 2)
    app, got = watcher()
    go_on = threading.Event()

    def redact(envelope: Envelope) -> Envelope:
        go_on.wait()
        return envelope

    with Recorder(app, file, redact=redact) as recorder:
        await publish_some(app, *range(9))
        assert len(got) == 9
        go_on.set()
    assert recorder.skipped >= 6
    assert recorder.recorded + recorder.skipped == 9
    assert len(lines(file)) == recorder.recorded
    assert caplog.text.count("messages arrive faster than they can be written") == 1


async def test_a_disk_that_hangs_does_not_keep_the_application_from_ending(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spa_dat.runtime.recording._recording_writer._LONGEST_END", 0.01)
    app, _ = watcher()
    go_on = threading.Event()

    def redact(envelope: Envelope) -> None:
        go_on.wait()

    with Recorder(app, file, redact=redact) as recorder:
        await publish_some(app, 1)
    assert recorder.problem == "writing did not end within 0.01 s"
    go_on.set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("noticed", ["when written", "when closed"])
async def test_a_full_disk_ends_the_recording_and_not_the_application(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, noticed: str
) -> None:
    class Entries(SimpleQueue[Any]):
        def empty(self) -> bool:
            return noticed == "when written"

    monkeypatch.setattr(_recording_writer, "SimpleQueue", Entries)
    app, got = watcher()
    with Recorder(app, "/dev/full") as recorder:
        await publish_some(app, 1, 2)
    assert len(got) == 2
    assert recorder.problem == "No space left on device"
    assert "recording /dev/full ends here: No space left on device" in caplog.text


async def test_what_is_wrong_with_a_recorder_is_said(file: Path, tmp_path: Path) -> None:
    app, _ = watcher()

    def entered(**options: Any) -> None:
        path = options.pop("file", file)
        with Recorder(app, path, **options):
            pass

    with pytest.raises(ConfigurationError, match=r"actors='look': give a list of names"):
        entered(actors="look")
    with pytest.raises(ConfigurationError, match=r"no actor 'luck' .*; there are: look"):
        entered(actors=["luck"])
    with pytest.raises(ConfigurationError, match="limit=0: give a whole number, 1 or more"):
        entered(limit=0)
    with pytest.raises(ConfigurationError, match="existing='no'"):
        entered(existing="no")
    with pytest.raises(ConfigurationError, match="no/such' cannot be written: No such file"):
        entered(file=tmp_path / "no" / "such")
    wrong: Any = "app"
    with pytest.raises(ConfigurationError, match="give a DistributedApplication"):
        Recorder(wrong, file)
    assert not file.exists()
    async with app:
        with pytest.raises(ConfigurationError, match="'watcher' is already running"):
            entered()
    with Recorder(app, file) as used:
        pass
    with pytest.raises(ConfigurationError, match="can be used only once"), used:
        pass


def test_a_new_file_is_removed_when_nothing_could_be_recorded(file: Path) -> None:
    app, _ = watcher()
    with pytest.raises(KeyError), Recorder(app, file):
        raise KeyError
    assert not file.exists()
