"""Actors in child processes can do what other actors can."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pydantic
import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Message,
    Reject,
    RestartPolicy,
    RetryPolicy,
    Socket,
    SyncSocket,
    on,
)
from spa_dat.errors import (
    ConfigurationError,
    MessageTooLarge,
    NoResponder,
    RemoteError,
    RequestTimeout,
    RestartLimitReached,
)
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.dead_letters._stored_letter import LetterFilter
from spa_dat.runtime.hosting._process_worker import ProcessWorker
from spa_dat.runtime.processes._frames import Returned, StopActor
from spa_dat.transports import MemoryConfig, MemoryProvider
from support.processes import collect, make
from support.waiting import eventually

# Payloads whose classes are defined beside the handler.


class Inner(msgspec.Struct, frozen=True, tag="inner"):
    """A struct that another one has."""

    number: int


class Reading(msgspec.Struct, kw_only=True, rename="camel"):
    """A struct with all that msgspec offers."""

    sensor_name: str
    inner: Inner
    values: list[float] = msgspec.field(default_factory=list)

    def total(self) -> float:
        return sum(self.values)


class Model(pydantic.BaseModel):
    """A model of pydantic."""

    name: str
    child: Data | None = None


@dataclass
class Data:
    """A dataclass, named before it is defined."""

    number: int


Model.model_rebuild()


@pytest.mark.parametrize(
    ("kind", "sent", "result"),
    [
        (
            Reading,
            {"sensorName": "a", "inner": {"type": "inner", "number": 4}, "values": [1, 2]},
            "Reading",
        ),
        (Model, {"name": "b", "child": {"number": 3}}, "Model"),
        (Data, {"number": 7}, "Data"),
        (int, 7, "int"),
        (dict[str, int], {"a": 1}, "dict"),
        (Literal["on", "off"], "on", "str"),
    ],
)
async def test_payloads_are_decoded_in_the_process(kind: Any, sent: Any, result: str) -> None:
    app = make()
    got = collect(app, "out")

    async def work(payload: Any, socket: Socket) -> None:
        await socket.publish("out", [type(payload).__name__, payload])

    work.__annotations__["payload"] = kind
    app.application("in", placement="process")(work)
    async with app:
        await app.socket().publish("in", sent)
        await eventually(lambda: got or app.stats["dead_letters.stored"])
    assert got == [[result, sent]] or (kind is Reading and got[0][0] == result)


async def test_events_in_structured_mode_are_handled_in_the_process() -> None:
    provider = MemoryProvider(MemoryConfig())
    app = make(provider)
    got = collect(app, "out")
    kind = "application/cloudevents+json"
    document = b'{"specversion":"1.0","id":"A1","source":"s","type":"t","data":"no number"}'

    @app.application("in", placement="process")
    async def work(number: int, message: Message[int], socket: Socket) -> None:
        await socket.publish("out", [number, message.id])

    async with app:
        await app.socket().publish("in", document, content_type=kind)
        await app.socket().publish("in", b"{}", content_type=kind)
        good = document.replace(b'"no number"', b"5")
        await app.socket().publish("in", good, content_type=kind)
        await eventually(lambda: got and app.stats["dead_letters.stored"] == 2)
    assert got == [[5, "A1"]]
    letters = provider.broker.retained.values()
    assert sorted(letter.payload for letter in letters) == sorted([document, b"{}"])
    assert {letter.content_type for letter in letters} == {kind}


async def test_trace_and_correlation_go_through_the_process() -> None:
    app = make()
    got: list[tuple[str, str | None, str]] = []

    @app.application("in", placement="process")
    async def work(message: Message[int], socket: Socket) -> None:
        await socket.publish("out", message.correlation_id)

    @app.application("out", name="collector")
    async def take(message: Message[str]) -> None:
        headers = message.headers
        got.append((headers["traceparent"], message.correlation_id, message.payload))

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with app:
        headers = {"traceparent": trace, "correlationid": "txn-7"}
        await app.socket().publish("in", 1, headers=headers)
        await eventually(lambda: got)
    assert got == [(trace, "txn-7", "txn-7")]


async def test_lambdas_closures_partials_and_defaults_are_shipped() -> None:
    app = make()
    factor = 3
    double: Callable[[int], int] = lambda number: 2 * number  # noqa: E731
    helper: Callable[[int], int] = functools.partial(max, 5)

    @app.application("in", placement="process")
    async def work(payload: int, plus: int = 1) -> int:
        return helper(double(payload) * factor) + plus

    async with app:
        assert await app.socket().request("in", 10, reply=int) == 61
        assert await app.socket().request("in", 0, reply=int) == 6


async def test_def_handlers_have_a_thread_and_a_blocking_socket_there() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    def work(payload: str, socket: SyncSocket, context: Context) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        socket.publish("out", [payload, in_main, context.attempt, context.actor, context.app])

    async with app:
        await app.socket().publish("in", "x")
        await eventually(lambda: got)
    assert got == [["x", False, 1, "work", "plant"]]


async def test_what_a_handler_has_started_there_can_be_terminated() -> None:
    app = make()

    @app.application("in", placement="process")
    def work(payload: str) -> list[int | None]:
        # Both end with the test's process, if nothing else ends them.
        ended: list[int | None] = []
        command = [sys.executable, "-c", "print(flush=True); import sys; sys.stdin.read()"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as program:
            assert program.stdout is not None
            program.stdout.readline()
            program.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended.append(program.wait(10))
            program.kill()
        ours, theirs = multiprocessing.Pipe()
        forked = multiprocessing.get_context("fork").Process(target=theirs.recv)
        forked.start()
        forked.terminate()
        forked.join(10)
        ended.append(forked.exitcode)
        forked.kill()
        ours.close()
        return ended

    async with app:
        assert await app.socket().request("in", "x", reply=list[int | None]) == [-15, -15]


async def test_requests_go_both_ways_and_errors_keep_their_class() -> None:
    app = make(MemoryProvider(MemoryConfig(max_payload=10_000)))

    @app.application("double")
    async def double(payload: int) -> int:
        if payload < 0:
            raise RemoteError("negative", "give a positive number")
        return 2 * payload

    @app.application("relay", placement="process")
    async def relay(payload: dict[str, Any], socket: Socket) -> Any:
        try:
            what = payload["what"] if payload["what"] != "large" else "x" * 20_000
            return await socket.request(payload["to"], what, reply=int, timeout=5)
        except RemoteError as error:
            return [error.code, error.text]
        except (NoResponder, RequestTimeout, MessageTooLarge, ConfigurationError) as error:
            return type(error).__name__

    async with app:
        socket = app.socket()

        async def ask(payload: Any) -> Any:
            return await socket.request("relay", payload, reply=object)

        assert await ask({"to": "double", "what": 4}) == 8
        assert await ask({"to": "double", "what": -4}) == ["negative", "give a positive number"]
        assert await ask({"to": "nobody", "what": 4}) == "NoResponder"
        assert await ask({"to": "double", "what": "large"}) == "MessageTooLarge"
        assert await ask({"to": "double/+", "what": 1}) == "ConfigurationError"


async def test_replies_go_only_where_the_application_allows_it() -> None:
    app = make(reply_topics=["allowed/#"])
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(message: Message[int]) -> int:
        return 2 * message.payload

    async with app:
        socket = app.socket()
        for topic in ("out", "elsewhere", "$sys"):
            message = {"response_topic": topic}
            try:
                await socket.publish("in", 1, **message)  # type: ignore[call-overload]
            except (ConfigurationError, TypeError):
                continue
        assert await socket.request("in", 4, reply=int) == 8
    assert got == []


async def test_subscriptions_at_run_time_work_in_the_process() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(message: Message[str], socket: Socket) -> None:
        if message.payload.startswith("+"):
            await socket.subscribe(message.payload[1:])
        elif message.payload.startswith("-"):
            await socket.unsubscribe(message.payload[1:])
        await socket.publish("out", [message.topic, message.payload])

    async with app:
        socket = app.socket()
        await socket.publish("in", "+more/#")
        await eventually(lambda: len(got) == 1)
        await socket.publish("more/a", "x")
        await eventually(lambda: len(got) == 2)
        await socket.publish("in", "-more/#")
        await eventually(lambda: len(got) == 3)
        await socket.publish("more/a", "y")
        await socket.publish("in", "z")
        await eventually(lambda: len(got) == 4)
    assert got == [["in", "+more/#"], ["more/a", "x"], ["in", "-more/#"], ["in", "z"]]


async def test_batches_come_together_there() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process", batch=(5, 0.2))
    async def work(payload: list[int], socket: Socket) -> None:
        await socket.publish("out", payload)

    async with app:
        for number in range(12):
            app.socket().post("in", number)
        await eventually(lambda: sum(map(len, got)) == 12)
    assert got[0] == [0, 1, 2, 3, 4]
    assert [number for batch in got for number in batch] == list(range(12))


async def test_a_batch_that_ends_its_process_is_taken_apart() -> None:
    app = make()
    got = collect(app, "out")

    @app.application(
        "in", placement="process", batch=(4, 0.05), retry=RetryPolicy(attempts=2, first=0.01)
    )
    async def work(payload: list[int], socket: Socket) -> None:
        if 2 in payload:
            os._exit(1)
        await socket.publish("out", payload)

    async with app:
        for number in range(4):
            app.socket().post("in", number)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        await eventually(lambda: sum(map(len, got)) == 3)
    assert sorted(number for batch in got for number in batch) == [0, 1, 3]


async def test_handlers_that_raise_are_retried_there_and_become_dead_letters() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process", retry=RetryPolicy(attempts=3, first=0.01))
    async def work(payload: str, socket: Socket, context: Context) -> None:
        await socket.publish("out", [payload, context.attempt])
        if payload == "reject":
            raise Reject("not this one")
        if context.attempt < 3 or payload == "always":
            raise ValueError(payload)

    async with app:
        for text in ("once", "reject", "always"):
            await app.socket().publish("in", text)
        await eventually(lambda: app.stats["dead_letters.stored"] == 2)
        await eventually(lambda: app.stats["messages.failed"] == 6)
        run = runs_of(app).current
        assert run is not None
        letters = run.dead_letters
        (name, *_) = [
            letter.name async for _, letter in letters.search.stored(LetterFilter(error="not"))
        ]
        again = await letters.replay(name)
        assert (again.outcome, again.why) == ("failed", "Reject: not this one")
        replays = {letter.error: letter.replays async for _, letter in letters.search.stored()}
        assert replays == {"Reject": 1, "ValueError": 0}
    assert got == [
        ["once", 1], ["once", 2], ["once", 3],
        ["reject", 1],
        ["always", 1], ["always", 2], ["always", 3],
        ["reject", 1],
    ]  # fmt: skip


async def test_what_expires_while_it_waits_for_the_process_is_not_handled() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(number: int, socket: Socket) -> None:
        if number == 0:
            await asyncio.sleep(1.5)
        await socket.publish("out", number)

    async with app:
        socket = app.socket()
        for number, expiry in enumerate([None, 1.0, 100.0, None]):
            await socket.publish("in", number, expiry=expiry)
        await eventually(lambda: len(got) == 3)
        await eventually(lambda: app.stats["messages.expired"] == 1)
    assert got == [0, 2, 3]


async def test_what_cannot_be_decoded_becomes_a_dead_letter() -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: int) -> int:
        return payload

    async with app:
        await app.socket().publish("in", "text")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        with pytest.raises(RemoteError) as caught:
            await app.socket().request("in", "text")
        assert caught.value.code == "bad-request"


# Resources.


@contextmanager
def a_file(folder: Path) -> Iterator[Path]:
    path = folder / f"open-{os.getpid()}"
    path.write_text("")
    yield path
    path.unlink()


@asynccontextmanager
async def an_async_file(folder: Path) -> AsyncIterator[Path]:
    path = folder / f"async-{os.getpid()}"
    path.write_text("")
    yield path
    path.unlink()


async def test_resources_are_opened_and_closed_in_the_process(tmp_path: Path) -> None:
    app = make()
    got = collect(app, "out")
    app.resource("shared", functools.partial(an_async_file, tmp_path))
    app.resource("unused", functools.partial(an_async_file, tmp_path / "unused"))
    app.remove("collector")
    app.resource("lock", threading.Lock())
    got = collect(app, "out")

    @app.application(
        "in", placement="process", ressources={"own": functools.partial(a_file, tmp_path)}
    )
    async def work(payload: int, own: Path, shared: Path, socket: Socket) -> None:
        await socket.publish("out", [own.name, shared.name])

    (tmp_path / "unused").mkdir()
    async with app:
        await app.socket().publish("in", 1)
        await eventually(lambda: got)
        own, shared = got[0]
        assert (tmp_path / own).exists()
        assert (tmp_path / shared).exists()
        assert own.partition("-")[2] == shared.partition("-")[2] != str(os.getpid())
    assert not (tmp_path / own).exists()
    assert not (tmp_path / shared).exists()


async def test_a_resource_that_cannot_be_opened_there_ends_the_start() -> None:
    app = make()

    def fail() -> Any:
        raise OSError("no such database")

    @app.application("in", placement="process", ressources={"db": fail})
    async def work(payload: int, db: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"resource 'db' failed to open.*no such database"):
        async with app:
            pass


async def test_an_on_start_that_fails_ends_the_start() -> None:
    app = make(restart=RestartPolicy(intensity=1, backoff_min=0.01))

    class Broken(Actor):
        placement = "process"

        async def on_start(self) -> None:
            raise ValueError("not today")

        @on("in")
        async def work(self, payload: int) -> None: ...

    app.add(Broken)
    with pytest.raises(RestartLimitReached, match="not today"):
        async with app:
            pass


# Producers, timers, stop.


async def test_a_producer_runs_in_a_process_of_its_own_at_its_rate() -> None:
    app = make()
    got = collect(app, "out")

    @app.producer(every=0.05, placement="process")
    async def tick(socket: Socket) -> None:
        await socket.publish("out", os.getpid())

    async with app:
        await eventually(lambda: len(got) >= 3)
        assert set(got) != {os.getpid()}
        assert len(set(got)) == 1


async def test_an_application_ends_when_its_only_producer_has_run_there(tmp_path: Path) -> None:
    app = make()

    @app.producer(placement="process")
    async def once() -> None:
        (tmp_path / "done").write_text(str(os.getpid()))

    async with app:
        await asyncio.wait_for(app.wait(), 60)
    assert (tmp_path / "done").read_text() != str(os.getpid())


async def test_a_producer_that_fails_there_ends_the_application() -> None:
    app = make()

    @app.producer(placement="process")
    async def once() -> None:
        raise ValueError("it is broken")

    with pytest.raises(Exception, match="it is broken"):
        async with app:
            await asyncio.wait_for(app.wait(), 60)


async def actor_ended(app: DistributedApplication, name: str) -> None:
    """Wait until an actor has ended."""
    run = app._runs.current
    assert run is not None
    await eventually(lambda: [one.ended for one in run.actors if one.name == name] == [True])


async def test_later_and_stop_work_there() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: str, socket: Socket, context: Context) -> None:
        if payload == "stop":
            context.stop()
            return

        async def later() -> None:
            await socket.publish("out", f"later {payload}")

        context.later(0.01, later)

    async with app:
        await app.socket().publish("in", "x")
        await eventually(lambda: got == ["later x"])
        await app.socket().publish("in", "stop")
        await app.socket().publish("in", "y")
        await actor_ended(app, "work")
    assert got == ["later x"]


async def test_what_is_sent_before_the_parent_hears_of_a_stop_is_not_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops: list[Callable[[], None]] = []
    returned: list[tuple[int, int]] = []
    received = ProcessWorker._received

    def hear_of_stops_later(self: ProcessWorker, frame: Any) -> None:
        if isinstance(frame, StopActor):
            stops.append(functools.partial(received, self, frame))
            return
        if isinstance(frame, Returned):
            returned.extend(frame.deliveries)
        received(self, frame)

    monkeypatch.setattr(ProcessWorker, "_received", hear_of_stops_later)
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: str, socket: Socket, context: Context) -> None:
        if payload == "stop":
            context.stop()
        else:
            await socket.publish("out", payload)

    async with app:
        await app.socket().publish("in", "stop")
        await eventually(lambda: stops)
        await app.socket().publish("in", "y")
        await eventually(lambda: returned or got)
        stops.pop()()
        await actor_ended(app, "work")
    assert got == []


async def test_what_is_logged_there_reaches_the_loggers_of_the_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: str, context: Context) -> str:
        context.log.warning("seen %s", payload, extra={"order": 5, "where": {"at": [1, "x"]}})
        logging.getLogger("shop.orders").error("an order")
        logging.getLogger("shop.quiet").info("not shown")
        print("to standard output")
        return payload

    with caplog.at_level(logging.WARNING):
        async with app:
            await app.socket().request("in", "x\ny")
            await eventually(lambda: len(caplog.records) >= 2)
    found = {record.name: record for record in caplog.records}
    assert found["spa_dat.actor"].getMessage() == "seen x\ny"
    seen = found["spa_dat.actor"].__dict__
    assert (seen["order"], seen["where"]) == (5, {"at": [1, "x"]})
    assert found["shop.orders"].getMessage() == "an order"
    for values in (seen, found["shop.orders"].__dict__):
        where = [values[f"spa_dat_{name}"] for name in ("application", "instance", "actor")]
        assert where == ["plant", "0", "work"]
        assert (values["spa_dat_topic"], values["spa_dat_attempt"]) == ("in", 1)
        assert values["spa_dat_message_id"]
    assert "shop.quiet" not in found


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


async def test_context_variables_are_each_messages_own() -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: str) -> str:
        before = VARIABLE.get()
        VARIABLE.set(payload)
        return before

    async with app:
        for text in ("a", "b"):
            assert await app.socket().request("in", text) == b""


# Several processes.


async def test_without_a_key_whichever_process_is_free_gets_the_next_message() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process", processes=2)
    async def work(payload: int, socket: Socket) -> None:
        time.sleep(0.05)
        await socket.publish("out", [payload, os.getpid()])

    async with app:
        for number in range(12):
            await app.socket().publish("in", number)
        await eventually(lambda: len(got) == 12)
    assert sorted(number for number, _ in got) == list(range(12))
    pids = [pid for _, pid in got]
    assert len(set(pids)) == 2
    assert all(pids.count(pid) >= 3 for pid in pids)


async def test_what_a_process_gets_in_advance_is_no_more_than_its_share(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    app = make()

    @app.application("in", placement="process", processes=2)
    async def work(payload: int) -> None:
        await eventually(gate.exists)

    async with app:
        run = runs_of(app).current
        assert run is not None
        (actor,) = run.actors
        lane: Any = actor.lanes[0]
        for worker in lane.workers:
            # As after many that took 10 ms each.
            worker._credit, worker._a_message = 5, 0.01
        for number in range(9):
            await app.socket().publish("in", number)
        await eventually(lambda: len(lane.outlet) + sum(one.load for one in lane.workers) == 9)
        # Whoever is done first gets the next of the others: neither is idle before the end.
        assert [one.load for one in lane.workers] == [2, 2]
        assert len(lane.outlet) == 5
        gate.touch()
        await eventually(lambda: app.stats["messages.handled"] == 9)


async def test_with_a_key_each_process_has_its_keys() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in/{key}", placement="process", processes=2, key="key", concurrency=2)
    async def work(key: str, payload: int, socket: Socket) -> None:
        await asyncio.sleep(0.001 * (payload % 3))
        await socket.publish("out", [key, payload, os.getpid()])

    async with app:
        for number in range(60):
            await app.socket().publish(f"in/{number % 6}", number)
        await eventually(lambda: len(got) == 60)
    assert len({pid for _, _, pid in got}) == 2
    for key in map(str, range(6)):
        mine = [(number, pid) for one, number, pid in got if one == key]
        assert [number for number, _ in mine] == sorted(number for number, _ in mine)
        assert len({pid for _, pid in mine}) == 1


# Programs.


def run_program(tmp_path: Path, text: str, *options: str) -> str:
    program = tmp_path / "program.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, *options, str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_defined_in_the_program_itself_is_shipped(tmp_path: Path) -> None:
    out = run_program(
        tmp_path,
        """
