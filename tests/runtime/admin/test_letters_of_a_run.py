"""The dead letters of a running application: looked at, replayed and discarded through it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from typing import Any

import msgspec
import pytest

from spa_dat import (
    Actor,
    DistributedApplication,
    Message,
    Overflow,
    Reject,
    RestartPolicy,
    RetryPolicy,
    on,
)
from spa_dat.errors import ConnectFailed, ConnectionLost
from spa_dat.runtime.admin import _dead_letter_pages
from spa_dat.runtime.admin._dead_letters import DeadLetters
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.application._lifecycle import Run
from spa_dat.runtime.dead_letters._index import LetterIndex
from spa_dat.runtime.dead_letters._reading import stored_letters
from spa_dat.runtime.dead_letters._stored_letter import LetterFilter, StoredLetter
from spa_dat.runtime.messaging._limited_posts import MOST_POSTS
from spa_dat.testing import Mosquitto, Proxy
from spa_dat.transports import Envelope, KafkaConfig, SocketProviderFactory
from spa_dat.transports._wire_formats import WireName
from spa_dat.transports.kafka.consuming import _history
from support.memory import Site
from support.simulated import SERVER, world
from support.waiting import eventually

REPLY_TO = "_spa/reply/dlq-1/00/11"
LATER = "_spa/dead-letter/app/"


def run_of(app: DistributedApplication) -> Run:
    run = runs_of(app).current
    assert run is not None
    return run


async def names(letters: DeadLetters, wanted: LetterFilter | None = None) -> list[str]:
    found = letters.search.stored(wanted or LetterFilter())
    return [letter.name async for _, letter in found]


class Oven:
    """An application with an actor that fails until it is mended, and one that never does."""

    def __init__(self, **options: Any) -> None:
        self.site = Site()
        self.mended = False
        self.got: list[tuple[str, int]] = []
        self.app = self.site.app(**options)

        @self.app.application("plant/{place}", name="oven")
        async def bake(payload: str, attempt: Any = None) -> None:
            self.got.append((payload, 1))
            if not self.mended:
                raise Reject("too hot")

        @self.app.application("plant/#", name="clerk")
        async def note(payload: str) -> None:
            self.got.append((payload, 2))

    async def fail(self, count: int = 1, **fields: Any) -> None:
        """Have so many messages fail."""
        for number in range(count):
            self.site.publish("plant/a", f"bread {number}", **fields)
        await self.site.parked(count)
        await self.site.settled("app.0.oven")


@pytest.mark.virtual
async def test_a_letter_is_replayed_to_its_actor_and_removed() -> None:
    oven = Oven()
    async with oven.app as app:
        letters = run_of(app).dead_letters
        # Without an id, so that only its letter tells what it is.
        await oven.fail()
        (name,) = await names(letters)
        oven.got.clear()
        first = await letters.replay(name)
        assert (first.outcome, first.why) == ("failed", "Reject: too hot")
        found = await letters.search.show(name)
        assert found is not None
        assert found[1].replays == 1
        assert await names(letters) == [name]
        oven.mended = True
        assert (await letters.replay(name)).outcome == "handled"
        assert await names(letters) == []
        assert await letters.search.show(name) is None
        assert (await letters.replay(name)).outcome == "missing"
        assert oven.got == [("bread 0", 1)] * 2


@pytest.mark.virtual
@pytest.mark.parametrize("where", ["actor", "bus"])
async def test_a_letter_in_the_format_of_0_4_0_is_replayed_in_the_format_of_its_actor(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    wire: WireName = "spa-dat"
    site = Site(wire=wire) if where == "bus" else Site()
    app = site.app()
    got: list[str] = []

    @app.application("in", name="taker", wire=wire, retry=RetryPolicy(attempts=1))
    async def take(payload: str) -> None:
        got.append(payload)
        if len(got) == 1:
            raise Reject

    async with app:
        letters = run_of(app).dead_letters
        await app.socket().publish("in", "bread", wire=wire)
        await site.parked()
        (name,) = await names(letters)
        assert (await letters.replay(name)).outcome == "handled"
    assert got == ["bread", "bread"]
    assert "0.4.0" not in caplog.text


@pytest.mark.virtual
async def test_one_letter_is_not_replayed_twice_at_a_time() -> None:
    oven = Oven()
    async with oven.app as app:
        letters = run_of(app).dead_letters
        await oven.fail()
        (name,) = await names(letters)
        oven.got.clear()
        done = await asyncio.gather(letters.replay(name), letters.replay(name))
        assert sorted(one.outcome for one in done) == ["failed", "refused"]
        assert oven.got == [("bread 0", 1)]


@pytest.mark.virtual
async def test_what_is_handled_or_discarded_makes_room_for_other_letters() -> None:
    oven = Oven(dead_letter_limit=2)
    async with oven.app as app:
        letters = run_of(app).dead_letters
        await oven.fail(2)
        assert "most that it may" in app.problems["oven"]
        first, second = await names(letters)
        assert (await letters.replay(first)).outcome == "failed"
        assert "most that it may" in app.problems["oven"]
        oven.mended = True
        assert (await letters.replay(first)).outcome == "handled"
        assert "oven" not in app.problems
        assert (await letters.discard(second)).outcome == "discarded"
        assert (await letters.discard(second)).outcome == "missing"
        (actor, _) = app.health().actors
        assert actor.dead_letters == 0


@pytest.mark.virtual
async def test_an_actor_that_comes_near_its_limit_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    oven = Oven(dead_letter_limit=5)
    async with oven.app as app:
        await oven.fail(3)
        assert "dead letters that it may" not in caplog.text
        await oven.fail(1)
        await oven.site.parked(4)
        assert app.healthy
        (actor, _) = app.health().actors
        assert (actor.dead_letters, actor.dead_letter_limit) == (4, 5)
    (line,) = [one for one in caplog.messages if "dead letters that it may" in one]
    assert "actor 'oven': it has stored 4 of the 5" in line


@pytest.mark.virtual
async def test_what_cannot_be_replayed_stays_and_says_why() -> None:
    oven = Oven()
    async with oven.app as app:
        letters = run_of(app).dead_letters
        await oven.fail()
        (good,) = await names(letters)
        found = await letters.search.show(good)
        assert found is not None
        envelope = found[1].envelope
        changes: dict[str, dict[str, str]] = {
            "stopped": {"spa_dead_actor": "app/0/stranger"},
            "elsewhere": {"spa_dead_actor": "other/0/oven"},
            "instance": {"spa_dead_actor": "app/7/oven"},
            "topic": {"spa_dead_topic": "other/a"},
            "large": {"spa_dead_size": "70000"},
            "newer": {"spa_dead_version": "2"},
        }
        for name, headers in changes.items():
            headers = {**envelope.headers, **headers}
            oven.site.broker.publish(
                msgspec.structs.replace(
                    envelope, topic=LATER + name, id=name, headers=headers, retain=True
                )
            )
        oven.got.clear()
        oven.mended = True
        told = {name: await letters.replay(name) for name in changes}
        assert {one.outcome for one in told.values()} == {"refused"}
        assert "no actor 'stranger'" in told["stopped"].why
        assert "application 'other'" in told["elsewhere"].why
        assert "instance '7'" in told["instance"].why
        assert "no filter for topic 'other/a'" in told["topic"].why
        assert "70000 bytes" in told["large"].why
        assert "newer version" in told["newer"].why
        assert oven.got == []
        assert len(await names(letters)) == 7
        assert (await letters.replay("instance", anyway=True)).outcome == "handled"


@pytest.mark.virtual
async def test_any_instance_handles_what_instances_share() -> None:
    site = Site()
    app = site.app(instance="1")
    got: list[str] = []

    @app.application("n", name="actor", deliver="share")
    async def handle(payload: str) -> None:
        got.append(payload)

    notes = {"topic": "n", "actor": "app/0/actor", "attempts": "1", "error": "E"}
    headers = {f"spa_dead_{name}": text for name, text in notes.items()}
    async with app:
        fields: dict[str, Any] = {"id": "i", "type": "t", "headers": headers, "retain": True}
        site.publish(LATER + "i", "x", **fields)
        done = await run_of(app).dead_letters.replay("i")
        assert (done.outcome, got, site.letters()) == ("handled", ["x"], [])


@pytest.mark.virtual
async def test_a_letter_stays_if_the_application_stops_first() -> None:
    site = Site()
    app = site.app(stop_timeout=1.0)
    began = asyncio.Event()

    @app.application("n", name="slow")
    async def handle(payload: str) -> None:
        if began.is_set():
            began.clear()
            await asyncio.sleep(1_000)
        raise Reject

    async with app:
        site.publish("n", "1")
        await site.parked()
        run = run_of(app)
        (name,) = await names(run.dead_letters)
        began.set()
        replaying = asyncio.ensure_future(run.dead_letters.replay(name))
        while began.is_set():
            await asyncio.sleep(0.1)
    await asyncio.wait((replaying,))
    assert site.broker.retained[LATER + name].payload == b"1"


def order(**fields: Any) -> bytes:
    return msgspec.json.encode({"ask": "replay", "reply_to": REPLY_TO, "instance": "0", **fields})


@pytest.mark.virtual
async def test_operators_ask_over_the_bus_and_are_answered() -> None:
    oven = Oven()
    watcher = oven.site.watch("_spa/reply/dlq-1/#")
    async with oven.app as app:
        run = run_of(app)
        await oven.fail()
        (name,) = await names(run.dead_letters)

        def ask(payload: bytes) -> None:
            run._take_command(run.connections[0], Envelope(topic="c", payload=payload))

        ask(order(ask="who", instance=None))
        ask(order(ask="who", instance="another"))
        await watcher.get(1)
        ask(order(letter=name))
        await watcher.get(2)
        oven.mended = True
        ask(order(letter=name))
        await watcher.get(3)
        ask(order(letter=name))
        await watcher.get(4)
    assert watcher.payloads == [
        '{"instance":"0"}',
        '{"instance":"0","outcome":"failed","why":"Reject: too hot"}',
        '{"instance":"0","outcome":"handled"}',
        '{"instance":"0","outcome":"missing"}',
    ]


@pytest.mark.virtual
async def test_commands_of_strangers_do_nothing() -> None:
    oven = Oven()
    watcher = oven.site.watch("_spa/reply/#", "_spa/dead-letter/#", "plant/#")
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    async with oven.app as app:
        run = run_of(app)
        payloads = [
            b"",
            b"[" * 100_000,
            b"\xff" * 10_000_000,
            b'{"ask": "stop", "reply_to": "_spa/reply/a/b/c"}',
            order(reply_to="plant/a"),
            order(reply_to="_spa/dead-letter/app/x"),
            order(reply_to="_spa/reply/#"),
            order(instance=None),
            order(letter=1),
            *(dice.randbytes(dice.randrange(200)) for _ in range(50)),
        ]
        for payload in payloads:
            run._take_command(run.connections[0], Envelope(topic="c", payload=payload))
        # What somebody has had an application answer, this one or another.
        reply = Envelope(topic="c", payload=order(letter="1"), headers={"spa_reply": "1"})
        run._take_command(run.connections[0], reply)
        payloads.append(reply.payload)
        assert app.stats["commands.refused"] == len(payloads)
        # Reading letters costs something, so few are read at a time.
        for number in range(200):
            asked = order(letter=f"{number}")
            run._take_command(run.connections[0], Envelope(topic="c", payload=asked))
        await watcher.get(200)
        assert app.stats["commands.refused"] == len(payloads) + 196
    answers = Counter(msgspec.json.decode(payload)["outcome"] for payload in watcher.payloads)
    assert answers == {"missing": 4, "refused": 196}
    assert {envelope.topic for envelope in watcher.envelopes} == {REPLY_TO}


@pytest.mark.virtual
async def test_questions_of_strangers_do_not_fill_the_outbox() -> None:
    site = Site(outbox=2 * MOST_POSTS)
    app = site.app()
    app.application("in", name="taker")(_take)
    watcher = site.watch("_spa/reply/#")
    async with app:
        site.faults.refuse_connections()
        site.cut("app.0")
        question = Envelope(topic="c", payload=order(ask="who", instance=None))
        for _ in range(1_000):
            run_of(app)._take_command(run_of(app).connections[0], question)
        app.socket().post("out", 1)
        assert app.stats["commands.refused"] == 1_000 - MOST_POSTS
        site.faults.allow()
        await watcher.get(MOST_POSTS)
        run_of(app)._take_command(run_of(app).connections[0], question)
        await watcher.get(MOST_POSTS + 1)


async def _take(payload: bytes) -> None: ...


@pytest.mark.virtual
async def test_letters_of_an_actor_that_is_not_done_hold_up_nobody_elses() -> None:
    site = Site()
    app = site.app()
    go = asyncio.Event()
    got: list[str] = []
    fails = True

    async def handle(payload: str) -> None:
        if fails:
            raise Reject
        await go.wait()
        got.append(payload)

    async def other(payload: str) -> None:
        if fails:
            raise Reject

    app.application("slow", name="slow")(handle)
    app.application("quick", name="quick")(other)
    async with app:
        letters = run_of(app).dead_letters
        for number in range(6):
            site.publish("slow", f"{number}")
        site.publish("quick", "x")
        await site.parked(7)
        found = [letter async for _, letter in letters.search.stored()]
        slow = [letter.name for letter in found if letter.actor == "slow"]
        (quick,) = (letter.name for letter in found if letter.actor == "quick")
        fails = False
        app.pause("slow")
        refused = await letters.replay(slow[0])
        assert (refused.outcome, refused.why) == (
            "refused",
            "actor 'slow' is paused: resume it first",
        )
        app.resume("slow")
        under_way = [asyncio.ensure_future(letters.replay(name)) for name in slow[:4]]
        await asyncio.sleep(1)
        assert (await letters.replay(quick)).outcome == "handled"
        refused = await letters.replay(slow[4])
        assert refused.outcome == "refused"
        assert "is still busy with 4 others" in refused.why
        go.set()
        assert {(await one).outcome for one in under_way} == {"handled"}
        assert (await letters.replay(slow[4])).outcome == "handled"
        assert sorted(got) == ["0", "1", "2", "3", "4"]


@pytest.mark.virtual
async def test_a_letter_is_dealt_with_once_at_a_time_by_whichever_of_its_names() -> None:
    site = Site()
    app = site.app()
    began, go = asyncio.Event(), asyncio.Event()
    got: list[str] = []

    @app.application("n", name="slow")
    async def handle(payload: str) -> None:
        got.append(payload)
        if len(got) == 1:
            raise Reject
        began.set()
        await go.wait()

    async with app:
        site.publish("n", "x")
        await site.parked()
        letters = run_of(app).dead_letters
        (name,) = await names(letters)
        other = name.replace("-", "%2D")
        replaying = asyncio.ensure_future(letters.replay(name))
        await began.wait()
        done = [await letters.discard(other), await letters.replay(other)]
        assert [one.outcome for one in done] == ["refused", "refused"]
        assert site.letters()
        go.set()
        assert (await replaying).outcome == "handled"
        assert (len(got), site.letters()) == (2, [])


@pytest.mark.virtual
async def test_what_fails_again_is_not_lost_whatever_its_id() -> None:
    oven = Oven()
    async with oven.app as app:
        letters = run_of(app).dead_letters
        notes = {"topic": "plant/a", "actor": "app/0/oven", "attempts": "1", "error": "E"}
        headers = {f"spa_dead_{name}": text for name, text in notes.items()}
        fields: dict[str, Any] = {"type": "t", "headers": headers, "retain": True}
        oven.site.publish(LATER + "a%20b", "x", id="a b", **fields)
        (name,) = await names(letters)
        assert (await letters.replay(name)).outcome == "failed"
        assert await names(letters) == [name]


@pytest.mark.virtual
async def test_who_asks_is_answered_whatever_goes_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    oven = Oven()
    watcher = oven.site.watch("_spa/reply/#")

    async def replay(self: DeadLetters, name: str, **options: Any) -> None:
        raise OverflowError(name)

    monkeypatch.setattr(DeadLetters, "replay", replay)
    async with oven.app as app:
        run = run_of(app)
        run._take_command(run.connections[0], Envelope(topic="c", payload=order(letter="x")))
        await watcher.get(1)
    assert watcher.payloads == ['{"instance":"0","outcome":"refused","why":"OverflowError: x"}']
    assert "a dead letter is not replayed: OverflowError: x" in caplog.text


@pytest.mark.virtual
async def test_a_list_is_bounded_also_in_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dead_letter_pages, "_MOST_TEXT", 200)
    oven = Oven()
    async with oven.app as app:
        await oven.fail(10)
        told = await _dead_letter_pages.LetterPages(run_of(app)).answer("GET", "/dead-letters", "")
        assert told["more"]
        assert 1 < len(told["dead_letters"]) < 5


@pytest.mark.parametrize("since", [1e308, -1e308])
async def test_a_log_is_asked_for_whatever_time_somebody_says(since: float) -> None:
    provider = SocketProviderFactory.from_url("kafka://127.0.0.1:1?start_timeout=1")
    assert isinstance(provider.config, KafkaConfig)
    index = LetterIndex(provider.config, "app")
    with pytest.raises(ConnectFailed):
        await index.find("x", since)
    index.forget()


class Letters:
    """An application on a simulated Kafka cluster whose actor fails until it is mended.

    Attributes:
        read: how many records were read of the topic of its dead letters.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        self.mended = False
        self.app = DistributedApplication(f"kafka://{SERVER}?create_topics=all", name="plant")
        decoded = _history._Reading.decoded

        def counted(reading: _history._Reading, record: Any) -> Envelope | None:
            self.read += 1
            return decoded(reading, record)

        monkeypatch.setattr(_history._Reading, "decoded", counted)

        @self.app.application("jobs", retry=RetryPolicy(attempts=1))
        async def oven(payload: int) -> None:
            if not self.mended:
                raise Reject("too hot")

    async def fail(self, numbers: range) -> None:
        before = self.app.stats["dead_letters.stored"]
        for number in numbers:
            await self.app.socket().publish("jobs", number)
        await eventually(
            lambda: self.app.stats["dead_letters.stored"] == before + len(numbers), 60.0
        )

    async def stored(self) -> list[StoredLetter]:
        found = run_of(self.app).dead_letters.search.stored()
        return [letter async for _, letter in found]


