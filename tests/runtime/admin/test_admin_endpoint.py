"""Probes over HTTP: what the admin endpoint of an application answers, and to whom."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import pytest

from spa_dat import Actor, DistributedApplication, on
from spa_dat.errors import ConfigurationError
from spa_dat.runtime.admin import _endpoint, _server
from spa_dat.runtime.application._health_report import HealthReport
from spa_dat.runtime.options._admin_address import AdminAddress
from support.waiting import eventually

TOKEN = "0123456789abcdef"


def make(**options: Any) -> DistributedApplication:
    app = DistributedApplication("memory://", name="plant", **{"admin": "127.0.0.1:0", **options})

    @app.application("a")
    async def boiler(payload: str) -> None: ...

    return app


@pytest.fixture
def port(caplog: pytest.LogCaptureFixture) -> Any:
    """Returns the port that an application has said it answers at."""
    caplog.set_level("INFO")

    def said() -> int:
        (line,) = [r.getMessage() for r in caplog.records if "answers probes" in r.getMessage()]
        return int(line.rpartition(":")[2])

    return said


async def sent(port: int, text: str) -> bytes:
    """Send a request as it is, and return all of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(text.encode())
        return await reader.read()
    finally:
        writer.close()


async def ask(port: int, path: str, *headers: str, method: str = "GET") -> tuple[int, Any]:
    lines = [f"{method} {path} HTTP/1.1", *(headers or ["Host: 127.0.0.1"]), "", ""]
    head, _, body = (await sent(port, "\r\n".join(lines))).decode().partition("\r\n\r\n")
    kind = "application/json" in head
    return int(head.split()[1]), json.loads(body) if kind else body.strip()


async def test_probes_are_answered_from_before_the_start_until_after_the_stop(port: Any) -> None:
    seen: list[tuple[int, Any]] = []
    app = make()

    class Pump(Actor):
        async def on_start(self) -> None:
            await self.see()

        @on("b")
        async def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            await self.see()

        async def see(self) -> None:
            seen.append(await ask(port(), "/healthz"))
            seen.append(await ask(port(), "/readyz"))

    app.add(Pump)
    async with app:
        assert await ask(port(), "/healthz") == (200, "alive")
        assert await ask(port(), "/readyz") == (200, {"ready": True, "reasons": {}})
        status, health = await ask(port(), "/health")
        assert status == 200
        assert (health["state"], health["application"]) == ("ready", "plant")
        assert [actor["name"] for actor in health["actors"]] == ["boiler", "Pump"]
    starting = "it is starting and is waiting for actor 'Pump'"
    assert seen[0] == seen[2] == (200, "alive")
    assert seen[1][0] == seen[3][0] == 503
    assert seen[1][1]["reasons"]["plant"].startswith(starting)
    assert seen[3][1]["reasons"] == {"plant": "it is stopping"}
    with pytest.raises(ConnectionRefusedError):
        await ask(port(), "/healthz")


async def test_a_handler_at_work_for_long_is_no_reason_to_send_nothing(port: Any) -> None:
    app = DistributedApplication("memory://", name="plant", admin="127.0.0.1:0", slow_after=0.1)
    go_on = asyncio.Event()

    @app.application("a")
    async def boiler(payload: str) -> None:
        await go_on.wait()

    async with app:
        await app.socket().publish("a", "1")
        await eventually(lambda: app.health().state == "degraded")
        assert (await ask(port(), "/readyz"))[0] == 200
        go_on.set()


async def test_who_has_no_token_learns_no_details(port: Any) -> None:
    async with make(admin_token=TOKEN):
        host = "Host: 127.0.0.1"
        assert (await ask(port(), "/healthz"))[0] == 200
        assert await ask(port(), "/readyz") == (200, {"ready": True})
        assert (await ask(port(), "/health"))[0] == 401
        for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xe9", ""):
            assert (await ask(port(), "/health", host, f"Authorization: {wrong}"))[0] == 401
        right = f"Authorization: Bearer {TOKEN}"
        assert (await ask(port(), "/health", host, right))[0] == 200
        assert (await ask(port(), "/readyz", host, right))[1]["reasons"] == {}


async def test_pages_of_other_sites_are_refused(port: Any) -> None:
    async with make():
        for refused in (
            ["Host: evil.example"],
            ["Host: 127.0.0.1.evil.example"],
            ["Host: 127.0.0.1", "Origin: http://evil.example"],
            ["Host: 127.0.0.1", "Origin: null"],
            ["Host: [::1"],
            ["Accept: */*"],
        ):
            status = (await ask(port(), "/health", *refused))[0]
            assert status in (400, 403), refused
        for allowed in (["Host: localhost:8085"], ["Host: [::1]:8085"], ["Host: 10.1.2.3"]):
            assert (await ask(port(), "/health", *allowed))[0] == 200
        assert (await ask(port(), "/other"))[0] == 404
        assert (await ask(port(), "/healthz", method="DELETE"))[0] == 405


