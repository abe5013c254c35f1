"""The test harness: messages in, what comes of them, time, failures."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass, field

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Reject,
    RemoteError,
    RetryPolicy,
    Socket,
    SyncSocket,
    on,
)
from spa_dat.errors import ConfigurationError, RequestTimeout
from spa_dat.testing import HandlerFailed, Harness


@dataclass
class Reading:
    sensor: str
    celsius: float


@dataclass
class Highest:
    celsius: float = 0.0


@dataclass
class Log:
    lines: list[str] = field(default_factory=list)


class Boiler(Actor):
    def __init__(self, limit: float) -> None:
        self.limit = limit

    @on("plant/boiler/limit")
    async def change(self, limit: float) -> float:
        before, self.limit = self.limit, limit
        return before


def plant(address: str = "mqtt://broker.example") -> DistributedApplication:
    """Make an application as it might run in production."""
    app = DistributedApplication(address, name="plant")

    @app.application("plant/{machine}/temperature", state=Highest)
    async def watch(reading: Reading, machine: str, state: Highest, socket: Socket) -> None:
        if reading.celsius > state.celsius:
            state.celsius = reading.celsius
            await socket.publish("plant/alarms", f"{machine}: {reading.celsius}")

    app.add(Boiler, limit=90.0)
    return app


def test_messages_go_in_and_what_is_published_can_be_seen() -> None:
    with Harness(plant()) as harness:
        harness.publish("plant/boiler/temperature", Reading("a", 95.0))
        assert harness.published() == []
        harness.settle()
        harness.publish("plant/boiler/temperature", Reading("a", 94.0))
        harness.settle()
        assert harness.published("plant/alarms") == ["boiler: 95.0"]
        assert harness.state("watch") == Highest(95.0)
        assert harness.stats["messages.handled"] == 2


@pytest.mark.parametrize("address", ["memory://", "mqtts://a:b@host", "kafka://host:9092"])
def test_any_address_works_without_a_broker(address: str) -> None:
    with Harness(plant(address)) as harness:
        harness.publish("plant/boiler/temperature", Reading("a", 95.0), key="a")
        harness.settle()
        assert harness.published("plant/alarms") == ["boiler: 95.0"]


async def test_async_tests_await_what_takes_time() -> None:
    async with Harness(plant()) as harness:
        harness.publish("plant/boiler/temperature", Reading("a", 95.0))
        await harness.settle()
        await harness.advance(1.0)
        assert harness.published("plant/alarms") == ["boiler: 95.0"]
        assert await harness.request("plant/boiler/limit", 80.0, reply=float) == 90.0


async def test_the_plain_form_works_where_an_event_loop_runs() -> None:
    with Harness(plant()) as harness:
        harness.publish("plant/boiler/temperature", Reading("a", 95.0))
        harness.settle()
        assert harness.published("plant/alarms") == ["boiler: 95.0"]


def test_requests_are_answered() -> None:
    with Harness(plant()) as harness:
        assert harness.request("plant/boiler/limit", 80.0, reply=float) == 90.0
        boiler = harness.state("Boiler")
        assert isinstance(boiler, Boiler)
        assert boiler.limit == 80.0
        harness.expect_failure(Exception)
        with pytest.raises(RemoteError, match="bad-request"):
            harness.request("plant/boiler/limit", "warm")


def test_a_request_without_reply_times_out_at_once() -> None:
    app = DistributedApplication("memory://", name="deaf")

    @app.application("ask")
    async def hear(payload: int) -> None:
        """Not a responder."""

    with Harness(app) as harness, pytest.raises(RequestTimeout):
        harness.request("ask", 1, timeout=3600.0)


def test_published_payloads_are_read_as_the_type_that_is_asked_for() -> None:
    app = DistributedApplication("memory://", name="echo")

    @app.application("in")
    async def echo(payload: Reading, socket: Socket) -> None:
        await socket.publish("out/json", payload, headers={"a": "b"})
        await socket.publish("out/bytes", b"\x00")
        await socket.publish("out/nothing")

    with Harness(app) as harness:
        harness.publish("in", Reading("a", 1.0))
        harness.settle()
        assert harness.published("out/json") == [{"sensor": "a", "celsius": 1.0}]
        assert harness.published("out/json", type=Reading) == [Reading("a", 1.0)]
        assert harness.published("out/+")[1:] == [b"\x00", None]
        (message,) = harness.messages("out/json", type=Reading)
        assert message.topic == "out/json"
        assert message.headers["a"] == "b"
        assert message.source == "echo/0/echo"


def test_what_the_test_publishes_is_not_what_the_applications_publish() -> None:
    with Harness(plant()) as harness:
        harness.publish("somewhere/else", 1)
        harness.settle()
        assert harness.published() == []


def test_an_unexpected_failure_fails_the_test_with_its_own_traceback() -> None:
    app = DistributedApplication("memory://", name="frail")

    @app.application("in")
    async def fail(payload: int) -> None:
        raise ValueError("no such thing")

    with Harness(app) as harness:
        harness.publish("in", 1)
        with pytest.raises(HandlerFailed, match=r"frail/0/fail on 'in': ValueError") as caught:
            harness.settle()
        cause = caught.value.__cause__
        assert isinstance(cause, ValueError)
        assert cause.__traceback__ is not None
        last = cause.__traceback__
        while last.tb_next is not None:
            last = last.tb_next
        assert last.tb_frame.f_code.co_name == "fail"
        assert len(harness.failures) == 5
        (letter,) = harness.dead_letters()
        assert (letter.topic, letter.payload, letter.error) == ("in", b"1", "ValueError")
        assert (letter.actor, letter.attempts) == ("frail/0/fail", 5)
        harness.settle()


def test_several_failures_are_raised_as_a_group() -> None:
    app = DistributedApplication("memory://", name="frail")

    @app.application("in")
    async def first(payload: int) -> None:
        raise ValueError("first")

    @app.application("in")
    async def second(payload: int) -> None:
        raise KeyError("second")

    with Harness(app) as harness:
        harness.publish("in", 1)
        with pytest.raises(HandlerFailed) as caught:
            harness.settle()
        cause = caught.value.__cause__
        assert isinstance(cause, ExceptionGroup)
        assert {type(error) for error in cause.exceptions} == {ValueError, KeyError}


def test_expected_failures_do_not_fail_the_test() -> None:
    app = DistributedApplication("memory://", name="frail")

    @app.application("in", retry=RetryPolicy(attempts=1))
    async def fail(payload: int) -> None:
        raise ValueError("no such thing")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("in", 1)
        harness.settle()
        assert [str(failure.error) for failure in harness.failures] == ["no such thing"]
    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("in", 1)


def test_an_expected_failure_has_to_happen() -> None:
    with pytest.raises(HandlerFailed, match="ValueError"), Harness(plant()) as harness:
        harness.expect_failure(ValueError)


def test_what_a_handler_rejects_on_purpose_is_no_failure() -> None:
    app = DistributedApplication("memory://", name="strict")

    @app.application("in")
    async def reject(payload: int) -> None:
        raise Reject("not that")

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert [letter.text for letter in harness.dead_letters()] == ["not that"]


@pytest.mark.parametrize("kind", ["payload", "timer", "producer", "on_start"])
def test_failures_of_all_kinds_are_seen(kind: str) -> None:
    app = DistributedApplication("memory://", name="frail")

    def broken() -> None:
        raise ValueError("no such thing")

    @app.application("in")
    async def take(payload: int, context: Context) -> None:
        if kind == "timer":
            context.later(0.0, broken)

    @app.producer(every=60.0)
    async def produce() -> None:
        if kind == "producer":
            broken()

    class Starts(Actor):
        topics = ("else",)
        tries = 0

        async def on_start(self) -> None:
            Starts.tries += 1
            if kind == "on_start" and Starts.tries == 1:
                broken()

        async def on_message(self, payload: int) -> None:
            """Nothing."""

    app.add(Starts)
    with Harness(app) as harness:
        harness.publish("in", "text" if kind == "payload" else 1)
        with pytest.raises(HandlerFailed):
            harness.settle()
        assert [failure.where for failure in harness.failures] == [kind]


def test_leaving_the_block_settles_and_raises_what_is_left() -> None:
    app = DistributedApplication("memory://", name="frail")

    @app.application("in")
    async def fail(payload: int) -> None:
        raise ValueError("no such thing")

    with pytest.raises(HandlerFailed, match="no such thing"), Harness(app) as harness:
        harness.publish("in", 1)


def test_an_exception_in_the_block_is_not_replaced() -> None:
    app = DistributedApplication("memory://", name="frail")

    @app.application("in")
    async def fail(payload: int) -> None:
        raise ValueError("no such thing")

    with pytest.raises(ZeroDivisionError), Harness(app) as harness:
        _publish_and_fail(harness)


def _publish_and_fail(harness: Harness) -> None:
    harness.publish("in", 1)
    raise ZeroDivisionError


def test_what_happened_can_be_seen_afterwards() -> None:
    with Harness(plant()) as harness:
        harness.publish("plant/boiler/temperature", Reading("a", 95.0))
    assert harness.published("plant/alarms") == ["boiler: 95.0"]
    assert harness.state("watch") == Highest(95.0)
    assert harness.dead_letters() == []
    assert "publish plant/alarms" in harness.trace
    with pytest.raises(ConfigurationError, match="not in use"):
        harness.settle()
    with pytest.raises(ConfigurationError, match="not in use"):
        harness.publish("plant/boiler/temperature", Reading("a", 95.0))


def test_time_jumps_over_sleeps_and_backoff() -> None:
    app = DistributedApplication("memory://", name="slow")
    tries: list[float] = []

    @app.application("in", retry=RetryPolicy(hold=1000.0))
    async def slowly(payload: int, socket: Socket, context: Context) -> None:
        tries.append(context.now())
        await asyncio.sleep(60.0)
        if context.attempt < 3:
            raise OSError("try again")
        await socket.publish("out", payload)

    with Harness(app, allow_failures=OSError) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]
        assert harness.time > 120.0
        assert tries[1] - tries[0] > 60.0


def test_settle_does_not_wait_for_what_is_only_due_later() -> None:
    app = DistributedApplication("memory://", name="clock")

    @app.producer(every=10.0)
    async def tick(socket: Socket) -> None:
        await socket.publish("tick", 1)

    @app.producer()
    async def forever(socket: Socket) -> None:
        while True:
            await socket.publish("tock", 1)
            await asyncio.sleep(25.0)

    @app.application("in")
    async def remind(payload: int, socket: Socket, context: Context) -> None:
        context.later(30.0, socket.post, "reminder", payload)

    with Harness(app) as harness:
        harness.publish("in", 7)
        harness.settle()
        assert harness.time == 0.0
        assert harness.published("tick") == [1]
        harness.advance(29.0)
        assert len(harness.published("tick")) == 3
        assert len(harness.published("tock")) == 2
        assert harness.published("reminder") == []
        harness.advance(1.0)
        assert harness.published("reminder") == [7]
        harness.advance(3600.0)
        assert len(harness.published("tick")) == 364
        assert harness.time == 3630.0


def test_def_handlers_run_in_their_threads() -> None:
    app = DistributedApplication("memory://", name="threads")

    @app.application("in", concurrency=4, state=Log)
    def work(payload: int, state: Log, socket: SyncSocket, context: Context) -> None:
        state.lines.append(f"{context.now():.0f}")
        socket.publish("out", payload)
        socket.post("out", -payload)

    with Harness(app) as harness:
        for number in range(1, 21):
            harness.publish("in", number, key=str(number))
        harness.settle()
        assert sorted(harness.published("out")) == [n for n in range(-20, 21) if n]
        assert sum(len(state.lines) for state in harness.state("work")) == 20


def test_handlers_run_in_the_thread_of_a_plain_test() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table readings (celsius)")
    app = DistributedApplication("memory://", name="store")

    @app.application("in")
    async def store(payload: float) -> None:
        database.execute("insert into readings values (?)", (payload,))

    with Harness(app) as harness:
        harness.publish("in", 1.5)
        harness.settle()
        assert database.execute("select * from readings").fetchall() == [(1.5,)]
    database.close()


def test_several_applications_share_the_world() -> None:
    asking = DistributedApplication("mqtt://broker", name="asking")
    answering = DistributedApplication("mqtt://broker", name="answering")

    @asking.application("in")
    async def ask(payload: int, socket: Socket) -> None:
        await socket.publish("out", await socket.request("double", payload, reply=int))

    @answering.application("double")
    async def double(payload: int) -> int:
        return 2 * payload

    with Harness(asking, answering) as harness:
        harness.publish("in", 4)
        harness.settle()
        assert harness.published("out") == [8]


def test_retained_messages_reach_who_comes_later() -> None:
    with Harness(plant()) as harness:
        harness.stop()
        harness.publish("plant/boiler/temperature", Reading("a", 95.0), retain=True)
        harness.settle()
        assert harness.published() == []
        harness.restart()
        harness.settle()
        assert harness.published("plant/alarms") == ["boiler: 95.0"]


@pytest.mark.parametrize("address", ["mqtt://broker", "memory://retained"])
def test_an_actor_gets_retained_messages_as_its_option_says(address: str) -> None:
    app = DistributedApplication(address, name="app")

    @app.application("in", name="new")
    @app.application("in", name="always", retained="always")
    @app.application("in", name="never", retained="never")
    async def note(payload: int, context: Context, socket: Socket) -> None:
        await socket.publish("out", context.actor)

    with Harness(app) as harness:
        harness.publish("in", 1, retain=True)
        harness.settle()
        assert sorted(harness.published("out")) == ["always", "never", "new"]
        harness.restart()
        harness.settle()
        assert harness.published("out")[3:] == ["always"]


def test_actors_that_share_a_subscription_agree_on_retained_messages() -> None:
    app = DistributedApplication("mqtt://broker", name="app")

    @app.application("in", name="one", subscription="both")
    @app.application("in", name="two", subscription="both", retained="never")
    async def note(payload: int) -> None: ...

    with (
        pytest.raises(ConfigurationError, match="share subscription 'both' but differ in retained"),
        Harness(app),
    ):
        pass


def test_an_application_is_as_before_when_the_harness_is_done() -> None:
    app = plant()
    environment, identity, stats = app.environment, app.identity, app.stats
    for _ in range(2):
        with Harness(app) as harness:
            assert app.environment is not environment
            assert harness.stats["messages.handled"] == 0
            harness.publish("plant/boiler/temperature", Reading("a", 95.0))
    assert (app.environment, app.identity, app.stats) == (environment, identity, stats)
    assert not stats


def test_an_application_that_stops_itself_stops() -> None:
    app = DistributedApplication("memory://", name="brief")

    @app.application("end")
    async def end(payload: None) -> None:
        app.stop()

    with Harness(app) as harness:
        harness.publish("end")
        harness.settle()
        assert not app.healthy
        harness.publish("end")


def test_an_application_that_can_not_start_says_so() -> None:
    app = DistributedApplication("memory://", name="twice")

    class Never(Actor):
        topics = ("in",)

        async def on_start(self) -> None:
            raise ValueError("no such thing")

        async def on_message(self, payload: int) -> None:
            """Nothing."""

    app.add(Never)
    with pytest.raises(Exception, match="no such thing"), Harness(app):
        pass
    assert not app.healthy


def test_mistakes_in_using_it_are_named() -> None:
    app = plant()
    with pytest.raises(ConfigurationError, match="needs an application"):
        Harness()
    with pytest.raises(ConfigurationError, match="not in use"):
        Harness(app).settle()
    with Harness(app) as harness:
        with pytest.raises(ConfigurationError, match="is already running"):
            Harness(app).__enter__()
        with pytest.raises(ConfigurationError, match="there are: watch, Boiler"):
            harness.state("unknown")
        with pytest.raises(ConfigurationError, match="bus"):
            harness.publish("a", bus="mqtt://elsewhere")
        with pytest.raises(ConfigurationError, match="advance"):
            harness.advance(-1.0)
        with pytest.raises(ConfigurationError, match="_spa"):
            harness.publish("_spa/direct/plant/watch", 1)


def test_handlers_can_not_let_time_go_by() -> None:
    app = DistributedApplication("memory://", name="eager")
    told: list[str] = []

    @app.application("in")
    async def eager(payload: int) -> None:
        try:
            harness.settle()
        except ConfigurationError as error:
            told.append(str(error))

    with Harness(app) as harness:
        harness.publish("in", 1)
    assert "not for handlers" in told[0]


def test_no_application_is_mistaken_for_the_harness() -> None:
    with pytest.raises(ConfigurationError, match="harness"):
        Harness(DistributedApplication("memory://", name="harness"))


@pytest.mark.parametrize("years", [1.0, 3.0, 100.0])
def test_time_may_go_by_in_years(years: float) -> None:
    app = DistributedApplication("mqtt://broker", name="calendar")
    seen: list[int] = []

    @app.application("in")
    async def see(payload: int) -> None:
        await asyncio.sleep(1.0)
        seen.append(payload)

    with Harness(app) as harness:
        harness.advance(years * 365.25 * 86_400.0)
        harness.publish("in", 1)
        harness.settle()
        assert seen == [1]