@pytest.mark.virtual
async def test_replaying_all_letters_on_kafka_reads_their_topic_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 100
    with world() as here:
        plant = Letters(monkeypatch)
        async with plant.app:
            await plant.fail(range(count))
            letters, stored = run_of(plant.app).dead_letters, await plant.stored()
            assert len(stored) == count
            plant.mended, plant.read = True, 0
            began = here.loop.time()
            for letter in stored:
                done = await letters.replay(letter.name, since=letter.stored)
                assert done.outcome == "handled"
            # Each of them, what took it back, and it alone.
            assert plant.read <= 3 * count
            # Virtual time: nobody waits a tenth of a second before they ask again.
            assert here.loop.time() - began < 0.1 * count
            assert await plant.stored() == []
            assert (await letters.replay(stored[0].name)).outcome == "missing"


@pytest.mark.virtual
async def test_letters_on_kafka_are_found_whatever_has_happened_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with world() as here:
        plant = Letters(monkeypatch)
        async with plant.app:
            await plant.fail(range(3))
            letters, (first, second, third) = run_of(plant.app).dead_letters, await plant.stored()
            # Again in its place, which is another one in the topic.
            assert (await letters.replay(third.name, since=third.stored)).outcome == "failed"
            found = await letters.search.show(third.name)
            assert found is not None
            assert found[1].replays == 1
            # It is older than what was read.
            assert (await letters.discard(first.name)).outcome == "discarded"
            # By somebody else.
            (connection,) = run_of(plant.app).connections
            await connection.bus.unpark(second.envelope, timeout=10)
            assert (await letters.replay(second.name)).outcome == "missing"
            await plant.fail(range(3, 4))
            third, fourth = sorted(await plant.stored(), key=lambda one: one.stored or 0)
            # It is forgotten after a while, and read again.
            plant.read = 0
            await asyncio.sleep(1000)
            assert await letters.search.show(fourth.name) is not None
            assert plant.read > 1
            plant.mended = True
            assert (await letters.replay(fourth.name, since=fourth.stored)).outcome == "handled"
            assert await letters.search.show(third.name) is not None
            # What is there now is another topic.
            name = "_spa.dead-letter.plant"
            here.cluster.delete_topic(name)
            here.cluster.create_topic(name)
            assert await letters.search.show(third.name) is None


