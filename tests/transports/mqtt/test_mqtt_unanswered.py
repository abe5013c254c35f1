"""Publishes that a broker leaves unanswered."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from spa_dat.transports import Envelope
from spa_dat.transports._outbox import Outbox, OutboxEntry
from spa_dat.transports.mqtt._unanswered_publishes import UnansweredPublishes
from spa_dat.transports.mqtt.protocol._packets import PublishPacket

pytestmark = pytest.mark.virtual

LATEST = 40.0


class Case:
    """An outbox on a connection, whose answers the test gives."""

    def __init__(self) -> None:
        self.outbox = Outbox(lambda entry: None)
        self.outbox.connected()
        self.stats: Counter[str] = Counter()
        self.puts_off = False
        self.unanswered = UnansweredPublishes(
            self.outbox, self.stats, "broker:1883", lambda: self.puts_off
        )
        self.unanswered.begin()

    def post(self, topic: str, size: int = 1, qos: int = 1) -> OutboxEntry:
        envelope = Envelope(topic=topic, payload=b"x" * size, qos=qos)
        return self.outbox.submit(envelope, PublishPacket(envelope))

    def answer(self, *entries: OutboxEntry) -> None:
        for entry in entries:
            self.unanswered.answers += entry.envelope.qos
            self.outbox.confirm(entry)

    async def others_are_answered(self, seconds: float) -> None:
        """Publish something each second, and answer it in the next one."""
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            other = self.post("other")
            await asyncio.sleep(1.0)
            self.answer(other)

    def is_reported(self, topic: str, *, others: bool) -> bool:
        trouble = self.unanswered.trouble or ""
        return f"to {topic!r} (" in trouble and ("it answers others" in trouble) == others


def lines(caplog: pytest.LogCaptureFixture, topic: str) -> int:
    return sum(f"to {topic!r} (" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("given_up", [False, True])
async def test_one_that_is_left_out_is_reported_once_and_until_it_is_answered(
    given_up: bool, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case()
    left = case.post("left")
    if given_up:
        left.cancel()
    await case.others_are_answered(29.0)
    assert case.unanswered.trouble is None
    await case.others_are_answered(LATEST - 29.0)
    assert case.is_reported("left", others=True)
    await case.others_are_answered(120.0)
    assert case.is_reported("left", others=True)
    assert "for 15" in (case.unanswered.trouble or "")
    assert case.stats == {"publishes.unanswered": 1}
    assert lines(caplog, "left") == 1
    case.answer(left)
    assert case.unanswered.trouble is None
    await case.others_are_answered(LATEST)
    assert case.stats == {"publishes.unanswered": 1}


async def test_one_that_is_left_out_is_reported_also_if_nothing_follows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case()
    first, left, last = (case.post(topic) for topic in ("first", "left", "last"))
    case.answer(first, last)
    await asyncio.sleep(LATEST)
    assert case.is_reported("left", others=False)
    assert case.stats == {"publishes.unanswered": 1}
    # What follows changes only what is said of it.
    await case.others_are_answered(LATEST)
    assert case.is_reported("left", others=True)
    assert case.stats == {"publishes.unanswered": 1}
    assert lines(caplog, "left") == 1
    case.answer(left)
    assert case.unanswered.trouble is None


async def test_one_before_others_that_are_answered_one_by_one_is_reported() -> None:
    case = Case()
    left = case.post("left")
    others = [case.post("other") for _ in range(10)]
    await asyncio.sleep(6.0)
    for other in others:
        case.answer(other)
        await asyncio.sleep(4.0)
    assert case.is_reported("left", others=True)
    case.answer(left)
    assert case.unanswered.trouble is None


@pytest.mark.parametrize("given_up", [False, True])
async def test_a_slow_connection_is_no_trouble(given_up: bool) -> None:
    """Each is answered in its turn, however long that takes."""
    case = Case()
    posts = [case.post(f"a/{number}", 1_000) for number in range(100)]
    if given_up:
        for post in posts[50:]:
            post.cancel()
    for post in posts:
        await asyncio.sleep(7.0)
        assert case.unanswered.trouble is None
        case.answer(post)
    assert case.stats == {}


async def test_what_is_large_may_take_long() -> None:
    case = Case()
    large, small = case.post("large", 1_000_000), case.post("small")
    await asyncio.sleep(600.0)
    assert case.unanswered.trouble is None
    case.answer(large, small)
    assert case.stats == {}


async def test_without_qos_1_there_is_no_answer_and_what_is_written_is_none() -> None:
    case = Case()
    case.post("waits", qos=0)
    await asyncio.sleep(LATEST)
    assert case.unanswered.trouble is None
    left = case.post("left")
    until = asyncio.get_running_loop().time() + LATEST
    while asyncio.get_running_loop().time() < until:
        case.answer(case.post("written", qos=0))
        await asyncio.sleep(1.0)
    assert case.is_reported("left", others=False)
    case.answer(left)
    assert case.unanswered.trouble is None


async def test_what_is_put_off_has_been_answered() -> None:
    case = Case()
    case.puts_off = True
    case.post("put off").put_off = "quota exceeded"
    await asyncio.sleep(LATEST)
    assert case.unanswered.trouble is None
    assert case.stats == {}


async def test_on_the_next_connection_everything_begins_anew() -> None:
    case = Case()
    left = case.post("left")
    await case.others_are_answered(LATEST)
    assert case.unanswered.trouble is not None
    case.unanswered.end()
    assert case.unanswered.trouble is None
    case.outbox.connected()
    case.unanswered.begin()
    await case.others_are_answered(29.0)
    assert case.unanswered.trouble is None
    await case.others_are_answered(LATEST - 29.0)
    assert case.is_reported("left", others=True)
    assert case.stats == {"publishes.unanswered": 2}
    case.answer(left)


async def test_a_broker_that_answers_none_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()
    posts = [case.post(f"a/{number}") for number in range(100)]
    await asyncio.sleep(LATEST)
    assert "has not answered any of 100 publishes" in (case.unanswered.trouble or "")
    assert case.stats == {"publishes.unanswered": 100}
    assert len(caplog.records) == 1
    case.answer(*posts)
    assert case.unanswered.trouble is None
