"""What the harness knows of threads, and that its time stands still while they work."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import runpy
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from queue import Queue, SimpleQueue
from typing import Any, Literal

import pykka
import pytest

from spa_dat import Actor, Context, DistributedApplication, Socket, SyncSocket, busy_thread
from spa_dat.errors import NoResponder, RequestTimeout
from spa_dat.harness.loop._stacks import frames_of_other_threads
from spa_dat.testing import BusyThread, Harness, HarnessFactory, NotSettled, UnannouncedThread
from support.elsewhere import ThreadElsewhere

Profile = Literal["mqtt", "kafka"]
PROFILES: tuple[Profile, ...] = ("mqtt", "kafka")
SOME_TIME = 0.15
"""Real seconds of work: more than it takes to notice that virtual time goes on."""


def ticking(address: str = "mqtt://broker") -> DistributedApplication:
    """Make an application that always has a timer to jump to."""
    app = DistributedApplication(address, name="app")

    @app.producer(every=1.0)
    async def tick() -> None:
        """Time could jump to the next one."""

    return app


# Announced.


def announcing(jobs: Any, seconds: float) -> DistributedApplication:
    """Give work to a thread that answers by `threading.Event`s and polling, unseen by the loop."""
    app = ticking()

    @app.application("in")
    async def double(payload: int, socket: Socket, context: Context) -> None:
        before = context.now()
        loop = asyncio.get_running_loop()
        answer: Queue[int] = Queue()
        arrived = asyncio.Event()

        def work() -> None:
            time.sleep(seconds)
            answer.put(2 * payload)
            loop.call_soon_threadsafe(arrived.set)

        jobs.put((work, busy_thread("doubling")))
        await arrived.wait()
        assert context.now() == before
        await socket.publish("out", answer.get_nowait())

    return app


def work_off(jobs: Any) -> None:
    while (job := jobs.get()) is not None:
        work, busy = job
        with busy:
            work()


@pytest.mark.parametrize("profile", PROFILES)
def test_time_stands_still_while_an_announced_thread_works(profile: Profile) -> None:
    jobs: SimpleQueue[Any] = SimpleQueue()
    thread = ThreadElsewhere(work_off, jobs)
    with Harness(announcing(jobs, SOME_TIME), profile=profile) as harness:
        for number in range(3):
            harness.publish("in", number)
        harness.settle()
        assert sorted(harness.published("out")) == [0, 2, 4]
        harness.advance(600.0)
    jobs.put(None)
    thread.join()


@pytest.mark.parametrize("profile", PROFILES)
def test_the_test_can_announce_work_that_a_thread_ends(profile: Profile) -> None:
    app = ticking()
    begun, seen = threading.Event(), list[int]()

    @app.application("in")
    async def see(payload: int) -> None:
        seen.append(payload)

    with Harness(app, profile=profile) as harness:
        busy = harness.busy_thread("the importer")

        def work() -> None:
            begun.wait()
            time.sleep(SOME_TIME)
            harness.publish("in", 7)
            busy.end()
            busy.end()

        thread = ThreadElsewhere(work)
        begun.set()
        harness.settle()
        thread.join()
        harness.settle()
        assert seen == [7]


def test_an_announcement_that_does_not_end_is_named_with_its_place_and_its_thread() -> None:
    app = ticking()
    go_on = threading.Event()
    working = threading.Event()

    def idles(busy: BusyThread) -> None:
        with busy:
            working.set()
            go_on.wait()

    with Harness(app, grace=0.3) as harness:
        thread = ThreadElsewhere(idles, harness.busy_thread("counting sheep"))
        working.wait()
        before = harness.time
        with pytest.raises(
            NotSettled, match=r"counting sheep, announced in .*test_harness_threads(?s:.*)in idles"
        ):
            harness.advance(3600.0)
        assert harness.time == before
        go_on.set()
        thread.join()


@pytest.mark.parametrize("profile", PROFILES)
def test_an_announced_thread_may_wait_for_what_takes_virtual_time(profile: Profile) -> None:
    app = ticking()
    jobs: SimpleQueue[Any] = SimpleQueue()
    thread = ThreadElsewhere(work_off, jobs)
    answers: list[object] = []

    @app.application("slow")
    async def answer(payload: int) -> int:
        await asyncio.sleep(5.0)
        return 2 * payload

    def work() -> None:
        socket = app.sync_socket()
        time.sleep(SOME_TIME)
        answers.append(socket.request("slow", 4, reply=int))
        try:
            socket.request("nobody/answers", 4, timeout=60.0)
        except (RequestTimeout, NoResponder) as error:
            answers.append(type(error))
        answers.append(socket.request("slow", 5, reply=int))

    with Harness(app, profile=profile) as harness:
        jobs.put((work, harness.busy_thread()))
        harness.advance(100.0)
        assert answers[::2] == [8, 10]
    jobs.put(None)
    thread.join()


async def test_announcements_in_an_async_test(harness: HarnessFactory) -> None:
    jobs: SimpleQueue[Any] = SimpleQueue()
    thread = ThreadElsewhere(work_off, jobs)
    async with harness(announcing(jobs, SOME_TIME)) as under_test:
        under_test.publish("in", 4)
        with under_test.busy_thread():
            jobs.put((lambda: None, busy_thread()))
        await under_test.settle()
        assert under_test.published("out") == [8]
    jobs.put(None)
    thread.join()


async def test_in_production_an_announcement_does_nothing() -> None:
    with busy_thread("anything") as busy:
        busy.end()


# What a thread is given together with a future.


def working_in_thread(
    jobs: Any, seconds: float, take: Callable[[Any, Callable[[Any], None]], None] | None = None
) -> DistributedApplication:
    """Has a thread that takes from a queue, and works for some real seconds on what it gets."""
    app = ticking()

    @asynccontextmanager
    async def worker() -> AsyncIterator[object]:
        loop = asyncio.get_running_loop()

        def work(job: tuple[asyncio.Future[int], int]) -> None:
            future, number = job
            time.sleep(seconds)
            loop.call_soon_threadsafe(future.set_result, 2 * number)

        thread = threading.Thread(target=take or by_get, args=(jobs, work), daemon=True)
        thread.start()
        yield jobs
        jobs.put(None)
        thread.join()

    app.resource("jobs", worker)

    @app.application("in")
    async def double(payload: int, jobs: Any, socket: Socket, context: Context) -> None:
        before = context.now()
        future = asyncio.get_running_loop().create_future()
        jobs.put((future, payload))
        number = await future
        assert context.now() == before
        await socket.publish("out", number)

    return app


def by_get(jobs: Any, work: Callable[[Any], None]) -> None:
    while (job := jobs.get()) is not None:
        work(job)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", [SimpleQueue, Queue])
def test_a_thread_that_waits_for_work_does_not_hold_time_up_and_one_that_works_does(
    kind: Callable[[], Any], profile: Profile
) -> None:
    with Harness(working_in_thread(kind(), SOME_TIME), profile=profile) as harness:
        for number in range(3):
            harness.publish("in", number)
        harness.settle()
        assert sorted(harness.published("out")) == [0, 2, 4]
        harness.advance(600.0)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_future_of_a_pool_of_the_programs_own_is_waited_for(profile: Profile) -> None:
    app = ticking()
    with ThreadPoolExecutor(1) as pool:

        @app.application("in")
        async def double(payload: int, socket: Socket, context: Context) -> None:
            before = context.now()
            future = pool.submit(lambda: time.sleep(SOME_TIME))
            await asyncio.wait_for(asyncio.wrap_future(future), 1.0)
            assert context.now() == before
            await socket.publish("out", 2 * payload)

        with Harness(app, profile=profile) as harness:
            harness.publish("in", 1)
            harness.settle()
            assert harness.published("out") == [2]


def test_what_one_thread_answers_gives_the_same_trace_each_time() -> None:
    def trace(seconds: float) -> str:
        with Harness(working_in_thread(SimpleQueue(), seconds)) as harness:
            for number in range(10):
                harness.publish("in", number)
                harness.publish("elsewhere", number)
            harness.settle()
            return harness.trace

    assert trace(0.0) == trace(0.005)


def test_a_future_that_no_thread_completes_is_named_and_time_goes_on() -> None:
    jobs: SimpleQueue[Any] = SimpleQueue()
    app = working_in_thread(jobs, 0.0)

    @app.application("own")
    async def wait(payload: int, socket: Socket) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(5.0, future.set_result, payload)
        await socket.publish("out", await future)

    with Harness(app, grace=0.3) as harness:
        for number in range(2):
            harness.publish("own", number)
        with pytest.warns(UnannouncedThread, match=r"future made in .*test_harness_threads"):
            harness.settle()
        assert harness.published("out") == [0, 1]


def test_a_thread_that_does_not_end_its_work_is_named() -> None:
    go_on = threading.Event()

    def take(jobs: Any, work: Callable[[Any], None]) -> None:
        by_get(jobs, busy)

    def busy(job: Any) -> None:
        while not go_on.is_set():
            time.sleep(0.01)

    jobs: SimpleQueue[Any] = SimpleQueue()
    app = working_in_thread(jobs, 0.0, take)
    with Harness(app, grace=0.3) as harness:
        harness.publish("in", 1)
        try:
            with pytest.raises(NotSettled, match=r"in busy \(test_harness_threads\.py") as caught:
                harness.settle()
            assert "not completed within 0.3 real seconds" in "".join(caught.value.__notes__)
        finally:
            go_on.set()
            jobs.put(None)
            harness.crash()


def test_a_thread_that_nobody_has_announced_is_named_when_it_calls() -> None:
    app = ticking()

    @app.application("in")
    async def start(payload: int) -> None:
        loop = asyncio.get_running_loop()
        # It blocks the loop, so that the call comes in good time whatever the machine does.
        ThreadElsewhere(loop.call_soon_threadsafe, print).join()

    with Harness(app) as harness:
        harness.publish("in", 1)
        with pytest.warns(UnannouncedThread, match="'elsewhere' calls into the application"):
            harness.settle()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_program_with_a_database_in_a_thread(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiosqlite")
    monkeypatch.setattr(sys, "argv", ["resources.py"])
    path = Path(__file__).parent.parent.parent / "examples" / "resources.py"
    with Harness(runpy.run_path(str(path))["app"], profile=profile) as harness:
        harness.settle()
    assert "wine: 3 readings, 13.0 °C on average" in capsys.readouterr().out


# What the runtime gives to threads.


@pytest.mark.parametrize("profile", PROFILES)
def test_a_thread_of_the_runtime_may_wait_for_the_loop_in_any_way(profile: Profile) -> None:
    app = ticking()
    waits: dict[str, float] = {}

    @app.application("in")
    async def start(payload: int, context: Context, socket: Socket) -> None:
        loop = asyncio.get_running_loop()
        done = threading.Event()

        async def later() -> int:
            await asyncio.sleep(60.0)
            return payload

        def works() -> None:
            before = context.now()
            time.sleep(SOME_TIME)
            assert context.now() == before
            asyncio.run_coroutine_threadsafe(later(), loop).result()
            waits["coroutine"] = context.now() - before
            future = asyncio.run_coroutine_threadsafe(asyncio.sleep(600.0), loop)
            with pytest.raises(TimeoutError):
                future.result(timeout=60.0)
            waits["timeout"] = context.now() - before
            loop.call_soon_threadsafe(done.set)
            done.wait()
            waits["event"] = context.now() - before

        await asyncio.to_thread(works)

    with Harness(app, profile=profile) as harness:
        harness.publish("in", 1)
        harness.settle()
    assert {name: round(seconds) for name, seconds in waits.items()} == {
        "coroutine": 60,
        "timeout": 120,
        "event": 120,
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_a_thread_of_the_runtime_may_wait_for_threads_that_wait_for_the_loop(
    profile: Profile,
) -> None:
    app = ticking()

    @app.application("def")
    def hand_on(payload: int, socket: SyncSocket) -> None:
        ThreadElsewhere(socket.publish, "out", payload).join()

    @app.application("async")
    async def wait(payload: int) -> None:
        thread = ThreadElsewhere(app.sync_socket().publish, "out", payload)
        await asyncio.to_thread(thread.join)

    with Harness(app, profile=profile, grace=60.0) as harness:
        for number in range(3):
            harness.publish("def", number)
            harness.publish("async", number + 10)
        with pytest.warns(UnannouncedThread):
            harness.settle()
        assert sorted(harness.published("out")) == [0, 1, 2, 10, 11, 12]


# What the program gives to processes.


@pytest.mark.parametrize("profile", PROFILES)
def test_a_pool_of_processes_is_waited_for(profile: Profile) -> None:
    app = ticking()

    @app.application("in")
    async def power(payload: int, socket: Socket, context: Context) -> None:
        before = context.now()
        loop = asyncio.get_running_loop()
        await socket.publish("out", await loop.run_in_executor(processes, pow, payload, 2))
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(processes, divmod, payload, 0)
        if profile == "mqtt":
            assert context.now() == before

    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as processes,
        Harness(app, profile=profile, grace=60.0) as harness,
    ):
        for number in range(3):
            harness.publish("in", number, key="k")
        harness.settle()
        assert harness.published("out") == [0, 1, 4]


def test_a_process_that_outlasts_the_grace_is_named() -> None:
    app = ticking()

    @app.application("in")
    async def rest(payload: int) -> None:
        await asyncio.get_running_loop().run_in_executor(processes, time.sleep, payload)

    def run() -> None:
        with Harness(app, grace=0.05) as harness:
            harness.publish("in", 1)
            harness.settle()

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        # Starting the process blocks the loop, at times for longer than the grace.
        processes.submit(int).result()
        with pytest.raises(NotSettled, match="work in a process"):
            run()


class _CallsOff(Executor):
    """Never does what it is given, as one that somebody shuts down."""

    def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
        loop: Any = asyncio.get_running_loop()
        given: Future[Any] = Future()

        def call_off() -> None:
            while not loop.threads.waiting:
                time.sleep(0.001)
            given.set_exception(OSError("shut down"))

        ThreadElsewhere(call_off)
        return given


def test_what_another_thread_calls_off_does_not_hold_the_loop_up() -> None:
    app = ticking()

    @app.application("in")
    async def give(payload: int, socket: Socket) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(_CallsOff(), print)
        except OSError as error:
            await socket.publish("out", str(error))

    with Harness(app, grace=0.5) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == ["shut down"]


def test_a_program_that_goes_on_after_its_output_has_ended_is_waited_for() -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    code = f"import os, time; os.write(1, b'done'); os.close(1); time.sleep({SOME_TIME})"

    @app.application("in")
    async def call(payload: int, socket: Socket) -> None:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", code, stdout=subprocess.PIPE
        )
        output, _ = await program.communicate()
        await socket.publish("out", {"output": output.decode(), "code": program.returncode})

    with Harness(app, grace=60.0) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [{"output": "done", "code": 0}]


def test_a_def_handler_may_ask_an_actor_that_takes_its_time() -> None:
    app = ticking()

    class Doubling(Actor):
        topics = ("nowhere",)

        async def on_message(self, payload: int) -> None:
            """Answer a question, as pykka's actors do."""

        async def on_receive(self, message: int) -> int:
            await asyncio.sleep(60.0)
            return 2 * message

    doubling = app.add(Doubling)

    @app.application("in")
    def ask(payload: int, socket: SyncSocket, context: Context) -> None:
        before = context.now()
        doubled = doubling.ref.pykka.ask(payload)
        with pytest.raises(pykka.Timeout):
            doubling.ref.pykka.ask(payload, timeout=30.0)
        assert context.now() - before == pytest.approx(90.0)
        socket.publish("out", doubled)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [2]


