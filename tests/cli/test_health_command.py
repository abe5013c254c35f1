"""``spa-dat health``: what it says of running applications, and of what answers in their place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from spa_dat import DistributedApplication
from spa_dat.cli._main import main

TOKEN = "0123456789abcdef"

Said = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Runs a command in a thread; returns exit code, standard output and standard error."""
    for name in ("SPA_DAT_ADMIN", "SPA_DAT_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    async def run(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ("health", *arguments))
        return code, *capsys.readouterr()

    return run


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[str]:
    """An address where every request is answered so; None for never."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def unready(reasons: object) -> bytes:
    body = json.dumps({"ready": False, "reasons": reasons}).encode()
    return b"HTTP/1.1 503 no\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_an_application_says_that_it_is_ready(
    said: Said, host: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("SPA_DAT_ADMIN_TOKEN", TOKEN)
    app = DistributedApplication("memory://", name="plant", admin=f"{host}:0")

    @app.application("a")
    async def handler(payload: int) -> None: ...

    async with app:
        (line,) = [r.getMessage() for r in caplog.records if "answers probes" in r.getMessage()]
        port = line.rpartition(":")[2]
        where = f"127.0.0.1:{port}"
        monkeypatch.setenv("SPA_DAT_ADMIN", f"{host}:{port}")
        assert await said() == (0, f"{where} is ready\n", "")
        assert await said("--live") == (0, f"{where} is alive\n", "")
        code, out, _ = await said("--json")
        assert (code, json.loads(out)) == (0, {"address": where, "healthy": True, "reasons": {}})
    code, out, err = await said()
    assert (code, err) == (1, "")
    assert out == f"{where} is not ready: no answer: Connection refused\n"


async def test_it_says_why_an_application_is_not_ready(said: Said) -> None:
    reasons = {"mqtt://broker": "there is no connection", "boiler": "evil\x1b[2J\nline"}
    async with answering(unready(reasons)) as address:
        code, out, _ = await said(address)
        assert code == 1
        assert out == (
            f"{address} is not ready: mqtt://broker: there is no connection; boiler:"
            " evil\\x1b[2J line\n"
        )
        code, out, _ = await said(address, "--json")
        assert (code, json.loads(out)["reasons"]) == (1, reasons)


@pytest.mark.parametrize("reasons", [None, [], "text", {}])
async def test_who_gives_no_reasons_is_not_ready_either(said: Said, reasons: object) -> None:
    async with answering(unready(reasons)) as address:
        assert await said(address) == (1, f"{address} is not ready\n", "")


async def test_each_worker_is_asked(said: Said) -> None:
    async with answering(b"HTTP/1.1 200 yes\r\nContent-Length: 0\r\n\r\n") as address:
        # Nobody who answers probes is at the next port.
        code, out, _ = await said(address, "--workers", "2", "--timeout", "1")
        assert code == 1
        first, second = out.splitlines()
        assert first == f"{address} is ready"
        host, port = address.split(":")
        assert second.startswith(f"{host}:{int(port) + 1} is not ready: ")


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: "])
async def test_an_answer_that_never_ends_is_none(said: Said, head: bytes) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        while not reader.at_eof():
            writer.write(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.01)
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, out, err = await said(where, "--timeout", "0.2")
    assert (code, err) == (1, "")
    assert out == f"{where} is not ready: no answer within 0.2 s\n"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "no answer within 0.1 s"),
        (b"", "no answer: "),
        (b"SSH-2.0-x\r\n", "no answer: "),
        (b"HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n", "status 404: perhaps something else"),
    ],
)
async def test_what_is_no_application_is_not_ready(
    said: Said, answer: bytes | None, text: str
) -> None:
    async with answering(answer) as address:
        code, out, err = await said(address, "--timeout", "0.1" if answer is None else "30")
        assert (code, err) == (1, "")
        assert out.startswith(f"{address} is not ready: {text}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "there is no address: .*SPA_DAT_ADMIN"),
        (("broker:8085",), "'broker:8085': give HOST:PORT with an IP address"),
        (("127.0.0.1:0",), "'127.0.0.1:0': give HOST:PORT"),
        (("127.0.0.1:65535", "--workers", "2"), "'127.0.0.1:65535': give HOST:PORT"),
        (("127.0.0.1:8085", "--workers", "0"), "'0': give a whole number from 1"),
    ],
)
async def test_a_wrong_command_is_explained(
    said: Said, arguments: tuple[str, ...], text: str
) -> None:
    code, out, err = await said(*arguments)
    assert (code, out) == (2, "")
    assert re.match(f"spa-dat: .*{text}", err)
