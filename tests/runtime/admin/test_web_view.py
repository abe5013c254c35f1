"""The web view of the admin endpoint: its files, and what it does in a real browser."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket as sockets
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from spa_dat import Actor, DistributedApplication, RetryPolicy, Socket, on
from spa_dat.runtime.admin import _server
from spa_dat.testing import Kafka, Mosquitto
from support.waiting import eventually

TOKEN = "0123456789abcdef"
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
VIEW = Path(_server.__file__).parent / "view"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@asynccontextmanager
async def browsing(port: int) -> AsyncIterator[Page]:
    """Open the page of the application at this port; nothing it says in its console is good."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium")
        pytest.skip("there is no Chromium")
    async with async_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = await playwright.chromium.launch(executable_path=browser, args=args)
        try:
            page = await chromium.new_page()
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: said.append(dialog.message))
            await page.goto(f"http://127.0.0.1:{port}/")
            yield page
            # A browser itself notes answers such as 401.
            assert [text for text in said if "Failed to load resource" not in text] == []
        finally:
            await chromium.close()


@pytest.fixture
def port() -> int:
    with sockets.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number


async def test_an_application_is_looked_at_and_mended(port: int) -> None:
    app = DistributedApplication(
        "memory://", name="plant", admin=f"127.0.0.1:{port}", admin_token=TOKEN
    )
    starts = 0
    mended = False
    got: list[str] = []

    class Boiler(Actor):
        retry = RetryPolicy(attempts=1)

        async def on_start(self) -> None:
            nonlocal starts
            starts += 1

        @on("plant/{machine}/temperature")
        async def measured(self, payload: str, machine: str, socket: Socket) -> None:
            if not mended:
                raise ValueError(HOSTILE)
            got.append(payload)
            socket.post("plant/alarm", payload)

    app.add(Boiler)

    async with app:
        await app.socket().publish(f"plant/{HOSTILE.replace('/', '')}/temperature", "95")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        async with browsing(port) as page:
            for token, said in (("wrong", "that is not the token"), (TOKEN, "live")):
                await page.get_by_label("Token").fill(token)
                await page.get_by_role("button", name="Look").click()
                await expect(page.locator("#link")).to_have_text(said)
            row = page.get_by_role("row", name="Boiler running")
            await expect(row).to_be_visible()
            await expect(page.get_by_role("heading", level=1)).to_have_text("plant")
            graph = page.get_by_role("group", name="Who publishes to whom")
            await expect(graph.get_by_role("link", name="Actor Boiler")).to_be_visible()
            # Its cause is read.
            failure = page.get_by_role("row", name="ValueError").first
            await expect(failure).to_contain_text(HOSTILE)
            assert await page.locator("img").count() == 0
            # It is mended and replayed.
            mended = True
            await page.get_by_role("button", name="List", exact=True).click()
            await page.get_by_role("button", name="Replay the dead letter of Boiler").click()
            await expect(page.locator("#letters-note")).to_have_text("handled")
            assert got == ["95"]
            # It is paused and resumed, by keyboard.
            await page.get_by_role("button", name="Pause Boiler").press("Enter")
            await expect(page.get_by_role("row", name="Boiler paused")).to_be_visible()
            await expect(page.locator("#problems")).to_contain_text("Boiler: it is paused")
            assert app.problems == {"Boiler": "it is paused"}
            await page.get_by_role("button", name="Resume Boiler").press("Enter")
            await expect(row).to_be_visible()
            await page.get_by_role("button", name="Restart Boiler").click()
            await eventually(lambda: starts == 2)
            # And one actor is looked at.
            await page.get_by_role("button", name="Boiler", exact=True).click()
            detail = page.get_by_role("region", name="Actor Boiler")
            await expect(detail).to_be_focused()
            await expect(detail).to_contain_text("plant/alarm: 1")


class Mended:
    """An application whose actor fails until it is mended."""

    def __init__(self, bus: str, topic: str, port: int) -> None:
        self.app = DistributedApplication(
            bus, name=f"mended-{topic[:8]}", admin=f"127.0.0.1:{port}"
        )
        self.mended = False
        self.got: list[str] = []
        self.app.application(topic, name="boiler", retry=RetryPolicy(attempts=1))(self.handle)

    async def handle(self, payload: str) -> None:
        if not self.mended:
            raise ValueError("no sensor")
        self.got.append(payload)

    def has_failed(self) -> bool:
        return self.app.stats["dead_letters.stored"] == 1


