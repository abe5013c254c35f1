"""``spa-dat dlq``: dead letters on brokers, and what strangers put in their place."""

from __future__ import annotations

import asyncio
import io
import json
import random
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from spa_dat import DistributedApplication, Message, Reject
from spa_dat._environment import Environment
from spa_dat.cli._dlq_bus import RunningInstances
from spa_dat.cli._dlq_replay import Choice, _Changes
from spa_dat.cli._dlq_show import letter_as_text
from spa_dat.cli._main import main
from spa_dat.cli._message_output import json_line
from spa_dat.runtime.admin._dead_letter_commands import LetterAnswer
from spa_dat.runtime.dead_letters._reading import stored_letters
from spa_dat.runtime.dead_letters._stored_letter import LetterFilter, StoredLetter
from spa_dat.testing import Kafka, Mosquitto
from spa_dat.transports import Envelope, LeftOut, SocketProviderFactory, named_topic
from support.kafka_bus import create, new_prefix
from support.memory import Site
from support.mqtt import client
from support.waiting import eventually

ON_BOTH = [
    pytest.param("mosquitto", marks=pytest.mark.mosquitto),
    pytest.param("kafka", marks=pytest.mark.kafka),
]


@dataclass
class Plant:
    """An application whose actors fail until they are mended.

    Attributes:
        url: of its broker.
        name: its own name, and the topic of its messages.
        mended: whether its actor does what it should.
        handled: payloads that were handled.
        ids: of all messages that the actor was given, whether it has failed or not.
        others: payloads that another actor got, which never fails.
    """

    url: str
    name: str
    mended: bool = False
    handled: list[tuple[Any, ...]] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def application(self) -> DistributedApplication:
        app = DistributedApplication(self.url, name=self.name)

        @app.application(self.name, name="oven")
        async def bake(payload: str, message: Message[str]) -> None:
            self.ids.append(message.id)
            if not self.mended:
                raise Reject("too Hot")
            self.handled.append((payload, message.id, message.key, dict(message.headers)))

        @app.application(self.name, name="clerk")
        async def note(payload: str) -> None:
            self.others.append(payload)

        return app


@pytest.fixture(params=ON_BOTH)
def plant(request: pytest.FixtureRequest) -> Plant:
    broker: Mosquitto | Kafka = request.getfixturevalue(request.param)
    url = broker.url
    if isinstance(broker, Kafka):
        url += f"?prefix={new_prefix()}&topic_refresh=0.1&create_topics=all"
    return Plant(url, uuid.uuid4().hex)


Told = Callable[..., Any]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """Runs ``spa-dat dlq``; returns exit code, objects or lines of the output, and the notices."""

    async def run(command: str, plant: Plant, *arguments: str) -> tuple[int, list[Any], str]:
        given = ["dlq", command, plant.url, *arguments, "--application", plant.name]
        code = await asyncio.to_thread(main, given)
        out, err = capfd.readouterr()
        lines = out.splitlines()
        return code, [json.loads(line) for line in lines] if "--json" in given else lines, err

    return run


@pytest.mark.mosquitto
async def test_letters_are_listed_filtered_and_shown(mosquitto: Mosquitto, told: Told) -> None:
    plant = Plant(mosquitto.url, uuid.uuid4().hex)
    app = plant.application()
    async with app:
        socket = app.socket()
        await socket.publish(plant.name, "bread", key="k", headers={"site": "a=b"})
        await socket.publish(plant.name, "cake")
        await eventually(lambda: app.stats["dead_letters.stored"] == 2)
    code, letters, notice = await told("list", plant, "--json")
    assert code == 0
    assert notice == "spa-dat: dead letters: 2\n"
    bread, cake = letters if letters[0]["size"] == len("bread") else letters[::-1]
    assert bread | {"letter": "", "stored": ""} == {
        "letter": "",
        "stored": "",
        "size": 5,
        "flaw": None,
        "obstacle": None,
        "application": plant.name,
        "instance": "0",
        "actor": "oven",
        "topic": plant.name,
        "error": "Reject",
        "text": "too Hot",
        "attempts": 1,
        "replays": 0,
    }
    assert cake["size"] == 4
    assert await told("list", plant, "--actor", "clerk") == (0, [], "spa-dat: dead letters: 0\n")
    wanted = ("--actor", "oven", "--error", "TOO hot", "--since", "1h")
    assert (await told("list", plant, *wanted))[2] == notice
    code, (shown,), _ = await told("show", plant, bread["letter"], "--json")
    message = shown.pop("message")
    assert (code, shown) == (0, bread)
    assert (message["payload"], message["key"]) == ("bread", "k")
    assert message["headers"]["site"] == "a=b"
    code, lines, _ = await told("show", plant, cake["letter"])
    assert code == 0
    assert lines[0].startswith(f"{cake['letter']}  {cake['stored']}  {plant.name}/0/oven")
    assert "    Reject: too Hot" in lines
    code, lines, notice = await told("show", plant, "%2B%00")
    assert (code, lines) == (1, [])
    assert "has no dead letter '%2B%00'" in notice


