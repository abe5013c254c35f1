"""``spa-dat top``: a terminal view of running applications."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot
from textual.render import measure
from textual.widgets import DataTable, Static

from spa_dat import DistributedApplication, Reject
from spa_dat.cli import _live_pictures, _top_screen
from spa_dat.cli._admin_client import AdminClient
from spa_dat.cli._live_pictures import LiveApplication, LivePicture
from spa_dat.cli._main import main
from spa_dat.cli._top_screen import TopScreen

HOSTILE = "[red]no[/red]\x1b[2J\n[@click=app.quit]x"


@asynccontextmanager
async def running(name: str = "shop") -> AsyncIterator[tuple[DistributedApplication, str]]:
    """An application at work, and the address of its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    app = DistributedApplication("memory://", name=name, admin=address)

    @app.application("orders/{customer}")
    async def orders(payload: bytes) -> None:
        if payload == b"bad":
            raise Reject(HOSTILE)

    @app.application("returns")
    async def returns(payload: bytes) -> None:
        pass

    async with app:
        yield app, address


@asynccontextmanager
async def looking(*addresses: str, size: tuple[int, int] = (140, 30)) -> AsyncIterator[Pilot[None]]:
    """Somebody in front of a terminal."""
    watched = [LiveApplication(AdminClient(address, "")) for address in addresses]
    # It looks at the beginning, and then when the test wants it to.
    async with TopScreen(watched, 3_600.0).run_test(size=size) as pilot:
        yield pilot


def rows(pilot: Pilot[None]) -> dict[str, list[str]]:
    """What the table shows, by actor."""
    table = pilot.app.screen_stack[0].query_one("#actors", DataTable)
    shown = ([cell.plain for cell in table.get_row(key)] for key in table.rows)
    return {row[1]: row for row in shown}


def text(pilot: Pilot[None], selector: str) -> str:
    return str(pilot.app.screen.query_one(selector, Static).render())


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    assert isinstance(pilot.app, TopScreen)
    async with asyncio.timeout(60):
        while True:
            for application in pilot.app.applications:
                await pilot.app.look(application)
            await pilot.pause()
            if condition():
                return


async def test_it_shows_what_actors_do_and_what_is_pressed_is_done() -> None:
    async with running() as (app, address), looking(address) as pilot:
        await until(pilot, lambda: len(rows(pilot)) == 2)
        assert rows(pilot)["orders"][:3] == ["shop/0", "orders", "running"]
        for number in range(20):
            await app.socket().publish("orders/7", b"%d" % number)
        await app.socket().publish("orders/7", b"bad")
        await until(pilot, lambda: rows(pilot)["orders"][8] == "1")
        assert rows(pilot)["orders"][10] == "1"
        assert re.fullmatch(r"[\d.]+ (µs|ms|s)", rows(pilot)["orders"][5])
        await until(pilot, lambda: rows(pilot)["orders"][3] not in ("·", "0.0"))
        assert "ready" in text(pilot, "#state")

        await pilot.press("p")
        await until(pilot, lambda: rows(pilot)["orders"][2] == "paused")
        assert "paused" in text(pilot, "#state")
        await pilot.press("r")
        await until(pilot, lambda: rows(pilot)["orders"][2] == "running")


async def test_it_goes_down_to_one_actor_and_texts_of_strangers_are_only_texts() -> None:
    async with running() as (app, address), looking(address) as pilot:
        await app.socket().publish("orders/[bold]7", b"bad")
        await until(pilot, lambda: "orders" in rows(pilot) and rows(pilot)["orders"][8] == "1")
        await pilot.press("enter")
        await pilot.pause()
        shown = text(pilot, "#description")
        assert "[red]no[/red]\\x1b[2J\\n[@click=app.quit]x" in shown
        assert "orders/[bold]7" in shown
        assert "Reject" in shown
        await app.socket().publish("orders/8", b"bad")
        await until(pilot, lambda: "orders/8" in text(pilot, "#description"))
        await pilot.press("escape")
        await pilot.pause()
        assert len(pilot.app.screen_stack) == 1


async def test_a_restart_is_asked_about_first() -> None:
    async with running() as (_, address), looking(address) as pilot:
        await until(pilot, lambda: len(rows(pilot)) == 2)
        await pilot.press("R")
        await pilot.pause()
        assert "Restart orders?" in text(pilot, "#question")
        await pilot.press("n")
        await pilot.pause()
        assert len(pilot.app.screen_stack) == 1
        await pilot.press("R")
        await pilot.pause()
        await pilot.press("y")
        await until(pilot, lambda: bool(pilot.app._notifications))
        assert [one.message for one in pilot.app._notifications] == ["restart: orders"]


