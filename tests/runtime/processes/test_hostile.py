"""Handlers in child processes that do what they should not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spa_dat import Actor, Context, RetryPolicy, Socket, on
from spa_dat.errors import ConfigurationError, RemoteError
from spa_dat.recording import Recorder
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.hosting import _child_services
from support.memory import Site
from support.processes import add_worker, collect, make, pid_told
from support.waiting import eventually

ONCE = RetryPolicy(attempts=1)


async def test_printing_and_closing_standard_streams_does_no_harm(
    capfd: pytest.CaptureFixture[str],
) -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: str) -> str:
        if payload == "print":
            print("on output", flush=True)
            print("on errors", file=sys.stderr, flush=True)
        if payload == "close":
            for descriptor in (0, 1, 2):
                os.close(descriptor)
        return payload

    async with app:
        for text in ("print", "close", "b"):
            assert await app.socket().request("in", text) == text.encode()
        assert app.healthy
    shown = capfd.readouterr()
    assert "on output" in shown.out
    assert "on errors" in shown.err


async def test_a_handler_that_closes_every_descriptor_ends_its_process_and_nothing_else() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: str, socket: Socket) -> None:
        if payload == "close":
            os.closerange(3, 1024)
            return
        await socket.publish("out", payload)

    async with app:
        for text in ("close", "b"):
            await app.socket().publish("in", text)
        await eventually(lambda: got == ["b"])
        # It has done its work before it ended its process.
        assert app.stats["dead_letters.stored"] == 0


async def test_a_handler_that_writes_to_the_pipe_ends_its_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make()

    @app.application("in", placement="process", retry=ONCE)
    async def work(payload: str) -> str:
        if payload == "write":
            for descriptor in range(200, 210):
                with contextlib.suppress(OSError):
                    os.write(descriptor, b"\x00\x00\x00\x03garbage")
            await asyncio.sleep(60)
        return payload

    async with app:
        app.socket().post("in", "write")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        assert await app.socket().request("in", "b", timeout=60) == b"b"
    assert any("has written to the pipe" in record.getMessage() for record in caplog.records)


async def test_a_handler_that_forks_does_no_harm() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        # The fork goes on as if it were the child.
        os.fork()
        await socket.publish("out", payload)

    async with app:
        for number in range(3):
            await app.socket().publish("in", number)
        await eventually(lambda: len(got) == 3)
        await eventually(lambda: app.stats["messages.handled"] == 6)
        assert app.healthy
    assert got == [0, 1, 2]


async def test_what_a_child_has_not_sent_yet_is_not_sent_by_its_fork_too(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    app = make()

    @app.application("in", placement="process")
    async def work(payload: str) -> str:
        # What the child sends waits for the end of the turn of its event loop.
        logging.getLogger("handler").info("said once")
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return payload

    async with app:
        assert await app.socket().request("in", "a") == b"a"
        await eventually(lambda: "said once" in caplog.text)
        await eventually(lambda: app.stats["messages.handled"] == 1)
    assert caplog.text.count("said once") == 1
    assert "has forked has returned from that code, and is ended" in capfd.readouterr().err


async def test_a_fork_that_lives_on_does_not_hide_the_end_of_the_child() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: str, socket: Socket) -> None:
        if payload == "fork":
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        await socket.publish("out", payload)

    app.configure(next(spec for spec in app._registry.specs if spec.name == "work"), retry=ONCE)
    async with app:
        began = time.monotonic()
        await app.socket().publish("in", "fork")
        await app.socket().publish("in", "b")
        await eventually(lambda: got == ["b"])
        assert app.stats["dead_letters.stored"] == 1
        del began


async def test_multiprocessing_and_subprocess_work_inside() -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True
        )
        return int(done.stdout) + payload

    async with app:
        assert await app.socket().request("in", 1, reply=int, timeout=60) == 43


@pytest.mark.parametrize("kind", ["blocks", "thread", "swallows"])
async def test_what_goes_on_after_its_deadline_is_ended_with_its_process(kind: str) -> None:
    app = make()
    got = collect(app, "out")
    options: Any = {
        "placement": "process", "deadline": 0.3, "retry": RetryPolicy(attempts=2, first=0.01),
    }  # fmt: skip

    if kind == "thread":

        @app.application("in", **options)
        def work(payload: str, socket: Any) -> None:
            socket.publish("out", [payload, os.getpid()])
            if payload == "hang":
                time.sleep(3600)

    else:

        @app.application("in", name="work", **options)
        async def work_async(payload: str, socket: Socket) -> None:
            await socket.publish("out", [payload, os.getpid()])
            while payload == "hang":
                if kind == "blocks":
                    time.sleep(3600)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)

    async with app:
        await app.socket().publish("in", "hang")
        await app.socket().publish("in", "b")
        await eventually(lambda: len(got) == 3)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
    assert [text for text, _ in got] == ["hang", "hang", "b"]
    assert len({pid for _, pid in got}) == 3
    assert app.stats["messages.cut_off"] == 2


async def test_an_async_handler_is_cancelled_at_its_deadline_and_its_process_goes_on() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process", deadline=0.1, retry=ONCE)
    async def work(payload: str, socket: Socket) -> None:
        await socket.publish("out", [payload, os.getpid()])
        if payload == "slow":
            await asyncio.sleep(3600)

    async with app:
        await app.socket().publish("in", "slow")
        await app.socket().publish("in", "b")
        await eventually(lambda: len(got) == 2)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
    assert got[0][1] == got[1][1]


async def test_a_process_that_does_not_answer_is_named(caplog: pytest.LogCaptureFixture) -> None:
    app = make(blocked_after=1)
    told = add_worker(app)
    async with app:
        pid = await pid_told(app, told)
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: "has not answered" in app.problems.get("work", ""))
        os.kill(pid, signal.SIGCONT)
        await eventually(lambda: app.healthy)


async def test_replies_do_not_pile_up_for_a_process_that_does_not_take_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has got a request may answer it any number of times."""
    monkeypatch.setattr(_child_services, "MOST_WAITING", 1_000_000)
    site = Site()
    app = make(site.provider)

    @app.application("in", name="work", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        await socket.publish("out", os.getpid())
        if payload:
            await socket.publish("out", len(await socket.request("asked", reply=bytes, timeout=60)))

    told = collect(app, "out")
    responder = site.watch("asked")
    async with app:
        await app.socket().publish("in", 0)
        await eventually(lambda: told)
        await app.socket().publish("in", 1)
        await responder.get()
        request = responder.envelopes[0]
        assert request.response_topic is not None
        os.kill(told[0], signal.SIGSTOP)
        try:
            for _ in range(100):
                site.publish(request.response_topic, b"x" * 50_000, correlation=request.correlation)
            await eventually(lambda: app.stats["replies.dropped"])
        finally:
            os.kill(told[0], signal.SIGCONT)
        await eventually(lambda: told[2:] == [50_000])
        assert "which does not take them" in caplog.text


async def test_a_process_whose_loop_is_blocked_is_named_and_counted_once(tmp_path: Path) -> None:
    app = make(blocked_after=0.2)
    seen = tmp_path / "seen"

    @app.application("in", name="work", placement="process")
    async def work(payload: str, context: Context) -> None:
        # Until both sides have noticed.
        while not (seen.exists() and context.stats["loop.blocked"]):
            time.sleep(0.01)

    async with app:
        await app.socket().publish("in", "a")
        await eventually(lambda: "has not answered" in app.problems.get("work", ""))
        seen.touch()
        await eventually(lambda: app.stats["messages.handled"] == 1)
    assert app.stats["loop.blocked"] == 1


async def test_a_frozen_process_does_not_keep_the_program(tmp_path: Path) -> None:
    app = make(stop_timeout=0.5)
    told = add_worker(app)
    async with app:
        pid = await pid_told(app, told)
        os.kill(pid, signal.SIGSTOP)
    assert not Path(f"/proc/{pid}").exists()


async def test_a_start_that_never_ends_is_named_and_ended_with_the_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make(stop_timeout=0.2)

    class Slow(Actor):
        placement = "process"

        def on_start(self) -> None:
            time.sleep(3600)

        @on("in")
        async def work(self, payload: int) -> None: ...

    app.add(Slow)
    starting = asyncio.ensure_future(app.__aenter__())
    await eventually(lambda: "actor 'Slow'" in app.problems.get("plant", ""))
    app.stop()
    with pytest.raises(Exception, match="stopped while it was starting"):
        await starting


async def test_sys_exit_in_the_exit_of_a_resource_gives_the_exit_code_as_anywhere() -> None:
    app = make()

    @contextlib.contextmanager
    def exits() -> Iterator[None]:
        yield
        sys.exit(3)

    @app.application("in", placement="process", ressources={"exits": exits})
    async def work(payload: str) -> str:
        return payload

    with pytest.raises(SystemExit) as caught:
        async with app:
            await app.socket().request("in", "a")
    assert caught.value.code == 3


async def test_sys_exit_in_a_handler_ends_the_application_as_anywhere() -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: int) -> None:
        sys.exit(payload)

    async with app:
        app.socket().post("in", 7)
        with pytest.raises(SystemExit) as caught:
            await app.wait()
    assert caught.value.code == 7


