"""The report of a stop: what became of the messages, in an object and in one line of the log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import Any

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    JsonFormatter,
    Reject,
    RetryPolicy,
    StopReport,
    on,
)
from spa_dat.testing import Harness, Kafka, Mosquitto, Proxy
from support.kafka_bus import new_prefix
from support.waiting import eventually

TAKEN = 20


def report_of(app: DistributedApplication) -> StopReport:
    report = app.stop_report
    assert report is not None
    return report


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "has stopped in" in record.getMessage()]


# The ledger: handled + handed back = taken.


def slow_app(url: str, **options: Any) -> tuple[DistributedApplication, list[int]]:
    app = DistributedApplication(url, name="plant")
    seen: list[int] = []

    @app.application("n", **options)
    async def work(number: int) -> None:
        await asyncio.sleep(0.01)
        seen.append(number)

    return app, seen


@pytest.mark.virtual
@pytest.mark.parametrize("url", ["memory://", "mqtt://broker", "kafka://broker"])
@pytest.mark.parametrize("moment", [0.0, 0.033, 5.0])
@pytest.mark.parametrize("options", [{}, {"concurrency": 3}], ids=["one lane", "three lanes"])
def test_handled_and_handed_back_are_all_that_was_taken(
    url: str, moment: float, options: dict[str, Any]
) -> None:
    app, seen = slow_app(url, **options)
    with Harness(app) as harness:
        for number in range(TAKEN):
            harness.publish("n", number, key=str(number))
        if url == "kafka://broker":
            # They are fetched together.
            while not app.health().actors[0].in_work:
                harness.advance(0.01)
        harness.advance(moment)
        harness.stop()
        first = report_of(app)
        assert first.handled == len(seen)
        assert first.handled + first.handed_back == TAKEN
        assert first.clean
        assert (first.dead_letters, first.dropped) == (0, 0)
        assert [actor.name for actor in first.actors] == ["work"]
        assert (first.actors[0].handled, first.actors[0].handed_back) == (
            first.handled,
            first.handed_back,
        )
        harness.restart()
        assert app.stop_report is None, "the report of the run before must not seem to be of this"
        harness.settle()
        harness.stop()
        # A lane may have been faster than another, whose message has to be acknowledged first.
        again = report_of(app).handled - first.handed_back
        assert 0 <= again <= (0 if not options else first.handled)
    assert set(seen) == set(range(TAKEN))


async def ledger(url: str) -> None:
    app = DistributedApplication(url, name=f"plant{os.urandom(3).hex()}")
    gate, begun, seen = asyncio.Event(), asyncio.Event(), list[int]()

    @app.application(f"{app.name}/n")
    async def work(number: int) -> None:
        seen.append(number)
        if len(seen) == 3:
            begun.set()
            await gate.wait()

    async with app:
        socket = app.socket()
        await asyncio.gather(*(socket.publish(f"{app.name}/n", number) for number in range(TAKEN)))
        await begun.wait()
        await eventually(lambda: app.health().actors[0].mailbox == TAKEN - 3, 60)
        stopping = asyncio.ensure_future(app.aclose())
        await eventually(lambda: app.health().actors[0].mailbox == 0)
        gate.set()
        await stopping
    first = report_of(app)
    assert (first.handled, first.handed_back, first.clean) == (3, TAKEN - 3, True)
    async with app:
        await eventually(lambda: len(seen) == TAKEN, 60)
    assert report_of(app).handled == TAKEN - 3
    assert report_of(app).handed_back == 0


async def test_the_ledger_on_mosquitto(mosquitto: Mosquitto) -> None:
    await ledger(mosquitto.url)


async def test_what_is_held_while_the_broker_is_away_is_handed_back(mosquitto: Mosquitto) -> None:
    topic = f"plant{os.urandom(3).hex()}"
    gate, begun = asyncio.Event(), asyncio.Event()
    seen: list[int] = []
    async with Proxy(mosquitto.host, mosquitto.port) as proxy:
        url = f"mqtt://127.0.0.1:{proxy.port}?backoff_max=0.1"
        app = DistributedApplication(url, name=topic, stop_timeout=1.0)

        @app.application(topic)
        async def work(number: int) -> None:
            seen.append(number)
            begun.set()
            await gate.wait()

        async with app:
            await asyncio.gather(*(app.socket().publish(topic, n) for n in range(TAKEN)))
            await begun.wait()
            await eventually(lambda: app.health().actors[0].mailbox == TAKEN - 1)
            await proxy.refuse()
            proxy.cut()
            await eventually(lambda: app.health().actors[0].mailbox == 0)
            gate.set()
            await eventually(lambda: app.stats["messages.handled"] == 1)
        first = report_of(app)
        assert (first.handled, first.handed_back) == (1, TAKEN - 1)
        await proxy.allow()
        async with app:
            await eventually(lambda: set(seen) == set(range(TAKEN)))


async def test_the_ledger_on_kafka(kafka: Kafka) -> None:
    await ledger(f"{kafka.url}?create_topics=all&prefix={new_prefix()}")


@pytest.mark.virtual
def test_batches_and_messages_between_two_attempts_are_handed_back() -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.application("batch", batch=(10, 60.0))
    async def collect(numbers: list[int]) -> None: ...

    @app.application("retry")
    async def retry(number: int) -> None:
        raise OSError("not yet")

    with Harness(app) as harness:
        for number in range(12):
            harness.publish("batch", number)
        harness.publish("retry", 1)
        harness.expect_failure(OSError)
        harness.advance(0.05)
        harness.stop()
        report = report_of(app)
    by_name = {actor.name: actor for actor in report.actors}
    assert (by_name["collect"].handled, by_name["collect"].handed_back) == (10, 2)
    assert by_name["retry"].handed_back == 1
    assert (report.handled, report.handed_back, report.clean) == (10, 3, True)


@pytest.mark.virtual
def test_what_no_bus_keeps_is_dropped_and_dead_letters_are_counted_for_each_actor() -> None:
    app = DistributedApplication("mqtt://broker", name="plant")

    @app.application("slow", qos=0)
    async def slow(number: int) -> None:
        await asyncio.sleep(1.0)

    @app.application("bad")
    async def bad(number: int) -> None:
        raise Reject("never")

    @app.application("idle")
    async def idle(number: int) -> None: ...

    with Harness(app) as harness:
        for number in range(5):
            harness.publish("slow", number)
        for number in range(2):
            harness.publish("bad", number)
        harness.advance(0.5)
        harness.stop()
        report = report_of(app)
    assert report.as_dict() == {
        "application": "plant",
        "instance": "0",
        "seconds": report.seconds,
        "handled": 1,
        "dead_letters": 2,
        "handed_back": 0,
        "dropped": 4,
        "given_up": [],
        "actors": [
            {
                "name": name,
                "handled": handled,
                "dead_letters": dead_letters,
                "handed_back": 0,
                "dropped": dropped,
                "given_up": 0,
            }
            for name, handled, dead_letters, dropped in [("slow", 1, 0, 4), ("bad", 0, 2, 0)]
        ],
    }
    assert 0.4 <= report.seconds < 1.0


@pytest.mark.virtual
def test_without_a_name_nothing_is_handed_back() -> None:
    app = DistributedApplication("memory://")

    @app.application("n")
    async def work(number: int) -> None:
        await asyncio.sleep(1.0)

    with Harness(app) as harness:
        for number in range(5):
            harness.publish("n", number)
        harness.advance(0.5)
        harness.stop()
        report = report_of(app)
    assert (report.handled, report.handed_back, report.dropped) == (1, 0, 4)


# The line in the log.


async def test_one_line_tells_it_as_text_and_as_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = DistributedApplication("memory://report-line", name="plant")

    @app.application("n")
    async def work(number: int) -> None: ...

    async with app:
        await app.socket().publish("n", 1)
        await eventually(lambda: app.stats["messages.handled"] == 1)
    (record,) = lines(caplog)
    assert record.levelno == logging.INFO
    assert record.getMessage() == (
        "application 'plant' instance '0' has stopped in 0.0 s: 1 handled (work: 1 handled)"
    )
    told = json.loads(JsonFormatter().format(record))
    assert (told["application"], told["instance"]) == ("plant", "0")
    assert told["stop_report"] == json.loads(json.dumps(report_of(app).as_dict()))


async def test_a_start_that_fails_has_a_report_and_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    app = DistributedApplication("memory://report-start", name="plant")

    class Failing(Actor):
        @on("n")
        async def work(self, number: int) -> None: ...

        async def on_start(self) -> None:
            raise SystemExit(3)

    app.add(Failing)
    assert app.stop_report is None
    with pytest.raises(SystemExit):
        async with app:
            pass
    assert not lines(caplog)
    assert report_of(app).clean
    assert not report_of(app).actors


# What is given up.


async def test_what_is_given_up_is_in_the_report_and_the_line_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://report-given-up", name="plant", stop_timeout=0.1)
    begun = asyncio.Event()

    class Local(Actor):
        @on("n")
        async def work(self, number: int) -> None:
            begun.set()
            await asyncio.sleep(1000)

        async def local(self) -> None: ...

    spec = app.add(Local)
    async with app:
        await app.socket().publish("n", 1)
        await begun.wait()
        for _ in range(3):
            spec.ref.tell("local")
    report = report_of(app)
    assert (report.handled, report.handed_back) == (0, 1)
    assert [actor.given_up for actor in report.actors] == [3]
    assert report.given_up == (
        "actor 'Local' did not finish in time and was cut off",
        "actor 'Local' stopped with 3 messages unhandled",
    )
    assert not report.clean
    (record,) = lines(caplog)
    assert record.levelno == logging.WARNING
    assert "; actor 'Local' stopped with 3 messages unhandled" in record.getMessage()


@pytest.mark.parametrize("kind", ["thread", "task"])
async def test_a_call_given_up_at_its_deadline_that_still_goes_on_is_given_up(kind: str) -> None:
    app = DistributedApplication("memory://report-hung", name="plant", stop_timeout=60)
    over = False

    if kind == "thread":

        @app.application("n", deadline=0.5, retry=RetryPolicy(attempts=1))
        def work(number: int) -> None:
            while not over and number:
                time.sleep(0.01)
    else:

        @app.application("n", deadline=0.5, retry=RetryPolicy(attempts=1), name="work")
        async def stubborn(number: int) -> None:
            while not over and number:
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    continue

    async with app:
        await app.socket().publish("n", 1)
        await eventually(lambda: report_letters(app) == 1)
    over = True
    (reason,) = report_of(app).given_up
    assert reason.startswith("actor 'work': a call given up at the deadline may keep running: ")
    assert "test_stop_report.py" in reason


def report_letters(app: DistributedApplication) -> int:
    return app.stats["dead_letters.stored"]


async def test_what_a_child_process_gives_up_is_given_up_by_the_application() -> None:
    app = DistributedApplication("memory://report-child", name="plant", stop_timeout=0.5)

    class Child(Actor):
        placement = "process"

        @on("n")
        async def work(self, number: int, context: Context) -> None:
            context.later(0.0, self.never)

        async def never(self) -> None:
            await asyncio.sleep(1000)

    app.add(Child)
    async with app:
        await app.socket().publish("n", 1)
        await eventually(lambda: app.stats["messages.handled"] == 1)
    report = report_of(app)
    assert report.actors[0].handled == 1
    assert report.given_up == ("actor 'Child' did not finish in time and was cut off",)
