"""The public examples of 0.4.0 run as the guide to migrating ports them, on real brokers."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from spa_dat import DistributedApplication
from support.peers import BUSES, address_of_bus
from support.waiting import eventually

pytestmark = [pytest.mark.repository, pytest.mark.slow]

_PAGE = Path(__file__).parent.parent.parent / "docs" / "migrating.md"
_BLOCK = re.compile(r"`examples/(\w+)/(\w+)\.py`:\n\n```diff\n(.*?)```", re.DOTALL)
# Beside the built package there are the tests alone, and these are left out of them.
_TEXT = _PAGE.read_text("utf-8") if _PAGE.exists() else ""
_DIFFS = {(bus, name): diff for bus, name, diff in _BLOCK.findall(_TEXT)}
_LAST = {
    "03_request": "Received Response: b\"Response Message for b'Producer Message 9'\"",
    "04_state": "Received Request: 10",
}


def test_all_eight_are_there() -> None:
    names = ("01_consumer", "02_producer", "03_request", "04_state")
    assert sorted(_DIFFS) == sorted((bus, name) for bus in ("kafka", "mqtt") for name in names)
    for diff in _DIFFS.values():
        removed = [line for line in diff.splitlines() if line.startswith("-")]
        assert "-app.start()" in removed


class Ported:
    """A ported example in a process of its own, with a broker and topics of this test.

    Args:
        bus: ``mqtt`` or ``kafka``.
        name: of the example.
        place: host and port of the broker.
        folder: for what it writes.
    """

    def __init__(self, bus: str, name: str, place: tuple[str, int], folder: Path) -> None:
        own = f"ported-{uuid.uuid4().hex[:8]}"
        lines = [line[1:] for line in _DIFFS[bus, name].splitlines() if not line.startswith("-")]
        code = "\n".join(lines)
        host, port = place
        # Each of them is there.
        for old, new in (
            ("mqtt-dashboard.com", host) if bus == "mqtt" else ("localhost:9092", f"{host}:{port}"),
            ("port=1883", f"port={port}"),
            ("sleep(1)", "sleep(0)"),
            ('"test/spa-dat', f'"{own}/spa-dat'),
            ('"spa-dat2"', f'"{own}"'),
            ('"test-spa-dat', f'"{own}'),
            ("level=logging.DEBUG", "level=logging.INFO"),
        ):
            code = code.replace(old, new)
        topics = re.findall(rf'"({own}[^"]*)"', code)
        self.topic: str = topics[0]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", code], stdout=log, stderr=log
            )

    @property
    def text(self) -> str:
        """What it has written so far."""
        return self._log.read_text("utf-8")

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._process.poll() is None

    def end(self) -> int:
        """Stop it, if it has not ended by itself; return its exit code."""
        if self.alive:
            self._process.terminate()
        return self._process.wait(30)


@pytest.fixture(params=BUSES)
def broker(request: pytest.FixtureRequest) -> tuple[str, str, int]:
    return address_of_bus(request)


def url_of(broker: tuple[str, str, int]) -> str:
    bus, host, port = broker
    return f"{bus}://{host}:{port}?wire=spa-dat" + ("&create_topics=all" * (bus == "kafka"))


async def until(attempt: Callable[[], Awaitable[None]], done: Callable[[], bool]) -> None:
    """Repeat an attempt, which takes a moment, until something has happened."""
    for _ in range(60):
        await attempt()
        try:
            await eventually(done, 1)
        except AssertionError:
            continue
        return
    raise AssertionError("it has not happened")


async def test_the_consumer(broker: tuple[str, str, int], tmp_path: Path) -> None:
    ported = Ported(broker[0], "01_consumer", broker[1:], tmp_path)
    app = DistributedApplication(url_of(broker))
    try:
        async with app:

            async def publish() -> None:
                await app.socket().publish(ported.topic, "hello")

            await until(publish, lambda: "Received message" in ported.text)
    finally:
        assert ported.end() == 0, ported.text


async def test_the_producer(broker: tuple[str, str, int], tmp_path: Path) -> None:
    ported = Ported(broker[0], "02_producer", broker[1:], tmp_path)
    # It ends by itself.
    await eventually(lambda: not ported.alive, 60)
    assert ported.end() == 0, ported.text


@pytest.mark.parametrize("name", ["03_request", "04_state"])
async def test_requests_and_state(broker: tuple[str, str, int], name: str, tmp_path: Path) -> None:
    ported = Ported(broker[0], name, broker[1:], tmp_path)
    try:
        await eventually(lambda: _LAST[name] in ported.text, 60)
    finally:
        assert ported.end() == 0, ported.text