async def test_clients_that_dawdle_or_send_too_much_hold_up_nobody(
    port: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_server, "_MOST_CONNECTIONS", 4)
    async with make():
        slow = [await asyncio.open_connection("127.0.0.1", port()) for _ in range(20)]
        for _, writer in slow:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert (await ask(port(), "/healthz"))[0] == 200
        for large in ("X: " + "x" * 100_000, "\r\n".join(f"X-{n}: 1" for n in range(1000))):
            answer = await sent(port(), f"GET /healthz HTTP/1.1\r\n{large}\r\n\r\n")
            assert b" 200 " not in answer
        assert (await ask(port(), "/healthz"))[0] == 200
        # Those that were there first were cut off.
        assert all([await _is_over(reader) for reader, _ in slow[:16]])
    for _, writer in slow:
        writer.close()
    assert not [r for r in caplog.records if r.name.startswith("aiohttp")]


async def _is_over(reader: asyncio.StreamReader) -> bool:
    try:
        return not await reader.read()
    except ConnectionResetError:
        return True


async def test_who_is_too_slow_is_cut_off(port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "_SECONDS", 0.05)
    async with make():
        reader, writer = await asyncio.open_connection("127.0.0.1", port())
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        assert await _is_over(reader)
        writer.close()


async def test_a_port_that_is_in_use_is_named_and_given_back_afterwards() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        app = make(admin=f"127.0.0.1:{taken}")
        text = f"admin=127.0.0.1:{taken}: the port is in use"
        with pytest.raises(ConfigurationError, match=text) as raised:
            await app.__aenter__()
        assert "\n" not in str(raised.value)
    async with app:
        assert (await ask(taken, "/healthz"))[0] == 200
    async with app:
        assert (await ask(taken, "/healthz"))[0] == 200


@pytest.mark.parametrize(
    "text", ["8085", ":8085", "127.0.0.1", "127.0.0.1:99999", "::1:80", "host:80", "127.0.0.1:-1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^admin='.*give HOST:PORT with an IP address"):
        make(admin=text)


def test_an_address_for_others_needs_a_token() -> None:
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0:1'.*set SPA_DAT_ADMIN_TOKEN"):
        make(admin="0.0.0.0:1")
    with pytest.raises(ConfigurationError, match="at least 16") as raised:
        make(admin="0.0.0.0:1", admin_token="secret")
    assert "secret" not in str(raised.value)
    make(admin="0.0.0.0:1", admin_token=TOKEN)


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f" {TOKEN}", f"{TOKEN}\0{TOKEN}", "é" * 16])
def test_a_token_that_cannot_be_sent_as_it_is_is_refused(token: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII") as raised:
        make(admin="127.0.0.1:1", admin_token=token)
    assert TOKEN not in str(raised.value)


async def test_the_environment_may_name_it(port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_DAT_ADMIN", "127.0.0.1:0")
    monkeypatch.setenv("SPA_DAT_ADMIN_TOKEN", TOKEN)
    async with make(admin=None):
        assert (await ask(port(), "/health"))[0] == 401
    monkeypatch.setenv("SPA_DAT_ADMIN", "here")
    with pytest.raises(ConfigurationError, match="SPA_DAT_ADMIN='here'"):
        make(admin=None)
    make(admin="")


async def test_without_the_library_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, _server.__name__)
    monkeypatch.delattr(sys.modules[_server.__package__], "_server")
    with pytest.raises(ConfigurationError, match=r"aiohttp is not installed.*'spa-dat\[admin\]'"):
        await make().__aenter__()


def test_each_worker_has_a_port_of_its_own() -> None:
    assert str(AdminAddress("127.0.0.1:8085", None).moved(2)) == "admin=127.0.0.1:8087"
    assert str(AdminAddress("[::1]:0", None).moved(2)) == "admin=[::1]:0"
    with pytest.raises(ConfigurationError, match="65536"):
        AdminAddress("127.0.0.1:65535", None).moved(1)


async def test_readiness_is_found_out_only_so_often_however_often_anybody_asks(
    port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_endpoint, "_READINESS_OF_ACTOR", 1000.0)
    monkeypatch.setattr(_endpoint, "_OLDEST_READINESS", 1000.0)
    app = make()
    looked = 0
    found = HealthReport.reasons_not_ready

    def look(report: HealthReport) -> dict[str, str]:
        nonlocal looked
        looked += 1
        return found(report)

    monkeypatch.setattr(HealthReport, "reasons_not_ready", look)
    async with app:
        for _ in range(3):
            assert (await ask(port(), "/readyz"))[0] == 200
        assert looked == 1