@pytest.mark.mosquitto
async def test_a_lost_connection_is_not_the_end_of_the_letters(mosquitto: Mosquitto) -> None:
    name = uuid.uuid4().hex
    async with Proxy("127.0.0.1", mosquitto.port) as proxy:
        app = DistributedApplication(f"mqtt://127.0.0.1:{mosquitto.port}", name=name)

        @app.application(name, name="oven")
        async def bake(payload: str) -> None:
            raise Reject

        async with app:
            for number in range(3):
                await app.socket().publish(name, f"{number}")
            await eventually(lambda: app.stats["dead_letters.stored"] == 3)
        provider = SocketProviderFactory.from_url(f"mqtt://127.0.0.1:{proxy.port}")

        async def read() -> None:
            async for _ in stored_letters(provider, name):
                proxy.cut()

        with pytest.raises(ConnectionLost, match="some may be missing"):
            await read()


@pytest.mark.virtual
async def test_a_message_that_was_a_document_is_opened_again() -> None:
    site = Site()
    app = site.app()
    got: list[str] = []

    @app.application("n", name="actor")
    async def handle(payload: str) -> None:
        got.append(payload)
        if len(got) == 1:
            raise Reject

    event = b'{"specversion":"1.0","id":"i","source":"s","type":"t","data":"x"}'
    async with app:
        letters = run_of(app).dead_letters
        site.publish("n", event, content_type="application/cloudevents+json")
        await site.parked()
        (name,) = await names(letters)
        assert (await letters.replay(name)).outcome == "handled"
    assert got == ["x", "x"]


