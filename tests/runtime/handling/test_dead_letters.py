"""What a dead letter says, and that it is one."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from spa_dat import DistributedApplication, Reject, RetryPolicy
from spa_dat._environment import Environment
from spa_dat._texts import describe
from spa_dat.errors import MessageTooLarge, PublishRefused
from spa_dat.runtime.dead_letters._writing import abridged, dead_letter, simpler
from spa_dat.testing import Faults, Harness, Mosquitto
from spa_dat.transports import Envelope, parked
from spa_dat.transports.mqtt._bus import _LEAST_FOR_LETTERS
from spa_dat.transports.mqtt.protocol._packets import PublishPacket
from support.memory import Site
from support.mqtt import client
from support.waiting import eventually

ERROR = ValueError("too hot")


def letter_for(envelope: Envelope, error: BaseException = ERROR, actor: str = "a/0/x") -> Envelope:
    return dead_letter(envelope, actor=actor, attempts=3, error=error, environment=Environment(1))


@pytest.mark.virtual
async def test_a_dead_letter_has_the_original_bytes_headers_and_what_went_wrong() -> None:
    site = Site()
    app = site.app()

    @app.application("plant/+", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(payload: bytes) -> None:
        raise ValueError("too hot")

    raw = bytes(range(256))
    async with app:
        site.publish(
            "plant/boiler",
            raw,
            id="the-id",
            key="k",
            source="device/7",
            content_type="application/x-own",
            headers={"batch": "12", "spa_dead_error": "forged"},
        )
        (letter,) = await site.parked()
        await site.settled()
    assert letter.payload == raw
    assert letter.content_type == "application/x-own"
    assert letter.key == "k"
    assert letter.source == "app/0/actor"
    assert letter.retain
    assert letter.expiry is None
    assert letter.response_topic is None
    assert letter.topic == f"_spa/dead-letter/app/{letter.id}"
    assert letter.headers == {
        "batch": "12",
        "spa_dead_topic": "plant/boiler",
        "spa_dead_actor": "app/0/actor",
        "spa_dead_attempts": "2",
        "spa_dead_error": "ValueError",
        "spa_dead_text": "too hot",
        "spa_dead_id": "the-id",
        "spa_dead_source": "device/7",
    }


def test_a_dead_letter_of_an_empty_message_is_kept_too() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n")
    async def handle(payload: bytes) -> None:
        raise Reject

    with Harness(app) as harness:
        harness.publish("n", b"")
        harness.settle()
        (stored,) = harness.messages("_spa/dead-letter/#", type=bytes)
        assert stored.headers["spa_dead_size"] == "0"
        (letter,) = harness.dead_letters()
        assert letter.payload == b""


def test_parking_the_same_message_twice_leaves_one_letter() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n")
    async def handle(number: int) -> None:
        raise Reject

    with Harness(app, faults=Faults(duplicate=1.0, most=1)) as harness:
        harness.publish("n", 1)
    assert harness.stats["dead_letters.stored"] == 2
    assert len(harness.dead_letters()) == 1


def test_messages_with_the_same_id_have_letters_of_their_own() -> None:
    app = DistributedApplication("memory://", name="app")

    for name in ("one", "two"):

        @app.application("n/+", name=name)
        async def handle(number: int) -> None:
            raise Reject

    with Harness(app) as harness:
        harness.publish("n/1", 1, id="always")
        harness.publish("n/2", 1, id="always")
        harness.publish("n/1", 2, id="always")
    assert len(harness.dead_letters()) == 6


def test_messages_without_an_id_have_letters_of_their_own() -> None:
    environment = Environment(1)
    letters = [
        dead_letter(
            Envelope(topic="n", payload=b"on"),
            actor="a/0/x",
            attempts=1,
            error=ERROR,
            environment=environment,
        )
        for _ in range(2)
    ]
    assert letters[0].id != letters[1].id
    assert "spa_dead_id" not in letters[0].headers


def test_the_id_of_a_letter_repeats_in_another_process() -> None:
    envelope = Envelope(topic="n", payload=b"1", id="x")
    assert letter_for(envelope).id == letter_for(envelope, KeyError()).id
    assert uuid.UUID(letter_for(envelope).id).version == 5
    assert letter_for(envelope).id != letter_for(envelope, actor="a/1/x").id


@pytest.mark.parametrize("max_payload", [50, 3000, 1_048_576])
def test_a_letter_of_a_message_that_fits_has_all_of_it(max_payload: int) -> None:
    app = DistributedApplication(f"memory://?max_payload={max_payload}", name="app")

    @app.application("n")
    async def handle(payload: bytes) -> None:
        raise Reject

    with Harness(app) as harness:
        harness.publish("n", b"x" * max_payload)
    (letter,) = harness.dead_letters()
    assert letter.payload == b"x" * max_payload


def test_what_is_too_large_is_abridged_step_by_step() -> None:
    letter = letter_for(
        Envelope(
            topic="n",
            payload=b"x" * 100,
            key="k",
            content_type="text/plain",
            headers={"long": "y" * 100},
            response_topic="back",
        )
    )
    without_payload = abridged(letter)
    assert without_payload is not None
    assert without_payload.payload == b""
    assert without_payload.headers["spa_dead_size"] == "100"
    assert len(without_payload.headers["spa_dead_sha256"]) == 64
    assert without_payload.headers["long"] == "y" * 100
    bare = abridged(without_payload)
    assert bare is not None
    assert bare.id == letter.id
    assert bare.key is None
    assert all(name.startswith("spa_dead_") for name in bare.headers)
    assert bare.headers["spa_dead_response_topic"] == "back"
    assert abridged(bare) is None


@pytest.mark.parametrize("size", [300, 4000], ids=["less than the headers", "more"])
def test_for_the_sake_of_a_small_payload_everything_else_is_reduced_first(size: int) -> None:
    complete = letter_for(
        Envelope(topic="plant/7", payload=b"x" * size, id="i", key="k", headers={"h": "y" * 900}),
        ValueError("too hot " * 100),
    )
    letter, forms = simpler(complete, MessageTooLarge(), complete), []
    while letter is not None:
        forms.append(letter)
        letter = simpler(letter, MessageTooLarge(), complete)
    assert [len(form.payload) for form in forms] == [*4 * [size], *5 * [0]]
    texts = [len(form.headers.get("spa_dead_text", "")) for form in forms]
    assert texts == [800, 800, 100, 0, 800, 800, 800, 100, 0]
    # What is dropped with a payload comes back without it.
    assert forms[4].headers["h"] == "y" * 900
    assert {form.id for form in forms} == {complete.id}


def test_the_last_form_of_a_dead_letter_has_room_in_a_small_packet() -> None:
    longest = "n" * 64
    complete = letter_for(
        Envelope(
            topic="\u20ac" * 10_000, payload=b"x" * 5000, id="\u20ac" * 1000, source="s" * 900
        ),
        type("\u20ac" * 500, (Exception,), {})("\u20ac" * 5000),
        actor=f"{longest}/{longest}/{longest}",
    )
    letter: Envelope | None = complete
    while letter is not None:
        last, letter = letter, simpler(letter, MessageTooLarge(), complete)
    packet = PublishPacket(parked(longest, last, lambda: ""))
    assert packet.size <= _LEAST_FOR_LETTERS
    assert last.headers["spa_dead_size"] == "5000"


@pytest.mark.mosquitto
@pytest.mark.parametrize(("size", "kept"), [(200, True), (500, False)])
async def test_a_broker_that_takes_small_packets_only_gets_dead_letters_that_fit(
    own_mosquitto: Callable[..., Mosquitto],
    caplog: pytest.LogCaptureFixture,
    size: int,
    kept: bool,
) -> None:
    broker = own_mosquitto(extra=["max_packet_size 700"])
    app = DistributedApplication(broker.url, name="plant")

    @app.application("in", retry=RetryPolicy(attempts=1))
    async def fail(payload: bytes) -> None:
        if len(payload) > 1:
            raise ValueError("too hot " * 1000)

    async with app, client(broker, name="reader") as reader:
        _, recorder = await reader.consume("_spa/dead-letter/plant/+")
        await app.socket().publish("in", b"x" * size)
        await app.socket().publish("in", b"x")
        (letter,) = [each.envelope for each in await recorder.get(1)]
        await eventually(lambda: app.stats["messages.handled"] == 1)
        assert app.healthy
    assert letter.payload == (b"x" * size if kept else b"(empty)")
    assert letter.headers["spa_dead_error"] == "ValueError"
    told = "is stored without its payload of 500 bytes, which the bus has refused: " in caplog.text
    assert told == (not kept)
    assert app.stats["dead_letters.without_payload"] == (not kept)


@pytest.mark.mosquitto
async def test_a_broker_with_no_room_for_any_dead_letter_is_named_at_the_start(
    own_mosquitto: Callable[..., Mosquitto], caplog: pytest.LogCaptureFixture
) -> None:
    broker = own_mosquitto(extra=["max_packet_size 200"])
    app = DistributedApplication(broker.url, name="plant", stop_timeout=0.1)

    @app.application("in", retry=RetryPolicy(attempts=1))
    async def fail(payload: bytes) -> None:
        raise ValueError("too hot")

    async with app:
        assert "accepts no packets of more than 200 bytes, and dead letters may need" in caplog.text
        await app.socket().publish("in", b"x")
        await eventually(lambda: not app.healthy)
        assert "a dead letter cannot be stored: " in app.problems["fail"]
        assert "and the broker allows 200" in app.problems["fail"]
    assert app.stats["messages.handled"] == 0


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\0b"), "a\\0b"),
        (ValueError("half \ud800"), "half ?"),
        (Unspeakable(), "(its text is not available: RuntimeError)"),
        (ValueError(), ""),
    ],
)
def test_any_error_can_be_described(error: Exception, text: str) -> None:
    assert describe(error) == text
    assert letter_for(Envelope(topic="n"), error).headers["spa_dead_text"] == text


def test_the_text_of_an_error_is_cut() -> None:
    letter = letter_for(Envelope(topic="n"), ValueError("x" * 10_000))
    assert len(letter.headers["spa_dead_text"]) == 1000


def test_an_error_that_no_bus_can_carry_does_not_block_the_actor() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n")
    async def handle(number: int) -> None:
        raise Unspeakable if number == 1 else ValueError("half \ud800")

    with Harness(app, allow_failures=(Unspeakable, ValueError)) as harness:
        harness.publish("n", 1)
        harness.publish("n", 2)
    assert [letter.error for letter in harness.dead_letters()] == ["Unspeakable", "ValueError"]


@pytest.mark.parametrize("identifier", ["a/b", "#", "+", "$x", "ü" * 300, "..", "%2F", ""])
def test_hostile_ids_make_valid_topics(identifier: str) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n")
    async def handle(payload: bytes) -> None:
        raise Reject

    with Harness(app) as harness:
        harness.publish("n", b"x", id=identifier)
        harness.settle()
        (stored,) = harness.messages("_spa/dead-letter/#")
        assert stored.topic.count("/") == 3
        (letter,) = harness.dead_letters()
        assert letter.message_id == identifier


@pytest.mark.virtual
async def test_a_payload_is_not_lost_when_a_bus_stops_refusing_in_the_middle_of_the_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site()
    app = site.app()
    check = type(site.faults).check_publish
    refused: list[str] = []

    def refuse(faults: object, topic: str) -> None:
        if topic.startswith("_spa/dead-letter/") and len(refused) < 2:
            refused.append(topic)
            raise PublishRefused("for a while")
        check(site.faults, topic)

    monkeypatch.setattr(type(site.faults), "check_publish", refuse)

    @app.application("n", name="actor", retry=RetryPolicy(attempts=1))
    async def handle(number: int) -> None:
        raise ValueError(number)

    async with app:
        site.publish("n", "1", id="1")
        await site.settled()
        (letter,) = site.letters()
    assert len(refused) == 2
    assert letter.payload == b"1"
