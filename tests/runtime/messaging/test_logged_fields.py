"""What log records say of the actor and the message that they were made for."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spa_dat import Actor, Context, JsonFormatter, Message, RetryPolicy, on
from support.memory import Site
from support.waiting import eventually

SHOP = logging.getLogger("shop.orders")


@pytest.fixture(autouse=True)
def factory() -> Iterator[None]:
    """Whatever makes the records does so again after the test."""
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says, without who has written it."""
    prefix, own = "spa_dat_", "spa_dat_own"
    return {
        name.removeprefix(prefix): value
        for name, value in vars(record).items()
        if name.startswith(prefix) and name != own
    }


def the(caplog: pytest.LogCaptureFixture, text: str) -> dict[str, Any]:
    """What the only record says whose message begins so."""
    (record,) = [one for one in caplog.records if one.getMessage().startswith(text)]
    return fields(record)


WHO = {"application": "app", "instance": "0", "actor": "actor"}
FIRST = {**WHO, "topic": "n/1", "message_id": "id-1", "attempt": 1}


@pytest.mark.virtual
async def test_users_records_say_of_which_message_and_attempt_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    behind: list[asyncio.Task[None]] = []

    async def later() -> None:
        await asyncio.sleep(5)
        SHOP.warning("left behind")

    @app.application("n/+", name="actor", retry=RetryPolicy(attempts=2, first=1.0))
    async def handle(number: int, context: Context) -> None:
        SHOP.warning("mine %d", context.attempt)
        context.log.warning("by context %d", context.attempt, extra={"order": 7})
        if context.attempt == 1:
            raise ValueError("not yet")
        behind.append(asyncio.create_task(later()))

    async with app:
        site.number("n/1", 1)
        await eventually(lambda: behind and behind[0].done(), 60.0)
    second = {**FIRST, "attempt": 2}
    assert the(caplog, "mine 1") == the(caplog, "by context 1") == FIRST
    assert the(caplog, "mine 2") == the(caplog, "by context 2") == second
    assert [vars(one)["order"] for one in caplog.records if "by context" in one.message] == [7, 7]
    # What the runtime says of the failure comes after the attempt, and is still about it.
    assert the(caplog, "actor 'actor': message on 'n/1' failed (attempt 1") == FIRST
    assert the(caplog, "left behind") == WHO


@pytest.mark.virtual
async def test_undecodable_and_expired_messages_and_the_last_failure_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()

    @app.application("n/+", name="actor", retry=RetryPolicy(attempts=1))
    async def handle(number: int) -> None:
        raise ValueError("never")

    @app.application("other", name="other", deadline=5.0, retry=RetryPolicy(attempts=1))
    async def fail(number: int) -> None:
        raise KeyError("never")

    async with app:
        site.publish("n/1", "no number", id="id-1")
        site.publish("n/2", "2", id="a\nb")
        site.publish("other", "3")
        await site.parked(3)
    assert the(caplog, "actor 'actor': message on 'n/1': ") == FIRST
    # A text that goes into a line of the log must not begin another one.
    told = the(caplog, "actor 'actor': message on 'n/2' failed")
    assert told == {**FIRST, "topic": "n/2", "message_id": "a\\nb"}
    told = the(caplog, "actor 'other': message on 'other' failed")
    assert (told["actor"], told["topic"], told["attempt"]) == ("other", "other", 1)


async def test_threads_and_hooks_and_producers_and_lanes_say_whose_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    done: list[str] = []

    class Counter(Actor):
        def on_start(self) -> None:
            SHOP.warning("start")

        @on("n/+")
        def count(self, number: int, context: Context) -> None:
            SHOP.warning("in a thread")
            done.append("count")

    app.configure(app.add(Counter), name="actor", concurrency=2)

    @app.producer(name="once")
    async def once() -> None:
        SHOP.warning("producing")
        done.append("once")

    async with app:
        site.number("n/1", 1)
        await eventually(lambda: len(done) == 2)
    assert the(caplog, "in a thread") == FIRST
    assert the(caplog, "producing") == {**WHO, "actor": "once"}
    starts = [fields(one) for one in caplog.records if one.getMessage() == "start"]
    assert starts == [WHO, WHO]
    SHOP.warning("outside")
    assert the(caplog, "outside") == {}


@pytest.mark.virtual
async def test_a_batch_names_its_messages_but_not_thousands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n/1", name="actor", batch=(30, 1.0), retry=RetryPolicy(attempts=1))
    async def handle(messages: list[Message[int]]) -> None:
        SHOP.warning("batch of %d", len(messages))
        seen.extend(message.payload for message in messages)
        if len(messages) > 1:
            raise ValueError("together")

    async with app:
        site.number("n/1", *range(30))
        await eventually(lambda: len(seen) == 60, 60.0)
    expected = {
        **WHO,
        "messages": 30,
        "topic": "n/1",
        "message_ids": [f"id-{number}" for number in range(20)],
        "attempt": 1,
    }
    assert the(caplog, "batch of 30") == expected
    assert the(caplog, "actor 'actor': 30 messages") == expected
    alone = [fields(one) for one in caplog.records if one.getMessage() == "batch of 1"]
    assert alone[1]["message_id"] == "id-1"
    assert "messages" not in alone[1]


@pytest.mark.virtual
async def test_storms_are_counted_for_each_actor_and_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()

    async def fail(number: int) -> None:
        raise (ValueError if number % 2 else KeyError)("no")

    for name in ("one", "two"):
        app.application("n/1", name=name, retry=RetryPolicy(attempts=1))(fail)
    async with app:
        site.number("n/1", *range(60))
        await site.parked(120)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    failures = [line for line in lines if line.get("topic") == "n/1"]
    for name in ("one", "two"):
        assert len([line for line in failures if line["actor"] == name]) == 20
        counts = [line for line in lines if line.get("actor") == name and "left_out" in line]
        assert [count["left_out"] for count in counts] == [20, 20]
        assert all("20 more lines within 60 s" in count["message"] for count in counts)


@pytest.mark.virtual
@pytest.mark.parametrize("chained", [True, False])
async def test_other_record_factories_go_on(
    chained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = logging.getLogRecordFactory() if chained else logging.LogRecord

    def mine(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.host = "here"
        return record

    logging.setLogRecordFactory(mine)
    site = Site()
    app = site.app()

    @app.application("n/1", name="actor")
    async def handle(number: int) -> None:
        SHOP.warning("handled", extra={"topic": "of the user"})

    async with app:
        site.number("n/1", 1)
        await site.settled()
    assert the(caplog, "handled") == FIRST
    record = next(one for one in caplog.records if one.getMessage() == "handled")
    assert (vars(record)["host"], vars(record)["topic"]) == ("here", "of the user")


@pytest.mark.virtual
async def test_a_line_about_an_actor_from_anothers_code_is_not_about_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    logs: list[Callable[..., None]] = []

    @app.application("never", name="other")
    async def other(number: int) -> None: ...

    @app.application("n/1", name="actor")
    async def handle(number: int) -> None:
        for log in logs:
            log("of another")

    async with app:
        run = app._runs.current
        assert run is not None
        (lane,) = next(one for one in run.actors if one.name == "other").lanes
        logs.append(lane.log.warning)
        site.number("n/1", 1)
        await site.settled()
    assert the(caplog, "actor 'other': of another") == {**WHO, "actor": "other"}