def test_a_letter_says_which_correlation_the_message_had() -> None:
    headers = {
        "spa_dead_topic": "t",
        "spa_dead_actor": "app/0/x",
        "spa_dead_error": "E",
        "spa_dead_correlation": "00ff",
    }
    found = Envelope(topic=LATER + "i", id="i", type="t", headers=headers)
    read = StoredLetter.of("app", found)
    assert read.message is not None
    assert read.message.correlation == b"\x00\xff"
    # One that had to be made short is worth no letter.
    headers["spa_dead_correlation"] = "00ff..."
    read = StoredLetter.of("app", found)
    assert (read.flaw, read.message and read.message.correlation) == (None, None)
    headers["spa_dead_correlation"] = "zz"
    assert "damaged" in (StoredLetter.of("app", found).flaw or "")


@pytest.mark.virtual
@pytest.mark.parametrize("size", [0, 600, 1_024, 1_025, 60_000])
async def test_a_message_with_correlation_data_of_any_length_can_be_replayed(size: int) -> None:
    site = Site()
    app = site.app()
    got: list[bytes] = []

    @app.application("n", name="actor")
    async def handle(message: Message[bytes]) -> None:
        got.append(message.payload)
        if len(got) == 1:
            raise Reject

    async with app:
        letters = run_of(app).dead_letters
        site.publish("n", b"x", correlation=b"c" * size)
        await site.parked()
        (name,) = await names(letters)
        assert (await letters.replay(name)).outcome == "handled"
    assert got == [b"x", b"x"]


