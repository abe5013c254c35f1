"""Stopping what does not want to stop: signals, cancellation that is swallowed, work given up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import signal
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from spa_dat import Actor, DistributedApplication, on
from spa_dat.runtime.application import _program, _signals
from spa_dat.runtime.application._application import runs_of
from spa_dat.testing import Mosquitto
from spa_dat.transports.memory import MemoryProvider
from support.program import Program, Start
from support.simulated import SERVER, world
from support.waiting import eventually

_MAKE = textwrap.indent(
    """
async def stubborn():
    while True:
        try:
            await asyncio.sleep(1000)
        except BaseException:
            say("swallowed")

def make(**options):
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
    app = DistributedApplication("memory://", name="plant", stop_timeout=0.1, **options)

    @app.producer()
    async def produce(socket: Socket) -> None:
        await socket.publish("a", "x")
        await asyncio.sleep(1000)

    return app
""",
    8 * " ",
)


# A second signal.


@pytest.mark.parametrize(
    "blocking",
    [
        "time.sleep(1000)",
        "while True: pass",
        # It waits in the operating system, and no handler of the interpreter's gets its turn.
        "m = ctypes.create_string_buffer(64); [C.pthread_mutex_lock(m) for _ in range(2)]",
    ],
    ids=["sleep", "busy", "system"],
)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_program_whose_loop_is_blocked(
    start: Start, blocking: str, second: signal.Signals
) -> None:
    program = start(
        f"""
        import ctypes
        C = ctypes.CDLL(None)
        {_MAKE}
        app = make()

        @app.application("a")
        async def handler(payload: str) -> None:
            say("blocked")
            {blocking}

        app.run()
        """
    )
    program.read_until("blocked")
    program.signal(signal.SIGTERM)
    program.read_until("SIGTERM: stopping; a second signal ends the program at once")
    program.signal(second)
    code, said, _ = program.end()
    assert code == 128 + second
    assert said == [f"{second.name} again: ending at once"]


def test_a_second_signal_ends_a_program_that_can_not_write_its_log(start: Start) -> None:
    program = start(
        f"""
        {_MAKE}
        app = make()

        @app.application("a")
        async def handler(payload: str) -> None:
            lock = logging.getLogger().handlers[0].lock
            say("blocked")
            with lock:
                time.sleep(1000)

        app.run()
        """
    )
    program.read_until("blocked")
    # Two of a kind that come at once are one.
    program.signal(signal.SIGTERM)
    program.signal(signal.SIGINT)
    code, _, _ = program.end()
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)],
    ids=["TERM INT", "INT TERM"],
)
@pytest.mark.parametrize("seen_by", ["both", "the thread", "one each"])
async def test_of_two_signals_that_are_seen_at_once_the_second_ends_the_program(
    monkeypatch: pytest.MonkeyPatch,
    first: signal.Signals,
    second: signal.Signals,
    seen_by: str,
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(_signals, "_exit", lambda code, *words: ends.append(code))
    signals = _signals.Signals(1000)
    signals.install(lambda: None)
    try:
        assert signals._sender is not None
        # What is handled by the interpreter alone came before what wakes the thread.
        signals._sender.send(bytes((second,) if seen_by == "one each" else (first, second)))
        if seen_by != "the thread":
            # It goes by their numbers.
            for number in sorted((first, second)):
                signals._on_signal(number, None)
        await eventually(lambda: ends)
    finally:
        signals.restore()
        # What it still has to read would end the next test, or all of them.
        for thread in threading.enumerate():
            if thread.name == "spa_dat signals":
                thread.join()
    if seen_by == "one each":
        # That one came first, as far as anybody can tell.
        second = first
    assert ends[0] == 128 + second


def test_the_signals_of_processes_that_it_forks_are_theirs(start: Start) -> None:
    program = start(
        f"""
        import multiprocessing, os, signal, warnings
        warnings.simplefilter("ignore")
        # What was started in the background of a shell ignores it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        {_MAKE}
        app = make()

        def work(ready):
            ready.send("ready")
            time.sleep(1000)

        @app.application("a")
        async def handler(payload: str) -> None:
            fork = multiprocessing.get_context("fork")
            for number in (signal.SIGTERM, signal.SIGINT):
                ours, theirs = fork.Pipe()
                child = fork.Process(target=work, args=(theirs,))
                child.start()
                ours.recv()
                os.kill(child.pid, number)
                child.join()
                say(signal.Signals(number).name, child.exitcode)
            app.stop()

        app.run()
        """
    )
    code, said, _ = program.end()
    assert code == 0
    assert [line for line in said if "SIG" in line] == ["SIGTERM -15", "SIGINT 1"]


def test_a_signal_to_a_process_that_was_forked_this_moment_is_its_own(start: Start) -> None:
    program = start(
        f"""
        import os, signal
        {_MAKE}
        app = make()

        def fork_and_end():
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                os.close(writer)
                os.read(reader, 1)  # until the parent ends
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.close(reader)
            os.close(writer)
            return code

        @app.application("a")
        async def handler(payload: str) -> None:
            say(*{{fork_and_end() for _ in range(50)}})
            app.stop()

        app.run()
        """
    )
    code, said, _ = program.end()
    assert code == 0
    assert "-15" in said
    assert not any("SIGTERM" in line for line in said)


def test_signals_are_heard_whatever_the_default_timeout_of_sockets_is(start: Start) -> None:
    program = start(
        f"""
        import socket
        socket.setdefaulttimeout(0.0)
        {_MAKE}
        app = make()

        @app.application("a")
        async def handler(payload: str) -> None:
            say("ready")
            while True:
                pass

        app.run()
        """
    )
    program.read_until("ready")
    program.signal(signal.SIGTERM)
    program.signal(signal.SIGINT)
    code, _, err = program.end()
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)], ids=["one", "two"]
)
def test_a_program_that_has_used_up_all_threads_stops_nevertheless(
    start: Start, signals: tuple[signal.Signals, ...]
) -> None:
    program = start(
        f"""
        import threading
        {_MAKE}
        app = make()

        @app.application("a")
        async def handler(payload: str) -> None:
            def refuse(thread):
                raise RuntimeError("can't start new thread")

            threading.Thread.start = refuse
            say("ready")
            if {len(signals)} > 1:
                time.sleep(1000)

        app.run()
        """
    )
    program.read_until("ready")
    for number in signals:
        program.signal(number)
    code, said, err = program.end()
    assert "Traceback" not in err
    if len(signals) > 1:
        assert code in {128 + number for number in signals}
    else:
        assert code == 0
        assert any(line.startswith("application 'plant' instance '0' has stopped") for line in said)


def test_a_time_to_stop_that_no_thread_can_wait_for_is_only_long(start: Start) -> None:
    program = start(
        f"""
        {_MAKE.replace("stop_timeout=0.1", "stop_timeout=1e12")}
        app = make()

        @app.application("a")
        async def handler(payload: str) -> None:
            say("ready")

        app.run()
        """
    )
    program.read_until("ready")
    program.signal(signal.SIGTERM)
    code, _, err = program.end()
    assert (code, err) == (0, "")


def test_a_signal_that_the_program_takes_over_is_its_own(start: Start) -> None:
    program = start(
        f"""
        import signal
        {_MAKE}
        app = make()

        @app.application("a")
        async def handler(payload: str) -> None:
            signal.signal(signal.SIGTERM, lambda *_: say("reloading"))
            say("ready")
            await asyncio.sleep(1000)

        app.run()
        """
    )
    program.read_until("ready")
    program.signal(signal.SIGTERM)
    program.read_until("reloading")
    program.signal(signal.SIGINT)
    code, said, _ = program.end()
    assert code == 1
    assert said[0] == "SIGINT: stopping; a second signal ends the program at once"


def test_a_loop_that_is_blocked_at_the_stop_does_not_keep_the_program(start: Start) -> None:
    program = start(
        f"""
        {_MAKE}
        import spa_dat.runtime.application._signals as signals
        signals._LONGEST_REST = signals._SIGN_OF_LIFE = 0.3
        app = make(blocked_after=None)

        @app.application("a")
        async def handler(payload: str) -> None:
            try:
                say("ready")
                await asyncio.sleep(1000)
            finally:
                time.sleep(1000)

        app.run()
        """
    )
    program.read_until("ready")
    program.signal(signal.SIGTERM)
    code, said, _ = program.end()
    assert code == 1
    assert said[-1].startswith("the program cannot stop: its event loop is blocked: handler at ")


# What swallows its cancellation.


@pytest.mark.parametrize(
    ("who", "what", "where"),
    [
        (
            """
        @app.application("a")
        async def work(payload: str) -> None:
            say("ready")
            await stubborn()
            """,
            "actor 'work' keeps running although it was cancelled: work at ",
            "in stubborn",
        ),
        (
            """
        @app.application("a", deadline=1000, concurrency=2)
        async def work(payload: str) -> None:
            say("ready")
            await stubborn()
            """,
            "keeps running although it was cancelled: work at ",
            "in stubborn",
        ),
        (
            """
        @app.application("a", batch=(1, 1.0))
        async def work(payload: list[str]) -> None:
            say("ready")
            await stubborn()
            """,
            "actor 'work' keeps running although it was cancelled: work at ",
            "in stubborn",
        ),
        (
            """
        class Work(Actor):
            @on("a")
            async def work(self, payload: str) -> None:
                say("ready")
            async def on_stop(self) -> None:
                await stubborn()
        app.add(Work)
            """,
            "actor 'Work' keeps running although it was cancelled: Work.on_stop at ",
            "in stubborn",
        ),
        (
            """
        @app.producer()
        async def work() -> None:
            say("ready")
            await stubborn()
            """,
            "actor 'work' keeps running although it was cancelled: work at ",
            "in stubborn",
        ),
        (
            """
        @contextlib.asynccontextmanager
        async def work():
            yield
            await stubborn()
        @app.application("a", ressources={"db": work})
        async def other(payload: str) -> None:
            say("ready")
            """,
            "resource 'db' of actor 'other' keeps running although it was cancelled: work at ",
            "in stubborn",
        ),
        (
            """
        @app.application("a")
        def work(payload: str) -> None:
            say("ready")
            time.sleep(1000)
            """,
            "actor 'work': a thread cannot be ended from outside: work at ",
            "program.py:",
        ),
        (
            """
        @app.application("a")
        async def work(payload: str) -> None:
            say("ready")
            asyncio.ensure_future(stubborn())
            """,
            "a task keeps running although it was cancelled: stubborn at ",
            "program.py:",
        ),
        (
            """
        async def numbers():
            try:
                yield 1
            finally:
                await stubborn()
        @app.application("a")
        async def work(payload: str) -> None:
            global kept
            kept = numbers()
            await anext(kept)
            say("ready")
            """,
            "an async generator keeps running although it was cancelled",
            "",
        ),
        (
            """
        @app.application("a")
        async def work(payload: str) -> None:
            say("ready")
            await asyncio.to_thread(time.sleep, 1000)
            """,
            "a function in a thread of the event loop keeps running",
            "",
        ),
    ],
    ids=[
        "handler",
        "deadline",
        "batch",
        "on_stop",
        "producer",
        "resource",
        "thread",
        "task",
        "generator",
        "executor",
    ],
)
def test_what_swallows_its_cancellation_is_named_and_left_behind(
    start: Start, who: str, what: str, where: str
) -> None:
    program = start(
        f"""
        {_MAKE}
        app = make()
        {who}
        app.run()
        """
    )
    program.read_until("ready")
    program.signal(signal.SIGTERM)
    code, said, error = program.end()
    assert code == 1
    # What is not an actor's ends after the applications, which have told of their stop by then.
    (line,) = [line for line in said if what in line and "has stopped in" not in line]
    assert where in line
    assert "abandoned" in line
    assert error.startswith("spa_dat: not stopped cleanly: ")
    assert error.count("\n") == 1
    assert what in error


def test_an_on_stop_that_fails_is_named_and_sets_the_exit_code(start: Start) -> None:
    program = start(
        """
        logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s")
        app = DistributedApplication("memory://", name="plant")

        class Valve(Actor):
            @on("valve")
            async def move(self, payload: int) -> None: ...

            async def on_stop(self) -> None:
                raise ValueError("stuck")

        class Pump(Actor):
            @on("pump")
            async def move(self, payload: int) -> None: ...

            async def on_stop(self) -> None: ...

        app.add(Valve)
        app.add(Pump)

        @app.producer()
        async def produce(socket: Socket) -> None:
            app.restart("Valve")
            app.stop()

        app.run()
        """
    )
    code, said, error = program.end()
    text = "on_stop of actor 'Valve' has failed: ValueError: stuck"
    assert code == 1
    assert said[-1].endswith(f"; given up: {text}")
    assert error == f"spa_dat: not stopped cleanly: {text}\n"


def test_an_embedding_program_ends_although_a_handler_swallows_its_cancellation(
    start: Start,
) -> None:
    program = start(
        f"""
        {_MAKE}
        app = make()
        ready = asyncio.Event()

        @app.application("a")
        async def work(payload: str) -> None:
            ready.set()
            await stubborn()

        async def main():
            async with app:
                await ready.wait()
            say("left", app.stats["actors.abandoned"])

        asyncio.run(main())
        """
    )
    code, said, error = program.end()
    assert (code, error) == (0, "")
    assert "left 1" in said


@pytest.mark.virtual
async def test_leaving_an_application_takes_a_stated_time_whatever_its_handlers_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=3)
    begun = asyncio.Event()
    freed = asyncio.Event()

    @app.application("a")
    async def work(payload: str) -> None:
        begun.set()
        while not freed.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await freed.wait()

    loop = asyncio.get_running_loop()
    async with app:
        app.socket().post("a", "x")
        await begun.wait()
        began = loop.time()
    assert 5.0 <= loop.time() - began < 5.5
    assert app.stats["actors.abandoned"] == 1
    record, report = [each for each in caplog.records if "abandoned" in each.getMessage()]
    assert "has stopped in" in report.getMessage()
    assert record.levelno == logging.ERROR
    assert "actor 'work'" in record.getMessage()
    assert "test_stopping.py:" in record.getMessage()
    assert given_up(app) == [
        "actor 'work' did not finish in time and was cut off",
        record.getMessage().removeprefix("plant: "),
    ]
    freed.set()


@pytest.mark.virtual
async def test_a_cleanup_that_only_needs_another_cancellation_is_not_abandoned() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)
    begun = asyncio.Event()

    @app.application("a")
    async def work(payload: str) -> None:
        try:
            begun.set()
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1000)

    async with app:
        app.socket().post("a", "x")
        await begun.wait()
    assert app.stats["actors.cut_off"] == 1
    assert app.stats["actors.abandoned"] == 0


def ends_by_the_second_signal_after_it_has_told(program: Program) -> None:
    program.read_until("ready")
    program.signal(signal.SIGTERM)
    program.read_until("told")
    program.signal(signal.SIGTERM)
    code, _, _ = program.end()
    assert code == -signal.SIGTERM


def test_a_thread_that_keeps_an_ended_program_alive_is_named(start: Start) -> None:
    program = start(
        f"""
        {_MAKE}
        app = make()

        import threading

        def poll():
            time.sleep(1000)

        class Told(logging.Handler):
            def emit(self, record):
                if "its thread 'poller' keeps the process alive: poll at " in record.getMessage():
                    say("told")

        logging.getLogger("spa_dat").addHandler(Told())

        @app.application("a")
        async def handler(payload: str) -> None:
            threading.Thread(target=poll, name="poller").start()
            say("ready")

        app.run()
        """
    )
    ends_by_the_second_signal_after_it_has_told(program)


def test_a_process_that_keeps_an_ended_program_alive_is_named(start: Start) -> None:
    program = start(
        f"""
        {_MAKE}
        app = make()

        import multiprocessing, os

        class Told(logging.Handler):
            def emit(self, record):
                if "its child process 'poller' (" in record.getMessage():
                    say("told")

        logging.getLogger("spa_dat").addHandler(Told())
        reader, writer = os.pipe()

        def poll():
            os.close(writer)
            os.read(reader, 1)  # until the parent ends

        @app.application("a")
        async def handler(payload: str) -> None:
            fork = multiprocessing.get_context("fork")
            fork.Process(target=poll, name="poller").start()
            say("ready")

        app.run()
        """
    )
    ends_by_the_second_signal_after_it_has_told(program)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_that_has_ended_is_not_named_and_not_reaped(method: Any) -> None:
    child = multiprocessing.get_context(method).Process(target=int, name="brief")
    child.start()
    multiprocessing.connection.wait([child.sentinel], 60)
    assert child in multiprocessing.process._children  # type: ignore[attr-defined]
    assert child not in _program._children()
    assert child._popen.returncode is None
    child.join()
    assert child.exitcode == 0


def given_up(app: DistributedApplication) -> list[str]:
    last = runs_of(app).last
    assert last is not None
    return last.given_up.reasons


# Work that is given up.


def test_posts_that_are_given_up_make_one_line_and_an_exit_code(
    start: Start, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = own_mosquitto()
    program = start(
        f"""
        logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s")
        app = DistributedApplication("{broker.url}", name="plant", stop_timeout=0.2)

        @app.producer()
        async def produce(socket: Socket) -> None:
            say("ready")
            sys.stdin.readline()
            for number in range(300):
                socket.post(f"values/{{number}}", number)
            say("posted")
            await asyncio.sleep(1000)

        app.run()
        """
    )
    program.read_until("ready")
    broker.pause()
    program.write("go on\n")
    program.read_until("posted")
    program.signal(signal.SIGTERM)
    code, said, error = program.end()
    broker.resume()
    text = "300 posts were not confirmed and were given up, the first to 'values/0'"
    assert code == 1
    line, report = [line for line in said if "posts" in line]
    assert line == f"plant: {text}"
    assert report.endswith(f"; given up: {text}")
    assert error == f"spa_dat: not stopped cleanly: {text}\n"


@pytest.mark.virtual
async def test_posts_that_are_given_up_by_who_embeds_are_in_the_log_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = MemoryProvider()
    app = DistributedApplication(provider, name="plant", stop_timeout=1)
    async with app:
        provider.broker.faults.drop_confirmations(1000)
        for number in range(20):
            app.socket().post(f"values/{number}", number)
    assert app.stats["posts.given_up"] == 20
    record, report = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "has stopped in" in report.getMessage()
    assert record.getMessage() == (
        "plant: 20 posts were not confirmed and were given up, the first to 'values/0'"
    )


@pytest.mark.virtual
async def test_local_messages_that_are_left_are_counted() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)

    class Slow(Actor):
        @on("a")
        async def work(self, payload: str) -> None: ...

        async def on_receive(self, message: object) -> None:
            await asyncio.sleep(1000)

    slow = app.add(Slow)
    async with app:
        for number in range(5):
            slow.ref.tell(number)
        await eventually(lambda: len(slow.ref._mailbox) == 4)
    assert app.stats["messages.given_up"] == 4
    assert "actor 'Slow' stopped with 4 messages unhandled" in given_up(app)


@pytest.mark.virtual
async def test_a_stop_right_into_a_silent_kafka_broker_keeps_its_bound() -> None:
    handled = asyncio.Event()
    with world() as here:
        app = DistributedApplication(
            f"kafka://{SERVER}?create_topics=all", name="plant", stop_timeout=1
        )

        @app.application("jobs")
        async def work(payload: bytes) -> None:
            # Nobody has noticed yet that the broker is silent when the stop begins.
            for wire in here.network.connections:
                wire.fall_silent()
            handled.set()

        async with app:
            await app.socket().publish("jobs", b"x")
            await handled.wait()
            began = here.loop.time()
        # The posts, the last commit, and two seconds for connections that do not answer.
        assert here.loop.time() - began < 1 + 2.5
        assert app.stats["kafka.commits_failed"] == 1


@pytest.mark.virtual
async def test_a_block_that_is_cancelled_again_and_again_is_left_and_the_stop_goes_on() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=10)
    began = asyncio.Event()
    ended: list[str] = []

    @app.application("jobs")
    async def work(payload: bytes) -> None:
        began.set()
        await asyncio.sleep(5)
        ended.append("handled")

    async def program() -> None:
        async with app:
            await app.socket().publish("jobs", b"")
            await began.wait()
            await asyncio.sleep(1000)

    running = asyncio.ensure_future(program())
    await began.wait()
    while not running.done():
        running.cancel()
        await asyncio.sleep(0)
    assert running.cancelled()
    assert ended == []
    await app.aclose()
    assert ended == ["handled"]
    assert app.stats["actors.cut_off"] == 0


@pytest.mark.virtual
@pytest.mark.parametrize("when", ["it runs", "it stops"])
async def test_a_cancel_scope_of_anyio_does_not_cut_the_stop_short(when: str) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=10)
    began = asyncio.Event()
    ended: list[str] = []

    @app.application("jobs")
    async def work(payload: bytes) -> None:
        began.set()
        await asyncio.sleep(5)
        ended.append("handled")

    with anyio.move_on_after(3.0) as scope:
        async with app:
            await app.socket().publish("jobs", b"")
            await began.wait()
            if when == "it runs":
                await asyncio.sleep(1000)
    assert ended == ["handled"]
    assert not app.healthy
    assert runs_of(app).current is None
    # Nothing awaits after the block, so there is nothing left to cancel.
    assert scope.cancelled_caught == (when == "it runs")


@pytest.mark.virtual
async def test_a_cancel_scope_of_anyio_around_a_start_leaves_nothing_behind() -> None:
    app = DistributedApplication("memory://", name="plant")
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(1.0)
        events.append("closed")

    class Hanging(Actor):
        ressources = {"slow": slow}  # noqa: RUF012

        async def on_start(self) -> None:
            await asyncio.sleep(1000)

        @on("a")
        async def handle(self, payload: str, slow: None) -> None: ...

    app.add(Hanging)
    with anyio.move_on_after(3.0) as scope:
        await app.__aenter__()
    assert scope.cancelled_caught
    assert events == ["closed"]
    assert runs_of(app).current is None