async def test_a_message_is_replayed_to_the_actor_that_failed_and_to_nobody_else(
    plant: Plant, told: Told
) -> None:
    app = plant.application()
    async with app:
        options: Any = {"key": "k", "headers": {"site": "b", "correlationid": "flow"}}
        await app.socket().publish(plant.name, "bread", **options)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1 and plant.others)
        code, (before,), _ = await told("list", plant, "--json")
        asked = ("replay", plant, "--actor", "oven", "--json")
        assert (await told(*asked, "--dry-run"))[1] == [before]
        shown = (await told("show", plant, before["letter"], "--json"))[1][0]["message"]
        assert (shown["payload"], shown["key"], shown["headers"]) == ("bread", *options.values())

        code, (outcome,), notice = await told(*asked)
        name = before["letter"]
        assert outcome == {"letter": name, "outcome": "failed", "why": "Reject: too Hot"}
        assert (code, notice) == (1, "spa-dat: dead letters: 0 done, 1 not\n")
        code, (after,), _ = await told("list", plant, "--json")
        assert after == before | {"replays": 1, "stored": after["stored"]}

        plant.mended = True
        code, lines, notice = await told("replay", plant, name)
        assert (code, lines) == (0, [f"{name}  handled"])
        assert notice == "spa-dat: dead letters: 1 done, 0 not\n"
        assert (await told("list", plant, "--json"))[1] == []
        ((payload, identifier, key, headers),) = plant.handled
        assert (payload, key) == ("bread", "k")
        assert plant.ids == [identifier] * 3
        assert headers == {"site": "b", "correlationid": "flow"}
        assert plant.others == ["bread"]
        # It leaves nothing behind: the same message may fail again.
        assert (await told("replay", plant, name))[0] == 1


async def test_letters_wait_for_their_application_or_are_discarded(
    plant: Plant, told: Told
) -> None:
    app = plant.application()
    async with app:
        for text in ("bread", "cake"):
            await app.socket().publish(plant.name, text)
        await eventually(lambda: app.stats["dead_letters.stored"] == 2)
    code, _, notice = await told("replay", plant, "--all", "--timeout", "0")
    assert code == 2
    assert "no running instance" in notice
    assert "as they were" in notice
    code, letters, _ = await told("list", plant, "--json")
    first, second = [letter["letter"] for letter in letters]
    code, lines, notice = await told("discard", plant, first, "x")
    assert (code, lines) == (1, [f"{first}  discarded"])
    assert ("marked as gone" in notice) == plant.url.startswith("kafka")
    assert [one["letter"] for one in (await told("list", plant, "--json"))[1]] == [second]
    assert (await told("discard", plant, "--since", "1h"))[0] == 0
    assert (await told("list", plant, "--json"))[1] == []


@pytest.mark.mosquitto
async def test_nobody_is_asked_letter_by_letter_who_has_gone(
    mosquitto: Mosquitto, told: Told
) -> None:
    plant = Plant(mosquitto.url, uuid.uuid4().hex)
    app = DistributedApplication(plant.url, name=plant.name, stop_timeout=0.1)
    began = asyncio.Event()

    @app.application(plant.name, name="oven")
    async def bake(payload: str) -> None:
        plant.ids.append(payload)
        if len(plant.ids) <= 3:
            raise Reject
        began.set()
        await asyncio.sleep(1_000)

    async with app:
        for number in range(3):
            await app.socket().publish(plant.name, f"{number}")
        await eventually(lambda: app.stats["dead_letters.stored"] == 3)
        replaying = asyncio.ensure_future(
            told("replay", plant, "--all", "--timeout", "0.5", "--json")
        )
        await began.wait()
    code, outcomes, notice = await replaying
    assert code == 2
    assert len(outcomes) < 3
    assert "has answered within 0.5 s; the other dead letters are as they were" in notice
    assert len((await told("list", plant))[1]) == 9