@pytest.mark.virtual
@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
async def test_a_letter_whose_message_the_mailbox_drops_is_still_there(overflow: Overflow) -> None:
    site = Site()
    app = site.app()
    go = asyncio.Event()
    got: list[str] = []

    @app.application("n", name="slow", qos=0, mailbox=1, overflow=overflow)
    async def handle(payload: str) -> None:
        got.append(payload)
        if len(got) == 1:
            raise Reject
        await go.wait()

    async with app:
        site.publish("n", "0")
        await site.parked()
        letters = run_of(app).dead_letters
        (name,) = await names(letters)
        site.publish("n", "1")
        await eventually(lambda: len(got) == 2)
        if overflow is Overflow.DROP_NEWEST:
            site.publish("n", "2")
            await asyncio.sleep(1)
        replaying = asyncio.ensure_future(letters.replay(name))
        await asyncio.sleep(1)
        site.publish("n", "3")
        await asyncio.sleep(1)
        go.set()
        done = await replaying
        assert (done.outcome, "mailbox was full" in done.why) == ("refused", True)
        assert len(site.letters()) == 1
    assert got.count("0") == 1


@pytest.mark.virtual
async def test_nothing_is_replayed_to_an_actor_that_stays_stopped() -> None:
    site = Site()
    app = site.app(restart=RestartPolicy(1))
    broken = False

    class Pump(Actor):
        async def on_start(self) -> None:
            if broken:
                raise OSError

        @on("n")
        async def handle(self, payload: str) -> None:
            raise Reject

    app.add(Pump)

    @app.application("other")
    async def other(payload: str) -> None: ...

    async with app:
        site.publish("n", "x")
        await site.parked()
        run = run_of(app)
        (name,) = await names(run.dead_letters)
        broken = True
        app.restart("Pump")
        waiting = asyncio.ensure_future(run.dead_letters.replay(name))
        await eventually(lambda: "stays stopped" in app.problems.get("Pump", ""))
        assert (await waiting).outcome == "refused"
        done = await run.dead_letters.replay(name)
        assert done.why == "actor 'Pump' could not start again, and stays stopped"
        assert len(site.letters()) == 1
    assert app.stats["messages.given_up"] == 0