@pytest.mark.mosquitto
@pytest.mark.kafka
async def test_dead_letters_are_replayed_on_real_brokers(
    port: int, mosquitto: Mosquitto, kafka: Kafka
) -> None:
    tag = uuid.uuid4().hex
    for bus in (mosquitto.url, f"{kafka.url}?prefix={tag}.&create_topics=all"):
        plant = Mended(bus, f"{tag}/temperature", port)
        async with plant.app:
            await plant.app.socket().publish(f"{tag}/temperature", "95")
            await eventually(plant.has_failed)
            async with browsing(port) as page:
                failure = page.get_by_role("row", name="ValueError")
                await expect(failure).to_contain_text("no sensor")
                lag = page.get_by_role("columnheader", name="Lag")
                await expect(lag).to_be_visible(visible=bus.startswith("kafka"))
                plant.mended = True
                await page.get_by_role("button", name="List", exact=True).click()
                await page.get_by_role("button", name="Replay the dead letter of boiler").click()
                await expect(page.locator("#letters-note")).to_have_text("handled")
                assert plant.got == ["95"]
                # And it is gone.
                await page.get_by_role("button", name="List", exact=True).click()
                await expect(page.locator("#letters-note")).to_have_text("There are none.")


async def answer(port: int, path: str, *headers: str) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head, body


async def test_the_page_tells_nothing_and_runs_nothing_but_its_own_files(port: int) -> None:
    app = DistributedApplication(
        "memory://", name="plant", admin=f"127.0.0.1:{port}", admin_token=TOKEN
    )

    @app.application("a")
    async def pump(payload: str) -> None: ...

    kinds = {"index.html": "html", "view.css": "css", "view.js": "javascript", "icon.svg": "svg"}
    assert kinds.keys() == {path.name for path in VIEW.iterdir()}
    async with app:
        for name, kind in kinds.items():
            head, body = await answer(port, "/" if name == "index.html" else f"/{name}")
            assert head.startswith("HTTP/1.1 200"), name
            assert kind in re.findall("Content-Type: ([^;\r]+)", head)[0]
            policy = re.findall("Content-Security-Policy: ([^\r]+)", head)[0]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert body == (VIEW / name).read_text()
        for path in ("/index.html", "/../view.js", "/view", "/view.js/"):
            assert (await answer(port, path))[0].startswith("HTTP/1.1 404"), path
        for site in ("cross-site", "same-site"):
            head, _ = await answer(port, "/live/events", f"Sec-Fetch-Site: {site}")
            assert head.startswith("HTTP/1.1 403")


class _Page(HTMLParser):
    """Finds what the policy forbids, and labels that are missing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.labelled: set[str] = set()
        self.inputs: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found += [name for name in given if name.startswith("on") or name == "style"]
        loaded = [given[name] for name in ("src", "href") if name in given]
        self.found += [url for url in loaded if "/" in url or ":" in url]
        self.found += [tag] if tag in ("style", "iframe", "img", "base") else []
        self.scripts += tag == "script" and "src" in given
        self.found += ["inline script"] if tag == "script" and "src" not in given else []
        if tag == "label":
            self.labelled.add(given["for"])
        if tag in ("input", "select"):
            self.inputs.add(given["id"])


def test_everything_gets_into_the_page_as_text_and_every_field_has_a_label() -> None:
    page = _Page()
    page.feed((VIEW / "index.html").read_text())
    assert page.found == []
    assert page.scripts == 1
    assert page.inputs == page.labelled
    code = (VIEW / "view.js").read_text()
    assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|eval\(|new Function", code)
    assert "http" not in code.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(dark: bool) -> None:
    light_part, _, dark_part = (VIEW / "view.css").read_text().partition("@media (prefers-color")
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", dark_part if dark else light_part))
    assert len(colours) == 14
    pairs = [(name, "card") for name in ("text", "faint", "accent", "good", "warn", "bad")]
    pairs += [(name, f"{name}-card") for name in ("good", "warn", "bad", "accent")]
    pairs += [("text", f"{name}-card") for name in ("bad", "accent", "warn")]
    for front, back in [*pairs, ("text", "page")]:
        one, other = sorted(map(_luminance, (colours[front], colours[back])))
        # What WCAG 2.2 asks for, at level AA.
        assert (other + 0.05) / (one + 0.05) >= 4.5, (front, back)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