@pytest.mark.mosquitto
async def test_strangers_letters_are_listed_as_unreadable(mosquitto: Mosquitto, told: Told) -> None:
    plant = Plant(mosquitto.url, uuid.uuid4().hex)
    topic = f"_spa/dead-letter/{plant.name}"
    async with client(mosquitto, ephemeral=True) as stranger:

        async def publish(topic: str, payload: bytes) -> None:
            envelope = Envelope(topic=topic, payload=payload, retain=True)
            await stranger.bus.publish(envelope, timeout=30.0)

        await publish(f"{topic}/a/\N{SNOWMAN}", b"\xff\x1b[2J")
        await publish(f"{topic}/gone", b"x")
        await publish(f"{topic}/gone", b"")
        code, (letter,), notice = await told("list", plant, "--json")
        assert (code, letter["letter"]) == (0, "a%2F%E2%98%83")
        assert letter["flaw"] == "it is not a dead letter: it has no header 'spa_dead_topic'"
        assert "1 of them unreadable" in notice
        code, (_, flaw, *rest), _ = await told("show", plant, letter["letter"])
        assert (code, flaw.strip()) == (0, letter["flaw"])
        assert not any("\x1b" in line for line in rest)
        assert (await told("replay", plant, "--all", "--dry-run"))[0] == 0
        assert (await told("discard", plant, "--unreadable"))[0] == 0
        assert (await told("list", plant, "--json"))[1] == []


@pytest.mark.mosquitto
async def test_more_letters_are_read_than_a_broker_queues(
    own_mosquitto: Callable[..., Mosquitto],
) -> None:
    broker = own_mosquitto(extra=("max_queued_messages 100",))
    provider = SocketProviderFactory.from_url(broker.url)
    async with client(broker, ephemeral=True) as stranger:
        for number in range(1_000):
            topic = f"_spa/dead-letter/plant/{number}"
            await stranger.bus.room()
            stranger.bus.post(Envelope(topic=topic, payload=b"x", retain=True))
        await stranger.bus.drain()
    assert len([found.name async for found in stored_letters(provider, "plant")]) == 1_000


@pytest.mark.kafka
async def test_strangers_records_are_listed_as_unreadable(kafka: Kafka, told: Told) -> None:
    prefix = new_prefix()
    plant = Plant(f"{kafka.url}?prefix={prefix}", uuid.uuid4().hex)
    code, _, notice = await told("list", plant)
    assert (code, "it has never been there" in notice) == (2, True)
    topic = f"{prefix}_spa.dead-letter.{plant.name}"
    await create(kafka.server, topic)
    subject = ("ce_subject", f"_spa/dead-letter/{plant.name}/x/\N{SNOWMAN}".encode())
    hostile: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
        (None, b"\xff\x1b[2J", []),
        (b"\xff", b"x" * 500_000, [("ttl_ms", b"1"), ("ce_subject", b"\xff")]),
        (None, b"", [subject]),
        (b"k", None, [("ce_subject", b"_spa/dead-letter/other/gone")]),
        (b"k", b"", [("spa_dead_topic", b"\xff\x00"), ("spa_dead_actor", b"a/b/c")]),
    ]
    producer = AIOKafkaProducer(bootstrap_servers=kafka.server)
    await producer.start()
    try:
        for key, value, headers in hostile:
            await producer.send_and_wait(topic, value, key, headers=headers)
    finally:
        await producer.stop()
    code, letters, _ = await told("list", plant, "--json")
    assert code == 0
    assert [one["letter"] for one in letters] == ["0", "1", "x%2F%E2%98%83", "4"]
    assert all(one["flaw"] for one in letters)
    assert (await told("discard", plant, "--unreadable"))[0] == 0
    assert (await told("list", plant))[2] == "spa-dat: dead letters: 0\n"


