"""An application in a program without an event loop: `with app:`, and its sync socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from spa_dat import DistributedApplication, SyncSocket
from spa_dat.errors import ConfigurationError, ConnectFailed
from spa_dat.runtime.application import _background
from spa_dat.runtime.application._program import new_loop
from support.waiting import eventually


def make(name: str = "background") -> DistributedApplication:
    app = DistributedApplication("memory://", name=name)

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    return app


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_any_thread_can_use_it_inside_of_the_block() -> None:
    app = make()
    answers: list[int] = []

    def ask(socket: SyncSocket) -> None:
        answers.append(socket.request("double", 21, reply=int, timeout=30))

    for _ in range(2):
        with app as entered:
            assert entered is app
            assert "spa_dat background" in threads()
            ask(app.sync_socket())
            other = threading.Thread(target=ask, args=(app.sync_socket(),))
            other.start()
            other.join()
        assert "spa_dat background" not in threads()
        assert app.health().state == "ended"
        with pytest.raises(ConfigurationError, match="is not running"):
            app.sync_socket()
    assert answers == [42] * 4


def test_what_prevents_the_start_is_raised_and_nothing_is_left() -> None:
    app = DistributedApplication("mqtt://127.0.0.1:1?start_timeout=0.1", name="background")
    with pytest.raises(ConnectFailed), app:
        pytest.fail("it has not started")
    assert "spa_dat background" not in threads()


def test_what_it_fails_with_is_raised_at_the_end_but_not_over_another_error() -> None:
    app = make()

    @app.producer()
    async def produce() -> None:
        raise ValueError("no sensor")

    with pytest.raises(ValueError, match="no sensor"), app:
        asyncio.run(eventually(lambda: not app.healthy))
    with pytest.raises(KeyError), app:  # noqa: PT012 (leaving the block raises it)
        asyncio.run(eventually(lambda: not app.healthy))
        raise KeyError("mine")


@pytest.mark.parametrize(
    ("how", "raised", "told"),
    [
        ("sys.exit", SystemExit, "SystemExit: 4"),
        ("loop.stop", RuntimeError, "RuntimeError: Event loop stopped before Future completed."),
    ],
)
def test_what_ends_its_event_loop_is_raised_at_the_end_and_told_at_once(
    how: str, raised: type[BaseException], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make()

    @app.application("end")
    async def end() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.stop if how == "loop.stop" else partial(sys.exit, 4))

    with pytest.raises(raised, match=told.partition(": ")[2]), app:  # noqa: PT012 (leaving raises)
        app.sync_socket().publish("end")
        asyncio.run(eventually(lambda: app.health().state == "ended"))
        assert f"background: its event loop was ended: {told}" in caplog.messages


def test_a_block_inside_of_another_is_refused() -> None:
    app = make()
    with app:
        with pytest.raises(ConfigurationError, match=r"cannot start while .* is running"), app:
            pytest.fail("it runs already")
        assert app.sync_socket().request("double", 1, reply=int, timeout=30) == 2
    assert app.health().state == "ended"


async def test_on_an_event_loop_it_is_refused() -> None:
    app = make()
    with pytest.raises(ConfigurationError, match="write 'async with'"), app:
        pytest.fail("it would block the loop")
    async with app:
        pass


def test_two_run_side_by_side() -> None:
    with make("first") as first, make("second") as second:
        assert first.sync_socket().request("double", 1, reply=int, timeout=30) == 2
        assert second.sync_socket().request("double", 2, reply=int, timeout=30) == 4


def test_a_stop_from_inside_leaves_the_thread_until_the_end_of_the_block() -> None:
    app = make()
    with app:
        app.stop()
        assert app.sync_socket().request("double", 1, reply=int, timeout=30) == 2


def test_a_forked_process_leaves_the_block_alone() -> None:
    app = make()
    with app:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                app.__exit__(None, None, None)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert app.sync_socket().request("double", 1, reply=int, timeout=30) == 2


def test_a_forked_process_does_not_call_the_application_healthy() -> None:
    app = make()
    with app:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                told = [app.healthy, app.problems, app.health().as_dict(), app.health().ready]
                os.write(writer, json.dumps(told).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, encoding="utf-8") as pipe:
            healthy, problems, health, ready = json.load(pipe)
        os.waitpid(child, 0)
        assert (healthy, ready, health["state"]) == (False, False, "ended")
        assert "in this process, which was forked off" in problems["background"]
        assert health["problems"] == problems
        assert app.healthy
        assert app.health().ready


def to_the_process() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def to_another_thread() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


@pytest.mark.parametrize("interrupt", [to_the_process, to_another_thread])
def test_an_interrupt_during_the_start_ends_it(interrupt: Callable[[], None]) -> None:
    app = DistributedApplication("memory://", name="background", stop_timeout=0.1)

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        interrupt()
        await asyncio.sleep(1000)
        yield

    @app.application("slow", ressources={"slow": slow})
    async def handler(payload: int, slow: None) -> None: ...

    with pytest.raises(KeyboardInterrupt), app:
        pytest.fail("it has not started")
    assert "spa_dat background" not in threads()


def test_an_interrupt_while_the_thread_begins_ends_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = DistributedApplication("memory://", name="background", stop_timeout=0.1)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "spa_dat background":
            raise KeyboardInterrupt

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await asyncio.sleep(1000)
        yield

    @app.application("slow", ressources={"slow": slow})
    async def handler(payload: int, slow: None) -> None: ...

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), app:
        pytest.fail("it has not started")
    assert "spa_dat background" not in threads()
    assert not caplog.messages


def test_a_start_that_is_interrupted_before_it_has_begun_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = make()
    begun = threading.Event()

    def loop_after_the_interrupt() -> asyncio.AbstractEventLoop:
        begun.wait(60)
        return new_loop()

    def interrupted(futures: object, timeout: float) -> None:
        raise KeyboardInterrupt

    def abandoned(background: _background.Background) -> None:
        # When the thread makes its task, the start has been given up.
        background._abandoned = True
        begun.set()
        abandon(background)

    abandon = _background.Background._abandon
    monkeypatch.setattr(_background, "new_loop", loop_after_the_interrupt)
    monkeypatch.setattr(_background, "wait", interrupted)
    monkeypatch.setattr(_background.Background, "_abandon", abandoned)
    with pytest.raises(KeyboardInterrupt), app:
        pytest.fail("it has not started")
    assert "spa_dat background" not in threads()
    assert not caplog.messages


def test_an_interrupt_before_there_is_a_thread_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    app = DistributedApplication("memory://", name="background")

    def interrupted(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), app:
        pytest.fail("it has not started")
    monkeypatch.undo()
    with app:
        assert "spa_dat background" in threads()
