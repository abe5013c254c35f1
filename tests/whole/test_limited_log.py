"""Log lines of one kind, of which only the first are written in full."""

from __future__ import annotations

import asyncio
import logging

import pytest

from spa_dat import Actor, DistributedApplication, Reject, RetryPolicy, Socket
from spa_dat._limited_log import LimitedLog
from spa_dat._logs import get_logger
from spa_dat.errors import DecodeError, MessageTooLarge
from spa_dat.testing import Harness


def limited(prefix: str = "") -> LimitedLog:
    return LimitedLog(get_logger("spa_dat.test"), prefix=prefix)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.virtual
async def test_the_first_lines_of_a_minute_are_in_full_and_then_there_is_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = limited("100% mine: ")
    for _ in range(2):
        caplog.clear()
        for number in range(1_000):
            log.error("number %d failed", number)
            await asyncio.sleep(0.01)
        assert lines(caplog) == [f"100% mine: number {number} failed" for number in range(10)]
        assert caplog.records[0].filename == "test_limited_log.py"
        await asyncio.sleep(49.0)
        assert len(caplog.records) == 10
        await asyncio.sleep(2.0)
        (summary,) = caplog.records[10:]
        assert summary.levelno == logging.ERROR
        assert summary.getMessage() == (
            "100% mine: 990 more lines within 60 s are left out; the last one: number 999 failed"
        )


@pytest.mark.virtual
async def test_kinds_are_told_apart_by_level_template_and_what_is_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = limited()
    for number in range(15):
        log.error("one %d", number)
        log.warning("one %d", number)
        log.error("two %d", number)
        log.error("three %d", number, kind=ValueError)
        log.error("three %d", number, kind=KeyError)
    assert len(caplog.records) == 50
    log.flush()
    assert [line.split(" ", 1)[0] for line in lines(caplog)[50:]] == ["5"] * 5
    log.flush()
    assert len(caplog.records) == 55
    log.error("one %d", 99)
    assert lines(caplog)[55:] == ["one 99"]


@pytest.mark.virtual
async def test_what_is_no_warning_and_what_comes_seldom_is_not_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = limited()
    for number in range(100):
        log.info("info %d", number)
        log.error("seldom %d", number)
        await asyncio.sleep(7.0)
    assert len(caplog.records) == 200


@pytest.mark.virtual
async def test_kinds_without_end_take_no_room_without_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = limited()
    for number in range(3_000):
        log.error("kind %d", number, kind=number)
    assert len(caplog.records) == 3_000
    assert len(log._kinds) <= 1_000


def test_outside_of_an_event_loop_nothing_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log = limited()
    for number in range(20):
        log.error("number %d", number)
    assert len(caplog.records) == 20


# What uses it.


@pytest.mark.parametrize("stop", [True, False])
def test_a_thousand_messages_that_can_not_be_decoded_are_a_few_lines(
    caplog: pytest.LogCaptureFixture, stop: bool
) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n")
    async def handle(number: int) -> None: ...

    with Harness(app, allow_failures=DecodeError) as harness:
        for _ in range(500):
            harness.publish("n", "bad")
        harness.settle()
        assert app.stats["dead_letters.stored"] == 500
        assert len([line for line in lines(caplog) if "actor 'handle'" in line]) == 10
        if stop:
            harness.stop()
        else:
            harness.advance(61.0)
        (summary,) = [line for line in lines(caplog) if "490 more lines" in line]
        assert summary.startswith("actor 'handle': ")


def test_failures_of_another_class_are_seen_among_many_of_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n", retry=RetryPolicy(attempts=1))
    async def handle(number: int) -> None:
        raise LookupError("the rare one") if number == 150 else ValueError("often")

    with Harness(app, allow_failures=Exception) as harness:
        for number in range(200):
            harness.publish("n", number)
        harness.settle()
        often = [record for record in caplog.records if "often" in record.getMessage()]
        assert len(often) == 10
        assert all(record.exc_info for record in often)
        assert len([line for line in lines(caplog) if "the rare one" in line]) == 1


def test_failing_batches_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("n", batch=(2, 0.1), retry=RetryPolicy(attempts=1))
    async def handle(numbers: list[int]) -> None:
        raise Reject("never")

    with Harness(app, allow_failures=Reject) as harness:
        for number in range(100):
            harness.publish("n", number)
        harness.settle()
        # 50 batches, and each of their messages alone.
        assert len(lines(caplog)) == 20


def test_lost_posts_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.producer()
    async def flood(socket: Socket) -> None:
        for _ in range(100):
            posted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            posted.set_exception(MessageTooLarge("no"))
            socket._connection.lost_posts.report(posted)

    with Harness(app) as harness:
        harness.settle()
    lost = [line for line in lines(caplog) if "a posted message was lost" in line]
    assert len(lost) == 11
    assert "90 more lines" in lost[-1]


def test_failing_local_messages_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication("memory://", name="plant")

    class Deaf(Actor):
        topics = "deaf"

        async def on_message(self, number: int) -> None: ...

    class Fails(Deaf):
        async def on_receive(self, number: int) -> None:
            raise ValueError(number)

    fails, deaf = app.add(Fails), app.add(Deaf)

    @app.application("n")
    async def handle(number: int) -> None:
        fails.ref.tell(number)
        deaf.ref.tell(number)

    async def run() -> None:
        async with app:
            for number in range(100):
                await app.socket().publish("n", number)
            await fails.ref.stop()

    asyncio.run(run())
    written = lines(caplog)
    assert (
        sum(line.startswith("actor 'plant/0/Fails' failed in on_receive") for line in written) == 10
    )
    assert (
        sum("has no on_receive to handle" in line and line.startswith("Deaf") for line in written)
        == 10
    )
    assert (
        sum(" more lines within 60 s are left out; the last one: " in line for line in written) == 2
    )