def test_a_def_handler_that_outlasts_the_grace_is_cut_off_at_its_deadline() -> None:
    app = ticking()
    go_on = threading.Event()

    @app.application("in", deadline=30.0)
    def hang(payload: int) -> None:
        go_on.wait()

    try:
        with Harness(app, grace=0.3, allow_failures=TimeoutError) as harness:
            harness.publish("in", 1)
            harness.settle()
            assert {type(failure.error) for failure in harness.failures} == {TimeoutError}
            assert harness.time >= 30.0
    finally:
        go_on.set()


def test_a_def_producer_that_waits_for_something_outside_is_left_alone() -> None:
    app = ticking()
    outside: Queue[int] = Queue()

    @app.producer()
    def listen(socket: SyncSocket) -> None:
        while (number := outside.get()) >= 0:
            socket.publish("heard", number)

    try:
        with Harness(app, grace=0.3) as harness:
            harness.advance(10.0)
            assert harness.time == 10.0
    finally:
        outside.put(-1)


def test_a_def_handler_that_outlasts_the_grace_fails_the_test() -> None:
    app = ticking()
    go_on = threading.Event()

    @app.application("in")
    def hang(payload: int) -> None:
        go_on.wait()

    try:
        with Harness(app, grace=0.3) as harness:
            harness.publish("in", 1)
            with pytest.raises(NotSettled, match=r"in a thread(?s:.*)in hang"):
                harness.settle()
            harness.crash()
    finally:
        go_on.set()


def test_looking_at_the_frames_of_threads_keeps_nothing_alive() -> None:
    held: list[weakref.ref[threading.Event]] = []
    started, ended = threading.Event(), threading.Event()

    def work() -> None:
        large = threading.Event()
        held.append(weakref.ref(large))
        started.set()
        ended.wait(60)

    def look() -> int:
        frames = frames_of_other_threads()
        return len(frames)

    thread = threading.Thread(target=work)
    gc.collect()
    gc.disable()
    try:
        thread.start()
        assert started.wait(60)
        assert look() >= 1
        ended.set()
        thread.join(60)
        assert held[0]() is None
    finally:
        gc.enable()
        ended.set()
