"""What a dead letter says, and that it is one."""

from __future__ import annotations

import uuid

import pytest

from spa_dat import DistributedApplication, Reject, RetryPolicy
from spa_dat._environment import Environment
from spa_dat.errors import PublishRefused
from spa_dat.runtime.messaging._dead_letter import abridged, dead_letter, describe
from spa_dat.testing import Faults, Harness
from spa_dat.transports import Envelope
from support.memory import Site

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


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\0b"), "a\\0b"),
        (ValueError("half \ud800"), "half ?"),
        (Unspeakable(), "(its text cannot be had: RuntimeError)"),
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