def letter(**notes: str) -> Envelope:
    """Return a dead letter as it is on a bus, with these headers in place of its own."""
    own = {"topic": "t", "actor": "plant/0/oven", "attempts": "3", "error": "E", "text": "why"}
    headers = {f"spa_dead_{name}": text for name, text in (own | notes).items() if text}
    return Envelope(
        topic="_spa/dead-letter/plant/x",
        payload=b"p",
        id="x",
        time=1.0,
        type="t",
        headers={"site": "a", **headers},
    )


@pytest.mark.parametrize(
    ("found", "flaw"),
    [
        (letter(version="2"), "written by a newer version"),
        (letter(topic=""), "no header 'spa_dead_topic'"),
        (letter(actor="plant/0"), "names no actor"),
        (letter(attempts="-1"), "not a number"),
        (letter(attempts="9" * 5_000), "not a number"),
        (letter(attempts="\N{ARABIC-INDIC DIGIT ONE}"), "not a number"),
        (letter(replays="x"), "not a number"),
        (letter(time="nine"), "no time"),
        (letter(original="{"), "damaged"),
        (letter(original="[" * 100_000), "damaged"),
        (letter(original="[1]"), "damaged"),
        (letter(original='{"topic": 1, "headers": {}, "complete": true}'), "damaged"),
        (letter(original='{"topic": "t", "headers": {"a": 1}, "complete": true}'), "damaged"),
        (
            msgspec.structs.replace(letter(), payload=b"", left_out=LeftOut(10**8, "ab")),
            "it has 100000000 bytes",
        ),
    ],
)
def test_what_is_no_letter_is_unreadable_and_says_why(found: Envelope, flaw: str) -> None:
    read = StoredLetter.of("plant", found)
    assert read.flaw is not None
    assert flaw in read.flaw
    assert read.obstacle == read.flaw
    assert read.message is None
    assert read.name == "x"
    assert not LetterFilter(actor="oven").wants(read)
    assert not LetterFilter(error="").wants(read)
    assert LetterFilter(until=2.0).wants(read)
    assert "unreadable" in letter_as_text(read)
    assert json.loads(json_line(read.as_dict()))["flaw"] == read.flaw


def test_a_message_comes_back_from_its_letter_as_it_was() -> None:
    found = letter(id="i", source="s", time="2026-11-27T08:00:00+00:00", replays="2", size="0")
    found = msgspec.structs.replace(found, payload=b"(empty)", key="k", retain=True)
    read = StoredLetter.of("plant", found)
    assert (read.flaw, read.obstacle, read.replays, read.size) == (None, None, 2, 0)
    assert read.message == Envelope(
        topic="t", id="i", source="s", time=1795766400.0, type="t", key="k", headers={"site": "a"}
    )


def test_a_message_gets_none_of_the_headers_that_kafka_has_for_its_letter() -> None:
    own = (("ce_id", b"x"), ("ce_source", b"plant/0/oven"), ("ce_subject", b"y"))
    sent = (("site", b"a"), ("site", None), ("content-type", b"text/plain"))
    raw_headers = (*own, *sent, ("spa_dead_topic", b"t"))
    found = msgspec.structs.replace(letter(), raw_headers=raw_headers, raw_key=b"x", key="x")
    message = StoredLetter.of("plant", found).message
    assert message is not None
    assert (message.raw_headers, message.key, message.raw_key) == (sent, None, None)


def test_a_message_without_an_id_comes_back_without_one() -> None:
    message = StoredLetter.of("plant", letter(id="t/2/7", partition="2", offset="7")).message
    assert message is not None
    assert (message.id, message.partition, message.offset) == (None, 2, 7)
    message = StoredLetter.of("plant", letter(id="own", partition="2", offset="7")).message
    assert message is not None
    assert message.id == "own"


@pytest.mark.parametrize(
    ("found", "obstacle"),
    [
        (letter(size="70000"), "too large"),
        (msgspec.structs.replace(letter(), type=None), "refused"),
        (letter(original='{"topic": "t", "headers": {}, "complete": false}'), "too large"),
    ],
)
def test_a_letter_that_has_lost_something_cannot_be_replayed(
    found: Envelope, obstacle: str
) -> None:
    read = StoredLetter.of("plant", found)
    assert read.flaw is None
    assert obstacle in (read.obstacle or "")