async def test_several_applications_and_those_that_are_away() -> None:
    async with running("east") as (_, one), AsyncExitStack() as stack:
        west = await stack.enter_async_context(AsyncExitStack())
        _, two = await west.enter_async_context(running("west"))
        pilot = await stack.enter_async_context(looking(one, two, "127.0.0.1:1"))
        await until(pilot, lambda: "no application answers" in text(pilot, "#state"))
        table = pilot.app.query_one("#actors", DataTable)
        await until(pilot, lambda: table.row_count == 4)
        await west.aclose()
        await until(pilot, lambda: text(pilot, "#state").count("no application answers") == 2)
        # What was known of it last stays.
        assert table.row_count == 4


async def test_applications_of_the_same_name_each_have_their_rows() -> None:
    async with running() as (_, one), running() as (_, two), looking(one, two, one) as pilot:
        table = pilot.app.query_one("#actors", DataTable)
        await until(pilot, lambda: table.row_count == 6)


async def test_what_is_twice_in_a_picture_is_shown_once() -> None:
    actor = {"name": "a", "kind": "actor", "bus": "b", "topics": [], "state": "running"}
    told = {"version": 1, "application": "x", "instance": "0", "pid": 1, "state": "ready"}
    server = await answering(json.dumps(told | {"clock": 1.0, "actors": [actor, actor]}).encode())
    host, port = server.sockets[0].getsockname()
    async with server, looking(f"{host}:{port}") as pilot:
        await until(pilot, lambda: list(rows(pilot)) == ["a"])


async def test_many_actors_whose_numbers_change_cost_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = 0

    def counting(*arguments: Any) -> int:
        nonlocal measured
        measured += 1
        return measure(*arguments)

    monkeypatch.setattr("textual.widgets._data_table.measure", counting)
    many, looks, columns = 100, 0, 12
    actor = {"kind": "actor", "bus": "b", "topics": [], "state": "running"}
    told = {"version": 1, "application": "x", "instance": "0", "pid": 1, "state": "ready"}

    class Answering(AdminClient):
        def ask(self, *_: object, **__: object) -> tuple[int, bytes]:
            nonlocal looks
            looks += 1
            # Wide and narrow in turns.
            failed = 1_000_000 if looks % 2 else 1
            actors = [actor | {"name": f"a{number}", "failed": failed} for number in range(many)]
            return 200, json.dumps(told | {"clock": float(looks), "actors": actors}).encode()

    watched = LiveApplication(Answering("127.0.0.1:1", ""))
    async with TopScreen([watched], 3_600.0).run_test(size=(140, 30)) as pilot:
        await until(pilot, lambda: looks >= 6)
        assert rows(pilot)["a7"][8] == ("1,000,000" if looks % 2 else "1")
    assert measured <= 5 * many * columns


async def test_of_thousands_of_actors_and_topics_the_first_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_top_screen, "_MOST_ROWS", 3)
    topics = [f"t{number}" for number in range(10_000)]
    actor = {"kind": "actor", "bus": "b", "topics": topics, "state": "running"}
    actors = [actor | {"name": f"a{number}"} for number in range(5)]
    told = {"version": 1, "application": "x", "instance": "0", "pid": 1, "state": "ready"}
    server = await answering(json.dumps(told | {"clock": 1.0, "actors": actors}).encode())
    host, port = server.sockets[0].getsockname()
    async with server, looking(f"{host}:{port}") as pilot:
        await until(pilot, lambda: list(rows(pilot)) == ["a0", "a1", "a2"])
        assert "2 more actors are not shown: filter them with /" in text(pilot, "#state")
        await pilot.press("enter")
        await pilot.pause()
        shown = text(pilot, "#description")
        assert "t19\n" in shown
        assert "and 9,980 more" in shown
        assert "t20\n" not in shown
        await pilot.press("escape", "slash", *"a4")
        await until(pilot, lambda: list(rows(pilot)) == ["a4"])
        assert "not shown" not in text(pilot, "#state")