async def test_too_many_lines_of_a_process_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: int) -> int:
        for number in range(payload):
            logging.getLogger("loud").warning("%d %s", number, "x" * 30_000)
        return payload

    async with app:
        assert await app.socket().request("in", 200, reply=int, timeout=60) == 200
        await eventually(lambda: caplog.records)
    assert len(caplog.records) <= 201


async def test_threads_that_go_on_do_not_keep_the_process() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        threading.Thread(target=time.sleep, args=(3600,)).start()
        await socket.publish("out", os.getpid())

    async with app:
        await app.socket().publish("in", 1)
        await eventually(lambda: got)
    assert not Path(f"/proc/{got[0]}").exists()


@pytest.mark.parametrize("call", ["post", "publish", "request"])
@pytest.mark.parametrize(
    "options",
    [{"headers": {"a": "\ud800"}}, {"headers": {"\ud800": "a"}}, {"key": "\ud800"}],
    ids=["header", "name", "key"],
)
async def test_a_text_that_no_pipe_carries_is_refused_at_the_call_and_leaves_nothing_behind(
    call: str, options: dict[str, Any]
) -> None:
    app = make(stop_timeout=60)

    @app.application("in", placement="process")
    async def work(payload: str, socket: Socket) -> str:
        try:
            sent: Any = getattr(socket, call)("out", "x", **options)
            if call != "post":
                await sent
        except ConfigurationError as error:
            # What waits for an answer that never comes would be waited for here.
            await socket.drain()
            return str(error)
        return "it was sent"

    async with app:
        refusal = await app.socket().request("in", "a", reply=str)
        assert "half of a surrogate pair" in refusal
    assert app.stats["actors.cut_off"] == 0