from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec
from spa_dat import Actor, DistributedApplication, Socket, on, run

app = DistributedApplication("memory://", name="plant")
RATE = 3

class Part(msgspec.Struct):
    number: int

@dataclass
class Order:
    part: Part
    count: int = 1

def helper(order: Order) -> int:
    return order.part.number * order.count * RATE

@app.application("in", placement="process")
async def work(order: Order, socket: Socket) -> int:
    return helper(order)

class Other(Actor):
    placement = "process"

    @on("other")
    async def work(self, order: Order) -> Part:
        return Part(number=helper(order))

app.add(Other)

@app.producer()
async def send(socket: Socket) -> None:
    order = Order(Part(2), 5)
    print(await socket.request("in", order, reply=int))
    print(await socket.request("other", order, reply=Part))
    app.stop()

run(app)
""",
    )
    assert out == "30\nPart(number=30)\n"


async def test_a_module_that_runs_its_application_when_it_is_imported_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(
        """
from spa_dat import DistributedApplication, run

app = DistributedApplication("memory://", name="shop")

@app.application("in", placement="process")
async def work(payload: int) -> int:
    return payload

run(app)
"""
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", "import shop"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode != 0
    assert 'write `if __name__ == "__main__":` above it' in done.stderr


@pytest.mark.parametrize("frozen", [False, True])
def test_a_program_that_is_its_own_interpreter_is_refused_and_not_started_without_end(
    tmp_path: Path, frozen: bool
) -> None:
    # An interpreter that runs the program, whatever it is told.
    embedding = tmp_path / "embedding"
    embedding.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'program.py'}\n")
    embedding.chmod(0o755)
    out = run_program(
        tmp_path,
        f"""
import asyncio, sys
from spa_dat import DistributedApplication

print("started", flush=True)
if {frozen}:
    sys.frozen = True
else:
    # As where Python is embedded: it takes no notice of arguments.
    sys.executable = {str(embedding)!r}
app = DistributedApplication("memory://", name="plant")

@app.application("in", placement="process")
def work(number: int) -> None: ...

async def main() -> None:
    async with app:
        pass

try:
    asyncio.run(main())
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}", flush=True)
""",
    )
    starts = out.count("started\n")
    assert starts == 1 if frozen else starts >= 2
    assert "ConfigurationError: actor 'work' has placement='process', which needs a Python" in out
