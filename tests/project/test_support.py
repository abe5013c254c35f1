"""The tests' own helpers do what they say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from spa_dat.harness import Deadlock, VirtualEnvironment
from spa_dat.harness.loop import _virtual_time
from support import deadline as deadlines
from support.deadline import deadline
from support.running import run_async_test
from support.waiting import eventually

AsyncTest = Callable[[], Coroutine[Any, Any, None]]


@pytest.mark.virtual
async def test_virtual_time_jumps_over_waits() -> None:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    before = loop.time()
    order: list[int] = []
    loop.call_later(7200, order.append, 2)
    loop.call_later(3600, order.append, 1)
    await asyncio.sleep(86_400 * 30)
    assert loop.time() - before == pytest.approx(86_400 * 30)
    assert order == [1, 2]
    assert time.monotonic() - started < 30


@pytest.mark.virtual
async def test_virtual_time_stands_still_while_an_executor_works() -> None:
    go = threading.Event()
    threading.Timer(0.05, go.set).start()
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with asyncio.timeout(1000):
        assert await loop.run_in_executor(None, lambda: sum(_busy_until(go)) >= 0)
    assert loop.time() - before < 1000


@pytest.mark.virtual
async def test_virtual_time_stands_still_while_a_thread_works() -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def work() -> None:
        time.sleep(0.05)
        loop.call_soon_threadsafe(done.set_result, "worked")

    thread = threading.Thread(target=work)
    thread.start()
    async with asyncio.timeout(60):
        assert await done == "worked"
    thread.join()


@pytest.mark.virtual
async def test_virtual_wall_time_follows_the_loop() -> None:
    environment = VirtualEnvironment()
    before = environment.now()
    await asyncio.sleep(60)
    assert environment.now() - before == pytest.approx(60)


def test_virtual_time_names_a_deadlock() -> None:
    with pytest.raises(Deadlock, match="nothing is ready"):
        run_async_test(_waits_for_ever, {}, virtual=True)


@pytest.mark.virtual
@pytest.mark.parametrize("power", [10, 11, 20, 30])
async def test_a_rest_that_is_lost_in_rounding_passes_in_virtual_time(power: int) -> None:
    """As where a connection of aiokafka looks whether it was unused for 15 seconds.

    Beyond a power of two the clock has steps of twice the size, and half of one is no time at all.
    """
    loop = asyncio.get_running_loop()
    looks = passed = 0

    def look(since: float) -> None:
        nonlocal looks, passed
        looks += 1
        unused = loop.time() - since
        if unused >= 15.0:
            passed += 1
        else:
            loop.call_later(15.0 - unused, look, since)

    await asyncio.sleep(2.0**power - 14.0 - loop.time())
    for _ in range(100):
        look(loop.time())
        await asyncio.sleep(0.13)
    await asyncio.sleep(15.0)
    assert passed == 100
    assert looks < 1_000


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_virtual_time, "_MOST_JUMPS", 3_000)
    monkeypatch.setattr(_virtual_time, "_MOST_TURNS", 3_000)


async def _waits_beside_a_timer() -> None:
    loop = asyncio.get_running_loop()

    def tick() -> None:
        loop.call_later(1.0, tick)

    tick()
    await asyncio.Event().wait()


async def _waits_beside_a_task() -> None:
    async def ticking() -> None:
        while True:
            await asyncio.sleep(60)

    task = asyncio.create_task(ticking(), name="ticking")
    await asyncio.Event().wait()
    task.cancel()


async def _turns_without_time() -> None:
    while True:
        await asyncio.sleep(0)


async def _calls_without_time() -> None:
    loop = asyncio.get_running_loop()

    def again() -> None:
        loop.call_at(loop.time(), again)

    again()
    await asyncio.Event().wait()


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize(
    ("test", "text"),
    [
        (
            _waits_beside_a_timer,
            r"jumped 3,001 times, by 3,000 s.*_waits_beside_a_timer\.<locals>\.tick \(1,000x\)",
        ),
        (
            _waits_beside_a_task,
            r"jumped 3,001 times, by 180,000 s.*task ticking in .*ticking at .*test_support",
        ),
        (
            _turns_without_time,
            r"turned 3,001 times and no time has passed.*task test in _turns_without_time at",
        ),
        (_calls_without_time, r"turned 3,001 times and no time has passed.*<locals>\.again"),
    ],
)
def test_virtual_time_that_goes_in_circles_ends_and_names_what_for(
    test: AsyncTest, text: str
) -> None:
    with pytest.raises(Deadlock, match=text):
        run_async_test(test, {}, virtual=True)


async def test_eventually_names_what_it_waited_for() -> None:
    looks: list[int] = []

    def third_look() -> bool:
        looks.append(1)
        return len(looks) == 3

    assert await eventually(third_look)
    with pytest.raises(AssertionError, match="len\\(looks\\) == 0"):
        await eventually(lambda: len(looks) == 0, timeout=0.02)


@given(number=st.integers())
async def test_async_tests_run_under_hypothesis(number: int) -> None:
    await asyncio.sleep(0)
    assert number == number + 0


async def _leaks_a_task() -> None:
    asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="leaked")
    await asyncio.sleep(0)


async def _leaves_an_error() -> None:
    async def fail() -> None:
        raise ValueError("nobody looks at this")

    asyncio.get_running_loop().create_task(fail(), name="failed")
    await asyncio.sleep(0)


async def _fails_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(lambda: [][0])
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("test", "text"),
    [
        (_leaks_a_task, "leaked"),
        (_leaves_an_error, "nobody looks at this"),
        (_fails_in_a_callback, "IndexError"),
    ],
)
@pytest.mark.parametrize("virtual", [False, True])
def test_what_a_test_leaves_behind_fails_it(test: AsyncTest, text: str, virtual: bool) -> None:
    with pytest.raises(pytest.fail.Exception, match=text):
        run_async_test(test, {}, virtual=virtual)


async def _waits_for_ever() -> None:
    await asyncio.Event().wait()


def test_a_deadline_cancels_an_async_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="deadline"), deadline(0.05):
        run_async_test(_waits_for_ever, {}, virtual=False)


def test_a_deadline_interrupts_a_blocked_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="deadline"), deadline(0.05):
        threading.Event().wait()


async def _keeps_turning() -> None:
    loop = asyncio.get_running_loop()

    def again() -> None:
        loop.call_soon(again)
        threading.Event().wait(0.01)

    again()
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@pytest.mark.parametrize("virtual", [False, True])
def test_a_deadline_ends_what_ignores_cancellation_and_keeps_the_loop_turning(
    virtual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "_SECOND_CHANCE", 0.05)
    # On a busy machine there may be many of them.
    monkeypatch.setattr(deadlines, "_MOST_INTERRUPTIONS", 10_000)
    with pytest.raises(pytest.fail.Exception, match="deadline"), deadline(0.05):
        run_async_test(_keeps_turning, {}, virtual=virtual)


def test_who_catches_what_ends_its_waiting_at_a_deadline_fails_all_the_same() -> None:
    with (
        pytest.raises(pytest.fail.Exception, match="deadline"),
        deadline(0.05),
        pytest.raises(SystemExit),
    ):
        threading.Event().wait()


@pytest.mark.parametrize(
    ("endless", "told"),
    [
        ("deadlines._MOST_INTERRUPTIONS = 0", "[CI]: does not end"),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})", "most recent call first"),
    ],
)
def test_a_process_whose_test_cannot_be_ended_ends_and_says_where(endless: str, told: str) -> None:
    # The last resort must not come first: it is for what no signal reaches.
    program = f"""
import signal, threading
from support import deadline as deadlines

deadlines._SECOND_CHANCE, deadlines._LAST_REST = 0.02, {60 if "INTERRUPTIONS" in endless else 0.2}
lock = threading.Lock()
lock.acquire()
{endless}
with deadlines.deadline(0.05):
    lock.acquire()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(deadlines.__file__).parents[1])}
    environment["PYTEST_CURRENT_TEST"] = "[CI]"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert told in ended.stderr
    assert 'File "<string>", line' in ended.stderr


def _busy_until(event: threading.Event) -> list[int]:
    rounds: list[int] = []
    while not event.is_set():
        rounds.append(1)
        if len(rounds) > 1000:
            time.sleep(0.001)
            rounds.clear()
    return rounds