def fuzzed(seed: int) -> Iterator[Envelope]:
    dice = random.Random(seed)
    names = ("topic", "actor", "attempts", "error", "text", "size", "original", "time", "offset")
    texts = (
        "",
        "0",
        "-1",
        "plant/0/oven",
        "a/b",
        "nan",
        "1e999",
        "{}",
        '{"headers":[[1]]}',
        "\x00",
    )
    for _ in range(300):
        notes = {name: dice.choice(texts) for name in dice.sample(names, dice.randint(0, 9))}
        found = letter(**notes)
        yield msgspec.structs.replace(found, time=dice.choice((None, 1.0, 1e300, float("nan"))))


def test_no_letter_ends_the_command() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    for found in fuzzed(seed):
        read = StoredLetter.of("plant", found)
        assert letter_as_text(read).endswith("\n")
        json.loads(json_line(read.as_dict()))
        LetterFilter(since=0.0, until=5.0, error="x", actor="oven").wants(read)


def test_every_topic_has_a_name_and_every_name_a_topic() -> None:
    for rest in ("x", "a/b", "%2F", "%", "+", "\x00\x1b", "\N{SNOWMAN}", "", "a b"):
        read = StoredLetter.of("plant", Envelope(topic=f"_spa/dead-letter/plant/{rest}"))
        assert read.name.isascii()
        assert read.name.isprintable()
        assert named_topic("plant", read.name) == f"_spa/dead-letter/plant/{rest}"


async def test_few_of_many_letters_are_in_memory() -> None:
    site = Site(queue=2_000)
    for number in range(1_000):
        site.publish(f"_spa/dead-letter/plant/{number}", b"x", retain=True)
    names = [found.name async for found in stored_letters(site.provider, "plant")]
    assert names == [str(number) for number in range(1_000)]


async def test_a_terminal_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    letters = [StoredLetter.of("plant", letter()), StoredLetter.of("plant", letter())]
    choice = Choice((), LetterFilter(), everything=True)
    async with _Changes("plant", choice, letters, False, as_json=False) as changes:
        await changes.tell(letters[0], "handled", "")
        assert "0/2" in terminal.getvalue()
        assert "1/2" in terminal.getvalue()
        await changes.tell(letters[1], "failed", "E: \x1b[2J")
    shown = terminal.getvalue()
    assert "2/2" in shown
    # The bar is gone before anything else is written.
    assert shown.endswith("\x1b[2K\x1b[1;36mspa-dat:\x1b[0m dead letters: 1 done, 1 not\n")
    assert capfd.readouterr().out == "x  handled\nx  failed: E: \\x1b[2J\n"
    assert changes.code == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "say which letters"),
        (("x", "--all"), "not both"),
        (("--actor", "a/b"), "--actor 'a/b'"),
        (("--since", "tomorrow"), "give a time"),
    ],
)
def test_letters_to_change_have_to_be_named(
    arguments: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("replay", "discard"):
        given = ["dlq", command, "mqtt://localhost", "--application", "plant", *arguments]
        assert main(given) == 2
        assert error in capsys.readouterr().err


def test_without_a_command_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dlq"]) == 2
    assert "Missing command: one of list, show, replay, discard" in capsys.readouterr().err


def test_an_impossible_name_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dlq", "list", "mqtt://localhost", "--application", "a/#"]) == 2
    assert "--application 'a/#'" in capsys.readouterr().err


async def test_a_letter_whose_partition_is_elsewhere_is_given_to_whoever_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def replay_by(self: RunningInstances, chosen: str, *_: Any) -> LetterAnswer:
        asked.append(chosen)
        is_there = chosen == "2"
        outcome: Literal["handled", "refused"] = "handled" if is_there else "refused"
        return LetterAnswer(instance=chosen, outcome=outcome, elsewhere=not is_there)

    monkeypatch.setattr(RunningInstances, "_replay_by", replay_by)
    bus: Any = None
    instances = RunningInstances(bus, Environment())
    instances._instances = dict.fromkeys(("0", "1", "2", "3"))
    letter = StoredLetter("one", None, 0, Envelope(topic="t"), instance="1")
    assert (await instances.replay("plant", letter, None, 1.0)).outcome == "handled"
    assert asked == ["1", "0", "2"]
    assert (await instances.replay("plant", letter, "3", 1.0)).outcome == "refused"
    assert asked[3:] == ["3"]