async def test_rows_are_sorted_and_filtered() -> None:
    async with running() as (app, address), looking(address) as pilot:
        await until(pilot, lambda: list(rows(pilot)) == ["orders", "returns"])
        for _ in range(3):
            await app.socket().publish("orders/7", b"bad")
        await until(pilot, lambda: rows(pilot)["orders"][8] == "3")
        await pilot.press(*["s"] * 8)
        await until(pilot, lambda: list(rows(pilot)) == ["orders", "returns"])
        await pilot.press("slash", *"returns")
        await until(pilot, lambda: list(rows(pilot)) == ["returns"])
        await pilot.press("escape")
        await until(pilot, lambda: len(rows(pilot)) == 2)


async def test_a_terminal_that_is_too_small_says_so() -> None:
    async with running() as (_, address), looking(address, size=(40, 8)) as pilot:
        await pilot.pause()
        assert "40 x 8 is too small: make the terminal 60 x 10" in text(pilot, "#small")
        assert not pilot.app.query_one("#actors").display
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: len(rows(pilot)) == 2)
        assert pilot.app.query_one("#actors").display


def test_rates_begin_anew_with_a_new_process() -> None:
    def picture(pid: int, clock: float, handled: int) -> LivePicture:
        actor = {"name": "a", "kind": "actor", "bus": "b", "topics": [], "state": "running"}
        told = {"version": 1, "application": "x", "instance": "0", "pid": pid, "state": "ready"}
        told |= {"clock": clock, "actors": [actor | {"handled": handled}]}
        return msgspec.convert(told, LivePicture)

    seen = LiveApplication(AdminClient("127.0.0.1:1", ""))
    assert seen.rate("a") is None
    seen._take(picture(1, 10.0, 100))
    assert seen.rate("a") is None
    seen._take(picture(1, 12.0, 120))
    assert seen.rate("a") == 10.0
    seen._take(picture(2, 13.0, 5))
    assert seen.rate("a") is None
    seen._take(picture(2, 14.0, 8))
    assert (seen.rate("a"), seen.rate("b")) == (3.0, None)
    # As in a container, on another host or after the host was started again.
    seen._take(picture(2, 3.0, 0))
    assert seen.rate("a") is None
    seen._take(picture(2, 4.0, 7))
    assert seen.rate("a") == 7.0


async def test_json_prints_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    async with running() as (_, address):
        assert await asyncio.to_thread(main, ["top", address, address, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [actor["name"] for actor in first["actors"]] == ["orders", "returns"]
    assert second["pid"] == first["pid"]


async def answering(answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n"
        writer.write(head.encode() + answer)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


FAILED = (
    b'{"version": 1, "application": "x", "instance": "0", "pid": 1, "state": "", "clock": 1,'
    b' "actors": [{"name": "a", "kind": "", "bus": "", "topics": [], "state": "", %s}]}'
)


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"version": 2}',
        b"",
        FAILED % b'"failures": [{"at": 1e300, "where": "", "error": "", "text": ""}]',
        FAILED % (b'"handled": 1' + b"0" * 400),
    ],
)
async def test_what_is_no_picture_is_said(
    answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await answering(answer)
    host, port = server.sockets[0].getsockname()
    async with server:
        code = await asyncio.to_thread(main, ["top", f"{host}:{port}", "--json"])
    assert code == 2
    assert "answers what this version does not understand" in capsys.readouterr().err


async def test_a_picture_that_is_too_large_is_neither_read_nor_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_live_pictures, "_LARGEST", 2_000_000)
    right = FAILED % b'"handled": 1'
    servers = [await answering(right + b" " * (2_000_000 + more - len(right))) for more in (0, 1)]
    there = [LiveApplication(AdminClient(address_of(server), "")) for server in servers]
    for application in there:
        await application.look()
    fits, too_large = there
    assert (fits.trouble, fits.name) == (None, "x/0")
    assert too_large.picture is None
    said = f"{address_of(servers[1])} answers /live with more than 2 MB, which is too large"
    assert (too_large.trouble or "").startswith(said)
    for server in servers:
        server.close()
        await server.wait_closed()


def address_of(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()
    return f"{host}:{port}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["127.0.0.1:1", "--json"], "no application answers at 127.0.0.1:1"),
        (["somewhere", "--json"], "give HOST:PORT"),
        (["10.0.0.1:8085", "--json"], "SPA_DAT_ADMIN_TOKEN"),
        ([], "top needs a terminal; with --json it prints one picture"),
        (["--interval", "0.01"], "--interval 0.01: give at least 0.1 seconds"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