@pytest.mark.parametrize(
    "error",
    [RemoteError("x\ud800", "half \ud800"), RemoteError("long", "x" * 10_000_000)],
    ids=["surrogate", "long"],
)
async def test_an_error_that_no_pipe_carries_is_told_as_well_as_it_can_be(
    error: RemoteError, tmp_path: Path
) -> None:
    app = make()
    code, text = error.code, error.text

    @app.application("in", placement="process", retry=ONCE)
    async def work(payload: str) -> None:
        raise RemoteError(code, text)

    heard: list[BaseException] = []
    with Recorder(app, tmp_path / "record"):
        observer: Any = runs_of(app).settings.observer
        observer.failed = lambda actor, where, error, envelope: heard.append(error)
        async with app:
            await app.socket().publish("in", "a")
            await eventually(lambda: app.stats["dead_letters.stored"] == 1 and heard)
    told = heard[0]
    assert isinstance(told, RemoteError)
    assert told.code == code.replace("\ud800", "?")
    assert told.text.startswith(text[:5])
    assert len(told.text) < 100_000


async def test_an_exit_whose_text_no_pipe_carries_ends_the_application() -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: str) -> None:
        sys.exit("half \ud800")

    async with app:
        app.socket().post("in", "a")
        with pytest.raises(SystemExit, match=r"half \?"):
            await app.wait()


async def test_a_log_line_of_a_logger_whose_name_no_pipe_carries_fails_nothing() -> None:
    app = make()

    @app.application("in", placement="process")
    async def work(payload: str) -> str:
        logging.getLogger("half \ud800").warning("a line")
        return payload

    async with app:
        assert await app.socket().request("in", "a", reply=str) == "a"
