"""The live picture: what the admin endpoint tells and shows of actors, and what it does to them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from spa_dat import Actor, DistributedApplication, Reject, RetryPolicy, Socket, on
from spa_dat.errors import RemoteError
from spa_dat.runtime.admin import _live_feed, _server
from spa_dat.runtime.admin._live_observer import LiveObserver
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.diagnostics import _figures
from spa_dat.runtime.diagnostics._figures import PublishFigures, Times
from spa_dat.transports import TopicFilter
from support.processes import add_worker, make as with_processes
from support.waiting import eventually

TOKEN = "0123456789abcdef"


class Client:
    """Sends requests to the admin endpoint of an application."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(
        self, method: str, path: str, *headers: str, body: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", body]
        writer.write("\r\n".join(lines).encode())
        return reader, writer

    async def ask(self, method: str, path: str, *headers: str, body: str = "") -> tuple[int, Any]:
        reader, writer = await self.open(method, path, *headers, body=body)
        head, _, answer = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        is_json = "application/json" in head
        return int(head.split()[1]), json.loads(answer) if is_json else answer.strip()

    async def look(self) -> Any:
        """Return a picture that is made now."""
        status, picture = await self.ask("GET", "/live")
        assert status == 200
        return picture

    async def order(self, *headers: str, **order: Any) -> tuple[int, Any]:
        body = json.dumps(order)
        length, kind = f"Content-Length: {len(body)}", "Content-Type: application/json"
        return await self.ask("POST", "/live/control", *(headers or (kind,)), length, body=body)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a picture gets a new one."""
    monkeypatch.setattr(_live_feed, "_PAUSE", 0.0)
    monkeypatch.setattr(_live_feed, "_MOST", 1e9)


@asynccontextmanager
async def running(app: DistributedApplication) -> AsyncIterator[Client]:
    admin = app.__dict__["_runs"].settings.admin
    async with app:
        yield Client(admin.port)


def actor(picture: Any, name: str) -> Any:
    (found,) = [one for one in picture["actors"] if one["name"] == name]
    return found


@pytest.mark.usefixtures("often")
async def test_the_picture_shows_what_actors_do(free_port: int) -> None:
    app = DistributedApplication("memory://", name="plant", admin=f"127.0.0.1:{free_port}")
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Control(Actor):
        @on("plant/{machine}/temperature")
        async def measured(self, payload: str, machine: str, socket: Socket) -> None:
            socket.post(f"plant/{machine}/alarm", payload)
            socket.post(f"elsewhere/{machine}", payload)

        @on("plant/ask")
        async def asked(self, payload: str) -> str:
            if payload == "no":
                raise RemoteError("refused", "no")
            return payload

    @app.application("plant/+/alarm", retry=RetryPolicy(attempts=2, first=5))
    async def alarm(payload: str) -> None:
        if payload == "retry":
            raise ValueError("no\nsensor " + "x" * 1000)
        raise Reject("bad")

    @app.application("plant/batch", batch=(2, 0.01))
    async def batches(payload: list[str]) -> None: ...

    @app.application("plant/slow")
    async def slow(payload: str) -> None:
        entered.set()
        await go_on.wait()

    @app.producer(every=1000)
    async def thermometer(socket: Socket) -> None:
        await socket.publish("plant/north/temperature", "1")
        await socket.publish("plant/south/temperature", "2")

    app.add(Control)
    async with running(app) as client:
        await eventually(lambda: app.stats["dead_letters.stored"] == 2)
        assert await app.socket().request("plant/ask", "yes", reply=str) == "yes"
        with pytest.raises(RemoteError):
            await app.socket().request("plant/ask", "no")
        for number in range(4):
            await app.socket().publish("plant/batch", f"{number}")
        await app.socket().publish("plant/slow", "1")
        await app.socket().publish("plant/slow", "2" * 100)
        await app.socket().publish("plant/\x1b[31m/alarm".replace("\x1b", "e"), "retry")
        await entered.wait()
        await eventually(lambda: app.stats["messages.failed"] >= 4)
        picture = await client.look()
        while actor(picture, "batches")["handled"] < 4:
            picture = await client.look()
        go_on.set()

    assert (picture["version"], picture["application"], picture["state"]) == (1, "plant", "ready")
    control = actor(picture, "Control")
    assert control["handled"] == 4
    assert control["failed"] == 0, "an error may be the answer"
    assert 0 < control["latency"]["p50"] <= control["latency"]["p99"] < 60
    assert control["topics"] == ["plant/{machine}/temperature", "plant/ask"]
    failing = actor(picture, "alarm")
    assert (failing["handled"], failing["failed"], failing["retrying"]) == (2, 3, 1)
    assert failing["dead_letters"] == 2
    assert failing["failures"][0]["error"] == "Reject"
    last = failing["failures"][-1]
    assert (last["error"], last["topic"]) == ("ValueError", "plant/e[31m/alarm")
    assert last["text"].startswith("no\\nsensor xxx")
    assert len(last["text"]) == 300
    assert (actor(picture, "slow")["mailbox"], actor(picture, "slow")["attempts"]) == (1, 1)
    assert actor(picture, "slow")["mailbox_bytes"] == 100
    assert actor(picture, "thermometer")["handled"] == 1
    assert actor(picture, "thermometer")["every"] == 1000

    published = {(one["actor"], one["topic"]): one for one in picture["publishes"]}
    assert published["thermometer", "plant/{machine}/temperature"]["count"] == 2
    assert published["Control", "plant/+/alarm"]["count"] == 2
    assert published["Control", "elsewhere/north"]["declared"] is False
    assert published[None, "plant/batch"]["count"] == 4
    assert not [topic for _, topic in published if "reply" in topic]
    received = {(one["actor"], one["topic"]): one["count"] for one in picture["receives"]}
    assert received["batches", "plant/batch"] == 4
    assert received["Control", "plant/{machine}/temperature"] == 2
    assert received["slow", "plant/slow"] == 0


@pytest.mark.usefixtures("often")
async def test_counts_are_exact_although_few_messages_are_timed(free_port: int) -> None:
    app = DistributedApplication("memory://", name="plant", admin=f"127.0.0.1:{free_port}")
    measurements = runs_of(app).settings.measurements
    assert measurements is not None
    measurements.all_timed, measurements.one_in = 1, 100

    class Control(Actor):
        @on("a/{x}")
        async def first(self, payload: int) -> None:
            if payload % 10 == 0:
                raise Reject("no")

        @on("b")
        async def second(self, payload: int) -> None: ...

    @app.application("c", batch=(50, 0.01), retry=RetryPolicy(attempts=1))
    async def together(payload: list[int]) -> None:
        if 1 in payload:
            raise ValueError

    app.add(Control)
    async with running(app) as client:
        socket = app.socket()
        for number in range(300):
            await socket.publish("a/1", number)
            await socket.publish("b", number)
            await socket.publish("c", number)
        socket.post("a/1", b"undecodable")
        socket.post("c", b"undecodable")
        await socket.drain()
        await eventually(lambda: app.stats["dead_letters.stored"] == 30 + 1 + 1 + 1)
        while actor(picture := await client.look(), "together")["handled"] < 301:
            pass
        while actor(picture := await client.look(), "Control")["handled"] < 601:
            pass
    received = {(one["actor"], one["topic"]): one["count"] for one in picture["receives"]}
    assert received == {
        ("Control", "a/{x}"): 301,
        ("Control", "b"): 300,
        ("together", "c"): 301,
    }
    assert 0 < actor(picture, "Control")["latency"]["count"] <= 601
    report = app.stop_report
    assert report is not None
    assert (report.handled, report.dead_letters) == (901 - 32, 33)


@pytest.mark.usefixtures("often")
async def test_the_name_of_a_file_may_be_what_json_cannot_have(free_port: int) -> None:
    app = DistributedApplication(
        "memory://", name="plant", admin=f"127.0.0.1:{free_port}", slow_after=0.05
    )
    go_on = asyncio.Event()
    code = "async def slow(payload: str) -> None:\n    await go_on.wait()\n"
    module: dict[str, Any] = {"go_on": go_on}
    exec(compile(code, "caf\udce9.py", "exec"), module)
    app.application("a")(module["slow"])
    async with running(app) as client:
        await app.socket().publish("a", "1")
        while not (stalled := actor(picture := await client.look(), "slow")["stalled"]):
            pass
        assert "caf\\udce9.py" in stalled[0]["where"]
        assert "caf\\udce9.py" in picture["problems"]["slow"]
        assert actor(picture, "slow")["state"] == "stalled"
        go_on.set()


@pytest.mark.usefixtures("often")
async def test_actors_are_paused_resumed_and_restarted_by_request(free_port: int) -> None:
    app = with_processes(admin=f"127.0.0.1:{free_port}")
    told = add_worker(app)
    async with running(app) as client:
        assert await client.order(action="pause", actor="work") == (200, {"done": True})
        await app.socket().publish("in", 1)
        await eventually(lambda: app.health().actors[0].mailbox == 1)
        assert actor(await client.look(), "work")["state"] == "paused"
        assert told == []
        assert (await client.order(action="resume", actor="work"))[0] == 200
        await eventually(lambda: told)
        while not (picture := await client.look())["actors"][0]["handled"]:
            pass
        assert [one["actor"] for one in picture["publishes"] if one["topic"] == "out"] == ["work"]
        assert actor(picture, "work")["latency"] is None
        status, why = await client.order(action="restart", actor="work")
        assert (status, "runs in child processes" in why) == (409, True)
        assert (await client.order(action="restart", actor="collector"))[0] == 200
        assert (await client.order(action="restart", actor="nobody"))[0] == 404
        assert (await client.order(action="explode", actor="work"))[0] == 400
        assert (await client.order(action="pause", actor="work", more=1))[0] == 400
        assert (await client.order(action="pause", actor="x" * 5000))[0] == 413


async def test_only_who_may_gets_a_picture_or_gives_orders(free_port: int) -> None:
    app = DistributedApplication(
        "memory://", name="plant", admin=f"127.0.0.1:{free_port}", admin_token=TOKEN
    )

    @app.application("a")
    async def pump(payload: str) -> None: ...

    json_type, token = "Content-Type: application/json", f"Authorization: Bearer {TOKEN}"
    order = {"action": "pause", "actor": "pump"}
    async with running(app) as client:
        for path in ("/live", "/live/events"):
            assert (await client.ask("GET", path))[0] == 401
        assert (await client.order(json_type, **order))[0] == 401
        # What a page of another site can have a browser send.
        for sent in ("Content-Type: text/plain", "X: 1"):
            assert (await client.order(token, sent, **order))[0] == 415
        evil = "Origin: http://evil.example"
        assert (await client.order(token, json_type, evil, **order))[0] == 403
        assert (await client.ask("GET", "/live/control", token))[0] == 405
        assert (await client.ask("POST", "/live", token))[0] == 405
        assert (await client.ask("OPTIONS", "/live/control", evil))[0] == 403
        assert app.healthy
        assert (await client.ask("GET", "/live", token))[0] == 200
        assert (await client.order(token, json_type, "Origin: http://127.0.0.1", **order))[0] == 200
        assert not app.healthy


async def test_all_who_look_share_the_pictures(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live_feed, "_PAUSE", 0.05)
    monkeypatch.setattr(_live_feed, "_MOST", 1e9)
    monkeypatch.setattr(_server, "_MOST_STREAMS", 2)
    monkeypatch.setattr(_server, "_MOST_CONNECTIONS", 2)
    monkeypatch.setattr(_server, "_SECONDS", 0.2)
    app = DistributedApplication("memory://", name="plant", admin=f"127.0.0.1:{free_port}")

    @app.application("a")
    async def pump(payload: str) -> None: ...

    async def next_picture(reader: asyncio.StreamReader) -> tuple[int, Any]:
        lines = [await reader.readuntil(b"\n") for _ in range(2)]
        while not lines[-2].startswith(b"id: "):
            lines.append(await reader.readuntil(b"\n"))
        return int(lines[-2][4:]), json.loads(lines[-1].removeprefix(b"data: "))

    async with running(app) as client:
        streams = [await client.open("GET", "/live/events") for _ in range(2)]
        first = [await next_picture(reader) for reader, _ in streams]
        assert first[0][1]["actors"][0]["name"] == "pump"
        assert (await client.ask("GET", "/live/events"))[0] == 503
        # They are among the connections that are cut off no more than after their time.
        idle = [await asyncio.open_connection("127.0.0.1", free_port) for _ in range(4)]
        assert [await reader.read() for reader, _ in idle[-1:]] == [b""]
        later = [await next_picture(reader) for reader, _ in streams]
        assert [number for number, _ in later] > [number for number, _ in first]
        both = [dict([await next_picture(reader) for _ in range(3)]) for reader, _ in streams]
        common = both[0].keys() & both[1].keys()
        assert common
        assert all(both[0][number] == both[1][number] for number in common)
        streams[0][1].close()
        await eventually(lambda: _looking(app) == 1)
    for _, writer in (*streams, *idle):
        writer.close()


def _looking(app: DistributedApplication) -> int:
    run = app.__dict__["_runs"].current
    return len(run.__dict__["_admin"].__dict__["_server"].__dict__["_streams"])


async def test_who_takes_no_pictures_is_sent_no_more(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live_feed, "_PAUSE", 0.0)
    monkeypatch.setattr(_live_feed, "_MOST", 1e9)
    monkeypatch.setattr(_server, "_SLOWEST", 0.05)
    app = DistributedApplication("memory://", name="plant", admin=f"127.0.0.1:{free_port}")

    async def large(self: LiveObserver) -> bytes:
        return b"x" * 1_000_000

    monkeypatch.setattr(LiveObserver, "document", large)
    async with running(app) as client:
        _, writer = await client.open("GET", "/live/events")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await eventually(lambda: _looking(app) == 1)
        await eventually(lambda: _looking(app) == 0)
        assert (await client.ask("GET", "/healthz"))[0] == 200
        writer.close()


async def test_a_picture_is_made_once_for_all_and_no_more_often_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = 0

    async def make() -> bytes:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return b"{}"

    monkeypatch.setattr(_live_feed, "_PAUSE", 1000.0)
    feed = _live_feed.LiveFeed(make)
    shown = await asyncio.gather(*(feed.latest() for _ in range(5)), feed.after(0))
    assert {one.number for one in shown} == {1}
    assert await feed.latest() == shown[0]
    assert made == 1


def test_published_topics_are_counted_without_end_but_told_apart_within_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_figures, "_MOST_REMEMBERED", 50)
    figures = PublishFigures()
    figures.take([TopicFilter.parse("plant/{machine}/x"), TopicFilter.parse("plant/+/x")])
    figures.take([TopicFilter.parse("plant/#")])
    for number in range(1000):
        figures.add("a", f"plant/{number}/x")
        figures.add("a", f"made-up/{number}")
        figures.add("b", "made-up/1" + "x" * 1000)
    edges = {(edge.source, edge.topic): edge.count for edge in figures.edges}
    assert edges["a", "plant/{machine}/x"] == edges["a", "plant/#"] == 1000
    assert len(edges) == 202
    assert figures.left_out == 800 + 1000


def test_there_are_not_more_edges_than_anybody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_figures, "_MOST_EDGES", 3)
    figures = PublishFigures()
    for number in range(10):
        figures.add(f"{number}", "a")
    assert (len(figures.edges), figures.left_out) == (3, 7)


@pytest.mark.parametrize("took", [0, 1, 15, 16, 1000, 123_456, 10**9, 3 * 10**12])
def test_a_time_is_known_to_six_percent(took: int) -> None:
    times = Times()
    assert times.latency() is None
    times.add(took)
    times.turn()
    latency = times.latency()
    assert latency is not None
    assert latency.p50 * 1e9 == pytest.approx(took, rel=0.0625, abs=1)
    times.turn()
    assert times.latency() is None


def test_quantiles_are_those_of_all_calls() -> None:
    times = Times()
    for took in range(1, 1001):
        times.add(took * 1000)
    latency = times.latency()
    assert latency is not None
    assert latency.p50 == pytest.approx(0.0005, rel=0.0625)
    assert latency.p99 == pytest.approx(0.00099, rel=0.0625)
