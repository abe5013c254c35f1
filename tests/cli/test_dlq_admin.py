"""``spa-dat dlq --admin``: dead letters through the application that keeps them in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from spa_dat import DistributedApplication, Reject
from spa_dat.cli._admin_client import AdminClient
from spa_dat.cli._main import main
from support.waiting import eventually

TOKEN = "0123456789abcdef"


class Bakery:
    """An application on ``memory://`` whose actor fails until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.port = 0
        self.got: list[str] = []
        self.free = asyncio.Event()
        self.free.set()
        self.app = DistributedApplication(
            "memory://", name="plant", admin="127.0.0.1:0", admin_token=TOKEN
        )

        @self.app.application("bread", name="oven")
        async def bake(payload: str) -> None:
            self.got.append(payload)
            await self.free.wait()
            if not self.mended:
                raise Reject("too hot")

    @asynccontextmanager
    async def with_letters(self, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bakery]:
        """Run it until two messages have failed."""
        caplog.set_level("INFO")
        async with self.app as app:
            (line,) = [r.getMessage() for r in caplog.records if "answers probes" in r.getMessage()]
            self.port = int(line.rpartition(":")[2])
            for text in ("white", "brown"):
                await app.socket().publish("bread", text, headers={"site": "a"})
            await eventually(lambda: app.stats["dead_letters.stored"] == 2)
            yield self

    async def ask(self, method: str, path: str, *headers: str) -> tuple[int, str]:
        """Send a request, with the token unless headers are given; returns status and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        own = headers or (f"Authorization: Bearer {TOKEN}", "Content-Type: application/json")
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *own, "", ""]
        writer.write("\r\n".join(lines).encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body


Told = Callable[..., Any]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """Runs ``spa-dat dlq`` with an admin endpoint; returns exit code, output and notices."""
    monkeypatch.setenv("SPA_DAT_ADMIN_TOKEN", TOKEN)

    async def run(command: str, port: int, *arguments: str) -> tuple[int, list[Any], str]:
        where = ("--admin", f"127.0.0.1:{port}")
        given = ["dlq", command, "memory://", *arguments, *where]
        if "--application" not in given:
            given += ["--application", "plant"]
        code = await asyncio.to_thread(main, given)
        out, err = capfd.readouterr()
        lines = out.splitlines()
        return code, [json.loads(line) for line in lines] if "--json" in given else lines, err

    return run


async def test_letters_in_memory_are_listed_shown_replayed_and_discarded(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    bakery = Bakery()
    async with bakery.with_letters(caplog):
        code, letters, notice = await told("list", bakery.port, "--json", "--error", "HOT")
        assert (code, notice) == (0, "spa-dat: dead letters: 2\n")
        assert [letter["text"] for letter in letters] == ["too hot"] * 2
        assert (await told("list", bakery.port, "--actor", "clerk"))[1] == []
        first, second = [letter["letter"] for letter in letters]
        code, (shown,), _ = await told("show", bakery.port, first, "--json")
        assert (code, shown["message"]["payload"]) == (0, "white")
        assert shown["message"]["headers"]["site"] == "a"
        assert (await told("show", bakery.port, "none"))[0] == 1
        assert (await told("replay", bakery.port, "--all", "--dry-run", "--json"))[1] == letters
        bakery.got.clear()
        code, lines, _ = await told("replay", bakery.port, first)
        assert (code, lines) == (1, [f"{first}  failed: Reject: too hot"])
        bakery.mended = True
        code, lines, _ = await told("replay", bakery.port, first)
        assert (code, lines) == (0, [f"{first}  handled"])
        assert bakery.got == ["white", "white"]
        assert (await told("discard", bakery.port, "--all"))[:2] == (0, [f"{second}  discarded"])
        assert (await told("list", bakery.port))[2] == "spa-dat: dead letters: 0\n"


async def test_who_is_wrong_there_is_told_so(
    told: Told, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bakery = Bakery()
    async with bakery.with_letters(caplog):
        code, _, notice = await told("list", bakery.port, "--application", "other")
        assert (code, "application 'plant' answers" in notice) == (2, True)
        code, _, notice = await told("replay", bakery.port, "--all", "--instance", "7")
        assert (code, "instance '0' answers" in notice) == (2, True)
        code, _, notice = await told("show", bakery.port, "x" * 3_000)
        assert (code, "too long" in notice) == (2, True)
        monkeypatch.setenv("SPA_DAT_ADMIN_TOKEN", "f" * 16)
        code, _, notice = await told("list", bakery.port)
        assert (code, "requires a token" in notice) == (2, True)
    code, _, notice = await told("list", bakery.port)
    assert (code, "no application answers at 127.0.0.1" in notice) == (2, True)
    assert main(["dlq", "list", "memory://", "--application", "plant"]) == 2


async def test_an_endpoint_that_does_not_know_a_request_is_an_error(
    told: Told, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = AdminClient.ask

    def strange(
        client: AdminClient, method: str, line: str, *, timeout: float
    ) -> tuple[int, bytes]:
        if method == "POST":
            return 404, b"no such page\n"
        return ask(client, method, line, timeout=timeout)

    monkeypatch.setattr(AdminClient, "ask", strange)
    bakery = Bakery()
    async with bakery.with_letters(caplog):
        code, _, notice = await told("discard", bakery.port, "--all")
        assert (code, "answers with 404: no such page" in notice) == (2, True)


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (("GET", "/dead-letters"), ("Accept: */*",), 401),
        (("POST", "/dead-letters/x/discard"), ("Content-Type: application/json",), 401),
        (("POST", "/dead-letters/x/discard"), (f"Authorization: Bearer {TOKEN}",), 415),
        (
            ("POST", "/dead-letters/x/discard"),
            (
                f"Authorization: Bearer {TOKEN}",
                "Content-Type: application/json",
                "Origin: http://evil.example",
            ),
            403,
        ),
        (("POST", "/dead-letters/x/eat"), (), 405),
        (("GET", "/dead-letters/x/replay"), (), 405),
        (("POST", "/dead-letters"), (), 404),
        (("GET", "/dead-letters/a/b/c"), (), 404),
        (("GET", "/dead-letters/x"), (), 404),
        (("GET", "/dead-letters?since=-1"), (), 400),
        (("GET", "/dead-letters?limit=nan"), (), 400),
        (("GET", "/dead-letters?colour=red"), (), 400),
        (("GET", "/dead-letters?bus=mqtt://elsewhere"), (), 400),
        (("GET", "/dead-letters?limit=1"), (), 200),
    ],
)
async def test_requests_that_nobody_means_change_nothing(
    request_line: tuple[str, str],
    headers: tuple[str, ...],
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bakery = Bakery()
    async with bakery.with_letters(caplog):
        assert (await bakery.ask(*request_line, *headers))[0] == status
        _, body = await bakery.ask("GET", "/dead-letters")
        assert len(json.loads(body)["dead_letters"]) == 2


async def test_what_is_replayed_may_take_longer_than_a_probe(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bakery = Bakery()
    async with bakery.with_letters(caplog):
        monkeypatch.setattr("spa_dat.runtime.admin._server._SECONDS", 1.0)
        _, body = await bakery.ask("GET", "/dead-letters?limit=1")
        told = json.loads(body)
        assert told["more"]
        name = told["dead_letters"][0]["letter"]
        bakery.free.clear()
        replaying = asyncio.ensure_future(bakery.ask("POST", f"/dead-letters/{name}/replay"))
        await eventually(lambda: len(bakery.got) == 3)
        # Somebody who comes later and asks for nothing is cut off first.
        reader, writer = await asyncio.open_connection("127.0.0.1", bakery.port)
        assert await reader.read() == b""
        writer.close()
        bakery.free.set()
        status, body = await replaying
        assert (status, json.loads(body)["outcome"]) == (200, "failed")


async def test_a_slow_actor_does_not_end_the_command(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    bakery = Bakery()
    async with bakery.with_letters(caplog):
        bakery.mended = True
        bakery.free.clear()
        code, outcomes, _ = await told("replay", bakery.port, "--all", "--json", "--timeout", "0.2")
        assert code == 1
        assert len(outcomes) == 2
        assert {one["outcome"] for one in outcomes} == {"refused"}
        assert all("may still be handled" in one["why"] for one in outcomes)
        bakery.free.set()
        await eventually(lambda: len(bakery.got) == 4)
